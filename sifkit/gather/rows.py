"""The first rows of a data file, and how many there are: without reading gigabytes.

Lengths in tokens are estimates: a token for 3.6 characters of ASCII, for 2.2 of other alphabets, for 1.3 of Chinese,
Japanese and Korean (typical of vocabularies of 100,000 and more; code and numbers have more tokens).
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sifkit.gather.parquet import NotParquet, read_shape

WHOLE = 4 << 20  # bytes of a file that is parsed whole
HEAD = 256 << 10  # bytes of a larger one that are
LARGEST_ROW = 8 << 20  # bytes in which its first row must end
_TAIL = 4096
_CHECKED_ROWS = 20_000
_MEASURED_ROWS = 300
_BLANKS = " \t\r\n"
_BLANK, _SEPARATOR = re.compile(r"[ \t\r\n]*"), re.compile(r"[ \t\r\n,]*")
_LONG_NUMBER = "a number with thousands of digits"  # sys.get_int_max_str_digits
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Sample:
    """What was read of a file. `exact`: all of it, so that `columns` and `rows` are certain."""

    rows_read: tuple[Mapping[str, Any], ...] = ()
    rows: int | None = None
    exact: bool = False
    problem: str | None = None
    line: int | None = None
    columns: frozenset[str] | None = field(default=None)

    def named(self) -> frozenset[str] | None:
        """All columns of the rows that were read."""
        if self.columns is not None or not self.rows_read:
            return self.columns
        return frozenset(str(key) for row in self.rows_read for key in row)


def read_sample(path: Path, kind: str, size: int, whole: int = WHOLE) -> Sample:
    """Read a plain file. `kind`: its ending. `whole`: bytes up to which all of it is read. Raises `OSError`."""
    match kind:
        case "json" | "jsonl":
            return _json(path, size, whole=size <= whole)
        case "csv":
            return _csv(path, size, whole=size <= whole)
        case "txt":
            return _text(path, size, whole=size <= whole)
        case "parquet":
            return _parquet(path, size)
        case _:
            return Sample()


def mean_tokens(rows: Sequence[Mapping[str, Any]], columns: frozenset[str]) -> float | None:
    """Of rows spread over these, counting these columns, or all where none of them is there."""
    some = rows[:: max(1, len(rows) // _MEASURED_ROWS)]
    lengths = [sum(tokens(text) for text in texts(_chosen(row, columns))) for row in some]
    return sum(lengths) / len(lengths) if lengths else None


def tokens(text: str) -> float:
    """An estimate of how many tokens a text has. Alphabets are told apart by the bytes of a character in UTF-8."""
    ascii_ = len(text.encode("ascii", "ignore"))
    others = len(text) - ascii_
    wide = len(text.encode("utf-8", "ignore")) - ascii_ - 2 * others if others else 0
    return ascii_ / 3.6 + wide / 1.3 + (others - wide) / 2.2


def texts(value: object) -> Iterator[str]:
    """All texts in a value; keys of objects are not content."""
    todo = [value]
    while todo:
        each = todo.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, Mapping):
            todo += each.values()
        elif isinstance(each, list):
            todo += each


def _chosen(row: Mapping[str, Any], columns: frozenset[str]) -> Mapping[str, Any]:
    return {key: value for key, value in row.items() if key in columns} or row


# ---------------------------------------------------------------------------------------------- JSON
#
# What datasets 4.0 takes of a file that is called .json or .jsonl, tried: an array of objects, or objects one after the
# other, with or without line breaks between them; an array of nothing but texts is a column "text".


def _json(path: Path, size: int, *, whole: bool) -> Sample:
    with path.open("rb") as file:
        content = file.read(size if whole else HEAD)
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(content, final=whole)
            return _whole(text) if whole else _large(text, size, file)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            return Sample(problem=f"it is not UTF-8: byte 0x{content[error.start]:02x}", line=line)
        except RecursionError:
            return Sample(problem="it is nested too deeply")


def _whole(text: str) -> Sample:
    if _is_array(text):
        try:
            return _checked(_of_values(json.loads(text)))
        except json.JSONDecodeError as error:
            return Sample(problem=f"it is no JSON: {error.msg}", line=error.lineno)
        except ValueError:
            return Sample(problem=f"it is no JSON: {_LONG_NUMBER}")
    text = text.removeprefix(_BYTE_ORDER_MARK)  # taken before objects, refused before an array
    values, end, message = _values(text, 0)
    if message is not None:
        return Sample(problem=f"it is no JSON: {message}", line=text.count("\n", 0, end) + 1)
    wrong = next((each for each in values if not isinstance(each, Mapping)), None)
    if wrong is not None:
        return Sample(problem="a value in it is no object of columns")
    return _checked(_of_values(values))


def _is_array(text: str) -> bool:
    return text.lstrip(_BLANKS + _BYTE_ORDER_MARK)[:1] == "[" and not text.startswith("{")


def _of_values(values: list[Any]) -> Sample:
    if not values:
        return Sample(problem="it holds no rows")
    if all(isinstance(each, str) for each in values):
        return Sample(tuple({"text": each} for each in values), len(values), exact=True)
    wrong = next((at for at, each in enumerate(values, 1) if not isinstance(each, Mapping)), None)
    if wrong is not None:
        return Sample(problem=f"row {wrong} is no object of columns")
    return Sample(tuple(values), len(values), exact=True)


def _values(text: str, at: int) -> tuple[list[Any], int, str | None]:
    """Values one after the other, where reading stopped, and why if that is not the end."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    while (at := _BLANK.match(text, at).end()) < len(text):  # type: ignore[union-attr]  # it matches nothing, too
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            return values, error.pos, error.msg
        except ValueError:
            return values, at, _LONG_NUMBER
        values.append(value)
    return values, at, None


