"""Reads a squashfs: its tables as a tree, and single files. Damage is named, never followed."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from sifkit.squash.layout import (
    ABSENT,
    BASIC_DIRECTORY,
    BASIC_FILE,
    BLOCK,
    CHAR,
    COMPRESSORS,
    DIRECTORY,
    EMPTY_LISTING,
    ENTRY,
    EXTENDED,
    FIFO,
    FILE,
    FRAGMENT,
    GZIP,
    INODE,
    LONG_DIRECTORY,
    LONG_FILE,
    LONGEST_NAME,
    MAGIC,
    METADATA,
    NONE,
    ONE,
    OPTIONS,
    RUN,
    RUN_HEADER,
    SOCKET,
    STORED,
    STORED_DATA,
    SUPERBLOCK,
    SYMLINK,
    TWO,
    ZSTD,
    Attributes,
    Directory,
    File,
    Node,
    NotJoinable,
    Source,
    Special,
    Superblock,
    Symlink,
    kind_of,
)

_MOST_METADATA = 1 << 28  # bytes of a table; 60 000 inodes take 3 MB
_DEEPEST = 2048  # directories in each other: a longer path cannot be opened
_LARGEST = 1 << 30  # bytes of a file that is read whole
_LONGEST_TARGET = 65535


class Place(NamedTuple):
    """How far a source moves when it is joined: bytes of data and fragment blocks before it."""

    shift: int = 0
    fragments: int = 0


_HERE = Place()


class _Table(NamedTuple):
    data: bytes
    blocks: dict[int, int]  # where a metadata block lies on disk (from the table's start): where it is in data


class Squashfs:
    """An open squashfs: superblock, compressor options and the region of data are read and checked."""

    def __init__(self, source: Source, descriptor: int) -> None:
        self.source = source
        self.descriptor = descriptor
        self._length = os.fstat(descriptor).st_size - source.offset
        self.superblock = self._superblock()
        self._inflate = _inflater(self.superblock.compressor)
        self.options = self._options()
        self.data = (SUPERBLOCK.size + len(self.options), self.superblock.inode_table)
        self._check()

    def tree(self, place: Place = _HERE) -> Directory:
        """The whole tree, with positions as they will be at `place`."""
        return _TreeReader(self, place).read()

    def file(self, path: str) -> File:
        """The regular file at a path; only the directories on the way are read, and links are not followed.

        Raises `FileNotFoundError`.
        """
        node = _TreeReader(self, _HERE).find([part for part in os.fsencode(path).split(b"/") if part])
        if not isinstance(node, File):
            raise FileNotFoundError(f"{path}: no such file in the squashfs")
        return node

    def fragments(self) -> bytes:
        """The fragment table, 16 bytes each, checked."""
        table = self.lookup(self.superblock.fragment_table, self.superblock.fragments, FRAGMENT.size)
        for start, size, _ in FRAGMENT.iter_unpack(table):
            self.check_blocks(start, size & ~STORED_DATA, 0 < size & ~STORED_DATA <= self.superblock.block_size)
        return table

    def check_blocks(self, start: int, size: int, sizes_fit: bool) -> None:
        """Blocks lie within the region of data and are no larger than a block; else raises `NotJoinable`."""
        if not sizes_fit or (size and not self.data[0] <= start <= self.data[1] - size):
            raise NotJoinable("a file's blocks lie outside the data")

    def content(self, node: File) -> bytes:
        """The bytes of a file that is where `file` found it. Raises `NotJoinable` for more than 1 GiB."""
        if node.size > _LARGEST:
            raise NotJoinable("a file is too large to be read whole")
        size, fragments = self.superblock.block_size, self.fragments()
        parts, at, left = [], node.start, node.size
        for (word,) in ONE.iter_unpack(node.blocks):
            parts.append(self._block(at, word, min(size, left)))
            at, left = at + (word & ~STORED_DATA), left - min(size, left)
        if node.fragment != NONE:
            start, word, _ = FRAGMENT.unpack_from(fragments, node.fragment * FRAGMENT.size)
            parts.append(self._block(start, word, size, short=True)[node.offset : node.offset + left])
        whole = b"".join(parts)
        if len(whole) != node.size:
            raise NotJoinable("a file's blocks are shorter than the file")
        return whole

    def lookup(self, start: int, count: int, width: int) -> bytes:
        """A table whose metadata blocks are listed at `start`."""
        size = count * width
        if not size:
            return b""
        if size > _MOST_METADATA:
            raise NotJoinable("a table is too large")
        positions = struct.unpack(f"<{-(-size // METADATA)}Q", self.read(start, -(-size // METADATA) * 8))
        table = b"".join(self._metadata(position)[0] for position in positions)
        if len(table) != size:
            raise NotJoinable("a table is not as long as its superblock says")
        return table

    def table(self, start: int, end: int) -> _Table:
        """The metadata blocks between two positions, in a row."""
        data, blocks, at = bytearray(), dict[int, int](), start
        while at < end:
            blocks[at - start] = len(data)
            block, at = self._metadata(at)
            data += block
            if len(data) > _MOST_METADATA:
                raise NotJoinable("a table is too large")
        if at != end:
            raise NotJoinable("a table runs into the next one")
        return _Table(bytes(data), blocks)

    def directories_end(self) -> int:
        """Where the table of directories ends: where the first block of the next table begins."""
        block = self.superblock
        if block.fragments:
            return self._word(block.fragment_table)
        return self._word(block.id_table if block.export_table == ABSENT else block.export_table)

    def read(self, position: int, size: int) -> bytes:
        """Bytes of the filesystem; raises `NotJoinable` beyond its end."""
        if position < 0 or position + size > self._length:
            raise NotJoinable("it is cut off, or points behind its end")
        found = os.pread(self.descriptor, size, self.source.offset + position)
        if len(found) != size:
            raise NotJoinable("it became shorter while it was read")
        return found

    def _word(self, position: int) -> int:
        return int.from_bytes(self.read(position, 8), "little")

    def _superblock(self) -> Superblock:
        if self._length < SUPERBLOCK.size:
            raise NotJoinable("it is cut off within its superblock")
        block = Superblock._make(SUPERBLOCK.unpack(self.read(0, SUPERBLOCK.size)))
        if block.magic != MAGIC:
            raise NotJoinable("it does not begin as a squashfs does")
        if (block.major, block.minor) != (4, 0):
            raise NotJoinable(f"it is squashfs {block.major}.{block.minor}, not 4.0")
        return block

    def _options(self) -> bytes:
        if not self.superblock.flags & OPTIONS:
            return b""
        header = int.from_bytes(self.read(SUPERBLOCK.size, 2), "little")
        return self.read(SUPERBLOCK.size, 2 + (header & ~STORED))

    def _check(self) -> None:
        block = self.superblock
        if block.block_size != 1 << block.block_log or not 12 <= block.block_log <= 20:
            raise NotJoinable(f"its block size is {block.block_size}")
        if block.used > self._length:
            raise NotJoinable(f"it is cut off: {self._length} bytes of {block.used}")
        if block.fragments * FRAGMENT.size > _MOST_METADATA:
            raise NotJoinable("a table is too large")
        if not self.data[0] <= block.inode_table <= block.directory_table <= block.used:
            raise NotJoinable("its superblock is damaged")

    def _metadata(self, at: int) -> tuple[bytes, int]:
        header = int.from_bytes(self.read(at, 2), "little")
        size = header & ~STORED
        block = self.read(at + 2, size)
        if not header & STORED:
            block = self._inflate(block, METADATA)
        if not 0 < len(block) <= METADATA:
            raise NotJoinable("a metadata block is damaged")
        return block, at + 2 + size

    def _block(self, at: int, word: int, size: int, short: bool = False) -> bytes:
        if not word:
            return bytes(size)
        block = self.read(at, word & ~STORED_DATA)
        if not word & STORED_DATA:
            block = self._inflate(block, self.superblock.block_size)
        if len(block) != size and not short:
            raise NotJoinable("a block is not as long as its file says")
        return block


class _TreeReader:
    """Reads the inodes and listings of one squashfs; knows which it has seen."""

    def __init__(self, image: Squashfs, place: Place) -> None:
        block = image.superblock
        self._image = image
        self._place = place
        self._inodes = image.table(block.inode_table, block.directory_table)
        self._listings = image.table(block.directory_table, image.directories_end())
        self._ids = [number for (number,) in ONE.iter_unpack(image.lookup(block.id_table, block.ids, 4))]
        self._seen: dict[int, Node] = {}  # by reference, which is where an inode lies
        self._open: dict[Directory, tuple[int, int, int]] = {}  # whose listing is still to be read: at, size, depth
        self._listed = 0

    def read(self) -> Directory:
        root = self._root()
        while self._open:
            directory, where = self._open.popitem()
            self._fill(directory, *where)
        return root

    def find(self, parts: list[bytes]) -> Node | None:
        node: Node | None = self._root()
        for part in parts:
            if not isinstance(node, Directory):
                return None
            if where := self._open.pop(node, None):
                self._fill(node, *where)
            node = node.children.get(part)
        return node

    def _root(self) -> Directory:
        root = self._node(self._image.superblock.root, 0)
        if not isinstance(root, Directory):
            raise NotJoinable("its root is no directory")
        return root

    def _fill(self, directory: Directory, at: int, size: int, depth: int) -> None:
        self._listed += size
        if self._listed > len(self._listings.data) or depth > _DEEPEST:
            raise NotJoinable("its directories lie within each other")
        for name, reference, kind in self._entries(at, at + size):
            if name in directory.children:
                raise NotJoinable("a directory has one name twice")
            node = self._node(reference, depth + 1)
            if kind_of(node) != kind:
                raise NotJoinable("a directory and an inode disagree")
            directory.children[name] = node

    def _entries(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        data = self._listings.data
        while at < end:
            more, block, _ = RUN_HEADER.unpack_from(data, at)
            at += RUN_HEADER.size
            if more >= RUN:
                raise NotJoinable("a directory is damaged")
            for _ in range(more + 1):
                offset, _, kind, length = ENTRY.unpack_from(data, at)
                at += ENTRY.size
                name = data[at : at + length + 1]
                at += length + 1
                _check_name(name, length + 1)
                yield name, block << 16 | offset, kind
        if at != end:
            raise NotJoinable("a directory is damaged")

    def _node(self, reference: int, depth: int) -> Node:
        seen = self._seen.get(reference)
        if seen is not None:
            if isinstance(seen, Directory):
                raise NotJoinable("a directory is in two places")
            return seen
        at = self._inodes.blocks[reference >> 16] + (reference & 0xFFFF)
        kind, mode, uid, gid, mtime, _ = INODE.unpack_from(self._inodes.data, at)
        attributes = self._attributes(mode, uid, gid, mtime)
        node = self._body(kind, at + INODE.size, attributes, depth)
        self._seen[reference] = node
        return node

    def _attributes(self, mode: int, uid: int, gid: int, mtime: int) -> Attributes:
        source = self._image.source
        owner, group = (0, 0) if source.all_root else (self._ids[uid], self._ids[gid])
        return Attributes(mode & 0o7777, owner, group, mtime if source.time is None else source.time)

    def _body(self, kind: int, at: int, attributes: Attributes, depth: int) -> Node:
        basic = kind - EXTENDED if kind > EXTENDED else kind
        data = self._inodes.data
        if basic == FILE:
            return self._file(attributes, at, extended=kind != basic)
        if basic == DIRECTORY:
            return self._directory(attributes, at, depth, extended=kind != basic)
        if basic == SYMLINK:
            return Symlink(attributes, self._target(at))
        if basic in (BLOCK, CHAR):
            return Special(attributes, basic, TWO.unpack_from(data, at)[1])
        if basic in (FIFO, SOCKET):
            ONE.unpack_from(data, at)
            return Special(attributes, basic, 0)
        raise NotJoinable("an inode is of no known type")

    def _target(self, at: int) -> bytes:
        _, size = TWO.unpack_from(self._inodes.data, at)
        target = self._inodes.data[at + TWO.size : at + TWO.size + size]
        if len(target) != size or not 0 < size <= _LONGEST_TARGET or b"\0" in target:
            raise NotJoinable("a symbolic link is damaged")
        return target

    def _directory(self, attributes: Attributes, at: int, depth: int, *, extended: bool) -> Directory:
        if extended:
            _, size, block, _, _, offset, _ = LONG_DIRECTORY.unpack_from(self._inodes.data, at)
        else:
            block, _, size, offset, _ = BASIC_DIRECTORY.unpack_from(self._inodes.data, at)
        directory = Directory(attributes, {})
        if size > EMPTY_LISTING:
            self._open[directory] = self._listings.blocks[block] + offset, size - EMPTY_LISTING, depth
        return directory

    def _file(self, attributes: Attributes, at: int, *, extended: bool) -> File:
        data, sparse = self._inodes.data, 0
        if extended:
            start, size, sparse, _, fragment, offset, _ = LONG_FILE.unpack_from(data, at)
            at += LONG_FILE.size
        else:
            start, fragment, offset, size = BASIC_FILE.unpack_from(data, at)
            at += BASIC_FILE.size
        full, tail = divmod(size, self._image.superblock.block_size)
        count = full + (fragment == NONE and tail > 0)
        blocks = data[at : at + 4 * count]
        if len(blocks) != 4 * count:
            raise NotJoinable("a file's list of blocks is cut off")
        start = self._placed(start, blocks)
        if fragment == NONE:
            return File(attributes, start, size, sparse, NONE, 0, blocks)
        self._check_tail(fragment, offset + tail)
        return File(attributes, start, size, sparse, fragment + self._place.fragments, offset, blocks)

    def _placed(self, start: int, blocks: bytes) -> int:
        """Where a file's blocks will begin; 0 for one that has none on disk."""
        sizes = [word & ~STORED_DATA for (word,) in ONE.iter_unpack(blocks)]
        total = sum(sizes)
        self._image.check_blocks(start, total, max(sizes, default=0) <= self._image.superblock.block_size)
        return start + self._place.shift if total else 0

    def _check_tail(self, fragment: int, end: int) -> None:
        block = self._image.superblock
        if fragment >= block.fragments or end > block.block_size:
            raise NotJoinable("a file's tail lies in no fragment")


