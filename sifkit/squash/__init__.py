"""Squashfs images joined without compressing again: data is copied as it is, tables are written anew."""

from __future__ import annotations

import os
from dataclasses import dataclass

from sifkit.squash.fingerprint import fingerprint
from sifkit.squash.join import join
from sifkit.squash.layout import KINDS, File, Node, NotJoinable, Source, Symlink, kind_of, walk
from sifkit.squash.read import named, opened

__all__ = ["Entry", "NotJoinable", "Source", "fingerprint", "join", "listing", "read_file"]


@dataclass(frozen=True)
class Entry:
    """What is at a path. `kind`: file, dir, symlink, char, block, fifo or socket; `link`: a symlink's target."""

    kind: str
    mode: int  # permission bits
    uid: int
    gid: int
    size: int  # bytes of a file, of a symlink's target; else 0
    mtime: int
    link: str | None


def listing(source: Source) -> dict[str, Entry]:
    """All paths of a squashfs, "/" first, each directory's names in order; owners and times as `source` says.

    Raises `NotJoinable`, or `OSError` for what cannot be opened.
    """
    with opened(source) as image, named(source):
        root = image.tree()
    return {path: _entry(node) for path, node in walk(root)}


def _entry(node: Node) -> Entry:
    size = node.size if isinstance(node, File) else 0
    link = None
    if isinstance(node, Symlink):
        size, link = len(node.target), os.fsdecode(node.target)
    return Entry(KINDS[kind_of(node)], *node.attributes[:3], size, node.attributes.mtime, link)


def read_file(source: Source, path: str) -> bytes:
    """The bytes of a regular file; links are not followed.

    Raises `FileNotFoundError` where no file is, `NotJoinable` for a damaged squashfs and for files above 1 GiB.
    """
    with opened(source) as image, named(source):
        return image.content(image.file(path))
