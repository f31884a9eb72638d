"""What was found in one YAML, and how each format shows it. Pure: texts out.

Formats: text for people, json for programs, github (workflow commands), sarif 2.1.0, junit.
Sources: docs.github.com, "Workflow commands for GitHub Actions"; OASIS SARIF 2.1.0; the JUnit XML that CI systems read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from sifkit.check.rule import Finding, Rule, Severity, Skipped
from sifkit.printable import printable

FORMATS = ("text", "json", "github", "sarif", "junit")


@dataclass(frozen=True)
class Checked:
    """One YAML. `seen`: what was looked at, for people: the image, the checkout, the GPUs."""

    file: str
    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    ignored: tuple[Finding, ...] = ()
    asked: tuple[str, ...] = ()  # codes of the rules that were checked
    seen: Mapping[str, str] | None = None

    def count(self, severity: Severity) -> int:
        """Findings of one severity."""
        return sum(finding.severity is severity for finding in self.findings)

    @property
    def failed(self) -> bool:
        """Whether an error was found."""
        return self.count(Severity.ERROR) > 0


# ---------------------------------------------------------------------------------------------- text


_STYLES = {Severity.ERROR: "\x1b[1;31m", Severity.WARNING: "\x1b[1;33m", Severity.INFO: "\x1b[36m"}
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class TextOptions:
    """How people want it."""

    color: bool = False
    causes: bool = False  # why, too
    skipped: bool = False  # list what was not checked
    info: bool = True


def text(checked: Sequence[Checked], options: TextOptions) -> str:
    """A paragraph for each finding: where, code, what; then the fix."""
    lines: list[str] = []
    for one in checked:
        for finding in one.findings:
            if options.info or finding.severity is not Severity.INFO:
                lines += _paragraph(one, finding, options)
    lines += _not_checked(checked, full=options.skipped)
    return "".join(f"{line}\n" for line in [*lines, summary(checked)])


def _paragraph(one: Checked, finding: Finding, options: TextOptions) -> list[str]:
    on, dim, off = (_STYLES[finding.severity], _DIM, _PLAIN) if options.color else ("", "", "")
    where = _where(one, finding)
    message, *more = printable_lines(finding.message)
    said = [f"{where}: {on}{finding.severity.value}{off} {finding.code} {message}", *(f"    {each}" for each in more)]
    if options.causes:
        said += _hanging("why", finding.cause, dim, off)
    if finding.severity is not Severity.INFO:
        said += _hanging("fix", finding.fix, dim, off)
    return said


def line_of(one: Checked, finding: Finding) -> str:
    """Where, code and message on one line."""
    return f"{_where(one, finding)}: {finding.code} {' '.join(printable_lines(finding.message))}"


def printable_lines(words: str) -> list[str]:
    """Lines that are safe for a terminal."""
    return [printable(line) for line in words.splitlines()] or [""]


def _hanging(title: str, words: str, dim: str, off: str) -> list[str]:
    first, *more = printable_lines(words)
    return [f"  {dim}{title}:{off} {first}", *(f"       {line}" for line in more)]


def _where(one: Checked, finding: Finding) -> str:
    file = printable(str(finding.file) if finding.file else one.file)
    return file if finding.line is None else f"{file}:{finding.line}"


def _not_checked(checked: Sequence[Checked], *, full: bool) -> list[str]:
    """A line for each reason, with the codes that it kept from being checked."""
    by_reason: dict[str, list[str]] = {}
    for one in checked:
        for each in one.skipped:
            codes = by_reason.setdefault(each.reason, [])
            if each.code not in codes:
                codes.append(each.code)
    most = len(checked) * 1000 if full else 6
    return [f"not checked: {_codes(codes, most)}: {printable(reason)}" for reason, codes in by_reason.items()]


def _codes(codes: Sequence[str], most: int) -> str:
    more = f" and {len(codes) - most} more" if len(codes) > most else ""
    return ", ".join(codes[:most]) + more


def summary(checked: Sequence[Checked]) -> str:
    """The last line: how many of what."""
    counts = {severity: sum(one.count(severity) for one in checked) for severity in Severity}
    files = f"{len(checked)} files: " if len(checked) > 1 else ""
    ignored = sum(len(one.ignored) for one in checked)
    said = [_counted(counts[Severity.ERROR], "error"), _counted(counts[Severity.WARNING], "warning")]
    rules = len({code for one in checked for code in one.asked})
    tail = f"; {ignored} ignored by comments" if ignored else ""
    return f"{files}{', '.join(said)}; {_counted(rules, 'rule')} checked{tail}"


def _counted(count: int, word: str) -> str:
    return f"{count or 'no'} {word}{'' if count == 1 else 's'}"


# ---------------------------------------------------------------------------------------------- machines


def as_json(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """One object a file."""
    return [
        {
            "file": one.file,
            "findings": [finding_json(finding) for finding in one.findings],
            "ignored": [finding_json(finding) for finding in one.ignored],
            "not_checked": [vars(skipped) for skipped in one.skipped],
            "checked": list(one.asked),
            "seen": dict(one.seen or {}),
        }
        for one in checked
    ]


def finding_json(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        "code": finding.code,
        "rule": finding.name,
        "severity": finding.severity.value,
        "message": finding.message,
        "cause": finding.cause,
        "fix": finding.fix,
        "file": str(finding.file) if finding.file else None,
        "line": finding.line,
        "key": finding.key,
        "fixable": finding.edit is not None,
    }


_GITHUB = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "notice"}


def github(checked: Sequence[Checked]) -> str:
    """Workflow commands, which GitHub shows beside the lines of the change."""
    lines = [_command(one, finding) for one in checked for finding in one.findings]
    return "".join(f"{line}\n" for line in lines)


def _command(one: Checked, finding: Finding) -> str:
    properties = {"title": f"{finding.code} {finding.name}", "file": str(finding.file or one.file)}
    if finding.line is not None:
        properties["line"] = str(finding.line)
    said = ",".join(f"{key}={_escaped(value, ':,')}" for key, value in properties.items())
    return f"::{_GITHUB[finding.severity]} {said}::{_escaped(f'{finding.message} Fix: {finding.fix}')}"


def _escaped(value: str, also: str = "") -> str:
    """As actions/toolkit's command.ts escapes data and properties."""
    codes = {"%": "%25", "\r": "%0D", "\n": "%0A", **{":": "%3A", ",": "%2C"}}
    return "".join(codes[letter] if letter in "%\r\n" + also else printable(letter) for letter in value)


