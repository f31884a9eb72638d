"""The smoke run: the user's own config, shortened by arguments on the command line.

Pure: a config and what the image knows in, the command line out. What is verified is what will run, so
only the length of the run, its places and its device are overridden.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sifkit.errors import UsageError

STEPS = 6
HALF = STEPS // 2  # the checkpoint from which the second run resumes
SAMPLES = 8  # of each dataset
CUTOFF = 256  # tokens; enough for several turns, little enough for a CPU

# Recipes for one process on one text dataset; the others (_ds3, _ray) need more than a smoke run has.
_EXAMPLES = "examples/train_lora/*_lora_sft.yaml"


@dataclass(frozen=True)
class TrainConfig:
    """The parts of a training YAML that decide how it can be verified."""

    path: Path
    template: str
    stage: str
    finetuning_type: str
    datasets: tuple[str, ...]
    eval_datasets: tuple[str, ...]
    dataset_dir: str
    cutoff_len: int
    accumulation: int
    evaluates: bool  # during training
    distributed: bool  # DeepSpeed or FSDP
    save_only_model: bool
    keys: frozenset[str]

    @property
    def lora(self) -> bool:
        """Whether an adapter is trained; otherwise whole weights are written."""
        return self.finetuning_type in ("lora", "oft")

    @property
    def resumes(self) -> bool:
        """LLaMA-Factory resumes neither reward models nor PPO (hparams/parser.py)."""
        return self.stage not in ("rm", "ppo")


def default_config(checkout: Path) -> Path:
    """The checkout's own LoRA SFT recipe; text models before others. Raises `UsageError` if it has none."""
    found = sorted(checkout.glob(_EXAMPLES), key=lambda path: ("vl" in path.name, path.name))
    if not found:
        raise UsageError(f"{checkout} has no {_EXAMPLES}", "name a config: --config FILE, or use a whole checkout")
    return found[0]


def read_config(path: Path) -> TrainConfig:
    """A training YAML, read as LLaMA-Factory would. Raises `UsageError` if it is not one."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}", "name a training config: --config FILE") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds no keys and values", "name a training config: --config FILE")
    return parse_config(path, values)


def parse_config(path: Path, values: dict[str, Any]) -> TrainConfig:
    """The config's keys as data. Defaults are LLaMA-Factory's own (hparams/*.py, 0.9.3 to 0.9.5)."""
    if not values.get("dataset"):
        raise UsageError(f"{path} names no dataset", "verification trains: name a config with `dataset:`")
    return TrainConfig(
        path=path,
        template=str(values.get("template") or "empty"),
        stage=str(values.get("stage") or "sft"),
        finetuning_type=str(values.get("finetuning_type") or "lora"),
        datasets=_names(values.get("dataset")),
        eval_datasets=_names(values.get("eval_dataset")),
        dataset_dir=str(values.get("dataset_dir") or "data"),
        cutoff_len=int(values.get("cutoff_len") or 2048),
        accumulation=int(values.get("gradient_accumulation_steps") or 1),
        evaluates=str(values.get("eval_strategy") or "no") != "no",
        distributed=bool(values.get("deepspeed") or values.get("fsdp")),
        save_only_model=values.get("save_only_model") is True,
        keys=frozenset(values),
    )


def _names(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(str(word).strip() for word in words if str(word).strip())


def overrides(
    config: TrainConfig, *, model: str, output_dir: str, device: Literal["gpu", "cpu"], known: frozenset[str]
) -> dict[str, str]:
    """What is said on the command line after the YAML. Arguments that this version does not know are left out."""
    values = {
        "model_name_or_path": model,
        "output_dir": output_dir,
        "overwrite_output_dir": "false",
        "resume_from_checkpoint": "null",  # the newest checkpoint in output_dir, if there is one
        "max_samples": str(SAMPLES),
        "max_steps": str(STEPS),
        "gradient_accumulation_steps": str(min(config.accumulation, 2)),
        "cutoff_len": str(min(config.cutoff_len, CUTOFF)),
        "preprocessing_num_workers": "1",
        "dataloader_num_workers": "0",
        "logging_steps": "1",
        "logging_nan_inf_filter": "false",  # otherwise the log shows the last finite loss in place of NaN
        "plot_loss": "true",
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": str(HALF),
        "save_total_limit": "null",
        "save_only_model": "false",
        "load_best_model_at_end": "false",
        "do_eval": "true",
        "per_device_eval_batch_size": "1",
        **_evaluation(config),
        **(_on_cpu(config) if device == "cpu" else {}),
    }
    return {name: value for name, value in values.items() if name in known}


def _evaluation(config: TrainConfig) -> dict[str, str]:
    """eval_results.json needs data: the config's own, or a part of the training data (both at once are refused)."""
    held_out = {} if config.eval_datasets else {"val_size": "0.25"}
    return held_out | ({"eval_strategy": "steps", "eval_steps": str(HALF)} if config.evaluates else {})


def _on_cpu(config: TrainConfig) -> dict[str, str]:
    off = {"use_cpu": "true", "bf16": "false", "fp16": "false"}
    return off | {name: "null" for name in ("deepspeed", "fsdp", "flash_attn") if name in config.keys}


def argv(config_in_container: str, values: dict[str, str]) -> tuple[str, ...]:
    """The command that a user would type."""
    return ("llamafactory-cli", "train", config_in_container, *(f"{name}={value}" for name, value in values.items()))
