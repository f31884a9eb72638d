"""Joins squashfs images: their data is copied as it is, only the tables are new."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import IO

from sifkit.squash.copy import copy_bytes, write_all
from sifkit.squash.layout import (
    ABSENT,
    ALIGNMENT,
    ALWAYS_FRAGMENTS,
    COMPRESSORS,
    DUPLICATES,
    EXPORTABLE,
    FRAGMENT,
    MAGIC,
    NO_FRAGMENTS,
    NO_XATTRS,
    OPTIONS,
    STORED_BLOCKS,
    STORED_FRAGMENTS,
    STORED_IDS,
    STORED_INODES,
    SUPERBLOCK,
    Directory,
    NotJoinable,
    Source,
    Superblock,
)
from sifkit.squash.merge import merged
from sifkit.squash.read import Place, Squashfs, named, opened
from sifkit.squash.write import Tables, blocks_of, lookup_of, tables_of

_KEPT = STORED_BLOCKS | STORED_FRAGMENTS | NO_FRAGMENTS | ALWAYS_FRAGMENTS | DUPLICATES  # if all sources have them
_ALWAYS = STORED_INODES | STORED_IDS | EXPORTABLE | NO_XATTRS
_MOST_FRAGMENTS = 0xFFFFFFFF


@dataclass(frozen=True)
class _Part:
    """A source and where its data comes to lie."""

    image: Squashfs
    start: int
    fragments: int  # of the parts before it

    @property
    def place(self) -> Place:
        return Place(self.start - self.image.data[0], self.fragments)

    @property
    def end(self) -> int:
        return self.start + self.image.data[1] - self.image.data[0]


def join(sources: Sequence[Source], target: IO[bytes], *, time: int) -> int:
    """Write one squashfs of several at the target's position; returns the bytes written, a multiple of 4096.

    A later source wins; directories merge and keep the attributes of the first. Data blocks are copied as they are:
    those of a file that lost stay as dead bytes. Hard links stay hard links. Extended attributes are dropped. The
    same sources give the same bytes. Raises `NotJoinable` before anything is written, but for a source that becomes
    shorter meanwhile; `OSError` as reading and writing do.
    """
    if not sources:
        raise NotJoinable("there is nothing to join")
    with ExitStack() as stack:
        images = [stack.enter_context(opened(source)) for source in sources]
        _check_alike(images)
        options = next((image.options for image in images if image.options), b"")
        parts = _laid_out(images, SUPERBLOCK.size + len(options))
        tables = tables_of(merged([_tree(part) for part in parts]))
        superblock, tail = _tail(parts, tables, bool(options), time)
        head = SUPERBLOCK.pack(*superblock) + options
        _copy(head, parts, target)
    padding = -superblock.used % ALIGNMENT
    write_all(target, tail + bytes(padding))
    return superblock.used + padding


def _tree(part: _Part) -> Directory:
    with named(part.image.source):
        return part.image.tree(part.place)


def _check_alike(images: Sequence[Squashfs]) -> None:
    first = images[0]
    for image in images[1:]:
        for what, one, other in (
            ("compression", *(COMPRESSORS[i.superblock.compressor] for i in (first, image))),
            ("block size", *(i.superblock.block_size for i in (first, image))),
        ):
            if one != other:
                raise NotJoinable(f"{first.source.path} and {image.source.path} differ in {what}: {one}, {other}")


def _laid_out(images: Sequence[Squashfs], position: int) -> list[_Part]:
    """Data moves by multiples of 4096, so that filesystems which share extents can share them."""
    parts, fragments = [], 0
    for image in images:
        position += (image.data[0] - position) % ALIGNMENT
        part = _Part(image, position, fragments)
        parts.append(part)
        position, fragments = part.end, fragments + image.superblock.fragments
    if fragments > _MOST_FRAGMENTS - 1:
        raise NotJoinable("the sources have too many fragments")
    return parts


def _fragments(parts: Sequence[_Part]) -> bytes:
    found = []
    for part in parts:
        with named(part.image.source):
            rows = FRAGMENT.iter_unpack(part.image.fragments())
            found += [FRAGMENT.pack(start + part.place.shift, size, 0) for start, size, _ in rows]
    return b"".join(found)


def _tail(parts: Sequence[_Part], tables: Tables, has_options: bool, time: int) -> tuple[Superblock, bytes]:
    """The superblock, and all that follows the data."""
    first = parts[0].image.superblock
    inodes, listings, fragments = blocks_of(tables.inodes), blocks_of(tables.listings), _fragments(parts)
    inode_table = parts[-1].end
    directory_table = inode_table + len(inodes)
    end = directory_table + len(listings)
    lookups, starts = [inodes, listings], []
    for table in (fragments, tables.exports, tables.ids):
        lookup, start = lookup_of(table, end)
        lookups.append(lookup)
        starts.append(start)
        end += len(lookup)
    flags = reduce(int.__and__, (part.image.superblock.flags for part in parts), _KEPT) | _ALWAYS
    superblock = Superblock(
        magic=MAGIC,
        inodes=tables.count,
        time=time,
        block_size=first.block_size,
        fragments=len(fragments) // FRAGMENT.size,
        compressor=first.compressor,
        block_log=first.block_log,
        flags=flags | (OPTIONS if has_options else 0),
        ids=len(tables.ids) // 4,
        major=4,
        minor=0,
        root=tables.root,
        used=end,
        id_table=starts[2],
        xattr_table=ABSENT,
        inode_table=inode_table,
        directory_table=directory_table,
        fragment_table=starts[0],
        export_table=starts[1],
    )
    return superblock, b"".join(lookups)


def _copy(head: bytes, parts: Sequence[_Part], target: IO[bytes]) -> None:
    write_all(target, head)
    end = len(head)
    for part in parts:
        write_all(target, bytes(part.start - end))
        start, stop = part.image.data
        try:
            copy_bytes(part.image.descriptor, part.image.source.offset + start, stop - start, target)
        except EOFError:
            raise NotJoinable(f"{part.image.source.path}: it became shorter while it was read") from None
        end = part.end
