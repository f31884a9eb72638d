"""What every layer of tests uses: fake programs, example specs, a project in a temporary directory."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from sifkit.compat.tables import load_tables
from sifkit.model import Image, ImageSpec, Inherited, Lock, LockedPackage, Resolution, Site
from sifkit.resolve import HostBases, resolution, resolve_base
from sifkit.run import Runner

TABLES = load_tables()

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's background jobs have it, and their children
    signal.signal(signal.SIGINT, signal.default_int_handler)

FakeTool = Callable[[str, str], Path]

SPEC = """\
name: example
base: debian-trixie
python: "3.13"
torch: {version: 2.9.1, cuda: "12.8"}
llamafactory: {version: 0.9.5}
apt: [gcc, git]
"""

HOST = HostBases(debootstrap=True, suites=("trixie", "bookworm"), mirrors={"trixie": "http://mirror.example/debian"})


def make_spec(**changes: object) -> ImageSpec:
    """A valid spec with some keys changed."""
    values: dict[str, object] = {
        "name": "example",
        "base": "debian-trixie",
        "python": "3.13",
        "torch": {"version": "2.9.1", "cuda": "12.8"},
        "llamafactory": {"version": "0.9.5"},
        "apt": ("gcc", "git"),
    }
    return ImageSpec.model_validate({**values, **changes})


def wanted(spec: ImageSpec | None = None, **changes: object) -> Resolution:
    """What a lock of this spec is resolved from."""
    return resolution(spec or make_spec(**changes), TABLES, Site())


def make_environment_spec(
    environment: str = "/opt/torch/.venv", copy: tuple[str, ...] = (), **changes: object
) -> ImageSpec:
    """A valid spec of an image made of a host's environment, with some keys changed."""
    base = {"bootstrap": "scratch", "environment": environment, **({"copy": copy} if copy else {})}
    values: dict[str, object] = {"name": "node", "base": base, "python": "3.12", "apt": ()}
    return make_spec(**{**values, "torch": {"version": "2.11.0", "cuda": "13.0"}, **changes})


def lock_text(spec: ImageSpec, *packages: str) -> str:
    """A lock of the right inputs; each package is NAME==VERSION with an invented hash."""
    entries = [
        f"{package} \\\n    --hash=sha256:{'0' * 64}  # {package.replace('==', '-')}.whl 1000" for package in packages
    ]
    head = [
        f"# {spec.name}: {len(packages)} packages, invented",
        "# by a test",
        f"# inputs: {wanted(spec).digest()}",
    ]
    return "\n".join([*head, *entries]) + "\n"


def make_image(spec: ImageSpec | None = None, site: Site | None = None, host: HostBases = HOST) -> Image:
    """An image with a small lock."""
    from sifkit.lock import parse_lock

    spec = spec or make_spec()
    text = lock_text(spec, "torch==2.9.1", "transformers==5.6.0", "uv==0.13.9")
    lock: Lock = parse_lock(text, "example.lock")
    return Image(spec, wanted(spec), lock, f"definitions/{spec.name}.lock", resolve_base(spec, site or Site(), host))


def make_environment_image(spec: ImageSpec | None = None) -> Image:
    """An image made of a host's environment, with a small lock."""
    from sifkit.lock import parse_lock, render_lock

    spec = spec or make_environment_spec()
    wheel = LockedPackage("llamafactory", "0.9.5", "llamafactory-0.9.5-py3-none-any.whl", 482716, "0" * 64)
    inherited = (Inherited("torch", "2.11.0+cu130"), Inherited("transformers", "5.6.0"))
    lock = parse_lock(render_lock(spec, wanted(spec), [wheel], inherited), "node.lock")
    return Image(spec, wanted(spec), lock, "definitions/node.lock", resolve_base(spec, Site(), HOST))


@pytest.fixture
def fake_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTool:
    """`fake_tool(name, script)` puts a shell script first on PATH."""
    directory = tmp_path / "fake-bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def make(name: str, script: str) -> Path:
        path = directory / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return make


@pytest.fixture
def runner() -> Runner:
    """The real door, in the environment as the test has made it."""
    return Runner(os.environ)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory with one spec and its lock."""
    definitions = tmp_path / "project" / "definitions"
    definitions.mkdir(parents=True)
    (definitions / "example.yaml").write_text(SPEC)
    packages = ("torch==2.9.1", "transformers==5.6.0", "uv==0.13.9")
    (definitions / "example.lock").write_text(lock_text(make_spec(), *packages))
    return definitions.parent
