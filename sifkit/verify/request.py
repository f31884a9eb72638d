"""What is to be verified, and how."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sifkit.compat.tables import Tables, load_tables
from sifkit.model import Lock, Method
from sifkit.verify.checks import Level

# What of the caller's environment decides which GPUs are used and how they talk to each other. Slurm
# sets the first; sites set the others (NCCL_NVLS_ENABLE, NCCL_SOCKET_IFNAME, …).
_GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")


def gpu_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that a job on GPUs needs in the container."""
    return {name: value for name, value in environ.items() if name in _GPU_VARIABLES or name.startswith("NCCL_")}


# Caches that jobs are told to use; a run stops at the first that it cannot write.
_CACHE_VARIABLES = ("HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME")


def cache_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The caches that `environ` names, which a job would be given."""
    return {name: environ[name] for name in _CACHE_VARIABLES if environ.get(name)}


@dataclass(frozen=True)
class Subject:
    """An image, and what should be in it."""

    image: Path
    name: str
    sha256: str
    lock: Lock | None  # None: an image without one; what it holds is then reported, not compared


@dataclass(frozen=True)
class VerifyOptions:
    """On which device, with which checkout, config and model, and how far."""

    device: Literal["gpu", "cpu"]
    checkout: Path
    config: Path | None  # None: the checkout's own LoRA SFT example
    model: Path | None  # None: a tiny random model made in the container
    gpus: int
    report_dir: Path
    levels: tuple[Level, ...] = tuple(Level)
    gpu_models: tuple[str, ...] = ()  # that the image is for, as sites name them
    tables: Tables = field(default_factory=load_tables)
    method: Method | None = None  # in the place of the config's own
    caches: Mapping[str, str] = field(default_factory=lambda: cache_environment(os.environ))  # of the user's jobs
    keep: bool = False  # keep models, checkpoints and caches beside the report
    environ: Mapping[str, str] = field(default_factory=lambda: gpu_environment(os.environ))
