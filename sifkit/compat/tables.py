"""The compatibility tables: frozen rows, each with where it was read.

The files lie in `definitions/compat/` (a copy of that of this release lies in the package, for projects
that have none of their own). `torch.yaml`, `llamafactory.yaml` and `packages.yaml` are written by
`sifkit compat update` from wheels; `cuda.yaml`, `gpus.yaml` and `pairs.yaml` are kept by hand.
What no row knows is unknown: nothing is concluded from a row that is not there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Len
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion
from packaging.version import Version as ParsedVersion
from pydantic import AfterValidator, StringConstraints

from sifkit import yamlfile
from sifkit.errors import UsageError
from sifkit.model import DriverVersion, MinorVersion, OneWord, Strict, Version

PACKAGED = Path(__file__).parent.parent / "data" / "compat"
FILES = ("torch.yaml", "cuda.yaml", "gpus.yaml", "llamafactory.yaml", "packages.yaml", "pairs.yaml")


@cache
def requirement_of(text: str) -> Requirement:
    """A requirement, parsed once: rules look at the same few hundred again and again. Not to be changed."""
    return Requirement(text)


@cache
def specifier_of(text: str) -> SpecifierSet:
    """A specifier, parsed once."""
    return SpecifierSet(text)


Capability = tuple[int, int]


def _specifier(text: str) -> str:
    specifier_of(text)  # ValueError for a text that is none
    return text


def _requirement(text: str) -> str:
    requirement_of(text)
    return text


SpecifierText = Annotated[str, AfterValidator(_specifier)]
RequirementText = Annotated[str, AfterValidator(_requirement)]
AtLeastOne = Annotated[tuple[MinorVersion, ...], Len(min_length=1)]
CapabilityText = Annotated[str, StringConstraints(pattern=r"^\d+\.\d$")]


class TorchBuild(Strict):
    """One build of torch for Linux on x86-64, and what belongs to it."""

    version: Version
    cuda: MinorVersion
    torchvision: Version | None  # None: none on that index fits this torch
    torchaudio: Version | None
    triton: SpecifierText | None  # as torch pins it: "==3.5.1"
    pythons: AtLeastOne  # for which the whole set has wheels
    glibc: MinorVersion  # the oldest whose symbols its libraries need
    architectures: tuple[OneWord, ...]  # that its kernels were compiled for
    cxx11_abi: bool  # _GLIBCXX_USE_CXX11_ABI
    nvidia: tuple[str, ...]  # the pins of NVIDIA's wheels in its metadata: CUDA's libraries, cuDNN, NCCL
    nvcc: str | None  # requirement that brings nvcc of the same CUDA; None: no wheel holds one
    index: Literal["default", "torch"] = "default"  # the package index, or PyTorch's own for other CUDA versions
    source: tuple[str, ...]

    @property
    def parsed(self) -> ParsedVersion:
        """For ordering."""
        return ParsedVersion(self.version)


class CudaRelease(Strict):
    """A CUDA toolkit release, and the drivers that run what was built with it."""

    version: MinorVersion
    driver: DriverVersion  # oldest on which it starts (minor-version compatibility)
    toolkit_driver: DriverVersion  # released with it: code compiled at run time (PTX) works from here on
    capabilities: tuple[CapabilityText, CapabilityText]  # floor and ceiling of its compiler
    lacks: tuple[CapabilityText, ...] = ()  # of GPUs in the tables, those between that it cannot compile for
    source: str


class GpuModel(Strict):
    """A GPU as sites name it."""

    model: str
    aliases: tuple[str, ...] = ()
    capability: CapabilityText
    memory_gb: tuple[int | float, ...]  # each variant
    bf16: bool  # in hardware
    fp8: bool
    arm: bool = False  # comes with an Arm CPU
    source: str

    @property
    def pair(self) -> Capability:
        """Compute capability as (major, minor)."""
        major, minor = self.capability.split(".")
        return int(major), int(minor)


class DriverSpan(Strict):
    """The driver branches that run GPUs of a span of compute capabilities."""

    capabilities: tuple[CapabilityText, CapabilityText]  # from, to
    first: DriverVersion | None
    last: DriverVersion | None
    source: str


class LlamaFactoryRelease(Strict):
    """What a release asks for: in its wheel's metadata, and in its check when it starts."""

    version: Version
    python: SpecifierText
    pythons: AtLeastOne  # for which every requirement with an upper bound has a wheel
    requires: tuple[RequirementText, ...]
    runtime: tuple[RequirementText, ...]  # check_dependencies() in llamafactory/extras/misc.py
    extras: dict[str, tuple[RequirementText, ...]]
    optional: tuple[RequirementText, ...]  # checked where a feature is used
    source: tuple[str, ...]

    def specifiers(self, package: str) -> SpecifierSet:
        """Everything that metadata and the check at start ask of `package`, together."""
        found = SpecifierSet()
        for text in (*self.requires, *self.runtime):
            requirement = requirement_of(text)
            if canonicalize_name(requirement.name) == package and _applies(requirement):
                found &= requirement.specifier
        return found

    def extra(self, name: str) -> tuple[Requirement, ...]:
        """What this release asks of the packages of an extra; its own checks at use count too."""
        asked = [requirement_of(text) for text in self.extras.get(name, ())]
        names = {canonicalize_name(requirement.name) for requirement in asked} or {canonicalize_name(name)}
        checked = [requirement_of(text) for text in self.optional]
        return (*asked, *(found for found in checked if canonicalize_name(found.name) in names))

    def extra_specifiers(self, extra: str, package: str) -> SpecifierSet:
        """Everything that an extra and the checks at use ask of one of its packages, together."""
        found = SpecifierSet()
        for requirement in self.extra(extra):
            if canonicalize_name(requirement.name) == canonicalize_name(package):
                found &= requirement.specifier
        return found


