"""Rules between an image and the machines it must run on: driver, GPUs, C library, Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from packaging.version import Version

from sifkit.compat.findings import Finding, Question, Severity
from sifkit.compat.tables import Capability, CudaRelease, DriverSpan, GpuModel, Tables, TorchBuild, has_kernels
from sifkit.tables import known_bases


def known_build(question: Question) -> Iterator[Finding]:
    """torch's build for this CUDA has a row; without one nothing is known of its GPUs, and nothing is refused."""
    if question.build:
        return
    torch = question.spec.torch
    others = [row for row in question.tables.builds if row.version == torch.version]
    if others:
        has = ", ".join(row.cuda for row in others)
        message = f"no row knows torch {torch.version} for CUDA {torch.cuda}; its build on the package index has {has}"
    else:
        message = f"no row knows torch {torch.version}: torchvision and torchaudio are the resolver's choice"
    fix = "read the index again: sifkit compat update; or take a torch that is known"
    yield Finding(
        "torch-unknown", Severity.UNKNOWN, question.torch_words, message, fix, "definitions/compat/torch.yaml"
    )


def torch_python(question: Question) -> Iterator[Finding]:
    """torch has a wheel for the image's Python."""
    build, python = question.build, question.spec.python
    if build is None or python in build.pythons:
        return
    bases = [name for name, base in known_bases().items() if base.python in build.pythons]
    other = _newest(question, lambda row: python in row.pythons)
    yield Finding(
        "torch-python",
        Severity.ERROR,
        f"Python {python}",
        f"torch {build.version} and its set have wheels for Python {_span(build.pythons)}, not {python}",
        f"base: {bases[-1] if bases else '…'} with its Python{_or(other)}",
        build.source[0],
    )


def _span(pythons: tuple[str, ...]) -> str:
    return f"{pythons[0]} to {pythons[-1]}" if len(pythons) > 1 else "".join(pythons)


def torch_glibc(question: Question) -> Iterator[Finding]:
    """The base's C library has the symbols that torch needs."""
    build, base = question.build, question.base
    if build is None or base is None or Version(base.glibc) >= Version(build.glibc):
        return
    newer = [name for name, other in known_bases().items() if Version(other.glibc) >= Version(build.glibc)]
    yield Finding(
        "glibc-too-old",
        Severity.ERROR,
        f"base {question.spec.base}",
        f"torch {build.version} needs glibc {build.glibc}, {question.spec.base} has {base.glibc}",
        f"base: {', '.join(newer) or 'a newer one'}",
        build.source[0],
    )


def driver(question: Question) -> Iterator[Finding]:
    """The driver starts this CUDA at all, by minor-version compatibility."""
    given, cuda = question.target.driver, question.spec.torch.cuda
    if given is None:
        return
    oldest = question.tables.oldest_driver(cuda)
    if oldest is None:
        message, fix = f"no row knows which driver CUDA {cuda} needs", "add it to definitions/compat/cuda.yaml"
        yield Finding("cuda-unknown", Severity.UNKNOWN, f"CUDA {cuda}", message, fix, "definitions/compat/cuda.yaml")
    elif not at_least(given, oldest):
        other = _newest(question, lambda row: _starts(question, row, given))
        row = question.tables.cuda(cuda) or question.tables.cuda_majors()[Version(cuda).major]
        yield Finding(
            "driver-too-old",
            Severity.ERROR,
            f"driver {given}",
            f"CUDA {cuda} needs driver {oldest} or newer, not {given}",
            f"driver {oldest} or newer{_or(other)}",
            row.source,
        )


def gpus(question: Question) -> Iterator[Finding]:
    """torch has kernels for every GPU."""
    for name in question.target.gpus:
        gpu = question.tables.gpu(name)
        if gpu is None:
            message = f"GPU {name!r} is in no row: whether torch has kernels for it is not known"
            hint = question.tables.nearest_gpu(name)
            yield Finding("gpu-unknown", Severity.UNKNOWN, name, message, hint, "definitions/compat/gpus.yaml")
        elif gpu.arm:
            message = f"{name} comes with an Arm CPU; images are built for x86-64"
            yield Finding("gpu-on-arm", Severity.ERROR, name, message, f"leave {name} out", gpu.source)
        elif question.build and not has_kernels(question.build.architectures, gpu.pair):
            yield _without_kernels(question, question.build, name, gpu)
        elif question.build is None and (reason := _beyond_cuda(question, gpu)):
            message = (
                f"{question.torch_words} has no kernels for {name} (compute capability {gpu.capability}): {reason}"
            )
            yield Finding("gpu-without-kernels", Severity.ERROR, name, message, f"leave {name} out", gpu.source)


def _without_kernels(question: Question, build: TorchBuild, name: str, gpu: GpuModel) -> Finding:
    wanted, listed = f"sm_{gpu.capability.replace('.', '')}", " ".join(build.architectures)
    reason = _beyond_cuda(question, gpu) or f"this build has {listed}"
    pairs = [found.pair for found in map(question.tables.gpu, question.target.gpus) if found and not found.arm]
    serving = _newest(question, lambda row: all(has_kernels(row.architectures, pair) for pair in pairs))
    other = serving or _newest(question, lambda row: has_kernels(row.architectures, gpu.pair))
    return Finding(
        "gpu-without-kernels",
        Severity.ERROR,
        name,
        f"{question.torch_words} has no kernels for {name} ({wanted}): {reason}",
        f"take {other}, or leave {name} out"
        if other
        else f"leave {name} out: no torch in the tables has kernels for it",
        build.source[0],
    )


