"""Level train: configs, the command line that shortens them, and what a run left behind."""

from __future__ import annotations

import json
import math
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.errors import UsageError
from sifkit.rundir.whole import fault_of
from sifkit.verify import container as places
from sifkit.verify.checks import Outcome
from sifkit.verify.nvml import GpuSample, GpuUse
from sifkit.verify.outputs import (
    LogRow,
    RunOutputs,
    expected_files,
    judge_adapter,
    judge_files,
    judge_learning,
    judge_longest,
    judge_losses,
    judge_resume,
    judge_steps,
    read_outputs,
)
from sifkit.verify.prepare import TrainSetup, judge_config, judge_resumable, prepare
from sifkit.verify.ranks import devices_in_log, judge_devices, judge_zero
from sifkit.verify.request import VerifyOptions
from sifkit.verify.smoke import (
    HALF,
    STEPS,
    WORST_STEPS,
    TrainConfig,
    argv,
    default_config,
    overrides,
    parse_config,
    read_config,
    with_method,
    worst_case,
    worst_dataset,
)
from sifkit.verify.train import config_in_container, judge_packages_wanted

YAML: dict[str, Any] = {
    "stage": "sft",
    "finetuning_type": "lora",
    "dataset": "identity,alpaca_en_demo",
    "template": "qwen3_nothink",
    "cutoff_len": 2048,
    "gradient_accumulation_steps": 8,
    "bf16": True,
}


def config_of(**changes: Any) -> TrainConfig:
    return parse_config(Path("/co/examples/train_lora/qwen3_lora_sft.yaml"), {**YAML, **changes})


CONFIG = config_of()


def overrides_of(config: TrainConfig, device: str = "cpu", known: frozenset[str] | None = None) -> dict[str, str]:
    every = known if known is not None else _Everything()
    return overrides(config, model="/m", output_dir="/o", device=device, known=every)  # type: ignore[arg-type]


class _Everything(frozenset[str]):
    def __contains__(self, item: object) -> bool:
        return True


# ------------------------------------------------------------------ the command line


def test_a_run_on_the_cpu_switches_off_what_needs_a_gpu() -> None:
    values = overrides_of(config_of(deepspeed="examples/deepspeed/ds_z3_config.json"))
    assert (values["use_cpu"], values["bf16"], values["fp16"], values["deepspeed"]) == (
        "true",
        "false",
        "false",
        "null",
    )


def test_a_run_on_the_gpu_keeps_the_users_precision_and_deepspeed() -> None:
    values = overrides_of(config_of(deepspeed="x.json"), device="gpu")
    assert {"use_cpu", "bf16", "fp16", "deepspeed"} & values.keys() == set()


def test_nan_is_not_hidden() -> None:
    assert overrides_of(CONFIG)["logging_nan_inf_filter"] == "false"


def test_the_run_can_be_resumed_whatever_the_config_says() -> None:
    values = overrides_of(config_of(save_only_model=True, save_total_limit=1, overwrite_output_dir=True))
    assert (values["save_only_model"], values["overwrite_output_dir"]) == ("false", "false")
    assert (values["save_total_limit"], values["resume_from_checkpoint"]) == ("null", "null")
    assert (values["max_steps"], values["save_steps"]) == (str(STEPS), str(HALF))


def test_arguments_that_this_version_does_not_know_are_left_out() -> None:
    assert overrides_of(CONFIG, known=frozenset({"output_dir"})) == {"output_dir": "/o"}


def test_evaluation_data_are_held_out_only_where_the_config_has_none() -> None:
    assert overrides_of(CONFIG)["val_size"] == "0.25"
    assert "val_size" not in overrides_of(config_of(eval_dataset="alpaca_en_demo"))


def test_short_sequences_stay_short() -> None:
    assert overrides_of(config_of(cutoff_len=64))["cutoff_len"] == "64"


def test_the_command_is_what_a_user_would_type() -> None:
    assert argv("examples/x.yaml", {"max_samples": "8"}) == (
        "llamafactory-cli",
        "train",
        "examples/x.yaml",
        "max_samples=8",
    )


