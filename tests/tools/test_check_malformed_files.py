"""What is malformed in a checkout, a model, data, a job file, settings: judged or refused, and never waited for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.gather.jobscript import read_script
from tests.check import good
from tests.check.odd import ODD, WRONG
from tests.check.planting import Ground

# ---------------------------------------------------------------------------------------------- the checkout


INFOS: dict[str, object] = {
    "no JSON": "{",
    "a list": [],
    "text": '"x"',
    "null": "null",
    "deep": "[" * 10_000,
    "deep object": '{"a":' * 10_000,
    "not UTF-8": b"\xff\xfe{}",
    "twice": '{"alpaca_en_demo": {}, "alpaca_en_demo": 7}',
    "a number": {"alpaca_en_demo": 7},
    "a list inside": {"alpaca_en_demo": [1]},
    "nothing": {"alpaca_en_demo": None},
    "NaN": '{"alpaca_en_demo": {"file_name": NaN, "num_samples": Infinity}}',
    "surrogates": '{"alpaca_en_demo": {"file_name": "\\ud800"}}',
    "NUL": '{"alpaca_en_demo": {"file_name": "a\\u0000b"}}',
}


@pytest.mark.parametrize("kind", INFOS)
def test_a_dataset_info_that_is_none_is_said(ground: Ground, kind: str) -> None:
    text = INFOS[kind]
    content = text if isinstance(text, bytes) else (text if isinstance(text, str) else json.dumps(text)).encode()
    (ground.tree.root / "data/dataset_info.json").write_bytes(content)
    (one,) = ground.check(ground.yaml, code=Exit.PROBLEM)
    assert any(each["code"].startswith("DAT") and each["severity"] == "error" for each in one["findings"]), one


FIELDS = (
    *("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "formatting"),
    *("ranking", "subset", "split", "folder", "num_samples", "columns", "tags"),
)
COLUMNS = ("prompt", "query", "response", "history", "messages", "system", "tools", "images", "chosen", "kto_tag")
TAGS = ("role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag")


def entries() -> dict[str, object]:
    """Entries of dataset_info.json with every field of every wrong type, one at a time."""
    made: dict[str, object] = {}
    base = {"file_name": "alpaca_en_demo.json"}
    for field in FIELDS:
        made |= {f"{field}{at}": {**base, field: wrong} for at, wrong in enumerate(WRONG)}
    for field in COLUMNS:
        made |= {f"c-{field}{at}": {**base, "columns": {field: wrong}} for at, wrong in enumerate(WRONG)}
    for field in TAGS:
        for formatting in ("sharegpt", "alpaca", "openai"):
            entry = {**base, "formatting": formatting, "columns": {"messages": "instruction"}}
            made |= {f"{formatting}-{field}{at}": {**entry, "tags": {field: wrong}} for at, wrong in enumerate(WRONG)}
    return made


@pytest.mark.parametrize("stage", ["sft", "dpo", "kto", "pt"])
def test_entries_of_wrong_types_are_judged(ground: Ground, stage: str) -> None:
    made = entries()
    (ground.tree.root / "data/dataset_info.json").write_text(json.dumps(made))
    ground.config |= {"dataset": ",".join(made), "stage": stage}
    ground.write()
    (one,) = ground.check(ground.yaml, code=Exit.PROBLEM)
    assert len([each for each in one["findings"] if each["code"].startswith("DAT")]) > 20


@pytest.mark.parametrize("suffix", ["json", "jsonl", "csv", "parquet", "arrow", "txt", "JSON", "xyz"])
def test_data_that_is_none_is_said_and_never_waited_for(ground: Ground, suffix: str) -> None:
    ground.tree.register(
        **{kind.replace(" ", "-"): {"file_name": f"{kind.replace(' ', '-')}.{suffix}"} for kind in ODD}
    )
    for kind, make in ODD.items():
        make(ground.tree.root / f"data/{kind.replace(' ', '-')}.{suffix}")
    for dataset in ODD:
        ground.config["dataset"] = dataset.replace(" ", "-")
        (ground.folder / f"{ground.config['dataset']}.yaml").write_text(
            "".join(f"{key}: {value}\n" for key, value in ground.config.items())
        )
    found = ground.check(*[ground.folder / f"{kind.replace(' ', '-')}.yaml" for kind in ODD])
    by_kind = dict(zip(ODD, found, strict=True))
    for kind in ("fifo", "zero"):
        assert {"DAT003", "DAT010"} & {each["code"] for each in by_kind[kind]["findings"]}, kind


# ---------------------------------------------------------------------------------------------- models


MODEL = (
    *("architectures", "model_type", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("vocab_size", "tie_word_embeddings", "max_position_embeddings", "torch_dtype"),
    *("dtype", "quantization_config", "text_config", "vision_config"),
    *("rope_scaling", "num_experts", "num_local_experts", "moe_intermediate_size"),
    *("auto_map"),
)


def test_a_model_with_a_config_of_wrong_types_is_judged(ground: Ground) -> None:
    configs: list[object] = [[], "x", None, 7, {}, *({"a": {}} for _ in range(1))]
    good = json.loads((ground.tree.model() / "config.json").read_text())
    configs += [{**good, key: wrong} for key in MODEL for wrong in [*WRONG, 0, -1, 10**400, 1e308]]
    paths = []
    for at, config in enumerate(configs):
        directory = ground.tree.model(f"m{at}")
        (directory / "config.json").write_text(json.dumps(config))
        for method in ("lora", "full") if at < 60 else ("lora",):
            paths.append(ground.folder / f"m{at}-{method}.yaml")
            values = {**ground.config, "model_name_or_path": str(directory), "finetuning_type": method}
            paths[-1].write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    found = ground.check(*paths, code=Exit.PROBLEM)
    assert len(found) == len(paths)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["fifo", "directory", "zero", "binary", "empty", "deep", "sparse"])
def test_a_model_of_odd_files_is_judged(ground: Ground, name: str, kind: str) -> None:
    path = ground.tree.model() / name
    path.unlink(missing_ok=True)
    ODD[kind](path)
    ground.check(ground.yaml)


ADAPTER = ("base_model_name_or_path", "peft_type", "r", "target_modules", "modules_to_save")


def test_an_adapter_and_checkpoints_of_wrong_types_are_judged(ground: Ground) -> None:
    paths = []
    for at, (key, wrong) in enumerate((key, wrong) for key in ADAPTER for wrong in WRONG):
        directory = ground.tree.models / f"a{at}"
        directory.mkdir()
        (directory / "adapter_config.json").write_text(json.dumps({key: wrong}))
        saves = ground.folder / f"saves{at}"
        for step in ("1", "2", "9" * 400, "-1", "x"):
            if len(step) < 200:
                (saves / f"checkpoint-{step}").mkdir(parents=True)
                (saves / f"checkpoint-{step}/trainer_state.json").write_text(json.dumps({"global_step": wrong}))
        values = {**ground.config, "adapter_name_or_path": str(directory), "output_dir": str(saves)}
        paths.append(ground.folder / f"a{at}.yaml")
        paths[-1].write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    ground.check(*paths, code=Exit.PROBLEM)


ZERO = ("stage", "offload_optimizer", "offload_param", "overlap_comm", "stage3_gather_16bit_weights_on_model_save")
TOP = (
    *("zero_optimization", "optimizer", "scheduler", "bf16", "fp16", "train_batch_size", "gradient_accumulation_steps"),
    *("train_micro_batch_size_per_gpu", "gradient_clipping", "zero_force_ds_cpu_optimizer"),
)


def test_a_deepspeed_file_of_wrong_types_is_judged(ground: Ground) -> None:
    ground.facts["packages"]["deepspeed"] = "0.18.4"
    ground.write()
    contents: list[object] = [[], "x", None, 7, {}]
    contents += [{key: wrong} for key in TOP for wrong in WRONG]
    contents += [{"zero_optimization": {key: wrong}} for key in ZERO for wrong in WRONG]
    contents += [
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": wrong}}, "optimizer": {"type": wrong}}
        for wrong in WRONG
    ]
    paths = []
    for at, content in enumerate(contents):
        ground.tree.write(f"ds{at}.json", content)
        for method in ("lora", "full"):
            values = {**ground.config, "deepspeed": f"ds{at}.json", "finetuning_type": method}
            paths.append(ground.folder / f"ds{at}-{method}.yaml")
            paths[-1].write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    ground.check(*paths, "--gpus", "2", "--mem", "10G", code=Exit.PROBLEM)


# ---------------------------------------------------------------------------------------------- jobs, settings, site


JOBS: dict[str, bytes] = {
    "binary": os.urandom(1000),
    "no shebang": b"#SBATCH --nodes=2\n",
    "not UTF-8": b"#!/bin/bash\n# \xff\n",
    "empty": b"",
    "large": b"#!/bin/bash\n" + b"#\n" * (1 << 20),
}


@pytest.mark.parametrize("kind", [*JOBS, "fifo", "directory", "missing"])
def test_what_is_no_job_file_is_a_usage_error(ground: Ground, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = ground.folder / "job.sbatch"
    if kind in JOBS:
        path.write_bytes(JOBS[kind])
    elif kind != "missing":
        ODD[kind](path)
    assert main(["check", "--image", str(ground.image), "--job", str(path), str(ground.yaml)]) == Exit.USAGE
    assert "job.sbatch" in capsys.readouterr().err


OPTIONS = (
    "--nodes=0", "--nodes=-1", "--nodes=2-4", "--nodes=x", "--nodes", "-N", "--gres=gpu:0", "--gres=gpu:x:y:z",
    "--gres=", "--gpus=0", "--gpus=1000000000000000000000", "--ntasks-per-node=0", "--ntasks=0", "--cpus-per-task=0",
    "--cpus-per-task=x", "--mem=0", "--mem=-1", "--mem=1X", "--mem=9" + "9" * 400 + "G", "--mem-per-cpu=x",
    "--mem-per-gpu=0", "--time=x", "--time=99999999999999-00", "--time=UNLIMITED", "--output=", "--output=/dev/null",
    "--output=/proc/x/%j", "--output=%x/%j.out", "--output=\"a", "--gpu-bind=", "--gpus-per-task=0", "--=", "-",
    "--nodes=1 --nodes=2", "--chdir=/nowhere", "--export=", "--cpus-per-gpu=x", "--gpus-per-node=a:b",
)  # fmt: skip


def test_odd_options_of_a_job_file_are_judged(tmp_path: Path) -> None:
    path = tmp_path / "job.sbatch"
    for option in OPTIONS:
        path.write_text(f"#!/bin/bash\n#SBATCH --gres=gpu:2\n#SBATCH {option}\nsrun apptainer exec --nv x.sif lmf\n")
        findings = good.found(good.facts(job=read_script(path, tmp_path)))
        assert all(finding.message.isprintable() for finding in findings)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("check: [", 1),
        ("chek: {}\n", 1),
        ("check:\n  ignroe: [CFG]\n", 2),
        ("check:\n  ignore: [ZZZ999]\n", None),
        ("check: {ignore: 7}\n", 1),
        ("check:\n  per_file_ignores: {'*': CFG}\n", 2),
        ("- a\n", 1),
        ("\tx: 1\n", 1),
    ],
)
def test_malformed_settings_are_a_usage_error_with_the_line(
    ground: Ground, text: str, line: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (ground.folder / "sifkit.yaml").write_text(text)
    assert main(["check", "--image", str(ground.image), str(ground.yaml)]) == Exit.USAGE
    said = capsys.readouterr().err
    assert f"sifkit.yaml:{line}" in said if line else "sifkit.yaml" in said


@pytest.mark.parametrize(
    ("text", "line"), [("gpu: [", 1), ("gpus: {}\n", 1), ("binds: 7\n", 1), ("slurm:\n  gpu: 1\n", 2)]
)
def test_a_malformed_site_file_is_a_usage_error_with_the_line(
    ground: Ground, text: str, line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    site = ground.folder / "mine.yaml"
    site.write_text(text)
    assert main(["check", "--image", str(ground.image), "--site", str(site), str(ground.yaml)]) == Exit.USAGE
    assert f"mine.yaml:{line}" in capsys.readouterr().err
