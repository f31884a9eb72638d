"""Definitions of Apptainer and Singularity: header, stages, sections, each with its line.

spython reads only those that start from Docker, folds names to lower case and loses lines: this is a reader of its own.
Source: apptainer.org/docs/user/latest/definition_files.html.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sifkit.errors import UsageError
from sifkit.importing.environment import ACTIVATION, Environment
from sifkit.importing.recipe import Copy, Fault, Item, Raw, Recipe, Script
from sifkit.model import Base
from sifkit.tables import known_bases

_SECTION = re.compile(r"\s*%(?P<name>[A-Za-z]+)(?P<rest>[^\n]*)$")
_HEADER = re.compile(r"\s*(?P<key>[A-Za-z]+)\s*:\s*(?P<value>.*?)\s*$")
_ARGUMENT = re.compile(r"\{\{\s*(?P<name>[A-Za-z_][\w.]*)\s*\}\}")
_VERBATIM = ("setup", "runscript", "startscript", "test", "help")
_APPS = ("appinstall", "appenv", "apprun", "appstart", "applabels", "appfiles", "apphelp", "apptest")
_OWN_LABELS = ("org.label-schema.", "org.sifkit.", "org.opencontainers.image.base.name")
_SCRIPTS = ("runscript", "startscript", "test", "apprun", "appstart", "apptest")
_AGENTS = {"library": "pull it, and start from the file: Bootstrap: localimage"}


@dataclass
class _Section:
    name: str
    rest: str
    line: int  # of its first line of text
    rows: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.rows)


@dataclass
class _Stage:
    line: int
    header: dict[str, str] = field(default_factory=dict)
    sections: list[_Section] = field(default_factory=list)


def is_definition(text: str) -> bool:
    """Whether a text is a definition rather than a Dockerfile."""
    for row in text.split("\n"):
        if row.strip() and not row.lstrip().startswith("#"):
            return bool(re.match(r"\s*bootstrap\s*:|\s*%", row, re.IGNORECASE))
    return False


def read_definition(path: str, text: str, directory: Path, arguments: Mapping[str, str]) -> Recipe:
    """The last stage. Raises `UsageError` for what is no definition."""
    stages = _stages(text)
    if not stages:
        raise UsageError(f"{path}: no Bootstrap: in it", "is this a definition?")
    faults: list[Fault] = []
    given = {**_defaults(stages), **arguments}
    for stage in stages:
        _fill(stage, given, faults)
    return _Reader(stages[-1], faults).read(path, directory, others=stages[:-1])


def _stages(text: str) -> list[_Stage]:
    """Each `Bootstrap:` begins one."""
    found: list[_Stage] = []
    section: _Section | None = None
    for number, row in enumerate(text.split("\n"), start=1):
        start = _SECTION.match(row)
        header = _HEADER.match(row)
        if header and header["key"].lower() == "bootstrap":
            found.append(_Stage(number, {"bootstrap": header["value"].lower()}))
            section = None
        elif start and not row.lstrip().startswith("%%") and found:
            section = _Section(start["name"].lower(), start["rest"].partition("#")[0].strip(), number + 1)
            found[-1].sections.append(section)
        elif section is not None:
            section.rows.append(row)
        elif header and found:
            found[-1].header[header["key"].lower()] = header["value"]
    return found


def _defaults(stages: list[_Stage]) -> dict[str, str]:
    rows = [row for stage in stages for part in stage.sections if part.name == "arguments" for row in part.rows]
    pairs = [row.strip().partition("=") for row in rows]
    return {name.strip(): value.strip().strip("\"'") for name, equals, value in pairs if equals}


def _fill(stage: _Stage, given: Mapping[str, str], faults: list[Fault]) -> None:
    """Build arguments replaced by what was given, or their defaults."""

    def fill(text: str, line: int) -> str:
        for match in _ARGUMENT.finditer(text):
            if match["name"] not in given:
                name = match["name"]
                faults.append(Fault(line, f"{match[0]} has no default", f"give it: --build-arg {name}=…"))
        return _ARGUMENT.sub(lambda match: given.get(match["name"], match[0]), text)

    stage.header = {key: fill(value, stage.line) for key, value in stage.header.items()}
    for part in stage.sections:
        part.rows = [fill(row, part.line + at) for at, row in enumerate(part.rows)]


class _Reader:
    """Sections to steps, environment and raw text."""

    def __init__(self, stage: _Stage, faults: list[Fault]) -> None:
        self._stage = stage
        self._steps: list[Script | Copy] = []
        self._environment = Environment()
        self._raw: list[Raw] = []
        self._items: list[Item] = []
        self._faults = faults

    def read(self, path: str, directory: Path, *, others: list[_Stage]) -> Recipe:
        """The whole of it. %files come before %post, whatever their order in the file."""
        for other in others:
            what = f"Stage: {other.header.get('stage', '')}".strip()
            self._items.append(Item(other.line, what, "left", "another stage's"))
        base = self._base()
        for part in sorted(self._stage.sections, key=lambda part: part.name != "files"):
            self._section(part)
        return Recipe(
            path, directory, base, self._stage.line, tuple(self._steps), tuple(self._environment.variables),
            (*self._environment.raw, *self._raw), (*self._items, *self._environment.items),
            (*self._faults, *self._environment.faults),
        )  # fmt: skip

    def _base(self) -> str | Base:
        header, line = self._stage.header, self._stage.line
        agent, source = header["bootstrap"], header.get("from", "")
        if "{{" in agent + source:  # which is a fault already
            return "debian:trixie-slim"
        if agent == "docker":
            return source.removeprefix("//")
        if agent == "library" and re.fullmatch(r"(library/default/)?(debian|ubuntu):[\w.-]+", source):
            return source.rpartition("/")[2]
        if agent == "debootstrap":
            known = next((name for name, base in known_bases().items() if base.suite == header.get("osversion")), None)
            if known:
                self._items.append(
                    Item(line, f"MirrorURL: {header.get('mirrorurl', '')}", "site", f"bases.{known}.mirror")
                )
                return {"debian": "debian:", "ubuntu": "ubuntu:"}[known_bases()[known].family] + known_bases()[
                    known
                ].suite
        values = {
            "bootstrap": agent,
            "from": source,
            "suite": header.get("osversion"),
            "mirror": header.get("mirrorurl"),
        }
        wanted = {"debootstrap": ("suite", "mirror"), "scratch": ()}.get(agent, ("from",))
        try:
            base: Base = TypeAdapter(Base).validate_python(
                {key: value for key, value in values.items() if key == "bootstrap" or (key in wanted and value)}
            )
        except ValidationError:
            fix = _AGENTS.get(agent, "start from docker, localimage, oci-archive, docker-archive or debootstrap")
            self._faults.append(Fault(line, f"Bootstrap: {agent}, From: {source}: no base of sifkit's", fix))
            return "debian:trixie-slim"
        return base

    def _section(self, part: _Section) -> None:
        match part.name:
            case "post":
                shell = re.search(r"-c\s+(\S+)", part.rest)
                self._steps.append(Script(part.line, part.text, shell[1] if shell else "/bin/sh"))
            case "environment":
                self._environment.script(part.line, part.text)
            case "files":
                self._files(part)
            case "labels":
                self._labels(part)
            case "arguments":
                pass
            case _ if part.name in _VERBATIM:
                self._keep(part, part.name)
            case _ if part.name in _APPS and part.rest:
                self._keep(part, f"{part.name} {part.rest.split()[0]}")
            case _:
                self._faults.append(
                    Fault(part.line - 1, f"%{part.name}: no section of Apptainer's", "correct its name")
                )

    def _keep(self, part: _Section, name: str) -> None:
        rows = _dedented(part.text).split("\n")
        if name.startswith(_SCRIPTS):
            for at, row in enumerate(rows):
                if ACTIVATION.match(row):
                    self._items.append(
                        Item(part.line + at, row.strip(), "ours", "the image's environment is always active")
                    )
            rows = [row for row in rows if not ACTIVATION.match(row)]
        text = "\n".join(rows)
        if text:
            self._raw.append(Raw(part.line, name, text))

    def _files(self, part: _Section) -> None:
        if part.rest.lower().startswith("from"):
            stage = part.rest.split()[-1]
            fix = "do in the last stage what makes them, or put the files beside the spec"
            self._faults.append(Fault(part.line - 1, f"%files from {stage}: there are no stages in a spec", fix))
            return
        for at, row in enumerate(part.rows):
            try:
                words = shlex.split(row, comments=True)
            except ValueError:
                self._faults.append(Fault(part.line + at, f"%files: {row.strip()}: a quote is not closed", "close it"))
                continue
            if words:
                self._steps.append(Copy(part.line + at, words[0], words[1] if len(words) > 1 else words[0]))

    def _labels(self, part: _Section) -> None:
        for at, row in enumerate(part.rows):
            text = row.strip()
            if text and not text.startswith(("#", *_OWN_LABELS)):
                self._raw.append(Raw(part.line + at, "labels", text))


def _dedented(text: str) -> str:
    rows = text.split("\n")
    while rows and not rows[0].strip():
        rows.pop(0)
    while rows and not rows[-1].strip():
        rows.pop()
    margin = min((len(row) - len(row.lstrip()) for row in rows if row.strip()), default=0)
    return "\n".join(row[margin:].rstrip() for row in rows)