def test_each_step_sees_the_whole_set() -> None:
    for config in (CONFIG, config_of(dataset="a,b,c,d,e", per_device_train_batch_size=2), config_of(stage="pt")):
        values = overrides_of(config)
        rows = int(values["max_samples"]) * len(config.datasets)
        assert int(values["gradient_accumulation_steps"]) * config.batch >= rows


def test_a_model_of_random_weights_learns_fast_and_a_real_one_as_the_config_says() -> None:
    assert overrides_of(config_of(learning_rate="1e-4"))["learning_rate"] == "0.005"
    assert float(overrides_of(config_of(learning_rate=1e6))["learning_rate"]) == 1e6
    real = overrides(CONFIG, model="/m", output_dir="/o", device="gpu", known=_Everything(), made=False)
    assert "learning_rate" not in real


@pytest.mark.parametrize(("method", "kind", "bits"), [("full", "full", "null"), ("qlora", "lora", "4")])
def test_a_method_is_said_on_the_command_line(method: Any, kind: str, bits: str) -> None:
    config = with_method(config_of(quantization_bit=8, quantization_method="hqq"), method)
    values = overrides(config, model="/m", output_dir="/o", device="gpu", known=_Everything(), method=method)
    assert (values["finetuning_type"], values["quantization_bit"]) == (kind, bits)
    assert values.get("quantization_method") == ("bnb" if method == "qlora" else None)
    assert config.method == method


@pytest.mark.parametrize("stage", ["sft", "pt", "dpo", "rm", "kto"])
def test_the_longest_rows_are_longer_than_the_cutoff_in_any_tokenizer(stage: str) -> None:
    config = config_of(stage=stage, per_device_train_batch_size=3, cutoff_len=100)
    info, rows = worst_dataset(config, 2)
    (entry,) = info.values()
    assert len(rows) == 3 * 2 * WORST_STEPS
    for column in entry["columns"].values():
        for row in rows:
            assert isinstance(row[column], bool) or len(row[column].split()) >= config.cutoff_len
    assert entry.get("ranking", False) is (stage in ("rm", "dpo"))


def test_the_longest_batch_takes_the_configs_batch_and_cutoff() -> None:
    values = worst_case(CONFIG, model="/m", output_dir="/o", dataset_dir="/d", known=_Everything())
    assert {"cutoff_len", "per_device_train_batch_size", "learning_rate", "deepspeed"} & values.keys() == set()
    zero = worst_case(CONFIG, model="/m", output_dir="/o", dataset_dir="/d", known=_Everything(), zero=True)
    assert zero["deepspeed"] == "examples/deepspeed/ds_z3_config.json"


def test_a_learning_rate_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="is no number"):
        config_of(learning_rate="fast")


# ------------------------------------------------------------------ configs


def test_the_default_config_is_a_plain_text_recipe(tmp_path: Path) -> None:
    folder = tmp_path / "examples" / "train_lora"
    folder.mkdir(parents=True)
    for name in ("qwen3vl_lora_sft.yaml", "qwen3_lora_sft.yaml", "qwen3_lora_sft_ray.yaml", "qwen3_lora_dpo.yaml"):
        (folder / name).touch()
    assert default_config(tmp_path).name == "qwen3_lora_sft.yaml"


def test_a_config_without_a_dataset_is_refused() -> None:
    with pytest.raises(UsageError, match="names no dataset"):
        config_of(dataset=None)


def test_a_file_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("a: [1,\n")
    with pytest.raises(UsageError, match="cannot be read as YAML"):
        read_config(path)


def test_an_undefined_dataset_is_said_with_the_nearest_name() -> None:
    check = judge_config(config_of(dataset="alpaca_en_dem"), {"alpaca_en_demo": {}}, None)
    assert check is not None
    assert check.outcome is Outcome.FAILED
    assert check.fix == "did you mean alpaca_en_demo?"


def test_data_with_images_need_a_real_model() -> None:
    info = {"mllm_demo": {"columns": {"messages": "messages", "images": "images"}}}
    config = config_of(dataset="mllm_demo")
    check = judge_config(config, info, None)
    assert check is not None
    assert check.outcome is Outcome.NOT_RUN
    assert judge_config(config, info, Path("/models/qwen-vl")) is None


