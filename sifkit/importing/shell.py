"""Shell scripts taken apart as far as that is safe: what is not understood stays whole, in its place."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

_COMPOUND = re.compile(r"(?:if|for|while|until|case|select|function)\b|[({]|[A-Za-z_]\w*\s*\(\)|\[\[")
_TRUE = re.compile(r"\|\|\s*(?:true|:)\s*$")
_QUIET = re.compile(r"\s(?:[12&]?>{1,2}\s*/dev/null|2>&1)(?=\s|$)")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[A-Za-z_]\w*)(?::?-(?P<default>[^{}]*))?\}|(?P<plain>[A-Za-z_]\w*))")


_CONTINUED = re.compile(r"^(?:\s|\\\n)+")  # what stands between an operator and its command
_GOES_ON = re.compile(r"(?:\s|\\(?=\s*$))+$")
_STATIC_IF = re.compile(
    r"if\s+\[{1,2}\s+(?P<left>\S+)\s+(?P<operator>==?|!=)\s+(?P<right>\S+)\s+\]{1,2}\s*;\s*then\s(?P<body>.*?);?\s*\bfi\b;?",
    re.DOTALL,
)


@dataclass(frozen=True)
class Simple:
    """One command. `words` is empty where it is more than that, and must be kept as `text` says."""

    line: int
    text: str
    words: tuple[str, ...] = ()
    tail: bool = False  # everything to the script's end, since a compound command starts here


def split(text: str, first_line: int, variables: Mapping[str, str]) -> list[Simple]:
    """The commands of a script. Values of known variables stand for their names in `words`, not in `text`."""
    lists = _lists(text)
    found: list[Simple] = []
    for number, (start, part) in enumerate(lists):
        line = first_line + text.count("\n", 0, start)
        if _COMPOUND.match(part) or _has_heredoc(part):
            rest = text[start:].strip()
            assert number < len(lists)
            return [*found, Simple(line, _without_comments(rest), tail=True)]
        body = _TRUE.sub("", part).strip()
        if "||" in _unquoted(body):
            found.append(Simple(line, part))
            continue
        for offset, piece in _pieces(body, "&&"):
            at = line + body.count("\n", 0, offset)
            found.append(Simple(at, piece, _words(piece, variables)))
    return found


def decided(text: str, variables: Mapping[str, str]) -> tuple[bool, str] | None:
    """Of one `if` that compares known texts, whether it holds, and what it then does; None for any other."""
    found = _STATIC_IF.fullmatch(_joined(text).strip())
    if found is None or re.search(r"\b(else|elif|if)\b", found["body"]):
        return None
    left, right = (expand(found[side].strip("\"'"), variables) for side in ("left", "right"))
    if variables_in(left + right) or "`" in left + right:
        return None
    return (left == right) == (found["operator"] != "!="), found["body"].strip()


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Known variables replaced, others left as they are."""

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["plain"]
        default = match["default"]
        return variables.get(name) or (default if default is not None else variables.get(name, match[0]))

    return _VARIABLE.sub(value, text)


def variables_in(text: str) -> set[str]:
    """The names of the variables that a text uses."""
    return {match["braced"] or match["plain"] for match in _VARIABLE.finditer(text)}


def _words(text: str, variables: Mapping[str, str]) -> tuple[str, ...]:
    """Empty for what no plain command is: pipes, redirections into files, substitutions."""
    plain = _QUIET.sub(" ", f" {_joined(text)} ").strip()
    bare = _unquoted(plain)
    if re.search(r"[|<>`&]|\$\(", bare) or "`" in plain or "$(" in plain:
        return ()
    try:
        words = shlex.split(expand(plain, variables), comments=True)
    except ValueError:
        return ()
    return tuple(words)


def _lists(text: str) -> list[tuple[int, str]]:
    """The parts between semicolons and line ends, each with where it starts; comments are left out."""
    found = []
    for start, part in _pieces(text, ";\n"):
        lines = _without_comments(part)
        if lines:
            found.append((start + len(part) - len(part.lstrip()), lines))
    return found


def _without_comments(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#")).strip()


def _pieces(text: str, separators: str) -> list[tuple[int, str]]:
    """Split at `&&`, or at any character of `separators`, outside quotes and parentheses; lines may go on with a \\."""
    found, start, position = [], 0, 0
    ends = {"&&"} if separators == "&&" else set(separators)
    for position, width in _separators(text, ends):
        found.append((start, text[start:position]))
        start = position + width
    found.append((start, text[start:]))
    stripped = [(at, piece, _CONTINUED.sub("", piece)) for at, piece in found]
    ended = [(at + len(piece) - len(plain), _GOES_ON.sub("", plain)) for at, piece, plain in stripped]
    return [(at, plain) for at, plain in ended if plain]


def _joined(text: str) -> str:
    """Continued lines as one."""
    return re.sub(r"\\\n\s*", " ", text)


def _separators(text: str, ends: set[str]) -> list[tuple[int, int]]:
    found, depth, position = [], 0, 0
    for position, mark in _marks(text):
        if mark in "({":
            depth += 1
        elif mark in ")}":
            depth = max(0, depth - 1)
        elif depth == 0 and mark in ends and not (mark == "\n" and _goes_on(text, position)):
            found.append((position, len(mark)))
    return found


def _goes_on(text: str, position: int) -> bool:
    """Whether a line end is none for the shell: after an operator, or with a continuation."""
    before = text[:position].rstrip(" \t")
    last = before.rpartition("\n")[2].lstrip()
    if last.startswith("#"):  # a comment between the lines of one command
        before = before[: len(before) - len(last)].rstrip()
    return before.endswith(("\\", "&&", "||", "|"))


def _marks(text: str) -> list[tuple[int, str]]:
    """Operators and brackets outside quotes, where each stands."""
    found = []
    pattern = re.compile(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\\n|\\.|(?:^|(?<=\s))#[^\n]*|&&|[;\n(){}]", re.DOTALL)
    for match in pattern.finditer(text):
        if match[0] in ("&&", ";", "\n", "(", ")", "{", "}"):
            found.append((match.start(), match[0]))
    return found


def _unquoted(text: str) -> str:
    return re.sub(r"'[^']*'|\"(?:\\.|[^\"\\])*\"|\\.", "", text, flags=re.DOTALL)


def _has_heredoc(text: str) -> bool:
    return "<<" in _unquoted(text)
