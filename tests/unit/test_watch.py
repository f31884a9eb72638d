"""Watching: what is read of logs and of Slurm's words, why jobs end, and what is shown."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sifkit.commands.watch import JsonDisplay
from sifkit.errors import UsageError
from sifkit.rundir.read import End
from sifkit.rundir.trainlog import read_log
from sifkit.slurm.jobs import Ended, parse_show_job
from sifkit.watch.directory import DirectoryWatch
from sifkit.watch.ends import EndRow, SlurmEnd, Verdict, ends, judge, last_start
from sifkit.watch.follow import CHUNK, LineFollower, Progress, RunFollower, Sample, last_lines, steps_per_second
from sifkit.watch.jobs import forgotten_verdict, pause_between
from sifkit.watch.queue import JobFacts, facts_of, output_dirs, parse_sacct
from sifkit.watch.view import View, Watched, as_json, end_lines, plain_progress, plain_state, screen, silent_words, span
from tests.unit.jobs import make_job, make_launch, make_training
from tests.unit.run_dirs import age, rows, state, write, write_finished, write_unfinished

# ---------------------------------------------------------------------------------------------- following files


def test_a_line_without_its_end_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"a": 1}\n{"a"')
    follower = LineFollower(path)
    assert follower.read() == [b'{"a": 1}']
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert follower.read() == [b'{"a": 2}']
    assert follower.read() == []


@given(st.lists(st.binary(max_size=12), max_size=20))
def test_no_line_is_lost_or_read_twice_however_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.touch()
    follower, seen = LineFollower(path), []
    for piece in pieces:
        with path.open("ab") as file:
            file.write(piece)
        seen += follower.read()
    text = b"".join(pieces)
    assert seen == text[: text.rfind(b"\n") + 1].splitlines()
    assert follower.restarts == 0


@pytest.mark.parametrize("how", ["replaced", "cut off", "cut off and longer"])
def test_a_file_that_began_anew_is_read_from_its_beginning(tmp_path: Path, how: str) -> None:
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    follower = LineFollower(path)
    follower.read()
    new = {"replaced": "six\nten\n", "cut off": "six\n", "cut off and longer": "six\nseven\neight\n"}[how]
    if how == "replaced":
        (tmp_path / "new").write_text(new)
        (tmp_path / "new").replace(path)
    else:
        path.write_text(new)
    assert follower.read() == new.encode().splitlines()
    assert follower.restarts == 1


def test_a_file_without_line_ends_does_not_grow_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (2 * CHUNK + 5) + b"\nlast\n")
    follower = LineFollower(path)
    assert [len(follower.read()[0]) for _ in range(2)] == [CHUNK, CHUNK]
    assert follower.read() == [b"x" * 5, b"last"]


def test_a_run_is_followed_from_nothing_to_its_end(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path / "run")
    assert follower.look() == Progress()
    write(tmp_path / "run" / "trainer_log.jsonl", rows((1, 3), lr=1e-4, vram_allocated=3.5))
    seen = follower.look()
    assert (seen.log.current_steps, seen.log.total_steps, seen.end) == (3, 6, End.UNFINISHED)
    assert (seen.pace.learning_rate, seen.pace.steps_per_second, seen.pace.memory_gb) == (1e-4, 1.0, 3.5)
    assert seen.pace.remaining == timedelta(seconds=3)
    with (tmp_path / "run" / "trainer_log.jsonl").open("a") as file:
        file.write(rows((6,)))
    write(tmp_path / "run" / "trainer_state.json", state(6))
    assert follower.look().end is End.FINISHED


def test_an_overwritten_run_starts_at_its_first_row(tmp_path: Path) -> None:
    log = write(tmp_path / "trainer_log.jsonl", rows(range(1, 6)))
    follower = RunFollower(tmp_path)
    follower.look()
    log.unlink()
    write(log, rows((1,), lr=0.5))
    seen = follower.look()
    assert (seen.log.rows, seen.log.current_steps, seen.pace.learning_rate) == (1, 1, 0.5)
    assert seen.log.loss.count == 1


def test_a_long_log_is_read_in_pieces_and_gives_what_reading_it_whole_gives(tmp_path: Path) -> None:
    text = rows(range(1, 30_001), most=30_000)
    log = write(tmp_path / "trainer_log.jsonl", text)
    assert log.stat().st_size > 2 * CHUNK
    follower = RunFollower(tmp_path)
    seen = follower.look()
    while seen.catching_up:
        seen = follower.look()
    assert seen.log == read_log(text.encode().splitlines())


def samples(*pairs: tuple[int, int]) -> tuple[Sample, ...]:
    return tuple(Sample(step, timedelta(seconds=seconds)) for step, seconds in pairs)


@pytest.mark.parametrize(
    ("seen", "speed"),
    [
        ((), None),
        (((5, 5),), None),
        (((5, 5), (9, 5)), None),  # within the same second
        (((5, 10), (25, 20)), 2.0),
        (((0, 0), (100, 1000), (150, 1100)), 0.5),  # the last five minutes count
        (((0, 0), (1, 1000)), 0.001),  # a step takes longer than that
    ],
)
def test_speed(seen: tuple[tuple[int, int], ...], speed: float | None) -> None:
    assert steps_per_second(samples(*seen)) == speed


def test_after_a_resume_the_speed_is_that_of_the_new_start(tmp_path: Path) -> None:
    """The trainer's own remaining_time would count the 900 steps before as done in no time."""
    row = '{{"current_steps": {}, "total_steps": 1000, "elapsed_time": "{}", "remaining_time": "0:00:01"}}\n'
    lines = [row.format(900, "1:00:00"), row.format(901, "0:00:10"), row.format(902, "0:00:20")]
    write(tmp_path / "trainer_log.jsonl", "".join(lines))
    pace = RunFollower(tmp_path).look().pace
    assert (pace.steps_per_second, pace.remaining) == (0.1, timedelta(seconds=980))