class TiedRelease(Strict):
    """A release of a package that is tied to torch."""

    name: str
    version: Version
    wheel: bool  # for Linux on x86-64; else there is only a source archive
    python: SpecifierText = ""
    torch: SpecifierText = ""  # in its metadata
    requires: tuple[RequirementText, ...] = ()  # others in its metadata that LLaMA-Factory has ranges for
    cuda: tuple[MinorVersion, ...] = ()  # that it brings libraries for; empty: it does not depend on it
    source: str

    def fits(self, torch: str) -> bool:
        """Whether its metadata takes this torch."""
        return specifier_of(self.torch).contains(torch, prereleases=True)


class Pair(Strict):
    """Two packages that resolvers put together and that fail."""

    package: str
    versions: SpecifierText  # which releases of it
    other: str
    needs: SpecifierText  # with which releases of the other they work
    instead: SpecifierText  # releases of the package that work with any
    symptom: str
    source: str


class _TorchFile(Strict):
    torch: tuple[TorchBuild, ...]


class _CudaFile(Strict):
    cuda: tuple[CudaRelease, ...]


class _GpuFile(Strict):
    gpus: tuple[GpuModel, ...]
    drivers: tuple[DriverSpan, ...] = ()


class _LlamaFactoryFile(Strict):
    llamafactory: tuple[LlamaFactoryRelease, ...]


class _PackagesFile(Strict):
    packages: tuple[TiedRelease, ...]


class _PairsFile(Strict):
    pairs: tuple[Pair, ...]


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"sys_platform": "linux", "extra": ""})


@dataclass(frozen=True)
class Tables:
    """All tables. Look-ups answer None for what no row knows."""

    builds: tuple[TorchBuild, ...]
    cudas: tuple[CudaRelease, ...]
    gpus: tuple[GpuModel, ...]
    llamafactories: tuple[LlamaFactoryRelease, ...]
    tied: tuple[TiedRelease, ...]
    pairs: tuple[Pair, ...]
    spans: tuple[DriverSpan, ...] = ()

    def build(self, torch: str, cuda: str) -> TorchBuild | None:
        """The build of a torch for a CUDA."""
        return next((row for row in self.builds if (row.version, row.cuda) == (torch, cuda)), None)

    def default_build(self, torch: str) -> TorchBuild | None:
        """The build that the package index holds; any other comes from PyTorch's own index."""
        return next((row for row in self.builds if row.version == torch and row.index == "default"), None)

    def cuda(self, version: str) -> CudaRelease | None:
        """A toolkit release."""
        return next((row for row in self.cudas if row.version == version), None)

    def cuda_majors(self) -> dict[int, CudaRelease]:
        """The first release of each major version: its `driver` is that of the whole major."""
        majors: dict[int, CudaRelease] = {}
        for row in sorted(self.cudas, key=lambda row: ParsedVersion(row.version)):
            majors.setdefault(ParsedVersion(row.version).major, row)
        return majors

    def oldest_driver(self, cuda: str) -> str | None:
        """The oldest driver on which this CUDA starts at all; for a minor release without a row, its major's."""
        try:
            row = self.cuda(cuda) or self.cuda_majors().get(ParsedVersion(cuda).major)
        except InvalidVersion:  # an image may say anything
            return None
        return row.driver if row else None

    def gpu(self, model: str) -> GpuModel | None:
        """A GPU by its name or an alias, as people write it: `A100`, `rtx-4090`, `NVIDIA H100 80GB HBM3`."""
        wanted = normalised(model)
        without_memory = normalised(re.sub(r"[\s_-]+\d+ ?gb$", "", model.strip(), flags=re.IGNORECASE))
        for name in (wanted, without_memory, f"rtx{without_memory}"):
            found = next((row for row in self.gpus if name in _names(row)), None)
            if found:
                return found
        return None

    def nearest_gpu(self, model: str) -> str:
        """A hint for a name that is not known."""
        known = {name: row.model for row in self.gpus for name in _names(row)}
        near = difflib.get_close_matches(normalised(model), known, n=1, cutoff=0.75)
        return f"did you mean {known[near[0]]}?" if near else "the names that are known: sifkit compat show --json"

    def gpus_served(self, build: TorchBuild) -> tuple[GpuModel, ...]:
        """Every GPU for which a build has kernels."""
        cuda = self.cuda(build.cuda)
        lacks = cuda.lacks if cuda else ()
        fitting = (row for row in self.gpus if not row.arm and has_kernels(build.architectures, row.pair))
        return tuple(row for row in fitting if row.capability not in lacks)

    def newest_serving(self, *capabilities: Capability) -> TorchBuild | None:
        """The newest whole set whose torch has kernels for all of them."""
        whole = [row for row in self.builds if row.torchvision and row.torchaudio]
        fitting = [row for row in whole if all(has_kernels(row.architectures, pair) for pair in capabilities)]
        return fitting[-1] if fitting else None

    def llamafactory(self, version: str) -> LlamaFactoryRelease | None:
        """A release of LLaMA-Factory."""
        return next((row for row in self.llamafactories if row.version == version), None)

    def releases(self, package: str) -> tuple[TiedRelease, ...]:
        """All known releases of a package that is tied to torch, oldest first."""
        return tuple(row for row in self.tied if row.name == package)


