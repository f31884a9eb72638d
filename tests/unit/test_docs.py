"""Pages say what is there: their links lead somewhere, and their generated tables are of this state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sifkit.spec import Project
from tests.compat.test_combinations import TABLE

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_matrix_has_every_image() -> None:
    page = (ROOT / "docs" / "images.md").read_text()
    assert [name for name in Project(ROOT).names() if f"\n| {name} |" not in page] == []


def test_pip_and_uv_were_asked_every_combination() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert [row.name for row in TABLE.wrong if f"\n| {row.name} |" not in page] == []
    assert f"| {len(TABLE.wrong)}/{len(TABLE.wrong)} |" in page


def test_every_rule_of_the_table_is_explained() -> None:
    page = (ROOT / "docs" / "compatibility.md").read_text()
    assert [row.rule for row in (*TABLE.wrong, *TABLE.unknown) if f"`{row.rule}`" not in page] == []
