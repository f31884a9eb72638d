"""OSV entries, and which of a lock's packages they affect. Pure functions of frozen data.

The format and the rule: https://ossf.github.io/osv-schema/, "Evaluation". Versions are ordered as Python orders them
(PEP 440), without the local part: torch 2.9.1+cu128 is torch 2.9.1 to a database that knows the package index alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, BeforeValidator, ConfigDict

ECOSYSTEM = "PyPI"
_VERSIONED = ("ECOSYSTEM", "SEMVER")  # ranges of versions; those of GIT need the repository
_FIRST = ("CVE-", "GHSA-", "PYSEC-")  # the name that people know a vulnerability by


def _none_is_empty(value: object) -> object:
    return () if value is None else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_none_is_empty)]


class _Foreign(BaseModel):
    """What others wrote: keys that we do not use are left alone."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Event(_Foreign):
    """One of the four is given."""

    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None

    @property
    def bound(self) -> str:
        """The version at which something changes."""
        return self.introduced or self.fixed or self.last_affected or self.limit or ""


class Range(_Foreign):
    """Versions between events."""

    type: str
    events: Annotated[tuple[Event, ...], BeforeValidator(_none_is_empty)] = ()


class Package(_Foreign):
    """A package of an ecosystem."""

    ecosystem: str = ""
    name: str = ""


class Severity(_Foreign):
    """A CVSS vector, as a rule."""

    type: str = ""
    score: str = ""


class Affected(_Foreign):
    """Which versions of one package."""

    package: Package = Package()
    ranges: Annotated[tuple[Range, ...], BeforeValidator(_none_is_empty)] = ()
    versions: Texts = ()
    severity: Annotated[tuple[Severity, ...], BeforeValidator(_none_is_empty)] = ()


class Entry(_Foreign):
    """One entry of a database."""

    id: str
    schema_version: str = "1.0.0"
    modified: str = ""
    withdrawn: str | None = None
    aliases: Texts = ()
    summary: str | None = None
    details: str | None = None
    severity: Annotated[tuple[Severity, ...], BeforeValidator(_none_is_empty)] = ()
    affected: Annotated[tuple[Affected, ...], BeforeValidator(_none_is_empty)] = ()
    database_specific: Annotated[Mapping[str, Any], BeforeValidator(lambda value: value or {})] = {}

    def packages(self) -> frozenset[str]:
        """The Python packages that it is about, by their normalised names."""
        return frozenset(
            canonicalize_name(one.package.name)
            for one in self.affected
            if one.package.ecosystem.partition(":")[0] == ECOSYSTEM
        )

    def about(self, package: str) -> list[Affected]:
        """What it says of one package."""
        return [
            one
            for one in self.affected
            if one.package.ecosystem.partition(":")[0] == ECOSYSTEM and canonicalize_name(one.package.name) == package
        ]


class Verdict(Enum):
    """Whether an entry concerns a version of a package."""

    AFFECTED = "affected"
    UNKNOWN = "unknown"  # nothing that can be compared: no proof that it is safe
    CLEAR = "clear"


@dataclass(frozen=True)
class Finding:
    """One vulnerability of one package of a lock, under whichever names databases know it."""

    package: str
    version: str
    ids: tuple[str, ...]  # the best known first
    certain: bool  # False: the entry gives nothing that the version could be compared with
    summary: str
    severity: str  # the database's own word, or nothing
    vectors: tuple[str, ...]  # CVSS, as given
    fixed: str | None  # the nearest later version without it
    clean: str | None  # the nearest later version without any finding of this package
    url: str


def judge(entry: Entry, package: str, version: str) -> Verdict:
    """Whether `entry` affects this version, by OSV's rule. A withdrawn entry affects nothing."""
    about = entry.about(package)
    if entry.withdrawn or not about:
        return Verdict.CLEAR
    if entry.schema_version.partition(".")[0] != "1":
        return Verdict.UNKNOWN
    verdicts = {_judge_affected(one, version) for one in about}
    return next(one for one in Verdict if one in verdicts)


def _judge_affected(affected: Affected, version: str) -> Verdict:
    parsed = _parsed(version)
    if version in affected.versions or (parsed and parsed in map(_parsed, affected.versions)):
        return Verdict.AFFECTED
    ranges = [one for one in affected.ranges if one.type in _VERSIONED]
    if not ranges:
        return Verdict.UNKNOWN if affected.ranges and not affected.versions else Verdict.CLEAR
    if parsed is None:
        return Verdict.UNKNOWN
    try:
        return Verdict.AFFECTED if any(_within(parsed, one.events) for one in ranges) else Verdict.CLEAR
    except InvalidVersion:
        return Verdict.UNKNOWN


