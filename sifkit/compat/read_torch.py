"""torch.yaml from an index: every build of torch, and the torchvision and torchaudio that belong to it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from pypi_simple import DistributionPackage

from sifkit.compat.tables import TorchBuild
from sifkit.compat.wheels import PYTHONS, Index, Wheel, WheelName, plain, read_each
from sifkit.errors import ProblemFound, UsageError
from sifkit.progress import Progress
from sifkit.verify.probes import elf

_OF_TORCH = tuple(
    f"torch/{name}" for name in ("version.py", "lib/libc10.so", "lib/libtorch_python.so", "lib/libc10_cuda.so")
)
OLDEST_TORCH = Version("2.4")  # what LLaMA-Factory 0.9.4 and newer ask for


@dataclass(frozen=True)
class TorchIndex:
    """PyTorch's own index, or a mirror of it, for builds that the package index does not hold."""

    url: str  # with {cuda} for cu126 and the like
    cudas: tuple[str, ...]  # "12.6"


def torch_index(url: str | None, cudas: tuple[str, ...]) -> TorchIndex | None:
    """Raises `UsageError` when builds for other CUDA versions are asked for and the site names no index of them."""
    if not cudas:
        return None
    if not url:
        fix = "python_index: {torch_url: 'https://download.pytorch.org/whl/{cuda}'}"
        raise UsageError("--cuda reads PyTorch's own index, and the site file names none", fix)
    return TorchIndex(url, cudas)


def torch_builds(index: Index, others: TorchIndex | None, progress: Progress) -> list[TorchBuild]:
    """Every build of torch from OLDEST_TORCH on, with the torchvision and torchaudio that belong to it."""
    rows = _builds_on(index, "default", progress)
    if others is not None:
        for cuda in others.cudas:
            with index.beside(others.url.format(cuda=f"cu{cuda.replace('.', '')}")) as other:
                rows += [row for row in _builds_on(other, "torch", progress) if row.cuda == cuda]
    known: dict[tuple[str, str], TorchBuild] = {}
    for row in rows:
        known.setdefault((row.version, row.cuda), row)
    return sorted(known.values(), key=lambda row: (row.parsed, Version(row.cuda)))


def _builds_on(index: Index, kind: Literal["default", "torch"], progress: Progress) -> list[TorchBuild]:
    wheels = {version: files for version, files in index.wheels("torch").items() if version >= OLDEST_TORCH}
    visions = _companions(index, "torchvision", Version("0.19"), progress)
    audios = _companions(index, "torchaudio", OLDEST_TORCH, progress)

    def read(version: Version) -> TorchBuild | None:
        return _torch_build(index, kind, wheels[version], visions, audios)

    return [row for row in read_each("torch", sorted(wheels), read, progress) if row]


def _torch_build(
    index: Index,
    kind: Literal["default", "torch"],
    files: list[DistributionPackage],
    visions: list[Companion],
    audios: list[Companion],
) -> TorchBuild | None:
    """None for a build without CUDA."""
    with index.open(_one_of(files)) as wheel, tempfile.TemporaryDirectory(prefix="sifkit-wheel-") as folder:
        name, filename = WheelName.parse(wheel.filename), wheel.filename
        wheel.extract(_OF_TORCH, folder)
        told = elf.read_torch(f"{folder}/torch")
        cuda = told["cuda"]
        if not cuda or name is None:
            return None
        if not told["architectures"]:
            raise ProblemFound(
                f"{filename}: libtorch_python.so holds no list of architectures", "report this to sifkit"
            )
        python_library, cuda_library = (_object(filename, f"{folder}/{path}") for path in _OF_TORCH[-2:])
        requires: dict[str, Requirement] = {canonicalize_name(found.name): found for found in plain(wheel.requires())}
    _agree(filename, cuda, cuda_library, requires)
    torch = Version(name.version.public)
    triton, toolkit = requires.get("triton"), requires.get("cuda-toolkit")
    vision, audio = _belonging(visions, torch, cuda), _belonging(audios, torch, cuda)
    companions = [found for found in (vision, audio) if found]
    nvcc, nvcc_wheel = _nvcc(index, toolkit, cuda)
    sources = [filename, *(found.filename for found in companions), *([nvcc_wheel] if nvcc else [])]
    return TorchBuild(
        version=str(torch),
        cuda=cuda,
        torchvision=str(vision.version) if vision else None,
        torchaudio=str(audio.version) if audio else None,
        triton=str(triton.specifier) if triton else None,
        pythons=tuple(python for python in _pythons(files) if all(python in found.pythons for found in companions)),
        glibc=max((_glibc(library) for library in (python_library, cuda_library)), key=Version),
        architectures=tuple(told["architectures"]),
        cxx11_abi=bool(told["cxx11_abi"]),
        nvidia=tuple(sorted(str(found) for name, found in requires.items() if name.startswith(("nvidia-", "cuda-")))),
        nvcc=nvcc,
        index=kind,
        source=tuple(sources),
    )


