"""A spec and its lock against the tables, before anything is built. Pure: values in, findings out."""

from __future__ import annotations

from sifkit.compat import hardware, packages, pairs, tied
from sifkit.compat.findings import Finding, Question, Target
from sifkit.compat.tables import Tables
from sifkit.model import ImageSpec, Lock

RULES = (*hardware.RULES, *packages.RULES, *pairs.RULES, *tied.RULES)


def check(spec: ImageSpec, target: Target, tables: Tables, lock: Lock | None = None) -> tuple[Finding, ...]:
    """Everything that does not fit, and everything that no row knows. With a lock, its versions are judged, too."""
    question = Question(spec, target, tables, lock)
    return tuple(dict.fromkeys(found for rule in RULES for found in rule(question)))
