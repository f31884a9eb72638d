"""A Python environment of the build host from which an image is made: read by its own interpreter, and judged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from sifkit.errors import CommandFailed, HostError, UsageError
from sifkit.model import ImageSpec, Inherited, Lock, Scratch
from sifkit.resolve import mounted_over
from sifkit.run import Command, Runner

PROBE = Path(__file__).parent / "verify" / "probes" / "environment.py"
OLDEST_PIP = Version("22.2")  # the first with --report. Source: pip's news for 22.2

# Prefixes that an image shares with its host's operating system: of them only what Python itself uses is needed.
_SYSTEM_PREFIXES = ("/usr", "/usr/local")


@dataclass(frozen=True)
class Environment:
    """What is in an environment."""

    path: str
    python: str  # "3.12"
    packages: tuple[Inherited, ...]  # by name
    torch_cuda: str | None  # "13.0"; None: no torch, or one without CUDA
    outside: tuple[str, ...]  # what its interpreter needs, and the base does not copy
    hidden: tuple[str, ...] = ()  # what it needs, and running the image puts the host's own directories over

    def version_of(self, name: str) -> str | None:
        """The version of a package, by its normalised name."""
        return next((package.version for package in self.packages if package.name == name), None)

    @property
    def interpreter(self) -> str:
        """The environment's Python."""
        return f"{self.path}/bin/python"


# ---------------------------------------------------------------------------------------------- reading


def read_environment(base: Scratch, runner: Runner) -> Environment:
    """Ask the environment's own Python. Raises `HostError` where it is not there or does not run."""
    path = base.environment
    assert path is not None
    folder, interpreter = Path(path), Path(path, "bin", "python")
    if not folder.is_dir():
        raise HostError(
            f"the environment {path} is not on this host",
            "run this on the host that has it, or correct environment: under base",
        )
    if folder.is_symlink():  # `cp -a` copies the link, not what it leads to
        raise UsageError(f"the environment {path} is a link", f"name the directory: environment: {folder.resolve()}")
    if not interpreter.exists():
        raise HostError(f"{path} is no Python environment: {interpreter} is not there", "name one that has it")
    result = runner.run(Command((str(interpreter), "-I", str(PROBE))), check=False)
    if result.returncode != 0:
        said = "\n".join(result.tail[-5:])
        raise HostError(f"{interpreter} does not run here:\n{said}", "repair the environment, or name another")
    return parse_environment(base, result.output)


_ANSWERED = frozenset({"path", "base_prefix", "packages", "python", "torch_cuda"})  # by probes/environment.py


def parse_environment(base: Scratch, answer: str) -> Environment:
    """The probe's answer, on the last line. Raises `CommandFailed` for anything else."""
    path = base.environment
    assert path is not None
    try:
        facts: Any = json.loads(answer.strip().rpartition("\n")[2])
    except ValueError:
        facts = None
    if not isinstance(facts, dict) or not facts.keys() >= _ANSWERED:
        raise CommandFailed(
            f"{path}/bin/python answered {answer[-200:]!r}", "is it a Python interpreter? repair it", returncode=0
        )
    needed = [*_links(f"{path}/bin/python"), *facts["path"]]
    needed += [] if facts["base_prefix"] in _SYSTEM_PREFIXES else [facts["base_prefix"]]
    packages = (Inherited(name, version) for name, version in facts["packages"].items() if _one_word(version))
    return Environment(
        path=path,
        python=facts["python"],
        packages=tuple(sorted(packages, key=lambda package: package.name)),
        torch_cuda=facts["torch_cuda"],
        outside=_outside(needed, (*base.copy_, path)),
        hidden=_outermost(place for place in map(_placed, needed) if mounted_over(place)),
    )


def _one_word(version: str) -> bool:
    """Whether a line of a lock can hold it. Anything else is no version, and pip does not take it for one either."""
    return version.split() == [version]


def _links(path: str) -> list[str]:
    """`path`, and every file that its chain of links leads over, each in its real directory."""
    found: list[str] = []
    while path not in found:
        found.append(path)
        if not Path(path).is_symlink():
            break
        path = _placed(os.path.join(os.path.dirname(path), os.readlink(path)))  # noqa: PTH115,PTH118,PTH120
    return found


def _placed(path: str) -> str:
    """`path` with links in its directory resolved, and not its own: /bin/x is /usr/bin/x."""
    return str(Path(path).parent.resolve() / Path(path).name)


