"""GPU: what the run needs of its memory, and number types that do not go together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sifkit.check.facts import Facts, Kind, TargetGpu
from sifkit.check.needs import gib, memory_of, shape_of, stored
from sifkit.check.rule import Edit, Found, NotChecked, Severity, rule
from sifkit.check.rules.gpu import names, on_gpu, target
from sifkit.estimate.memory import Estimate
from sifkit.estimate.numbers import is_count
from sifkit.estimate.settings import Unknown

_NEEDS = (Kind.CHECKOUT, Kind.SITE, Kind.JOB)
_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
_DOCS = "docs/estimates.md: the formula, and its error against measured runs"


def _trains_on_gpu(facts: Facts) -> bool:
    return on_gpu(facts) and facts.value("do_train") is True


@rule(
    "GPU005",
    "memory-too-small",
    Severity.WARNING,
    needs=_NEEDS,
    prevents="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate",
    why="weights, their gradients and the optimizer's states lie in the GPU's memory together, and beside them what a "
    "batch of rows of cutoff_len adds",
    fix="a smaller batch or cutoff_len, an adapter instead of all weights, quantisation, or more GPUs with ZeRO-3",
    source=_DOCS,
)
def memory_too_small(facts: Facts) -> Iterator[Found | NotChecked]:
    """The run needs more memory than a GPU has: an error where weights, gradients and optimizer alone do."""
    if not _trains_on_gpu(facts):
        return
    estimate = memory_of(facts)
    if isinstance(estimate, Unknown):
        yield NotChecked(estimate.reason)
        return
    gpus = [gpu for gpu in target(facts)[0].gpus if gpu.memory]
    if not gpus:
        yield NotChecked("the memory of the GPUs is not known")
        return
    small = tuple(gpu for gpu in gpus if (gpu.memory or 0) < estimate.total)
    if small:
        yield _too_small(facts, estimate, small, all_of_them=len(small) == len(gpus))


def _too_small(facts: Facts, estimate: Estimate, small: tuple[TargetGpu, ...], *, all_of_them: bool) -> Found:
    most = max(gpu.memory or 0 for gpu in small)
    largest = max(gpu.largest or gpu.memory or 0 for gpu in small)
    variants = f", of its variants the largest {gib(largest)}" if largest > most else ""
    has = f"{names(small)} has {gib(most)}{variants}"
    key = "per_device_train_batch_size"
    if all_of_them and estimate.certain > largest:
        message = f"weights, gradients and optimizer need {gib(estimate.certain)} of each GPU, and {has}"
        return Found(message, _fix(facts, most), "finetuning_type", severity=Severity.ERROR)
    other = "" if all_of_them else f", or ask for another GPU than {names(small)}"
    message = f"at its peak the run needs about {gib(estimate.total)} of each GPU, and {has}: {_parts(estimate)}"
    return Found(message, _fix(facts, most) + other, key if key in facts.config.values else None)


def _parts(estimate: Estimate) -> str:
    parts = {
        "weights": estimate.weights,
        "gradients": estimate.gradients,
        "optimizer": estimate.optimizer,
        "activations": estimate.activations,
        "logits": estimate.logits,
        "buffers": estimate.buffers,
        "CUDA and the allocator": estimate.overhead + estimate.slack,
    }
    said = sorted(((size, name) for name, size in parts.items() if size > estimate.total // 100), reverse=True)
    return ", ".join(f"{name} {gib(size)}" for size, name in said)


def _fix(facts: Facts, limit: int) -> str:
    """The first change, of those that cost least, with which the estimate fits; changes add up."""
    changes: dict[str, Any] = {}
    for step in _steps(facts):
        changes |= step
        if _fits(facts, changes, limit):
            return _said(_needed(facts, changes, limit))
    other = {**changes, "quantization_bit": 4}
    if facts.image and "bitsandbytes" not in facts.image.packages and _fits(facts, other, limit):
        return f"{_said(_needed(facts, other, limit))}, with an image that has bitsandbytes; or more GPUs with ZeRO-3"
    return "more GPUs with DeepSpeed ZeRO-3, or a smaller model"


def _fits(facts: Facts, changes: Mapping[str, Any], limit: int) -> bool:
    found = memory_of(facts, changes)
    return isinstance(found, Estimate) and found.total <= limit


def _needed(facts: Facts, changes: dict[str, Any], limit: int) -> dict[str, Any]:
    """Without those that make no difference after all. A smaller batch and its accumulation stay together."""
    for key in [*changes]:
        if key == "finetuning_type" and "quantization_bit" in changes:
            continue  # which goes with adapters alone
        dropped = _BATCH if key in _BATCH else (key,)
        fewer = {name: value for name, value in changes.items() if name not in dropped}
        if _fits(facts, fewer, limit):
            changes = fewer
    return changes


def _said(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {_word(value)}" for key, value in changes.items())


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _steps(facts: Facts) -> Iterator[dict[str, Any]]:
    """Changes, from those that change only how fast it trains to those that change what is trained."""
    packages = facts.image.packages if facts.image else {}
    if facts.value("disable_gradient_checkpointing") is True:
        yield {"disable_gradient_checkpointing": False}
    if "liger-kernel" in packages and facts.value("stage") in ("pt", "sft", None):
        yield {"enable_liger_kernel": True}
    yield from _smaller_batches(facts)
    evaluated = facts.value("per_device_eval_batch_size")
    if evaluated != 1 and str(facts.value("eval_strategy") or "no") != "no":
        yield {"per_device_eval_batch_size": 1}
    if facts.value("finetuning_type") in ("full", "freeze"):
        yield {"finetuning_type": "lora"}
    if "bitsandbytes" in packages and not facts.value("quantization_bit"):
        yield {"quantization_bit": 4}
    cutoff = facts.value("cutoff_len") or 2048
    while is_count(cutoff) and cutoff > 512:
        cutoff //= 2
        yield {"cutoff_len": cutoff}


def _smaller_batches(facts: Facts) -> Iterator[dict[str, Any]]:
    """With as much more accumulation, so that the effective batch stays."""
    batch, accumulation = facts.value("per_device_train_batch_size"), facts.value("gradient_accumulation_steps") or 1
    batch = 8 if batch is None else batch
    while is_count(batch) and is_count(accumulation) and batch > 1 and batch % 2 == 0:
        batch, accumulation = batch // 2, accumulation * 2
        yield {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}


@rule(
    "GPU006",
    "memory-estimate",
    Severity.INFO,
    needs=_NEEDS,
    prevents="a GPU that is too small, or one that stays nearly empty",
    why="the peak follows from the model's sizes, the method, the batch and cutoff_len",
    fix="nothing needs to be done; a larger batch may use what is left",
    source=_DOCS,
)
def memory_estimate(facts: Facts) -> Iterator[Found | NotChecked]:
    """How much memory of each GPU the run needs at its peak, when every row has cutoff_len tokens."""
    if not _trains_on_gpu(facts):
        return
    estimate = memory_of(facts)
    gpus = [gpu for gpu in target(facts)[0].gpus if gpu.memory]
    if isinstance(estimate, Unknown) or not gpus:
        return  # GPU005 says why
    least = min(gpus, key=lambda gpu: gpu.memory or 0)
    if estimate.total <= (least.memory or 0):
        message = f"at its peak the run needs about {gib(estimate.total)} of the {gib(least.memory or 0)} of each "
        message += f"{least.model}, with rows of cutoff_len: {_parts(estimate)}"
        if estimate.cached > estimate.total // 20:
            message += f"; with what the allocator keeps unused, nvidia-smi shows up to {gib(estimate.shown)}"
        yield Found(message, "nothing needs to be done")


@rule(
    "GPU012",
    "frozen-in-half-precision",
    needs=(Kind.CHECKOUT,),
    prevents="RuntimeError: expected m1 and m2 to have the same dtype, but got: float != c10::BFloat16",
    why="freeze tuning casts the layers that it trains to fp32, and leaves the others as they are stored; only "
    "autocast, which bf16 and fp16 turn on, lets the two follow each other",
    fix="bf16: true",
    source="LLaMA-Factory 0.9.5 model/adapter.py, init_adapter and _setup_freeze_tuning; met with transformers 5.6.0 "
    "and torch 2.9.1 on the CPU",
)
def frozen_in_half_precision(facts: Facts) -> Iterator[Found | NotChecked]:
    """Freeze tuning of a model stored in half precision, without mixed precision."""
    if facts.value("finetuning_type") != "freeze" or facts.value("do_train") is not True:
        return
    if any(facts.value(key) for key in ("bf16", "fp16", "pure_bf16", "use_badam", "deepspeed", "fsdp")):
        return
    if isinstance(shape_of(facts), Unknown) or stored(facts) == 4:
        return
    word = "fp16" if _no_bf16(facts) else "bf16"
    message = "finetuning_type: freeze without mixed precision, and the model is stored in half: the first step fails"
    yield Found(message, f"{word}: true", "finetuning_type", edit=Edit(word, value="true"))


def _no_bf16(facts: Facts) -> bool:
    return facts.site is not None and any(gpu.bf16 is False for gpu in facts.site.gpus)
