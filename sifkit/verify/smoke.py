"""The smoke run: the user's own config, shortened by arguments on the command line.

Pure: a config and what the image knows in, the command line out. What is verified is what will run, so
only the length of the run, its places and its device are overridden.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from sifkit.errors import UsageError
from sifkit.model import Method

STEPS = 6
HALF = STEPS // 2  # the checkpoint from which the second run resumes
SAMPLES = 8  # over all datasets, at least 2 of each: a set small enough that each step sees the whole of it
CUTOFF = 256  # tokens; enough for several turns, little enough for a CPU
WORST_STEPS = 2  # the second finds the optimizer's state in memory beside the longest batch
# Of the model of random weights: each step then shows in the loss, of LoRA and of all weights. Under the examples'
# 1e-4, made for a thousand times as many weights, 6.940 becomes 6.936 in 6 steps [measured]. A higher one stays.
SMOKE_LEARNING_RATE = 5e-3

# Texts of stage pt are cut into pieces of cutoff_len tokens; those of c4_demo have about 500 each.
_CHUNKS = 4
# Recipes for one process on one text dataset; the others (_ds3, _ray) need more than a smoke run has.
_EXAMPLES = "examples/train_lora/*_lora_sft.yaml"

# What `--method` says in the place of the config. Source: llamafactory/hparams, finetuning_args.py and model_args.py.
_METHODS: dict[str, dict[str, str]] = {
    "full": {"finetuning_type": "full", "quantization_bit": "null"},
    "lora": {"finetuning_type": "lora", "quantization_bit": "null"},
    "qlora": {"finetuning_type": "lora", "quantization_bit": "4"},
}
ZERO_CONFIG = "examples/deepspeed/ds_z3_config.json"  # in every checkout since 0.7


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
    batch: int  # rows of a device in one forward pass
    learning_rate: float
    evaluates: bool  # during training
    deepspeed: bool
    distributed: bool  # DeepSpeed or FSDP
    save_only_model: bool
    quantized: bool
    flash_attn: str
    keys: frozenset[str]

    @property
    def lora(self) -> bool:
        """Whether an adapter is trained; otherwise whole weights are written."""
        return self.finetuning_type in ("lora", "oft")

    @property
    def method(self) -> str:
        """As people call it: LoRA over quantized weights is QLoRA."""
        return "qlora" if self.lora and self.quantized else self.finetuning_type

    @property
    def samples(self) -> int:
        """Rows that are taken of each dataset."""
        return max(2, SAMPLES // len(self.datasets))

    @property
    def accumulation(self) -> int:
        """Forward passes in one step, so that a step sees every row and losses of steps can be compared."""
        rows = self.samples * len(self.datasets) * (_CHUNKS if self.stage == "pt" else 1)
        return math.ceil(rows / self.batch)

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
        batch=int(values.get("per_device_train_batch_size") or 8),
        learning_rate=_number(path, values.get("learning_rate"), 5e-5),
        evaluates=str(values.get("eval_strategy") or "no") != "no",
        deepspeed=bool(values.get("deepspeed")),
        distributed=bool(values.get("deepspeed") or values.get("fsdp")),
        save_only_model=values.get("save_only_model") is True,
        quantized=bool(values.get("quantization_bit")),
        flash_attn=str(values.get("flash_attn") or "auto"),
        keys=frozenset(values),
    )


def _number(path: Path, value: object, default: float) -> float:
    """YAML reads 1e-4 as text (it wants 1.0e-4), and LLaMA-Factory up to 0.9.3 takes it as such."""
    try:
        return default if value is None else float(str(value))
    except ValueError:
        raise UsageError(f"{path}: learning_rate {value!r} is no number", "write it as 1.0e-4") from None


def with_method(config: TrainConfig, method: Method | None) -> TrainConfig:
    """The config as `--method` changes it; None leaves it alone."""
    if method is None:
        return config
    kind = _METHODS[method]["finetuning_type"]
    return replace(config, finetuning_type=kind, quantized=method == "qlora")


def _names(value: object) -> tuple[str, ...]:
    words = value if isinstance(value, list) else str(value or "").split(",")
    return tuple(str(word).strip() for word in words if str(word).strip())


def overrides(
    config: TrainConfig,
    *,
    model: str,
    output_dir: str,
    device: Literal["gpu", "cpu"],
    known: frozenset[str],
    method: Method | None = None,
    made: bool = True,
) -> dict[str, str]:
    """What is said on the command line after the YAML. Arguments that this version does not know are left out.

    `made`: the model has random weights, and learns by its own rate.
    """
    values = {
        **_places(model, output_dir),
        **_methods(config, method),
        **(_learning(config) if made else {}),
        "warmup_steps": "0",
        "warmup_ratio": "0",
        "max_samples": str(config.samples),
        "max_steps": str(STEPS),
        "gradient_accumulation_steps": str(config.accumulation),
        "cutoff_len": str(min(config.cutoff_len, CUTOFF)),
        "plot_loss": "true",
        "save_strategy": "steps",
        "save_steps": str(HALF),
        "do_eval": "true",
        "per_device_eval_batch_size": "1",
        **_evaluation(config),
        **(_on_cpu(config) if device == "cpu" else {}),
    }
    return {name: value for name, value in values.items() if name in known}


def _places(model: str, output_dir: str) -> dict[str, str]:
    """What every run of a verification says: its places, no reports, everything logged and nothing skipped."""
    return {
        "model_name_or_path": model,
        "output_dir": output_dir,
        "overwrite_output_dir": "false",
        "resume_from_checkpoint": "null",  # the newest checkpoint in output_dir, if there is one
        "preprocessing_num_workers": "1",
        "dataloader_num_workers": "0",
        "logging_steps": "1",
        "logging_nan_inf_filter": "false",  # otherwise the log shows the last finite loss in place of NaN
        "include_num_input_tokens_seen": "true",  # the log then has tokens a second
        "report_to": "none",
        "tokenized_path": "null",  # rows that were tokenized before would be taken in the place of the dataset's
        "save_total_limit": "null",
        "save_only_model": "false",
        "load_best_model_at_end": "false",
    }


def _methods(config: TrainConfig, method: Method | None) -> dict[str, str]:
    """bitsandbytes in the place of another quantization, where the config names one."""
    chosen = _METHODS[method] if method else {}
    other = method == "qlora" and "quantization_method" in config.keys
    return {**chosen, **({"quantization_method": "bnb"} if other else {})}


def _learning(config: TrainConfig) -> dict[str, str]:
    return {"learning_rate": str(max(config.learning_rate, SMOKE_LEARNING_RATE))}


def worst_case(
    config: TrainConfig,
    *,
    model: str,
    output_dir: str,
    dataset_dir: str,
    known: frozenset[str],
    method: Method | None = None,
    zero: bool = False,
) -> dict[str, str]:
    """Full batches of rows that fill cutoff_len: what the longest rows need, wherever they stand in the data.

    `zero`: through DeepSpeed ZeRO-3, whatever the config says.
    """
    values = {
        **_places(model, output_dir),
        **_methods(config, method),
        "dataset": WORST_NAME,
        "eval_dataset": "null",
        "mix_strategy": "concat",
        "interleave_probs": "null",
        "dataset_dir": dataset_dir,
        "max_samples": "null",
        "max_steps": str(WORST_STEPS),
        "gradient_accumulation_steps": "1",
        "val_size": "0",
        "plot_loss": "false",
        "save_strategy": _NO,
        "eval_strategy": _NO,
        "do_eval": "false",
        **({"deepspeed": ZERO_CONFIG} if zero else {}),
    }
    return {name: value for name, value in values.items() if name in known}


WORST_NAME = "sifkit_longest"
_NO = '"no"'  # quoted: on the command line YAML reads a plain no as false


def worst_dataset(config: TrainConfig, ranks: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """dataset_info.json and rows that are longer than cutoff_len in every tokenizer, for the config's stage.

    Numbers in turn: a tokenizer may join equal words, and not these. Source: data/README.md of LLaMA-Factory.
    """
    numbers = " ".join(str(17 * place % 97) for place in range(config.cutoff_len))
    columns, row = _worst_row(config.stage, numbers)
    info: dict[str, Any] = {"file_name": f"{WORST_NAME}.json", "columns": columns}
    info |= {"ranking": True} if config.stage in ("rm", "dpo") else {}
    count = config.batch * ranks * WORST_STEPS
    # both answers of kto have to occur
    rows = [{**row, **({"good": place % 2 == 0} if config.stage == "kto" else {})} for place in range(count)]
    return {WORST_NAME: info}, rows


def _worst_row(stage: str, numbers: str) -> tuple[dict[str, str], dict[str, Any]]:
    ask = {"prompt": "question"}
    match stage:
        case "pt":
            return {"prompt": "text"}, {"text": numbers}
        case "rm" | "dpo":
            row = {"question": numbers, "better": numbers, "worse": f"no {numbers}"}
            return {**ask, "chosen": "better", "rejected": "worse"}, row
        case "kto":
            return {**ask, "response": "answer", "kto_tag": "good"}, {"question": numbers, "answer": numbers}
        case _:
            return {**ask, "response": "answer"}, {"question": numbers, "answer": numbers}


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
