"""Makes small squashfs images without mksquashfs, whole and odd ones."""

from __future__ import annotations

import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from sifkit.squash.layout import (
    ABSENT,
    CHAR,
    FRAGMENT,
    GZIP,
    MAGIC,
    METADATA,
    NO_XATTRS,
    NONE,
    STORED_DATA,
    SUPERBLOCK,
    ZSTD,
    Attributes,
    Directory,
    File,
    Node,
    Special,
    Superblock,
    Symlink,
)
from sifkit.squash.write import tables_of

TIME = 1_600_000_000
USER = Attributes(0o755, 1000, 1000, TIME)


@dataclass(frozen=True)
class Same:
    """A hard link to another path of the image."""

    path: str


@dataclass(frozen=True)
class Device:
    """A character device."""

    number: int


Content: TypeAlias = "bytes | str | Same | Device | None"  # a file, a symlink, …, a directory


@dataclass(frozen=True)
class Form:
    """How an image is made."""

    compressor: int = ZSTD
    block_log: int = 12
    packed: bool = False  # tables are compressed
    attributes: Attributes = USER
    hole: int = 0  # bytes of data that no file uses
    tails: bool = True  # in fragments


def squashfs(contents: Mapping[str, Content], form: Form | None = None) -> bytes:
    """An image of these paths; directories above a path are made."""
    form = form or Form()
    maker = Maker(form)
    for path, content in contents.items():
        maker.add(path, content)
    return maker.image()


class Maker:
    """An image in the making; `root` is its tree so far."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.root = Directory(form.attributes, {})
        self.data = bytearray(form.hole)
        self.fragment_rows = bytearray()
        self.nodes: dict[str, Node] = {}

    def add(self, path: str, content: Content) -> None:
        directory, (*above, name) = self.root, path.strip("/").split("/")
        for part in above:
            child = directory.children.setdefault(part.encode(), Directory(self.form.attributes, {}))
            assert isinstance(child, Directory)
            directory = child
        node = self.nodes[content.path] if isinstance(content, Same) else self.node(content)
        self.nodes[path] = directory.children[name.encode("utf-8", "surrogateescape")] = node

    def node(self, content: bytes | str | Device | None) -> Node:
        match content:
            case None:
                return Directory(self.form.attributes, {})
            case str():
                return Symlink(self.form.attributes, content.encode())
            case Device():
                return Special(self.form.attributes, CHAR, content.number)
        return self.file(content)

    def file(self, content: bytes) -> File:
        size, start = 1 << self.form.block_log, SUPERBLOCK.size + len(self.data)
        full = len(content) // size * size if self.form.tails else len(content)
        words = [self.block(content[at : at + size]) for at in range(0, full, size)]
        fragment = NONE
        if tail := content[full:]:
            fragment = len(self.fragment_rows) // FRAGMENT.size
            where = SUPERBLOCK.size + len(self.data)
            self.fragment_rows += FRAGMENT.pack(where, self.block(tail, keep=True), 0)
        blocks = struct.pack(f"<{len(words)}I", *words)
        return File(self.form.attributes, start if any(words) else 0, len(content), 0, fragment, 0, blocks)

    def block(self, content: bytes, keep: bool = False) -> int:
        if not keep and not any(content):
            return 0
        packed = self.pack(content)
        stored = len(packed) >= len(content)
        self.data += content if stored else packed
        return len(content) | STORED_DATA if stored else len(packed)

    def pack(self, content: bytes) -> bytes:
        if self.form.compressor == GZIP:
            return zlib.compress(content, 9)
        return zstd.compress(content, 3)

    def metadata(self, table: bytes, positions: list[int], at: int) -> bytes:
        blocks = b""
        for start in range(0, len(table), METADATA):
            positions.append(at + len(blocks))
            cut = table[start : start + METADATA]
            packed = self.pack(cut) if self.form.packed else cut
            stored = len(packed) >= len(cut)
            blocks += struct.pack("<H", 0x8000 | len(cut) if stored else len(packed)) + (cut if stored else packed)
        return blocks

    def lookup(self, table: bytes, image: bytearray) -> int:
        positions: list[int] = []
        image += self.metadata(table, positions, len(image))
        start = len(image)
        image += struct.pack(f"<{len(positions)}Q", *positions)
        return start

    def image(self) -> bytes:
        tables = tables_of(self.root)
        image = bytearray(SUPERBLOCK.size) + self.data
        assert not self.form.packed or len(tables.inodes) <= METADATA, "references count stored blocks"
        inode_table = len(image)
        inodes = self.metadata(tables.inodes, [], inode_table)
        listings_at = inode_table + len(inodes)
        image += inodes + self.metadata(tables.listings, [], listings_at)
        fragments = self.lookup(bytes(self.fragment_rows), image)
        exports = self.lookup(tables.exports, image)
        ids = self.lookup(tables.ids, image)
        count, log = len(self.fragment_rows) // FRAGMENT.size, self.form.block_log
        head = (MAGIC, tables.count, TIME, 1 << log, count, self.form.compressor, log, NO_XATTRS, len(tables.ids) // 4)
        starts = (ids, ABSENT, inode_table, listings_at, fragments, exports)
        image[: SUPERBLOCK.size] = SUPERBLOCK.pack(*head, 4, 0, tables.root, len(image), *starts)
        return bytes(image) + bytes(-len(image) % 4096)


def changed(image: bytes, **values: int) -> bytes:
    """An image with some fields of its superblock changed."""
    block = Superblock._make(SUPERBLOCK.unpack_from(image))._replace(**values)
    return SUPERBLOCK.pack(*block) + image[SUPERBLOCK.size :]
