"""Writes SIF files as Apptainer does, but the same bytes for the same input: identity and times are chosen, not drawn.

Source: github.com/apptainer/sif, pkg/sif/{create,descriptor_input}.go; compared with files of Apptainer 1.4.5.
"""

from __future__ import annotations

import hashlib
import os
import platform
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO

from sifkit.hashes import feed
from sifkit.sif import (
    DESCRIPTOR,
    HEADER,
    MAGIC,
    PARTITION,
    Descriptor,
    Header,
    NotSif,
    feed_bytes,
    opened,
    read_table,
)
from sifkit.squash import Source, fingerprint, join

_LAUNCH = b"#!/usr/bin/env run-singularity\n"
_VERSION = b"01"
_DESCRIPTORS = 48
_TABLE = 4096  # where the descriptors are, and what a partition is aligned to
_DATA = _TABLE + _DESCRIPTORS * DESCRIPTOR.size
_GROUP = 0xF0000001  # group 1: all its objects are signed together
_LONGEST_NAME = 127

_SQUASHFS, _PRIMARY_SYSTEM = 1, 2
_PARTITION = struct.Struct("<ii3s")  # filesystem, type, architecture
# pkg/sif/arch.go, by what the kernel calls a machine
_ARCHITECTURES = {"i686": b"01", "x86_64": b"02", "aarch64": b"04", "ppc64le": b"06", "s390x": b"11", "riscv64": b"12"}
_UNKNOWN = b"00"

_ORIGIN = uuid.UUID("6f6b4bb0-3c5e-5d0e-9a57-1c7f0a1b6d11")  # the namespace of these identities; drawn once


@dataclass(frozen=True)
class NewObject:
    """What is to be put into a SIF. `kind` as the format numbers them: 0x4001 definition, 0x4006 JSON, 0x4007 generic.

    A name has at most 127 bytes; a definition has none.
    """

    kind: int
    name: str
    data: bytes


def write_sif(target: Path, sources: Sequence[Source], objects: Sequence[NewObject], *, time: int) -> None:
    """Write an image: the objects, then the sources joined as its primary partition, straight into the file.

    The same input gives the same bytes. Raises `NotJoinable` for sources that cannot be joined, `NotSif` for more
    than 47 objects, `OSError`; what was written until then stays, so give it a name that nobody uses.
    """
    if len(objects) >= _DESCRIPTORS:
        raise NotSif(f"there is no room for {len(objects)} objects beside the partition, only for {_DESCRIPTORS - 1}")
    for source in sources:  # one that is damaged is known before anything is written
        fingerprint(source)
    with os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o777), "w+b") as file:
        rows, end = list[Descriptor](), _DATA
        for number, new in enumerate(objects, 1):
            rows.append(_put(file, new, number, end, time))
            end += rows[-1].padded
        rows.append(_put_partition(file, sources, len(rows) + 1, end, time))
        file.flush()
        _write_head(file, rows, _identity(Source(target, rows[-1].offset), objects, time), time)


def append_object(path: Path, new: NewObject, *, time: int) -> None:
    """Add an object to a SIF, in its first free descriptor; the same bytes each time. Raises `NotSif`, `OSError`.

    A signature does not cover it: sign afterwards. Killed on the way, it leaves a whole SIF without the object.
    """
    with path.open("r+b") as file:
        coming = _coming(file, new.kind, new.name, len(new.data), time)
        file.seek(coming.at)
        file.write(new.data)
        file.truncate()  # what an earlier attempt may have left
        file.flush()
        file.seek(0)
        file.write(coming.header)
        file.flush()
        file.seek(coming.row_at)
        file.write(coming.row)


@dataclass(frozen=True)
class HashAhead:
    """The sha256 of a SIF with an object that is still to be appended, all of it but that object's bytes.

    `head`: what the file will begin with. `at`: where the object will be.
    """

    head: bytes
    at: int
    digest: hashlib._Hash

    @classmethod
    def read(cls, path: Path, kind: int, name: str, size: int, *, time: int) -> HashAhead:
        """Read the file for an object of `size` bytes, to be appended with this `time`. Raises `NotSif`, `OSError`."""
        with opened(path) as file:
            coming = _coming(file, kind, name, size, time)
            file.seek(0)
            head = bytearray(_read(file, coming.row_at + DESCRIPTOR.size))
            head[: HEADER.size] = coming.header
            head[coming.row_at :] = coming.row
            digest = feed_bytes(hashlib.sha256(head), file, coming.at - len(head))
        return cls(bytes(head), coming.at, digest)

    def of(self, path: Path) -> str | None:
        """The whole sha256, with the object as it stands there; None for a file that is another than was foreseen."""
        with opened(path) as file:
            if _read(file, len(self.head)) != self.head:
                return None
            file.seek(self.at)
            return feed(self.digest.copy(), file).hexdigest()