def test_the_last_lines_show_a_progress_bar_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "err"
    path.write_bytes(b"one\r\ntwo\n\n\r 1/9\r 2/9\r 3/9")
    assert last_lines(path, 2) == ("two", " 3/9")
    path.write_bytes(b"x\n" * 100_000 + b"last \xff\n")
    assert last_lines(path, 2) == ("x", "last �")
    assert last_lines(tmp_path / "none", 2) == ()


# ---------------------------------------------------------------------------------------------- Slurm's words

RUNNING = (
    "JobId=5 ArrayJobId=1 ArrayTaskId=2 JobName=my run UserId=me(1000) JobState=RUNNING Reason=None Dependency=(null) "
    "Requeue=1 Restarts=2 ExitCode=0:0 RunTime=00:00:14 TimeLimit=00:10:00 StartTime=2026-11-25T01:55:24 "
    "NodeList=n1 MinMemoryNode=4G Command=/w/a.sbatch WorkDir=/w StdErr=/w/logs/a b-1_2.err StdOut=/dev/null Power= "
)
PENDING = (
    "JobId=1 ArrayJobId=1 ArrayTaskId=0-3%2 JobName=abc JobState=PENDING Reason=Resources Requeue=0 Restarts=0 "
    "ExitCode=0:0 RunTime=00:00:00 TimeLimit=UNLIMITED StartTime=Unknown NodeList=(null) MinMemoryCPU=1000M "
    "StdErr=/w/abc-1_4294967294.err"
)


def facts(text: str) -> JobFacts:
    (fields,) = parse_show_job(text)
    return facts_of(fields)


def test_what_scontrol_says_of_a_running_task() -> None:
    assert facts(RUNNING) == JobFacts(
        id="1_2",
        name="my run",
        state="RUNNING",
        index=2,
        nodes="n1",
        ran="00:00:14",
        limit="00:10:00",
        starts="2026-11-25T01:55:24",
        restarts=2,
        requeues=True,
        memory="4G",
        stderr=Path("/w/logs/a b-1_2.err"),
    )


def test_tasks_that_wait_are_one_job_without_a_log() -> None:
    found = facts(PENDING)
    assert (found.id, found.index, found.stderr, found.starts, found.nodes) == ("1_[0-3%2]", None, None, None, "")


def test_what_sacct_says() -> None:
    text = (
        "12|run|CANCELLED by 1000|0:15|n1|00:01:00|01:00:00|/w\n"
        "13_1|run|OUT_OF_ME+|0:125|None assigned|00:01:00|01:00:00|\n"
        "garbage\nsacct: error: x|y\n"
    )
    first, second = parse_sacct(text)
    assert (first.id, first.state, first.end) == ("12", "CANCELLED", Ended("CANCELLED", 0, 15))
    assert first.stderr == Path("/w/logs/run-12.err")
    assert (second.id, second.index, second.nodes, second.stderr) == ("13_1", 1, "", None)


def test_the_run_of_each_task_is_found_in_our_job_files() -> None:
    from sifkit.slurm.jobfile import render

    one = make_launch(make_training(output_dir='/scratch/it\'s $(a) "run"'))
    two = make_launch(make_training(output_dir="/scratch/two"))
    assert output_dirs(render(make_job(one))) == {None: Path('/scratch/it\'s $(a) "run"')}
    assert output_dirs(render(make_job(one, two))) == {0: one.output_dir, 1: two.output_dir}
    assert output_dirs("output_dir='open\noutput_dir=relative\noutput_dir=/a b\n") == {}


