"""Packages that are tied to torch: which torch, CUDA and C++ ABI they were built for, what they compile with."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sifkit.compat.findings import Finding, Pinned, Question, Severity, same_version
from sifkit.compat.tables import TiedRelease, TorchBuild, overlap, requirement_of, specifier_of
from sifkit.tables import known_extras

# Earlier releases look for nvcc when they are imported where a GPU is visible; measured: 0.16.9, 0.18.4 and 0.19.4
# raise MissingCUDAException without, 0.19.8 does not; 0.19.5's source catches it.
ASKS_LATER = Version("0.19.5")

_FLASH_ATTN_TAG = re.compile(
    r"\+cu(?P<cuda>\d+)torch(?P<torch>\d+\.\d+)(?:cxx11abi(?P<abi>TRUE|FALSE))?", re.IGNORECASE
)


def llamafactory_optional(question: Question) -> Iterator[Finding]:
    """What is tied to torch lies in the ranges that LLaMA-Factory checks where it uses it."""
    row = question.llamafactory
    for name in dict.fromkeys(release.name for release in question.tables.tied):
        pin = question.pinned.get(name)
        asked = [found for found in (row.extra(name) if row else ()) if canonicalize_name(found.name) == name]
        wrong = [found for found in asked if pin and pin.version and pin.version not in found.specifier]
        if row and pin and wrong:
            message = f"LLaMA-Factory {row.version} takes {wrong[0]}, {pin.origin} has {pin.version}"
            fix = " and ".join(dict.fromkeys(str(found) for found in asked))
            yield Finding(
                "llamafactory-optional", Severity.ERROR, f"{name} {pin.version}", message, fix, row.source[-1]
            )


def tied(question: Question) -> Iterator[Finding]:
    """Packages that are tied to torch: their metadata takes this torch, their libraries fit its CUDA."""
    for name in dict.fromkeys(row.name for row in question.tables.tied):
        pin = question.pinned.get(name)
        release = _release(question, pin)
        if pin and release:
            yield from _tied_release(question, pin, release)


def _release(question: Question, pin: Pinned | None) -> TiedRelease | None:
    if pin is None or pin.version is None:
        return None
    rows = question.tables.releases(pin.name)
    return next((row for row in rows if same_version(row.version, pin.version)), None)


def _tied_release(question: Question, pin: Pinned, release: TiedRelease) -> Iterator[Finding]:
    torch, subject = question.spec.torch, f"{pin.name} {pin.version}"
    if not release.fits(torch.version):
        message = f"{subject} ({pin.origin}) was built for torch {release.torch}, the image has {torch.version}"
        fix = f"{pin.name} {_versions_for(question, pin.name)}"
        yield Finding("tied-torch", Severity.ERROR, subject, message, fix, release.source)
    elif release.cuda and torch.cuda not in release.cuda:
        message = f"{subject} brings libraries for CUDA {', '.join(release.cuda)}, the image has {torch.cuda}"
        fix = f"{pin.name} {_versions_for(question, pin.name)}"
        yield Finding("tied-cuda", Severity.ERROR, subject, message, fix, release.source)


def _fitting(question: Question, name: str) -> list[TiedRelease]:
    """Releases that can be had as a wheel for this torch, CUDA and Python, and that LLaMA-Factory takes."""
    torch, row = question.spec.torch, question.llamafactory
    asked = row.extra_specifiers(name, name) if row else SpecifierSet()
    return [
        release
        for release in question.tables.releases(name)
        if release.wheel
        and release.fits(torch.version)
        and (not release.cuda or torch.cuda in release.cuda)
        and f"{question.spec.python}.99" in specifier_of(release.python)
        and release.version in asked
        and _requirements_meet(question, release)
    ]


def _requirements_meet(question: Question, release: TiedRelease) -> bool:
    """Whether what the release requires overlaps with LLaMA-Factory's ranges, as far as bounds tell."""
    row = question.llamafactory
    if row is None:
        return True
    for text in release.requires:
        requirement = requirement_of(text)
        if not overlap(requirement.specifier, row.specifiers(canonicalize_name(requirement.name))):
            return False
    return True


def _versions_for(question: Question, name: str) -> str:
    fitting = _fitting(question, name)
    if fitting:
        return f"{fitting[-1].version} fits"
    builds = list(dict.fromkeys(row.torch for row in question.tables.releases(name) if row.wheel and row.torch))
    return (
        f"has no release for {question.torch_words}; its releases are for torch {', '.join(builds)}"
        if builds
        else "has none that fits"
    )


def tied_extras(question: Question) -> Iterator[Finding]:
    """Every extra that is tied to torch can be had as a wheel for this torch."""
    names = {row.name for row in question.tables.tied if row.wheel}
    for extra in question.spec.extras:
        if extra in names and question.build and not _fitting(question, extra):
            yield _no_wheel(question, extra)