_SARIF = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.INFO: "note"}


def sarif(checked: Sequence[Checked], rules: Iterable[Rule], version: str) -> dict[str, Any]:
    """SARIF 2.1.0 of one run."""
    described = {rule.code: rule for rule in rules}
    driver: dict[str, Any] = {
        "name": "sifkit",
        "version": version,
        "rules": [_sarif_rule(rule) for rule in described.values()],
    }
    order = {code: index for index, code in enumerate(described)}
    results = [_sarif_result(one, finding, order) for one in checked for finding in one.findings]
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }


def _sarif_rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": rule.catches},
        "fullDescription": {"text": rule.why},
        "help": {"text": f"{rule.fix}\n\nPrevents: {rule.prevents}"},
        "defaultConfiguration": {"level": _SARIF[rule.severity]},
    }


def _sarif_result(one: Checked, finding: Finding, order: Mapping[str, int]) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": str(finding.file or one.file)}}
    if finding.line is not None:
        place["region"] = {"startLine": finding.line}
    return {
        "ruleId": finding.code,
        "ruleIndex": order.get(finding.code, -1),
        "level": _SARIF[finding.severity],
        "message": {"text": f"{finding.message}\nFix: {finding.fix}"},
        "locations": [{"physicalLocation": place}],
    }


def junit(checked: Sequence[Checked]) -> str:
    """A suite for each file, a case for each rule: failed with its errors, skipped, or passed."""
    root = ElementTree.Element("testsuites", name="sifkit check")
    for one in checked:
        root.append(_suite(one))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _suite(one: Checked) -> ElementTree.Element:
    by_code: dict[str, list[Finding]] = {code: [] for code in one.asked}
    for finding in one.findings:
        by_code.setdefault(finding.code, []).append(finding)
    failures = sum(any(f.severity is Severity.ERROR for f in found) for found in by_code.values())
    skipped = {each.code: each for each in one.skipped if not by_code.get(each.code)}
    for code in skipped:
        by_code.pop(code, None)
    counts = {"tests": len(by_code) + len(skipped), "failures": failures, "skipped": len(skipped), "errors": 0}
    suite = ElementTree.Element("testsuite", {"name": _xml(one.file), **{key: str(n) for key, n in counts.items()}})
    for code, found in sorted(by_code.items()):
        suite.append(_case(one, code, found))
    for code, each in sorted(skipped.items()):
        case = ElementTree.SubElement(suite, "testcase", classname=_xml(one.file), name=f"{code} {each.name}")
        ElementTree.SubElement(case, "skipped", message=_xml(each.reason))
    return suite


def _case(one: Checked, code: str, found: Sequence[Finding]) -> ElementTree.Element:
    name = f"{code} {found[0].name}" if found else code
    case = ElementTree.Element("testcase", classname=_xml(one.file), name=name)
    wrong = [each for each in found if each.severity is Severity.ERROR]
    if wrong:
        failure = ElementTree.SubElement(case, "failure", message=_xml(wrong[0].message), type=wrong[0].name)
        failure.text = _xml("\n".join(f"{_where(one, each)}: {each.message}\nfix: {each.fix}" for each in wrong))
    said = [each for each in found if each.severity is not Severity.ERROR]
    if said:
        out = ElementTree.SubElement(case, "system-out")
        out.text = _xml("\n".join(f"{_where(one, each)}: {each.severity.value}: {each.message}" for each in said))
    return case


def _xml(value: str) -> str:
    """Without what XML 1.0 cannot hold."""
    return "".join(letter for letter in value if letter in "\t\n\r" or " " <= letter <= "\ud7ff" or _is_high(letter))


def _is_high(letter: str) -> bool:
    return letter > "\udfff" and letter not in "\ufffe\uffff"


RENDERERS: Mapping[str, Callable[..., str]] = {
    "json": lambda checked, _rules, _version: json.dumps(as_json(checked), indent=2) + "\n",
    "github": lambda checked, _rules, _version: github(checked),
    "sarif": lambda checked, rules, version: json.dumps(sarif(checked, rules, version), indent=2) + "\n",
    "junit": lambda checked, _rules, _version: junit(checked),
}