def partition(path: Path) -> Source:
    """The squashfs of a SIF's primary partition. Raises `NotSif` where there is none, `OSError`."""
    with opened(path) as file:
        _, rows = read_table(file)
    for row in rows:
        filesystem, kind, _ = _PARTITION.unpack_from(row.extra)
        if row.used and row.kind == PARTITION and kind == _PRIMARY_SYSTEM:
            if filesystem != _SQUASHFS:
                raise NotSif("its primary partition is no squashfs")
            return Source(path, row.offset)
    raise NotSif("it has no primary partition")


def _identity(joined: Source, objects: Sequence[NewObject], time: int) -> uuid.UUID:
    """Of what is in the file, not of its sources: two bases of equal files differ in their tables' times alone."""
    digest = hashlib.sha256(f"{time}\n".encode())
    for new in objects:
        digest.update(f"{new.kind} {new.name!r} {hashlib.sha256(new.data).hexdigest()}\n".encode())
    digest.update(fingerprint(joined))
    return uuid.uuid5(_ORIGIN, digest.hexdigest())


def _architecture() -> bytes:
    return _ARCHITECTURES.get(platform.machine(), _UNKNOWN)


@dataclass(frozen=True)
class _Coming:
    """The next object of a SIF: where it goes, and what the file's header and its row of the table will say."""

    at: int
    header: bytes
    row_at: int
    row: bytes


def _coming(file: IO[bytes], kind: int, name: str, size: int, time: int) -> _Coming:
    header, rows = read_table(file)
    index = next((at for at, row in enumerate(rows) if not row.used), None)
    if index is None:
        raise NotSif("it has no room for another object")
    end = header.data + header.data_size
    begin = max((row.offset + row.size for row in rows if row.used), default=header.table)
    if not begin <= end <= file.seek(0, os.SEEK_END):
        raise NotSif("its header is damaged")
    free, data_size = sum(not row.used for row in rows) - 1, header.data_size + size
    row = _descriptor(kind, index + 1, end, (size, size), time, name)
    return _Coming(
        at=end,
        header=HEADER.pack(*header._replace(modified=time, free=free, data_size=data_size)),
        row_at=header.table + index * DESCRIPTOR.size,
        row=DESCRIPTOR.pack(*row),
    )


def _read(file: FileIO, size: int) -> bytes:
    """Raises `NotSif` for a file that has become shorter."""
    data = file.read(size)
    if len(data) < size:
        raise NotSif("it is cut off")
    return data


def _put(file: IO[bytes], new: NewObject, number: int, at: int, time: int) -> Descriptor:
    """Write an object's data at `at`; its descriptor is still to be written."""
    file.seek(at)
    file.write(new.data)
    return _descriptor(new.kind, number, at, (len(new.data), len(new.data)), time, new.name)


def _put_partition(file: IO[bytes], sources: Sequence[Source], number: int, at: int, time: int) -> Descriptor:
    padding = -at % _TABLE
    file.seek(at + padding)
    size = join(sources, file, time=time)
    extra = _PARTITION.pack(_SQUASHFS, _PRIMARY_SYSTEM, _architecture())
    return _descriptor(PARTITION, number, at + padding, (size, size + padding), time, extra=extra)


def _descriptor(
    kind: int, number: int, offset: int, sizes: tuple[int, int], time: int, name: str = "", extra: bytes = b""
) -> Descriptor:
    encoded = name.encode()
    if len(encoded) > _LONGEST_NAME:
        raise NotSif(f"the name of an object is too long: {name}")
    return Descriptor(kind, True, number, _GROUP, 0, offset, *sizes, time, time, 0, 0, encoded, extra)


def _write_head(file: IO[bytes], rows: Sequence[Descriptor], identity: uuid.UUID, time: int) -> None:
    size = sum(row.padded for row in rows)
    free = _DESCRIPTORS - len(rows)
    table = _DESCRIPTORS * DESCRIPTOR.size
    header = Header(
        launch=_LAUNCH,
        magic=MAGIC,
        version=_VERSION,
        architecture=_architecture(),
        identity=identity.bytes,
        created=time,
        modified=time,
        free=free,
        total=_DESCRIPTORS,
        table=_TABLE,
        table_size=table,
        data=_TABLE + table,
        data_size=size,
    )
    file.seek(_TABLE)
    file.write(b"".join(DESCRIPTOR.pack(*row) for row in rows).ljust(table, b"\0"))
    file.seek(0)
    file.write(HEADER.pack(*header))
