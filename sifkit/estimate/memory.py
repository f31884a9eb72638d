"""How much of each GPU's memory a run needs. Pure. docs/estimates.md has the formula in words, and its error.

A step has moments, and each holds other things: the largest moment is the peak. Sizes are of one process, one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sifkit.estimate.activity import Activity, activations
from sifkit.estimate.model import Shape, Value
from sifkit.estimate.settings import Unknown, read_settings
from sifkit.estimate.static import Static, static
from sifkit.estimate.training import SHORT, Run, known_optimizer, measured, trained


@dataclass(frozen=True)
class Estimate:
    """Bytes of one GPU at the peak, by what they are."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of layers, with what they are recomputed from
    logits: int
    buffers: int  # of DeepSpeed, of DDP, of the optimizer's step; copies of weights in half precision
    overhead: int  # CUDA, NCCL
    slack: int  # what the allocator cannot do without
    cached: int  # what the allocator keeps of other moments, and gives back where memory is short
    moment: str  # when the peak is
    certain: int  # weights, gradients and optimizer, which lie there together whatever the rows are

    @property
    def allocated(self) -> int:
        """Bytes of tensors, as torch.cuda.max_memory_allocated() tells."""
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.logits, self.buffers)
        return sum(parts)

    @property
    def total(self) -> int:
        """All bytes that the run needs."""
        return self.allocated + self.slack + self.overhead

    @property
    def reserved(self) -> int:
        """Bytes that the allocator holds, as torch.cuda.max_memory_reserved() tells, where there is room for all."""
        return self.allocated + self.slack + self.cached

    @property
    def shown(self) -> int:
        """All bytes as nvidia-smi counts them, on a GPU with room for what the allocator keeps."""
        return self.reserved + self.overhead


def memory(
    shape: Shape, value: Value, *, processes: int, stored: int, deepspeed: Mapping[str, Any] | None = None
) -> Estimate | Unknown:
    """The estimate for one GPU. `stored`: bytes of a number in the model's files. `deepspeed`: its configuration."""
    settings = read_settings(value, deepspeed)
    if isinstance(settings, Unknown):
        return settings
    optimizer = known_optimizer(settings.optim)
    if optimizer is None:
        return Unknown(f"there is no estimate for optim: {settings.optim}")
    found = trained(settings, shape, value)
    if isinstance(found, Unknown):
        return found
    run = Run(settings, shape, found, optimizer, processes, stored)
    held, activity = static(run), activations(run)
    return _peak(run, held, activity)


# ---------------------------------------------------------------------------------------------- the peak


@dataclass(frozen=True)
class _Moment:
    name: str
    gradients: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0

    @property
    def size(self) -> int:
        return self.gradients + self.activations + self.logits + self.buffers


def _moments(run: Run, held: Static, batch: Activity) -> tuple[_Moment, ...]:
    """Of one step, after the first. Gradients lie there before it when they are accumulated."""
    before = held.gradients if run.settings.accumulates else 0
    kept = batch.kept + batch.last
    copies = run.copies if not run.settings.checkpointing else 0  # else each layer's own
    head = SHORT * run.shape.embedding if run.copies and run.trained.embeddings else 0
    waiting, both = _embedding_gradients(run)
    layers = held.buffers + copies + held.live + held.fresh + waiting
    return (
        _Moment("loss", before, kept, batch.forward, run.copies + held.live),
        _Moment("gradient of the loss", before, kept, batch.backward, max(copies, head) + held.live),
        _Moment("gradients of layers", held.gradients, batch.kept + batch.layer, 0, layers),
        _Moment("gradient of the embeddings", held.gradients, 0, 0, held.buffers + held.fresh + both),
        _Moment("optimizer step", held.gradients, 0, 0, held.step),
        _Moment("evaluation", 0, 0, batch.evaluation, run.copies + held.live),
    )


def _embedding_gradients(run: Run) -> tuple[int, int]:
    """Those of this pass beside the accumulated ones: while layers have theirs made, and at the end.

    Tied embeddings get two, of lm_head and of the input: the first waits for the second (torch/csrc/autograd
    input_buffer.cpp). What is not accumulated becomes the parameter's own gradient.
    """
    size = run.gradient * run.shape.embedding if run.trained.embeddings else 0
    earlier = size if run.settings.accumulates else 0
    return (earlier, earlier + size) if run.shape.tied else (0, earlier)


def _peak(run: Run, held: Static, batch: Activity) -> Estimate:
    peak = max(_moments(run, held, batch), key=lambda moment: moment.size)
    constants = measured()
    always = held.always + constants.workspace
    allocated = held.weights + held.optimizer + always + peak.size + _reference(run)
    overhead = constants.context + (constants.nccl if run.processes > 1 else 0)
    paged = held.optimizer if run.optimizer.paged else 0
    return Estimate(
        weights=held.weights + _reference(run),
        gradients=peak.gradients,
        optimizer=held.optimizer,
        activations=peak.activations,
        logits=peak.logits,
        buffers=peak.buffers + always,
        overhead=overhead,
        slack=int(allocated * constants.slack),
        cached=_cached(run, held, batch, peak),
        moment=peak.name,
        certain=held.weights + held.gradients + held.optimizer - paged + _reference(run),
    )


def _cached(run: Run, held: Static, batch: Activity, peak: _Moment) -> int:
    """Blocks of other moments, of sizes that this one has no use for: the allocator keeps them, and frees them before
    it runs out. Logits in half precision, or all that training had; half of a layer's; gradients and their buffers."""
    settings = run.settings
    if peak.name == "evaluation":
        return batch.backward + batch.layer // 2
    logits = 0 if peak.name == "loss" or settings.fused_loss else settings.tokens * run.shape.vocab * run.number
    in_layers = peak.name in ("gradients of layers", "gradient of the embeddings")
    whole = run.trained.embeddings and run.settings.sharding.stage < 3
    embedding = run.gradient * run.shape.embedding if whole else 0
    return logits + batch.layer // 2 + (0 if in_layers else embedding + held.buffers)


def _reference(run: Run) -> int:
    """DPO's other model, where whole weights are trained; an adapter is switched off instead."""
    settings = run.settings
    if not settings.reference or run.trained.adapted is not None:
        return 0
    return run.shape.total * run.stored // (run.processes if settings.sharding.stage == 3 else 1)
