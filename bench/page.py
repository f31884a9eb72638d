"""Generated parts of documentation pages: what stands between two marks is written by a program."""

from __future__ import annotations

from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def read(page: str, target: str) -> str:
    """What stands between the marks of `make TARGET`."""
    begin, end = _marks(target)
    return (DOCS / page).read_text(encoding="utf-8").partition(begin)[2].partition(end)[0]


def write(page: str, target: str, text: str) -> None:
    """Replace it. Raises `ValueError` for a page without the marks."""
    begin, end = _marks(target)
    before, found, rest = (DOCS / page).read_text(encoding="utf-8").partition(begin)
    if not found or end not in rest:
        raise ValueError(f"docs/{page} has no marks of make {target}")
    (DOCS / page).write_text(before + begin + text + end + rest.partition(end)[2], encoding="utf-8")


def _marks(target: str) -> tuple[str, str]:
    return f"<!-- make {target}: begin -->\n", f"<!-- make {target}: end -->\n"
