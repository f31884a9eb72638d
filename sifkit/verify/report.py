"""What a verification found, as data, as JSON, as JUnit XML, and as a table for people."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sifkit.files import write_whole
from sifkit.verify.checks import Check, Level, Outcome
from sifkit.verify.nvml import GpuSample, HostFacts
from sifkit.verify.train import TrainFacts


@dataclass(frozen=True)
class Report:
    """One verification of one image."""

    name: str
    sha256: str
    size: int  # bytes
    versions: dict[str, str]
    device: str
    started: str  # ISO 8601, UTC
    seconds: float
    levels: tuple[Level, ...]  # that were asked for
    checks: tuple[Check, ...]
    host: HostFacts | None
    train: TrainFacts | None
    gpus: tuple[str, ...] = ()  # models of the GPUs that were used, one for each
    level_seconds: dict[str, float] = field(default_factory=dict)  # wall time, by level
    own: bool = False  # a config, a model or a method of the user's own was trained

    def seconds_of(self, level: Level) -> float:
        """A level's wall time; where that was not taken, the sum of its checks."""
        spent = sum(check.seconds for check in self.checks if check.level is level)
        return self.level_seconds.get(level.value, spent)

    @property
    def passed(self) -> bool:
        """Nothing failed, and something was really checked."""
        outcomes = {check.outcome for check in self.checks}
        return Outcome.FAILED not in outcomes and Outcome.PASSED in outcomes

    def outcome_of(self, level: Level) -> Outcome:
        """A level's worst. One that was stopped before its own work has not run, whatever preceded it."""
        own = [check for check in self.checks if check.level is level]
        found = worst(check.outcome for check in own)
        stopped = any(check.name == level.value and check.outcome is Outcome.NOT_RUN for check in own)
        return Outcome.NOT_RUN if stopped and found is not Outcome.FAILED else found


def worst(outcomes: Any) -> Outcome:
    """FAILED before WARNED before PASSED; NOT_RUN only when there is nothing else."""
    found = set(outcomes)
    order = (Outcome.FAILED, Outcome.WARNED, Outcome.PASSED)
    return next((outcome for outcome in order if outcome in found), Outcome.NOT_RUN)


# Source: XML 1.0, 2.2 "Characters".
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

# ---------------------------------------------------------------------------------------------- files


def write_report(report: Report, directory: Path) -> None:
    """Write report.json, junit.xml and report.html into `directory`, each whole or not at all."""
    from sifkit.verify.html import render_html  # it needs Report; and jinja2 is loaded where a page is made

    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "report.json", json_text(as_json(report)))
    write_whole(directory / "junit.xml", junit_xml(report))
    write_whole(directory / "report.html", render_html(report))


def json_text(value: dict[str, Any]) -> str:
    """Indented, but for each list of plain values (a sample, a step's loss): that stands on one line."""
    return _indented(value, "\n") + "\n"


def _indented(value: Any, line: str) -> str:
    """JSON text whose later lines begin with `line`: a line end, and blanks."""
    inner = line + "  "
    if isinstance(value, dict) and value:
        parts = [f"{json.dumps(key)}: {_indented(one, inner)}" for key, one in value.items()]
        return f"{{{inner}{f',{inner}'.join(parts)}{line}}}"
    if isinstance(value, list) and any(isinstance(one, list | dict) for one in value):
        return f"[{inner}{f',{inner}'.join(_indented(one, inner) for one in value)}{line}]"
    return json.dumps(value, allow_nan=False)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values; NaN and infinities, which JSON lacks, as text."""
    outcome = {level.value: report.outcome_of(level).value for level in report.levels}
    seconds = {level.value: round(report.seconds_of(level), 2) for level in report.levels}
    value: dict[str, Any] = _plain(asdict(report))
    if report.train:
        value["train"]["samples"] = _sample_table(report.train.samples)
    return {**value, "level_seconds": seconds, "passed": report.passed, "outcome": outcome}


def _sample_table(samples: Iterable[GpuSample]) -> dict[str, Any]:
    """What the GPUs did, in rows: an hour's samples as objects would be most of the file."""
    rows = [[round(one.seconds, 2), one.index, round(one.memory_gb, 3), one.utilisation] for one in samples]
    return {"columns": ["seconds", "gpu", "memory_gb", "utilisation_percent"], "rows": rows}


