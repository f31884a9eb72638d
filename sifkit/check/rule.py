"""What a rule is: a pure function from facts to what it found, with everything that its page says. Pure."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sifkit.check.facts import Facts, Kind

FAMILIES = {
    "IMG": "the image",
    "CFG": "the training YAML and the parser of the image's LLaMA-Factory",
    "DAT": "datasets, models and other files that the YAML names",
    "ENV": "this host: its environment, filesystems and Apptainer",
    "GPU": "the GPU, its driver and its memory",
    "SLM": "the Slurm job",
    "DST": "several processes, GPUs or nodes",
    "CKP": "checkpoints, resuming and the disk",
}


class Severity(str, Enum):
    """ERROR: the run fails, or does not do what it says. WARNING: it may fail, or wastes. INFO: an estimate."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Edit:
    """A safe change of the training YAML. `rename`: the key's new name. `value`: its new text; None with no `rename`
    removes the key. A key that is not there is added."""

    key: str
    value: str | None = None
    rename: str | None = None


@dataclass(frozen=True)
class Found:
    """What a rule yields. `key`: where in the config it is about, from which the line follows."""

    message: str
    fix: str
    key: str | None = None
    file: Path | None = None  # another file than the config
    line: int | None = None
    cause: str | None = None  # where it differs from the rule's own
    edit: Edit | None = None
    severity: Severity | None = None  # where it differs from the rule's own


@dataclass(frozen=True)
class NotChecked:
    """A rule could not judge, for a reason beyond facts that are missing as a whole."""

    reason: str


@dataclass(frozen=True)
class Rule:
    """One check, its code, and what its page says."""

    code: str  # CFG003
    name: str  # unknown-key
    severity: Severity
    needs: frozenset[Kind]
    prevents: str  # the message, word for word, that users would have met; or what happens without any
    why: str
    fix: str
    source: str  # where the fact was read: a file of the program and its version, an address
    rows: tuple[int, ...]  # of the catalogue of failures (docs/failures.md)
    check: Callable[[Facts], Iterable[Found | NotChecked]]

    @property
    def catches(self) -> str:
        """What it looks for: the function's docstring."""
        return " ".join((self.check.__doc__ or "").split())

    @property
    def family(self) -> str:
        """The letters of its code."""
        return self.code[:3]


Check = Callable[[Facts], Iterable[Found | NotChecked]]
_RULES: dict[str, Rule] = {}


def rule(
    code: str,
    name: str,
    severity: Severity = Severity.ERROR,
    *,
    needs: Iterable[Kind] = (),
    prevents: str,
    why: str,
    fix: str,
    source: str,
    rows: tuple[int, ...] = (),
    of_config: bool = True,
) -> Callable[[Check], Check]:
    """Register a function of facts as a rule. The config is needed, unless the family is ENV or `of_config` says no."""

    def register(check: Check) -> Check:
        if code in _RULES or code[:3] not in FAMILIES:
            raise ValueError(f"{code} is taken, or of no family")
        always = (Kind.CONFIG,) if of_config and not code.startswith("ENV") else ()
        _RULES[code] = Rule(code, name, severity, frozenset((*always, *needs)), prevents, why, fix, source, rows, check)
        return check

    return register


def all_rules() -> Mapping[str, Rule]:
    """Every rule by its code, in order."""
    from sifkit.check import rules

    for module in pkgutil.iter_modules(rules.__path__):
        importlib.import_module(f"{rules.__name__}.{module.name}")
    return dict(sorted(_RULES.items()))


# ---------------------------------------------------------------------------------------------- applying


@dataclass(frozen=True)
class Finding:
    """Something that a rule found, ready to be shown."""

    code: str
    name: str
    severity: Severity
    message: str
    cause: str
    fix: str
    file: Path | None
    line: int | None
    key: str | None
    edit: Edit | None


@dataclass(frozen=True)
class Skipped:
    """A rule that was not checked, and why."""

    code: str
    name: str
    reason: str


def apply(rules: Iterable[Rule], facts: Facts) -> tuple[tuple[Finding, ...], tuple[Skipped, ...]]:
    """What the rules find, in the order of severity and lines; and those that could not be checked."""
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    for each in rules:
        missing = sorted(kind.value for kind in each.needs if not facts.has(kind))
        if missing:
            skipped.append(Skipped(each.code, each.name, f"no facts of the {', '.join(missing)}"))
            continue
        for found in each.check(facts):
            if isinstance(found, NotChecked):
                skipped.append(Skipped(each.code, each.name, found.reason))
            else:
                findings.append(_finding(each, found, facts))
    return tuple(sorted(findings, key=_order)), tuple(skipped)


def _finding(each: Rule, found: Found, facts: Facts) -> Finding:
    line = found.line
    if line is None and found.key is not None and found.file is None:
        line = facts.config.line(found.key)
    about_config = found.key is not None or found.line is not None
    file = found.file or (facts.config.path if about_config else None)
    return Finding(
        each.code,
        each.name,
        found.severity or each.severity,
        found.message,
        found.cause or each.why,
        found.fix,
        file,
        line,
        found.key,
        found.edit,
    )


def _order(found: Finding) -> tuple[int, str, int, str]:
    return list(Severity).index(found.severity), str(found.file or ""), found.line or 0, found.code


def of_kind(found: Iterable[Finding], severity: Severity) -> Iterator[Finding]:
    """Those of one severity."""
    return (each for each in found if each.severity is severity)
