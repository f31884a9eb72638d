"""`sifkit watch` on a real Slurm: runs in the real image on the CPU, and a slurmctld that is away for a while."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.conftest import CLUSTER, Cluster, MakeConfig

pytestmark = pytest.mark.slurm


def start_watch(cluster: Cluster, directory: Path, *words: str) -> subprocess.Popen[bytes]:
    """`sifkit watch` in the background; its objects in DIRECTORY/events."""
    argv = [sys.executable, "-m", "sifkit", "watch", *words, "--json", "--every", "0.5"]
    with (directory / "events").open("wb") as out, (directory / "said").open("wb") as err:
        return subprocess.Popen(argv, cwd=directory, env=cluster.environ, stdout=out, stderr=err)


def events(directory: Path) -> list[dict[str, Any]]:
    """Whole lines so far."""
    text = (directory / "events").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def finish(watch: subprocess.Popen[bytes], directory: Path, seconds: float = 120) -> tuple[int, dict[str, Any]]:
    """Its exit code, and its last object."""
    return watch.wait(timeout=seconds), events(directory)[-1]


def sleeper(cluster: Cluster, directory: Path, script: str, *options: str) -> str:
    """A hand-written job."""
    return cluster.run(
        "sbatch", "--parsable", "--output=job-%j.out", "--error=job-%j.err", *options, f"--wrap={script}", cwd=directory
    )


@pytest.mark.image
def test_a_jobs_life_from_pending_to_pruned(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    """Watched without being named: it is the newest. It waits for another job, so that it is seen pending."""
    first = sleeper(cluster, tmp_path, "sleep 6")
    job = cluster.submit(str(make_config(max_steps=20, save_steps=10)), "--after", first, cwd=tmp_path)
    code, last = finish(start_watch(cluster, tmp_path), tmp_path)
    seen = events(tmp_path)
    states = list(dict.fromkeys(event["state"] for event in seen))
    assert (code, last["event"], last["job"], last["ok"]) == (0, "end", job, True)
    assert states[0] == "PENDING"
    assert seen[0]["reason"] == "Dependency"
    assert states[-2:] == ["RUNNING", "COMPLETED"]
    assert (last["step"], last["total_steps"], last["directory"]) == (20, 20, str(tmp_path / "run"))
    assert last["loss"] > 0
    assert last["learning_rate"] is not None
    outputs_and_prune(cluster, tmp_path / "run")


def outputs_and_prune(cluster: Cluster, run: Path) -> None:
    """What the job left is whole and finished; its checkpoints can go, and the result stays."""

    def sifkit(*words: str) -> str:
        argv = [sys.executable, "-m", "sifkit", *words]
        return subprocess.run(argv, env=cluster.environ, capture_output=True, text=True, check=True).stdout

    before = json.loads(sifkit("outputs", str(run), "--json"))
    assert (before["finished"], sorted(path.name for path in run.glob("checkpoint-*"))) == (
        True,
        ["checkpoint-10", "checkpoint-20"],
    )
    sifkit("prune", str(run), "--yes")
    assert not list(run.glob("checkpoint-*"))
    assert json.loads(sifkit("outputs", str(run), "--json"))["finished"]
    assert (run / "adapter_model.safetensors").is_file()


@pytest.mark.image
def test_a_failing_config_ends_with_its_cause(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    job = cluster.submit(str(make_config(learning_rat=1)), "--no-check", cwd=tmp_path)
    code, last = finish(start_watch(cluster, tmp_path, job), tmp_path)
    assert (code, last["state"], last["id"], last["exit_code"]) == (1, "FAILED", "unknown-arguments", "1:0")
    assert "learning_rat" in last["cause"]
    assert last["fix"]
    said = subprocess.run(
        [sys.executable, "-m", "sifkit", "watch", job], env=cluster.environ, capture_output=True, text=True, check=False
    )
    assert (said.returncode, "learning_rat" in said.stdout) == (1, True)  # again, after its end, as plain lines


def test_a_cancelled_job_and_a_job_without_its_log_directory(cluster: Cluster, tmp_path: Path) -> None:
    job = sleeper(cluster, tmp_path, "sleep 100")
    watch = start_watch(cluster, tmp_path, job)
    cluster.wait("running", lambda: any(event["state"] == "RUNNING" for event in events(tmp_path)))
    cluster.run("scancel", job)
    code, last = finish(watch, tmp_path)
    assert (code, last["state"], last["id"]) == (1, "CANCELLED", "cancelled")
    lost = cluster.run("sbatch", "--parsable", "--output=nowhere/%j.out", "--wrap=hostname", cwd=tmp_path)
    code, last = finish(start_watch(cluster, tmp_path, lost), tmp_path)
    assert (code, last["id"]) == (1, "no-log-directory")
    assert str(tmp_path / "nowhere") in last["cause"]


def test_a_controller_that_is_away_for_a_while_ends_no_watch(cluster: Cluster, tmp_path: Path) -> None:
    """The run goes on meanwhile, and is followed; afterwards the job's end is seen."""
    log = tmp_path / "out" / "trainer_log.jsonl"
    row = r"{\"current_steps\": $i, \"total_steps\": 400, \"loss\": 1.5}"
    script = f'output_dir={tmp_path}/out\nmkdir -p "$output_dir"\nfor i in $(seq 400); do echo "{row}" >> {log}; '
    job = sleeper(cluster, tmp_path, script + "sleep 0.1; [ ! -e stop ] || exit 0; done")
    watch = start_watch(cluster, tmp_path, job)
    cluster.wait("rows", lambda: any((event.get("step") or 0) > 2 for event in events(tmp_path)))
    os.kill(int((cluster.directory / "slurmctld.pid").read_text()), signal.SIGTERM)
    try:
        wait_without_slurm(lambda: any(event["event"] == "silent" for event in events(tmp_path)))
        silent_at = len(events(tmp_path))
        wait_without_slurm(lambda: any(event["event"] == "progress" for event in events(tmp_path)[silent_at:]))
    finally:
        subprocess.run([CLUSTER, "start", cluster.directory], check=True, capture_output=True)
    (tmp_path / "stop").touch()
    code, last = finish(watch, tmp_path)
    assert (code, last["state"], last["event"]) == (0, "COMPLETED", "end")
    assert [event["event"] for event in events(tmp_path) if event["event"] in ("silent", "answers")] == [
        "silent",
        "answers",
    ]


