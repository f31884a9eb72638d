"""Facts with which no rule finds anything; tests plant one mistake at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sifkit.check.facts import (
    Argument,
    CheckoutFacts,
    ConfigFacts,
    Entry,
    Facts,
    HostFacts,
    ImageFacts,
    JobFacts,
    PathFacts,
    Place,
    SiteFacts,
    TargetGpu,
)
from sifkit.check.rule import Finding, all_rules, apply

GIB = 1024**3
ROOT = Path("/home/mika/LLaMA-Factory")

VALUES: dict[str, Any] = {
    "model_name_or_path": "/models/llama-1b",
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "dataset": "alpaca_en_demo",
    "template": "llama3",
    "cutoff_len": 2048,
    "output_dir": "saves/llama/lora",
    "logging_steps": 10,
    "save_steps": 500,
    "save_total_limit": 2,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 8,
    "learning_rate": 1.0e-4,
    "num_train_epochs": 3.0,
    "bf16": True,
    "report_to": "none",
    "ddp_timeout": 180000000,
    "preprocessing_num_workers": 8,
}

_ARGUMENTS = (
    ("model_name_or_path", "str | null", None, ()),
    ("stage", "str", "sft", ("pt", "sft", "rm", "ppo", "dpo", "kto")),
    ("do_train", "bool", False, ()),
    ("finetuning_type", "str", "lora", ("lora", "oft", "freeze", "full")),
    ("dataset", "str | null", None, ()),
    ("template", "str | null", None, ("llama3", "qwen3")),
    ("cutoff_len", "int", 2048, ()),
    ("output_dir", "str | null", None, ()),
    ("logging_steps", "float", 500, ()),
    ("save_steps", "float", 500, ()),
    ("save_total_limit", "int | null", None, ()),
    ("per_device_train_batch_size", "int", 8, ()),
    ("gradient_accumulation_steps", "int", 1, ()),
    ("learning_rate", "float", 5e-05, ()),
    ("num_train_epochs", "float", 3.0, ()),
    ("bf16", "bool", False, ()),
    ("report_to", "null | str | list[str]", None, ()),
    ("ddp_timeout", "int", 1800, ()),
    ("preprocessing_num_workers", "int | null", None, ()),
)


def argument(name: str, type_: str, default: Any, choices: tuple[Any, ...] = ()) -> Argument:
    return Argument(name, "ModelArguments", "tests", type_, "", False, default, choices)


IMAGE = ImageFacts(
    path=Path("/images/llamafactory.sif"),
    llamafactory="0.9.5",
    transformers="5.6.0",
    python="3.13.5",
    arguments=tuple(argument(*each) for each in _ARGUMENTS),
    derived=frozenset({"compute_dtype"}),
    packages={
        "llamafactory": "0.9.5",
        "transformers": "5.6.0",
        "datasets": "4.0.0",
        "accelerate": "1.11.0",
        "peft": "0.18.1",
        "trl": "0.24.0",
        "torch": "2.9.1",
        "torchaudio": "2.9.1",
    },
    templates=frozenset({"llama3", "qwen3"}),
    models={"meta-llama/Meta-Llama-3-8B-Instruct": "llama3"},
    torch_cuda="12.8",
    torch_architectures=("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    glibc="2.41",
    programs={"gcc": "/usr/bin/gcc", "git": "/usr/bin/git", "ldconfig": "/usr/sbin/ldconfig"},
    environment={"PATH": "/opt/venv/bin:/usr/bin:/bin", "PYTHONNOUSERSITE": "1"},
    python_headers=True,
    imports={"llamafactory.hparams.parser": "", "llamafactory.train.tuner": "", "torchaudio": ""},
    unresolved=(),
    libraries=frozenset({"libibverbs.so.1"}),
    sha256="0" * 64,
)

HOST = HostFacts(
    environment={"HOME": "/home/mika", "PATH": "/usr/bin:/bin"},
    apptainer="1.4.5",
    apptainer_config={"mount home": "yes", "mount tmp": "yes"},
    user="mika",
    uid=1000,
    user_namespaces=True,
    subuid=True,
    newuidmap=True,
    fuse=True,
    programs={"squashfuse_ll": "/usr/bin/squashfuse_ll", "fusermount3": "/usr/bin/fusermount3"},
    kernel="6.12.0",
    places=(
        Place("TMPDIR", Path("/tmp"), True, True, True, "ext4", 200 * GIB),
        Place("output_dir", ROOT / "saves", True, True, True, "ext4", 2000 * GIB),
        Place("image", Path("/images"), True, True, True, "ext4", 200 * GIB),
    ),
    cpus=32,
    memory=256 * GIB,
    driver=None,
    gpus=(),
    files=frozenset({"/etc/localtime", "/etc/hosts", "/etc/resolv.conf", "/etc/passwd", "/etc/group"}),
)
H100 = TargetGpu("H100", (9, 0), 80 * GIB, bf16=True, fp8=True)
V100 = TargetGpu("V100", (7, 0), 32 * GIB, bf16=False, fp8=False)
SITE = SiteFacts(gpus=(H100,), driver="570.86", source="site.yaml", slurm=True)
JOB = JobFacts("gpu", 1, 1, 16, 128 * GIB, timedelta(hours=24), requeue=False, torchrun=False, logs=Path("logs"))
_MODEL = PathFacts(
    "model_name_or_path",
    "/models/llama-1b",
    Path("/models/llama-1b"),
    True,
    True,
    Path("/models/llama-1b"),
    True,
    names=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    json={
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
        "torch_dtype": "bfloat16",
    },
    size=2_471_645_608,
)
CHECKOUT = CheckoutFacts(
    root=ROOT,
    version="0.9.5",
    problems=(),
    dataset_info={"alpaca_en_demo": {"file_name": "alpaca_en_demo.json"}},
    dataset_info_path=ROOT / "data/dataset_info.json",
    paths=(_MODEL,),
    output=PathFacts("output_dir", "saves/llama/lora", ROOT / "saves/llama/lora", False, False, ROOT, True),
)


def config(values: Mapping[str, Any] | None = None, *overrides: str, **changes: Any) -> ConfigFacts:
    """A config of these keys, or of the good ones with some changed; None as a change removes a key."""
    all_values = {**(VALUES if values is None else values), **changes}
    kept = {key: value for key, value in all_values.items() if value is not None}
    entries = tuple(Entry(key, at, value, str(value)) for at, (key, value) in enumerate(kept.items(), 1))
    text = "".join(f"{key}: {value}\n" for key, value in kept.items())
    return ConfigFacts(Path("train.yaml"), text, entries, overrides, kept)


def facts(**changes: Any) -> Facts:
    """Good facts of everything; `config`, `image`, `checkout`, `host`, `site`, `job` replace a part."""
    good = Facts(config(), IMAGE, CHECKOUT, HOST, SITE, JOB)
    return replace(good, **changes)


def found(of: Facts, *codes: str) -> tuple[Finding, ...]:
    """What these rules, or all, find."""
    rules = [rule for rule in all_rules().values() if not codes or rule.code in codes]
    return apply(rules, of)[0]
