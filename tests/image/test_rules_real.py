"""What sifkit calls wrong dies, in the words that sifkit foretells; what it lets pass trains. On the CPU, for real."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sifkit.apptainer import Apptainer, Bind, Exec
from tests.image.training_cases import CASES, GOOD, plant

pytestmark = [pytest.mark.apptainer, pytest.mark.image]

SCRIPT = Path(__file__).with_name("run_trainings.py")
PROBES = Path(__file__).parents[2] / "sifkit/verify/probes"


@dataclass(frozen=True)
class Tried:
    """Of every YAML by its file: how it ended, and what sifkit found."""

    ends: Mapping[str, dict[str, Any]]
    found: Mapping[str, list[dict[str, Any]]]
    here: Path

    def file(self, name: str, kind: str) -> str:
        return str(self.here / f"{list(CASES).index(name)}-{kind}.yaml")

    def errors(self, file: str) -> list[str]:
        return [each["code"] for each in self.found[file] if each["severity"] == "error"]


def written(here: Path) -> list[str]:
    """All YAMLs, in their files."""
    files = []
    for number, case in enumerate(CASES.values()):
        for kind, changes in (("wrong", case.wrong), ("mended", case.mended)):
            if changes is not None:
                values = {**GOOD, "output_dir": f"{{here}}/{kind}-{number}", **changes}
                text = yaml.safe_dump({key: value for key, value in values.items() if value is not None})
                files.append(here / f"{number}-{kind}.yaml")
                files[-1].write_text(text.replace("{here}", str(here)))
    return [str(file) for file in files]


@pytest.fixture(scope="module")
def tried(
    apptainer: Apptainer, default_sif: Path, llamafactory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Tried:
    """A model made, sifkit asked, and then every YAML run: two containers."""
    here = tmp_path_factory.mktemp("trainings")
    binds = (
        Bind(llamafactory, "/mnt"),
        Bind(PROBES, "/sifkit/probes"),
        Bind(SCRIPT, "/sifkit/run.py"),
        Bind(here, str(here), writable=True),
    )
    env = {"HF_HOME": f"{here}/hf", "HF_HUB_OFFLINE": "1", "MPLCONFIGDIR": f"{here}/plots", "OMP_NUM_THREADS": "1"}

    def run(*argv: str) -> None:
        program = Exec(default_sif, ("python3", *argv), binds, cwd="/mnt", env=env)
        apptainer.runner.run(program.command(apptainer))

    run("/sifkit/probes/smoke_model.py", f"{here}/model.json", "llama3", "/mnt/data/identity.json", f"{here}/model")
    plant(here)
    files = written(here)
    found = checked(files, default_sif, llamafactory)
    run("/sifkit/run.py", f"{here}/ends.json", *files)
    return Tried(json.loads((here / "ends.json").read_text()), found, here)


def checked(files: list[str], sif: Path, checkout: Path) -> dict[str, list[dict[str, Any]]]:
    """What `sifkit check` finds in each."""
    where = ["--image", str(sif), "--checkout", str(checkout), "--gpus", "0"]
    argv = [sys.executable, "-m", "sifkit", "check", "--format", "json", *where, *files]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return {each["file"]: each["findings"] for each in json.loads(done.stdout)}


def test_what_is_called_wrong_dies_in_these_words(tried: Tried) -> None:
    wrong = {name: tried.file(name, "wrong") for name in CASES}
    assert [name for name, file in wrong.items() if tried.ends[file]["code"] == 0] == []
    words = {name: case.said.replace("{here}", str(tried.here)) for name, case in CASES.items()}
    assert [name for name, file in wrong.items() if words[name] not in tried.ends[file]["said"]] == []
    assert {name: tried.errors(file) for name, file in wrong.items()} == {
        name: [case.code] for name, case in CASES.items()
    }


def test_what_is_mended_trains(tried: Tried) -> None:
    mended = {name: tried.file(name, "mended") for name, case in CASES.items() if case.mended is not None}
    assert len(mended) > 7
    assert {name: tried.ends[file]["said"][-500:] for name, file in mended.items() if tried.ends[file]["code"]} == {}
    assert {name: tried.errors(file) for name, file in mended.items() if tried.errors(file)} == {}
