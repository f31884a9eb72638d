"""Whether a value fits its argument, whatever the parser says of it: it checks neither types nor most choices. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import Enum
from typing import Any

from sifkit.check.facts import Argument

NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?")
_CLEAR, _APART = 0.8, 0.05  # of SequenceMatcher's ratio: a name is meant, and no other comes near


class Misfit(Enum):
    """In what way a value does not fit."""

    TEXT_FOR_FLAG = "text for a flag"
    TEXT_FOR_NUMBER = "text for a number"  # text that is none
    NUMBER_AS_TEXT = "a number as text"
    NO_NUMBER = "no number"
    NOT_WHOLE = "not whole"
    EMPTY = "empty"


def misfit(value: Any, argument: Argument) -> Misfit | None:
    """Of types alone. None also where nobody can tell before the run: text takes anything."""
    types = set(argument.type.split(" | "))
    if not (types - {"null"} <= {"int", "float", "bool"}):
        return None
    if value is None:
        return Misfit.EMPTY if "null" not in types and "bool" not in types else None
    return _misfit_flag(value) if types - {"null"} == {"bool"} else _misfit_number(value, whole="float" not in types)


def _misfit_flag(value: Any) -> Misfit | None:
    return None if isinstance(value, bool) or (isinstance(value, int) and value in (0, 1)) else Misfit.TEXT_FOR_FLAG


def _misfit_number(value: Any, *, whole: bool) -> Misfit | None:
    if isinstance(value, str):
        return Misfit.NUMBER_AS_TEXT if NUMBER.fullmatch(value.strip()) else Misfit.TEXT_FOR_NUMBER
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return Misfit.NO_NUMBER
    return Misfit.NOT_WHOLE if whole and isinstance(value, float) and not value.is_integer() else None


def takes(value: Any, argument: Argument) -> bool:
    """Whether a value is one of the argument's choices; True for an argument that takes others too."""
    choices = argument.choices
    if not choices or (value is None and "null" in argument.type.split(" | ")):
        return True
    others = set(argument.type.split(" | ")) - {"null"} - {type(choice).__name__ for choice in choices}
    return bool(others) or value in choices


def is_hole(text: str) -> bool:
    """Whether somebody was to fill it in: OmegaConf's words for that, which LLaMA-Factory leaves as they are."""
    return text == "???" or re.search(r"(?<!\\)\$\{[^}]+\}", text) is not None


def with_point(text: str) -> str:
    """`1e-4` as YAML 1.1 knows a number: `1.0e-4`."""
    mantissa, _, exponent = text.strip().lower().partition("e")
    mantissa = mantissa if "." in mantissa else f"{mantissa}.0"
    sign = "" if exponent[:1] in ("+", "-") else "+"
    return f"{mantissa}e{sign}{exponent}" if exponent else mantissa


def nearest(word: str, known: Iterable[str]) -> tuple[str | None, bool]:
    """The known name that is most like a word, and whether that one is clearly meant."""
    lowered = {name.lower().replace("-", "_"): name for name in sorted(known)}
    asked = word.lower().replace("-", "_").strip()
    near = difflib.get_close_matches(asked, lowered, n=2)
    if not near:
        return None, False
    ratios = [difflib.SequenceMatcher(None, asked, name).ratio() for name in near]
    clear = ratios[0] >= _CLEAR and (len(ratios) == 1 or ratios[0] - ratios[1] >= _APART)
    return lowered[near[0]], clear


def shortened(choices: Iterable[object], most: int = 12) -> str:
    """The first of them, and how many there are."""
    words = [str(choice) for choice in choices]
    rest = f", … ({len(words)} in all)" if len(words) > most else ""
    return ", ".join(words[:most]) + rest
