"""How many steps and tokens a run has. Pure.

Steps as transformers counts them (transformers 5.6.0 trainer.py, set_initial_training_values): batches of one process,
divided by accumulation and rounded up, times epochs and rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sifkit.check.facts import DatasetFacts
from sifkit.estimate.model import Value
from sifkit.estimate.numbers import is_count, is_number
from sifkit.estimate.settings import Unknown

_PAIRED = ("dpo", "rm")
_PACKED = 0.97  # of the places in packed rows that get a token: greedy_knapsack in LLaMA-Factory data/processor


@dataclass(frozen=True)
class Batch:
    """What one step of the optimizer sees: sequences of the dataset, or packed ones."""

    per_device: int
    accumulation: int
    processes: int

    @property
    def size(self) -> int:
        """Rows of one step, over all GPUs and nodes."""
        return self.per_device * self.accumulation * self.processes


@dataclass(frozen=True)
class RunLength:
    """A whole run. None: the rows could not be counted."""

    batch: Batch
    steps: int | None
    rows: int | None  # of one epoch, as the trainer gets them
    tokens: int | None  # of the whole run, padding aside


def read_batch(value: Value, processes: int) -> Batch | Unknown:
    """The effective batch."""
    found = []
    for key, default in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1)):
        number = value(key)
        number = default if number is None else number
        if not is_count(number):
            return Unknown(f"{key} is {number!r}")
        found.append(number)
    return Batch(found[0], found[1], processes)


def run_length(value: Value, datasets: Sequence[DatasetFacts], processes: int) -> RunLength | Unknown:
    """Steps and tokens, as far as the datasets' rows are known."""
    batch = read_batch(value, processes)
    if isinstance(batch, Unknown):
        return batch
    rows, mean = _rows(value, datasets)
    most = value("max_steps")
    if is_count(most):
        return RunLength(batch, most, rows, _tokens(mean, most * batch.size))
    if rows is None:
        return RunLength(batch, None, None, None)
    epochs = value("num_train_epochs")
    epochs = 3.0 if epochs is None else epochs
    if not is_number(epochs) or epochs <= 0:
        return Unknown(f"num_train_epochs is {epochs!r}")
    each = steps_of_epoch(rows, batch, drops=value("dataloader_drop_last") is True)
    return RunLength(batch, math.ceil(epochs * each), rows, _tokens(mean, int(epochs * rows)))


def steps_of_epoch(rows: int, batch: Batch, *, drops: bool) -> int:
    """Of the optimizer. accelerate gives every process as many batches as the one with most (even_batches)."""
    if drops:
        batches = rows // batch.per_device // batch.processes
    else:
        batches = math.ceil(math.ceil(rows / batch.per_device) / batch.processes)
    return max(1, math.ceil(batches / batch.accumulation))


def _tokens(mean: float | None, rows: int) -> int | None:
    return None if mean is None else int(mean * rows)


def _rows(value: Value, datasets: Sequence[DatasetFacts]) -> tuple[int | None, float | None]:
    """Rows of one epoch, and their mean tokens; None for what is not known."""
    chosen = [each for each in datasets if each.key == "dataset"]
    mixed = (value("mix_strategy") or "concat") != "concat" or value("streaming") is True or value("interleave_probs")
    if not chosen or mixed or any(each.rows is None for each in chosen):
        return None, None
    counts = [_taken(each, value("max_samples")) for each in chosen]
    rows = _without_validation(sum(counts), value("val_size"))
    if any(each.mean_tokens is None for each in chosen) or not sum(counts):
        return (None if _packs(value) else rows), None
    cutoff = value("cutoff_len") or 2048
    if not is_count(cutoff):
        return (None if _packs(value) else rows), None
    mean = sum(min(each.mean_tokens or 0.0, cutoff) * count for each, count in zip(chosen, counts, strict=True))
    mean = mean / sum(counts) * (2 if value("stage") in _PAIRED else 1)
    if not _packs(value):
        return rows, mean
    packed = max(1, math.ceil(rows * mean / (cutoff * _PACKED)))
    return packed, rows * mean / packed


def _taken(dataset: DatasetFacts, most: object) -> int:
    """Rows of a dataset that are used. Source: LLaMA-Factory 0.9.5 data/loader.py, _load_single_dataset."""
    asked = (dataset.entry or {}).get("num_samples")
    rows = asked if is_count(asked) else dataset.rows or 0
    return min(rows, most) if is_count(most) else rows


def _packs(value: Value) -> bool:
    """Source: LLaMA-Factory 0.9.5 hparams/parser.py: pre-training packs unless told otherwise; pairs never."""
    packing, stage = value("packing"), value("stage") or "sft"
    return stage in ("pt", "sft") and bool(packing if packing is not None else stage == "pt" or value("neat_packing"))


def _without_validation(rows: int, size: object) -> int:
    """`val_size`: rows above 1, else a part (LLaMA-Factory 0.9.5 data/data_utils.py, split_dataset)."""
    if not is_number(size) or size <= 0:
        return rows
    return max(1, rows - (int(size) if size > 1 else math.ceil(rows * size)))
