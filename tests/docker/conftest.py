"""A Docker Engine and a registry of the tests' own, on this machine, ended by process id afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest
from rich.console import Console

from sifkit.apptainer import Apptainer
from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.execute import load_image
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.sifwrite import partition
from sifkit.site import load_site
from sifkit.spec import Project
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop
from tests.integration import toy

INSTALL = Path(__file__).parents[2] / "ci" / "docker" / "install.sh"
SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


MakeProject = Callable[[Path], Path]


@dataclass(frozen=True)
class Daemon:
    """A running Docker Engine."""

    socket: Path
    client: docker.DockerClient

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"


@contextmanager
def running(argv: list[str], log: Path, ready: Callable[[], bool]) -> Iterator[None]:
    """A program until the end of the block; fails with its log when it does not get ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output, env={**os.environ, "PATH": SYSTEM_PATH})
    try:
        deadline = time.monotonic() + 60
        while not ready():
            assert process.poll() is None, f"{argv[0]} ended:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"{argv[0]} did not get ready:\n{log.read_text()[-3000:]}"
            time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """In a short path, since its socket is one. Without a bridge: it leaves no rules and no forwarding behind."""
    subprocess.run(["bash", str(INSTALL)], check=True, capture_output=True)
    directory = Path(tempfile.mkdtemp(prefix="sifkit-docker-", dir="/tmp"))
    address = directory / "docker.sock"
    argv = ["dockerd", "--data-root", f"{directory}/data", "--exec-root", f"{directory}/exec"]
    argv += ["--pidfile", f"{directory}/pid", "-H", f"unix://{address}"]
    argv += ["--iptables=false", "--ip-forward=false", "--bridge=none"]
    try:
        log = directory / "log"
        with running(argv, log, lambda: "API listen on" in log.read_text()):
            client = docker.DockerClient(base_url=f"unix://{address}", timeout=300)
            yield Daemon(address, client)
            client.close()
    finally:
        _unmount(directory)
        shutil.rmtree(directory)


def _unmount(directory: Path) -> None:
    """What the daemon leaves mounted: the namespace of containers on the host's network."""
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounted if place.startswith(f"{directory}/")]):
        subprocess.run(["umount", place], check=True)


@pytest.fixture(scope="session")
def registry(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """HOST:PORT of an empty registry."""
    directory = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    config = directory / "config.yml"
    config.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/data}}}}\nhttp: {{addr: '{place}'}}\n"
    )
    with running(["docker-registry", "serve", str(config)], directory / "log", lambda: _serves(place)):
        yield place


def _serves(place: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{place}/v2/", timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_wheelhouse(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def base_image(daemon: Daemon, registry: str, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Debian in the registry: the base that sifkit makes for the toy, which the other tests make anyway."""
    root = tmp_path_factory.mktemp("base")
    project = toy.make_project(root / "project", wheelhouse)
    site = project / "site.yaml"
    assert main(["lock", "--project", str(project), "--site", str(site)]) == Exit.OK
    runner = Runner(os.environ)
    progress = PlainProgress(Console(stderr=True))
    tools = Tools(Project(project), load_site(site, {}, project), runner, progress, os.environ)
    workshop = Workshop(tools, Apptainer.find(runner), root / "tmp", root / "log")
    found = partition(workshop.base(load_image("toy", tools), Timings()))
    unpack = ["unsquashfs", "-quiet", "-no-progress", "-o", str(found.offset), "-d", f"{root}/tree", str(found.path)]
    subprocess.run(unpack, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["tar", "-C", f"{root}/tree", "-cf", f"{root}/tree.tar", "."], check=True)
    name = f"{registry}/debian"
    daemon.client.api.import_image(src=f"{root}/tree.tar", repository=name, tag="trixie-slim")
    said = daemon.client.images.push(name, "trixie-slim")
    assert '"error"' not in said, said
    shutil.rmtree(root / "tree")
    (root / "tree.tar").unlink()
    return f"{name}:trixie-slim"


@pytest.fixture(scope="session")
def make_project(base_image: str, wheelhouse: Path) -> MakeProject:
    """`make_project(ROOT)`: a locked project of the toy on the registry's Debian, with a package that this lacks."""

    def make(root: Path) -> Path:
        project = toy.make_project(root / "project", wheelhouse)
        spec, site = project / "definitions" / "toy.yaml", project / "site.yaml"
        base = f"base: {{bootstrap: docker, from: '{base_image}'}}"
        spec.write_text(toy.SPEC.replace("base: debian-trixie", base) + "apt: [tree]\n")
        assert main(["lock", "--project", str(project), "--site", str(site)]) == Exit.OK
        return project

    return make
