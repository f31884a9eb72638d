"""How much of each GPU's memory a run needs. Pure. docs/estimates.md has the formula in words, and its error.

A step has moments, and each holds other things: the largest moment is the peak. Sizes are of one process, one GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from typing_extensions import assert_never

from sifkit import yamlfile
from sifkit.estimate.model import Linear, Shape, Value, freeze, lora, oft, targets
from sifkit.estimate.settings import Half, Method, Settings, Sharding, Unknown, read_settings
from sifkit.model import Strict

_TABLE = Path(__file__).parent.parent / "data" / "memory.yaml"
FLOAT, SHORT = 4, 2  # bytes of a number


class Optimizer(Strict):
    """What an optimizer keeps for each number that is trained."""

    names: tuple[str, ...]
    states: int
    bytes: Literal["own", "1", "4"]
    embedding_bytes: int | None = None
    step: int = 0  # numbers that a step takes beside them
    paged: bool = False
    source: str


class Measured(Strict):
    """What every process takes, as measured."""

    context: int  # bytes: CUDA, its libraries and kernels
    nccl: int  # bytes more with several processes
    slack: float  # part of what is allocated that the allocator holds beyond it
    source: str


class _Table(Strict):
    optimizers: tuple[Optimizer, ...]
    measured: Measured


@cache
def _table() -> _Table:
    return yamlfile.load(_TABLE, _Table)


def measured() -> Measured:
    """The constants that come from measuring."""
    return _table().measured


def known_optimizer(name: str) -> Optimizer | None:
    """By LLaMA-Factory's `optim`."""
    return next((row for row in _table().optimizers if name in row.names), None)


@dataclass(frozen=True)
class Trained:
    """What is trained, in numbers."""

    count: int
    embeddings: int  # of them, in embeddings: some optimizers keep more for those
    layers: int  # that gradients pass
    adapted: tuple[Linear, ...] | None  # that have an adapter; None: whole matrices are trained
    frozen: int


@dataclass(frozen=True)
class Estimate:
    """Bytes of one GPU at the peak, by what they are."""

    weights: int
    gradients: int
    optimizer: int
    activations: int  # of layers, with what they are recomputed from
    logits: int
    buffers: int  # of DeepSpeed, of DDP, of the optimizer's step; copies of weights in half precision
    overhead: int  # CUDA, NCCL, the allocator
    moment: str  # when the peak is
    certain: int  # weights, gradients and optimizer, which lie there together whatever the rows are

    @property
    def allocated(self) -> int:
        """Bytes of tensors, as torch.cuda.max_memory_allocated() tells."""
        parts = (self.weights, self.gradients, self.optimizer, self.activations, self.logits, self.buffers)
        return sum(parts)

    @property
    def total(self) -> int:
        """All bytes, as nvidia-smi counts them."""
        return self.allocated + self.overhead


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


def trained(settings: Settings, shape: Shape, value: Value) -> Trained | Unknown:
    """How much is trained. Source: LLaMA-Factory 0.9.5 model/adapter.py."""
    match settings.method:
        case Method.FULL:
            return Trained(shape.text, shape.embeddings, shape.layers, None, shape.vision)
        case Method.FREEZE:
            layers = freeze(shape, value)
            if layers is None:
                return Unknown("freeze_trainable_modules or freeze_extra_modules name single modules")
            return Trained(layers[0], 0, layers[1], None, shape.total - layers[0])
        case Method.LORA | Method.OFT:
            is_lora = settings.method is Method.LORA
            count = (lora if is_lora else oft)(shape, value)
            adapted = targets(shape, value("lora_target" if is_lora else "oft_target"))
            if count is None or adapted is None:
                return Unknown("the modules that get an adapter are not known of this model")
            whole = min(count, shape.embeddings) if value("additional_target") else 0
            return Trained(count, whole, shape.layers, adapted, shape.total)
        case _:
            assert_never(settings.method)


@dataclass(frozen=True)
class Run:
    """All that the sizes follow from."""

    settings: Settings
    shape: Shape
    trained: Trained
    optimizer: Optimizer
    processes: int
    stored: int  # bytes of a number in the model's files

    @property
    def number(self) -> int:
        """Bytes of a number while computing."""
        whole = self.settings.method in (Method.FULL, Method.FREEZE)
        if self.settings.half is Half.NONE:
            return FLOAT if whole else self.stored
        return SHORT

    @property
    def stream(self) -> int:
        """Bytes of a number between layers: autocast leaves it in the embedding's type."""
        fp32 = self.settings.half is Half.MIXED and self.settings.method is Method.FULL and not self._casts_all
        return FLOAT if fp32 else self.number

    @property
    def _casts_all(self) -> bool:
        """DeepSpeed and FSDP cast the model itself, and leave nothing to autocast."""
        return self.settings.sharding.deepspeed or self.settings.sharding.fsdp

    @property
    def own(self) -> int:
        """Bytes of a trained number as the optimizer gets it."""
        return self.stored if self.settings.half is Half.PURE else FLOAT

    @property
    def copies(self) -> int:
        """Bytes of weights that autocast copies into half precision, and keeps until the forward pass ends."""
        if self.settings.half is not Half.MIXED or self._casts_all:
            return 0
        if self.settings.method is Method.FULL:
            return SHORT * (self.shape.matrices + self.shape.embedding)
        return SHORT * self.trained.count


