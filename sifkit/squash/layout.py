"""Squashfs 4.0 on disk: structures, numbers, and what a tree is made of.

Sources: fs/squashfs/squashfs_fs.h and Documentation/filesystems/squashfs.rst of Linux; the checks that the kernel
makes when it mounts (fs/squashfs/{super,id,export,fragment}.c); tried with squashfs-tools 4.7.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

MAGIC = 0x73717368
SUPERBLOCK = struct.Struct("<IIIIIHHHHHHQQQQQQQQ")  # 96 bytes
METADATA = 8192  # bytes of tables in one metadata block
STORED = 1 << 15  # in a metadata block's header: it is not compressed
STORED_DATA = 1 << 24  # in a data block's size: it is not compressed
NONE = 0xFFFFFFFF  # no fragment, no xattrs
ABSENT = 0xFFFFFFFFFFFFFFFF  # a table that is not there
ALIGNMENT = 4096
EMPTY_LISTING = 3  # what a directory's size counts for "." and ".."
RUN = 256  # entries behind one header of a directory
LONGEST_NAME = 255

GZIP, ZSTD = 1, 6
COMPRESSORS = {GZIP: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", ZSTD: "zstd"}

STORED_INODES, STORED_BLOCKS, STORED_FRAGMENTS = 0x1, 0x2, 0x8
NO_FRAGMENTS, ALWAYS_FRAGMENTS, DUPLICATES, EXPORTABLE = 0x10, 0x20, 0x40, 0x80
NO_XATTRS, OPTIONS, STORED_IDS = 0x200, 0x400, 0x800

DIRECTORY, FILE, SYMLINK, BLOCK, CHAR, FIFO, SOCKET = range(1, 8)
EXTENDED = 7  # an extended inode's type is the basic one and this
KINDS = {
    DIRECTORY: "dir",
    FILE: "file",
    SYMLINK: "symlink",
    BLOCK: "block",
    CHAR: "char",
    FIFO: "fifo",
    SOCKET: "socket",
}

INODE = struct.Struct("<HHHHII")  # type, mode, uid, gid, mtime, number
BASIC_DIRECTORY = struct.Struct("<IIHHI")  # block, nlink, size, offset, parent
LONG_DIRECTORY = struct.Struct("<IIIIHHI")  # nlink, size, block, parent, indexes, offset, xattr
BASIC_FILE = struct.Struct("<IIII")  # start, fragment, offset, size
LONG_FILE = struct.Struct("<QQQIIII")  # start, size, sparse, nlink, fragment, offset, xattr
TWO = struct.Struct("<II")  # a symlink's nlink and size, a device's nlink and number
ONE = struct.Struct("<I")  # nlink of a fifo or a socket
RUN_HEADER = struct.Struct("<III")  # entries less 1, block of their inodes, base of their numbers
ENTRY = struct.Struct("<HhHH")  # offset of the inode, number less base, type, length of the name less 1
INDEX = struct.Struct("<III")  # bytes into the listing, metadata block, length of the name less 1
FRAGMENT = struct.Struct("<QII")  # start, size, unused


class NotJoinable(Exception):
    """Why a squashfs cannot be read or joined: damaged, another compression or block size, too much of something."""


@dataclass(frozen=True)
class Source:
    """A squashfs within a file; `all_root` and `time` replace owners and modification times when it is joined."""

    path: Path
    offset: int = 0
    all_root: bool = False
    time: int | None = None  # seconds since 1970


class Superblock(NamedTuple):
    """The first 96 bytes; positions count from them."""

    magic: int
    inodes: int
    time: int
    block_size: int
    fragments: int
    compressor: int
    block_log: int
    flags: int
    ids: int
    major: int
    minor: int
    root: int
    used: int
    id_table: int
    xattr_table: int
    inode_table: int
    directory_table: int
    fragment_table: int
    export_table: int


class Attributes(NamedTuple):
    """What every inode has; `mode` is permission bits only."""

    mode: int
    uid: int
    gid: int
    mtime: int


@dataclass(frozen=True, eq=False, slots=True)
class Directory:
    """A directory and what is in it."""

    attributes: Attributes
    children: dict[bytes, Node]


@dataclass(frozen=True, eq=False, slots=True)
class File:
    """A regular file: where its blocks are. The same object under two names is a hard link."""

    attributes: Attributes
    start: int
    size: int
    sparse: int  # bytes that are holes
    fragment: int  # number of the fragment block with its tail, or NONE
    offset: int  # of the tail in that block
    blocks: bytes  # sizes on disk, 4 bytes each


@dataclass(frozen=True, eq=False, slots=True)
class Symlink:
    """A symbolic link."""

    attributes: Attributes
    target: bytes


@dataclass(frozen=True, eq=False, slots=True)
class Special:
    """A device, FIFO or socket; `device` is its number as Linux packs it."""

    attributes: Attributes
    kind: int
    device: int


Node: TypeAlias = Directory | File | Symlink | Special


def kind_of(node: Node) -> int:
    """The type that a basic inode of it has."""
    if isinstance(node, Directory):
        return DIRECTORY
    if isinstance(node, File):
        return FILE
    return SYMLINK if isinstance(node, Symlink) else node.kind


def walk(root: Directory) -> Iterator[tuple[str, Node]]:
    """Every path of a tree and what is there: "/" first, each directory's names in order."""
    yield "/", root
    waiting: list[tuple[str, Directory]] = [("/", root)]
    while waiting:
        above, directory = waiting.pop()
        for name, node in sorted(directory.children.items(), key=lambda item: item[0]):
            path = above + os.fsdecode(name)
            yield path, node
            if isinstance(node, Directory):
                waiting.append((path + "/", node))
