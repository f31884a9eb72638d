"""The training YAML: read here as the image's LLaMA-Factory reads it, or judged by that itself, inside the image."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sifkit.check.facts import ConfigFacts, ImageFacts, Parsed, Problem
from sifkit.check.parser import Device
from sifkit.check.parser_reading import Unreadable, loads_with_omegaconf, read
from sifkit.errors import CommandFailed
from sifkit.yamlfile import MAX_BYTES, nearest_file

if TYPE_CHECKING:
    from sifkit.verify.container import Container

_SUFFIXES = (".yaml", ".yml")  # hparams/parser.py: read_args takes any other name for an option


def read_config(path: Path, overrides: Sequence[str] = (), image: ImageFacts | None = None) -> ConfigFacts:
    """A config and its overrides as the image's LLaMA-Factory reads them. What is wrong with it is its `problem`."""
    found = _text(path)
    if isinstance(found, Problem):
        return ConfigFacts(path, overrides=tuple(overrides), problem=found)
    return config_of(path, found, overrides, image)


def config_of(path: Path, text: str, overrides: Sequence[str] = (), image: ImageFacts | None = None) -> ConfigFacts:
    """The same of a text that stands, or could stand, at `path`."""
    config = ConfigFacts(path, text, overrides=tuple(overrides))
    try:
        reading = read(text, overrides, image.llamafactory if image else None)
    except Unreadable as unreadable:
        return dataclasses.replace(config, problem=unreadable.problem)
    config = dataclasses.replace(config, entries=reading.entries, values=reading.values)
    return dataclasses.replace(config, problem=_misnamed(path, image))


def _misnamed(path: Path, image: ImageFacts | None) -> Problem | None:
    if path.suffix in _SUFFIXES or (path.suffix == ".json" and image and not _chokes_on_json(image)):
        return None
    return Problem(
        f"LLaMA-Factory reads no config from a file named {path.name}: it takes the name for an option",
        f"name it {path.with_suffix('.yaml').name}",
    )


def _chokes_on_json(image: ImageFacts) -> bool:
    """0.9.5 hands json.load a path (hparams/parser.py: read_args)."""
    return loads_with_omegaconf(image.llamafactory) and image.llamafactory != "0.9.4"


def _text(path: Path) -> str | Problem:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO without a writer must not hang us
        with os.fdopen(handle, "rb") as file:
            kind = os.fstat(handle).st_mode
            if not stat.S_ISREG(kind):
                return Problem("a directory, no file" if stat.S_ISDIR(kind) else "no regular file", "name a YAML file")
            return _decoded(file.read(MAX_BYTES + 1), os.fstat(handle).st_size)
    except FileNotFoundError:
        return Problem("no such file", nearest_file(path) or "correct the path")
    except IsADirectoryError:
        return Problem("a directory, no file", "name a YAML file")
    except PermissionError as error:
        return Problem(f"{error.strerror}: you may not read it", f"ask its owner, or: chmod u+r {path}")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return Problem(getattr(error, "strerror", None) or str(error), "correct the path")


def _decoded(data: bytes, size: int) -> str | Problem:
    wrong_file = "is this the file you meant?"
    if len(data) > MAX_BYTES:
        return Problem(f"{max(size, len(data)):,} bytes are no training config", wrong_file)
    if b"\0" in data:
        return Problem("binary, no text", wrong_file)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        return Problem("not UTF-8", "save it as UTF-8", data[: error.start].count(b"\n") + 1)


# ---------------------------------------------------------------------------------------------- inside the image


@dataclass(frozen=True)
class Case:
    """A config to be judged by the image's own parser."""

    text: str
    overrides: tuple[str, ...]
    device: Device


def parse_inside(
    container: Container, text: str, overrides: Sequence[str], device: Device, directory: str | None = None
) -> Parsed:
    """Let the image's own parser judge one config, in `directory` of the container. Raises `CommandFailed`."""
    return parse_all_inside(container, [Case(text, tuple(overrides), device)], directory)[0]


def parse_all_inside(container: Container, cases: Sequence[Case], directory: str | None = None) -> tuple[Parsed, ...]:
    """The same for many, in one start of the image: some milliseconds each."""
    from sifkit.verify.container import IN_WORK  # with its programs it takes longer to import than a YAML to read

    lines = [json.dumps(dataclasses.asdict(case)) + "\n" for case in cases]
    (container.work / "cases.jsonl").write_text("".join(lines), encoding="utf-8")
    log = container.work / "parse.log"
    answer = container.ask("parse", f"{IN_WORK}/cases.jsonl", directory or IN_WORK, log=log)
    if answer.facts is None:
        raise CommandFailed(
            f"{container.image}: its LLaMA-Factory does not parse",
            returncode=answer.result.returncode,
            tail=answer.result.tail,
        )
    rows: list[dict[str, Any]] = answer.facts["verdicts"]
    return tuple(Parsed(**row) for row in rows)
