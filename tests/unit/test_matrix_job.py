"""`submit --verify`: the job file, and what is gathered afterwards."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sifkit.commands.matrix import verdict
from sifkit.errors import UsageError
from sifkit.model import Site
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.slurm.matrix import Matrix, render
from sifkit.slurm.request import Resources
from sifkit.spec import Project
from sifkit.tools import Tools
from sifkit.verify.record import Record, append

HOSTILE = "/tmp/a b/$(touch x)'\"`;&"
MATRIX = Matrix(("one", "two"), Path("/p"), Path("/p/.venv/bin/python"), Resources(gpus=1, partition="gpu"))


def test_a_task_for_each_image_and_a_gpu_for_each_task() -> None:
    lines = render(MATRIX).splitlines()
    for line in ("#SBATCH --array=0-1", "#SBATCH --gres=gpu:1", "#SBATCH --partition=gpu", "#SBATCH --no-requeue"):
        assert line in lines
    assert lines[-1].endswith('--verify --gpus 1 "${images[$SLURM_ARRAY_TASK_ID]}"')


def test_without_gpus_the_cpu_is_asked_for() -> None:
    assert "--verify --device cpu " in render(replace(MATRIX, resources=Resources(gpus=0)))


@pytest.mark.parametrize("task", [0, 1])
def test_bash_hands_over_exactly_these_words(tmp_path: Path, task: int) -> None:
    python = tmp_path / HOSTILE.lstrip("/") / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    python.chmod(0o755)
    matrix = replace(MATRIX, project=Path(HOSTILE), python=python, options=("--site", HOSTILE))
    environ = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": str(task)}
    done = subprocess.run(
        ["bash", "-c", render(matrix)], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
    )
    words = ["-m", "sifkit", "build", "--project", HOSTILE, "--verify", "--gpus", "1", "--site", HOSTILE]
    assert json.loads(done.stdout) == [*words, ("one", "two")[task]]
    assert not (tmp_path / "x").exists()


def test_shellcheck_has_nothing_to_say() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    subprocess.run([program, "-"], input=render(replace(MATRIX, modules=("apptainer",))), text=True, check=True)


def test_line_breaks_are_refused() -> None:
    with pytest.raises(UsageError, match="line break"):
        replace(MATRIX, project=Path("/p\n#SBATCH --exclusive"))
    with pytest.raises(UsageError, match="SBATCH"):
        replace(MATRIX, logs="my logs")


# ------------------------------------------------------------------ gathering

BEGAN = datetime.datetime(2026, 11, 25, 10, tzinfo=datetime.timezone.utc)


def recorded(tmp_path: Path, started: str, *, passed: bool) -> Tools:
    outcome = {"static": "passed", "train": "passed" if passed else "failed"}
    record = Record("a" * 64, "gpu", ("NVIDIA H100",), "580.1", started, passed, outcome, 60.0)
    append(tmp_path / "reports" / "one", record)
    return Tools(Project(tmp_path), Site(), Runner(os.environ), PlainProgress(Console()), dict(os.environ))


def test_what_was_found_since_the_submission_counts(tmp_path: Path) -> None:
    tools = recorded(tmp_path, "2026-11-25T10:01:00+00:00", passed=True)
    found = verdict("one", "logs/verify-7_0", BEGAN, tools)
    assert (found.passed, found.said) == (True, "on H100: static passed, train passed in 60 s")


def test_an_older_record_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    tools = recorded(tmp_path, "2026-11-25T09:59:00+00:00", passed=True)
    found = verdict("one", "logs/verify-7_0", BEGAN, tools)
    assert found.passed is None
    assert "logs/verify-7_0.err" in found.said
