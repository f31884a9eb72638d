"""Facts about arguments, in sifkit/data/parser beside the parser's steps. Reads packaged data; otherwise pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sifkit.check.facts import Facts
from sifkit.check.parser_steps import Expression, compiled, read_data


@dataclass(frozen=True)
class Renamed:
    """An argument that had another name, or is gone. `value`: what the new one has to be where the old one was true."""

    old: str
    source: str
    new: str | None = None
    value: str | None = None
    advice: str | None = None  # for one that is gone


@dataclass(frozen=True)
class Needed:
    """Packages, any of which an argument needs, and what the run would say without."""

    needs: tuple[Requirement, ...]
    key: str
    when: Expression
    instead: str
    says: str

    def is_asked_for(self, facts: Facts) -> bool:
        """Whether the config, or a default, wants it."""
        try:
            return bool(self.when.value({"isinstance": isinstance, "str": str, **_values(facts, self.when.names)}))
        except TypeError:  # a value of another type, of which another rule speaks
            return False


@dataclass(frozen=True)
class Reporter:
    """What report_to may name. `key`: the variable of its account's key; `without`: those by which it needs none."""

    name: str
    needs: tuple[Requirement, ...]
    says: str
    account: bool
    key: str | None
    without: Mapping[str, tuple[str, ...]]


@lru_cache
def renamed() -> tuple[Renamed, ...]:
    """Old names, and what they are now."""
    return tuple(Renamed(**row) for row in read_data("renamed.yaml"))


@lru_cache
def needed() -> tuple[Needed, ...]:
    """Packages that the parser does not ask for."""
    rows = read_data("packages.yaml")["packages"]
    return tuple(
        Needed(_requirements(row), row["key"], compiled(row["when"]), row["instead"], row["says"]) for row in rows
    )


@lru_cache
def reporters() -> Mapping[str, Reporter]:
    """By the name that report_to has for them."""
    rows = read_data("packages.yaml")["reporters"]["rows"]
    return {
        row["name"]: Reporter(
            name=row["name"],
            needs=_requirements(row),
            says=row["says"],
            account=row.get("account", False),
            key=row.get("key"),
            without={name: tuple(values) for name, values in row.get("without", {}).items()},
        )
        for row in rows
    }


def has_any(needs: tuple[Requirement, ...], packages: Mapping[str, str]) -> bool:
    """Whether one of them is there, in its range."""
    return any(_is_in(packages.get(canonicalize_name(each.name)), each) for each in needs)


def _is_in(version: str | None, requirement: Requirement) -> bool:
    try:
        return version is not None and requirement.specifier.contains(Version(version).base_version, prereleases=True)
    except InvalidVersion:
        return True


def _requirements(row: Mapping[str, Any]) -> tuple[Requirement, ...]:
    return tuple(Requirement(text) for text in row["needs"])


def _values(facts: Facts, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: facts.value(name) for name in names if name not in ("isinstance", "str")}
