"""A training YAML beside the arguments of an image's LLaMA-Factory: what each key means, and which do not fit. Pure."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sifkit.check.facts import Argument, ImageFacts
from sifkit.check.parser_reading import loads_with_omegaconf
from sifkit.check.parser_values import NUMBER, shortened, with_point
from sifkit.yamlfile import Entry

__all__ = ["Explained", "default_text", "explain", "search", "shortened"]


@dataclass(frozen=True)
class Explained:
    """A key of the YAML. `argument` None: LLaMA-Factory knows no such key. `problem`: why it will not do."""

    key: str
    line: int
    shown: str  # the value, as it is written where that is one line
    value: Any
    argument: Argument | None
    problem: str | None


def explain(entries: Iterable[Entry], known: ImageFacts) -> tuple[Explained, ...]:
    """Each key in the file's order."""
    return tuple(_explained(entry, known) for entry in entries)


def _explained(entry: Entry, known: ImageFacts) -> Explained:
    argument = known.argument(entry.key)
    problem = _unknown(entry.key, known) if argument is None else misfit(entry, argument, known)
    shown = entry.raw if entry.raw is not None else json.dumps(entry.value, ensure_ascii=False, default=str)
    return Explained(entry.key, entry.line, shown, entry.value, argument, problem)


def _unknown(key: str, known: ImageFacts) -> str:
    if key in known.derived:
        return "is derived from other keys and must not be set"
    near = difflib.get_close_matches(key, [argument.name for argument in known.arguments], n=1)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"LLaMA-Factory {known.llamafactory} knows no such key, and stops at it{hint}"


def misfit(entry: Entry, argument: Argument, known: ImageFacts) -> str | None:
    """Why a value will not do; None when it will, or when nobody can tell before the run.

    HfArgumentParser.parse_dict checks neither types nor choices: what is wrong shows later in the run, or never.
    """
    value = entry.value
    if value is None:
        return None
    if isinstance(value, str) and "${" in value:  # OmegaConf would, but is not asked to (hparams/parser.py: read_args)
        return "is not filled in: LLaMA-Factory takes it as it is written"
    if argument.choices and not isinstance(value, (tuple, dict)):
        return _not_a_choice(entry, argument)
    return _wrong_type(entry, argument, known)


def _not_a_choice(entry: Entry, argument: Argument) -> str | None:
    choices = [str(choice) for choice in argument.choices]
    if str(entry.value) in choices:
        return None
    if isinstance(entry.value, bool) and entry.raw in choices:
        return f'YAML reads {entry.raw} as {str(entry.value).lower()}; write it in quotes: "{entry.raw}"'
    near = difflib.get_close_matches(str(entry.value), choices, n=1)
    return "is none of its choices" + (f": did you mean {near[0]}?" if near else f": {shortened(choices)}")


def _wrong_type(entry: Entry, argument: Argument, known: ImageFacts) -> str | None:
    types = set(argument.type.split(" | ")) - {"null"}
    value = entry.value
    if types == {"bool"} and not isinstance(value, bool):
        return f"is no true or false (found {type(value).__name__}): any text counts as true"
    if not types or not types <= {"int", "float"} or _is_number(value):
        whole = not isinstance(value, float) or value.is_integer()
        return None if whole or types != {"int"} else "is no whole number"
    if isinstance(value, str) and NUMBER.fullmatch(value):
        if loads_with_omegaconf(known.llamafactory):
            return None
        return f"is text to this LLaMA-Factory, not a number; write it as {with_point(value)}"
    return f"is no number (found {type(value).__name__})"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def search(known: ImageFacts, words: str) -> tuple[Argument, ...]:
    """Arguments whose name or help holds every word; those whose name does come first."""
    wanted = words.lower().split()
    found = [
        argument
        for argument in known.arguments
        if all(word in f"{argument.name} {argument.help}".lower() for word in wanted)
    ]
    return tuple(sorted(found, key=lambda argument: not all(word in argument.name.lower() for word in wanted)))


def default_text(argument: Argument) -> str:
    """The default as a YAML would have it."""
    if argument.required:
        return "(required)"
    if isinstance(argument.default, str):
        return argument.default or '""'
    return json.dumps(argument.default, ensure_ascii=False)