@pytest.mark.parametrize(
    ("state", "unchanged", "nearly_done", "pause"),
    [("PENDING", 1, False, 5), ("RUNNING", 600, False, 15), ("PENDING", 9000, False, 30), ("RUNNING", 9000, True, 5)],
)
def test_slurm_is_asked_seldom_where_nothing_happens(
    state: str, unchanged: float, nearly_done: bool, pause: float
) -> None:
    assert pause_between((JobFacts("1", "a", state),), unchanged, nearly_done) == pause


# ---------------------------------------------------------------------------------------------- why it ended


@pytest.mark.parametrize("row", ends(), ids=lambda row: row.id)
def test_each_row_recognises_its_example_first(row: EndRow) -> None:
    state_, reason, code, dependency = (word.partition("=")[2] or word for word in row.example.split(" "))
    verdict = judge(SlurmEnd(state_, reason, code, dependency, "4G", "01:00:00", "n1", "/w/logs/a.err"), "")
    assert (verdict.ok, verdict.id) == (False, row.id)
    assert "{" not in f"{verdict.cause}{verdict.fix}"


def failed(log: str, state: str = "FAILED", code: str = "1:0") -> str | None:
    return judge(SlurmEnd(state, "NonZeroExitCode", code), log).id


def test_a_failed_script_is_explained_by_its_log() -> None:
    assert failed("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.") == "cuda-out-of-memory"
    assert failed("FileNotFoundError: [Errno 2] No such file or directory: '/m/config.json'") == "missing-file"
    assert failed("ValueError: first\nKeyError: 'x'\ntorch.distributed.elastic.ChildFailedError: \n") == "python-error"
    assert failed("[rank0]: RuntimeError: boom") == "python-error"
    assert failed("nothing") is None
    assert failed("", code="137:0") == "killed"
    assert failed("ValueError: boom", code="137:0") == "python-error"


def test_slurm_knows_better_than_the_log_why_it_ended_a_job() -> None:
    log = "torch.OutOfMemoryError: CUDA out of memory\nKeyboardInterrupt: \n"
    assert failed(log, "TIMEOUT", "0:15") == "time-limit"
    assert failed(log, "OUT_OF_MEMORY") == "host-memory"
    assert failed(log, "CANCELLED", "0:15") == "cancelled"


def test_what_the_job_file_itself_says_counts() -> None:
    log = "job: start 0 goes on from step 0\njob: warned; waiting\njob: no checkpoint after step 0\njob: more time\n"
    verdict = judge(SlurmEnd("FAILED"), log)
    assert (verdict.id, verdict.cause, verdict.fix) == ("job-file", "no checkpoint after step 0", "more time")


def test_what_an_earlier_start_said_does_not_count() -> None:
    log = "CUDA out of memory\njob: start 1 goes on from step 5\nValueError: x\n"
    assert failed(last_start(log)) == "python-error"


def test_a_job_that_slurm_forgot_is_judged_by_its_run() -> None:
    assert forgotten_verdict(Progress(end=End.FINISHED)).ok
    assert not forgotten_verdict(Progress()).ok


# ---------------------------------------------------------------------------------------------- what is shown


def watched(tmp_path: Path, facts_: JobFacts | None, steps: int = 3) -> Watched:
    write(tmp_path / "trainer_log.jsonl", rows(range(1, steps + 1), lr=1e-4))
    return Watched("job 1_2", facts_, tmp_path, RunFollower(tmp_path).look(), ("Traceback", "\x1b[2Jlast"))


def test_the_screen_of_a_run(tmp_path: Path) -> None:
    lines = screen(View((watched(tmp_path, facts(RUNNING)),)), 80, 24, unicode=False)
    assert lines[0] == "job 1_2 · my run · RUNNING on n1, 00:00:14 of 00:10:00, restarted 2 times"
    assert lines[1] == "##########..........  step 3 of 6 (50%)  1 steps/s  3 s left"
    assert lines[2] == "loss 6.99 -> 6.97, learning rate 0.0001"
    assert lines[-3:] == ["stderr:", "  Traceback", "  \x1b[2Jlast"]  # the display makes it printable
    assert all(line.isascii() for line in lines[1:])
    assert 10 < len(lines) <= 24


@pytest.mark.parametrize("height", [1, 3, 6, 9, 50])
def test_the_screen_fits(tmp_path: Path, height: int) -> None:
    assert len(screen(View((watched(tmp_path, facts(RUNNING)),)), 80, height, unicode=True)) <= height