def _no_wheel(question: Question, extra: str) -> Finding:
    others = []
    for build in reversed(question.tables.builds):
        torch = question.spec.torch.model_copy(update={"version": build.version, "cuda": build.cuda})
        other = Question(question.spec.model_copy(update={"torch": torch}), question.target, question.tables)
        if build.torchaudio and (found := _fitting(other, extra)):
            others.append(f"torch {build.version} (CUDA {build.cuda}) with {extra} {found[-1].version}")
    release = question.spec.llamafactory.version
    message = f"no {extra} that LLaMA-Factory {release} takes has a wheel for {question.torch_words}"
    fix = f"take {'; or '.join(others[:3])}" if others else f"leave {extra} out"
    source = question.tables.releases(extra)[-1].source
    return Finding("extra-without-wheel", Severity.ERROR, f"extra {extra}", message, fix, source)


# ---------------------------------------------------------------------------------------------- flash-attn


def flash_attn(question: Question) -> Iterator[Finding]:
    """flash-attn is a wheel of exactly this torch, CUDA and C++ ABI: its file name says so. The index has none."""
    pin = question.pinned.get("flash-attn")
    if pin is None:
        return
    build, tag = question.build, _FLASH_ATTN_TAG.search(f"{pin.file} {pin.version or ''}")
    if tag is None:
        if pin.file.endswith(".whl"):
            return  # a wheel that does not say for which torch: the static level looks at its symbols
        message = f"flash-attn ({pin.origin}) is on the package index as source archives only: it would be compiled"
        fix = "name the wheel of its release page for this torch: packages: [flash-attn @ https://…+cu12torch….whl]"
        yield Finding(
            "flash-attn-source", Severity.ERROR, "flash-attn", message, fix, "flash-attn on the package index"
        )
    elif build and (wrong := _differs(tag, build)):
        message = f"{pin.file or pin.version} is for {wrong[0]}; the image has {wrong[1]}"
        abi = "TRUE" if build.cxx11_abi else "FALSE"
        torch = ".".join(build.version.split(".")[:2])
        fix = f"the wheel with +cu{Version(build.cuda).major}torch{torch}cxx11abi{abi} in its name, or none"
        yield Finding("flash-attn-abi", Severity.ERROR, "flash-attn", message, fix, build.source[0])


def _differs(tag: re.Match[str], build: TorchBuild) -> tuple[str, str] | None:
    torch = ".".join(build.version.split(".")[:2])
    if tag["torch"] != torch:
        return f"torch {tag['torch']}", f"torch {torch}"
    if tag["abi"] and (tag["abi"].upper() == "TRUE") is not build.cxx11_abi:
        words = {True: "the C++11 ABI", False: "the C++ ABI before C++11"}
        return words[not build.cxx11_abi], words[build.cxx11_abi]
    major = Version(build.cuda).major
    if not tag["cuda"].startswith(str(major)):
        return f"CUDA {tag['cuda'][:2]}", f"CUDA {major}"
    return None


# ---------------------------------------------------------------------------------------------- nvcc


def nvcc(question: Question) -> Iterator[Finding]:
    """What compiles CUDA code when it runs has nvcc of torch's CUDA: deepspeed does not even import without."""
    compiling = [name for name in question.spec.extras if name in known_extras() and known_extras()[name].nvcc]
    build = question.build
    if compiling and build and build.nvcc is None and question.base is not None:
        yield _no_nvcc(question, build, compiling[0])
    pin = question.pinned.get("deepspeed")
    asks = pin is not None and (pin.version is None or Version(pin.version) < ASKS_LATER)
    if pin and asks and "deepspeed" not in question.spec.extras and question.base is not None:
        message = "deepspeed without nvcc: importing it fails with MissingCUDAException (CUDA_HOME does not exist)"
        fix = "extras: [deepspeed] instead of packages: it brings nvcc of torch's CUDA"
        yield Finding("nvcc-missing", Severity.ERROR, "deepspeed", message, fix, "LLaMA-Factory issue 9270")


def _no_nvcc(question: Question, build: TorchBuild, extra: str) -> Finding:
    have = [row for row in question.tables.builds if row.nvcc and row.torchaudio]
    shown = f"torch {have[0].version} to {have[-1].version} (CUDA {have[-1].cuda})" if have else "another CUDA"
    message = f"{extra} needs nvcc, and no wheel brings that of CUDA {build.cuda}"
    image = f"nvidia/cuda:{build.cuda}.1-devel-ubuntu24.04"
    fix = f'{shown}; or a base that has it: base: {{bootstrap: docker, from: "{image}"}}'
    return Finding("nvcc-missing", Severity.ERROR, f"extra {extra}", message, fix, build.source[0])


RULES = (llamafactory_optional, tied, tied_extras, flash_attn, nvcc)
