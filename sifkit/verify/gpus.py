"""GPU models, compute capabilities, and which of torch's kernels run on which of them."""

from __future__ import annotations

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Annotated

from packaging.version import Version
from pydantic import StringConstraints

from sifkit.errors import UsageError
from sifkit.model import Strict
from sifkit.yamlfile import load

_DATA = Path(__file__).parent.parent / "data" / "gpus.yaml"

Capability = tuple[int, int]


class GpuRow(Strict):
    """GPU models of one compute capability."""

    capability: Annotated[str, StringConstraints(pattern=r"^\d+\.\d$")]
    models: tuple[str, ...]
    source: str


class DriverRow(Strict):
    """The oldest driver for a major version of CUDA."""

    cuda: int
    oldest: str
    source: str


class GpuData(Strict):
    """data/gpus.yaml."""

    gpus: tuple[GpuRow, ...]
    drivers: tuple[DriverRow, ...]


@cache
def gpu_data() -> GpuData:
    """The tables, read once."""
    return load(_DATA, GpuData)


def capability_of(model: str) -> Capability:
    """The compute capability of a GPU model as sites write it (`A100`, `rtx-4090`, `NVIDIA H100`).

    Raises `UsageError` with the nearest known name for a model that the table does not have.
    """
    known = {_normalised(name): row.capability for row in gpu_data().gpus for name in row.models}
    name = _normalised(model)
    if name not in known:
        names = [name for row in gpu_data().gpus for name in row.models]
        near = difflib.get_close_matches(model, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(names)}"
        raise UsageError(f"GPU model {model!r} is not in the table of GPUs", hint)
    major, minor = known[name].split(".")
    return int(major), int(minor)


def _normalised(model: str) -> str:
    return re.sub(r"^(nvidia|tesla|geforce)+", "", re.sub(r"[\s_-]", "", model.lower()))


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


def oldest_driver(cuda: str) -> str | None:
    """The oldest driver on which this CUDA version starts at all; None for a major version not in the table."""
    major = Version(cuda).major
    return next((row.oldest for row in gpu_data().drivers if row.cuda == major), None)