# ---------------------------------------------------------------------------------------------- what lies there always


@dataclass(frozen=True)
class Static:
    """What lies there between steps, and what each moment adds: bytes."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int  # while gradients are made
    step: int  # while the optimizer steps
    live: int = 0  # whole weights of sharded ones, while layers use them
    always: int = 0  # what DDP reduces gradients in


def static(run: Run) -> Static:
    """By how the model is spread."""
    sharding = run.settings.sharding
    if sharding.deepspeed and run.settings.half is not Half.NONE:
        return _zero(run, sharding)
    return _fsdp(run, sharding) if sharding.fsdp else _replicated(run)


def _replicated(run: Run) -> Static:
    count, own = run.trained.count, run.own
    gradients = count * own
    return Static(
        weights=_frozen(run) + count * own,
        gradients=gradients,
        optimizer=_states(run, own),
        buffers=0,
        always=gradients if run.processes > 1 else 0,  # DDP's own buckets (torch nn/parallel/distributed.py)
        step=run.optimizer.step * count * own,
    )


def _states(run: Run, own: int) -> int:
    """Of the optimizer."""
    row, count = run.optimizer, run.trained.count
    each = own if row.bytes == "own" else int(row.bytes)
    wide = run.trained.embeddings * row.states * ((row.embedding_bytes or each) - each)
    return count * row.states * each + wide


def _frozen(run: Run) -> int:
    """Weights that are not trained; quantised, bitsandbytes leaves embeddings, norms and lm_head alone."""
    settings, shape, count = run.settings, run.shape, run.trained.frozen
    if settings.bits not in (4, 8):
        return count * run.stored
    # A scale for each 64 numbers in 4 bits, itself in 8 bits with double quantisation; in 8 bits one for each row.
    scale = (1 / 64 + 4 / 64 / 256 if settings.double else 4 / 64) if settings.bits == 4 else 0.0
    matrices = sum(each.weights for each in shape.linears)
    return int(matrices * (settings.bits / 8 + scale)) + (count - matrices) * run.stored


def _zero(run: Run, sharding: Sharding) -> Static:
    """DeepSpeed casts all to half precision, and keeps fp32 weights beside its states.

    Source: deepspeed 0.19.8 runtime/zero/stage_1_and_2.py, stage3.py, runtime/bf16_optimizer.py.
    """
    count, processes, stage = run.trained.count, run.processes, sharding.stage
    part = -(-count // processes)
    whole = SHORT * count + (_frozen(run) if run.settings.bits else SHORT * run.trained.frozen)
    states = FLOAT * part + _states(run, FLOAT) // processes
    bucket = SHORT * sharding.bucket * (2 if sharding.overlap else 1)  # allocated whole
    off = sharding.offload_optimizer
    if stage < 3:
        gradients = SHORT * (part if stage == 2 else count)
        return Static(
            weights=whole,
            gradients=0 if off and stage == 2 else gradients,
            optimizer=0 if off else states,
            buffers=bucket,
            step=0 if off else FLOAT * part,
        )
    weights = whole // processes
    return Static(
        weights=0 if sharding.offload_weights else weights,
        gradients=0 if off else SHORT * part,
        optimizer=0 if off else states,
        buffers=SHORT * run.shape.hidden**2,
        step=0 if off else FLOAT * min(sharding.group, part),
        live=min(whole, SHORT * sharding.live),
    )


def _fsdp(run: Run, sharding: Sharding) -> Static:
    """Shards of fp32, whole layers in half precision. Source: accelerate 1.11.0 utils/fsdp_utils.py."""
    parts, own, shape = run.processes, run.own, run.shape
    weights, states = (_frozen(run) + run.trained.count * own) // parts, _states(run, own) // parts
    return Static(
        weights=0 if sharding.offload_weights else weights,
        gradients=0 if sharding.offload_weights else run.trained.count * own // parts,
        optimizer=0 if sharding.offload_optimizer else states,
        buffers=0,
        step=0 if sharding.offload_optimizer else run.optimizer.step * run.trained.count * own // parts,
        live=run.number * (2 * shape.layer + shape.embeddings),
    )


# ---------------------------------------------------------------------------------------------- what a batch adds


@dataclass(frozen=True)
class Activity:
    """Bytes that a batch adds."""

    kept: int  # of all layers, from the forward pass on
    layer: int  # of the layer that is being differentiated, beyond what was kept of it
    forward: int  # logits, when the loss is known
    backward: int  # logits and their gradients
    evaluation: int


def activations(run: Run) -> Activity:
    """Of one forward and backward pass with rows of cutoff_len."""
    settings, shape, tokens = run.settings, run.shape, run.settings.tokens
    saved, working = tokens * _saved(run), tokens * _working(run)
    if settings.checkpointing:
        kept = 0 if settings.checkpoints_on_host else run.trained.layers * tokens * shape.hidden * run.stream
        layer = saved + working
    else:
        kept, layer = run.trained.layers * saved, working
    if settings.stage == "rm":  # asks for the hidden states of all layers
        kept += shape.layers * tokens * shape.hidden * run.stream
    forward, backward = _logits(run)
    each = (settings.eval_batch or 0) * settings.cutoff * (settings.sequences // settings.batch)
    return Activity(kept, layer, forward, backward, each * (_evaluated(run) + working // tokens))


def _saved(run: Run) -> int:
    """Bytes of one token that a layer keeps for its gradients, with PyTorch's own attention.

    Two norms: their input in fp32, and what is multiplied by a weight that is trained. Of each matrix that is trained
    or has an adapter: its input. Attention: queries, keys, values, result. MLP: gate, its activation, and up.
    Source: transformers 5.6.0 models/llama/modeling_llama.py, peft 0.18.1 tuners/lora/layer.py.
    """
    shape, number = run.shape, run.number
    norms = 2 * shape.hidden * (FLOAT + (run.stream if run.trained.adapted is None else 0))
    linears = run.shape.linears if run.trained.adapted is None else run.trained.adapted
    inputs = sum(each.inputs * min(each.count, shape.layers) for each in linears) // shape.layers
    if not any(each.name == "down_proj" for each in linears) and run.trained.adapted is None:
        inputs += shape.hidden + shape.wide  # experts
    attention = 2 * shape.queries + 2 * shape.keys
    scores = shape.heads * run.settings.cutoff * (FLOAT + 2 * number) if run.settings.eager else 0
    return norms + number * (inputs + attention + 3 * shape.wide) + scores


def _working(run: Run) -> int:
    """Bytes of one token that a layer's backward pass uses and drops: gradients of its widest parts."""
    shape, number = run.shape, run.number
    casts = FLOAT * shape.wide if run.trained.adapted is not None else 0  # an adapter's input, in fp32
    return 2 * number * shape.wide + casts + 2 * run.stream * shape.hidden


