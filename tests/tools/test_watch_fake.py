"""`sifkit watch` with fake programs of Slurm: what its commands answer, and what they do not."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.run import Runner
from sifkit.watch.jobs import JobWatch
from sifkit.watch.queue import Answer, ask, newest_job
from tests.conftest import FakeTool
from tests.unit.run_dirs import age, rows, write, write_finished, write_unfinished

SHOW = (
    "echo 'JobId=7 JobName=run JobState={} Reason={} Requeue={} Restarts=0 ExitCode={} NodeList=n1 Dependency=(null)'"
)
UNKNOWN = 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1'
SILENT = 'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1'


def scontrol(fake_tool: FakeTool, show: str, script: str = "exit 1") -> None:
    fake_tool("scontrol", f'if [ "$1" = write ]; then {script}; else {show}; fi')
    fake_tool("squeue", "true")


def test_without_slurm_and_without_a_job(
    monkeypatch: pytest.MonkeyPatch, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fake_tool("squeue", "true")
    fake_tool("scontrol", "true")
    assert main(["watch"]) == 2
    assert "no job of sifkit's" in capsys.readouterr().err
    monkeypatch.setattr(Runner, "which", lambda *_: None)
    assert main(["watch", "7"]) == 3
    assert main(["watch", str(tmp_path / "none")]) == 2


def test_a_job_that_scontrol_forgot_is_asked_of_sacct(
    fake_tool: FakeTool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scontrol(fake_tool, UNKNOWN)
    fake_tool("sacct", f"echo '7|run|TIMEOUT|0:15|n1|01:00:00|01:00:00|{tmp_path}'")
    assert main(["watch", "7"]) == 1
    assert "the time limit was reached (01:00:00)" in capsys.readouterr().out
    fake_tool("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    assert main(["watch", "7"]) == 2


def test_a_silent_slurm_is_an_error_only_at_the_start(
    fake_tool: FakeTool, runner: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    scontrol(fake_tool, SILENT)
    assert main(["watch", "7"]) == 4
    assert "connect failure" in capsys.readouterr().err
    answer = ask(runner, "7")
    assert answer.silent is not None
    assert not answer.forgotten


def test_the_newest_job_is_taken_by_its_number(fake_tool: FakeTool, runner: Runner) -> None:
    row = "echo '{0}|{0}|RUNNING|None|main|0:00|1:00||x|{1}'"
    lines = [row.format("9", "sifkit:a"), row.format("12_[0-3]", "sifkit:b"), row.format("40", "by hand")]
    fake_tool("squeue", "; ".join(lines))
    assert newest_job(runner) == "12"


def test_a_completed_run_as_plain_lines(
    fake_tool: FakeTool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = write_finished(tmp_path / "run")
    scontrol(fake_tool, SHOW.format("COMPLETED", "None", 1, "0:0"), f"echo output_dir={run}")
    assert main(["watch", "7"]) == 0
    out = capsys.readouterr().out
    assert "job 7: COMPLETED on n1" in out
    assert "step 6 of 6 (100%)" in out


def test_a_node_failure_that_is_requeued_is_no_end(fake_tool: FakeTool, tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    states = "RUNNING NODE_FAIL PENDING RUNNING NODE_FAIL NODE_FAIL NODE_FAIL NODE_FAIL"
    show = SHOW.format("'$1'", "None", 1, "0:0")
    scontrol(fake_tool, f"echo >> {asked}; set -- {states}; shift $(($(wc -l < {asked}) - 1)); {show}")
    runner, ends = Runner(os.environ), []
    watch = JobWatch(runner, "7", ask(runner, "7"))
    for _ in range(7):
        watch._take(ask(runner, "7"))
        ends.append(watch.look().ended)
    assert ends == [False, False, False, False, True, True, True]


def test_a_job_forgotten_in_the_middle_is_judged_by_its_run(fake_tool: FakeTool, tmp_path: Path) -> None:
    run = write_finished(tmp_path / "run")
    scontrol(fake_tool, SHOW.format("RUNNING", "None", 1, "0:0"))
    runner = Runner(os.environ)
    watch = JobWatch(runner, "7", ask(runner, "7"), directory=run)
    watch._take(Answer(forgotten=True))
    assert not watch.look().ended  # asked once more before it is believed
    watch._take(Answer(forgotten=True))
    view = watch.look()
    assert (view.ended, view.ok, view.runs[0].state) == (True, True, "FORGOTTEN")


@pytest.mark.parametrize("state", ["PENDING", "CANCELLED"])
def test_an_older_runs_log_is_not_shown_for_a_job_that_never_ran(
    fake_tool: FakeTool, tmp_path: Path, state: str
) -> None:
    run = write_unfinished(tmp_path / "run")
    show = SHOW.format(state, "Priority", 1, "0:0")
    scontrol(fake_tool, show.removesuffix("'") + " RunTime=00:00:00'", f"echo output_dir={run}")
    runner = Runner(os.environ)
    (seen,) = JobWatch(runner, "7", ask(runner, "7")).look().runs
    assert (seen.facts and seen.facts.reason, seen.directory) == ("Priority", None)


def test_where_the_logs_are_stays_known_when_only_sacct_answers(fake_tool: FakeTool, tmp_path: Path) -> None:
    log = write(tmp_path / "err", "ValueError: boom\n")
    show = SHOW.format("RUNNING", "None", 1, "0:0")
    scontrol(fake_tool, show.removesuffix("'") + f" StdErr={log}'")
    runner = Runner(os.environ)
    watch = JobWatch(runner, "7", ask(runner, "7"))
    scontrol(fake_tool, UNKNOWN)
    fake_tool("sacct", "echo '7|run|FAILED|1:0|n1|00:01:00|01:00:00|/elsewhere'")
    watch._take(ask(runner, "7"))
    (run,) = watch.look().runs
    assert run.verdict is not None
    assert run.verdict.cause == "ValueError: boom"


def test_escapes_of_a_log_do_not_reach_the_terminal(
    fake_tool: FakeTool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write(tmp_path / "err", "\x1b]0;title\x07\x1b[2Jgone\n")
    show = SHOW.format("FAILED", "NonZeroExitCode", 1, "1:0")
    scontrol(fake_tool, show.removesuffix("'") + f" StdErr={tmp_path}/err'")
    assert main(["watch", "7"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out


def test_a_stopped_directory_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = write_unfinished(tmp_path / "a b")
    write(run / "trainer_log.jsonl", rows(range(1, 5)))
    age(run)
    os.utime(run, (1, 1))
    assert main(["watch", str(run), "--json"]) == 1
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["state"], event["step"], event["job"]) == ("end", "STOPPED", 4, None)
