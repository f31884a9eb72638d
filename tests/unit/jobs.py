"""Jobs for tests: a launch without any file being there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sifkit.launch import Launch, Training, plan_launch
from sifkit.model import Site
from sifkit.slurm.request import Job, Resources
from sifkit.verify.smoke import parse_config

VALUES: dict[str, Any] = {"dataset": "identity", "template": "llama3", "output_dir": "/scratch/out"}


def make_training(path: Path = Path("/home/me/train.yaml"), *overrides: str, **values: object) -> Training:
    merged = {**VALUES, **values}
    return Training(path, merged, overrides, parse_config(path, merged))


def make_launch(
    training: Training | None = None,
    *,
    image: Path = Path("/images/one.sif"),
    checkout: Path = Path("/home/me/LLaMA-Factory"),
    nv: bool = False,
    torchrun: bool = False,
    site: Site | None = None,
) -> Launch:
    return plan_launch(
        image, checkout, training or make_training(), site=site or Site(), nv=nv, torchrun=torchrun, hf_home=None
    )


def make_job(*launches: Launch, **changes: Any) -> Job:
    values: dict[str, Any] = {"name": "train", "resources": Resources(gpus=0), **changes}
    return Job(launches=launches or (make_launch(),), **values)