def _check_name(name: bytes, length: int) -> None:
    if len(name) != length or length > LONGEST_NAME or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise NotJoinable("a name in a directory is damaged")


def _inflater(compressor: int) -> Callable[[bytes, int], bytes]:
    if compressor == GZIP:
        return _gunzip
    if compressor == ZSTD:
        return _unzstd
    name = COMPRESSORS.get(compressor, f"number {compressor}")
    raise NotJoinable(f"it is compressed with {name}; only zstd and gzip can be joined")


def _gunzip(data: bytes, most: int) -> bytes:
    stream = zlib.decompressobj()
    block = stream.decompress(data, most + 1)
    if not stream.eof or len(block) > most:
        raise NotJoinable("a compressed block is damaged")
    return block


def _unzstd(data: bytes, most: int) -> bytes:
    stream = zstd.ZstdDecompressor()
    block: bytes = stream.decompress(data, most + 1)
    if not stream.eof or len(block) > most:
        raise NotJoinable("a compressed block is damaged")
    return block


@contextmanager
def opened(source: Source) -> Iterator[Squashfs]:
    """A squashfs to read from. Raises `NotJoinable`, naming the file; `OSError` for what cannot be opened.

    Never waits for a FIFO.
    """
    descriptor = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with named(source):
            image = Squashfs(source, descriptor)
        yield image
    finally:
        os.close(descriptor)


@contextmanager
def named(source: Source) -> Iterator[None]:
    """What is wrong with a source, said with its name."""
    try:
        yield
    except NotJoinable as error:
        raise NotJoinable(f"{source.path}: {error}") from None
    except (struct.error, zlib.error, zstd.ZstdError, IndexError, KeyError) as error:
        raise NotJoinable(f"{source.path}: its tables are damaged ({error})") from error