def overlap(one: SpecifierSet, other: SpecifierSet) -> bool:
    """Whether some version may lie in both, as far as the versions that they name tell."""
    both = one & other
    named = [part.version.removesuffix(".*") for part in both if part.operator != "!="]
    edges = [*named, *(f"{version}.1" for version in named), "0"]
    return any(both.contains(edge, prereleases=True) for edge in edges)


def normalised(model: str) -> str:
    """A GPU's name as tables compare it; Slurm's form (`gpu:a100:4`) is understood, too."""
    plain = re.sub(r"^gpu:|:\d+$", "", model.strip().lower())
    return re.sub(r"^(nvidia|tesla|geforce)+", "", re.sub(r"[\s_-]", "", plain))


@cache
def _names(row: GpuModel) -> frozenset[str]:
    return frozenset(normalised(name) for name in (row.model, *row.aliases))


def load_tables(own: Path | None = None) -> Tables:
    """The tables, each from the directory `own` where that has the file, else as packaged.

    Raises `UsageError` for a file that is not a table.
    """
    try:
        return _load(tuple(_file(own, name) for name in FILES))
    except UsageError as error:
        fix = "write it again: sifkit compat update; or delete it, and sifkit's own is used"
        raise UsageError(error.message, error.fix or fix) from None


def _file(own: Path | None, name: str) -> Path:
    """Links followed, so that a project's tables that are those of this release are read once."""
    return (own / name if own is not None and (own / name).is_file() else PACKAGED / name).resolve()


@cache
def _load(paths: tuple[Path, ...]) -> Tables:
    torch, cuda, gpus, llamafactory, packages, pairs = paths
    gpu_file = _read(gpus, _GpuFile)
    return Tables(
        builds=_newest_last(_read(torch, _TorchFile).torch),
        cudas=_read(cuda, _CudaFile).cuda,
        gpus=gpu_file.gpus,
        llamafactories=_read(llamafactory, _LlamaFactoryFile).llamafactory,
        tied=_read(packages, _PackagesFile).packages,
        pairs=_read(pairs, _PairsFile).pairs,
        spans=gpu_file.drivers,
    )


def _read(path: Path, model: type[yamlfile.MODEL]) -> yamlfile.MODEL:
    ours = path.parent == PACKAGED.resolve()
    return yamlfile.load_own(path, model) if ours else yamlfile.load(path, model)


def _newest_last(builds: Iterable[TorchBuild]) -> tuple[TorchBuild, ...]:
    return tuple(sorted(builds, key=lambda row: (row.parsed, ParsedVersion(row.cuda))))


def has_kernels(architectures: tuple[str, ...], capability: Capability) -> bool:
    """Whether code built for `architectures` (torch's arch list) runs on a GPU of `capability`.

    A cubin `sm_XY` runs on the same major version with an equal or later minor one; PTX `compute_XY` runs on
    everything later; `sm_90a` and the like run on exactly their own.
    Source: CUDA C++ Programming Guide, "Binary Compatibility", "PTX Compatibility".
    """
    return any(_runs(name, capability) for name in architectures)


def _runs(architecture: str, capability: Capability) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return False
    kind, major, minor, special = match[1], int(match[2]), int(match[3]), match[4]
    if special == "a":
        return (major, minor) == capability
    if kind == "compute":
        return (major, minor) <= capability
    return major == capability[0] and minor <= capability[1]
