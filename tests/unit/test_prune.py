"""`sifkit prune`: what may go, that nothing else is touched, and that what runs is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit, Interrupted, ProblemFound
from sifkit.rundir.checkpoints import Status
from sifkit.rundir.prune import Removal, carry_out, identity_of, make_plan, mounts_below
from sifkit.rundir.read import PRUNED, read_run
from sifkit.rundir.running import QUIET, output_dir_of, quiet_after, signs_of_running
from tests.unit.run_dirs import age, rows, state, tree, write, write_checkpoint, write_finished, write_unfinished
from tests.unit.test_rundir_read import deepspeed


def plan_of(directory: Path, *, keep: int = 0, optimizer_only: bool = False) -> tuple[list[str], list[str]]:
    plan = make_plan(read_run(directory), keep=keep, optimizer_only=optimizer_only)
    return [each.name for each in plan.keep], [each.name for each in plan.remove]


def prune(directory: Path, *, keep: int = 0, optimizer_only: bool = False) -> None:
    carry_out(make_plan(read_run(directory), keep=keep, optimizer_only=optimizer_only), identity_of(directory))


# ------------------------------------------------------------------ deciding


def test_a_finished_runs_checkpoints_go(tmp_path: Path) -> None:
    assert plan_of(write_finished(tmp_path)) == ([], ["checkpoint-3", "checkpoint-6"])


def test_a_run_that_ended_well_before_its_last_step_keeps_what_it_goes_on_from(tmp_path: Path) -> None:
    """Told to end, transformers saves, and LLaMA-Factory writes the model as after the last step."""
    directory = write_finished(tmp_path)
    write(directory / "trainer_state.json", state(6, most=9))
    write(directory / "trainer_log.jsonl", rows(range(1, 7), most=9))
    assert plan_of(directory) == (["checkpoint-6"], ["checkpoint-3"])
    _, going = plan_of(directory, optimizer_only=True)
    assert going
    assert not any(name.startswith("checkpoint-6/") for name in going)


def test_an_unfinished_run_keeps_what_it_goes_on_from(tmp_path: Path) -> None:
    assert plan_of(write_unfinished(tmp_path, steps=5)) == (["checkpoint-6"], ["checkpoint-3"])


def test_the_newest_complete_one_stays_when_a_newer_is_cut_off(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, steps=5)
    (directory / "checkpoint-6" / "trainer_state.json").unlink()
    plan = make_plan(read_run(directory))
    assert [each.name for each in plan.keep] == ["checkpoint-3"]
    assert [(each.name, each.why) for each in plan.remove] == [
        ("checkpoint-6", "incomplete: trainer_state.json is missing")
    ]


def test_the_best_one_stays(tmp_path: Path) -> None:
    directory = write_finished(tmp_path, best_model_checkpoint="/mnt/saves/x/checkpoint-3")
    assert plan_of(directory) == (["checkpoint-3"], ["checkpoint-6"])


def test_the_best_one_stays_of_an_unfinished_run_too(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, steps=10, best_model_checkpoint="saves/checkpoint-3")
    write_checkpoint(directory, 9, best_model_checkpoint="saves/checkpoint-3")
    assert plan_of(directory) == (["checkpoint-3", "checkpoint-9"], ["checkpoint-6"])


def test_the_newest_n_stay(tmp_path: Path) -> None:
    assert plan_of(write_finished(tmp_path), keep=1) == (["checkpoint-6"], ["checkpoint-3"])
    for many in (2, 3, 9):
        assert plan_of(tmp_path, keep=many) == (["checkpoint-3", "checkpoint-6"], [])


def test_the_only_model_stays_when_the_final_one_is_missing(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    (directory / "adapter_model.safetensors").unlink()
    assert plan_of(directory) == (["checkpoint-6"], ["checkpoint-3"])


def test_the_newest_model_stays_where_nothing_is_complete(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, steps=5)
    for step in (3, 6):
        for name in ("optimizer.pt", "scheduler.pt"):
            (directory / f"checkpoint-{step}" / name).unlink()
    assert {each.status for each in read_run(directory).checkpoints} == {Status.MODEL_ONLY}
    assert plan_of(directory) == (["checkpoint-6"], ["checkpoint-3"])


def test_a_checkpoint_in_a_form_that_is_not_known_stays(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    (directory / "checkpoint-3" / "adapter_model.safetensors").rename(directory / "checkpoint-3" / "mp_rank_00.zarr")
    assert plan_of(directory) == (["checkpoint-3"], ["checkpoint-6"])


def test_only_optimizers_go(tmp_path: Path) -> None:
    _, remove = plan_of(write_finished(tmp_path), optimizer_only=True)
    assert remove == ["checkpoint-3/optimizer.pt", "checkpoint-6/optimizer.pt"]


def test_the_newest_n_keep_their_optimizers(tmp_path: Path) -> None:
    assert plan_of(write_finished(tmp_path), keep=1, optimizer_only=True)[1] == ["checkpoint-3/optimizer.pt"]


def test_an_unfinished_run_keeps_the_optimizer_that_it_needs(tmp_path: Path) -> None:
    assert plan_of(write_unfinished(tmp_path, steps=5), optimizer_only=True)[1] == ["checkpoint-3/optimizer.pt"]


def test_deepspeeds_states_go_only_where_the_weights_are_elsewhere(tmp_path: Path) -> None:
    directory = write_finished(tmp_path, lora=False)
    for step in (3, 6):
        deepspeed(directory, step)
    write(directory / "checkpoint-6" / "model.safetensors")
    remove = plan_of(directory, optimizer_only=True)[1]
    assert remove == ["checkpoint-6/latest", "checkpoint-6/global_step6"]
    prune(directory, optimizer_only=True)
    assert (directory / "checkpoint-3" / "global_step3").is_dir()
    assert read_run(directory).checkpoints[1].status is Status.MODEL_ONLY


# ------------------------------------------------------------------ acting


def test_what_was_to_go_is_gone_and_nothing_else(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path / "run", steps=5)
    before = tree(tmp_path)
    prune(directory)
    assert before - tree(tmp_path) == {name for name in before if name.startswith("run/checkpoint-3")}
    assert tree(tmp_path) <= before


def test_without_its_optimizer_a_checkpoint_still_loads(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    before = tree(tmp_path)
    prune(directory, optimizer_only=True)
    assert before - tree(tmp_path) == {"checkpoint-3/optimizer.pt", "checkpoint-6/optimizer.pt"}
    assert {each.status for each in read_run(directory).checkpoints} == {Status.MODEL_ONLY}


def test_links_are_never_followed(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "run")
    outside = write_checkpoint(tmp_path / "elsewhere", 9)
    (directory / "checkpoint-9").symlink_to(outside)
    (directory / "checkpoint-3" / "data").symlink_to(tmp_path / "elsewhere")
    (directory / "checkpoint-3" / "file").symlink_to(outside / "optimizer.pt")
    before = tree(tmp_path / "elsewhere")
    keep, remove = plan_of(directory)
    assert (keep, remove) == (["checkpoint-9"], ["checkpoint-3", "checkpoint-6"])
    prune(directory)
    assert tree(tmp_path / "elsewhere") == before
    assert (directory / "checkpoint-9").is_symlink()
    assert not (directory / "checkpoint-3").exists()


def test_a_link_that_takes_a_checkpoints_place_meanwhile_is_refused(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "run")
    plan = make_plan(read_run(directory))
    outside = tmp_path / "outside"
    (directory / "checkpoint-3").rename(outside)
    (directory / "checkpoint-3").symlink_to(outside)
    before = tree(outside)
    with pytest.raises(ProblemFound, match="a link took its place"):
        carry_out(plan, identity_of(directory))
    assert tree(outside) == before
    assert (directory / "checkpoint-6").is_dir()


def test_a_link_in_place_of_a_checkpoint_hides_no_optimizer(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "run")
    plan = make_plan(read_run(directory), optimizer_only=True)
    (directory / "checkpoint-3").rename(tmp_path / "outside")
    (directory / "checkpoint-3").symlink_to(tmp_path / "outside")
    with pytest.raises(ProblemFound, match="a link took its place"):
        carry_out(plan, identity_of(directory))
    assert (tmp_path / "outside" / "optimizer.pt").exists()


def test_another_directory_of_that_name_is_refused(tmp_path: Path) -> None:
    directory = write_finished(tmp_path / "run")
    plan, identity = make_plan(read_run(directory)), identity_of(directory)
    directory.rename(tmp_path / "moved")
    write_finished(directory)
    with pytest.raises(ProblemFound, match="another directory than a moment ago"):
        carry_out(plan, identity)
    assert (directory / "checkpoint-3").is_dir()


def test_an_interrupted_removal_leaves_no_checkpoint_and_is_taken_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = write_finished(tmp_path)
    unlink = os.unlink
    left = iter(range(4))

    def stop_after_three(name: str, *, dir_fd: int | None = None) -> None:
        if next(left) == 3:
            raise KeyboardInterrupt
        unlink(name, dir_fd=dir_fd)

    monkeypatch.setattr("os.unlink", stop_after_three)
    with pytest.raises(Interrupted, match="checkpoint-3 was being removed"):
        prune(directory)
    monkeypatch.undo()
    assert not (directory / "checkpoint-3").exists()
    assert (directory / f"{PRUNED}checkpoint-3").is_dir()
    assert [each.name for each in read_run(directory).checkpoints] == ["checkpoint-6"]
    keep, remove = plan_of(directory, keep=1)
    assert (keep, remove) == (["checkpoint-6"], [f"{PRUNED}checkpoint-3"])
    prune(directory)
    assert not [name for name in tree(directory) if PRUNED in name or "checkpoint" in name]


def test_a_leftover_inside_a_checkpoint_goes_too(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, steps=5)
    write(directory / "checkpoint-6" / f"{PRUNED}global_step6" / "x.pt")
    assert plan_of(directory)[1] == [f"checkpoint-6/{PRUNED}global_step6", "checkpoint-3"]
    prune(directory)
    assert not (directory / "checkpoint-6" / f"{PRUNED}global_step6").exists()


def test_a_tree_that_has_no_bottom_is_no_checkpoint(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    (directory / "checkpoint-3" / "/".join("d" * 100)).mkdir(parents=True)
    with pytest.raises(ProblemFound, match="directories deep"):
        prune(directory)


def test_mount_points_are_found(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    inside = f"{tmp_path.resolve()}/run/checkpoint\\0403/m"
    lines = ["1 0 8:1 / / rw - ext4 /dev/x rw", f"2 1 8:1 /a {inside} rw - ext4 /dev/x rw", "damaged"]
    table.write_text("\n".join(lines))
    assert mounts_below(tmp_path / "run", table) == (f"{tmp_path.resolve()}/run/checkpoint 3/m",)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A finished run with a directory from outside bound into its checkpoint-3, on the same filesystem."""
    directory = write_finished(tmp_path / "run")
    write(tmp_path / "outside" / "precious.txt", "x")
    point = directory / "checkpoint-3" / "bound"
    point.mkdir()
    subprocess.run(["mount", "--bind", str(tmp_path / "outside"), str(point)], check=True)
    yield directory
    for mount in mounts_below(tmp_path):  # wherever it is by now
        subprocess.run(["umount", mount], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to bind a directory")
def test_what_is_mounted_in_a_checkpoint_is_not_touched(mounted: Path) -> None:
    with pytest.raises(ProblemFound, match="something is mounted at"):
        prune(mounted)
    assert (mounted / "checkpoint-3" / "bound" / "precious.txt").exists()
    assert (mounted / "checkpoint-6").is_dir()


# ------------------------------------------------------------------ running


def said(directory: Path, after: timedelta = timedelta(0)) -> list[str]:
    return [sign.said for sign in signs_of_running(read_run(directory), datetime.now() + after)]


def test_a_log_written_to_a_moment_ago_may_be_a_running_job(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, steps=5)
    assert "written to 0 min ago" in said(directory)[0]
    assert said(directory, QUIET + timedelta(seconds=30)) == []


def test_a_finished_run_is_not_running(tmp_path: Path) -> None:
    assert said(write_finished(tmp_path)) == []


def test_a_run_that_logs_rarely_is_waited_for_longer(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path, steps=2)
    write(directory / "trainer_log.jsonl", rows([1], elapsed_time="0:10:00") + rows([2], elapsed_time="0:40:00"))
    assert quiet_after(read_run(directory).log.longest_pause) == timedelta(minutes=90)
    assert said(directory, timedelta(minutes=89)) != []
    assert said(directory, timedelta(minutes=91)) == []


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["llamafactory-cli", "train", "x.yaml"], "from/yaml"),
        (["llamafactory-cli", "train", "x.yaml", "output_dir=a b"], "a b"),
        (["torchrun", "train.py", "--output_dir", "/o"], "/o"),
        (["train.py", "--output_dir=/o"], "/o"),
        (["train.py"], None),
    ],
)
def test_a_trainers_output_dir_is_on_its_command_line(words: list[str], found: str | None) -> None:
    assert output_dir_of(words, lambda _: {"output_dir": "from/yaml"}) == found


