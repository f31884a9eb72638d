"""The compiling program in definitions, run by this Python as a container's would run it."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from sifkit.bytecode import compile_packages
from tests.unit.installed import PYTHON, SITE, environment, install

UNCHECKED, OF_ITS_TIME = b"\1\0\0\0", b"\0\0\0\0"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return environment(tmp_path)


def compiled(venv: Path, *, for_good: bool = True) -> tuple[list[str], str]:
    """The files that have bytecode after it, and what it said."""
    text = compile_packages(str(venv), PYTHON, for_good=for_good)
    ended = subprocess.run(["sh", "-ec", text], capture_output=True, text=True, check=True)
    site = venv / SITE
    sources = [importlib.util.source_from_cache(str(path)) for path in site.rglob("*.pyc")]
    return sorted(str(Path(source).relative_to(site)) for source in sources), ended.stdout + ended.stderr


def test_all_files_of_all_packages_get_bytecode(venv: Path) -> None:
    many = {f"many/part{n}.py": f"HERE = {n}\n" for n in range(1234)}
    install(venv, "many", many)
    install(venv, "single", {"single.py": "x = 1\n", "single-data.txt": "no Python\n"})
    files, said = compiled(venv)
    assert files == sorted([*many, "single.py"])
    assert said.splitlines() == ["bytecode: 1000 of 1235 files", "bytecode: 1235 of 1235 files"]


@pytest.mark.parametrize(("for_good", "flags"), [(True, UNCHECKED), (False, OF_ITS_TIME)])
def test_bytecode_is_valid_for_good_or_for_its_sources_time(venv: Path, for_good: bool, flags: bytes) -> None:
    install(venv, "single", {"single.py": "x = 1\n"})
    compiled(venv, for_good=for_good)
    (made,) = venv.rglob("single*.pyc")
    assert made.read_bytes()[4:8] == flags


def test_what_stood_there_before_is_made_anew(venv: Path) -> None:
    install(venv, "single", {"single.py": "x = 1\n"})
    compiled(venv, for_good=False)
    compiled(venv, for_good=True)
    (made,) = venv.rglob("single*.pyc")
    assert made.read_bytes()[4:8] == UNCHECKED


def test_tests_programs_and_what_is_no_python_get_none(venv: Path) -> None:
    broken = {"a/__init__.py": "", "a/template.py": "class {{ name }}: pass\n"}
    install(venv, "a", {**broken, "a/tests/test_a.py": "", "a/sub/test/test_b.py": "", "../../../bin/a.py": ""})
    files, _ = compiled(venv)
    assert files == ["a/__init__.py"]
    assert list((venv / "bin").glob("__pycache__")) == []


def test_what_other_packages_are_there_changes_nothing(venv: Path) -> None:
    package = {f"one/part{n}.py": f"def f(x):\n    return x in {{'a', 'b', 'word{n}'}}\n" for n in range(30)}
    install(venv, "one", package)
    compiled(venv)
    alone = {path.name: path.read_bytes() for path in venv.rglob("part*.pyc")}
    install(venv, "another", {f"another/{name[4:]}": text + "y = 'word'\n" for name, text in package.items()})
    compiled(venv)
    beside = {path.name: path.read_bytes() for path in venv.rglob("one/__pycache__/part*.pyc")}
    assert len(alone) == 30
    assert beside == alone


def test_a_process_that_ends_badly_ends_the_build(venv: Path) -> None:
    install(venv, "single", {"single.py": "x = 1\n"})
    cache = venv / SITE / "__pycache__"
    cache.write_text("a file where a directory is to be\n")
    with pytest.raises(subprocess.CalledProcessError) as caught:
        compiled(venv)
    assert "bytecode: 1 processes failed" in caught.value.stderr
