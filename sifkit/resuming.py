"""What keeps a job that is requeued from going on where it stopped. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Obstacle:
    """Why a job that goes on would not. `key`: of the config; None: what LLaMA-Factory cannot do at all."""

    key: str | None
    message: str
    fix: str


def resume_obstacles(
    values: Mapping[str, Any], stage: str, *, resumes: bool, saves_on_signal: bool
) -> Iterator[Obstacle]:
    """What keeps a requeued job from going on where it stopped. `rm` and `ppo` do not resume."""
    if values.get("overwrite_output_dir") is True:
        yield Obstacle(
            "overwrite_output_dir",
            "overwrite_output_dir: true, so that a job that goes on would start at step 0",
            "overwrite_output_dir: false (or say so on the command line: overwrite_output_dir=false)",
        )
    if values.get("resume_from_checkpoint"):
        yield Obstacle(
            "resume_from_checkpoint",
            "resume_from_checkpoint, from which a job that goes on would start each time",
            "resume_from_checkpoint: null; the newest complete checkpoint of output_dir is then taken",
        )
    if values.get("save_only_model") is True:
        message = "save_only_model: true: its checkpoints hold no optimizer"
        yield Obstacle("save_only_model", message, "save_only_model: false")
    if not resumes:
        yield Obstacle(None, f"LLaMA-Factory does not resume stage {stage}", "leave out --requeue")
    if values.get("save_strategy") == "no" and not saves_on_signal:
        message = "save_strategy: no: there is nothing to go on from"
        yield Obstacle("save_strategy", message, "save_strategy: steps")
