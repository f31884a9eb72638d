"""Jobs on a real Slurm, in the real image, on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from sifkit.slurm import submit as submission
from sifkit.slurm.jobs import list_jobs
from sifkit.slurm.submit import Patience
from tests.slurm.conftest import Cluster, MakeConfig

pytestmark = [pytest.mark.slurm, pytest.mark.image]


def steps_of(out: Path) -> list[int]:
    """What the trainer logged, in order; with logging_steps=1 each step once."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [row["step"] for row in history if "loss" in row]


def logged(out: Path) -> int:
    """The last step that trainer_log.jsonl shows, 0 before there is one."""
    path = out / "trainer_log.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return int(json.loads(lines[-1])["current_steps"]) if lines else 0


def test_a_hand_written_job_without_its_log_directory_dies_without_a_word(cluster: Cluster, tmp_path: Path) -> None:
    """What `sifkit submit` prevents."""
    job = cluster.run("sbatch", "--parsable", "--output=logs/%j.out", "--wrap=hostname", cwd=tmp_path)
    fields = cluster.wait_state(job, "FAILED")
    assert (fields["Reason"], fields["ExitCode"]) == ("JobLaunchFailure", "0:53")
    assert list(tmp_path.iterdir()) == []


def test_submit_makes_the_log_directory_and_wait_gives_the_jobs_exit_code(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    """A config whose fault sifkit was told to overlook."""
    config = make_config(learning_rat=1)
    words = ("submit", str(config), "--gpus", "0", "--mem", "4G", "--wait", "--no-check")
    done = cluster.sifkit(*words, cwd=tmp_path, check=False)
    job = done.stdout.strip()
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stderr
    assert "learning_rat" in (tmp_path / "logs" / f"run-{job}.err").read_text()
    assert cluster.fields(job)["ExitCode"] == "1:0"


def test_what_would_fail_is_not_submitted(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    before = cluster.run("squeue", "--noheader", "--states=all", "--format=%i", cwd=tmp_path)
    config = make_config(learning_rat=1)
    done = cluster.sifkit("submit", str(config), "--gpus", "0", "--mem", "4G", cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "CFG002 learning_rat" in done.stderr
    assert "--no-check" in done.stderr
    assert cluster.run("squeue", "--noheader", "--states=all", "--format=%i", cwd=tmp_path) == before
    assert not (tmp_path / "logs").exists()


def test_a_job_after_a_failed_one_ends_instead_of_waiting_for_ever(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    failing = cluster.run("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 3; exit 1", cwd=tmp_path)
    job = cluster.submit(str(make_config()), "--after", failing, cwd=tmp_path)
    assert cluster.wait_state(job, "CANCELLED")["Dependency"].startswith("afterok")


def test_an_array_of_three_trains_three_configs(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    configs = [make_config(name, seed=index) for index, name in enumerate("abc")]
    words = [*map(str, configs), "--array", "--cpus", "2", "--name", "three"]
    done = cluster.sifkit("submit", *words, "--gpus", "0", "--mem", "4G", "--wait", cwd=tmp_path)
    assert [steps_of(tmp_path / name) for name in "abc"] == [[1], [1], [1]]
    job = done.stdout.strip()
    assert {path.name for path in (tmp_path / "logs").glob("*.out")} == {f"three-{job}_{task}.out" for task in range(3)}


def test_two_nodes_train_together(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    """torchrun over gloo: a batch is as large as both ranks' together, and each node ran its own container."""
    config = make_config(ddp_backend="gloo")
    job = cluster.submit(str(config), "--nodes", "2", "--cpus", "2", cwd=tmp_path)
    assert cluster.wait_state(job, "COMPLETED", "FAILED", seconds=240)["JobState"] == "COMPLETED"
    said = (tmp_path / "logs" / f"run-{job}.err").read_text() + (tmp_path / "logs" / f"run-{job}.out").read_text()
    assert "Total train batch size (w. parallel, distributed & accumulation) = 2" in said
    assert "node rank: 0" in said
    assert "node rank: 1" in said


def test_a_cancelled_job_ends_and_does_not_come_back(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    job = cluster.submit(str(make_config(max_steps=100_000)), "--requeue", "--time", "20", cwd=tmp_path)
    cluster.wait("the first step", lambda: logged(tmp_path / "run") > 0)
    (found,) = [each for each in list_jobs(cluster.runner) if each.id == job]
    assert (found.state, found.name) == ("RUNNING", "run")
    cluster.run("scancel", job)
    fields = cluster.wait_state(job, "CANCELLED")
    assert fields["Restarts"] == "0"
    assert list(tmp_path.glob("run/checkpoint-*/trainer_state.json"))  # the trainer was told first, and saved


def test_a_job_goes_on_after_its_time_limit_to_the_same_last_step(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Warned by the real time limit, saved, requeued; a checkpoint cut off by a crash is set aside on the way."""
    last, out = 800, tmp_path / "run"
    config = make_config(max_steps=last, gradient_accumulation_steps=8)
    job = cluster.submit(str(config), "--requeue", "--time", "20", "--signal", "60", cwd=tmp_path)
    cluster.wait("some steps", lambda: logged(out) >= 5)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")  # the warning is due
    cluster.wait("the requeue", lambda: cluster.fields(job)["Restarts"] == "1", seconds=180)
    stopped = max(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))
    assert 5 <= stopped < last
    cut_off = out / "checkpoint-99999"
    cut_off.mkdir()
    (cut_off / "adapter_model.safetensors").write_bytes(b"half of it")
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=20")
    assert cluster.wait_state(job, "COMPLETED", "FAILED", seconds=400)["JobState"] == "COMPLETED"
    assert steps_of(out) == list(range(1, last + 1))  # as one run without any stop
    (aside,) = out.glob("incomplete-checkpoint-99999-*")
    assert (aside / "adapter_model.safetensors").read_bytes() == b"half of it"
    said = (tmp_path / "logs" / f"run-{job}.err").read_text()
    assert f"start 1 goes on from step {stopped}" in said


def test_a_job_that_gets_nowhere_is_not_requeued_for_ever(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    job = cluster.submit(str(make_config()), "--requeue", "--time", "20", cwd=tmp_path)
    cluster.wait_state(job, "RUNNING")
    log = tmp_path / "logs" / f"run-{job}.err"
    cluster.wait("the start", lambda: log.exists() and "goes on from step 0" in log.read_text())
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    assert cluster.wait_state(job, "FAILED")["Restarts"] == "0"
    assert "not requeued" in log.read_text()


def test_a_trainer_that_cannot_save_on_a_signal_is_let_come_to_its_next_checkpoint(
    cluster: Cluster, make_config: MakeConfig, tmp_path: Path
) -> None:
    """What transformers 4 needs: the signal must not end it before."""
    out = tmp_path / "run"
    config = make_config(max_steps=100_000, save_steps=50, gradient_accumulation_steps=4, enable_jit_checkpoint=False)
    job = cluster.submit(str(config), "--requeue", "--time", "20", cwd=tmp_path)
    cluster.wait("steps after a checkpoint", lambda: logged(out) > 60)
    before = max(int(path.name.rpartition("-")[2]) for path in out.glob("checkpoint-*"))
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    cluster.wait("the requeue", lambda: cluster.fields(job)["Restarts"] == "1")
    assert list(out.glob("checkpoint-*/trainer_state.json"))
    said = (tmp_path / "logs" / f"run-{job}.err").read_text()
    cluster.run("scancel", job)
    went_on = int(said.rpartition("requeued, to go on from step ")[2].split()[0])
    assert went_on > before
    assert went_on % 50 == 0


# ------------------------------------------------------------------------------- submitting once

PATIENCE = Patience(sbatch=8, look=5, pause=0.5, attempts=3)


def plain_job(tmp_path: Path) -> Path:
    file = tmp_path / "plain.sbatch"
    file.write_text("#!/bin/bash\n#SBATCH --output=/dev/null\nsleep 1\n")
    return file


def wrapped_sbatch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> Path:
    """An sbatch before the real one on PATH; `$real` is that one, each call adds a line to `calls`."""
    real = subprocess.run(["which", "sbatch"], capture_output=True, text=True, check=True).stdout.strip()
    directory = tmp_path / "wrapped"
    directory.mkdir()
    program = directory / "sbatch"
    program.write_text(f"#!/bin/bash\nreal={real}\necho call >> {directory}/calls\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory / "calls"


@pytest.mark.parametrize(
    "script",
    [
        '"$real" "$@" > /dev/null; sleep 600',
        '"$real" "$@" > /dev/null; echo "sbatch: error: Socket timed out on send/recv operation" >&2; exit 1',
    ],
    ids=["hangs", "says that it timed out"],
)
def test_a_job_that_was_taken_is_not_submitted_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    calls = wrapped_sbatch(monkeypatch, tmp_path, script)
    token = submission.new_token()
    job = submission.submit(cluster.runner, plain_job(tmp_path), token, patience=PATIENCE)
    assert [each.id for each in list_jobs(cluster.runner) if each.token == token] == [job]
    assert calls.read_text().splitlines() == ["call"]


def test_a_job_that_was_not_taken_is_submitted_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails_once = f'[ "$(wc -l < {tmp_path}/wrapped/calls)" -gt 1 ] && exec "$real" "$@"\n'
    fails_once += 'echo "sbatch: error: Unable to contact slurm controller (connect failure)" >&2; exit 1'
    calls = wrapped_sbatch(monkeypatch, tmp_path, fails_once)
    token = submission.new_token()
    job = submission.submit(cluster.runner, plain_job(tmp_path), token, patience=PATIENCE)
    assert [each.id for each in list_jobs(cluster.runner) if each.token == token] == [job]
    assert len(calls.read_text().splitlines()) == 2


def test_what_slurm_refuses_is_said_with_advice(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    for words, said in (
        (["--partition", "mian"], "did you mean main?"),
        (["--time", "2-0"], "01:00:00"),
        (["--nodes", "3"], "no 3 nodes"),
    ):
        done = cluster.sifkit("submit", str(make_config()), "--gpus", "0", *words, cwd=tmp_path, check=False)
        assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_gpu_job_asks_for_its_share_of_a_node(cluster: Cluster, make_config: MakeConfig, tmp_path: Path) -> None:
    """Fake GPUs: what Slurm gave is in the container's environment."""
    text = cluster.sifkit("sbatch", str(make_config()), "--gpus", "1", "--no-nv", "-o", "-", cwd=tmp_path).stdout
    assert {"#SBATCH --gres=gpu:1", "#SBATCH --cpus-per-task=2", "#SBATCH --mem=4000M"} <= set(text.splitlines())
    (tmp_path / "logs").mkdir()
    seen = text.replace("llamafactory-cli", "printenv").replace("arguments=(", "arguments=(CUDA_VISIBLE_DEVICES) #(")
    (tmp_path / "seen.sbatch").write_text(seen)
    job = cluster.run("sbatch", "--parsable", "seen.sbatch", cwd=tmp_path)
    cluster.wait_state(job, "COMPLETED")
    assert (tmp_path / "logs" / f"run-{job}.out").read_text() == "0\n"
