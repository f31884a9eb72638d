"""What may lie where a file is expected, and what may stand where a value is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

WRONG: list[object] = [None, True, 7, -1.5, "x", [], [None], {}, {"a": None}, [["a"]], {"a": {"b": 1}}]


def sparse(path: Path, size: int) -> None:
    """A file of this size that takes no room."""
    path.touch()
    os.truncate(path, size)


def fifo(path: Path) -> None:
    os.mkfifo(path)


ODD: dict[str, Callable[[Path], object]] = {
    "fifo": fifo,
    "directory": lambda path: path.mkdir(),
    "zero": lambda path: path.symlink_to("/dev/zero"),
    "binary": lambda path: path.write_bytes(os.urandom(100_000)),
    "sparse": lambda path: sparse(path, 1 << 30),
    "empty": lambda path: path.write_bytes(b""),
    "deep": lambda path: path.write_text("[" * 100_000),
    "deep rows": lambda path: path.write_text('[{"a":' * 100_000),
    "one long line": lambda path: path.write_text('[{"instruction": "' + "x" * (20 << 20)),
    "rows of numbers": lambda path: path.write_text("[1, 2, 3]"),
    "rows of nothing": lambda path: path.write_text("[null, null]"),
    "an object": lambda path: path.write_text('{"data": []}'),
    "rows of lists": lambda path: path.write_text("[[1], [2]]"),
    "numbers that are none": lambda path: path.write_text('[{"instruction": NaN, "output": Infinity}]'),
    "huge number": lambda path: path.write_text('[{"instruction": ' + "9" * 5000 + ', "output": ""}]'),
    "surrogates": lambda path: path.write_text('[{"instruction": "\\ud800", "output": "\\udfff"}]'),
    "cut": lambda path: path.write_text('[{"instruction": "a", "outp'),
}
