"""Why builds and runs fail: known messages, their cause and their fix, from data/causes.yaml.

The catalogue is data: each row says where it was learnt and holds a line that it must recognise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from sifkit.model import Strict
from sifkit.yamlfile import load_own

_CATALOGUE = Path(__file__).with_name("data") / "causes.yaml"

Phase = Literal["build", "run"]


class CauseRow(Strict):
    """One known failure. `{name}` in `cause` and `fix` stands for the group `(?P<name>…)` of `pattern`."""

    id: str
    phase: tuple[Phase, ...]
    pattern: str
    cause: str
    fix: str
    source: str
    example: str


class Catalogue(Strict):
    """All rows, the specific before the general."""

    causes: tuple[CauseRow, ...]


@dataclass(frozen=True)
class Cause:
    """A failure that the catalogue knows, filled in for this case."""

    id: str
    cause: str
    fix: str
    source: str


@cache
def catalogue() -> tuple[CauseRow, ...]:
    """The rows of data/causes.yaml."""
    return load_own(_CATALOGUE, Catalogue).causes


def find_cause(text: str, phase: Phase) -> Cause | None:
    """The first row of the catalogue for `phase` that recognises something in `text` (a log, a traceback)."""
    for row in catalogue():
        match = re.search(row.pattern, text, re.MULTILINE) if phase in row.phase else None
        if match:
            groups = {name: value or "" for name, value in match.groupdict().items()}
            return Cause(row.id, row.cause.format(**groups), row.fix.format(**groups), row.source)
    return None
