"""Do the compiled files of an environment fit each other, the system's libraries, and torch? What resolvers do not ask.

Facts of probes/elf.py in, checks out; touches nothing.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from sifkit.model import Strict
from sifkit.tables import known_bases
from sifkit.verify.checks import Check, Level, failed, not_run, passed, timed, warned
from sifkit.yamlfile import load_own

_OPTIONAL = Path(__file__).parent.parent / "data" / "optional_libraries.yaml"

_WITH_TORCH = ("torchaudio", "torchvision")  # their metadata did not always say for which torch they are


# ---------------------------------------------------------------------------------------------- facts


@dataclass(frozen=True)
class ElfObject:
    """An ELF file: what it is, which libraries it needs, and which versions of their symbols."""

    path: str
    machine: str = "EM_X86_64"
    names: frozenset[str] = frozenset()  # under which others find it: its soname, its file's, those of links to it
    needed: tuple[str, ...] = ()
    search: tuple[str, ...] = ()  # the folders of its own run path
    versions: tuple[tuple[str, tuple[str, ...]], ...] = ()  # library, versions
    defines: frozenset[str] = frozenset()  # versions of its own symbols; empty: it has none
    broken: str | None = None  # why its headers could not be read
    package: str | None = None  # name and version of the distribution that brought it
    release: str | None = None  # of the C library, if it is that
    everywhere: bool = False  # the loader finds it for every program: a library of the system

    @property
    def short(self) -> str:
        """Its path within site-packages, or all of it."""
        return self.path.rpartition("-packages/")[2]

    @property
    def owner(self) -> str:
        """The distribution with its version; else its folder in site-packages, or its own name."""
        inside = self.short != self.path
        return self.package or (
            self.short.split("/")[0].removesuffix(".libs") if inside else PurePosixPath(self.path).name
        )


@dataclass(frozen=True)
class MissingSymbol:
    """A symbol of torch's that this torch does not define."""

    symbol: str  # mangled
    name: str  # c10::detail::torchCheckFail
    other_abi: str | None  # torch's symbol that differs from it in the ABI of strings alone


@dataclass(frozen=True)
class Extension:
    """A file outside torch that uses it, and how many of its symbols."""

    path: str
    symbols: int
    missing: tuple[MissingSymbol, ...] = ()


@dataclass(frozen=True)
class Torch:
    """What torch would say of itself at import, read from its files."""

    version: str | None
    cuda: str | None
    architectures: tuple[str, ...]
    cxx11_abi: bool | None

    @property
    def shown(self) -> str:
        """The release, without the mark of the build, and its CUDA."""
        release = (self.version or "of an unknown version").partition("+")[0]
        return f"torch {release}" + (f" (CUDA {self.cuda})" if self.cuda else "")


@dataclass(frozen=True)
class ElfFacts:
    """What probes/elf.py found in one environment."""

    machine: str
    objects: tuple[ElfObject, ...]
    libraries: tuple[ElfObject, ...]  # outside it, that it needs
    torch: Torch | None
    extensions: tuple[Extension, ...]
    seconds: float

    @property
    def native(self) -> tuple[ElfObject, ...]:
        """The environment's objects for the image's machine."""
        return tuple(found for found in self.objects if found.machine == self.machine)


def parse_elf(answer: dict[str, Any]) -> ElfFacts:
    """The answer of probes/elf.py as facts. A missing key is a bug of the probe: KeyError."""
    torch = answer["torch"]
    return ElfFacts(
        machine=answer["machine"],
        objects=tuple(_parse_object(found) for found in answer["objects"]),
        libraries=tuple(_parse_object(found) for found in answer["libraries"]),
        torch=Torch(torch["version"], torch["cuda"], tuple(torch["architectures"]), torch["cxx11_abi"])
        if torch
        else None,
        extensions=tuple(
            Extension(
                _printable(found["path"]),
                found["symbols"],
                tuple(MissingSymbol(m["symbol"], m["name"], m["other_abi"]) for m in found["missing"]),
            )
            for found in answer["extensions"]
        ),
        seconds=answer["seconds"],
    )


def _parse_object(found: dict[str, Any]) -> ElfObject:
    path = _printable(found["path"])
    names = {PurePosixPath(path).name, found["soname"], found.get("name"), *found.get("links", ())}
    return ElfObject(
        path=path,
        machine=found["machine"],
        names=frozenset(name for name in names if name),
        needed=tuple(found["needed"]),
        search=tuple(found["search"]),
        versions=tuple((library, tuple(versions)) for library, versions in found["versions"].items()),
        defines=frozenset(found["defines"]),
        broken=found["broken"],
        package=_distribution(found.get("package")),
        release=found["release"],
        everywhere=found.get("system", False),
    )


