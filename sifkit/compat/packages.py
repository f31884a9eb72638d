"""Rules between the Python packages of an image: torch's set, LLaMA-Factory's ranges, what is tied to torch."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sifkit.compat.findings import Finding, Pinned, Question, Severity
from sifkit.compat.tables import Pair, TiedRelease, TorchBuild, overlap, requirement_of, specifier_of
from sifkit.tables import known_bases, known_extras

COMPILER = ("gcc", "libc6-dev", "python3-dev")  # Triton builds a launcher for each kernel when it first runs
_FLASH_ATTN_TAG = re.compile(
    r"\+cu(?P<cuda>\d+)torch(?P<torch>\d+\.\d+)(?:cxx11abi(?P<abi>TRUE|FALSE))?", re.IGNORECASE
)


# ---------------------------------------------------------------------------------------------- torch's set


def torch_set(question: Question) -> Iterator[Finding]:
    """torchvision, torchaudio and triton are those that belong to this torch."""
    build = question.build
    if build is None:
        return
    for name, belongs in (("torchvision", build.torchvision), ("torchaudio", build.torchaudio)):
        pin = question.pinned.get(name)
        if pin and pin.version and belongs and Version(pin.version).public != belongs:
            yield _of_another_torch(question, build, pin, f"=={belongs}")
    triton = question.pinned.get("triton")
    if triton and triton.version and build.triton and triton.version not in specifier_of(build.triton):
        yield _of_another_torch(question, build, triton, build.triton)


def _of_another_torch(question: Question, build: TorchBuild, pin: Pinned, belongs: str) -> Finding:
    message = (
        f"{pin.name} {pin.version} ({pin.origin}) belongs to another torch; {question.torch_words} takes {belongs}"
    )
    fix = f"take {pin.name} out of packages: sifkit pins the set"
    source = next((name for name in build.source if name.startswith(pin.name)), build.source[0])
    return Finding("torch-set", Severity.ERROR, f"{pin.name} {pin.version}", message, fix, source)


def torch_pin(question: Question) -> Iterator[Finding]:
    """A torch under packages is the one under torch."""
    pin = question.pinned.get("torch")
    if pin and pin.version and Version(pin.version).public != question.spec.torch.version:
        message = f"{pin.origin} pins torch {pin.version}, the spec's torch is {question.spec.torch.version}"
        yield Finding("torch-twice", Severity.ERROR, "torch", message, "say it once, under torch:", "the spec")


def companions(question: Question) -> Iterator[Finding]:
    """There is a torchvision and a torchaudio for this torch: an image holds the three as one set."""
    build = question.build
    if build is None:
        return
    for name, found in (("torchvision", build.torchvision), ("torchaudio", build.torchaudio)):
        if found is None:
            last = [row for row in question.tables.builds if row.torchvision and row.torchaudio][-1]
            message = f"no {name} on the index was compiled for {question.torch_words}"
            fix = f"torch {last.version} (CUDA {last.cuda}) or older"
            yield Finding(f"{name}-missing", Severity.ERROR, question.torch_words, message, fix, build.source[0])


# ---------------------------------------------------------------------------------------------- LLaMA-Factory


def llamafactory_known(question: Question) -> Iterator[Finding]:
    """LLaMA-Factory's release has a row."""
    if question.llamafactory:
        return
    version = question.spec.llamafactory.version
    message = f"no row knows LLaMA-Factory {version}: its ranges are checked by the resolver alone"
    fix, source = "read the index again: sifkit compat update", "definitions/compat/llamafactory.yaml"
    yield Finding("llamafactory-unknown", Severity.UNKNOWN, f"LLaMA-Factory {version}", message, fix, source)


