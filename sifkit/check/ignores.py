"""`# sifkit: ignore[CFG003]`: what a comment of the YAML takes out of the findings. Pure.

Behind a key it counts for that line; on a line of its own for the whole file, since some findings have no line.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sifkit.check.rule import Finding

_COMMENT = re.compile(r"(?:^|\s)#\s*sifkit:\s*ignore(?:\[(?P<codes>[^\]]*)\])?")


@dataclass(frozen=True)
class Ignore:
    """One comment. `line` None: the whole file. No codes: every code of that line."""

    line: int | None
    codes: tuple[str, ...]
    at: int  # where the comment stands

    def covers(self, finding: Finding) -> bool:
        """Whether it takes this finding out. Codes may be prefixes: DAT."""
        in_place = self.line is None or finding.line == self.line
        named = not self.codes or any(finding.code.startswith(code) or finding.name == code for code in self.codes)
        return in_place and named


def read_ignores(text: str) -> tuple[Ignore, ...]:
    """Every such comment of a YAML."""
    return tuple(found for number, line in enumerate(text.splitlines(), 1) if (found := _read(line, number)))


def _read(line: str, number: int) -> Ignore | None:
    match = _COMMENT.search(line)
    if match is None:
        return None
    codes = tuple(code.strip() for code in (match["codes"] or "").split(",") if code.strip())
    alone = line.lstrip().startswith("#")
    if alone and not codes:
        return None  # a whole file without checks is what not calling sifkit is for
    return Ignore(None if alone else number, codes, number)


def without_ignored(
    findings: Iterable[Finding], ignores: tuple[Ignore, ...]
) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings that stay, and those that a comment takes out."""
    kept: list[Finding] = []
    ignored: list[Finding] = []
    for finding in findings:
        (ignored if any(each.covers(finding) for each in ignores) else kept).append(finding)
    return tuple(kept), tuple(ignored)
