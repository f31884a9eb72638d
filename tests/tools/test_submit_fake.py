"""Submitting with fake programs of Slurm: refusals, silence, a queue that shows a job late."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sifkit.errors import CommandFailed, HostError, Interrupted, UsageError
from sifkit.run import Runner
from sifkit.slurm.jobs import goes_on, list_jobs, wait_for
from sifkit.slurm.submit import Dependency, Patience, job_environment, require_known, submit
from tests.conftest import FakeTool

FAST = Patience(sbatch=2, look=0.6, pause=0.1, attempts=3)
TIMED_OUT = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1'
ROW = "echo '12|12|PENDING|None|main|0:00|1:00||x|sifkit:00ff'"


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    path = tmp_path / "calls"
    path.touch()
    return path


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines())


def test_a_refusal_is_final(fake_tool: FakeTool, runner: Runner, calls: Path) -> None:
    fake_tool("sbatch", f'echo "$*" >> {calls}; echo "sbatch: error: Invalid account or account/partition" >&2; exit 1')
    fake_tool("squeue", "exit 1")
    with pytest.raises(CommandFailed, match="Invalid account") as caught:
        submit(runner, Path("a.sbatch"), "00ff", patience=FAST)
    assert "--account" in str(caught.value.fix)
    assert calls.read_text() == "--parsable --comment=sifkit:00ff a.sbatch\n"


def test_a_job_that_shows_late_is_found(fake_tool: FakeTool, runner: Runner, calls: Path, tmp_path: Path) -> None:
    fake_tool("sbatch", f"echo call >> {calls}; {TIMED_OUT}")
    looks = tmp_path / "looks"
    fake_tool("squeue", f'echo look >> {looks}; [ "$(wc -l < {looks})" -lt 3 ] || {ROW}')
    assert submit(runner, Path("a.sbatch"), "00ff", patience=FAST) == "12"
    assert count(calls) == 1


def test_where_slurm_is_silent_nothing_is_submitted_again(fake_tool: FakeTool, runner: Runner, calls: Path) -> None:
    fake_tool("sbatch", f"echo call >> {calls}; {TIMED_OUT}")
    fake_tool("squeue", 'echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(HostError, match="not known") as caught:
        submit(runner, Path("a.sbatch"), "00ff", patience=FAST)
    assert "sifkit:00ff" in str(caught.value.fix)
    assert count(calls) == 1


def test_it_gives_up_after_some_attempts(fake_tool: FakeTool, runner: Runner, calls: Path) -> None:
    fake_tool("sbatch", f"echo call >> {calls}; {TIMED_OUT}")
    fake_tool("squeue", "true")
    with pytest.raises(CommandFailed, match="3 attempts"):
        submit(runner, Path("a.sbatch"), "00ff", patience=FAST)
    assert count(calls) == 3


def test_the_users_variables_for_sbatch_do_not_act(
    fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SBATCH_COMMENT, SQUEUE_FORMAT and the like would change what is asked and answered."""
    fake_tool("sbatch", f"printenv > {tmp_path}/seen; echo 5")
    for name in ("SBATCH_COMMENT", "SQUEUE_FORMAT", "SLURM_TIME_FORMAT"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("BASH_FUNC_module%%", "() { true; }")
    environ = job_environment(os.environ)
    assert submit(Runner(os.environ), Path("a.sbatch"), "00ff", environ=environ, patience=FAST) == "5"
    seen = set((tmp_path / "seen").read_text().splitlines())
    assert {"SLURM_CONF=/etc/slurm/slurm.conf", "HF_TOKEN=secret"} <= seen
    assert environ["BASH_FUNC_module%%"] == "() { true; }"  # the fake's shell drops it; sbatch does not
    assert not [line for line in seen if line.startswith(("SBATCH_", "SQUEUE_", "SLURM_TIME", "SLURM_JOB_ID"))]


def test_waiting_goes_on_through_a_requeue_and_a_silent_controller(
    fake_tool: FakeTool, runner: Runner, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    answers = "RUNNING silent PENDING RUNNING COMPLETED"
    script = f'echo x >> {asked}; set -- {answers}; shift $(($(wc -l < {asked}) - 1)); [ "$1" != silent ] || exit 1\n'
    fake_tool("scontrol", f'{script}echo "JobId=7 JobState=$1 Reason=None ExitCode=0:0"')
    said: list[str] = []
    assert wait_for(runner, "7", said.append, every=0.01).exit == 0
    assert said == ["RUNNING", "PENDING", "RUNNING", "COMPLETED"]


def test_waiting_ends_for_a_job_that_slurm_has_forgotten(fake_tool: FakeTool, runner: Runner) -> None:
    fake_tool("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    with pytest.raises(CommandFailed, match="Invalid job id"):
        wait_for(runner, "7", lambda _: None, every=0.01)


def test_the_worst_task_of_an_array_counts(fake_tool: FakeTool, runner: Runner) -> None:
    fake_tool(
        "scontrol",
        'for c in 0 3 1; do echo "JobId=7 JobState=$([ $c = 0 ] && echo COMPLETED || echo FAILED) '
        'Reason=None ExitCode=$c:0"; done',
    )
    assert wait_for(runner, "7", lambda _: None, every=0.01).exit == 3


def test_a_job_that_slurm_does_not_know_is_no_dependency(fake_tool: FakeTool, runner: Runner) -> None:
    """Slurm drops such a dependency, and the job would start at once."""
    fake_tool("scontrol", 'echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1')
    with pytest.raises(UsageError, match="there is no such job"):
        require_known(runner, Dependency("99999"))
    fake_tool("scontrol", 'echo "JobId=7 JobState=RUNNING Reason=None ExitCode=0:0"')
    require_known(runner, Dependency("7"))


def test_where_no_slurm_is_configured_that_is_said(fake_tool: FakeTool, runner: Runner) -> None:
    said = "fatal: Could not establish a configuration source"
    fake_tool("squeue", f'echo "squeue: {said}" >&2; exit 1')
    with pytest.raises(HostError, match="no Slurm is configured") as caught:
        list_jobs(runner)
    assert "SLURM_CONF" in str(caught.value.fix)
    fake_tool("sbatch", f'echo "sbatch: {said}" >&2; exit 1')
    with pytest.raises(CommandFailed) as refused:
        submit(runner, Path("a.sbatch"), "00ff", patience=FAST)
    assert "SLURM_CONF" in str(refused.value.fix)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("stopped by SIGTERM; nothing half-made was left")])
def test_who_stops_waiting_is_told_that_the_job_goes_on(error: BaseException) -> None:
    with pytest.raises(Interrupted, match="job 12 goes on") as caught, goes_on("12"):
        raise error
    assert "scancel 12" in str(caught.value.fix)