def test_a_pending_job_says_why() -> None:
    run = Watched("job 1", facts(PENDING))
    assert screen(View((run,)), 80, 24, unicode=True) == ["job 1 · abc · PENDING (Resources)"]
    assert plain_state(run) == "job 1: PENDING (Resources) [abc]"
    assert plain_progress(run) == ""


def test_plain_lines_of_state_hold_nothing_that_changes_all_the_time() -> None:
    before, after = facts(RUNNING), replace(facts(RUNNING), ran="1-02:03:04")
    assert plain_state(Watched("job 1", before)) == plain_state(Watched("job 1", after))
    assert "n1" in plain_state(Watched("job 1", before))


def test_an_end_shows_cause_and_fix(tmp_path: Path) -> None:
    run = replace(watched(tmp_path, None), verdict=Verdict(False, "FAILED", "x", "why", "do"))
    assert end_lines(run) == ["job 1_2: FAILED · step 3 of 6 (50%)", "cause: why", "fix: do"]


def test_silence_is_said() -> None:
    assert silent_words(View((), timedelta(seconds=70), "down")) == (
        "Slurm does not answer since 70 s (down); watching goes on"
    )


def test_spans() -> None:
    said = [span(timedelta(seconds=each)) for each in (0, 119, 120, 7140, 7200, 11_100, 360_000)]
    assert said == ["0 s", "119 s", "2 min", "119 min", "2 h 00 min", "3 h 05 min", "4 d 4 h"]


def test_the_json_stream_is_an_object_a_line_also_for_losses_that_are_no_numbers(tmp_path: Path) -> None:
    write(tmp_path / "trainer_log.jsonl", '{"current_steps": 1, "loss": NaN, "lr": Infinity}\n')
    run = Watched("x", None, tmp_path, RunFollower(tmp_path).look())
    lines: list[str] = []
    display = JsonDisplay(lines.append)
    display.show(View((run,)))
    display.show(View((run,)))
    display.show(View((replace(run, verdict=Verdict(True, "FINISHED")),)))
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["state", "end"]
    assert (events[0]["loss"], events[0]["learning_rate"], events[0]["step"]) == (None, None, 1)
    assert events[1]["ok"] is True
    assert as_json(run, "state")["state"] == "RUNNING"


# ---------------------------------------------------------------------------------------------- a directory


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_finished_directory_ends_at_once(tmp_path: Path) -> None:
    view = DirectoryWatch(write_finished(tmp_path), scan=lambda _: ()).look()
    assert (view.ended, view.ok) == (True, True)


def test_a_finished_run_is_waited_for_while_its_trainer_still_writes(tmp_path: Path) -> None:
    """After trainer_state.json come plots, evaluation and the model card."""
    writers = [("7",), ("7",), (), ()]
    watch = DirectoryWatch(write_finished(tmp_path), scan=lambda _: writers.pop(0), scan_every=0)
    assert [watch.look().ended for _ in range(4)] == [False, False, False, True]


def test_an_old_unfinished_directory_is_stopped_with_advice(tmp_path: Path) -> None:
    run = age(write_unfinished(tmp_path))
    os.utime(run, (1, 1))
    view = DirectoryWatch(run, scan=lambda _: ()).look()
    verdict = view.runs[0].verdict
    assert verdict is not None
    assert (view.ok, verdict.state) == (False, "STOPPED")
    assert "checkpoint-6" in str(verdict.fix)


def test_a_quiet_run_ends_when_its_process_is_gone_and_not_before(tmp_path: Path) -> None:
    run = write_unfinished(tmp_path)
    clock = Clock()
    writers: list[tuple[str, ...]] = [("7",)]
    clock.now = (run / "trainer_log.jsonl").stat().st_mtime + 60
    watch = DirectoryWatch(run, now=clock, scan=lambda _: writers[0], scan_every=10)
    assert not watch.look().ended
    writers[0] = ()
    for passed, over in ((5, False), (6, False), (11, True)):
        clock.now += passed
        assert watch.look().ended is over


def test_a_quiet_run_of_another_node_is_given_time(tmp_path: Path) -> None:
    run, clock = write_unfinished(tmp_path), Clock()
    clock.now = (run / "trainer_log.jsonl").stat().st_mtime + 60
    watch = DirectoryWatch(run, now=clock, scan=lambda _: ())
    view = watch.look()
    assert not view.ended
    assert "after 10 min" in view.runs[0].note
    clock.now += 600
    assert watch.look().ended


def test_a_directory_that_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(UsageError, match="no training run"):
        DirectoryWatch(tmp_path, scan=lambda _: ())
    with pytest.raises(UsageError, match="no such directory"):
        DirectoryWatch(tmp_path / "none")


def test_an_empty_new_directory_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert not DirectoryWatch(tmp_path / "run", scan=lambda _: ()).look().ended