def _parsed(version: str) -> Version | None:
    """The public version; None for what is no version of Python's."""
    try:
        return Version(Version(version).public)
    except InvalidVersion:
        return None


def _within(version: Version, events: Sequence[Event]) -> bool:
    """Raises `InvalidVersion` for a bound that is no version."""
    limits = [event.limit for event in events if event.limit is not None]
    if limits and not any(limit == "*" or version < Version(limit) for limit in limits):
        return False
    inside = False
    for event in sorted((one for one in events if one.limit is None), key=_order):
        if event.introduced is not None:
            inside = inside or event.introduced == "0" or version >= Version(event.introduced)
        elif event.fixed is not None:
            inside = inside and version < Version(event.fixed)
        elif event.last_affected is not None:
            inside = inside and version <= Version(event.last_affected)
    return inside


def _order(event: Event) -> tuple[bool, Version]:
    """By version; "0" stands before every version, 0.dev0 too."""
    return event.bound != "0", Version(event.bound)


# ---------------------------------------------------------------------------------------------- findings


def find(packages: Mapping[str, str], entries: Iterable[Entry]) -> tuple[Finding, ...]:
    """The vulnerabilities of these versions by normalised name, one for all entries that are aliases."""
    newest: dict[str, Entry] = {}
    for entry in entries:
        if entry.id not in newest or newest[entry.id].modified < entry.modified:
            newest[entry.id] = entry
    found: list[Finding] = []
    for package, version in sorted(packages.items()):
        suspects = [entry for entry in newest.values() if entry.about(package)]
        found += _findings(package, version, suspects)
    return tuple(found)


def _findings(package: str, version: str, suspects: Sequence[Entry]) -> list[Finding]:
    hits = [entry for entry in suspects if judge(entry, package, version) is not Verdict.CLEAR]
    clean = _nearest_without(hits, package, version)
    groups = [_finding(package, version, group, clean) for group in _by_alias(hits)]
    return sorted(groups, key=lambda finding: finding.ids)


def _by_alias(entries: Sequence[Entry]) -> list[list[Entry]]:
    """Aliases are symmetric and transitive; an entry need not be here for its name to join two others."""
    groups: list[tuple[set[str], list[Entry]]] = []
    for entry in entries:
        names, members = {entry.id, *entry.aliases}, [entry]
        for group in [one for one in groups if one[0] & names]:
            groups.remove(group)
            names, members = names | group[0], [*group[1], *members]
        groups.append((names, members))
    return [members for _, members in groups]


def _finding(package: str, version: str, group: Sequence[Entry], clean: str | None) -> Finding:
    names = {name for entry in group for name in (entry.id, *entry.aliases)}
    shown = min((entry.id for entry in group), key=_fame)
    return Finding(
        package=package,
        version=version,
        ids=tuple(sorted(names, key=_fame)),
        certain=any(judge(entry, package, version) is Verdict.AFFECTED for entry in group),
        summary=next((text for entry in group if (text := _summary(entry))), ""),
        severity=next((text for entry in group if (text := _word(entry))), ""),
        vectors=tuple(dict.fromkeys(vector for entry in group for vector in _vectors(entry, package))),
        fixed=_nearest_without(group, package, version),
        clean=clean,
        url=f"https://osv.dev/vulnerability/{shown}",
    )


def _fame(name: str) -> tuple[int, str]:
    return next((place for place, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST)), name


def _summary(entry: Entry) -> str:
    lines = (entry.summary or entry.details or "").strip().splitlines()
    return lines[0].strip().lstrip("# ") if lines else ""


def _word(entry: Entry) -> str:
    """GitHub's databases give a word beside the vector."""
    word = entry.database_specific.get("severity")
    return word if isinstance(word, str) else ""


def _vectors(entry: Entry, package: str) -> list[str]:
    """The package's own, else the entry's: a database gives one or the other."""
    own = [one for affected in entry.about(package) for one in affected.severity]
    return [one.score for one in own or entry.severity if one.type.startswith("CVSS")]


def _nearest_without(group: Sequence[Entry], package: str, version: str) -> str | None:
    """The nearest later `fixed` that no entry of the group affects; a release, unless only pre-releases fix it."""
    now = _parsed(version)
    bounds = {
        bound
        for entry in group
        for affected in entry.about(package)
        for one in affected.ranges
        if one.type in _VERSIONED
        for event in one.events
        if event.fixed and (bound := _parsed(event.fixed))
    }
    later = sorted((one.is_prerelease, one) for one in bounds if now and one > now)
    return next(
        (str(one) for _, one in later if all(judge(entry, package, str(one)) is Verdict.CLEAR for entry in group)),
        None,
    )