def test_a_config_that_cannot_resume_is_warned_about() -> None:
    (check,) = judge_resumable(config_of(save_only_model=True))
    assert check.outcome is Outcome.WARNED
    assert judge_resumable(CONFIG) == ()


def test_configs_inside_and_outside_the_checkout_are_found_in_the_container() -> None:
    inside = TrainSetup(Path("/co"), CONFIG, None, "cpu")
    outside = replace(inside, config=replace(CONFIG, path=Path("/home/u/my.yaml")))
    assert config_in_container(inside) == "examples/train_lora/qwen3_lora_sft.yaml"
    assert config_in_container(outside) == f"{places.IN_CONFIG}/my.yaml"


# ------------------------------------------------------------------ checkouts


def checkout(path: Path, version: str = "0.9.5") -> Path:
    (path / "src/llamafactory/extras").mkdir(parents=True)
    (path / "src/llamafactory/extras/env.py").write_text(f'VERSION = "{version}"\n')
    (path / "data").mkdir()
    (path / "data/dataset_info.json").write_text('{"identity": {"file_name": "identity.json"}, "alpaca_en_demo": {}}')
    (path / "data/identity.json").write_text("[]")
    (path / "examples/train_lora").mkdir(parents=True)
    recipe = "dataset: identity,alpaca_en_demo\ntemplate: qwen3_nothink\n"
    (path / "examples/train_lora/qwen3_lora_sft.yaml").write_text(recipe)
    return path


def options_of(path: Path, **changes: Any) -> VerifyOptions:
    options = VerifyOptions("cpu", path, None, None, 1, path / "report", environ={}, caches={})
    return replace(options, **changes)


def test_a_whole_checkout_of_the_images_version_is_ready(tmp_path: Path) -> None:
    setup, checks = prepare(options_of(checkout(tmp_path)), "0.9.5")
    assert setup is not None
    assert setup.config.template == "qwen3_nothink"
    assert [check.outcome for check in checks] == [Outcome.PASSED]


def test_a_checkout_without_dataset_info_fails_before_any_container(tmp_path: Path) -> None:
    path = checkout(tmp_path)
    (path / "data/dataset_info.json").unlink()
    setup, checks = prepare(options_of(path), "0.9.5")
    assert setup is None
    assert "dataset_info.json" in (checks[-1].cause or "")


def test_a_checkout_of_another_version_fails_before_any_container(tmp_path: Path) -> None:
    setup, checks = prepare(options_of(checkout(tmp_path, "0.9.4")), "0.9.5")
    assert setup is None
    assert "is LLaMA-Factory 0.9.4, not 0.9.5" in (checks[-1].cause or "")


def test_a_directory_without_a_model_fails(tmp_path: Path) -> None:
    setup, checks = prepare(options_of(checkout(tmp_path), model=tmp_path), "0.9.5")
    assert setup is None
    assert "has no config.json" in checks[-1].message


def test_a_method_takes_the_place_of_the_configs(tmp_path: Path) -> None:
    setup, _ = prepare(options_of(checkout(tmp_path), method="full"), "0.9.5")
    assert setup is not None
    assert (setup.config.method, setup.config.lora, setup.method) == ("full", False, "full")


def test_a_cache_that_cannot_be_written_is_said_before_any_container(tmp_path: Path) -> None:
    caches = {"HF_HOME": "/proc/sys/kernel/none", "TRITON_CACHE_DIR": str(tmp_path / "not/yet")}
    setup, checks = prepare(options_of(checkout(tmp_path), caches=caches), "0.9.5")
    assert setup is None
    assert checks[-1].name == "caches are writable"
    assert "HF_HOME=/proc/sys/kernel/none" in checks[-1].message
    assert "TRITON_CACHE_DIR" not in checks[-1].message + (checks[-1].fix or "")


def test_caches_that_can_be_written_are_named_and_left_empty(tmp_path: Path) -> None:
    cache = tmp_path / "hf"
    cache.mkdir()
    setup, checks = prepare(options_of(checkout(tmp_path / "co"), caches={"HF_HOME": str(cache)}), "0.9.5")
    assert setup is not None
    assert [check.outcome for check in checks] == [Outcome.PASSED] * 2
    assert list(cache.iterdir()) == []


