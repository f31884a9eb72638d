"""What findings stop, and how they are said."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from sifkit.compat.findings import Finding, Severity, errors
from sifkit.errors import ProblemFound
from sifkit.progress import Progress

NO_CHECK = "sifkit's tables are wrong? --no-check goes on all the same"


def say(name: str, findings: Iterable[Finding], progress: Progress) -> None:
    """Warnings and unknowns, each with its fix; errors are raised, not said."""
    for found in findings:
        if found.severity is not Severity.ERROR:
            progress.note(f"{name}: {found.severity.value}: {found.text}; {found.fix}")


def require_fit(name: str, findings: Sequence[Finding]) -> None:
    """Raises `ProblemFound` with every error and its fix."""
    wrong = errors(findings)
    if wrong:
        message = f"{name} cannot work:\n" + "\n".join(f"- {found.text}" for found in wrong)
        raise ProblemFound(message, "\n".join([*dict.fromkeys(found.fix for found in wrong), NO_CHECK]))


def as_json(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """For machines."""
    return [{**dataclasses.asdict(found), "severity": found.severity.value} for found in findings]