def _distribution(package: str | None) -> str | None:
    if package is None:
        return None
    name, _, version = package.partition(" ")
    return f"{canonicalize_name(name)} {version}"


def _printable(path: str) -> str:
    """A path as it can be shown: Linux lets file names be bytes that are no text."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------- libraries


class OptionalLibrary(Strict):
    """A library that may be missing; patterns are those of fnmatch."""

    library: str
    needed_by: str
    reason: str
    source: str


class OptionalExtension(Strict):
    """An extension of torch without which its package works; `file` is a pattern of fnmatch."""

    file: str
    reason: str
    source: str


class OptionalLibraries(Strict):
    """data/optional_libraries.yaml."""

    libraries: tuple[OptionalLibrary, ...]
    extensions: tuple[OptionalExtension, ...]


@cache
def optional() -> OptionalLibraries:
    """What may be missing, or not fit, in a good image."""
    return load_own(_OPTIONAL, OptionalLibraries)


def judge_elf(facts: ElfFacts) -> tuple[Check, ...]:
    """Every check of compiled files; they need no GPU, and import nothing."""
    return timed(judge_libraries(facts), facts.seconds), judge_symbol_versions(facts), judge_extensions(facts)


def judge_libraries(facts: ElfFacts) -> Check:
    """Every shared object is whole, for this machine, and finds what it needs.

    A library counts as found wherever it is in the environment, which is wider than what the loader searches: packages
    load their neighbours' libraries by path before their own (torch does so with nvidia-*-cu12), and what is loaded
    satisfies DT_NEEDED.
    """
    name = "shared objects resolve"
    broken = [f"{found.short}: {found.broken}" for found in facts.objects if found.broken]
    if broken:
        return failed(Level.STATIC, name, _few(broken), "files are damaged", "install again what they belong to")
    foreign = foreign_objects(facts)
    if foreign:
        return _foreign(facts, foreign)
    if not facts.native:
        return not_run(Level.STATIC, name, "there are no compiled files")
    missing = unresolved(facts, optional().libraries)
    if not missing:
        return passed(Level.STATIC, name, f"{len(facts.native)} shared objects find every library they need")
    said = [f"{library} (needed by {_few([one.short for one in needing], 2)})" for library, needing in missing.items()]
    cause, fix = _explain_missing(facts, missing)
    return failed(Level.STATIC, name, f"not found: {_few(said)}", cause, fix)


def foreign_objects(facts: ElfFacts) -> tuple[ElfObject, ...]:
    """Objects for another machine, of packages that bring none for this one; some bring one for each of several."""
    served = {found.owner for found in facts.native}
    return tuple(found for found in facts.objects if found.machine != facts.machine and found.owner not in served)


def _foreign(facts: ElfFacts, foreign: tuple[ElfObject, ...]) -> Check:
    said = [f"{found.short} is for {_machine(found.machine)}" for found in foreign]
    cause = f"{foreign[0].owner} was installed for another machine: this Python is for {_machine(facts.machine)}"
    fix = f"install {_name(foreign[0])} again, on a machine of that kind or with its platform named"
    return failed(Level.STATIC, "shared objects resolve", _few(said), cause, fix)


def _machine(machine: str) -> str:
    return machine.removeprefix("EM_").lower().replace("_", "-")


def unresolved(facts: ElfFacts, optional: tuple[OptionalLibrary, ...]) -> dict[str, tuple[ElfObject, ...]]:
    """Each needed library that is nowhere, and the files that need it, without those that may be missing."""
    there = {name for found in (*facts.native, *facts.libraries) for name in found.names}
    missing: dict[str, list[ElfObject]] = {}
    for found in (*facts.native, *facts.libraries):
        for library in found.needed:
            if library not in there and not _may_be_missing(library, found.path, optional):
                missing.setdefault(library, []).append(found)
    return {library: tuple(sorted(missing[library], key=lambda found: found.path)) for library in sorted(missing)}


def _may_be_missing(library: str, path: str, optional: tuple[OptionalLibrary, ...]) -> bool:
    return any(
        fnmatch.fnmatchcase(library, row.library) and fnmatch.fnmatchcase(path, row.needed_by) for row in optional
    )


def _explain_missing(facts: ElfFacts, missing: dict[str, tuple[ElfObject, ...]]) -> tuple[str, str]:
    """Which package is at fault: first those that belong to another torch."""
    using_torch = {extension.path for extension in facts.extensions}
    for library, needing in missing.items():
        for found in needing:
            if _name(found) in _WITH_TORCH or (found.path in using_torch and _is_torchs(library)):
                return _of_another_torch(facts, found, library)
    library, (found, *_) = next(iter(missing.items()))
    return (
        f"{found.owner} needs {library}, which is not there",
        f"install what brings {library} (in an image: its Debian package under apt in the spec), "
        f"or take {_name(found)} out",
    )


def _name(found: ElfObject) -> str:
    return found.owner.split()[0]


def _is_torchs(library: str) -> bool:
    """Whether torch or its CUDA brings this library: an extension that misses it was built for another of them."""
    return bool(re.match(r"lib(torch|c10|cudart|cublas|cudnn|cufft|curand|cusolver|cusparse|nvrtc|nccl)", library))


def _of_another_torch(facts: ElfFacts, found: ElfObject, library: str) -> tuple[str, str]:
    have = facts.torch.shown if facts.torch else "no torch"
    return (
        f"{found.owner} belongs to another torch: it needs {library}, the environment has {have}",
        _fix(facts, found),
    )


def _fix(facts: ElfFacts, found: ElfObject) -> str:
    if _name(found) in _WITH_TORCH:
        return f"lock again with torch, torchvision and torchaudio as one set; do not pin {_name(found)} yourself"
    torch = facts.torch.shown if facts.torch else "this torch"
    return f"take the build of {_name(found)} made for exactly {torch}, or leave it out"


# ---------------------------------------------------------------------------------------------- versions

# Which copy of these a process gets, it gets once, and by the loader's own search: the run path, then the system.
_RUNTIME = re.compile(r"ld-linux[\w-]*\.so\.\d+|lib(c|m|mvec|pthread|dl|rt|util|resolv|anl|stdc\+\+|gcc_s)\.so\.\d+")


@dataclass(frozen=True)
class MissingVersions:
    """Versions of a library's symbols that an object needs and no copy of the library defines."""

    needing: ElfObject
    library: str
    versions: tuple[str, ...]
    copies: tuple[ElfObject, ...]