def _object(filename: str, path: str) -> dict[str, Any]:
    """The facts of a shared object. Raises `ProblemFound` for a file that is none."""
    facts = elf.read_object(path)
    if facts["broken"] or not facts["machine"]:
        raise ProblemFound(f"{filename}: {Path(path).name} is no shared object", "read the index again")
    return facts


def _agree(filename: str, cuda: str, library: dict[str, Any], requires: Mapping[str, Requirement]) -> None:
    """What version.py, DT_NEEDED and the pins say of CUDA is one thing. Raises `ProblemFound` where it is not."""
    major = cuda.partition(".")[0]
    if _cudart(library) not in (None, major):
        message = f"{filename}: version.py says CUDA {cuda}, libc10_cuda.so needs libcudart.so.{_cudart(library)}"
        raise ProblemFound(message, "report this to PyTorch")
    pins = [requires[name] for name in (f"nvidia-cuda-runtime-cu{major}", "cuda-toolkit") if name in requires]
    wrong = [pin for pin in pins if not any(part.version.startswith(f"{cuda}.") for part in pin.specifier)]
    if wrong:
        raise ProblemFound(f"{filename}: version.py says CUDA {cuda}, it requires {wrong[0]}", "report this to PyTorch")


def _cudart(library: dict[str, Any]) -> str | None:
    """The major version of the CUDA runtime that a library needs."""
    found = [match for name in library["needed"] if (match := re.fullmatch(r"libcudart\.so\.(\d+)[\d.]*", name))]
    return found[0][1] if found else None


def _glibc(library: dict[str, Any]) -> str:
    """The newest version of glibc whose symbols it needs; manylinux's oldest where it names none."""
    names = [name for versions in library["versions"].values() for name in versions]
    found = [name[6:] for name in names if re.fullmatch(r"GLIBC_\d+(\.\d+)+", name)]
    return str(max([*found, "2.17"], key=Version))


def _pythons(files: Iterable[DistributionPackage]) -> tuple[str, ...]:
    names = [name for file in files if (name := WheelName.parse(file.filename))]
    return tuple(python for python in PYTHONS if any(name.runs_on(python) for name in names))


def _one_of(files: Sequence[DistributionPackage]) -> DistributionPackage:
    """One wheel stands for those of all Pythons: the one for Python 3.12 or, without, the last."""
    return next((file for file in reversed(files) if "-cp312-" in file.filename), files[-1])


def _nvcc(index: Index, toolkit: Requirement | None, cuda: str) -> tuple[str | None, str]:
    """A requirement that brings nvcc of torch's CUDA, where a wheel holds that program, and the wheel.

    From CUDA 13 on torch pins `cuda-toolkit`, whose extra names it. NVIDIA's wheels for CUDA 12 are called
    nvcc, too, but hold the assembler and the optimiser only.
    """
    major = Version(cuda).major
    project = "nvidia-cuda-nvcc" if toolkit else f"nvidia-cuda-nvcc-cu{major}"
    wheels = {v: files for v, files in index.wheels(project).items() if str(v).startswith(f"{cuda}.")}
    if not wheels:
        return None, ""
    with index.open(wheels[max(wheels)][-1]) as wheel:
        if not any(name.endswith("/bin/nvcc") for name in wheel.names):
            return None, ""
    return f"cuda-toolkit[cccl,crt,nvcc,nvvm]{toolkit.specifier}" if toolkit else f"{project}=={cuda}.*", wheel.filename


