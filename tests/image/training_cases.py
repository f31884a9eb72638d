"""Training YAMLs, right and wrong: what each changes of a good one, and the rule that speaks of it.

`wrong` ends with `said` in it; `mended` trains. In the texts {here} is the directory of models and data.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GOOD: dict[str, Any] = {
    "model_name_or_path": "{here}/model",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "lora_target": "all",
    "dataset": "identity",
    "template": "llama3",
    "cutoff_len": 64,
    "max_samples": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "per_device_train_batch_size": 1,
    "max_steps": 1,
    "learning_rate": 1.0e-4,
    "use_cpu": True,
    "report_to": "none",
}


@dataclass(frozen=True)
class Case:
    """None as a change removes a key. Of `mended` None: nothing that is worth another start."""

    code: str
    wrong: dict[str, Any]
    said: str
    mended: dict[str, Any] | None = field(default_factory=dict)


_OWN = {"dataset_dir": "{here}/data"}
_FREEZE = {"finetuning_type": "freeze", "lora_target": None, "freeze_trainable_layers": 1}
_STREAM = {"streaming": True, "max_samples": None}
_NOT_ON_THE_HUB = "Repo id must be in the form 'repo_name' or 'namespace/repo_name'"

CASES = {
    "no dataset_info": Case(
        "DAT001", {"dataset_dir": "{here}/empty"}, "Cannot open {here}/empty/dataset_info.json", None
    ),
    "unregistered": Case("DAT002", {"dataset": "identityy"}, "Undefined dataset identityy in dataset_info.json.", None),
    "no file": Case("DAT003", {**_OWN, "dataset": "gone"}, "File {here}/data/gone.json not found.", None),
    "no pairs": Case(
        "DAT004",
        {"stage": "dpo"},
        "The dataset is not applicable in the current training stage.",
        {"stage": "dpo", "dataset": "dpo_en_demo"},
    ),
    "no tags": Case("DAT004", {"stage": "kto"}, "Cannot find valid samples", None),
    "other columns": Case(
        "DAT005", {**_OWN, "dataset": "asked"}, "KeyError: 'instruction'", {**_OWN, "dataset": "named"}
    ),
    "other speakers": Case("DAT005", {**_OWN, "dataset": "talk"}, "KeyError: 'from'", {**_OWN, "dataset": "tagged"}),
    "no model": Case("DAT006", {"model_name_or_path": "{here}/none"}, _NOT_ON_THE_HUB, None),
    "no weights": Case(
        "DAT006", {"model_name_or_path": "{here}/hollow"}, "Error no file named model.safetensors", None
    ),
    "a model cut off": Case("DAT006", {"model_name_or_path": "{here}/cut"}, "Error while deserializing header", None),
    "no tokenizer": Case(
        "DAT006", {"model_name_or_path": "{here}/mute"}, "Couldn't instantiate the backend tokenizer", None
    ),
    "no JSON": Case("DAT010", {**_OWN, "dataset": "broken"}, "An error occurred while generating the dataset", None),
    "of the future": Case(
        "DAT011", {"model_name_or_path": "{here}/new"}, "has model type `llama9` but Transformers", None
    ),
    "out of the checkout": Case("DAT013", {"dataset_dir": "../data"}, "Cannot open ../data/dataset_info.json", None),
    "below /mnt": Case("DAT014", {"model_name_or_path": "/mnt/models/llama"}, _NOT_ON_THE_HUB, None),
    "pictures": Case("DAT015", {"dataset": "mllm_demo"}, "This model does not support image input.", None),
    "a stream to save": Case(
        "DAT020",
        {**_STREAM, "dataloader_num_workers": 1, "tokenized_path": "{here}/tokens"},
        "Turn off `streaming`",
        None,
    ),
    "no such target": Case(
        "DAT022", {"lora_target": "c_attn"}, "Target modules {'c_attn'} not found in the base model."
    ),
    "no such part": Case(
        "DAT022",
        {**_FREEZE, "freeze_trainable_modules": "attention"},
        "Module attention is not found, please choose from",
        {**_FREEZE, "freeze_trainable_modules": "self_attn"},
    ),
    "no such other part": Case(
        "DAT022",
        {**_FREEZE, "freeze_extra_modules": "lm_heads"},
        "Module lm_heads is not found, please choose from",
        None,
    ),
    "uneven layers": Case(
        "DAT023",
        {**_FREEZE, "use_llama_pro": True, "freeze_trainable_layers": 3},
        "`num_layers` 2 should be divisible by `num_layer_trainable` 3.",
        {**_FREEZE, "use_llama_pro": True},
    ),
    "odd turns": Case("DAT025", {**_OWN, "dataset": "odd"}, "Cannot find valid samples", None),
    "odd turns to read": Case(
        "DAT025", {**_OWN, "dataset": "odd", "stage": "pt"}, "IndexError: list index out of range", None
    ),
    "no such split": Case("DAT026", {**_OWN, "dataset": "split"}, 'Unknown split "test"', None),
    "a stream of nothing": Case("DAT027", _STREAM, "StopIteration", {**_STREAM, "dataloader_num_workers": 1}),
    "weights of a run": Case(
        "CKP004", {"output_dir": "{here}/ended"}, "Output directory already exists and is not empty."
    ),
    "no checkpoint": Case(
        "CKP007", {"resume_from_checkpoint": "{here}/none"}, "Can't find a valid checkpoint at", None
    ),
    "no template": Case("CFG008", {"template": "llama-3"}, "Template llama-3 does not exist.", None),
    "ppo": Case(
        "DST009", {"stage": "ppo", "reward_model": "{here}/model", "reward_model_type": "full"}, "trl>=0.8.6", None
    ),
}

_ENTRIES: dict[str, dict[str, Any]] = {
    "gone": {"file_name": "gone.json"},
    "asked": {"file_name": "asked.json"},
    "named": {"file_name": "asked.json", "columns": {"prompt": "question", "response": "answer"}},
    "talk": {"file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "messages"}},
    "broken": {"file_name": "broken.json"},
    "odd": {"file_name": "odd.json", "formatting": "sharegpt"},
    "split": {"file_name": "asked.json", "split": "test", "columns": {"prompt": "question", "response": "answer"}},
}
_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}


def plant(here: Path) -> None:
    """Data and models of all cases; {here}/model is there."""
    for folder in ("data", "empty", "ended"):
        (here / folder).mkdir()
    (here / "ended/model.safetensors").write_bytes(b"x")
    files = {
        "asked.json": [{"question": "a", "answer": "b"}] * 3,
        "talk.json": [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}] * 3,
        "odd.json": [{"conversations": [{"from": "human", "value": "a"}]}] * 3,
        "dataset_info.json": {**_ENTRIES, "tagged": {**_ENTRIES["talk"], "tags": _TAGS}},
    }
    for name, content in files.items():
        (here / "data" / name).write_text(json.dumps(content))
    (here / "data/broken.json").write_text('[{"instruction": "a",\n {"instruction": \n')
    _spoil_models(here)


def _spoil_models(here: Path) -> None:
    for name in ("hollow", "cut", "mute", "new"):
        shutil.copytree(here / "model", here / name)
    (here / "hollow/model.safetensors").unlink()
    weights = (here / "model/model.safetensors").read_bytes()
    (here / "cut/model.safetensors").write_bytes(weights[: len(weights) // 2])
    for path in (here / "mute").glob("tokenizer*"):
        path.unlink()
    config = json.loads((here / "new/config.json").read_text())
    (here / "new/config.json").write_text(json.dumps({**config, "model_type": "llama9"}))