def llamafactory_python(question: Question) -> Iterator[Finding]:
    """LLaMA-Factory takes this Python, and everything that it bounds from above has a wheel for it."""
    row, python = question.llamafactory, question.spec.python
    if row is None:
        return
    subject = f"Python {python}"
    fix = f"a base with Python {_fitting_pythons(row.python, row.pythons)}"
    if f"{python}.99" not in specifier_of(row.python):
        message = f"LLaMA-Factory {row.version} needs Python {row.python}, the image has {python}"
        yield Finding("llamafactory-python", Severity.ERROR, subject, message, fix, row.source[0])
    elif python not in row.pythons:
        message = (
            f"LLaMA-Factory {row.version} asks for releases (numpy<2 and the like) without a wheel for Python {python}"
        )
        yield Finding("llamafactory-python", Severity.ERROR, subject, message, fix, row.source[0])


def _fitting_pythons(specifier: str, pythons: tuple[str, ...]) -> str:
    fitting = [python for python in pythons if f"{python}.99" in specifier_of(specifier)]
    bases = [f"{name} has {base.python}" for name, base in known_bases().items() if base.python in fitting]
    shown = f"{fitting[0]} to {fitting[-1]}" if len(fitting) > 1 else "".join(fitting) or specifier
    return f"{shown} ({', '.join(bases)})" if bases else shown


def llamafactory_ranges(question: Question) -> Iterator[Finding]:
    """Every chosen version lies in the ranges of LLaMA-Factory's metadata and of its check at start."""
    row = question.llamafactory
    if row is None:
        return
    torch = Pinned("torch", question.spec.torch.version, "", "the spec")
    for pin in {**question.pinned, "torch": torch}.values():
        for kind, texts in (("metadata", row.requires), ("check at start", row.runtime)):
            specifier = _specifier(texts, pin.name)
            if pin.version and specifier is not None and not specifier.contains(pin.version, prereleases=True):
                yield _outside(question, pin, kind, specifier)
                break


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


def _specifier(texts: tuple[str, ...], name: str) -> SpecifierSet | None:
    found = [requirement_of(text) for text in texts]
    return next((r.specifier for r in found if canonicalize_name(r.name) == name), None)


def _outside(question: Question, pin: Pinned, kind: str, specifier: SpecifierSet) -> Finding:
    row = question.llamafactory
    assert row is not None
    dies = "" if kind == "metadata" else "; it stops with ImportError when it starts"
    return Finding(
        "llamafactory-range",
        Severity.ERROR,
        f"{pin.name} {pin.version}",
        f"LLaMA-Factory {row.version} takes {pin.name}{specifier} ({kind}), {pin.origin} has {pin.version}{dies}",
        f"{pin.name}{row.specifiers(pin.name)}, or another LLaMA-Factory",
        row.source[0],
    )


def pairs(question: Question) -> Iterator[Finding]:
    """Known pairs that resolvers accept and that fail: chosen already, or with no way around for the resolver."""
    for pair in question.tables.pairs:
        have = version_of_other(question, pair)
        if have is None or overlap(have, specifier_of(pair.needs)) or not _wanted(question, pair.package):
            continue
        pin = question.pinned.get(pair.package)
        if pin and pin.version:
            certain = pin.version in specifier_of(pair.versions)
        else:
            certain = question.lock is None and not _avoidable(question, pair)
        if certain:
            other = f"{pair.other} {str(have).removeprefix('==')}"
            message = (
                f"{pair.package} {pair.versions} works only with {pair.other} {pair.needs}, not {other}: {pair.symptom}"
            )
            fix = f"{pair.other}{pair.needs}, or {pair.package}{pair.instead}"
            yield Finding("known-pair", Severity.ERROR, other, message, fix, pair.source)


def version_of_other(question: Question, pair: Pair) -> SpecifierSet | None:
    """The other package's pin, or the range that LLaMA-Factory gives; None when it does not get into the image."""
    if pair.other == "torch":
        return SpecifierSet(f"=={question.spec.torch.version}")
    pin = question.pinned.get(pair.other)
    if pin and pin.version:
        return SpecifierSet(f"=={pin.version}")
    return _asked(question, pair.other) if _wanted(question, pair.other) else None


