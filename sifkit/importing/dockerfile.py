"""Dockerfiles, read by BuildKit's own parser (the package `dockerfile`), and what Apptainer cannot do of them.

spython reads Dockerfiles, too, line by line: it knows neither heredocs nor stages without names nor where a line was,
and its conversion writes definitions that do not build (tests/importing/spython holds some). So the reading is
BuildKit's, and what has no counterpart is refused with its line and a way out.
Source: docs.docker.com/reference/dockerfile.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sifkit.errors import UsageError
from sifkit.importing.environment import Environment
from sifkit.importing.recipe import Copy, Fate, Fault, Item, Raw, Recipe, Script
from sifkit.importing.shell import expand, variables_in

_ARCHIVE = re.compile(r"\.(tar|tar\.(gz|bz2|xz)|tgz|tbz2?|txz)$")
_NOT_IN_APPTAINER = {
    "EXPOSE": "programs use the host's network as it is",
    "VOLUME": "bind a directory of the host: --bind",
    "STOPSIGNAL": "signals go to the program itself",
    "HEALTHCHECK": "nothing watches an image that runs; %test is for what must hold",
    "USER": "programs run as whoever starts the image",
}
_AUTOMATIC = {
    **dict.fromkeys(("TARGETPLATFORM", "BUILDPLATFORM"), "linux/amd64"),
    **dict.fromkeys(("TARGETARCH", "BUILDARCH"), "amd64"),
    **dict.fromkeys(("TARGETOS", "BUILDOS"), "linux"),
    "TARGETVARIANT": "",
}


@dataclass
class _Stage:
    name: str
    base: str
    line: int
    instructions: list[Any] = field(default_factory=list)
    parent: int | None = None  # the stage that it starts from


def read_dockerfile(path: Path, text: str, context: Path, arguments: Mapping[str, str]) -> Recipe:
    """The last stage with those it starts from. Raises `UsageError` where Docker could not read it either."""
    import dockerfile  # here: only `sifkit import` needs it

    try:
        instructions = dockerfile.parse_string(text)
    except (dockerfile.GoParseError, ValueError) as error:
        raise UsageError(
            f"{path}: not a Dockerfile: {str(error).strip()}", "docker build would refuse it, too"
        ) from None
    for one in instructions:
        least = {"FROM": 1, "COPY": 2, "ADD": 2}.get((one.cmd or "").upper(), 0)
        if not one.cmd or len(one.value) < least:
            what = " ".join((one.original or "an empty line that goes on").split())[:80]
            raise UsageError(f"{path}:{one.start_line}: {what}: incomplete", "docker build would refuse it, too")
    reader = _Reader(text.split("\n"), dict(arguments))
    stages = reader.stages(instructions)
    if not stages:
        raise UsageError(f"{path}: no FROM in it", "is this a Dockerfile?")
    return reader.read(stages, str(path), context)


class _Reader:
    """Walks through the instructions that matter, in their order."""

    def __init__(self, lines: Sequence[str], given: dict[str, str]) -> None:
        self._lines = lines
        self._given = given
        self._variables: dict[str, str] = {}  # ARG and ENV, as instructions see them
        self._globals: dict[str, str] = dict(_AUTOMATIC)
        self._directory = ""
        self._shell = "/bin/sh"
        self._start: dict[str, tuple[int, tuple[str, ...]]] = {}
        self._steps: list[Script | Copy] = []
        self._environment = Environment()
        self._raw: list[Raw] = []
        self._items: list[Item] = []
        self._faults: list[Fault] = []

    # ------------------------------------------------------------------------------------------ stages

    def stages(self, instructions: Sequence[Any]) -> list[_Stage]:
        """Each FROM with what follows it; ARGs before the first are for FROMs alone."""
        found: list[_Stage] = []
        for one in instructions:
            if one.cmd.upper() == "FROM":
                found.append(self._stage(one, found))
            elif found:
                found[-1].instructions.append(one)
            else:
                self._arg(one, self._globals)
        return found

    def _stage(self, one: Any, before: Sequence[_Stage]) -> _Stage:
        words = list(one.value)
        name = words[2] if len(words) > 2 and words[1].upper() == "AS" else ""
        base = expand(words[0], {**self._globals, **self._given})
        for flag in one.flags:
            platform = expand(flag.partition("=")[2], self._globals)
            if flag.startswith("--platform") and not platform.startswith(("linux/amd64", "linux/x86_64")):
                self._fault(one, f"FROM {flag}: for {platform}", "sifkit's images are for linux/amd64")
        parent = next(
            (at for at, stage in enumerate(before) if stage.name and stage.name.lower() == base.lower()), None
        )
        return _Stage(name, base, one.start_line, parent=parent)

    def read(self, stages: list[_Stage], file: str, context: Path) -> Recipe:
        """The last stage."""
        chain = _chain(stages)
        for number, stage in enumerate(stages):
            if number not in chain:
                self._note(stage.line, f"FROM {stage.base} AS {stage.name or number}", "left", "another stage's")
        first = stages[chain[0]]
        unknown = variables_in(first.base)
        for name in sorted(unknown):
            self._faults.append(
                Fault(first.line, f"FROM {first.base}: {name} has no default", f"give it: --build-arg {name}=…")
            )
        if first.base.lower() == "scratch":
            self._faults.append(Fault(first.line, "FROM scratch: there is no system in it", "name a Debian or Ubuntu"))
        for number in chain:
            self._variables = dict(self._environment.known)
            for one in stages[number].instructions:
                self._instruction(one)
        self._runscript()
        return Recipe(
            file, context, "debian:trixie-slim" if unknown else first.base, first.line, tuple(self._steps),
            tuple(self._environment.variables), (*self._environment.raw, *self._raw),
            (*self._items, *self._environment.items), (*self._faults, *self._environment.faults),
        )  # fmt: skip

    # ------------------------------------------------------------------------------------------ instructions

    def _instruction(self, one: Any) -> None:
        name = one.cmd.upper()
        if name in _NOT_IN_APPTAINER:
            self._note(one.start_line, one.original, "left", _NOT_IN_APPTAINER[name])
        elif name in ("ENTRYPOINT", "CMD"):
            self._start[name] = (one.start_line, tuple(one.value) if one.json else ("/bin/sh", "-c", *one.value))
        elif name == "ARG":
            self._arg(one, self._variables)
        elif name in self._READERS:
            self._READERS[name](self, one)
        else:
            self._fault(one, f"{name}: not known", "leave it out")

    def _onbuild(self, one: Any) -> None:
        text = f"ONBUILD {one.sub_cmd or ''}".strip()
        self._fault(one, f"{text}: for images that start from this one", "write it into those that need it")

    def _env_all(self, one: Any) -> None:
        for key, value in zip(one.value[::2], one.value[1::2], strict=False):
            self._env(one.start_line, key, value)

    def _arg(self, one: Any, into: dict[str, str]) -> None:
        for text in one.value:
            name, equals, value = text.partition("=")
            if name in self._given:
                into[name] = self._given[name]
            elif equals:
                into[name] = _unquoted(expand(value, {**self._globals, **into}))
            elif name in self._globals:
                into[name] = self._globals[name]

    def _env(self, line: int, name: str, value: str) -> None:
        text = expand(_unquoted(value), self._variables)
        self._variables[name] = text
        self._environment.set(line, name, text)

    def _workdir(self, one: Any) -> None:
        path = expand(_unquoted(" ".join(one.value)), self._variables)
        self._directory = posixpath.normpath(posixpath.join(self._directory or "/", path))
        self._note(
            one.start_line, one.original, "left", f"Apptainer starts where the caller is: --pwd {self._directory}"
        )

    def _set_shell(self, one: Any) -> None:
        program = posixpath.basename(one.value[0]) if one.value else ""
        if program not in ("sh", "bash", "dash"):
            self._fault(one, f"SHELL {program}", "use a POSIX shell or bash")
        else:
            options = [word for word in one.value[1:] if word != "-c"]
            self._shell = "/bin/sh" if program != "bash" and not options else shlex.join((one.value[0], *options))

    def _run(self, one: Any) -> None:
        for flag in one.flags:
            kind = re.search(r"type=(\w+)", flag)
            if flag.startswith("--mount") and (kind is None or kind[1] != "cache"):
                what = kind[1] if kind else "bind"
                fix = {
                    "secret": "images must not hold secrets: fetch with them before, and COPY the result",
                    "ssh": "clone before, and COPY the result",
                }.get(what, "COPY what it needs")
                self._fault(one, f"RUN --mount of type {what}", fix)
        text, line, shell = self._script(one)
        variables = {**_AUTOMATIC, **self._variables}
        self._steps.append(Script(line, text, shell, self._directory, variables))

    def _script(self, one: Any) -> tuple[str, int, str]:
        """The shell text of a RUN, where it starts, and its shell."""
        if one.json:
            return shlex.join(one.value), one.start_line, "/bin/sh"
        rows = self._lines[one.start_line - 1 : one.end_line]
        if len(one.heredocs) == 1 and re.fullmatch(r"<<-?\s*['\"]?\w+['\"]?", one.value[0].strip()):
            content = one.heredocs[0].content
            first, _, rest = content.partition("\n")
            shebang = re.fullmatch(r"#!\s*(?:/usr/bin/env\s+)?(\S+).*", first)
            program = posixpath.basename(shebang[1]) if shebang else "sh"
            if program in ("sh", "bash", "dash"):
                return (
                    (rest if shebang else content),
                    one.start_line + 1 + bool(shebang),
                    (self._shell if not shebang or program != "bash" else "/bin/bash"),
                )
            return f"{program} <<'SIFKIT_END'\n{rest.rstrip()}\nSIFKIT_END", one.start_line, "/bin/sh"
        body = re.sub(r"^\s*RUN\s*", "", "\n".join(rows), count=1, flags=re.IGNORECASE)
        while flag := re.match(r"--[a-z]+(?:=\S+)?\s*(?:\\\n\s*)?", body):
            body = body[flag.end() :]
        return body, one.start_line, self._shell

    # ------------------------------------------------------------------------------------------ files

    def _copy(self, one: Any) -> None:
        name = one.cmd.upper()
        flags = {flag.partition("=")[0]: flag.partition("=")[2] for flag in one.flags}
        words = [expand(word, self._variables) for word in one.value]
        if "--from" in flags:
            self._copy_from(one, expand(flags["--from"], self._globals), words)
            return
        for flag in ("--chown", "--chmod"):
            if flag in flags:
                self._note(
                    one.start_line, f"{name} {flag}={flags[flag]}", "left", "files of an image are root's, as built"
                )
        target = words[-1]
        place = posixpath.join(self._directory or "/", target)
        inline = {document.name: document.content for document in one.heredocs}
        for source in words[:-1]:
            if source.startswith("<<"):
                self._inline(one, inline, source.lstrip("<-").strip("'\""), place)
            elif name == "ADD":
                self._add(one, source, place)
            else:
                self._steps.append(Copy(one.start_line, source, place, contents=True))

    def _copy_from(self, one: Any, stage: str, words: Sequence[str]) -> None:
        if re.match(r"ghcr\.io/astral-sh/uv\b", stage) or (stage.startswith("docker.io/astral/uv")):
            self._note(one.start_line, one.original, "ours", "uv is in every image")
            return
        self._fault(
            one,
            f"COPY --from={stage} {' '.join(words)}: there are no stages in a spec",
            f"do in the last stage what makes {words[0]}, or put the files beside the spec and COPY them from there",
        )

    def _inline(self, one: Any, inline: Mapping[str, str], name: str, place: str) -> None:
        path = posixpath.join(place, name) if place.endswith("/") else place
        directory = posixpath.dirname(path)
        content = inline.get(name, "").rstrip("\n")
        text = f"mkdir -p {shlex.quote(directory)}\ncat > {shlex.quote(path)} <<'SIFKIT_END'\n{content}\nSIFKIT_END"
        self._steps.append(Script(one.start_line, text))

    def _add(self, one: Any, source: str, place: str) -> None:
        if re.match(r"https?://", source) and not re.search(r"\.git(#|$)", source):
            path = posixpath.join(place, posixpath.basename(source.partition("?")[0])) if place.endswith("/") else place
            command = shlex.join(("curl", "-fsSL", "--create-dirs", "-o", path, source))
            self._steps.append(Script(one.start_line, f"apt-get install curl\n{command}"))
        elif "://" in source or source.startswith("git@"):
            self._fault(one, f"ADD {source}: a repository", "RUN git clone, with a tag or commit")
        elif _ARCHIVE.search(source):
            self._fault(one, f"ADD {source}: Docker unpacks it", "unpack it before, and COPY the directory")
        else:
            self._steps.append(Copy(one.start_line, source, place, contents=True))

    # ------------------------------------------------------------------------------------------ the rest

    def _label(self, one: Any) -> None:
        pairs = list(zip(one.value[::2], one.value[1::2], strict=False)) if one.cmd.upper() == "LABEL" else []
        pairs = pairs or [("maintainer", " ".join(one.value))]
        for key, value in pairs:
            text = " ".join(expand(_unquoted(value), self._variables).split())
            self._raw.append(Raw(one.start_line, "labels", f"{_unquoted(key)} {text}"))

    def _runscript(self) -> None:
        """What ENTRYPOINT and CMD start, where that is something else than a shell or llamafactory-cli."""
        line, entry = self._start.get("ENTRYPOINT", (0, ()))
        command_line, command = self._start.get("CMD", (0, ()))
        words = _without_shell((*entry, *command) if not entry or entry[:2] != ("/bin/sh", "-c") else entry)
        at = max(line, command_line)
        if not words:
            return
        shown = " ".join(words)
        if posixpath.basename(words[0]) in ("bash", "sh", "llamafactory-cli") and len(words) == 1:
            self._note(at, f"CMD {shown}", "ours", "apptainer run starts llamafactory-cli, apptainer shell a shell")
            return
        fixed = (
            shlex.join(entry) if entry and entry[:2] != ("/bin/sh", "-c") else (" ".join(words) if not command else "")
        )
        default = shlex.join(command) if command[:2] != ("/bin/sh", "-c") else " ".join(command[2:])
        cd = f"cd {shlex.quote(self._directory)}\n" if self._directory else ""
        if fixed and default:
            text = f'if [ $# -eq 0 ]; then set -- {default}; fi\nexec {fixed} "$@"'
        elif fixed:
            text = f'exec {fixed} "$@"'
        else:
            text = f'if [ $# -gt 0 ]; then exec "$@"; fi\nexec {default}'
        self._raw.append(Raw(at, "runscript", cd + text))

    def _note(self, line: int, what: str, fate: Fate, where: str) -> None:
        self._items.append(Item(line, " ".join(what.split()), fate, where))

    def _fault(self, one: Any, what: str, fix: str) -> None:
        self._faults.append(Fault(one.start_line, " ".join(what.split()), fix))

    _READERS: ClassVar[Mapping[str, Callable[[_Reader, Any], None]]] = {
        "RUN": _run,
        **dict.fromkeys(("COPY", "ADD"), _copy),
        "ENV": _env_all,
        "WORKDIR": _workdir,
        "SHELL": _set_shell,
        **dict.fromkeys(("LABEL", "MAINTAINER"), _label),
        "ONBUILD": _onbuild,
    }


def _chain(stages: Sequence[_Stage]) -> list[int]:
    """The last stage, and before it those that it starts from."""
    chain = [len(stages) - 1]
    while (parent := stages[chain[0]].parent) is not None:
        chain.insert(0, parent)
    return chain


def _without_shell(words: tuple[str, ...]) -> tuple[str, ...]:
    return words[2:] if words[:2] == ("/bin/sh", "-c") else words


def _unquoted(text: str) -> str:
    """As Docker takes quotes away; a text with a lone quote stays."""
    if not re.search(r"[\"'\\]", text):
        return text
    try:
        return "".join(shlex.split(text)) if " " not in text else " ".join(shlex.split(text))
    except ValueError:
        return text
