"""`build.py --engine docker` with a real Docker Engine and registry, on packages that take seconds."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sifkit.apptainer import Apptainer, Exec
from sifkit.cli import main
from sifkit.docker_engine import DockerEngine
from sifkit.dockerfile import SITE_SECRET
from sifkit.errors import Exit, HostError
from sifkit.gather.image import parse_facts
from sifkit.run import Runner
from sifkit.sif import OBJECT_NAME, read_object, read_objects
from sifkit.store import Store
from tests.docker.conftest import Daemon, MakeProject

pytestmark = [pytest.mark.docker, pytest.mark.apptainer]

USER, PASSWORD, CERTIFICATE = "builder", "s3cret-of-this-site", "certificate-of-this-site"

WHAT_IT_HOLDS = """\
import hashlib, importlib.metadata as metadata, json, os, pathlib, subprocess
def text(path):
    return pathlib.Path(path).read_text()
own = {str(path): hashlib.sha256(path.read_bytes()).hexdigest()
       for place in ("/opt/sifkit", "/usr/local") for path in pathlib.Path(place).rglob("*") if path.is_file()}
dpkg = subprocess.run(["dpkg-query", "-W"], capture_output=True, text=True, check=True).stdout
print(json.dumps({
    "python": sorted(f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()),
    "debian": dpkg.splitlines(),
    "files": own,
    "bytecode": sorted(str(path) for path in pathlib.Path("/opt/venv").rglob("*.pyc")),
    "caches": os.listdir("/var/cache/sifkit"),
    "of apptainer": {name: text(f"/.singularity.d/{name}") for name in OF_APPTAINER},
    "environment": {n: v for n, v in os.environ.items() if not n.startswith(("APPTAINER", "SINGULARITY"))},
}))
"""


def sif_holds(image: Path) -> dict[str, object]:
    apptainer = Apptainer.find(Runner(os.environ))
    own = ("labels.json", "runscript", "test", "env/90-environment.sh", "runscript.help")
    script = f"OF_APPTAINER = {own!r}\n{WHAT_IT_HOLDS}"
    result = apptainer.runner.run(Exec(image, ("python3", "-c", script)).command(apptainer))
    return dict(json.loads(result.output))


def docker_holds(daemon: Daemon, image: str) -> dict[str, object]:
    argv = ["python3", "-c", f"OF_APPTAINER = ()\n{WHAT_IT_HOLDS}"]
    output = daemon.client.containers.run(image, argv[1:], entrypoint=argv[:1], network_mode="host", remove=True)
    return dict(json.loads(output))


def build(daemon: Daemon, project: Path, *words: str, **environment: str) -> int:
    site = str(project / "site.yaml")
    with pytest.MonkeyPatch.context() as patch:
        (project.parent / "tmp").mkdir(exist_ok=True)
        values = {"DOCKER_HOST": daemon.address, "TMPDIR": str(project.parent / "tmp"), **environment}
        for name, value in values.items():
            patch.setenv(name, value)
        return main(["build", "--project", str(project), "--site", site, "toy", *words])


def left_in(daemon: Daemon) -> tuple[list[str], list[str]]:
    containers = [str(container.name) for container in daemon.client.containers.list(all=True)]
    volumes = [str(volume.name) for volume in daemon.client.volumes.list()]
    return containers, [name for name in volumes if name not in ("sifkit-uv", "sifkit-pip")]


@dataclass(frozen=True)
class Built:
    """An image that Docker made."""

    project: Path
    sif: Path
    holds: Mapping[str, Any]  # the .sif
    in_docker: Mapping[str, Any]  # the daemon's image


@pytest.fixture(scope="module")
def built(
    make_project: MakeProject, daemon: Daemon, wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """From an index that asks for a password, with certificates of the site: both must not stay."""
    root = tmp_path_factory.mktemp("built")
    project, bundle = make_project(root), root / "ca.pem"
    site = (project / "site.yaml").read_text()
    bundle.write_text(f"# {CERTIFICATE}\n" + Path("/etc/ssl/certs/ca-certificates.crt").read_text())
    with served(wheelhouse, root / "index", _Guarded) as place:
        url = f"http://{USER}:{PASSWORD}@{place}"
        (project / "site.yaml").write_text(f"python_index: {{url: '{url}', ca_bundle: {bundle}}}\n")
        proxy = f"127.0.0.1,{PASSWORD}.example"
        assert build(daemon, project, "--engine", "docker", no_proxy=proxy) == Exit.OK
    (project / "site.yaml").write_text(site)
    sif = Path(shutil.copy(project / "images" / "toy.sif", root / "docker.sif"))
    return Built(project, sif, sif_holds(sif), docker_holds(daemon, "sifkit/toy:latest"))


def test_the_two_images_of_one_spec_are_alike(built: Built, daemon: Daemon) -> None:
    store = Store(built.project / "images")
    manifest = store.manifest("toy")
    assert build(daemon, built.project, "--force") == Exit.OK
    of_apptainer, other = store.sif("toy"), store.manifest("toy")

    assert built.holds == sif_holds(of_apptainer)
    assert "tree\t" in "\n".join(built.holds["debian"])
    assert built.holds["caches"] == []
    assert manifest
    assert other
    assert (manifest.recipe, manifest.base) == (other.recipe, other.base)
    assert manifest.versions == {**other.versions, "docker": daemon.client.version()["Version"]}
    objects = [[(each.kind, each.name) for each in read_objects(sif)] for sif in (built.sif, of_apptainer)]
    assert objects[0] == objects[1]
    facts = [parse_facts((read_object(sif, OBJECT_NAME) or b"").decode(), sif) for sif in (built.sif, of_apptainer)]
    assert facts[0]
    assert facts[1]
    assert facts[0].packages == facts[1].packages


def test_the_image_in_the_daemon_is_the_same_too(built: Built, daemon: Daemon) -> None:
    for part in ("python", "debian", "files", "bytecode", "caches"):
        assert built.in_docker[part] == built.holds[part], part
    environment = built.in_docker["environment"]
    assert (environment["GREETING"], environment["PYTHONNOUSERSITE"]) == ("it's $HOME", "1")
    assert environment["PATH"] == built.holds["environment"]["PATH"]
    labels = daemon.client.images.get("sifkit/toy:latest").labels
    assert labels.items() <= json.loads(built.holds["of apptainer"]["labels.json"]).items()
    assert labels["org.sifkit.llamafactory"] == "0.9.5"
    said = daemon.client.containers.run("sifkit/toy:latest", ["version"], network_mode="host", remove=True)
    assert said == b"toy version\n"
    assert left_in(daemon) == ([], [])


# ---------------------------------------------------------------------------------------------- secrets


class _Guarded(http.server.SimpleHTTPRequestHandler):
    """Files for those who know the password; directories as PEP 503 pages."""

    def do_GET(self) -> None:
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {token}":
            super().do_GET()
            return
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="index"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def served(wheelhouse: Path, directory: Path, guard: type) -> Iterator[str]:
    """HOST:PORT/ of an index of the wheels."""
    for wheel in wheelhouse.glob("*.whl"):
        folder = directory / re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(guard, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_what_the_site_lends_is_in_no_layer_no_history_and_no_sif(built: Built, daemon: Daemon, tmp_path: Path) -> None:
    image = daemon.client.images.get("sifkit/toy:latest")
    assert len(image.history()) >= 3
    told = json.dumps([image.history(), image.attrs])
    archive = b"".join(image.save())  # layers as they are: tars without compression
    files = sif_files(built.sif, tmp_path / "tree")
    for secret in (PASSWORD, CERTIFICATE):
        assert secret not in told
        assert secret.encode() not in archive
        assert secret.encode() not in files
    assert b"org.sifkit.llamafactory" in archive  # it is searchable
    assert b"requirements.lock" in files


def sif_files(sif: Path, work: Path) -> bytes:
    """All bytes of an image's files, and of the file's other objects."""
    from sifkit.sifwrite import partition

    found = partition(sif)
    argv = ["unsquashfs", "-quiet", "-no-progress", "-o", str(found.offset), "-d", str(work), str(sif)]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(work, ".")
    shutil.rmtree(work)
    return stream.getvalue() + sif.read_bytes()


# ---------------------------------------------------------------------------------------------- Dockerfile


class _Open(_Guarded):
    def do_GET(self) -> None:
        http.server.SimpleHTTPRequestHandler.do_GET(self)


def test_the_rendered_dockerfile_builds_without_buildkit(
    built: Built, daemon: Daemon, wheelhouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A served index stands in for the public one, through variables that any base could have."""
    text = rendered(built, daemon, capsys)
    with served(wheelhouse, tmp_path / "index", _Open) as place:
        variables = f"ENV PIP_INDEX_URL=http://{place} UV_DEFAULT_INDEX=http://{place}"
        text = re.sub(r"^(FROM .*)$", rf"\1\n{variables}", text, flags=re.MULTILINE)
        docker_build(daemon, text, built, "rendered:classic", tmp_path, buildkit=False)
    require_same(daemon, built, "rendered:classic")


