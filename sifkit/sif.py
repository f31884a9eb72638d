"""The header of a SIF file: which objects it holds, and where. Reads; knows nothing of Apptainer.

Source: github.com/sylabs/sif, pkg/sif/sif.go (version 01 of the format), tried with images of Apptainer 1.4.5.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO

OBJECT_NAME = "sifkit-facts.json"

_HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")  # 585 bytes
_MAGIC = b"SIF_MAGIC\0"
_MOST = 1 << 14  # descriptors; Apptainer makes room for 48
_LARGEST = 1 << 25  # bytes of an object that is read whole

GENERIC_JSON = 0x4006


class NotSif(Exception):
    """Why a file is no whole SIF."""


@dataclass(frozen=True)
class SifObject:
    """An object in a SIF file. `kind`: as the format numbers them, 0x4006 is JSON."""

    kind: int
    name: str
    offset: int
    size: int


def read_objects(path: Path) -> tuple[SifObject, ...]:
    """The objects of a SIF. Raises `NotSif`, or `OSError` for what cannot be opened. Never waits for a FIFO."""
    with _opened(path) as file:
        header = file.read(_HEADER.size)
        if not header:
            raise NotSif("it is empty")
        if len(header) < _HEADER.size or header[32:42] != _MAGIC:
            raise NotSif("it does not begin as a SIF file does")
        total, offset = _HEADER.unpack(header)[8:10]
        if not 0 < total <= _MOST:
            raise NotSif("its header is damaged")
        file.seek(max(0, offset))
        table = file.read(total * _DESCRIPTOR.size)
        length = os.fstat(file.fileno()).st_size
    if len(table) < total * _DESCRIPTOR.size:
        raise NotSif("it is cut off within its header")
    objects = tuple(found for row in _DESCRIPTOR.iter_unpack(table) if (found := _object(row)))
    end = max((found.offset + found.size for found in objects), default=0)
    if end > length:
        raise NotSif(f"it is cut off: {length} bytes of {end}")
    return objects


def _opened(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0)


def _object(row: tuple[int | bool | bytes, ...]) -> SifObject | None:
    kind, used, offset, size, name = row[0], row[1], row[5], row[6], row[12]
    if not used:
        return None
    text = bytes(name).split(b"\0")[0].decode("utf-8", "replace")
    return SifObject(int(kind), text, int(offset), int(size))


def fault_of(path: Path) -> str | None:
    """Why a file is no whole SIF; None for one that is. Raises `OSError` for what cannot be opened."""
    try:
        read_objects(path)
    except NotSif as error:
        return str(error)
    return None


def read_object(path: Path, name: str) -> bytes | None:
    """The JSON object of that name, the last of several; None where there is none, or no SIF."""
    try:
        found = [one for one in read_objects(path) if (one.kind, one.name) == (GENERIC_JSON, name)]
        if not found or found[-1].size > _LARGEST:
            return None
        with path.open("rb") as file:
            file.seek(found[-1].offset)
            return file.read(found[-1].size)
    except (NotSif, OSError):
        return None
