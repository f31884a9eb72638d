"""`sifkit train` in the real image, on the CPU. No Slurm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, MakeConfig

pytestmark = pytest.mark.image


def train(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "sifkit", "train", "--project", str(ROOT), str(config), *words]


def test_it_trains_whatever_else_is_set_and_takes_overrides(make_config: MakeConfig, tmp_path: Path) -> None:
    environ = {**os.environ, "APPTAINER_BIND": "/nowhere:/mnt", "CONDA_PREFIX": "/nowhere", "PYTHONHOME": ""}
    done = subprocess.run(train(make_config(), "max_steps=2"), cwd=tmp_path, env=environ, check=False)
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 2


def test_the_printed_line_does_the_same_by_hand(make_config: MakeConfig, tmp_path: Path) -> None:
    """Names with blanks and quotes too."""
    config = make_config("it's a run")
    shown = subprocess.run(train(config, "--print"), cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert not (tmp_path / "it's a run").exists()
    subprocess.run(["bash", "-euc", shown], cwd="/", check=True)
    assert (tmp_path / "it's a run" / "adapter_model.safetensors").is_file()


def test_the_trainers_exit_code_is_returned(make_config: MakeConfig, tmp_path: Path) -> None:
    done = subprocess.run(train(make_config(learning_rat=1)), cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "learning_rat" in done.stderr


def test_a_signal_reaches_the_trainer(make_config: MakeConfig, tmp_path: Path) -> None:
    config, log = make_config(max_steps=100_000, enable_jit_checkpoint=True), tmp_path / "run" / "trainer_log.jsonl"
    process = subprocess.Popen(train(config), cwd=tmp_path)
    try:
        until = time.monotonic() + 120
        while not log.exists() and time.monotonic() < until:
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0  # it saved, and ended by itself
    finally:
        process.kill()
    assert list((tmp_path / "run").glob("checkpoint-*/trainer_state.json"))
