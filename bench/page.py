"""Generated parts of documentation pages: what stands between two marks is written by a program."""

from __future__ import annotations

import sys
from pathlib import Path

from sifkit.errors import SifkitError, UsageError

DOCS = Path(__file__).parent.parent / "docs"


def read(page: str, what: str) -> str:
    """What stands between the marks of WHAT, a command that writes it. Raises `UsageError` for a page without them."""
    return _parts(page, what)[1]


def write(page: str, what: str, text: str) -> None:
    """Replace it. Raises `UsageError` for a page without the marks."""
    before, _, after = _parts(page, what)
    (DOCS / page).write_text(before + text + after, encoding="utf-8")


def record(page: str, what: str, text: str) -> None:
    """On standard output, and into the page."""
    sys.stdout.write(text)
    sys.stdout.flush()
    write(page, what, text)


def say(error: SifkitError) -> int:
    """An error in words, on standard error; its exit code."""
    sys.stderr.write(f"error: {error.message}\n" + (f"fix: {error.fix}\n" if error.fix else ""))
    return error.exit


def _parts(page: str, what: str) -> tuple[str, str, str]:
    begin, end = f"<!-- {what}: begin -->\n", f"<!-- {what}: end -->\n"
    before, found, rest = (DOCS / page).read_text(encoding="utf-8").partition(begin)
    text, closed, after = rest.partition(end)
    if not (found and closed):
        raise UsageError(f"docs/{page}: the marks are not there", f"add these two lines:\n{begin}{end}")
    return before + begin, text, end + after