def test_yaml_that_is_no_mapping_names_none() -> None:
    assert output_dir_of(["train.py", "x.yaml"], lambda _: ["output_dir"]) is None


@pytest.fixture
def start() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def launch(started: list[subprocess.Popen[str]], cwd: Path, script: str, *words: str) -> None:
    """A process that says `ready` when it is where it should be, and stays."""
    argv = [sys.executable, "-c", f"{script}; print('ready', flush=True); import time; time.sleep(60)", *words]
    started.append(subprocess.Popen(argv, cwd=cwd, stdout=subprocess.PIPE, text=True))
    assert started[-1].stdout is not None
    assert started[-1].stdout.readline() == "ready\n"


def test_a_trainer_of_this_directory_is_seen_by_its_inode(tmp_path: Path, start: list[subprocess.Popen[str]]) -> None:
    directory = age(write_finished(tmp_path / "saves" / "run"))
    (tmp_path / "link").symlink_to(directory)
    write(tmp_path / "x.yaml", "output_dir: saves/run\n")
    launch(start, tmp_path, "pass", "llamafactory-cli", "train", "x.yaml")
    for name in (directory, tmp_path / "link"):
        (sign,) = signs_of_running(read_run(name), datetime.now())
        assert (sign.certain, "trains into it" in sign.said) == (True, True)
    assert main(["prune", "--yes", "--stopped", str(directory)]) == Exit.PROBLEM
    assert (directory / "checkpoint-3").is_dir()


