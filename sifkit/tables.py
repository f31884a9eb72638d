"""Facts that sifkit's own choices rest on, from `sifkit/data/`; what fits what is in `sifkit.compat.tables`."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sifkit import yamlfile
from sifkit.model import DebianPackage, MinorVersion, OneWord, Strict

_DATA = Path(__file__).with_name("data")


class KnownBase(Strict):
    """An operating system release."""

    family: OneWord
    suite: OneWord
    docker: OneWord
    python: MinorVersion
    glibc: MinorVersion
    source: str


class Extra(Strict):
    """An optional stack of LLaMA-Factory."""

    requires: tuple[str, ...]
    modules: tuple[str, ...]  # that can be imported where it is installed
    apt: tuple[DebianPackage, ...] = ()
    sdists: tuple[OneWord, ...] = ()  # published as source archives alone
    nvcc: bool = False  # compiles CUDA code at run time
    source: str


class Sdist(Strict):
    """A package that has no wheel."""

    name: OneWord
    why: str


class Snapshots(Strict):
    """An archive of what a family's mirror held at each moment."""

    url: OneWord  # with {snapshot}
    source: str


class _Bases(Strict):
    bases: dict[str, KnownBase]
    snapshots: dict[str, Snapshots]


class _Extras(Strict):
    extras: dict[str, Extra]


class _Sdists(Strict):
    sdists: tuple[Sdist, ...]


@cache
def known_bases() -> dict[str, KnownBase]:
    """By logical name."""
    return yamlfile.load_own(_DATA / "bases.yaml", _Bases).bases


@cache
def known_snapshots() -> dict[str, Snapshots]:
    """By the family of the releases."""
    return yamlfile.load_own(_DATA / "bases.yaml", _Bases).snapshots


@cache
def known_extras() -> dict[str, Extra]:
    """By LLaMA-Factory's name."""
    return yamlfile.load_own(_DATA / "extras.yaml", _Extras).extras


@cache
def known_sdists() -> tuple[Sdist, ...]:
    """Packages that may be built from source in every image."""
    return yamlfile.load_own(_DATA / "sdists.yaml", _Sdists).sdists


def modules_of_extras(installed: Collection[str]) -> tuple[str, ...]:
    """What the extras among `installed` (normalised names) must be able to import."""
    names = {name: canonicalize_name(Requirement(extra.requires[0]).name) for name, extra in known_extras().items()}
    return tuple(
        module for name, extra in known_extras().items() if names[name] in installed for module in extra.modules
    )