def _asked(question: Question, package: str) -> SpecifierSet:
    """The range that this LLaMA-Factory gives, that of an extra included where the spec has it."""
    row = question.llamafactory
    asked = row.specifiers(package) if row else SpecifierSet()
    for requirement in row.extra(package) if row and package in question.spec.extras else ():
        if canonicalize_name(requirement.name) == package:
            asked &= requirement.specifier
    return asked


def _wanted(question: Question, package: str) -> bool:
    """Whether the package gets into the image at all: what is tied to torch only when it is asked for."""
    return not question.tables.releases(package) or package in question.spec.extras or package in question.pinned


def _avoidable(question: Question, pair: Pair) -> bool:
    return overlap(_asked(question, pair.package), specifier_of(pair.instead))


def constraints(question: Question) -> tuple[str, ...]:
    """What a resolver has to be told so that it keeps clear of the known pairs."""
    told = []
    for pair in question.tables.pairs:
        have = version_of_other(question, pair)
        if have is not None and not overlap(have, specifier_of(pair.needs)) and _wanted(question, pair.package):
            told.append(f"{pair.package}{pair.instead}")
    return tuple(told)


# ---------------------------------------------------------------------------------------------- tied to torch


def tied(question: Question) -> Iterator[Finding]:
    """Packages that are tied to torch: their metadata takes this torch, their libraries fit its CUDA."""
    for name in dict.fromkeys(row.name for row in question.tables.tied):
        pin = question.pinned.get(name)
        release = next((row for row in question.tables.releases(name) if pin and row.version == pin.version), None)
        if pin and release:
            yield from _tied_release(question, pin, release)


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
    asked = SpecifierSet()
    for requirement in row.extra(name) if row else ():
        if canonicalize_name(requirement.name) == name:
            asked &= requirement.specifier
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
    builds = sorted({row.torch for row in question.tables.releases(name) if row.wheel and row.torch})
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


# ---------------------------------------------------------------------------------------------- compilers


def nvcc(question: Question) -> Iterator[Finding]:
    """What compiles CUDA code when it runs has nvcc of torch's CUDA: deepspeed does not even import without."""
    compiling = [name for name in question.spec.extras if name in known_extras() and known_extras()[name].nvcc]
    build = question.build
    if compiling and build and build.nvcc is None and question.base is not None:
        yield _no_nvcc(question, build, compiling[0])
    pin = question.pinned.get("deepspeed")
    if pin and "deepspeed" not in question.spec.extras and question.base is not None:
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


def compiler(question: Question) -> Iterator[Finding]:
    """A C compiler, the C library's and Python's headers, for Triton."""
    if question.base is None:
        return
    have = {package.partition("=")[0] for package in question.spec.apt}
    missing = [name for name in COMPILER if name not in have]
    if missing:
        message = f"apt lacks {', '.join(missing)}: Triton compiles with them when a kernel first runs"
        fix = f"apt: [{', '.join([*question.spec.apt, *missing])}]"
        source = "triton/runtime/build.py"
        yield Finding("compiler-missing", Severity.WARNING, "apt", message, fix, source)


def cuda_twice(question: Question) -> Iterator[Finding]:
    """Libraries of one major CUDA only: a second set costs gigabytes, and which one is loaded is luck."""
    if question.lock is None:
        return
    majors: dict[str, str] = {}
    for package in question.lock.packages:
        suffix = re.fullmatch(r"nvidia-(?:cuda-runtime|cublas)(?:-cu(\d+))?", package.name)
        if suffix:
            majors[suffix[1] or str(Version(package.version).major)] = package.name
    if len(majors) > 1:
        message = (
            f"the lock holds libraries of CUDA {' and '.join(sorted(majors))}: {', '.join(sorted(majors.values()))}"
        )
        fix = "find the package that brings the other CUDA, and take its release for this one"
        yield Finding("cuda-twice", Severity.WARNING, "the lock", message, fix, "the lock")


RULES = (
    torch_pin,
    torch_set,
    companions,
    llamafactory_known,
    llamafactory_python,
    llamafactory_ranges,
    llamafactory_optional,
    pairs,
    tied,
    tied_extras,
    flash_attn,
    nvcc,
    compiler,
    cuda_twice,
)
