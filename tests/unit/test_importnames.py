"""The program in definitions that writes top_level.txt, run in a virtual environment of this Python."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from sifkit.importnames import write_import_names
from tests.unit import installed
from tests.unit.installed import PYTHON, environment

ASK = "import json; from importlib.metadata import packages_distributions as ask; print(json.dumps(ask()))"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return environment(tmp_path)


def install(venv: Path, name: str, *files: str, told: str | None = None) -> Path:
    """A package of empty files with its metadata; `told` is its top_level.txt. Returns its dist-info directory."""
    metadata = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}
    metadata |= {} if told is None else {"top_level.txt": told}
    of_package = {f"{name}-1.0.dist-info/{file}": text for file, text in metadata.items()}
    return installed.install(venv, name, {**dict.fromkeys(files, ""), **of_package})


def packages_distributions(venv: Path) -> dict[str, list[str]]:
    """What the environment's own Python answers."""
    asked = subprocess.run([venv / "bin/python", "-I", "-c", ASK], capture_output=True, text=True, check=True)
    answer: dict[str, list[str]] = json.loads(asked.stdout)
    return {name: sorted(owners) for name, owners in answer.items()}


def write(venv: Path) -> None:
    """As a definition does."""
    subprocess.run(["sh", "-ec", write_import_names(str(venv), PYTHON)], check=True)


def test_names_are_those_that_python_finds(venv: Path) -> None:
    infos = {
        "many-names": install(venv, "many-names", "many/__init__.py", "many/part.py", "single.py", "../../../bin/many"),
        "compiled": install(venv, "compiled", "compiled/__init__.py", "compiled.libs/libz.so.1"),
        "namespace": install(venv, "namespace", "shared/one/__init__.py"),
    }
    install(venv, "beside", "shared/other/__init__.py", told="shared\n")
    before = packages_distributions(venv)
    write(venv)
    written = {name: (info / "top_level.txt").read_text() for name, info in infos.items()}
    assert written == {"many-names": "many\nsingle\n", "compiled": "compiled\n", "namespace": "shared\n"}
    assert packages_distributions(venv) == before
    assert before["shared"] == ["beside", "namespace"]


@pytest.mark.parametrize("end", ["\n", ""])
def test_record_lists_the_new_file_with_its_hash(venv: Path, end: str) -> None:
    info = install(venv, "one", "one/__init__.py")
    before = (info / "RECORD").read_text()
    (info / "RECORD").write_text(before.rstrip() + end)
    write(venv)
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"one\n").digest()).rstrip(b"=").decode()
    assert (info / "RECORD").read_text() == f"{before}one-1.0.dist-info/top_level.txt,sha256={digest},4\n"


def test_what_is_written_no_longer_depends_on_files(venv: Path) -> None:
    info = install(venv, "one", "one/__init__.py")
    write(venv)
    for file in (info.parent / "one").iterdir():
        file.unlink()
    assert packages_distributions(venv) == {"one": ["one"]}


@pytest.mark.parametrize("told", ["told\n", "one\ntwo\n", ""])
def test_what_a_package_says_itself_stays(venv: Path, told: str) -> None:
    info = install(venv, "one", "one/__init__.py", told=told)
    before = {path.name: path.read_bytes() for path in info.iterdir()}
    write(venv)
    assert {path.name: path.read_bytes() for path in info.iterdir()} == before


def test_a_package_without_names_or_without_record_gets_none(venv: Path) -> None:
    nameless = install(venv, "nameless", "../../../bin/nameless")
    unrecorded = install(venv, "unrecorded", "unrecorded/__init__.py")
    (unrecorded / "RECORD").unlink()
    write(venv)
    assert not (nameless / "top_level.txt").exists()
    assert [path.name for path in unrecorded.iterdir()] == ["METADATA"]


def test_a_cache_that_the_record_is_linked_from_stays_as_it_is(venv: Path, tmp_path: Path) -> None:
    info = install(venv, "one", "one/__init__.py")
    os.link(info / "RECORD", tmp_path / "in the cache")
    before = (tmp_path / "in the cache").read_text()
    write(venv)
    assert (tmp_path / "in the cache").read_text() == before
    assert (info / "RECORD").read_text() != before


def test_once_more_changes_nothing(venv: Path) -> None:
    info = install(venv, "one", "one/__init__.py")
    write(venv)
    once = {path.name: path.read_bytes() for path in info.iterdir()}
    write(venv)
    assert {path.name: path.read_bytes() for path in info.iterdir()} == once
