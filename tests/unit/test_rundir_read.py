"""An output directory read: files and their purpose, what is damaged, how far the run came, what to do next."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from sifkit.errors import Exit, UsageError
from sifkit.rundir import whole
from sifkit.rundir.advice import advice, how_far
from sifkit.rundir.checkpoints import Status
from sifkit.rundir.files import file_table, purpose_of
from sifkit.rundir.read import End, Run, read_run
from sifkit.rundir.trainlog import POINTS, Log, Point, SeriesBuilder, parse_elapsed, read_log, read_state
from sifkit.rundir.whole import fault_of
from tests.unit.run_dirs import (
    rows,
    safetensors,
    state,
    write,
    write_checkpoint,
    write_finished,
    write_unfinished,
)


def statuses(run: Run) -> dict[str, Status]:
    return {each.name: each.status for each in run.checkpoints}


# ------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("lora", [True, False])
def test_a_finished_run_is_whole(tmp_path: Path, lora: bool) -> None:
    run = read_run(write_finished(tmp_path, lora=lora))
    assert (run.end, run.whole, run.damaged, run.missing) == (End.FINISHED, True, (), ())
    assert run.method == ("lora" if lora else "full")
    assert how_far(run) == "finished at step 6 of 6"
    assert advice(run) == ()
    assert [file.name for file in run.files if file.purpose is None] == []


def test_a_run_that_its_trainer_ended_early_says_so(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_state.json", state(6, most=9))
    write(directory / "trainer_log.jsonl", rows(range(1, 7), most=9))
    assert how_far(read_run(directory)) == "finished at step 6 of 9 (stopped early by itself, or told to end)"


def test_a_stopped_run_goes_on_from_its_newest_checkpoint(tmp_path: Path) -> None:
    run = read_run(write_unfinished(tmp_path, steps=5))
    assert run.end is End.UNFINISHED
    assert how_far(run) == "not finished: still running, or stopped after step 5 of 6 (83%)"
    assert advice(run) == ("the same command goes on from checkpoint-6, unless overwrite_output_dir is true",)


def test_a_checkpoint_that_was_cut_off_is_named_with_the_way_out(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path / "a run")
    (directory / "checkpoint-6" / "trainer_state.json").unlink()
    run = read_run(directory)
    assert statuses(run) == {"checkpoint-3": Status.COMPLETE, "checkpoint-6": Status.INCOMPLETE}
    assert run.checkpoints[1].problems == ("trainer_state.json is missing",)
    assert not run.whole
    first, second = advice(run)
    assert f"mv -- '{directory}/checkpoint-6' '{directory}/incomplete-checkpoint-6'" in first
    assert "goes on from checkpoint-3" in second


def test_weights_without_a_checkpoint_cannot_be_gone_on_from(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path)
    for step in (3, 6):
        for path in (directory / f"checkpoint-{step}").iterdir():
            path.unlink()
        (directory / f"checkpoint-{step}").rmdir()
    assert advice(read_run(directory)) == ("there is no checkpoint: the run starts again at step 0",)
    write(directory / "adapter_model.safetensors")
    assert "refuses this output_dir" in advice(read_run(directory))[0]


def test_a_reward_model_of_all_weights_does_not_resume(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, lora=False)
    for step in (3, 6):
        write(directory / f"checkpoint-{step}" / "value_head.safetensors")
    run = read_run(directory)
    assert run.stage == "rm"
    assert advice(run) == ("LLaMA-Factory does not resume stage rm of full or freeze: the run starts again at step 0",)


def test_a_reward_models_adapter_is_named_on_the_command_line(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path)
    for step in (3, 6):
        write(directory / f"checkpoint-{step}" / "value_head.safetensors")
    assert f"adapter_name_or_path={directory}/checkpoint-6" in advice(read_run(directory))[0]


def test_ppos_checkpoints_hold_the_model_alone(tmp_path: Path) -> None:
    directory = tmp_path
    write(directory / "trainer_log.jsonl", rows(range(1, 4), reward=0.5))
    for name in ("adapter_config.json", "adapter_model.safetensors", "value_head.safetensors", "training_args.bin"):
        write(directory / "checkpoint-3" / name)
    run = read_run(directory)
    assert (run.stage, statuses(run)) == ("ppo", {"checkpoint-3": Status.MODEL_ONLY})


@pytest.mark.parametrize(
    ("history", "results", "stage"),
    [
        ({"kl": 0.1, "rewards/chosen": 0.0}, {}, "kto"),
        ({"rewards/accuracies": 0.5}, {}, "dpo"),
        ({}, {"eval_perplexity": 900.0}, "pt"),
        ({}, {}, "sft or pt"),
    ],
)
def test_the_stage_is_known_by_what_it_logs(
    tmp_path: Path, history: dict[str, float], results: dict[str, float], stage: str
) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_state.json", state(6, log_history=[{"step": 1, "loss": 1.0, **history}]))
    write(directory / "all_results.json", json.dumps(results))
    assert read_run(directory).stage == stage


def test_prediction_alone_is_no_unfinished_training(tmp_path: Path) -> None:
    write(tmp_path / "predict_results.json", '{"predict_rouge-1": 0.6}')
    write(tmp_path / "generated_predictions.jsonl", '{"predict": "x"}\n')
    run = read_run(tmp_path)
    assert (run.end, run.stage, advice(run)) == (End.NO_TRAINING, "predict", ())


# ------------------------------------------------------------------ finished or not


def test_a_run_that_goes_on_past_its_first_end_is_unfinished(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_log.jsonl", rows(range(1, 7)) + rows(range(7, 9), most=12))
    assert read_run(directory).end is End.UNFINISHED


def test_a_second_run_in_the_same_directory_is_unfinished(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_log.jsonl", rows([1, 2]))
    os.utime(directory / "trainer_state.json", (1000, 1000))
    assert read_run(directory).end is End.UNFINISHED


def test_a_log_copied_in_another_order_changes_nothing(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_log.jsonl", rows([1, 2, 3]))  # logging_steps=3: the last row need not be the last step
    os.utime(directory / "trainer_state.json", (1000, 1000))
    os.utime(directory / "trainer_log.jsonl", (1005, 1005))
    assert read_run(directory).end is End.FINISHED


# ------------------------------------------------------------------ the log


def test_a_resumed_run_replaces_what_it_repeats() -> None:
    text = rows(range(1, 6)) + rows(range(3, 7))
    log = read_log(text.encode().splitlines(keepends=True))
    assert [point.step for point in log.loss.points] == [1, 2, 3, 4, 5, 6]
    assert (log.restarts, log.current_steps, log.elapsed) == (1, 6, timedelta(seconds=6))


def test_torn_and_foreign_lines_are_counted() -> None:
    lines = [
        b'{"current_steps": 1, "total_steps": 6, "loss": NaN}\n',
        b"\xff\xfe\n",
        b"[1]\n",
        b'{"loss": 1}\n',
        b'{"cur',
    ]
    log = read_log(lines)
    assert (log.rows, log.torn, log.loss.count, log.loss.not_finite) == (1, 4, 1, 1)


@pytest.mark.parametrize("row", ['{"current_steps": true}', '{"current_steps": -1}', '{"current_steps": 1e3}'])
def test_what_is_no_step_is_no_row(row: str) -> None:
    assert read_log([row.encode()]) == Log(torn=1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:00:20", 20), ("1 day, 2:03:04", 93784), ("12 days, 0:00:00", 1036800), ("soon", None), (3, None)],
)
def test_elapsed_times_are_read_as_python_writes_them(text: object, seconds: int | None) -> None:
    assert parse_elapsed(text) == (None if seconds is None else timedelta(seconds=seconds))


def test_a_long_series_keeps_its_shape_in_few_points() -> None:
    builder = SeriesBuilder(limit=64)
    for step in range(1, 100_001):
        builder.add(step, float(step))
    series = builder.series()
    assert len(series.points) <= 64
    assert (series.count, series.first, series.last) == (100_000, Point(1, 1.0), Point(100_000, 100_000.0))
    assert all(abs(point.value - point.step) < 100_000 / 32 for point in series.points)


def test_a_long_log_takes_constant_memory(tmp_path: Path) -> None:
    row = '{"current_steps": %d, "total_steps": 300000, "loss": 1.5, "lr": 1e-05, "elapsed_time": "1:00:00"}'
    with (tmp_path / "trainer_log.jsonl").open("w") as file:
        file.writelines(f"{row % step}\n" for step in range(1, 300_001))
    script = (
        "import resource, sys; from pathlib import Path; from sifkit.rundir.read import read_run\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "run = read_run(Path(sys.argv[1]))\n"
        f"assert run.log.rows == 300_000 and len(run.log.loss.points) <= {POINTS}\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8_000  # KiB; the file has 30 MB


# ------------------------------------------------------------------ trainer_state.json


def test_a_large_state_is_scanned_to_the_same_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = "/mnt/saves/x/checkpoint-3"
    path = write(tmp_path / "trainer_state.json", state(6, best_model_checkpoint=best, best_metric=6.5))
    whole_answer = read_state(path)
    monkeypatch.setattr("sifkit.rundir.trainlog._WHOLE_STATE", 0)
    assert read_state(path) == whole_answer
    assert whole_answer is not None
    assert (whole_answer.best_checkpoint, whole_answer.global_step) == ("checkpoint-3", 6)
    assert whole_answer.quantities == {"step", "loss", "grad_norm"}


def test_a_large_state_that_is_cut_off_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sifkit.rundir.trainlog._WHOLE_STATE", 0)
    assert read_state(write(tmp_path / "trainer_state.json", state(6)[:-4])) is None


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"global_step": "x"}', "\xff"])
def test_a_state_that_is_something_else_is_no_state(tmp_path: Path, text: str) -> None:
    found = read_state(write(tmp_path / "trainer_state.json", text))
    assert found is None or found.global_step is None


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize(
    ("gone", "problem"),
    [
        ("adapter_model.safetensors", "weights (adapter_model or model) is missing"),
        ("adapter_config.json", "adapter_config.json is missing"),
        ("trainer_state.json", "trainer_state.json is missing"),
        ("scheduler.pt", "scheduler.pt is missing"),
    ],
)
def test_a_checkpoint_lacks_what_resuming_needs(tmp_path: Path, gone: str, problem: str) -> None:
    directory = write_unfinished(tmp_path)
    (directory / "checkpoint-6" / gone).unlink()
    checkpoint = read_run(directory).checkpoints[1]
    assert (checkpoint.status, checkpoint.problems) == (Status.INCOMPLETE, (problem,))


def test_weights_that_are_cut_off_make_a_checkpoint_incomplete(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path)
    write(directory / "checkpoint-6" / "adapter_model.safetensors", safetensors()[:-3])
    checkpoint = read_run(directory).checkpoints[1]
    assert checkpoint.problems == ("adapter_model.safetensors is cut off",)


def test_an_empty_model_card_does_no_harm_to_a_checkpoint(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path)
    write(directory / "checkpoint-6" / "README.md", "")
    assert read_run(directory).checkpoints[1].status is Status.COMPLETE


def test_a_checkpoint_without_an_optimizer_is_a_model_alone(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (directory / "checkpoint-6" / name).unlink()
    run = read_run(directory)
    assert statuses(run)["checkpoint-6"] is Status.MODEL_ONLY
    assert run.resumable is not None
    assert run.resumable.name == "checkpoint-3"
    assert "new optimizer" in advice(run)[0]


def sharded(directory: Path, names: tuple[str, ...]) -> None:
    (directory / "model.safetensors").unlink()
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write(directory / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    for name in names:
        write(directory / name)


def test_shards_are_whole_when_all_that_the_index_names_are_there(tmp_path: Path) -> None:
    directory = write_finished(tmp_path, lora=False)
    sharded(directory, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    assert read_run(directory).whole


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    directory = write_finished(tmp_path, lora=False)
    sharded(directory, ("model-00001-of-00002.safetensors",))
    run = read_run(directory)
    assert (run.whole, run.missing) == (False, ("model-00002-of-00002.safetensors",))
    assert "model-00002-of-00002.safetensors" in advice(run)[0]


def test_shards_without_their_index_are_no_model(tmp_path: Path) -> None:
    directory = write_finished(tmp_path, lora=False)
    sharded(directory, ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    (directory / "model.safetensors.index.json").unlink()
    assert read_run(directory).missing == ("the index of the shards",)


def deepspeed(directory: Path, step: int, *, latest: str | None = None, ranks: int = 2) -> Path:
    """A checkpoint of ZeRO-3 that gathered no weights."""
    path = write_checkpoint(directory, step, lora=False)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
        (path / name).unlink()
    write(path / "latest", latest if latest is not None else f"global_step{step}\n")
    write(path / "zero_to_fp32.py", "print()")
    for rank in range(ranks):
        write(path / f"global_step{step}" / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        write(path / f"global_step{step}" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    return path


def test_deepspeeds_directory_is_enough_to_resume(tmp_path: Path) -> None:
    write(tmp_path / "trainer_log.jsonl", rows([1, 2, 3]))
    deepspeed(tmp_path, 3)
    run = read_run(tmp_path)
    assert statuses(run) == {"checkpoint-3": Status.COMPLETE}
    assert run.checkpoints[0].optimizer == ()  # its weights are nowhere else


def test_deepspeeds_latest_must_name_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "trainer_log.jsonl", rows([1, 2, 3]))
    deepspeed(tmp_path, 3, latest="global_step2")
    assert read_run(tmp_path).checkpoints[0].problems == ("global_step2, which the file latest names, is missing",)


def test_an_empty_directory_of_deepspeed_is_incomplete(tmp_path: Path) -> None:
    write(tmp_path / "trainer_log.jsonl", rows([1, 2, 3]))
    (deepspeed(tmp_path, 3, ranks=0) / "global_step3").mkdir()
    assert read_run(tmp_path).checkpoints[0].problems == ("the content of global_step3 is missing",)


def test_fsdps_shards_are_weights(tmp_path: Path) -> None:
    write(tmp_path / "trainer_log.jsonl", rows([1, 2, 3]))
    path = write_checkpoint(tmp_path, 3, lora=False)
    for name in ("model.safetensors", "optimizer.pt"):
        (path / name).unlink()
    write(path / "pytorch_model_fsdp_0" / "__0_0.distcp", "x")
    write(path / "optimizer_0" / "__0_0.distcp", "x")
    (checkpoint,) = read_run(tmp_path).checkpoints
    assert (checkpoint.status, checkpoint.optimizer) == (Status.COMPLETE, ("optimizer_0",))


# ------------------------------------------------------------------ purposes


@pytest.mark.parametrize("row", file_table(), ids=lambda row: row.name)
def test_every_row_of_the_table_is_reached(row: object) -> None:
    name = row.name.replace("*", "1")  # type: ignore[attr-defined]
    assert purpose_of(name) == row.purpose  # type: ignore[attr-defined]


def test_what_no_run_writes_has_no_purpose() -> None:
    assert purpose_of("notes.txt") is None
    assert purpose_of("mine/") is None


def test_files_in_known_directories_belong_to_them() -> None:
    assert purpose_of("checkpoint-3/optimizer.pt") == purpose_of("optimizer.pt")
    assert (purpose_of("checkpoint-3/global_step3/mp_rank_00.xyz") or "").startswith("DeepSpeed")


# ------------------------------------------------------------------ damage and hostile content


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.json", b"[" * 100_000, "is not JSON: it is nested too deeply"),
        ("a.json", b'{"a": "\xff"}', "is not JSON"),
        ("a.jsonl", b'{"a": 1}\n{"b"', "is not JSON"),
        ("a.safetensors", (200_000_000).to_bytes(8, "little") + b"{}", "is cut off"),
        ("a.safetensors", (2).to_bytes(8, "little") + b"[]", "has no safetensors header"),
        ("a.safetensors", (16).to_bytes(8, "little") + b'{"a": {"b": 123}', "has no safetensors header"),
        ("a.png", b"\x89PNG\r\n\x1a\n" + (1 << 31).to_bytes(4, "big") + b"IHDR", "is no whole PNG image"),
        ("a.pt", b"\x80\x04.", "is no file of torch.save"),
    ],
)
def test_hostile_files_are_faults(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    assert (fault_of(write(tmp_path / name, content)) or "").startswith(fault)


def test_a_line_without_end_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "MAX_LINE", 1000)
    path = write(tmp_path / "generated_predictions.jsonl", b'"' + b"x" * 5000)
    assert "line 1 has more than" in (fault_of(path) or "")


def test_json_that_is_too_large_is_judged_by_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "MAX_JSON", 10)
    assert "zero bytes" in (fault_of(write(tmp_path / "c.json", b'{"a": "' + bytes(200) + b'"}')) or "")
    assert fault_of(write(tmp_path / "a.json", '{"a": "' + "x" * 200 + '"}\n')) is None
    assert "cut off" in (fault_of(write(tmp_path / "b.json", '{"a": "' + "x" * 200)) or "")


def test_users_own_empty_files_are_no_damage(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    write(directory / ".gitkeep", "")
    assert read_run(directory).whole


def test_links_pipes_and_what_cannot_be_read_are_told(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "run")
    outside = write(tmp_path / "outside" / "model.safetensors")
    (directory / "linked.safetensors").symlink_to(outside)
    (directory / "linked").symlink_to(tmp_path)
    (directory / "gone").symlink_to(tmp_path / "nothing")
    os.mkfifo(directory / "pipe")
    run = read_run(directory)
    faults = {file.name: file.fault for file in run.damaged}
    assert faults == {"gone": f"is a link to {tmp_path}/nothing, which is not there", "pipe": "is no regular file"}
    assert not any(file.name.startswith("linked/") for file in run.files)


def test_a_deep_tree_ends_somewhere(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    (directory / "/".join("d" * 500)).mkdir(parents=True)
    assert read_run(directory).whole


def test_an_index_that_points_elsewhere_names_missing_files_and_opens_none(tmp_path: Path) -> None:
    directory = write_finished(tmp_path, lora=False)
    write(directory / "model.safetensors.index.json", json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    assert read_run(directory).missing == ("../../etc/passwd",)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_losses_that_are_no_numbers_are_said(tmp_path: Path, loss: float) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_log.jsonl", rows(range(1, 7), loss=loss))
    assert advice(read_run(directory))[0].startswith("6 of 6 logged losses are not finite")


# ------------------------------------------------------------------ not a run


def test_no_directory_a_file_and_no_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such directory"):
        read_run(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is a file"):
        read_run(write(tmp_path / "x.json"))
    with pytest.raises(UsageError, match="no training run left anything here"):
        read_run(tmp_path)


def test_the_run_below_is_named(tmp_path: Path) -> None:
    write_finished(tmp_path / "qwen3-4b" / "lora" / "sft")
    with pytest.raises(UsageError) as caught:
        read_run(tmp_path)
    assert caught.value.fix == f"below it there are: {tmp_path}/qwen3-4b/lora/sft"


def test_a_checkpoint_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a checkpoint") as caught:
        read_run(write_unfinished(tmp_path) / "checkpoint-3")
    assert caught.value.fix == f"name the run's: {tmp_path}"


def test_a_directory_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    tmp_path.chmod(0o000)
    script = (
        "import os, sys; from sifkit.cli import main; os.geteuid() or os.setuid(65534); sys.exit(main(sys.argv[1:]))"
    )
    try:  # root reads everything: the question is asked as another user
        argv = [sys.executable, "-c", script, "outputs", str(tmp_path)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    finally:
        tmp_path.chmod(0o700)
    assert (done.returncode, "Traceback" in done.stderr) == (Exit.HOST, False)
    assert "cannot be read: permission denied" in done.stderr


def test_a_log_with_torn_rows_is_damaged(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    write(directory / "trainer_log.jsonl", rows(range(1, 7)) + '{"current_st')
    (file,) = read_run(directory).damaged
    assert file.fault == "has 1 lines that are no rows of a log, beside 6 that are"
