"""Level static: is in the image what the lock says, and does it load? Needs no GPU.

One container start collects facts (probes/image.py); everything here judges them and touches nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import Version

from sifkit.causes import find_cause
from sifkit.compat.tables import Tables
from sifkit.compat.tied import ASKS_LATER
from sifkit.model import Lock
from sifkit.verify.checks import Check, Level, failed, failed_because, not_run, passed, timed, warned
from sifkit.verify.elf import ElfFacts, judge_elf, parse_elf
from sifkit.verify.gpus import judge_architectures

# What installs packages is not part of what is locked.
_INSTALLERS = {"pip", "uv", "setuptools", "wheel"}

MODULES = ("torch", "torchvision", "torchaudio", "llamafactory.train.tuner")


# ---------------------------------------------------------------------------------------------- facts


@dataclass(frozen=True)
class Distribution:
    """An installed Python package, under its normalised name."""

    name: str
    version: str


@dataclass(frozen=True)
class Import:
    """An import that was tried; `error` is the traceback."""

    module: str
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Compiler:
    """The C compiler with which Triton would build launchers, and what it said of a Python extension."""

    program: str | None
    works: bool
    said: str


@dataclass(frozen=True)
class Nvcc:
    """The CUDA compiler that extensions would be built with, and what it said of a kernel."""

    program: str
    release: str | None  # "13.0"
    works: bool
    said: str


@dataclass(frozen=True)
class ImageFacts:
    """What probes/image.py found in the image."""

    python: str
    user_site: bool
    distributions: tuple[Distribution, ...]
    elf: ElfFacts
    compiler: Compiler
    nvcc: Nvcc | None
    imports: tuple[Import, ...]
    importing: str | None  # the import during which the interpreter died
    outside: tuple[tuple[str, str], ...]  # modules loaded from outside the image, and their files
    torch_cuda: str | None
    architectures: tuple[str, ...]

    def version_of(self, name: str) -> str | None:
        """The installed version of a package, by its normalised name."""
        return next((found.version for found in self.distributions if found.name == name), None)


def parse_facts(answer: dict[str, Any]) -> ImageFacts:
    """The probe's JSON as facts. A missing key is a bug of the probe: KeyError."""
    compiler = answer["compiler"]
    elf = parse_elf(answer["elf"])
    return ImageFacts(
        python=answer["python"],
        user_site=answer["user_site"],
        distributions=_found_first(answer["distributions"]),
        elf=elf,
        compiler=Compiler(compiler["program"], compiler["works"], compiler["said"]),
        nvcc=Nvcc(**answer["nvcc"]) if answer["nvcc"] else None,
        imports=tuple(Import(i["module"], i["seconds"], i["error"]) for i in answer["imports"]),
        importing=answer.get("importing"),
        outside=tuple((o["module"], o["file"]) for o in answer["outside"]),
        torch_cuda=elf.torch.cuda if elf.torch else None,
        architectures=elf.torch.architectures if elf.torch else (),
    )


def _found_first(answers: Iterable[dict[str, str]]) -> tuple[Distribution, ...]:
    """By name. Of a package that is there twice, the one that comes first on the path is the one that is imported."""
    versions: dict[str, str] = {}
    for found in answers:
        versions.setdefault(canonicalize_name(found["name"]), found["version"])
    return tuple(Distribution(name, version) for name, version in sorted(versions.items()))


# ---------------------------------------------------------------------------------------------- judging


def judge_static(
    facts: ImageFacts, lock: Lock | None, gpu_models: tuple[str, ...], tables: Tables
) -> tuple[Check, ...]:
    """Every check of the level, in the order in which a person would want to read them."""
    return (
        judge_packages(facts.distributions, lock),
        *judge_elf(facts.elf),
        *judge_imports(facts),
        judge_origin(facts),
        judge_architectures(facts.architectures, facts.torch_cuda, gpu_models, tables),
        judge_compiler(facts.compiler),
        *judge_nvcc(facts),
    )


def judge_packages(installed: Iterable[Distribution], lock: Lock | None) -> Check:
    """The image's packages are the lock's: none missing, none of another version; more of them is a warning."""
    name = "packages equal the lock"
    if lock is None:
        return not_run(Level.STATIC, name, "this image has no lock to compare with")
    have = {found.name: found.version for found in installed}
    want = {canonicalize_name(package): version for package, version in lock.versions().items()}
    wrong = [
        f"{package} {have.get(package, 'missing')} (lock: {version})"
        for package, version in sorted(want.items())
        if have.get(package) != version
    ]
    if wrong:
        return failed(
            Level.STATIC,
            name,
            _few(wrong),
            "the image was not built from this lock, or was changed after",
            "build again",
        )
    more = sorted(f"{package} {have[package]}" for package in have.keys() - want.keys() - _INSTALLERS)
    if more:
        return warned(Level.STATIC, name, f"{len(want)} packages as locked, and {_few(more)} besides")
    inherited = f", {len(lock.inherited)} of them the host's" if lock.inherited else ""
    return passed(Level.STATIC, name, f"{len(want)} packages, each of the locked version{inherited}")