def wait_without_slurm(condition: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_a_requeued_job_is_followed_on(cluster: Cluster, tmp_path: Path) -> None:
    script = '[ "${SLURM_RESTART_COUNT:-0}" = 0 ] || exit 0\nsleep 100'
    job = sleeper(cluster, tmp_path, script, "--requeue")
    watch = start_watch(cluster, tmp_path, job)
    cluster.wait("running", lambda: any(event["state"] == "RUNNING" for event in events(tmp_path)))
    cluster.run("scontrol", "requeue", job)
    code, last = finish(watch, tmp_path, 200)
    assert (code, last["state"], last["restarts"]) == (0, "COMPLETED", 1)


def test_a_task_and_all_tasks_of_an_array(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.run(
        *("sbatch", "--parsable", "--array=0-1", "--output=%A_%a.out"),
        '--wrap=sleep 3; [ "$SLURM_ARRAY_TASK_ID" = 0 ]',
        cwd=tmp_path,
    )
    assert finish(start_watch(cluster, tmp_path, f"{job}_0"), tmp_path)[0] == 0
    code, _ = finish(start_watch(cluster, tmp_path, job), tmp_path)
    ends = {event["job"]: event["ok"] for event in events(tmp_path) if event["event"] == "end"}
    assert (code, ends) == (1, {f"{job}_0": True, f"{job}_1": False})


def test_ctrl_c_leaves_the_job_running(cluster: Cluster, tmp_path: Path) -> None:
    job = sleeper(cluster, tmp_path, "sleep 100")
    watch = start_watch(cluster, tmp_path, job)
    cluster.wait("running", lambda: any(event["state"] == "RUNNING" for event in events(tmp_path)))
    watch.send_signal(signal.SIGINT)
    assert watch.wait(timeout=10) == 130
    assert f"job {job} goes on" in (tmp_path / "said").read_text()
    assert cluster.fields(job)["JobState"] == "RUNNING"
    cluster.run("scancel", job)


def test_a_job_that_never_was(cluster: Cluster, tmp_path: Path) -> None:
    watch = start_watch(cluster, tmp_path, "987654")
    assert watch.wait(timeout=30) == 2
    assert "no job 987654" in (tmp_path / "said").read_text()