def test_a_trainer_of_another_directory_is_none(tmp_path: Path, start: list[subprocess.Popen[str]]) -> None:
    directory = age(write_finished(tmp_path / "run"))
    (tmp_path / "other").mkdir()
    launch(start, tmp_path, "pass", "llamafactory-cli", "train", "output_dir=other")
    assert said(directory) == []


def test_a_file_open_for_writing_is_a_sign_and_one_open_for_reading_none(
    tmp_path: Path, start: list[subprocess.Popen[str]]
) -> None:
    directory = age(write_finished(tmp_path / "run"))
    launch(start, directory, "file = open('trainer_log.jsonl')")
    assert said(directory) == []
    launch(start, directory, "file = open('trainer_log.jsonl', 'a')")
    assert "open for writing" in said(directory)[0]


# ------------------------------------------------------------------ the command


def test_without_a_terminal_it_shows_and_removes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = age(write_finished(tmp_path))
    before = tree(directory)
    assert main(["prune", str(directory)]) == Exit.USAGE
    captured = capsys.readouterr()
    assert "checkpoint-3" in captured.out
    assert "--yes" in captured.err
    assert tree(directory) == before


def test_a_look_alone_exits_with_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = age(write_finished(tmp_path))
    assert main(["prune", "--dry-run", str(directory)]) == Exit.OK
    assert "to free" in capsys.readouterr().out
    assert (directory / "checkpoint-3").is_dir()