def missing_versions(facts: ElfFacts) -> Iterator[MissingVersions]:
    """For each object and library that is there. A copy without any versions satisfies all: the loader only warns."""
    everything = (*facts.native, *facts.libraries)
    by_name: dict[str, list[ElfObject]] = {}
    for found in everything:
        for name in found.names:
            by_name.setdefault(name, []).append(found)
    for found in everything:
        for library, versions in found.versions:
            copies = _may_get(found, library, by_name.get(library, []))
            defined = {version for copy in copies for version in copy.defines}
            missing = tuple(version for version in versions if version not in defined)
            if missing and copies and all(copy.defines for copy in copies):
                yield MissingVersions(found, library, missing, tuple(copies))


def _may_get(found: ElfObject, library: str, copies: list[ElfObject]) -> list[ElfObject]:
    """Which of the files of this name `found` may get."""
    if not _RUNTIME.fullmatch(library):
        return copies
    own = [copy for copy in copies if str(PurePosixPath(copy.path).parent) in found.search]
    return own or [copy for copy in copies if copy.everywhere] or copies


def judge_symbol_versions(facts: ElfFacts) -> Check:
    """Each version of a symbol that an object needs is defined by the library that it gets: glibc's above all."""
    name = "symbol versions are there"
    if not facts.native:
        return not_run(Level.STATIC, name, "there are no compiled files")
    missing = list(missing_versions(facts))
    if not missing:
        count = sum(len(versions) for found in facts.native for _, versions in found.versions)
        return passed(Level.STATIC, name, f"{count} needed by {len(facts.native)} shared objects{_system(facts)}")
    said = [f"{one.needing.short} needs {_few(list(one.versions), 3)} of {one.library}" for one in missing]
    cause, fix = _explain_versions(missing[0])
    return failed(Level.STATIC, name, _few(said, 3), cause, fix)


def _system(facts: ElfFacts) -> str:
    release = next((found.release for found in facts.libraries if found.release), None)
    return f", with glibc {release}" if release else ""


