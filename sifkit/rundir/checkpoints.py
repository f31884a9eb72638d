"""Checkpoints: which of them a stopped run can go on from, and what the others lack. Pure.

transformers writes a checkpoint in place: weights, then optimizer, scheduler and random state, trainer_state.json last
(transformers/trainer.py, _save_checkpoint). LLaMA-Factory takes the one with the highest number, whole or not
(transformers/trainer_utils.py, get_last_checkpoint; llamafactory/hparams/parser.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from sifkit.rundir.files import FoundFile, Kind
from sifkit.rundir.trainlog import State

NAME = re.compile(r"checkpoint-([0-9]{1,18})")
_SHARD = re.compile(r"(model|pytorch_model)-\d{5}-of-\d{5}\.(safetensors|bin)")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_MODELS = ("model.safetensors", "pytorch_model.bin")
OPTIMIZER = re.compile(r"optimizer\.pt|optimizer(_\d+)?\.bin|optimizer_\d+|rank\d+-of-\d+-optimizer\.pt")
_DEEPSPEED = re.compile(r"global_step\d+")
_FSDP = re.compile(r"pytorch_model_fsdp.*")


class Status(str, Enum):
    """What a checkpoint is good for."""

    COMPLETE = "complete"  # a stopped run can go on from it
    MODEL_ONLY = "model only"  # weights without optimizer: save_only_model, PPO, or pruned
    INCOMPLETE = "incomplete"  # cut off while it was written, or damaged since


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint directory; `problems` say why it is incomplete."""

    name: str
    step: int
    size: int  # bytes
    status: Status
    problems: tuple[str, ...]
    optimizer: tuple[str, ...]  # top names of what only resuming needs
    optimizer_size: int  # bytes
    state: State | None
    weights: bool  # there are weights, of whatever kind, apart from DeepSpeed's

    @property
    def usable(self) -> bool:
        """Its weights can be loaded."""
        return self.status is not Status.INCOMPLETE


def step_of(name: str) -> int | None:
    """The step that a checkpoint's name says; None if that is no checkpoint's name."""
    match = NAME.fullmatch(name)
    return int(match[1]) if match else None


def judge_checkpoint(
    name: str,
    files: tuple[FoundFile, ...],
    shards: Mapping[str, frozenset[str]],
    latest: str | None,
    state: State | None,
) -> Checkpoint:
    """Judge one checkpoint by its files, whose names are relative to it.

    `shards`: for each index file, the files that it names. `latest`: what DeepSpeed's file of that name says.
    """
    tops = {file.top for file in files}
    missing = [*missing_weights(tops, shards), *_missing_to_resume(files, tops, latest, state)]
    faults = [f"{file.name} {file.fault}" for file in files if file.fault and _is_loaded(file)]
    optimizer = tuple(sorted(top for top in tops if OPTIMIZER.fullmatch(top)))
    weights = has_weights(tops)
    if weights:  # DeepSpeed's directory holds them too, where they are gathered nowhere else
        optimizer += tuple(sorted(top for top in tops if _DEEPSPEED.fullmatch(top) or top == "latest"))
    model_only = not any(OPTIMIZER.fullmatch(top) or _DEEPSPEED.fullmatch(top) for top in tops) and weights
    status = Status.INCOMPLETE if missing or faults else Status.MODEL_ONLY if model_only else Status.COMPLETE
    return Checkpoint(
        name=name,
        step=int(name.rpartition("-")[2]),
        size=sum(file.size for file in files),
        status=status,
        problems=tuple([f"{word} is missing" for word in missing] + faults),
        optimizer=optimizer,
        optimizer_size=sum(file.size for file in files if file.top in optimizer),
        state=state,
        weights=weights,
    )


def _is_loaded(file: FoundFile) -> bool:
    """Whether a checkpoint with this file damaged does not load; a model card or a plot is not read again."""
    loaded = (".json", ".safetensors", ".bin", ".pt", ".pth", ".distcp", ".model")
    return file.kind is Kind.DIRECTORY or file.base.endswith(loaded) or file.base == "latest"


def has_weights(tops: set[str]) -> bool:
    """Whether there are weights that load without DeepSpeed."""
    return bool(tops & {*_ADAPTERS, *_MODELS, *_INDEXES}) or any(_FSDP.fullmatch(top) for top in tops)


def missing_weights(tops: set[str], shards: Mapping[str, frozenset[str]]) -> list[str]:
    """What a model's directory lacks to be loaded."""
    if not has_weights(tops):
        if any(_DEEPSPEED.fullmatch(top) for top in tops):
            return []
        if any(_SHARD.fullmatch(top) for top in tops):  # the index is written after the shards
            return ["the index of the shards"]
        return ["weights (adapter_model or model)"]
    missing = sorted(name for wanted in shards.values() for name in wanted if name not in tops)
    if tops & {*_ADAPTERS} and "adapter_config.json" not in tops:
        missing.append("adapter_config.json")
    if tops & {*_MODELS, *_INDEXES} and "config.json" not in tops:
        missing.append("config.json")
    return missing


def _missing_to_resume(
    files: tuple[FoundFile, ...], tops: set[str], latest: str | None, state: State | None
) -> list[str]:
    deepspeed = {top for top in tops if _DEEPSPEED.fullmatch(top)}
    optimizer = any(OPTIMIZER.fullmatch(top) for top in tops)
    ppo = not optimizer and not deepspeed and any(top.startswith("value_head.") for top in tops)
    missing = [] if state or ppo else ["trainer_state.json"]  # PPO saves the model alone (train/ppo/trainer.py)
    if optimizer and "scheduler.pt" not in tops:
        missing.append("scheduler.pt")
    if deepspeed and latest not in deepspeed:
        missing.append("DeepSpeed's file latest" if latest is None else f"{latest}, which the file latest names,")
    if deepspeed and latest in deepspeed and not _holds_files(files, latest):
        missing.append(f"the content of {latest}")
    return missing


def _holds_files(files: tuple[FoundFile, ...], folder: str | None) -> bool:
    return any(file.kind is not Kind.DIRECTORY and file.top == folder != file.name for file in files)


def newest(checkpoints: tuple[Checkpoint, ...], *statuses: Status) -> Checkpoint | None:
    """The one with the highest step among those of these statuses."""
    return max((each for each in checkpoints if each.status in statuses), key=lambda each: each.step, default=None)