def test_yes_removes_and_a_second_time_there_is_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = age(write_unfinished(tmp_path, steps=5))
    assert main(["prune", "--yes", str(directory)]) == Exit.OK
    assert [each.name for each in read_run(directory).checkpoints] == ["checkpoint-6"]
    capsys.readouterr()
    assert main(["prune", str(directory)]) == Exit.OK
    assert "nothing to remove" in capsys.readouterr().out


def test_one_directory_in_use_stops_all_before_anything_goes(tmp_path: Path) -> None:
    stopped, running = age(write_finished(tmp_path / "a")), write_unfinished(tmp_path / "b", steps=5)
    assert main(["prune", "--yes", str(stopped), str(running)]) == Exit.PROBLEM
    assert (stopped / "checkpoint-3").is_dir()
    assert main(["prune", "--yes", "--stopped", str(stopped), str(running)]) == Exit.OK
    assert not (stopped / "checkpoint-3").exists()
    assert not (running / "checkpoint-3").exists()


def test_a_directory_named_twice_is_pruned_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = age(write_finished(tmp_path / "run"))
    (tmp_path / "link").symlink_to(directory)
    assert main(["prune", "--yes", "--json", str(directory), str(tmp_path / "link")]) == Exit.OK
    (plan,) = json.loads(capsys.readouterr().out)
    assert (plan["removed"], [each["name"] for each in plan["remove"]]) == (True, ["checkpoint-3", "checkpoint-6"])


def test_a_person_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = age(write_finished(tmp_path))
    monkeypatch.setattr("sifkit.commands.prune._asks", lambda _: True)
    monkeypatch.setattr("typer.confirm", lambda *_, **__: False)
    assert main(["prune", str(directory)]) == Exit.OK
    assert (directory / "checkpoint-3").is_dir()
    monkeypatch.setattr("typer.confirm", lambda *_, **__: True)
    assert main(["prune", str(directory)]) == Exit.OK
    assert not (directory / "checkpoint-3").exists()


def test_hostile_names_in_a_checkpoint_go_with_it(tmp_path: Path) -> None:
    directory = age(write_finished(tmp_path / "a b'\"$(x)"))
    for name in ("\x1b[2J", "-rf", "a\nb", "*", "\udcff"):
        write(directory / "checkpoint-3" / name, "x")
    write(tmp_path / "x", "stays")
    assert main(["prune", "--yes", str(directory)]) == Exit.OK
    assert not (directory / "checkpoint-3").exists()
    assert (tmp_path / "x").exists()


def test_freed_bytes_are_those_of_what_goes(tmp_path: Path) -> None:
    directory = write_finished(tmp_path)
    plan = make_plan(read_run(directory))
    size = sum(path.stat().st_size for path in directory.glob("checkpoint-*/**/*") if path.is_file())
    assert plan.freed == size
    assert plan.remove[0] == Removal("checkpoint-3", plan.remove[0].size, "the run is finished")