def _outside(needed: Iterable[str], copied: Iterable[str]) -> tuple[str, ...]:
    """What is in none of the copied places, without what lies in another of the answer."""
    roots = [_placed(path) for path in copied]
    return _outermost(place for place in map(_placed, needed) if not any(_within(place, root) for root in roots))


def _outermost(places: Iterable[str]) -> tuple[str, ...]:
    """Each once, without what lies in another."""
    found = list(dict.fromkeys(places))
    return tuple(place for place in found if not any(_within(place, other) for other in found if other != place))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


# ---------------------------------------------------------------------------------------------- judging


def require_usable(spec: ImageSpec, found: Environment) -> None:
    """Its Python is the spec's, whole in the image, with a pip. Raises `UsageError` or `HostError` with the fix."""
    file = f"definitions/{spec.name}.yaml"
    if found.python != spec.python:
        raise UsageError(
            f"{file}: python is {spec.python}, the environment {found.path} has Python {found.python}",
            f'write python: "{found.python}"',
        )
    if found.hidden:
        raise UsageError(
            f"{file}: the Python of {found.path} needs {', '.join(found.hidden)}, which the host's directories hide "
            "when the image runs",
            "name an environment whose Python is not in a home or temporary directory",
        )
    if found.outside:
        raise UsageError(
            f"{file}: the Python of {found.path} needs {', '.join(found.outside)}, which the base does not copy",
            f"list them under copy, beside what is there: {', '.join(found.outside)}",
        )
    pip = found.version_of("pip")
    if pip is None:
        raise HostError(f"{found.path} has no pip", f"{found.interpreter} -m ensurepip")
    if Version(pip) < OLDEST_PIP:
        raise HostError(
            f"pip {pip} in {found.path} cannot report what it would install (needs {OLDEST_PIP})",
            f"{found.interpreter} -m pip install --upgrade pip",
        )


def require_torch(spec: ImageSpec, lock: Lock, found: Environment) -> None:
    """The torch that the image gets is the spec's, also its CUDA. Raises `UsageError` with what to write."""
    wanted, version = spec.torch, lock.version_of("torch")
    inherited = version is not None and any(package.name == "torch" for package in lock.inherited)
    cuda = found.torch_cuda if inherited else _cuda_of(version or "")
    if cuda is not None and cuda != wanted.cuda:
        whose = f"the environment {found.path} has" if inherited else "the wheels bring"
        raise UsageError(
            f"definitions/{spec.name}.yaml: torch is for CUDA {wanted.cuda}, {whose} {version} for CUDA {cuda}",
            f'write torch: {{version: {_public(version or "")}, cuda: "{cuda}"}}, or carry a wheel of another torch',
        )
    if inherited and cuda is None:
        raise UsageError(
            f"definitions/{spec.name}.yaml: torch {version} in {found.path} is a build without CUDA",
            f"name another environment, or carry a wheel of torch {wanted.version} for CUDA {wanted.cuda}",
        )


def torch_advice(spec: ImageSpec, found: Environment) -> str | None:
    """What to write where the environment's torch is another than the spec's."""
    version = found.version_of("torch")
    if version is None or _public(version) == spec.torch.version:
        return None
    cuda = found.torch_cuda or "…"
    return f'{found.path} has torch {version}: write torch: {{version: {_public(version)}, cuda: "{cuda}"}}'


def _cuda_of(version: str) -> str | None:
    """2.11.0+cu130 is for 13.0; a version that does not say is not judged."""
    local = version.partition("+")[2]
    return f"{local[2:-1]}.{local[-1]}" if local.startswith("cu") and local[2:].isdecimal() else None


def _public(version: str) -> str:
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def changes(lock: Lock, found: Environment) -> tuple[str, ...]:
    """What is in the environment now and was not when the lock was written, or the other way round."""
    replaced = {package.name for package in lock.packages}
    now = {package.name: package.version for package in found.packages if package.name not in replaced}
    before = {package.name: package.version for package in lock.inherited}
    return tuple(
        f"{name} {before.get(name, 'not there')} → {now.get(name, 'gone')}"
        for name in sorted(now.keys() | before.keys())
        if now.get(name) != before.get(name)
    )


def require_unchanged(lock: Lock, found: Environment, file: Path) -> None:
    """Raises `UsageError` when the lock was written for another state of the environment."""
    differences = changes(lock, found)
    if differences:
        more = f" and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise UsageError(
            f"{file} is stale: the environment {found.path} changed: {', '.join(differences[:4])}{more}",
            f"run: sifkit lock {file.stem}",
        )
