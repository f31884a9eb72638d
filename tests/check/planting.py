"""A place in which `sifkit check` finds nothing wrong; tests spoil one thing of it, and mend it as the fix says."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import HostFacts, Place
from sifkit.check.failures import failures
from sifkit.check.rule import Finding
from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.sif import OBJECT_NAME
from tests.check import good
from tests.check.checkout_tree import Tree, make_tree
from tests.check.real import DATA
from tests.check.test_image_facts import sif_bytes
from tests.compat.test_combinations import Combination
from tests.compat.test_combinations import found as refused_in

# Variables of whoever runs the tests that a rule may speak of.
_ACTING = ("PYTHON", "APPTAINER", "SINGULARITY", "CONDA_", "LD_", "NCCL_", "HF_", "WANDB_", "TRITON_", "TORCH")
_SLURM = ("sinfo", "sbatch", "srun", "squeue", "scontrol")

Found = dict[str, Any]

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=train --output=logs/%x-%j.out
#SBATCH --nodes=2 --ntasks-per-node=1
#SBATCH --cpus-per-task=16 --mem=200G
#SBATCH --gpus-per-node=4

export NNODES=$SLURM_JOB_NUM_NODES MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK FORCE_TORCHRUN=1
srun bash -c 'export NODE_RANK=$SLURM_NODEID
    exec apptainer exec --nv --cleanenv --bind "$HOME/LLaMA-Factory:/mnt" --pwd /mnt llama.sif \\
        llamafactory-cli train train.yaml'
"""


@dataclass
class Ground:
    """A checkout, a model, a YAML, an image file with real facts, and how `sifkit check` is called.

    `config`: the YAML's text by key. `facts`: the image's, as JSON. `words`: further words of the command line.
    """

    folder: Path
    tree: Tree
    config: dict[str, str]
    image: Path
    facts: dict[str, Any]
    out: Callable[[], str]
    words: list[str] = field(default_factory=lambda: ["--gpu", "H100", "--driver", "570.86"])

    @property
    def yaml(self) -> Path:
        """The training YAML."""
        return self.folder / "train.yaml"

    def write(self) -> None:
        """The YAML and the image, as they are asked to be now."""
        self.yaml.write_text("".join(f"{key}: {value}\n" for key, value in self.config.items()))
        self.image.write_bytes(sif_bytes(**{OBJECT_NAME: json.dumps(self.facts).encode()}))

    def run(self, *words: str) -> tuple[int, str]:
        """`sifkit check` of the files as they lie there: exit code and standard output."""
        where = ["--image", str(self.image), "--checkout", str(self.tree.root)]
        self.out()
        code = main(["check", str(self.yaml), *where, *self.words, *words])
        return code, self.out()

    def found(self, code: str) -> list[Found]:
        """What this rule finds. The rule must have been asked."""
        self.write()
        return self.found_in_files(code)

    def found_in_files(self, code: str) -> list[Found]:
        """The same without writing anything first."""
        (one,) = json.loads(self.run("--format", "json")[1])
        found = [each for each in one["findings"] if each["code"] == code]
        assert code in one["checked"], [each for each in one["not_checked"] if each["code"] == code]
        return found

    def check(self, *words: str | Path, code: Exit | None = None) -> list[dict[str, Any]]:
        """What is said of other YAMLs than the ground's own, with an exit code that `sifkit check` has for findings."""
        where = ["--image", str(self.image), "--checkout", str(self.tree.root)]
        self.out()
        got = main(["check", *where, *self.words, "--format", "json", *map(str, words)])
        assert got == code if code is not None else got in (Exit.OK, Exit.PROBLEM)
        found: list[dict[str, Any]] = json.loads(self.out())
        return found

    def one(self, code: str) -> Found:
        """The only finding of this rule."""
        (finding,) = self.found(code)
        return finding

    def is_mended(self, code: str) -> bool:
        """Whether this rule, asked again, finds nothing."""
        return self.found(code) == []

    def mends_itself(self, code: str) -> bool:
        """Whether `--fix` makes this rule's finding go away."""
        self.write()
        assert [each["fixable"] for each in self.found_in_files(code)] == [True]
        self.run("--fix", "--format", "json")
        return self.found_in_files(code) == []

    def job(self, text: str) -> None:
        """Check with a job file of the user's own; what is asked of Slurm then stands in it."""
        path = self.folder / "train.sbatch"
        path.write_text(text)
        self.words = [*self.words[:4], "--job", str(path)]


def make_ground(folder: Path, monkeypatch: pytest.MonkeyPatch, out: Callable[[], str]) -> Ground:
    """On a host without Slurm, in an environment without what rules speak of."""
    tree = make_tree(folder)
    for name in list(os.environ):
        if name.startswith(_ACTING):
            monkeypatch.delenv(name)
    for name in ("home", "cache", "tmp"):
        (folder / name).mkdir()
    for variable, name in {"HOME": "home", "SIFKIT_CACHE": "cache", "TMPDIR": "tmp"}.items():
        monkeypatch.setenv(variable, str(folder / name))
    monkeypatch.setattr("sifkit.run.Runner.which", _without_slurm)
    monkeypatch.chdir(folder)
    config = {
        "model_name_or_path": str(tree.models / "llama-1b"),
        "stage": "sft",
        "do_train": "true",
        "finetuning_type": "lora",
        "dataset": "alpaca_en_demo",
        "template": "llama3",
        "output_dir": str(folder / "saves"),
        "save_total_limit": "2",
        "report_to": "none",
        "bf16": "true",
    }
    image = folder / "image.sif"
    made = Ground(folder, tree, config, image, json.loads((DATA / "facts-0.9.5.json").read_text()), out)
    made.write()
    return made


def _without_slurm(self: object, program: str) -> str | None:
    return None if program in _SLURM else shutil.which(program)


def do(command: str) -> None:
    """Carry out a fix that is a command."""
    subprocess.run(shlex.split(command), check=True)


def job(ground: Ground, *changes: tuple[str, str]) -> None:
    """A job file for two nodes, with some texts replaced."""
    text = SCRIPT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (ground.folder / "logs").mkdir(exist_ok=True)
    ground.job(text)


def refuses(rule: str, **row: Any) -> bool:
    """Whether this rule of `sifkit lock` finds something in a combination."""
    assert any(rule in failure.lock for failure in failures()), "the data file does not name it"
    return any(finding.rule == rule for finding in refused_in(Combination(name="planted", **row), lock=True))


def host(*places: Place, **changes: Any) -> HostFacts:
    return replace(good.HOST, places=(*good.HOST.places, *places), **changes)


def place(name: str, path: str = "/home/mika/.cache/x", **changes: Any) -> Place:
    return replace(Place(name, Path(path), True, True, True, "ext4", 200 * good.GIB), **changes)


def only(code: str, **parts: Any) -> Finding:
    """The finding of a rule in good facts of which these parts are others."""
    (finding,) = good.found(good.facts(**parts), code)
    return finding


def is_well(code: str, **parts: Any) -> bool:
    return good.found(good.facts(**parts), code) == ()
