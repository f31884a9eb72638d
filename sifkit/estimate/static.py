"""What of a model lies in each GPU's memory all the time, and how DeepSpeed and FSDP spread it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sifkit.estimate.settings import Half, Sharding
from sifkit.estimate.training import FLOAT, SHORT, Run


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
    fresh: int = 0  # gradients of this pass beside the accumulated ones


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
    bucket += SHORT * min(sharding.bucket, run.shape.embedding if run.trained.embeddings else 0)  # flattened once more
    off = sharding.offload_optimizer
    if stage < 3:
        gradients = SHORT * (part if stage == 2 else count)
        return Static(
            weights=whole,
            gradients=0 if off and stage == 2 else gradients,
            optimizer=0 if off else states,
            buffers=bucket,
            step=0 if off else (FLOAT + SHORT) * part,  # gradients made one, then cast
            fresh=gradients if stage == 2 and not off and run.settings.accumulates else 0,
        )
    weights = whole // processes
    return Static(
        weights=0 if sharding.offload_weights else weights,
        gradients=0 if off else SHORT * part,
        optimizer=0 if off else states,
        buffers=SHORT * run.shape.hidden**2,
        step=0 if off else (FLOAT + SHORT) * min(sharding.group, part),  # gradients made one, then cast
        live=min(whole, SHORT * sharding.live) if processes > 1 else 0,  # one process gathers nothing
    )


def _fsdp(run: Run, sharding: Sharding) -> Static:
    """Shards of fp32, whole layers in half precision.

    Source: accelerate 1.11.0 accelerator.py, prepare_model (FSDP 1); utils/fsdp_utils.py, fsdp2_prepare_model.
    """
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
