"""Real kinds of Dockerfiles and definitions, imported: the specs that were read and found good."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit.compat.tables import load_tables
from sifkit.importing.convert import Imported, Options, convert
from sifkit.importing.definition import is_definition, read_definition
from sifkit.importing.dockerfile import read_dockerfile
from sifkit.importing.write import write
from tests.golden.conftest import Golden

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "importing"
SOURCES = sorted(path for path in CASES.glob("*/*") if path.name == "Dockerfile" or path.suffix == ".def")


def imported(source: Path) -> Imported:
    """As `sifkit import` does it in a project whose root is the repository's."""
    text, directory = source.read_text(), source.parent
    read = read_definition(str(source), text, directory, {}) if is_definition(text) else None
    recipe = read or read_dockerfile(source, text, directory, {})
    return convert(recipe, load_tables(ROOT / "definitions" / "compat"), Options(directory.name, ROOT))


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.parent.name)
def test_import(source: Path, golden: Golden) -> None:
    found = imported(source)
    rows = [f"{item.line}: {item.what}: {item.fate}: {item.where}" for item in found.items]
    rows += [f"problem: {found.problem}"] if found.problem else []
    place = f"../importing/{source.parent.name}"
    golden(f"{place}/expected.yaml", write(found))
    golden(f"{place}/expected.txt", "\n".join(rows) + "\n")


def test_there_are_cases() -> None:
    assert {path.parent.name for path in SOURCES} >= {"llamafactory", "conda", "multistage", "files", "apps", "ngc"}
