"""The header of a SIF file: which objects it holds, and where. Reads; knows nothing of Apptainer.

`sifkit.sifwrite` writes them, with the same structures.

Source: github.com/sylabs/sif, pkg/sif/sif.go (version 01 of the format), tried with images of Apptainer 1.4.5.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, NamedTuple

from sifkit.hashes import feed

OBJECT_NAME = "sifkit-facts.json"

HEADER = struct.Struct("<32s10s3s3s16sqqqqqqqq")
DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")  # 585 bytes
MAGIC = b"SIF_MAGIC\0"
_MOST = 1 << 14  # descriptors; Apptainer makes room for 48
_LARGEST = 1 << 25  # bytes of an object that is read whole

DEFINITION = 0x4001
PARTITION = 0x4004
SIGNATURE = 0x4005
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


class Header(NamedTuple):
    """The first 128 bytes."""

    launch: bytes
    magic: bytes
    version: bytes
    architecture: bytes
    identity: bytes
    created: int
    modified: int
    free: int  # descriptors
    total: int
    table: int  # where the descriptors are
    table_size: int
    data: int  # where the objects begin
    data_size: int


class Descriptor(NamedTuple):
    """A row of the table of objects. `group` and `linked` carry the format's bits for a group, 0xf0000000."""

    kind: int
    used: bool
    number: int
    group: int
    linked: int
    offset: int
    size: int
    padded: int
    created: int
    modified: int
    owner: int
    owner_group: int
    name: bytes
    extra: bytes


def read_table(file: IO[bytes]) -> tuple[Header, list[Descriptor]]:
    """The header of a SIF just opened, and all its descriptors, used or not; the objects are all there.

    Raises `NotSif`.
    """
    start = file.read(HEADER.size)  # before any seek, which a FIFO does not know
    if not start:
        raise NotSif("it is empty")
    if len(start) < HEADER.size or start[32:42] != MAGIC:
        raise NotSif("it does not begin as a SIF file does")
    header = Header._make(HEADER.unpack(start))
    size, length = header.total * DESCRIPTOR.size, file.seek(0, os.SEEK_END)
    if not 0 < header.total <= _MOST or header.table < HEADER.size:
        raise NotSif("its header is damaged")
    if header.table + size > length:
        raise NotSif("it is cut off within its header")
    file.seek(header.table)
    rows = [Descriptor._make(row) for row in DESCRIPTOR.iter_unpack(file.read(size))]
    _check_whole([row for row in rows if row.used], length)
    return header, rows


def _check_whole(rows: list[Descriptor], length: int) -> None:
    if any(row.offset < 0 or row.size < 0 for row in rows):
        raise NotSif("its header is damaged")
    end = max((row.offset + row.size for row in rows), default=0)
    if end > length:
        raise NotSif(f"it is cut off: {length} bytes of {end}")


def read_objects(path: Path) -> tuple[SifObject, ...]:
    """The objects of a SIF. Raises `NotSif`, or `OSError` for what cannot be opened. Never waits for a FIFO."""
    with opened(path) as file:
        _, rows = read_table(file)
    return tuple(SifObject(row.kind, name_of(row), row.offset, row.size) for row in rows if row.used)


def opened(path: Path) -> FileIO:
    """A file to read from, without a buffer, and without waiting for the other end of a FIFO."""
    return FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def feed_bytes(digest: hashlib._Hash, file: FileIO, size: int) -> hashlib._Hash:
    """Give the next bytes of a SIF to a digest. Raises `NotSif` where it has become shorter."""
    try:
        return feed(digest, file, size)
    except EOFError:
        raise NotSif("it is cut off") from None


def name_of(row: Descriptor) -> str:
    """An object's name, "" where it has none."""
    return row.name.split(b"\0")[0].decode("utf-8", "replace")


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