def _few(things: list[str], most: int = 6) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return ", ".join(things[:most]) + more


def judge_imports(facts: ImageFacts) -> tuple[Check, ...]:
    """Each module imports. `llamafactory-cli version` succeeds on a broken image, since its imports are lazy."""
    checks = [_judge_import(tried) for tried in facts.imports]
    if facts.importing:
        cause = "the interpreter died during the import (a crash in a shared library, or killed for memory)"
        checks.append(failed(Level.STATIC, f"import {facts.importing}", "no answer", cause, "look at static.log"))
    return tuple(checks)


def _judge_import(tried: Import) -> Check:
    name = f"import {tried.module}"
    if tried.error is None:
        return timed(passed(Level.STATIC, name, "works"), tried.seconds)
    return failed_because(Level.STATIC, name, tried.error.strip().splitlines()[-1], find_cause(tried.error, "run"))


def judge_origin(facts: ImageFacts) -> Check:
    """Everything that was imported came from the image; the user's own packages are switched off."""
    name = "imports come from the image"
    fix = "set PYTHONNOUSERSITE=1 in the image's environment; call apptainer with --cleanenv"
    if facts.outside:
        said = _few([f"{module} from {file}" for module, file in facts.outside])
        return failed(Level.STATIC, name, said, "packages outside the image shadow its own", fix)
    if facts.user_site:
        cause = "packages in ~/.local of whoever runs the image would be imported before the image's own"
        return failed(Level.STATIC, name, "the user's site directory is enabled", cause, fix)
    if any(tried.error for tried in facts.imports) or facts.importing:
        return not_run(Level.STATIC, name, "not everything could be imported")
    return passed(Level.STATIC, name, "every loaded module is inside it, the user's site directory is off")


def judge_compiler(compiler: Compiler) -> Check:
    """A C compiler, the C library's and Python's headers: Triton compiles launchers when a kernel first runs."""
    name = "C compiler and Python headers"
    if compiler.works:
        return passed(Level.STATIC, name, f"{compiler.program} builds a Python extension, as Triton does")
    known = find_cause(compiler.said, "run")
    if known:
        return failed_because(Level.STATIC, name, compiler.said.strip().splitlines()[0], known)
    cause = "Triton compiles launchers at run time, and cannot here"
    return failed(
        Level.STATIC, name, compiler.said.strip()[-300:], cause, "add gcc, libc6-dev and python3-dev to apt in the spec"
    )


def judge_nvcc(facts: ImageFacts) -> tuple[Check, ...]:
    """nvcc of torch's CUDA compiles a kernel. Asked of images that have it, or a DeepSpeed that looks for it."""
    name, found = "nvcc compiles for torch", facts.nvcc
    if found is None:
        deepspeed = facts.version_of("deepspeed")
        if deepspeed is None or Version(deepspeed) >= ASKS_LATER:
            return ()
        cause = "deepspeed looks for nvcc when it is imported, and accelerate imports it wherever it is installed"
        fix = "extras: [deepspeed] brings nvcc of torch's CUDA; or leave deepspeed out"
        return (failed(Level.STATIC, name, "no nvcc, and deepspeed is installed", cause, fix),)
    said = f"{found.program}, CUDA {found.release}; torch has {facts.torch_cuda}"
    if found.release and facts.torch_cuda and found.release.split(".")[0] != facts.torch_cuda.split(".")[0]:
        cause = "torch refuses to build extensions with another major version of CUDA"
        return (failed(Level.STATIC, name, said, cause, f"nvcc of CUDA {facts.torch_cuda}, or none"),)
    if not found.works:
        last = found.said.strip()[-300:]
        cause = "headers or libraries of the CUDA toolkit are missing, or it does not take the image's C++ compiler"
        return (failed(Level.STATIC, name, last, cause, "add g++ to apt; extras: [deepspeed] brings a whole toolkit"),)
    if found.release != facts.torch_cuda:
        cause = "extensions are built with another minor version than torch was"
        return (warned(Level.STATIC, name, said, cause, f"nvcc of CUDA {facts.torch_cuda}"),)
    return (passed(Level.STATIC, name, said),)
