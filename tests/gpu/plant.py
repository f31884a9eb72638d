"""Failures planted around the real `python build.py --verify`: an `apptainer` in front of the real one, and settings.

Nothing of sifkit knows of it: the planted program changes the command line as a wrong site, wrapper script or user
would, and then becomes the real Apptainer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from sifkit.apptainer import Apptainer
from sifkit.run import Runner

ROOT = Path(__file__).resolve().parents[2]

# Options stand before the image; the last of several --env wins, and a bind below another must come after it.
_WRAPPER = """\
#!{python}
import os, sys
argv = sys.argv[1:]
if argv[:1] == ["exec"]:
    argv = [word for word in argv if word not in {drop!r}]
    image = next(place for place, word in enumerate(argv) if word.endswith(".sif"))
    argv[image:image] = {add!r}
os.execv({real!r}, [{real!r}, *argv])
"""


def wrap_apptainer(directory: Path, *, drop: tuple[str, ...] = (), add: tuple[str, ...] = ()) -> dict[str, str]:
    """Put an `apptainer` into `directory` that drops and adds arguments of `exec`; the PATH that finds it first."""
    real = shutil.which("apptainer")
    assert real, "Apptainer is not installed"
    directory.mkdir(parents=True)
    wrapper = directory / "apptainer"
    wrapper.write_text(_WRAPPER.format(python=sys.executable, drop=drop, add=list(add), real=real))
    wrapper.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@dataclass(frozen=True)
class Verified:
    """How a verification ended. `report` None: it ended before there was one."""

    code: int
    report: dict[str, Any] | None
    said: str  # on both streams
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the check's name

    def failure(self, start: str | tuple[str, ...]) -> str:
        """All that the failed check says whose name begins so (or so). Fails where no such check failed."""
        found = [check for name, check in self.failures.items() if name.startswith(start)]
        assert found, (
            f"no failed check {start!r}, but {sorted(self.failures) or 'none'}; exit {self.code}:\n{self.said}"
        )
        return " ".join(str(found[0][key]) for key in ("message", "cause", "fix"))


@dataclass(frozen=True)
class Subject:
    """An image in a project of its own, so that what is planted leaves no record where the image came from."""

    project: Path
    name: str
    checkout: Path
    device: Literal["gpu", "cpu"]

    @property
    def sif(self) -> Path:
        """The image itself."""
        return self.project / "images" / f"{self.name}.sif"

    def verify(
        self,
        work: Path,
        *options: str,
        env: Mapping[str, str] | None = None,
        site: Mapping[str, object] | None = None,
        as_file: bool = False,
        checked: bool = False,
    ) -> Verified:
        """`python build.py --verify`, of the image by name, or as a file of nobody's project.

        `checked`: the tables are asked, which refuse what the image holds in spite of them.
        """
        report, site_file = work / "report", work / "site.yaml"
        site_file.write_text(yaml.safe_dump({**own_site(), **(site or {})}))
        what = [str(self.sif)] if as_file else ["--project", str(self.project), self.name]
        argv = [sys.executable, str(ROOT / "build.py"), "--verify", "--device", self.device, "--site", str(site_file)]
        argv += ["--checkout", str(self.checkout), "--report", str(report)]
        argv += [*([] if checked else ["--no-check"]), *options, *what]
        environ = {**os.environ, **(env or {})}
        done = subprocess.run(argv, cwd=work, env=environ, capture_output=True, text=True, timeout=280)
        return _verified(done, report / "report.json")

    def inside(self, *argv: str) -> str:
        """What a program of the image prints."""
        apptainer = Apptainer.find(Runner(os.environ))
        command = [apptainer.program, "exec", "--cleanenv", "--no-home", str(self.sif), *argv]
        environ = {**os.environ, **apptainer.privileges.run_env}
        return subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout


def own_site() -> dict[str, object]:
    """What the site file says with which the image was made."""
    named = os.environ.get("SIFKIT_SITE")
    return dict(yaml.safe_load(Path(named).read_text()) or {}) if named else {}


def _verified(done: subprocess.CompletedProcess[str], path: Path) -> Verified:
    report = json.loads(path.read_text()) if path.is_file() else None
    checks = report["checks"] if report else []
    failures = {check["name"]: check for check in checks if check["outcome"] == "failed"}
    return Verified(done.returncode, report, done.stdout + done.stderr, failures)


def subject(image: Path, work: Path, checkout: Path, device: Literal["gpu", "cpu"]) -> Subject:
    """A project in `work` with the image (a link), its spec and its lock."""
    project, source = work / "project", image.parent.parent
    shutil.copytree(source / "definitions", project / "definitions")
    (project / "images").mkdir()
    for path in image.parent.glob(f"{image.stem}.*"):
        (project / "images" / path.name).symlink_to(path.absolute())
    return Subject(project, image.stem, checkout, device)


# ------------------------------------------------------------------------------------- what is planted


def without_compiler(subject: Subject, work: Path) -> dict[str, str]:
    """Every C compiler of the image is an empty device, whatever links lead to it."""
    script = "for name in gcc clang cc; do readlink -f $(command -v $name) || true; done"
    found = sorted(set(subject.inside("/bin/sh", "-c", script).split()))
    assert found, "the image has no compiler to take away"
    binds = [word for path in found for word in ("--bind", f"/dev/null:{path}")]
    return wrap_apptainer(work / "bin", add=tuple(binds))


def with_user_packages(subject: Subject, work: Path) -> dict[str, str]:
    """A peft of another version in ~/.local of a home that is mounted, and an environment that looks there.

    An environment that Python's venv makes does not: its pyvenv.cfg and the image's PYTHONNOUSERSITE forbid it.
    """
    python = subject.inside("/opt/venv/bin/python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()
    packages = work / "home" / ".local" / "lib" / f"python{python}" / "site-packages"
    info = packages / "peft-0.0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.0.1\n")
    (packages / "peft").mkdir()
    (packages / "peft" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    place = subject.inside("/usr/bin/readlink", "-f", "/opt/venv/pyvenv.cfg").strip()
    lines = [line for line in subject.inside("/bin/cat", place).splitlines() if "include-system-site" not in line]
    settings = work / "pyvenv.cfg"
    settings.write_text("\n".join([*lines, "include-system-site-packages = true"]) + "\n")
    binds = ("--bind", f"{work / 'home'}:/sifkit/work/home", "--bind", f"{settings}:{place}:ro")
    return wrap_apptainer(work / "bin", add=(*binds, "--env", "PYTHONNOUSERSITE="))


def with_library_in_front(work: Path, name: str, library: Path) -> dict[str, str]:
    """A libcuda in a directory NAME (stubs, compat) that the loader looks at before it looks at the driver's."""
    folder = work / "libraries" / name
    folder.mkdir(parents=True)
    shutil.copy(library, folder / "libcuda.so.1")
    place = f"/sifkit/planted/{name}"
    return wrap_apptainer(work / "bin", add=("--bind", f"{folder}:{place}:ro", "--env", f"LD_LIBRARY_PATH={place}"))


@contextmanager
def read_only(directory: Path) -> Iterator[Path]:
    """An empty directory in which nobody can write: root, who may write anywhere, needs a mount for that."""
    directory.mkdir()
    if os.geteuid() != 0:
        directory.chmod(0o555)
        yield directory
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=4k", "planted", str(directory)], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", str(directory)], check=True)


_HOLD = """\
import sys, torch
free, _ = torch.cuda.mem_get_info()
held = torch.empty(free - 1_000_000_000, dtype=torch.uint8, device="cuda")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def memory_taken(subject: Subject) -> Iterator[None]:
    """Another process holds all but 1 GB of the first GPU; it lets go when its standard input ends."""
    apptainer = Apptainer.find(Runner(os.environ))
    argv = [apptainer.program, "exec", "--nv", "--cleanenv", "--no-home", str(subject.sif), "python3", "-c", _HOLD]
    environ = {**os.environ, **apptainer.privileges.run_env}
    with subprocess.Popen(argv, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdin
        try:
            assert holder.stdout.readline().strip() == "held"
            yield
        finally:
            holder.stdin.close()
            holder.wait(timeout=60)
