"""The end of a parquet file: how many rows it has, and which columns. No values are read.

It is a struct of Thrift's compact protocol, whose first fields are version, schema and number of rows
(parquet-format, src/main/thrift/parquet.thrift; thrift, doc/specs/thrift-compact-protocol.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC = b"PAR1"
_LARGEST = 16 << 20  # bytes of the end
_DEEPEST = 32  # structs in structs
_SCHEMA, _ROWS = 2, 3  # fields of FileMetaData
_NAME, _CHILDREN = 4, 5  # fields of SchemaElement


class NotParquet(ValueError):
    """The file is none, or is damaged."""


@dataclass(frozen=True)
class Shape:
    """Top-level columns, and the number of rows."""

    columns: tuple[str, ...]
    rows: int


def read_shape(path: Path, size: int) -> Shape:
    """Raises `NotParquet`, `OSError`."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise NotParquet("it is no parquet file")
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != MAGIC or length > size - 12:
            raise NotParquet("it is cut off")
        file.seek(size - 8 - length)
        end = file.read(min(length, _LARGEST))
    try:
        found = _Reader(end).fields(_ROWS)
        return Shape(_top_level(found[_SCHEMA]), int(found[_ROWS]))
    except (AttributeError, IndexError, KeyError, StopIteration, TypeError, ValueError):
        raise NotParquet("its end is damaged") from None


def _top_level(schema: list[dict[int, Any]]) -> tuple[str, ...]:
    """The schema is a tree, written parents first; its root stands for the row."""
    elements = iter(schema)
    root = next(elements, {})
    names = []
    for _ in range(root.get(_CHILDREN, 0)):
        element = next(elements)
        names.append(element[_NAME].decode("utf-8", "replace"))
        _skip(element, elements)
    return tuple(names)


def _skip(element: dict[int, Any], elements: Iterator[dict[int, Any]]) -> None:
    left = element.get(_CHILDREN, 0)
    while left:
        left += next(elements).get(_CHILDREN, 0) - 1


class _Reader:
    """Values of the compact protocol, one after the other."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at, self._depth = content, 0, 0

    def fields(self, last: int | None = None) -> dict[int, Any]:
        """A struct's fields by number, up to `last`, after which nothing is read."""
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ValueError
        found: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0 and number != last:
            number = number + (head >> 4) if head >> 4 else self._signed()
            found[number] = self._value(head & 15)
            if number == last:
                break
        self._depth -= 1
        return found

    def _value(self, kind: int) -> Any:
        match kind:
            case 1 | 2:
                return kind == 1
            case 3:
                return self._byte()
            case 4 | 5 | 6:
                return self._signed()
            case 7:
                return self._bytes(8)
            case 8:
                return self._bytes(self._varint())
            case 9 | 10:
                return self._list()
            case 12:
                return self.fields()
            case _:
                raise ValueError

    def _list(self) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 != 15 else self._varint()
        if count > len(self._content):
            raise ValueError
        return [self._byte() == 1 if head & 15 in (1, 2) else self._value(head & 15) for _ in range(count)]

    def _byte(self) -> int:
        self._at += 1
        return self._content[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._content):
            raise IndexError
        return self._content[self._at - count : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 128:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 70:
                raise ValueError
        return value | byte << shift

    def _signed(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
