"""What `python -m bench.imports` leaves out of its gzip side."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.builds import require_reachable
from bench.imports import names_written_by_sifkit
from sifkit.errors import UsageError
from sifkit.importnames import write_import_names
from tests.unit.installed import PYTHON, environment, install


def test_names_that_sifkit_wrote_are_found_and_those_of_a_wheel_stay(tmp_path: Path) -> None:
    venv = environment(tmp_path)
    install(venv, "own", {"own-1.0.dist-info/top_level.txt": "own\n", "own.py": ""})
    without = install(venv, "without", {"without/__init__.py": "", "without/part.py": ""})
    subprocess.run(["sh", "-ec", write_import_names(str(venv), PYTHON)], check=True)
    assert names_written_by_sifkit(tmp_path) == [without / "top_level.txt"]


def test_before_sifkit_wrote_there_are_none(tmp_path: Path) -> None:
    install(environment(tmp_path), "without", {"without/__init__.py": ""})
    assert names_written_by_sifkit(tmp_path) == []


def test_a_place_that_others_may_not_enter_is_named(tmp_path: Path) -> None:
    closed, inner = tmp_path / "closed", tmp_path / "closed" / "inner"
    inner.mkdir(parents=True)
    closed.chmod(0o700)
    with pytest.raises(UsageError, match="closed"):
        require_reachable(inner)
