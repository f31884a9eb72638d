"""Rules between the packages of an image: torch's set, LLaMA-Factory's ranges, one CUDA, a compiler for Triton."""

from __future__ import annotations

import re
from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from sifkit.compat.findings import Finding, Pinned, Question, Severity, same_version
from sifkit.compat.tables import TorchBuild, requirement_of, specifier_of
from sifkit.tables import known_bases

_BRINGS = {"build-essential": ("gcc", "libc6-dev"), "g++": ("gcc", "libc6-dev")}  # by Debian's dependencies
COMPILER = ("gcc", "libc6-dev", "python3-dev")  # Triton builds a launcher for each kernel when it first runs


# ---------------------------------------------------------------------------------------------- torch's set


def torch_set(question: Question) -> Iterator[Finding]:
    """torchvision, torchaudio and triton are those that belong to this torch."""
    build = question.build
    if build is None:
        return
    for name, belongs in (("torchvision", build.torchvision), ("torchaudio", build.torchaudio)):
        pin = question.pinned.get(name)
        if pin and pin.version and belongs and not same_version(pin.version, belongs):
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
    if (
        pin
        and pin.version
        and (not same_version(pin.version, question.spec.torch.version) or _of_other_cuda(question, pin))
    ):
        message = f"{pin.origin} pins torch {pin.version}, the spec's torch is {question.spec.torch.version}"
        yield Finding("torch-twice", Severity.ERROR, "torch", message, "say it once, under torch:", "the spec")


def _of_other_cuda(question: Question, pin: Pinned) -> bool:
    """torch==2.9.1+cu126 in an image for CUDA 12.8. Builds of others (2.11.0a0+nv26.1) do not say."""
    local = Version(pin.version or "0").local or ""
    return bool(re.match(r"cu\d|cpu|rocm|xpu", local)) and local != f"cu{question.spec.torch.cuda.replace('.', '')}"


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


# ---------------------------------------------------------------------------------------------- the image


def compiler(question: Question) -> Iterator[Finding]:
    """A C compiler, the C library's and Python's headers, for Triton."""
    if question.base is None:
        return
    have = {package.partition("=")[0] for package in question.spec.apt}
    have |= {name for package in have for name in _BRINGS.get(package, ())}
    have |= {"python3-dev"} if f"python{question.spec.python}-dev" in have else set()
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
    for name, pin in question.pinned.items():
        suffix = re.fullmatch(r"nvidia-(?:cuda-runtime|cublas)(?:-cu(\d+))?", name)
        if suffix and pin.version:
            majors[suffix[1] or str(Version(pin.version).major)] = name
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
    compiler,
    cuda_twice,
)