# ------------------------------------------------------------------ outputs


def png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b"")


def safetensors(values: bytes = bytes(8)) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def write_run(directory: Path, *, start: int = 1, config: TrainConfig = CONFIG, loss: float = 7.0) -> Path:
    """An output directory as a good run leaves it, from step `start`."""
    for name in [group[0] for group in expected_files(config)]:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case ".png":
                path.write_bytes(png())
            case ".safetensors":
                path.write_bytes(safetensors())
            case ".bin" | ".pt" | ".pth":
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("data.pkl", b"")
            case _:
                path.write_text("{}\n")
    steps = range(1, STEPS + 1)
    rows = [{"current_steps": step, "loss": loss - step / 100} for step in steps if step >= start]
    (directory / "trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    history = [{"step": step, "loss": loss - step / 100, "grad_norm": 0.4} for step in steps]
    (directory / "trainer_state.json").write_text(json.dumps({"global_step": STEPS, "log_history": history}))
    (directory / "all_results.json").write_text(json.dumps({"train_loss": loss, "eval_loss": loss}))
    return directory


def test_a_good_run_passes(tmp_path: Path) -> None:
    found = read_outputs(write_run(tmp_path))
    checks = [judge_files(found, CONFIG), judge_steps(found), judge_losses(found), judge_learning(found, made=True)]
    assert [check.outcome for check in checks] == [Outcome.PASSED] * 4


def test_a_model_that_does_not_learn_fails_and_a_real_one_warns(tmp_path: Path) -> None:
    found = read_outputs(write_run(tmp_path))
    flat = replace(found, log=tuple(replace(row, loss=7.0) for row in found.log))
    assert judge_learning(flat, made=True).outcome is Outcome.FAILED
    assert judge_learning(flat, made=False).outcome is Outcome.WARNED


def test_tokens_a_second_are_read_from_the_last_row_that_counts_them(tmp_path: Path) -> None:
    rows = [{"current_steps": 1, "loss": 7.0, "throughput": 100.5, "total_tokens": 400}, {"current_steps": 1}]
    (tmp_path / "trainer_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_outputs(tmp_path)
    assert (found.tokens, found.tokens_per_second) == (400, 100.5)


def longest(step: int | None, tokens: int | None) -> RunOutputs:
    return RunOutputs((), (), (), step, 7.0, None, None, tokens, None)


def test_the_longest_batch_must_be_as_long_as_the_config_says() -> None:
    config = config_of(per_device_train_batch_size=4, cutoff_len=2048)
    whole = 4 * 2 * 2048 * WORST_STEPS
    assert judge_longest(longest(WORST_STEPS, whole), config, 2, 31.5, made=False).message.endswith("31.5 GB")
    assert judge_longest(longest(WORST_STEPS, whole // 2), config, 2, 1.0, made=False).outcome is Outcome.FAILED
    assert judge_longest(longest(1, whole), config, 2, 1.0, made=True).outcome is Outcome.FAILED


@pytest.mark.parametrize("name", [group[0] for group in expected_files(CONFIG)])
def test_each_expected_file_is_missed(tmp_path: Path, name: str) -> None:
    (write_run(tmp_path) / name).unlink()
    check = judge_files(read_outputs(tmp_path), CONFIG)
    assert check.outcome is Outcome.FAILED
    assert name in check.message


def test_full_finetuning_writes_whole_weights() -> None:
    groups = expected_files(config_of(finetuning_type="full"))
    assert ("adapter_config.json",) not in groups
    assert ("model.safetensors", "model.safetensors.index.json") in groups


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("training_loss.png", png()[:-6], "is no whole PNG image"),
        ("training_loss.png", b"GIF89a", "is no whole PNG image"),
        ("adapter_model.safetensors", safetensors(bytes(4)), "is cut off"),
        ("adapter_model.safetensors", b"\x01", "is cut off"),
        ("training_args.bin", b"not a zip", "is no file of torch.save"),
        ("tokenizer.json", b"", "is empty"),
        ("tokenizer.json", b'{"a": ', "is not JSON"),
        ("trainer_log.jsonl", b'{}\n{"a"\n', "is not JSON"),
    ],
)
def test_damaged_files_are_found_by_content(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert (fault_of(path) or "").startswith(fault)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_fails(tmp_path: Path, bad: float) -> None:
    check = judge_losses(read_outputs(write_run(tmp_path, loss=bad)))
    assert check.outcome is Outcome.FAILED
    assert "learning rate is too high" in (check.cause or "")


def test_a_loss_of_zero_beside_a_nan_gradient_is_nan(tmp_path: Path) -> None:
    found = read_outputs(write_run(tmp_path))
    hidden = replace(found, log=(LogRow(1, 0.0, None, None),), history=(LogRow(1, 0.0, None, math.nan),))
    check = judge_losses(hidden)
    assert check.outcome is Outcome.FAILED
    assert "learning rate" in (check.cause or "")


def test_a_loss_that_explodes_fails(tmp_path: Path) -> None:
    found = read_outputs(write_run(tmp_path))
    rows = tuple(LogRow(step, 7.0 if step == 1 else 5000.0, None, None) for step in range(1, STEPS + 1))
    check = judge_losses(replace(found, log=rows))
    assert check.outcome is Outcome.FAILED
    assert "learning rate" in (check.cause or "")


def test_labels_that_are_all_masked_fail(tmp_path: Path) -> None:
    found = read_outputs(write_run(tmp_path))
    rows = tuple(LogRow(step, 0.0, None, None) for step in range(1, STEPS + 1))
    assert judge_losses(replace(found, log=rows)).outcome is Outcome.FAILED


def test_a_run_that_stops_early_fails(tmp_path: Path) -> None:
    found = read_outputs(write_run(tmp_path))
    assert judge_steps(replace(found, global_step=4)).outcome is Outcome.FAILED
    assert judge_steps(replace(found, log=found.log[:2])).outcome is Outcome.FAILED


def test_an_empty_directory_is_judged_not_raised(tmp_path: Path) -> None:
    found = read_outputs(tmp_path / "nothing")
    assert found == RunOutputs((), (), (), None, None, None, None)
    assert judge_losses(found).outcome is Outcome.FAILED


# ------------------------------------------------------------------ resume, adapter, device


def runs(tmp_path: Path, *, start: int, loss: float = 7.0) -> tuple[RunOutputs, RunOutputs]:
    return read_outputs(write_run(tmp_path / "a")), read_outputs(write_run(tmp_path / "b", start=start, loss=loss))


def test_a_run_that_goes_on_from_its_checkpoint_passes(tmp_path: Path) -> None:
    assert judge_resume(*runs(tmp_path, start=HALF + 1), exact=True).outcome is Outcome.PASSED


def test_a_run_that_starts_again_fails(tmp_path: Path) -> None:
    check = judge_resume(*runs(tmp_path, start=1), exact=True)
    assert check.outcome is Outcome.FAILED
    assert check.message == f"started at step 1, not {HALF + 1}"


def test_a_resume_that_loses_its_optimizer_fails(tmp_path: Path) -> None:
    assert judge_resume(*runs(tmp_path, start=HALF + 1, loss=7.4), exact=True).outcome is Outcome.FAILED


def test_a_gpu_may_sum_in_another_order(tmp_path: Path) -> None:
    assert judge_resume(*runs(tmp_path, start=HALF + 1, loss=7.1), exact=False).outcome is Outcome.PASSED


def test_a_resume_that_logged_nothing_fails(tmp_path: Path) -> None:
    assert judge_resume(*runs(tmp_path, start=STEPS + 1), exact=True).outcome is Outcome.FAILED


TENSORS = {"all": 28, "not_finite": [], "lora_b": 14, "lora_b_zero": 0, "largest": 0.1}
ADAPTER = {"tensors": TENSORS, "finite": True, "changed": 0.1, "new_tokens": 8, "device": "cpu"}


def test_a_trained_adapter_passes() -> None:
    assert [check.outcome for check in judge_adapter(ADAPTER, lora=True)] == [Outcome.PASSED] * 2


@pytest.mark.parametrize(
    "change",
    [{"all": 0}, {"not_finite": ["base_model.lora_A"]}, {"lora_b_zero": 14}, {"largest": 2e6}],
    ids=["none", "nan", "untrained", "exploded"],
)
def test_bad_tensors_fail(change: dict[str, Any]) -> None:
    answer = {**ADAPTER, "tensors": {**TENSORS, **change}}
    assert judge_adapter(answer, lora=True)[0].outcome is Outcome.FAILED


@pytest.mark.parametrize("change", [{"finite": False}, {"new_tokens": 0}, {"changed": 0.0}])
def test_an_adapter_that_does_not_work_fails(change: dict[str, Any]) -> None:
    assert judge_adapter({**ADAPTER, **change}, lora=True)[1].outcome is Outcome.FAILED


LOG = (
    "[INFO] llamafactory.hparams.parser:523 >> Process rank: 0, world size: 1, device: {}, distributed training: False"
)


def used(*grown: float) -> GpuUse:
    use = GpuUse(utilisation=[5, 40])
    use.begin(dict.fromkeys(range(len(grown)), 1.0))
    use.add([GpuSample(0.5, index, 1.0 + amount, 40) for index, amount in enumerate(grown)], kept=True)
    return use


@pytest.mark.parametrize(
    ("device", "gpus", "grown", "outcome"),
    [
        ("cpu", (), 0.0, Outcome.PASSED),
        ("cuda:0", (0,), 1.2, Outcome.PASSED),
        ("cpu", (0,), 0.0, Outcome.FAILED),
        ("cuda:0", (0,), 0.0, Outcome.FAILED),
    ],
)
def test_the_work_must_be_done_where_it_was_asked_for(
    device: str, gpus: tuple[int, ...], grown: float, outcome: Outcome
) -> None:
    assert judge_devices(devices_in_log(LOG.format(device)), gpus, used(grown)).outcome is outcome


TWO = LOG.format("cuda:0") + "\n" + LOG.format("cuda:1").replace("rank: 0", "rank: 1")


@pytest.mark.parametrize(
    ("log", "grown", "outcome", "said"),
    [
        (TWO, (1.2, 1.1), Outcome.PASSED, "rank 0: cuda:0, rank 1: cuda:1; 1.2, 1.1 GB more"),
        (TWO, (1.2, 0.0), Outcome.FAILED, "1.2, 0.0 GB more"),
        (TWO.replace("cuda:1", "cuda:0"), (1.2, 1.1), Outcome.FAILED, "rank 1: cuda:0"),
        (LOG.format("cuda:0"), (1.2, 1.1), Outcome.FAILED, "cuda:0"),
    ],
    ids=["both", "one idle", "both on one", "one rank"],
)
def test_each_rank_needs_a_gpu_of_its_own(log: str, grown: tuple[float, ...], outcome: Outcome, said: str) -> None:
    check = judge_devices(devices_in_log(log), (0, 1), used(*grown))
    assert check.outcome is outcome
    assert said in check.message


def test_zero_must_do_its_steps_on_every_rank() -> None:
    done = longest(WORST_STEPS, None)
    assert judge_zero(done, TWO, 2).outcome is Outcome.PASSED
    assert judge_zero(done, LOG.format("cuda:0"), 2).outcome is Outcome.FAILED
    assert judge_zero(longest(1, None), TWO, 2).outcome is Outcome.FAILED


def test_a_log_without_a_device_fails() -> None:
    assert judge_devices(devices_in_log("nothing"), (), GpuUse()).outcome is Outcome.FAILED


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"flash_attn": "fa2"}, "flash-attn"),
        ({"quantization_bit": 4}, "bitsandbytes"),
        ({"deepspeed": "examples/deepspeed/ds_z3_config.json"}, "deepspeed"),
    ],
)
def test_a_package_that_the_config_needs_is_missed(changes: dict[str, Any], package: str) -> None:
    config = config_of(**changes)
    (check,) = judge_packages_wanted(config, frozenset({"torch"}))
    assert check.outcome is Outcome.FAILED
    assert package in check.message
    assert judge_packages_wanted(config, frozenset({"torch", package})) == ()
