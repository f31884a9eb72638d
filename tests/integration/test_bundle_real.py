"""From a host with a network to one that has none: one file carried over, and the image is the same, byte for byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.hashes import sha256_of
from sifkit.site import user_cache
from tests.integration import toy

pytestmark = [pytest.mark.apptainer, pytest.mark.index]

NO_NETWORK = ("unshare", "--net")


def has_namespaces() -> bool:
    return os.geteuid() == 0 and subprocess.run([*NO_NETWORK, "true"], capture_output=True).returncode == 0


needs_namespace = pytest.mark.skipif(not has_namespaces(), reason="a namespace without network needs root")


@dataclass(frozen=True)
class Carried:
    """A bundle of the toy, and the sha256 of the image that was built with a network."""

    path: Path
    told: str
    sha256: str


@pytest.fixture(scope="module")
def carried(tmp_path_factory: pytest.TempPathFactory) -> Carried:
    root = tmp_path_factory.mktemp("with network")
    project = toy.make_project(root / "project", toy.make_wheelhouse(root / "wheels"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIFKIT_SITE", str(project / "site.yaml"))
        patch.setenv("SIFKIT_CACHE", str(make_cache(root / "cache")))
        assert main(["lock", "--project", str(project), "toy"]) == Exit.OK
        assert main(["build", "--project", str(project), "toy"]) == Exit.OK
        (project / "site.yaml").write_text("{}\n")  # sifkit's own wheels are in no wheelhouse
        bundle = root / "toy.bundle"
        words = [sys.executable, "-m", "sifkit", "bundle", "toy", "--project", str(project), "-o", str(bundle)]
        told = subprocess.run([*words, "--json"], check=True, capture_output=True, text=True).stdout
    return Carried(bundle, json.loads(told)["sha256"], sha256_of(project / "images" / "toy.sif"))


def make_cache(directory: Path) -> Path:
    """The user's own, so that the base is there, with a checkout that nobody has to fetch."""
    for name in ("bases", "layers"):
        kept = user_cache(os.environ) / name
        kept.mkdir(parents=True, exist_ok=True)
        directory.mkdir(exist_ok=True)
        (directory / name).symlink_to(kept)
    for name, text in {
        "src/llamafactory/extras/env.py": 'VERSION = "0.9.5"\n',
        "data/dataset_info.json": "{}",
        "examples/train_lora/tiny_lora_sft.yaml": "",
    }.items():
        path = directory / "checkouts" / "0.9.5" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def without_network(*argv: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*NO_NETWORK, *argv], env=env, capture_output=True, text=True)


@needs_namespace
def test_the_image_is_the_same_where_there_is_no_network(carried: Carried, tmp_path: Path) -> None:
    """Even sifkit comes from the bundle; the site says of the base something else than the one where it was made."""
    (tmp_path / "tmp").mkdir()
    site = tmp_path / "site.yaml"
    site.write_text("bases: {debian-trixie: {bootstrap: docker, from: 'registry.invalid/debian:trixie'}}\n")
    own = {"SIFKIT_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "tmp"), "SIFKIT_SITE": str(site)}
    env = {**{name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}, **own}
    assert sha256_of(carried.path) == carried.told

    def run(*argv: str) -> str:
        done = without_network(*argv, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert [line.split(":")[0].strip() for line in run("cat", "/proc/net/dev").splitlines()[2:]] == ["lo"]
    with tarfile.open(carried.path) as tar:
        for member in tar:
            if member.name.startswith("sifkit/"):
                tar.extract(member, tmp_path)
    wheels, venv = tmp_path / "sifkit", tmp_path / "venv"
    run(sys.executable, "-m", "venv", str(venv))
    install = (str(venv / "bin" / "pip"), "install", "--quiet", "--no-index", "--find-links", str(wheels))
    run(*install, "--require-hashes", "--requirement", str(wheels / "requirements.txt"))
    sifkit, project = str(venv / "bin" / "sifkit"), tmp_path / "project"
    run(sifkit, "unbundle", str(carried.path), "--project", str(project))
    run(sifkit, "build", "--offline", "--project", str(project), "toy")
    assert sha256_of(project / "images" / "toy.sif") == carried.sha256

    next((tmp_path / "cache" / "layers").glob("torch-*.sqfs")).unlink()
    again = without_network(sifkit, "build", "--offline", "--force", "--project", str(project), "toy", env=env)
    assert again.returncode == Exit.HOST
    assert "toy cannot be built offline: the cache lacks torch\n" in again.stderr


def test_bundles_of_one_state_are_one_file(carried: Carried) -> None:
    """But for sifkit's own wheels, whose index moves on."""
    project, cache = carried.path.parent / "project", carried.path.parent / "cache"
    sums = []
    for number in range(2):
        bundle = carried.path.with_name(f"again{number}.bundle")
        argv = ["bundle", "toy", "--without-sifkit", "--project", str(project), "-o", str(bundle)]
        env = {**os.environ, "SIFKIT_CACHE": str(cache), "SIFKIT_SITE": str(project / "site.yaml")}
        subprocess.run([sys.executable, "-m", "sifkit", *argv], check=True, env=env, capture_output=True)
        sums.append(sha256_of(bundle))
    assert sums[0] == sums[1]
