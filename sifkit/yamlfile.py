"""YAML files read strictly: an error names file, line, key, and the nearest known key.

PyYAML parses; pydantic validates; this module joins the two, since neither alone knows both the line
and what was expected there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sifkit.errors import UsageError

MODEL = TypeVar("MODEL", bound=BaseModel)
Location = tuple[str | int, ...]

MAX_BYTES = 1_000_000  # a spec has a few hundred bytes; a larger file is something else
MAX_NODES = 20_000  # aliases count each time: "billion laughs" stops here


class _Lines:
    """Where each value of a document starts, and how its text was written."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.line: dict[Location, int] = {}
        self.raw: dict[Location, str] = {}
        self._nodes = 0
        self._scalars = yaml.SafeLoader("")

    def values(self, node: yaml.Node, at: Location = ()) -> Any:
        """The node as Python values. Raises `UsageError` on duplicate or non-text keys."""
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise UsageError(f"{self.file}: more than {MAX_NODES} values", "is this the file you meant?")
        self.line.setdefault(at, node.start_mark.line + 1)
        match node:
            case yaml.MappingNode():
                return self._mapping(node, at)
            case yaml.SequenceNode():
                return tuple(self.values(child, (*at, index)) for index, child in enumerate(node.value))
            case _:
                self.raw[at] = node.value
                return self._scalars.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise UsageError(f"{self.file}:{line}: a key must be plain text")
            here: Location = (*at, key)
            if key in result:
                first = self.line[here]
                raise UsageError(f"{self.file}:{line}: key {key!r} stands twice (first on line {first})", "keep one")
            self.line[here] = line
            result[key] = self.values(value_node, here)
        return result

    def of(self, location: Location) -> int:
        """The line of a value, or of the nearest thing around it."""
        while location and location not in self.line:
            location = location[:-1]
        return self.line.get(location, 1)


def load(path: Path, model: type[MODEL]) -> MODEL:
    """Read `path` as `model`. Raises `UsageError` for whatever is wrong, with every problem in it."""
    return parse(_read(path), model, str(path))


def load_own(path: Path, model: type[MODEL]) -> MODEL:
    """Read a data file that comes with sifkit, by libyaml where PyYAML has it: ten times as fast.

    It is not for files of others: libyaml's binding recurses without limit, and its messages are terser.
    """
    return parse(_read(path), model, str(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def parse(text: str, model: type[MODEL], file: str, loader: type[Any] = yaml.SafeLoader) -> MODEL:
    """Parse the text of a file named `file`."""
    lines, values = _compose(text, file, loader)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(details, lines, model) for details in error.errors(include_url=False)]
        raise UsageError("\n".join(dict.fromkeys(problems))) from None


@dataclass(frozen=True)
class Entry:
    """A key of a file that another program reads. `raw`: a plain value as it is written."""

    key: str
    line: int
    value: Any
    raw: str | None


def load_entries(path: Path) -> tuple[Entry, ...]:
    """The top keys of a file whose keys are not ours to judge. Raises `UsageError` for what is no mapping."""
    return parse_entries(_read(path), str(path))


def parse_entries(text: str, file: str) -> tuple[Entry, ...]:
    """The top keys of the text of a file named `file`."""
    lines, values = _compose(text, file)
    return tuple(Entry(key, lines.line[(key,)], value, lines.raw.get((key,))) for key, value in values.items())


def _compose(text: str, file: str, loader: type[Any] = yaml.SafeLoader) -> tuple[_Lines, dict[str, Any]]:
    lines = _Lines(file)
    try:
        node = yaml.compose(text, Loader=loader)
        values = lines.values(node) if node else {}
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UsageError(f"{file}:{line}: not YAML: {error.problem or error.context}") from None
    except RecursionError:
        raise UsageError(f"{file}: nested too deeply", "is this the file you meant?") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError) as error:  # the last two: a tag that does not fit
        raise UsageError(f"{file}: not YAML: {(str(error) or repr(error)).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise UsageError(f"{file}:1: expected keys and values, found {type(values).__name__}")
    return lines, values


def _read(path: Path) -> str:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # a device says size 0 and has no end
        if max(size, len(data)) > MAX_BYTES:
            raise UsageError(f"{path}: {max(size, len(data)):,} bytes are no spec", "is this the file you meant?")
        return data.decode("utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file", nearest_file(path)) from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file (UTF-8)") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None


def nearest_file(path: Path) -> str | None:
    """What else the person may have meant, where there is no such file."""
    if not path.parent.is_dir():
        return None
    here = sorted(other.name for other in path.parent.glob("*.yaml"))
    near = difflib.get_close_matches(path.name, here, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return f"in {path.parent} there are: {', '.join(here)}" if here else None


def _problem(details: ErrorDetails, lines: _Lines, model: type[BaseModel]) -> str:
    location = tuple(part for part in details["loc"] if part in _path_parts(details["loc"], lines))
    where = f"{lines.file}:{lines.of(location)}"
    key = ".".join(str(part) for part in location)
    if details["type"] == "extra_forbidden":
        known = known_keys(model, details["loc"][:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
        return f"{where}: unknown key {key!r}: {hint}"
    if details["type"] == "missing":
        return f"{where}: {key or 'a key'} is missing"
    return f"{where}: {key}: {_expectation(details, lines.raw.get(location))}"


def _path_parts(loc: Location, lines: _Lines) -> set[str | int]:
    """pydantic puts names of union members into the location; keep what the file really has, and the last."""
    parts: list[str | int] = []
    for part in loc:
        if (*parts, part) in lines.line:
            parts.append(part)
    if loc and not (parts and parts[-1] == loc[-1]):
        parts.append(loc[-1])
    return set(parts)


def _expectation(details: ErrorDetails, raw: str | None) -> str:
    given = details["input"]
    if details["type"] == "string_type" and isinstance(given, (int, float)) and not isinstance(given, bool):
        return f'a number was read; write it in quotes: "{raw}"'
    shown = "" if isinstance(given, (Mapping, Sequence)) and not isinstance(given, str) else f" (found {given!r})"
    if details["type"] == "value_error":  # our own words
        return details["msg"].removeprefix("Value error, ")
    return details["msg"][0].lower() + details["msg"][1:] + shown


def known_keys(model: type[BaseModel], loc: Location) -> list[str]:
    """The keys that may stand at `loc` inside `model`, as they are written in the file."""
    current: list[type[BaseModel]] = [model]
    for part in loc:
        step = [inner for outer in current for inner in _models_at(outer, part)]
        current = step or current
    return sorted({field.alias or name for inner in current for name, field in inner.model_fields.items()})


def _models_at(model: type[BaseModel], part: str | int) -> list[type[BaseModel]]:
    for name, field in model.model_fields.items():
        if part in (name, field.alias):
            return _models_in(field.annotation)
    tag = model.model_fields.get("bootstrap")
    return [model] if tag is not None and part in get_args(tag.annotation) else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_in(inner)]
