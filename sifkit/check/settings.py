"""sifkit.yaml: which rules a group of YAMLs is checked with; the nearest one at or above a YAML counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import Field

from sifkit import yamlfile
from sifkit.check.rule import Rule
from sifkit.check.select import ALL, Selection, parse_codes
from sifkit.model import Strict

FILE = "sifkit.yaml"


class CheckSettings(Strict):
    """The key `check`. Codes, their prefixes (DAT), or names of rules."""

    select: tuple[str, ...] = Field((ALL,), description="the rules that are asked", examples=[["CFG", "DAT"]])
    ignore: tuple[str, ...] = Field((), description="rules that are not asked", examples=[["ENV", "CKP008"]])
    per_file_ignores: dict[str, tuple[str, ...]] = Field(
        default_factory=dict, description="the same for files of a pattern", examples=[{"debug_*.yaml": ["CKP"]}]
    )


class Settings(Strict):
    """sifkit.yaml."""

    check: CheckSettings = CheckSettings()


def find_settings(config: Path) -> Path | None:
    """The nearest sifkit.yaml at or above a training YAML."""
    for directory in config.absolute().parents:
        if (directory / FILE).is_file():
            return directory / FILE
    return None


def selection(file: Path | None, known: Mapping[str, Rule]) -> Selection:
    """What the file says. Raises `UsageError` naming file and key for what is wrong in it."""
    if file is None:
        return Selection()
    settings = yamlfile.load(file, Settings).check
    return Selection(
        parse_codes(settings.select, known, f"{file}: check.select"),
        parse_codes(settings.ignore, known, f"{file}: check.ignore"),
        {
            pattern: parse_codes(codes, known, f"{file}: check.per_file_ignores")
            for pattern, codes in settings.per_file_ignores.items()
        },
    )


def overridden(settings: Selection, select: tuple[str, ...], ignore: tuple[str, ...]) -> Selection:
    """The command line: its select replaces the file's, its ignore is added."""
    return Selection(select or settings.select, (*settings.ignore, *ignore), settings.per_file_ignores)