def test_the_one_for_buildkit_builds_with_its_caches_and_a_secret(
    built: Built, daemon: Daemon, wheelhouse: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = rendered(built, daemon, capsys, "--buildkit")
    secret = tmp_path / "site.sh"
    with served(wheelhouse, tmp_path / "index", _Guarded) as place:
        url = f"http://{USER}:{PASSWORD}@{place}"
        secret.write_text(f"export PIP_INDEX_URL={url} UV_DEFAULT_INDEX={url}\n")
        words = ("--secret", f"id={SITE_SECRET},src={secret}")
        docker_build(daemon, text, built, "rendered:buildkit", tmp_path, *words, buildkit=True)
    require_same(daemon, built, "rendered:buildkit")
    image = daemon.client.images.get("rendered:buildkit")
    assert PASSWORD not in json.dumps([image.history(), image.attrs])
    assert PASSWORD.encode() not in b"".join(image.save())


def rendered(built: Built, daemon: Daemon, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert build(daemon, built.project, "--render", "--engine", "docker", *words) == Exit.OK
    return capsys.readouterr().out


def require_same(daemon: Daemon, built: Built, tag: str) -> None:
    held = docker_holds(daemon, tag)
    for part in ("python", "debian", "files", "bytecode", "caches"):
        assert held[part] == built.in_docker[part], part
    config, other = (daemon.client.images.get(name).attrs["Config"] for name in (tag, "sifkit/toy:latest"))
    added = [word for word in config["Env"] if not word.startswith(("PIP_", "UV_"))]
    assert sorted(added) == sorted(other["Env"])
    assert (config["Labels"], config["Entrypoint"]) == (other["Labels"], other["Entrypoint"])


def docker_build(
    daemon: Daemon, dockerfile: str, built: Built, tag: str, work: Path, *words: str, buildkit: bool
) -> None:
    """With Docker's own program, as a user would."""
    file = work / "toy.Dockerfile"
    file.write_text(dockerfile)
    program = shutil.which("docker", path=f"/usr/bin:{os.environ['PATH']}")
    assert program, "bash ci/docker/install.sh"
    argv = [program, "build", "--network", "host", "-t", tag, "-f", str(file), *words, "definitions"]
    environment = {**os.environ, "DOCKER_HOST": daemon.address, "DOCKER_BUILDKIT": str(int(buildkit))}
    done = subprocess.run(argv, cwd=built.project, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


# ---------------------------------------------------------------------------------------------- what goes wrong


def test_a_step_that_fails_is_named_and_nothing_is_left(
    make_project: MakeProject, daemon: Daemon, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path)
    lock = project / "definitions" / "toy.lock"
    text = lock.read_text()
    start = text.index("sha256:", text.index("torchaudio==")) + len("sha256:")
    lock.write_text(text[:start] + "0" * 64 + text[start + 64 :])
    assert build(daemon, project, "--engine", "docker") == Exit.PROGRAM
    said = " ".join(capsys.readouterr().err.split())
    assert "step 2 of 2, Python packages: failed (exit" in said
    assert "Hash mismatch for `torchaudio" in said
    assert "Hash mismatch for `torchaudio" in (project / "build" / "toy.log").read_text()
    assert not (project / "images" / "toy.sif").exists()
    assert left_in(daemon) == ([], [])


def test_a_base_that_cannot_be_had_is_said(
    make_project: MakeProject, daemon: Daemon, tmp_path: Path, registry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make_project(tmp_path)
    lock, spec = (project / "definitions" / f"toy.{kind}" for kind in ("lock", "yaml"))
    absent = f"{registry}/absent@sha256:{'0' * 64}"
    spec.write_text(re.sub(r"from: '.*'", f"from: '{absent}'", spec.read_text()))
    lock.write_text(re.sub(r"^# base: .*\n", "", lock.read_text(), flags=re.MULTILINE))
    assert build(daemon, project, "--engine", "docker") == Exit.HOST
    said = " ".join(capsys.readouterr().err.split())
    assert f"the Docker daemon cannot get {absent}" in said
    assert "the spec's base: {bootstrap: docker, from: …}" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_build_that_is_stopped_leaves_nothing_or_the_next_one_clears_it(
    number: signal.Signals, make_project: MakeProject, daemon: Daemon, tmp_path: Path
) -> None:
    project = make_project(tmp_path)
    (tmp_path / "tmp").mkdir()
    log = project / "build" / "toy.log"
    argv = [sys.executable, "-m", "sifkit", "build", "--project", str(project), "toy", "--engine", "docker"]
    argv += ["--site", str(project / "site.yaml")]
    environment = {**os.environ, "DOCKER_HOST": daemon.address, "TMPDIR": str(tmp_path / "tmp")}
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(lambda: log.is_file() and "-m venv /opt/venv" in log.read_text(), process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    wait_for(lambda: not list((tmp_path / "tmp").iterdir()))
    assert not list((project / "images").glob("*.sif"))
    if number != signal.SIGKILL:
        assert process.returncode == Exit.INTERRUPTED, said
        assert left_in(daemon) == ([], [])
        return
    assert left_in(daemon) != ([], [])
    assert build(daemon, project, "--engine", "docker") == Exit.OK
    assert left_in(daemon) == ([], [])


def test_without_a_daemon_apptainer_is_offered(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no Docker daemon answers at unix://") as error:
        DockerEngine.find({"DOCKER_HOST": f"unix://{tmp_path}/docker.sock"})
    assert "leave out --engine docker" in (error.value.fix or "")


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user is tried by becoming one")
def test_without_the_right_to_the_socket_the_group_is_named(daemon: Daemon) -> None:
    daemon.socket.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(HostError, match="is not for this user") as error:
            DockerEngine.find({"DOCKER_HOST": daemon.address})
    finally:
        os.seteuid(0)
    assert "group docker" in (error.value.fix or "")
    assert "leave out --engine docker" in (error.value.fix or "")


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
