"""A real Slurm of two nodes on this machine, started for the session and stopped by process id afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from sifkit import checkout
from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.slurm.jobs import read_fields
from sifkit.spec import DEFAULT_IMAGE
from sifkit.verify.container import PROBES

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "ci" / "slurm" / "cluster.sh"


@dataclass(frozen=True)
class Cluster:
    """How to talk to it."""

    directory: Path

    @property
    def environ(self) -> Mapping[str, str]:
        """Of a user of this cluster."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.directory / "slurm.conf")}

    @property
    def runner(self) -> Runner:
        return Runner(self.environ)

    def run(self, *argv: str, cwd: Path = ROOT) -> str:
        """A program of Slurm's; its standard output."""
        return subprocess.run(
            argv, cwd=cwd, env=self.environ, check=True, capture_output=True, text=True
        ).stdout.strip()

    def fields(self, job: str) -> dict[str, str]:
        """Of a job that is no array."""
        (fields,) = read_fields(self.runner, job)
        return fields

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = 120) -> None:
        """Poll with a deadline."""
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"{what}: not so after {seconds} s\n{self.run('squeue', '-t', 'all')}"
            time.sleep(0.2)

    def wait_state(self, job: str, *states: str, seconds: float = 120) -> dict[str, str]:
        self.wait(f"{job} {states}", lambda: self.fields(job)["JobState"] in states, seconds)
        return self.fields(job)

    def sifkit(self, *words: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sifkit", words[0], "--project", str(ROOT), *words[1:]]
        done = subprocess.run(argv, cwd=cwd, env=self.environ, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done

    def submit(self, *words: str, cwd: Path) -> str:
        """`sifkit submit` on the CPU; the job id."""
        return self.sifkit("submit", *words, "--gpus", "0", "--mem", "4G", cwd=cwd).stdout.strip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """In a short path: munge's socket is one. A host without Slurm fails: `make slurm` installs it."""
    directory = Path(tempfile.mkdtemp(prefix="sifkit-slurm-", dir="/tmp"))
    try:
        started = subprocess.run([CLUSTER, "start", directory], capture_output=True, text=True, check=False)
        assert started.returncode == 0, f"{started.stderr}\nis Slurm installed? make slurm"
        yield Cluster(directory)
    finally:
        subprocess.run([CLUSTER, "stop", directory], check=True, capture_output=True)
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights, made in the real image."""
    work = tmp_path_factory.mktemp("model")
    runner = Runner(os.environ)
    data = llamafactory() / "data"
    argv = ("python3", "/probes/smoke_model.py", "/work/answer.json", "llama3", "/data/alpaca_en_demo.json", "/work/m")
    binds = (Bind(PROBES, "/probes"), Bind(data, "/data"), Bind(work, "/work", writable=True))
    apptainer = Apptainer.find(runner)
    runner.run(Exec(ROOT / "images" / f"{DEFAULT_IMAGE}.sif", argv, binds=binds).command(apptainer))
    assert "error" not in json.loads((work / "answer.json").read_text())
    return work / "m"


def llamafactory() -> Path:
    """A checkout of the default image's version; fetched once, kept in the cache."""
    from rich.console import Console

    from sifkit.progress import PlainProgress

    return checkout.cached("0.9.5", user_cache(os.environ), Runner(os.environ), PlainProgress(Console(stderr=True)))


MakeConfig = Callable[..., Path]


@pytest.fixture
def make_config(model: Path, tmp_path: Path) -> MakeConfig:
    """`make_config(NAME, key=value…)`: a config that trains the tiny model on the CPU, writing to tmp_path/NAME."""

    def make(name: str = "run", **changes: object) -> Path:
        values = {
            "model_name_or_path": str(model),
            "stage": "sft",
            "do_train": True,
            "finetuning_type": "lora",
            "lora_target": "all",
            "dataset": "identity",
            "template": "llama3",
            "cutoff_len": 64,
            "max_samples": 64,
            "preprocessing_num_workers": 1,
            "output_dir": str(tmp_path / name),
            "logging_steps": 1,
            "save_steps": 1000,
            "report_to": "none",
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 1,
            "learning_rate": 1e-4,
            "max_steps": 1,
            "use_cpu": True,
            "bf16": False,
            **changes,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(json.dumps(values))  # JSON is YAML
        return path

    return make
