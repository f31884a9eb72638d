"""What any source says, in one form: a base, shell scripts in their order, environment, files, and raw sections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sifkit.model import Base

# pin: became a key of the spec. kept: a raw section. ours: sifkit does it itself. site: belongs into the site file.
# left: no image of Apptainer's has it, or the spec cannot say it.
Fate = Literal["pin", "changed", "kept", "ours", "site", "left"]


@dataclass(frozen=True)
class Item:
    """One thing that the source says, and what became of it."""

    line: int
    what: str
    fate: Fate
    where: str  # a key, a section, or the reason


@dataclass(frozen=True)
class Fault:
    """What would give an image that does not build, or another one than is meant."""

    line: int
    what: str
    fix: str


@dataclass(frozen=True)
class Script:
    """Shell text of a build, `line` the first of it in the source."""

    line: int
    text: str
    shell: str = "/bin/sh"
    directory: str = ""  # in which it starts; empty: nobody said
    variables: Mapping[str, str] = field(default_factory=dict)  # that it sees


@dataclass(frozen=True)
class Copy:
    """Files of the host. `source` is relative to the recipe's directory."""

    line: int
    source: str
    target: str
    contents: bool = False  # of a directory what is in it, as Docker copies; else the directory itself


@dataclass(frozen=True)
class Variable:
    """Of the image's environment; `value` is literal."""

    line: int
    name: str
    value: str


@dataclass(frozen=True)
class Raw:
    """Text for a section of the definition."""

    line: int
    section: str
    text: str


@dataclass(frozen=True)
class Recipe:
    """A source, read."""

    file: str
    directory: Path  # relative paths in it start here
    base: str | Base  # an image's name, or a base as specs have it
    base_line: int
    steps: tuple[Script | Copy, ...] = ()
    environment: tuple[Variable, ...] = ()
    raw: tuple[Raw, ...] = ()
    items: tuple[Item, ...] = ()
    faults: tuple[Fault, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)  # that an image has, version by name
    python: str = ""  # of an image
    cuda: str = ""  # of an image's torch
