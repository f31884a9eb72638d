"""How much room a run's checkpoints take. Pure.

A checkpoint: what is trained (an adapter, or all weights), the optimizer's states, and little else. Sources:
transformers 5.6.0 trainer.py, _save_checkpoint; deepspeed 0.19.8 runtime/engine.py, save_checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sifkit.estimate.model import Shape, Value
from sifkit.estimate.numbers import is_count, is_number
from sifkit.estimate.settings import Half, Method, Settings, Unknown, read_settings
from sifkit.estimate.training import FLOAT, SHORT, Optimizer, known_optimizer, trained

_BESIDE = 20_000_000  # bytes: tokenizer, scheduler, random state, trainer_state.json


@dataclass(frozen=True)
class Saves:
    """When checkpoints are written, and how many of them stay."""

    every: int | None  # steps; None: not known, or at the end of each epoch
    count: int | None  # over the whole run; None: not known
    kept: int | None  # most at one time, the newest included while an older one is not yet removed


@dataclass(frozen=True)
class Disk:
    """Bytes below output_dir."""

    checkpoint: int
    final: int  # the model at the end, beside the checkpoints
    peak: int | None  # None: how many checkpoints there will be is not known


def read_saves(value: Value, steps: int | None) -> Saves | None:
    """By save_strategy, save_steps and save_total_limit; None: nothing is saved before the end.

    Source: transformers 5.6.0 trainer_callback.py DefaultFlowCallback, trainer_utils.py rotate_checkpoints.
    """
    strategy = str(value("save_strategy") or "steps").lower()
    if strategy in ("no", "false"):
        return None
    every = _save_steps(value, steps) if strategy == "steps" else None
    if strategy == "epoch":
        epochs = value("num_train_epochs")
        epochs = 3.0 if epochs is None else epochs
        count = math.ceil(epochs) if is_number(epochs) else None
    else:
        count = -(-steps // every) if steps and every else None  # the last step is saved, too
    limit = value("save_total_limit")
    if is_count(limit):
        return Saves(every, count, min(limit + 1, count) if count else limit + 1)
    return Saves(every, count, count)


def _save_steps(value: Value, steps: int | None) -> int | None:
    """Below 1 it is a part of the run's steps."""
    given = value("save_steps")
    given = 500 if given is None else given
    if not is_number(given) or given <= 0:
        return None
    if given < 1:
        return max(1, math.ceil(given * steps)) if steps else None
    return int(given)


def disk(
    shape: Shape,
    value: Value,
    *,
    stored: int,
    steps: int | None,
    deepspeed: Mapping[str, Any] | None = None,
) -> Disk | Unknown:
    """What the run writes. `stored`: bytes of a number in the model's files."""
    settings = read_settings(value, deepspeed)
    if isinstance(settings, Unknown):
        return settings
    optimizer = known_optimizer(settings.optim)
    if optimizer is None:
        return Unknown(f"there is no estimate for optim: {settings.optim}")
    found = trained(settings, shape, value)
    if isinstance(found, Unknown):
        return found
    weights = _weights(settings, shape, found.count, stored)
    only_model = value("save_only_model") is True
    checkpoint = weights + _BESIDE + (0 if only_model else _states(settings, optimizer, found.count, stored))
    saves = read_saves(value, steps)
    if saves is None:
        return Disk(checkpoint, weights, weights)
    peak = None if saves.kept is None else saves.kept * checkpoint + weights
    return Disk(checkpoint, weights, peak)


def _weights(settings: Settings, shape: Shape, count: int, stored: int) -> int:
    """An adapter, or all weights: those that were trained in fp32 are saved so, but for DeepSpeed's."""
    half = settings.sharding.deepspeed and settings.half is not Half.NONE
    own = SHORT if half else stored if settings.half is Half.PURE else FLOAT
    match settings.method:
        case Method.LORA | Method.OFT:
            return count * own
        case _:
            return count * own + (shape.total - count) * stored


def _states(settings: Settings, optimizer: Optimizer, count: int, stored: int) -> int:
    own = stored if settings.half is Half.PURE else FLOAT
    states = count * optimizer.states * (own if optimizer.bytes == "own" else int(optimizer.bytes))
    if settings.sharding.deepspeed and settings.half is not Half.NONE:  # fp32 weights, and the engine's own copy
        return states + count * (FLOAT + SHORT)
    return states
