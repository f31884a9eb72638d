"""What a verification finds: levels, outcomes, checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum

from sifkit.causes import Cause


class Level(str, Enum):
    """What is asked, from cheap to dear; each level assumes the ones before it."""

    STATIC = "static"
    HOST = "host"
    KERNEL = "kernel"
    TRAIN = "train"


class Outcome(str, Enum):
    """How a check ended. What could not run is NOT_RUN, never PASSED."""

    PASSED = "passed"
    FAILED = "failed"
    WARNED = "warned"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class Check:
    """One question and its answer; a failure says its cause and what to do where they are known."""

    level: Level
    name: str
    outcome: Outcome
    message: str
    cause: str | None = None
    fix: str | None = None
    seconds: float = 0.0


def passed(level: Level, name: str, message: str) -> Check:
    """A check that holds."""
    return Check(level, name, Outcome.PASSED, message)


def failed(level: Level, name: str, message: str, cause: str | None = None, fix: str | None = None) -> Check:
    """A check that does not hold."""
    return Check(level, name, Outcome.FAILED, message, cause, fix)


def warned(level: Level, name: str, message: str, cause: str | None = None, fix: str | None = None) -> Check:
    """Something to know that breaks nothing."""
    return Check(level, name, Outcome.WARNED, message, cause, fix)


def not_run(level: Level, name: str, reason: str) -> Check:
    """A question that could not be asked, and why."""
    return Check(level, name, Outcome.NOT_RUN, reason)


def failed_because(level: Level, name: str, message: str, known: Cause | None) -> Check:
    """A failure explained by the catalogue of causes, if it knows this one."""
    return failed(level, name, message, known.cause if known else None, known.fix if known else None)


def any_failed(checks: Iterable[Check]) -> bool:
    """Whether one of them failed."""
    return any(check.outcome is Outcome.FAILED for check in checks)


def timed(check: Check, seconds: float) -> Check:
    """The check with the time that it took."""
    return replace(check, seconds=seconds)
