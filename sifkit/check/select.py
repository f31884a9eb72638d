"""Which rules are asked: codes and their prefixes, as `--select`, `--ignore` and sifkit.yaml name them. Pure."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sifkit.check.rule import Rule
from sifkit.errors import UsageError

ALL = "ALL"


@dataclass(frozen=True)
class Selection:
    """Prefixes of codes. The longest that fits a code decides; of two of one length, the one that ignores."""

    select: tuple[str, ...] = (ALL,)
    ignore: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by pattern of the file's name

    def rules(self, known: Mapping[str, Rule], file: Path | None = None) -> tuple[Rule, ...]:
        """The rules that are asked of a file."""
        ignored = (*self.ignore, *(self._of_file(file) if file else ()))
        return tuple(rule for code, rule in known.items() if _longest(code, self.select) > _longest(code, ignored))

    def _of_file(self, file: Path) -> Iterable[str]:
        for pattern, codes in self.per_file_ignores.items():
            if fnmatch.fnmatch(file.name, pattern) or fnmatch.fnmatch(str(file), pattern):
                yield from codes


def _longest(code: str, prefixes: Iterable[str]) -> int:
    """Letters of the longest prefix that fits; ALL counts as none of them, nothing as less than that."""
    fitting = (0 if prefix == ALL else len(prefix) for prefix in prefixes if prefix == ALL or code.startswith(prefix))
    return max(fitting, default=-1)


def parse_codes(words: Iterable[str], known: Mapping[str, Rule], where: str) -> tuple[str, ...]:
    """Codes, their prefixes and rules' names, separated by commas. Raises `UsageError` for one that no rule has."""
    by_name = {rule.name: code for code, rule in known.items()}
    parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
    return tuple(_code(part, known, by_name, where) for part in parts)


def _code(word: str, known: Mapping[str, Rule], by_name: Mapping[str, str], where: str) -> str:
    code = by_name.get(word, word.upper())
    if code == ALL or any(each.startswith(code) for each in known):
        return code
    near = difflib.get_close_matches(word, [*known, *by_name], n=1) or difflib.get_close_matches(code, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "all of them: sifkit rule --all"
    raise UsageError(f"{where}: there is no rule {word}", hint)
