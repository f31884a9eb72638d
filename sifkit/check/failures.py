"""The catalogue of how training jobs die, and where each is said first. Reads its data file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sifkit import yamlfile
from sifkit.check.rule import Rule
from sifkit.model import Strict

_DATA = Path(__file__).parent.parent / "data" / "failures.yaml"


class Failure(Strict):
    """A row. What names no place here is caught by rules of `sifkit check` alone."""

    row: int
    symptom: str
    lock: tuple[str, ...] = ()  # rules of sifkit/compat
    build: str | None = None
    verify: tuple[str, ...] = ()  # LEVEL: CHECK
    watch: str | None = None


class _File(Strict):
    failures: tuple[Failure, ...]


def failures() -> tuple[Failure, ...]:
    """All rows in order."""
    return yamlfile.load_own(_DATA, _File).failures


def page(rows: tuple[Failure, ...], rules: Mapping[str, Rule]) -> str:
    """docs/failures.md: each row, and everything that catches it, earliest first."""
    lines = [_line(row, [rule for rule in rules.values() if row.row in rule.rows]) for row in rows]
    return (
        "\n".join(
            [
                _HEAD,
                "| # | symptom | before the build | before the queue | on the node |",
                "|---|---|---|---|---|",
                *lines,
            ]
        )
        + "\n"
    )


_HEAD = """\
# How training jobs die, and where sifkit says so first

Made from the rules and `sifkit/data/failures.yaml`: `make rules`. *Before the build*: `sifkit lock` and `build.py`
refuse it ([compatibility.md](compatibility.md)), or what sifkit builds and writes does not have it. *Before the queue*:
rules of `sifkit check`, which `submit`, `sbatch`, `train` and `--verify` ask first. *On the node*: the level of
`--verify`, or what `sifkit watch` says afterwards.
"""


def _line(row: Failure, rules: list[Rule]) -> str:
    before = ", ".join([*(f"`{name}`" for name in row.lock), *([row.build] if row.build else [])])
    queue = ", ".join(f"[{rule.code}](rules/{rule.code}.md) {rule.name}" for rule in rules)
    node = "; ".join([*row.verify, *([row.watch] if row.watch else [])])
    symptom = row.symptom.replace("|", "\\|")
    return f"| {row.row} | {symptom} | {before} | {queue} | {node} |"
