"""What of a training config its memory depends on, read once. Pure.

Sources: LLaMA-Factory 0.9.5 hparams/ for names and defaults; model/adapter.py init_adapter for what is cast to fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sifkit.estimate.model import Value
from sifkit.estimate.numbers import is_count, is_number

# Each changes what lies in memory in its own way, and none was measured here.
_NOT_ESTIMATED = (
    *("use_unsloth", "use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon", "use_kt", "use_llama_pro"),
    *("use_hyper_parallel", "mixture_of_depths", "shift_attn", "use_asft_loss", "fp8", "neftune_noise_alpha"),
)
# Parts of a multimodal model that are frozen when nothing is said: llamafactory/hparams/finetuning_args.py.
_FROZEN_PARTS = {"freeze_vision_tower": True, "freeze_multi_modal_projector": True, "freeze_language_model": False}
_PAIRED = ("dpo", "rm")  # two sequences for each row


class Method(str, Enum):
    """What is trained."""

    FULL = "full"
    FREEZE = "freeze"
    LORA = "lora"
    OFT = "oft"


class Half(str, Enum):
    """How half precision is used."""

    NONE = "none"  # whatever the weights are
    MIXED = "mixed"  # weights that are trained in fp32, computing in half
    PURE = "pure"  # all in half


@dataclass(frozen=True)
class Unknown:
    """Why nothing is estimated."""

    reason: str


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed or FSDP spread a model over processes."""

    stage: int  # of ZeRO; 0 and no engine: plain DDP
    deepspeed: bool = False
    fsdp: bool = False
    offload_optimizer: bool = False
    offload_weights: bool = False
    bucket: int = 500_000_000  # numbers that are reduced at once
    overlap: bool = False
    live: int = 1_000_000_000  # numbers that ZeRO-3 keeps whole
    group: int = 1_000_000_000  # numbers that ZeRO-3 updates at once


@dataclass(frozen=True)
class Settings:
    """Of one run."""

    stage: str
    method: Method
    half: Half
    bits: int | None  # of quantisation when it is loaded
    double: bool
    batch: int
    eval_batch: int | None  # None: nothing is evaluated while it trains
    cutoff: int
    accumulates: bool
    checkpointing: bool
    checkpoints_on_host: bool
    eager: bool  # attention that writes all scores
    fused_loss: bool  # Liger's: no logits
    optim: str
    sharding: Sharding
    reference: bool  # DPO compares with a model, or with the same without its adapter

    @property
    def sequences(self) -> int:
        """In one forward pass."""
        return self.batch * (2 if self.stage in _PAIRED else 1)

    @property
    def tokens(self) -> int:
        """In one forward pass, when every row has cutoff_len of them."""
        return self.sequences * self.cutoff


def read_settings(value: Value, deepspeed: Mapping[str, Any] | None) -> Settings | Unknown:
    """The settings. `deepspeed`: its configuration, where the config names one and it could be read."""
    off = next((key for key in _NOT_ESTIMATED if value(key)), None)
    if off:
        return Unknown(f"there is no estimate for {off}")
    stage, method = value("stage") or "sft", value("finetuning_type") or "lora"
    if stage not in ("pt", "sft", "rm", "dpo", "kto"):
        return Unknown(f"there is no estimate for stage {stage}")
    if method not in [each.value for each in Method]:
        return Unknown(f"there is no estimate for finetuning_type {method}")
    if value("quantization_bit") and (value("quantization_method") or "bnb") != "bnb":
        return Unknown(f"there is no estimate for quantization_method {value('quantization_method')}")
    tower = next((key for key, usual in _FROZEN_PARTS.items() if value(key) is (not usual)), None)
    if tower:
        return Unknown(f"there is no estimate for {tower}: {str(value(tower)).lower()}")
    sharding = _sharding(value, deepspeed)
    if isinstance(sharding, Unknown):
        return sharding
    if sharding.deepspeed and sharding.stage and _half(value) is Half.NONE:
        return Unknown("there is no estimate for deepspeed without bf16 and fp16")
    numbers = _numbers(value)
    if isinstance(numbers, Unknown):
        return numbers
    batch, eval_batch, cutoff, accumulation = numbers
    return Settings(
        stage=stage,
        method=Method(method),
        half=_half(value),
        bits=value("quantization_bit") or None,
        double=value("double_quantization") is not False,
        batch=batch,
        eval_batch=eval_batch if _evaluates(value) else None,
        cutoff=cutoff,
        accumulates=accumulation > 1,
        checkpointing=value("disable_gradient_checkpointing") is not True,
        checkpoints_on_host=value("use_unsloth_gc") is True,
        eager=value("flash_attn") == "disabled",
        fused_loss=value("enable_liger_kernel") is True and stage in ("pt", "sft"),
        optim=str(value("optim") or "adamw_torch_fused"),
        sharding=sharding,
        reference=stage == "dpo" and value("pref_loss") not in ("orpo", "simpo"),
    )


def _numbers(value: Value) -> tuple[int, int, int, int] | Unknown:
    wanted = {"per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "cutoff_len": 2048}
    found = []
    for key, default in {**wanted, "gradient_accumulation_steps": 1}.items():
        number = value(key)
        number = default if number is None else number
        if not is_count(number):
            return Unknown(f"{key} is {number!r}")
        found.append(number)
    return found[0], found[1], found[2], found[3]


def _half(value: Value) -> Half:
    if value("pure_bf16") is True:
        return Half.PURE
    return Half.MIXED if value("bf16") is True or value("fp16") is True else Half.NONE


def _evaluates(value: Value) -> bool:
    return str(value("eval_strategy") or "no").lower() not in ("no", "false")


def _sharding(value: Value, deepspeed: Mapping[str, Any] | None) -> Sharding | Unknown:
    if value("deepspeed"):
        given = value("deepspeed")
        read = given if isinstance(given, Mapping) else deepspeed
        return Unknown("the file that deepspeed names was not read") if read is None else _zero(read)
    if value("fsdp"):
        words = str(value("fsdp")).replace(",", " ").split()
        if not {"full_shard", "auto_wrap"}.issubset(words):  # else all weights are gathered at once
            return Unknown(f"there is no estimate for fsdp: {value('fsdp')}")
        return Sharding(3, fsdp=True, offload_optimizer="offload" in words, offload_weights="offload" in words)
    return Sharding(0)


def _zero(given: Mapping[str, Any]) -> Sharding | Unknown:
    """Source: deepspeed 0.19.8 runtime/zero/config.py, names and defaults."""
    zero = given.get("zero_optimization", {})
    stage = zero.get("stage", 0) if isinstance(zero, Mapping) else None
    if stage not in (0, 1, 2, 3) or not isinstance(zero, Mapping):
        return Unknown("deepspeed: zero_optimization.stage is none of 0, 1, 2, 3")
    if given.get("tensor_parallel"):
        return Unknown("there is no estimate for deepspeed's tensor parallelism")
    return Sharding(
        stage,
        deepspeed=True,
        offload_optimizer=_offloads(zero.get("offload_optimizer")),
        offload_weights=_offloads(zero.get("offload_param")),
        bucket=_count(zero.get("reduce_bucket_size"), 500_000_000),
        overlap=zero.get("overlap_comm") is True,
        live=_count(zero.get("stage3_max_live_parameters"), 1_000_000_000),
        group=_count(zero.get("sub_group_size"), 1_000_000_000),
    )


def _offloads(part: object) -> bool:
    return isinstance(part, Mapping) and part.get("device") in ("cpu", "nvme")


def _count(number: object, default: int) -> int:
    return int(number) if is_number(number) else default