def _large(head: str, size: int, file: io.BufferedReader) -> Sample:
    """The first rows of a large file; how many there are follows from their size."""
    array = _is_array(head)
    rows, used = _rows_of(head, array)
    while not rows and len(head) < LARGEST_ROW and (more := file.read(len(head))):
        head += more.decode("utf-8", errors="ignore")
        rows, used = _rows_of(head, array)
    file.seek(size - _TAIL)
    end = file.read(_TAIL).rstrip()
    if array and not end.endswith(b"]"):
        return Sample(rows, problem="it is cut off: its array has no end")
    if not rows:
        return Sample(problem=f"it is no JSON, or its first row has more than {len(head) >> 20} MiB")
    return _checked(Sample(rows, round(size / used * len(rows))))


def _rows_of(text: str, array: bool) -> tuple[tuple[Mapping[str, Any], ...], int]:
    """The rows that begin and end in a text, and how many bytes they take."""
    decoder = json.JSONDecoder()
    rows: list[Mapping[str, Any]] = []
    start = at = end = text.find("[") + 1 if array else 0
    while True:
        at = _SEPARATOR.match(text, at).end()  # type: ignore[union-attr]  # it matches nothing, too
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError:
            return tuple(rows), len(text[start:end].encode())
        if not isinstance(value, Mapping):
            return tuple(rows), len(text[start:end].encode())
        rows.append(value)
        end = at


# ---------------------------------------------------------------------------------------------- one type a column


def _checked(sample: Sample) -> Sample:
    """A column has one type in all rows, or Arrow refuses the file."""
    kinds: dict[str, str] = {}
    for number, row in enumerate(sample.rows_read[:_CHECKED_ROWS], 1):
        for name, value in row.items():
            kind = _kind(value)
            known = kinds.setdefault(name, kind) if kind else ""
            if kind and known != kind:
                said = f"column {name} is {known} in earlier rows and {kind} in row {number}"
                return replace(sample, problem=said)
    return sample


def _kind(value: object) -> str:
    """Empty for what goes with others: null, and numbers with truth values, which pandas may convert."""
    if isinstance(value, str):
        return "a text"
    if isinstance(value, list):
        return "a list"
    return "an object" if isinstance(value, Mapping) else ""


# ---------------------------------------------------------------------------------------------- other kinds


def _csv(path: Path, size: int, *, whole: bool) -> Sample:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        text = file.read(size if whole else HEAD)
    try:
        rows = tuple(itertools.islice(csv.DictReader(io.StringIO(text)), 100_000))
    except csv.Error as error:
        return Sample(problem=f"it is no CSV: {error}")
    if not rows:
        return Sample(problem="it holds no rows")
    count = len(rows) if whole else round(size / len(text.encode()) * len(rows))
    plain = tuple({str(key): value for key, value in row.items() if key is not None} for row in rows)
    return Sample(plain, count, whole)


def _text(path: Path, size: int, *, whole: bool) -> Sample:
    """A row a line (datasets' text builder)."""
    with path.open("rb") as file:
        content = file.read(size if whole else HEAD)
    lines = list(io.StringIO(content.decode("utf-8", errors="replace"), newline=None))
    if not lines:
        return Sample(problem="it is empty")
    rows = tuple({"text": line} for line in lines[:1000])
    count = len(lines) if whole else round(size / len(content) * len(lines))
    return Sample(rows, count, whole, columns=frozenset({"text"}))


def _parquet(path: Path, size: int) -> Sample:
    """Its rows are compressed and not read; its end says how many there are, of which columns."""
    try:
        shape = read_shape(path, size)
    except NotParquet as error:
        return Sample(problem=str(error))
    if not shape.rows:
        return Sample(problem="it holds no rows")
    return Sample(rows=shape.rows, exact=True, columns=frozenset(shape.columns))