def _beyond_cuda(question: Question, gpu: GpuModel) -> str | None:
    """Why this CUDA has no code for a GPU, where its compiler's floor or ceiling is the reason."""
    row = question.tables.cuda(question.spec.torch.cuda)
    if row and Version(gpu.capability) < Version(row.capabilities[0]):
        return f"CUDA {row.version} dropped it"
    if row and Version(gpu.capability) > Version(row.capabilities[1]):
        return f"CUDA {row.version} is older than this GPU"
    return None


def gpu_driver(question: Question) -> Iterator[Finding]:
    """Code compiled at run time (PTX) needs the toolkit's own driver: said where a GPU has no kernels of its own."""
    given, build = question.target.driver, question.build
    row = question.tables.cuda(question.spec.torch.cuda)
    if given is None or build is None or row is None or at_least(given, row.toolkit_driver):
        return
    binaries = tuple(name for name in build.architectures if name.startswith("sm_"))
    for name in question.target.gpus:
        gpu = question.tables.gpu(name)
        if gpu and has_kernels(build.architectures, gpu.pair) and not has_kernels(binaries, gpu.pair):
            message = f"{name} runs {question.torch_words} through PTX, which driver {given} cannot compile"
            fix = f"driver {row.toolkit_driver} or newer"
            yield Finding("driver-without-ptx", Severity.ERROR, f"driver {given}", message, fix, row.source)


def at_least(given: str, oldest: str) -> bool:
    """Whether a driver is new enough; one named by its branch alone (`580`, `525.60`) is the branch's newest."""
    parts = [int(part) for part in given.split(".")]
    return parts >= [int(part) for part in oldest.split(".")][: len(parts)]


def _starts(question: Question, build: TorchBuild, given: str) -> bool:
    oldest = question.tables.oldest_driver(build.cuda)
    return oldest is not None and at_least(given, oldest)


def _newest(question: Question, fits: Callable[[TorchBuild], bool]) -> str:
    """The newest other torch for which something holds and that this LLaMA-Factory takes; empty if there is none."""
    llamafactory = question.llamafactory
    allowed = llamafactory.specifiers("torch") if llamafactory else None
    rows = [
        row
        for row in question.tables.builds
        if fits(row) and row.torchaudio and (allowed is None or row.version in allowed)
    ]
    return f"torch {rows[-1].version} (CUDA {rows[-1].cuda})" if rows else ""


def _or(other: str) -> str:
    return f"; or {other}" if other else ""


def gpu_compiler(question: Question) -> Iterator[Finding]:
    """Triton compiles for the GPU itself, with the assembler of torch's CUDA: kernels of a sibling do not help it."""
    row = question.tables.cuda(question.spec.torch.cuda)
    for name in question.target.gpus:
        gpu = question.tables.gpu(name)
        if row and gpu and gpu.capability in row.lacks:
            yield _without_compiler(question, row, name, gpu)


def _without_compiler(question: Question, row: CudaRelease, name: str, gpu: GpuModel) -> Finding:
    wanted = f"sm_{gpu.capability.replace('.', '')}"
    message = f"CUDA {row.version} cannot compile for {name} ({wanted}): Triton and torch.compile fail there"
    other = _newest(question, lambda build: _compiles(question, build, gpu))
    fix = f"take {other}" if other else "a newer CUDA"
    return Finding("gpu-without-compiler", Severity.WARNING, name, message, fix, row.source)


def _compiles(question: Question, build: TorchBuild, gpu: GpuModel) -> bool:
    row = question.tables.cuda(build.cuda)
    return row is not None and gpu.capability not in row.lacks and has_kernels(build.architectures, gpu.pair)


def _spans(question: Question, name: str) -> list[DriverSpan]:
    gpu = question.tables.gpu(name)
    if gpu is None:
        return []
    capability = Version(gpu.capability)
    spans = question.tables.spans
    return [s for s in spans if Version(s.capabilities[0]) <= capability <= Version(s.capabilities[1])]


def gpu_generation(question: Question) -> Iterator[Finding]:
    """The driver runs this generation of GPUs: not before it was made, and not after it was dropped."""
    given = question.target.driver
    if given is None:
        return
    for name in question.target.gpus:
        for span in _spans(question, name):
            if span.first and not at_least(given, span.first):
                message = f"driver {given} does not know {name}: its first branch is {span.first}"
                fix = f"driver {span.first} or newer"
            elif span.last and int(given.split(".")[0]) > int(span.last.split(".")[0]):
                message = f"driver {given} does not run {name} any more: its last branch is {span.last}"
                fix = f"driver {span.last}, or leave {name} out"
            else:
                continue
            yield Finding("gpu-driver", Severity.ERROR, f"driver {given}", message, fix, span.source)


RULES = (known_build, torch_python, torch_glibc, driver, gpus, gpu_driver, gpu_generation, gpu_compiler)


def kernels_fix(tables: Tables, *capabilities: Capability) -> str:
    """Which torch has kernels for all of these GPUs."""
    build = tables.newest_serving(*capabilities)
    if build is None:
        return "no torch in the tables has kernels for all of them: an image for each"
    return f"torch {build.version} (CUDA {build.cuda}) has kernels for them; sifkit resolve --gpu … chooses a set"