def _plain(value: Any) -> Any:
    match value:
        case Enum():
            return value.value
        case float() if not math.isfinite(value):
            return str(value)
        case dict():
            return {str(key): _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return value


def junit_xml(report: Report) -> str:
    """One test suite for each level, as CI services read them."""
    root = ET.Element("testsuites", name=f"verify {report.name}", time=f"{report.seconds:.1f}")
    for level in report.levels:
        checks = [check for check in report.checks if check.level is level]
        _suite(root, report.name, level, checks)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _suite(root: ET.Element, name: str, level: Level, checks: list[Check]) -> None:
    count = {outcome: sum(check.outcome is outcome for check in checks) for outcome in Outcome}
    suite = ET.SubElement(
        root,
        "testsuite",
        name=level.value,
        tests=str(len(checks)),
        failures=str(count[Outcome.FAILED]),
        errors="0",
        skipped=str(count[Outcome.NOT_RUN]),
        time=f"{sum(check.seconds for check in checks):.1f}",
    )
    for check in checks:
        case = ET.SubElement(
            suite, "testcase", classname=f"{name}.{level.value}", name=check.name, time=f"{check.seconds:.1f}"
        )
        text = without_controls("\n".join(_explained(check)))
        if check.outcome is Outcome.FAILED:
            ET.SubElement(case, "failure", message=without_controls(check.message)).text = text
        elif check.outcome is Outcome.NOT_RUN:
            ET.SubElement(case, "skipped", message=without_controls(check.message))
        else:
            ET.SubElement(case, "system-out").text = text


def without_controls(text: str) -> str:
    """XML 1.0 and HTML have no control characters and no halves of surrogate pairs, and foreign logs do."""
    return _NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _explained(check: Check) -> list[str]:
    lines = [check.message]
    if check.cause and check.cause != check.message:
        lines.append(f"cause: {check.cause}")
    if check.fix:
        lines.append(f"fix: {check.fix}")
    return lines


# ---------------------------------------------------------------------------------------------- table

_MARKS = {
    Outcome.PASSED: "[green]✓[/green]",
    Outcome.FAILED: "[red]✗[/red]",
    Outcome.WARNED: "[yellow]![/yellow]",
    Outcome.NOT_RUN: "[dim]–[/dim]",
}


def render_table(report: Report) -> Group:
    """A table of all checks; under each that failed or warned its cause and fix."""
    return Group(check_table(report.checks, f"{report.name} on {report.device.upper()}"), Text(verdict(report)))


def check_table(checks: Iterable[Check], title: str) -> Table:
    """Checks, with their levels; under each that failed or warned its cause and fix."""
    table = Table(title=escape(title), title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("level", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("check")
    table.add_column("", overflow="fold")
    table.add_column("s", justify="right", no_wrap=True)
    before = None
    for check in checks:
        table.add_row(
            check.level.value if check.level is not before else "",
            _MARKS[check.outcome],
            escape(check.name),
            _cell(check),
            f"{check.seconds:.0f}" if check.seconds >= 1 else "",
        )
        before = check.level
    return table


def checks_json(checks: Iterable[Check]) -> list[dict[str, Any]]:
    """Checks as JSON values."""
    return [_plain(asdict(check)) for check in checks]


def _cell(check: Check) -> Text:
    text = Text(("not run: " if check.outcome is Outcome.NOT_RUN else "") + check.message)
    if check.outcome in (Outcome.FAILED, Outcome.WARNED):
        for line in _explained(check)[1:]:
            text.append(f"\n{line}", style="bold" if line.startswith("fix:") else "")
    return text


def verdict(report: Report) -> str:
    """One line: what passed, what did not run."""
    parts = [f"{level.value} {report.outcome_of(level).value}" for level in report.levels]
    word = "verified" if report.passed else "NOT verified"
    return f"{report.name}: {word} ({', '.join(parts)}) in {report.seconds:.0f} s"