def _explain_versions(missing: MissingVersions) -> tuple[str, str]:
    owner, newest = missing.needing.owner, max(missing.versions, key=_number)
    older = f"an older release of {_name(missing.needing)}"
    release = next((copy.release for copy in missing.copies if copy.release), None)
    if newest.startswith("GLIBC_"):
        has = f"glibc {release}" if release else _newest(missing.copies, "GLIBC_")
        cause = f"{owner} is built for glibc {newest[6:]} or newer, and the system has {has}"
        return cause, f"{_newer_system(newest[6:])}, or {older}"
    if newest.startswith(("GLIBCXX_", "CXXABI_", "GCC_")):
        prefix = newest.partition("_")[0] + "_"
        has = f"{missing.library} there ends at {_newest(missing.copies, prefix)}"
        return f"{owner} is built with a newer GCC: {has}", f"a newer system, or {older}"
    where = " and ".join(copy.short for copy in missing.copies)
    return (
        f"{owner} is built for another release of {missing.library} than {where}",
        f"choose releases that fit: of {_name(missing.needing)}, and of what brings {missing.library}",
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _newest(copies: tuple[ElfObject, ...], prefix: str) -> str:
    defined = [version for copy in copies for version in copy.defines if version.startswith(prefix)]
    return max(defined, key=_number, default=f"no {prefix}*")


def _newer_system(glibc: str) -> str:
    """The newest base that we know, if it is new enough; `glibc` is a version, or a feature's name (ABI_DT_RELR)."""
    newest, name = max((Version(base.glibc), name) for name, base in known_bases().items())
    return f"a newer system ({name} has glibc {newest})" if _number(glibc) <= newest.release else "a newer system"


# ---------------------------------------------------------------------------------------------- torch's C++ ABI


def judge_extensions(facts: ElfFacts) -> Check:
    """Every symbol of torch's that a compiled extension needs is defined by this torch: its release and its C++ ABI."""
    name = "extensions fit torch's C++ ABI"
    if facts.torch is None:
        return not_run(Level.STATIC, name, "there is no torch")
    if not facts.extensions:
        return passed(Level.STATIC, name, f"no compiled file outside it uses {facts.torch.shown}")
    wrong = [extension for extension in facts.extensions if extension.missing]
    fatal = [extension for extension in wrong if not _is_optional(extension)]
    if not wrong:
        count = sum(extension.symbols for extension in facts.extensions)
        return passed(Level.STATIC, name, f"{len(facts.extensions)} find {count} symbols of {facts.torch.shown}")
    said = _few([_said(facts, extension) for extension in fatal or wrong], 2, "; ")
    cause, fix = _explain_extension(facts, facts.torch, fatal or wrong)
    return failed(Level.STATIC, name, said, cause, fix) if fatal else warned(Level.STATIC, name, said, cause, fix)


def _is_optional(extension: Extension) -> bool:
    return any(fnmatch.fnmatchcase(extension.path, row.file) for row in optional().extensions)


def _said(facts: ElfFacts, extension: Extension) -> str:
    shown = [one.name if one.name == one.symbol else f"{one.name} [{one.symbol}]" for one in extension.missing]
    return f"{_object(facts, extension).short} misses {len(shown)} of {extension.symbols} symbols: {_few(shown, 2)}"


def _object(facts: ElfFacts, extension: Extension) -> ElfObject:
    return next(found for found in facts.objects if found.path == extension.path)


def _explain_extension(facts: ElfFacts, torch: Torch, wrong: list[Extension]) -> tuple[str, str]:
    """The ABI where one symbol shows it: of an extension with the other ABI, all that have strings are missing."""
    for extension in wrong:
        found = _object(facts, extension)
        if any(one.other_abi for one in extension.missing):
            cause = f"{found.owner} was built with the other C++ ABI (_GLIBCXX_USE_CXX11_ABI{_abi(torch)})"
            return cause, _fix(facts, found)
    found = _object(facts, wrong[0])
    return f"{found.owner} was built for another torch: the environment has {torch.shown}", _fix(facts, found)


def _abi(torch: Torch) -> str:
    if torch.cxx11_abi is None:
        return ""
    return f"={int(not torch.cxx11_abi)}; {torch.shown} has {int(torch.cxx11_abi)}"


def _few(things: list[str], most: int = 6, between: str = ", ") -> str:
    more = f"{between}and {len(things) - most} more" if len(things) > most else ""
    return between.join(things[:most]) + more