def _logits(run: Run) -> tuple[int, int]:
    """Forward and backward.

    Loss: logits in half precision, again in fp32, log_softmax; then its gradient, that of its input, and
    log_softmax. DPO holds logits and log_softmax while the reference's are made.
    Source: transformers 5.6.0 loss/loss_utils.py; LLaMA-Factory 0.9.5 train/dpo/trainer.py, train/trainer_utils.py.
    """
    settings, number = run.settings, run.number
    size = settings.tokens * run.shape.vocab
    if settings.fused_loss:
        size = settings.tokens * run.shape.hidden
        return size * FLOAT, size * 2 * FLOAT
    if settings.stage == "rm":
        return size * (number + FLOAT), 0
    once = size * (2 * FLOAT + (number if number < FLOAT else 0))
    held = size * 2 * FLOAT if settings.reference else 0
    return held + once, size * 3 * FLOAT


def _evaluated(run: Run) -> int:
    """Bytes of one token: logits and log_softmax, with no gradients."""
    number = run.number
    return run.shape.vocab * (2 * FLOAT + (number if number < FLOAT else 0))


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
    copies = run.copies if not run.settings.checkpointing else 0  # else each layer's own
    head = SHORT * run.shape.embedding if run.copies and run.trained.adapted is None else 0
    return (
        _Moment("loss", before, batch.kept, batch.forward, run.copies + held.live),
        _Moment("gradient of the loss", before, batch.kept, batch.backward, max(copies, head) + held.live),
        _Moment("gradients of layers", held.gradients, batch.kept + batch.layer, 0, held.buffers + copies + held.live),
        _Moment("optimizer step", held.gradients, 0, 0, held.step),
        _Moment("evaluation", 0, 0, batch.evaluation, run.copies + held.live),
    )


def _peak(run: Run, held: Static, batch: Activity) -> Estimate:
    peak = max(_moments(run, held, batch), key=lambda moment: moment.size)
    constants = measured()
    allocated = held.weights + held.optimizer + held.always + peak.size + _reference(run)
    overhead = constants.context + (constants.nccl if run.processes > 1 else 0)
    paged = held.optimizer if run.optimizer.paged else 0
    return Estimate(
        weights=held.weights + _reference(run),
        gradients=peak.gradients,
        optimizer=held.optimizer,
        activations=peak.activations,
        logits=peak.logits,
        buffers=peak.buffers + held.always,
        overhead=overhead + int(allocated * constants.slack),
        moment=peak.name,
        certain=held.weights + held.gradients + held.optimizer - paged + _reference(run),
    )


def _reference(run: Run) -> int:
    """DPO's other model, where whole weights are trained; an adapter is switched off instead."""
    settings = run.settings
    if not settings.reference or run.trained.adapted is not None:
        return 0
    return run.shape.total * run.stored // (run.processes if settings.sharding.stage == 3 else 1)