# ---------------------------------------------------------------------------------------------- companions


@dataclass(frozen=True)
class Companion:
    """A torchvision or a torchaudio, and which torch it is for."""

    version: Version
    filename: str
    pythons: tuple[str, ...]  # that it has wheels for
    torch: SpecifierSet | None  # in its metadata
    cuda: str | None  # it was compiled for, as it says
    cudart: str | None  # major version of the CUDA runtime that its extension needs
    stable: bool  # uses torch's stable C interface alone, and so runs with newer releases of torch


def _companions(index: Index, project: str, oldest: Version, progress: Progress) -> list[Companion]:
    wheels = {version: files for version, files in index.wheels(project).items() if version >= oldest}

    def read(version: Version) -> Companion:
        with index.open(_one_of(wheels[version])) as wheel:
            return _companion(wheel, project, _pythons(wheels[version]))

    return read_each(project, sorted(wheels), read, progress)


def _companion(wheel: Wheel, project: str, pythons: tuple[str, ...]) -> Companion:
    name = WheelName.parse(wheel.filename)
    assert name is not None
    required = wheel.requirement("torch")
    own = elf.constants(wheel.read(f"{project}/version.py").decode())
    local = re.search(r"\+cu(\d+)(\d)$", own.get("__version__") or str(name.version))
    cudart, stable = _extension(wheel, project)
    return Companion(
        Version(name.version.public),
        wheel.filename,
        pythons,
        required.specifier if required else None,
        f"{local[1]}.{local[2]}" if local else own.get("cuda"),
        cudart,
        stable,
    )


_CXX_OF_TORCH = re.compile(rb"_ZNK?(?:2at|3c10|5torch)")  # names that change from release to release


def _extension(wheel: Wheel, project: str) -> tuple[str | None, bool]:
    """The CUDA runtime that the companion's extension of torch needs, and whether it keeps to the stable interface."""
    pattern = rf"{project}/(?:_C(?:_stable)?|lib/_?lib{project}|lib/_{project})(?:\.abi3)?\.so"
    found = next((name for name in sorted(wheel.names) if re.fullmatch(pattern, name)), None)
    if found is None:
        return None, False
    with tempfile.TemporaryDirectory(prefix="sifkit-wheel-") as folder:
        wheel.extract([found], folder)
        path = f"{folder}/{found}"
        library = _object(wheel.filename, path)
        with elf.Elf(path) as symbols:
            stable = not any(_CXX_OF_TORCH.match(symbol) for symbol in symbols.undefined())
    return _cudart(library), stable


def _belonging(candidates: list[Companion], torch: Version, cuda: str) -> Companion | None:
    """The newest that names this torch, or that runs with it because it keeps to the stable interface.

    Both compare the CUDA they were compiled for with torch's when they are imported, minor version included
    [measured: torchaudio 2.11.0 (13.0) beside torch 2.15.0 (13.2) raises RuntimeError].
    """
    major = cuda.partition(".")[0]
    same = [found for found in candidates if found.cuda in (None, cuda) and found.cudart in (None, major)]
    exact = [found for found in same if found.torch and _pins(found.torch) and torch in found.torch]
    open_ = [found for found in same if found.stable and _takes(found, torch)]
    return max(exact or open_, key=lambda found: found.version, default=None)


def _pins(specifier: SpecifierSet) -> bool:
    return any(part.operator == "==" for part in specifier)


def _takes(found: Companion, torch: Version) -> bool:
    if found.torch is not None:
        return torch in found.torch
    return torch >= Version(f"{found.version.major}.{found.version.minor}")  # torchaudio's version is its torch's
