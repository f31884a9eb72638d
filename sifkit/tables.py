"""The facts about other projects, read from `sifkit/data/`; each file says where its rows were read."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sifkit import yamlfile
from sifkit.model import MinorVersion, OneWord, Strict, Version

_DATA = Path(__file__).with_name("data")


class TorchSet(Strict):
    """Versions that were released together."""

    torch: Version
    torchvision: Version
    torchaudio: Version
    cuda: MinorVersion


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
    source: str


class Sdist(Strict):
    """A package that has no wheel."""

    name: OneWord
    why: str


class _TorchSets(Strict):
    sets: tuple[TorchSet, ...]


class _Bases(Strict):
    bases: dict[str, KnownBase]


class _Extras(Strict):
    extras: dict[str, Extra]


class _Sdists(Strict):
    sdists: tuple[Sdist, ...]


@cache
def torch_sets() -> dict[str, TorchSet]:
    """By torch version."""
    return {row.torch: row for row in yamlfile.load(_DATA / "torch_sets.yaml", _TorchSets).sets}


@cache
def known_bases() -> dict[str, KnownBase]:
    """By logical name."""
    return yamlfile.load(_DATA / "bases.yaml", _Bases).bases


@cache
def known_extras() -> dict[str, Extra]:
    """By LLaMA-Factory's name."""
    return yamlfile.load(_DATA / "extras.yaml", _Extras).extras


@cache
def known_sdists() -> tuple[Sdist, ...]:
    """Packages that may be built from source in every image."""
    return yamlfile.load(_DATA / "sdists.yaml", _Sdists).sdists
