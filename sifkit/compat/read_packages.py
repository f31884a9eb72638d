"""llamafactory.yaml and packages.yaml from an index: LLaMA-Factory's ranges, and what is tied to torch."""

from __future__ import annotations

import ast
import re

from packaging.requirements import Requirement
from packaging.version import Version
from pypi_simple import DistributionPackage

from sifkit.compat.tables import LlamaFactoryRelease, TiedRelease
from sifkit.compat.wheels import PYTHONS, Index, Wheel, WheelName, plain, read_each
from sifkit.progress import Progress

OLDEST_LLAMAFACTORY = Version("0.9.1")
# The oldest release of each tied package that a LLaMA-Factory in the tables may meet.
OLDEST_TIED = {
    "bitsandbytes": Version("0.43"),
    "deepspeed": Version("0.14"),
    "flash-attn": Version("2.6"),
    "liger-kernel": Version("0.5"),
    "vllm": Version("0.6"),
}


# ---------------------------------------------------------------------------------------------- LLaMA-Factory


def llamafactory_releases(index: Index, progress: Progress) -> list[LlamaFactoryRelease]:
    """Every release from OLDEST_LLAMAFACTORY on."""
    wheels = {v: files for v, files in index.wheels("llamafactory").items() if v >= OLDEST_LLAMAFACTORY}
    archives = index.archives("llamafactory")

    def read(version: Version) -> LlamaFactoryRelease:
        with index.open(wheels[version][0]) as wheel:
            return _llamafactory(index, wheel, version, archives.get(version))

    return read_each("llamafactory", sorted(wheels), read, progress)


def _llamafactory(
    index: Index, wheel: Wheel, version: Version, archive: DistributionPackage | None
) -> LlamaFactoryRelease:
    files = index.archive_members(archive, r"requirements/[\w-]+\.txt") if archive else {}
    extras = {name: [str(r) for r in plain(wheel.requires(extra=name))] for name in _extra_names(wheel)}
    for path, text in files.items():
        name = path.removeprefix("requirements/").removesuffix(".txt")
        extras.setdefault(name, _requirement_lines(text))
    sources = [wheel.filename, *([archive.filename] if files and archive else [])]
    code = {name: wheel.read(name).decode() for name in wheel.names if name.endswith(".py")}
    runtime = _checked(code["llamafactory/extras/misc.py"], function="check_dependencies")
    at_use = {r for text in code.values() for r in _checked(text)} - set(runtime)
    bounded = [found for found in wheel.requires() if _has_upper_bound(found)]
    return LlamaFactoryRelease(
        version=str(version),
        python=wheel.python,
        pythons=tuple(python for python in PYTHONS if all(_has_wheel(index, found, python) for found in bounded)),
        requires=tuple(sorted(str(found) for found in plain(wheel.requires()))),
        runtime=tuple(runtime),
        extras={name: tuple(found) for name, found in sorted(extras.items()) if name != "dev" and found},
        optional=tuple(sorted(text for text in at_use if Requirement(text).specifier)),
        source=tuple(sources),
    )


def _has_upper_bound(requirement: Requirement) -> bool:
    return any(part.operator in ("<", "<=", "==", "~=") for part in requirement.specifier)


def _has_wheel(index: Index, requirement: Requirement, python: str) -> bool:
    """Whether the index holds a wheel in the range for this Python: numpy < 2 has none for Python 3.13."""
    wheels = index.wheels(requirement.name)
    return any(
        name.runs_on(python)
        for version in requirement.specifier.filter(wheels)
        for file in wheels[version]
        if (name := WheelName.parse(file.filename))
    )


def _extra_names(wheel: Wheel) -> list[str]:
    return [str(name) for name in wheel.metadata.provides_extra or ()]


def _requirement_lines(text: str) -> list[str]:
    lines = [line.split("#")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("-")]


def _checked(source: str, function: str | None = None) -> list[str]:
    """Literal requirements in calls of check_version and require_version, in one function or everywhere."""
    tree: ast.AST = ast.parse(source)
    if function is not None:
        tree = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function)
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(
                func=ast.Name(id="check_version" | "require_version"), args=[ast.Constant(value=str(text)), *_]
            ):
                found.append(text)
    return found


# ---------------------------------------------------------------------------------------------- tied packages


def tied_releases(index: Index, progress: Progress) -> list[TiedRelease]:
    """Packages that are tied to torch: what their metadata says, and for which CUDA they bring libraries."""
    rows: list[TiedRelease] = []
    for project, oldest in OLDEST_TIED.items():
        rows += _tied(index, project, oldest, progress)
    return rows


def _tied(index: Index, project: str, oldest: Version, progress: Progress) -> list[TiedRelease]:
    wheels, archives = index.wheels(project), index.archives(project)
    versions = sorted(v for v in {*wheels, *archives} if v >= oldest and not v.is_prerelease)

    def read(version: Version) -> TiedRelease:
        if version not in wheels:
            name = archives[version].filename
            return TiedRelease(name=project, version=str(version), wheel=False, source=name)
        with index.open(wheels[version][-1]) as wheel:
            return _tied_wheel(project, version, wheel)

    return read_each(project, versions, read, progress)


def _tied_wheel(project: str, version: Version, wheel: Wheel) -> TiedRelease:
    torch = wheel.requirement("torch")
    others = [wheel.requirement(name) for name in ("numpy", "transformers", "triton")]
    return TiedRelease(
        name=project,
        version=str(version.public if version.local is None else version),
        wheel=True,
        python=wheel.python,
        torch=str(torch.specifier) if torch else "",
        requires=tuple(str(found) for found in plain(r for r in others if r and r.specifier)),
        cuda=_cuda_libraries(wheel),
        source=wheel.filename,
    )


def _cuda_libraries(wheel: Wheel) -> tuple[str, ...]:
    """The CUDA versions that a wheel brings a library for, as bitsandbytes names them: lib…_cuda128.so."""
    found = {match for name in wheel.names if (match := re.search(r"_cuda(\d+)(\d)(?:_\w+)?\.so$", name))}
    return tuple(sorted({f"{match[1]}.{match[2]}" for match in found}, key=Version))
