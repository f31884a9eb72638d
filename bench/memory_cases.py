"""The runs whose memory is measured: models of random weights, methods, lengths, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def _llama(hidden: int, wide: int, layers: int, heads: int, groups: int, head: int, vocab: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "head_dim": head,
        "vocab_size": vocab,
        "tie_word_embeddings": True,
    }


SIZES: Mapping[str, dict[str, Any]] = {
    "tiny": _llama(64, 128, 2, 4, 2, 16, 1024),
    "134M": _llama(768, 2048, 14, 12, 12, 64, 32000),
    "0.5B": _llama(896, 4864, 24, 14, 2, 64, 151936),  # as Qwen2.5 0.5B
    "1.2B": _llama(2048, 8192, 16, 32, 8, 64, 128256),  # as Llama 3.2 1B
    "3.2B": _llama(3072, 8192, 28, 24, 8, 128, 128256),  # as Llama 3.2 3B
}


@dataclass(frozen=True)
class Case:
    """One run. `alone`: nothing else runs on the GPU, so that its used memory can be told."""

    size: str
    method: str
    cutoff: int
    batch: int
    more: Mapping[str, Any] = field(default_factory=dict)
    accumulation: int = 2
    zero: int | None = None
    alone: bool = False
    needs: str | None = None  # a package

    @property
    def name(self) -> str:
        """Words that tell it from the others."""
        zero = f", ZeRO-{self.zero}" if self.zero is not None else ""
        more = "".join(f", {key}: {value}" for key, value in self.more.items())
        steps = "" if self.accumulation == 2 else f", accumulation {self.accumulation}"
        return f"{self.size} {self.method}{zero}, {self.batch} × {self.cutoff}{steps}{more}"

    def values(self) -> dict[str, Any]:
        """Keys of the training YAML that memory depends on."""
        own = {
            "stage": "sft",
            "finetuning_type": self.method,
            "cutoff_len": self.cutoff,
            "per_device_train_batch_size": self.batch,
            "gradient_accumulation_steps": self.accumulation,
            "bf16": True,
        }
        zero = {"deepspeed": f"examples/deepspeed/ds_z{self.zero}_config.json"} if self.zero is not None else {}
        return {**own, **zero, **self.more}


_OPEN = {"disable_gradient_checkpointing": True}
_PURE = {"bf16": False, "pure_bf16": True}
_DPO = {"stage": "dpo", "dataset": "dpo_en_demo"}
_EVAL = {"val_size": 0.3, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 8}
_SAVE = {"save_strategy": "steps", "save_steps": 3}

TINY = (Case("tiny", "lora", 128, 2, alone=True), Case("tiny", "full", 128, 2, {"save_strategy": "steps"}))
ONE_GPU = (
    Case("1.2B", "lora", 2048, 1, alone=True),
    Case("1.2B", "lora", 2048, 8, alone=True),
    Case("1.2B", "full", 2048, 4, alone=True),
    Case("3.2B", "full", 512, 1, alone=True),
    Case("1.2B", "lora", 8192, 1),
    Case("1.2B", "lora", 512, 4),
    Case("0.5B", "lora", 4096, 2),
    Case("3.2B", "lora", 2048, 2),
    Case("1.2B", "lora", 2048, 2, _OPEN),
    Case("3.2B", "lora", 1024, 2, _OPEN),
    Case("134M", "lora", 8192, 8),
    Case("1.2B", "lora", 2048, 1, {"lora_rank": 64, "lora_target": "q_proj,v_proj", **_SAVE}),
    Case("1.2B", "lora", 2048, 1, {"flash_attn": "disabled"}),
    Case("1.2B", "lora", 2048, 1, _EVAL),
    Case("1.2B", "lora", 2048, 1, {"bf16": False}),
    Case("1.2B", "oft", 2048, 2),
    Case("134M", "full", 2048, 4, _SAVE),
    Case("0.5B", "full", 2048, 2),
    Case("1.2B", "full", 1024, 1, accumulation=1),
    Case("1.2B", "full", 512, 1),
    Case("0.5B", "full", 2048, 1, _OPEN),
    Case("1.2B", "full", 2048, 4, _PURE),
    Case("0.5B", "full", 512, 1, {"optim": "adamw_torch"}),
    Case("0.5B", "full", 512, 1, {"optim": "adafactor"}),
    Case("134M", "full", 2048, 4, {"bf16": False}),
    Case("1.2B", "freeze", 2048, 2),
    Case("3.2B", "freeze", 2048, 2, {"freeze_trainable_layers": 8}),
    Case("1.2B", "lora", 512, 2, _DPO),
    Case("0.5B", "full", 512, 2, _DPO),
    Case("0.5B", "lora", 512, 2, {**_DPO, "stage": "rm"}),
    Case("1.2B", "lora", 2048, 2, {"quantization_bit": 4}, needs="bitsandbytes"),
    Case("0.5B", "full", 2048, 2, zero=2),
    Case("0.5B", "full", 2048, 2, zero=3),
    Case("1.2B", "lora", 2048, 2, zero=3),
    Case("0.5B", "full", 2048, 2, zero=0),
)
TWO_GPUS = (
    Case("1.2B", "lora", 2048, 2, alone=True),
    Case("1.2B", "full", 1024, 2, alone=True),
    Case("1.2B", "full", 1024, 2, zero=2, alone=True),
    Case("1.2B", "full", 1024, 2, zero=3, alone=True),
    Case("3.2B", "full", 1024, 1, zero=3, alone=True),
    Case("3.2B", "lora", 2048, 2, zero=3, alone=True),
)
SETS = {"tiny": TINY, "one": ONE_GPU, "two": TWO_GPUS}
