"""Two images compared: which objects of their SIF files differ, which files, and how. Reads; starts nothing.

What is stored alike is alike: blocks are compared as they lie on disk, and unpacked only where that does not decide.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from sifkit.hashes import sha256_of
from sifkit.sif import PARTITION, SIGNATURE, SifObject, feed_bytes, read_objects
from sifkit.sifwrite import partition
from sifkit.squash import Entry, Source, listing
from sifkit.squash.layout import FRAGMENT, NONE, ONE, STORED_DATA, File, walk
from sifkit.squash.read import Squashfs, opened

_LARGEST = 1 << 30  # bytes of a file that is unpacked whole
_KINDS = {0x4001: "definition", 0x4006: "JSON object", 0x4007: "object"}


@dataclass(frozen=True)
class Difference:
    """A path in the images, or an object of their files, and how the second is other than the first."""

    path: str
    how: str


@dataclass(frozen=True)
class Comparison:
    """Two image files. `signed`: the first carries signatures, which were left out of the comparison."""

    sha256: tuple[str, str]
    signed: bool
    objects: tuple[Difference, ...]
    files: tuple[Difference, ...]  # by path
    compared: int  # files, directories and links of the first

    @property
    def identical(self) -> bool:
        """One sha256, or for a signed image: everything but its signatures."""
        return self.sha256[0] == self.sha256[1] or (self.signed and not self.objects and not self.files)

    @property
    def first(self) -> Difference | None:
        """The first file that differs, else the first object."""
        return next(iter((*self.files, *self.objects)), None)


def compare(first: Path, second: Path) -> Comparison:
    """Compare two SIF files; what of the partitions differs is only looked for where they do.

    Raises `NotSif` or `NotJoinable` for what is no whole image, `OSError` for what cannot be opened.
    """
    sums = (sha256_of(first), sha256_of(second))
    signed = any(found.kind == SIGNATURE for found in read_objects(first))
    if sums[0] == sums[1]:
        return Comparison(sums, signed, (), (), 0)
    objects = compare_objects(first, second)
    partitions = partition(first), partition(second)
    if not any(one.path == "file system" for one in objects):
        return Comparison(sums, signed, objects, (), 0)
    files, compared = compare_files(*partitions)
    return Comparison(sums, signed, objects, files, compared)


# ---------------------------------------------------------------------------------------------- objects


def compare_objects(first: Path, second: Path) -> tuple[Difference, ...]:
    """The objects of two SIF files without their signatures, by name."""
    ours, theirs = _objects(first), _objects(second)
    found = []
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in theirs:
            found.append(Difference(name, "only in the first"))
        elif name not in ours:
            found.append(Difference(name, "only in the second"))
        elif _sum(first, ours[name]) != _sum(second, theirs[name]):
            found.append(Difference(name, "contents"))
    if not found and list(ours) != list(theirs):
        found.append(Difference("order of the objects", "is another"))
    return tuple(found)


def _objects(path: Path) -> dict[str, SifObject]:
    objects = [found for found in read_objects(path) if found.kind != SIGNATURE]
    named: dict[str, SifObject] = {}
    for found in objects:
        name = "file system" if found.kind == PARTITION else found.name or _KINDS.get(found.kind, f"{found.kind:#x}")
        named[name if name not in named else f"{name} {len(named)}"] = found
    return named


def _sum(path: Path, found: SifObject) -> str:
    with FileIO(path) as file:
        file.seek(found.offset)
        return feed_bytes(hashlib.sha256(), file, found.size).hexdigest()


# ---------------------------------------------------------------------------------------------- files


def compare_files(first: Source, second: Source) -> tuple[tuple[Difference, ...], int]:
    """Every path of two squashfs, in order, and how many the first has. Raises `NotJoinable`."""
    ours, theirs = listing(first), listing(second)
    with opened(first) as one, opened(second) as other:
        contents = (_Contents(one), _Contents(other))
        found = []
        for path in sorted({*ours, *theirs}):
            how = _how(path, ours.get(path), theirs.get(path), contents)
            if how:
                found.append(Difference(path, how))
    return tuple(found), len(ours)


def _how(path: str, ours: Entry | None, theirs: Entry | None, contents: tuple[_Contents, _Contents]) -> str | None:
    if ours is None or theirs is None:
        return "only in the second" if ours is None else "only in the first"
    if ours.kind != theirs.kind:
        return f"kind: {ours.kind}, {theirs.kind}"
    if ours.link != theirs.link:
        return f"link to: {ours.link}, {theirs.link}"
    if ours.size != theirs.size:
        return f"contents: {ours.size} bytes, {theirs.size} bytes"
    if ours.kind == "file" and (how := contents[0].differ(contents[1], path)):
        return how
    if ours.mode != theirs.mode:
        return f"mode: {ours.mode:04o}, {theirs.mode:04o}"
    if (ours.uid, ours.gid) != (theirs.uid, theirs.gid):
        return f"owner: {ours.uid}:{ours.gid}, {theirs.uid}:{theirs.gid}"
    return f"time: {ours.mtime}, {theirs.mtime}" if ours.mtime != theirs.mtime else None


class _Contents:
    """The files of an open squashfs, as they are stored and unpacked."""

    def __init__(self, image: Squashfs) -> None:
        self._image = image
        self._files = {path: node for path, node in walk(image.tree()) if isinstance(node, File)}
        self._fragments = list(FRAGMENT.iter_unpack(image.fragments()))
        self._fragment_sums: dict[int, bytes] = {}

    def differ(self, other: _Contents, path: str) -> str | None:
        """How a file of one size in both is not the same; None where it holds the same bytes."""
        if self._stored(path) == other._stored(path):
            return None
        if self._files[path].size > _LARGEST:
            return "stored otherwise, and too large to be unpacked and compared"
        same = self._image.content(self._files[path]) == other._image.content(other._files[path])
        return None if same else "contents"

    def _stored(self, path: str) -> tuple[object, ...]:
        node = self._files[path]
        size = sum(word & ~STORED_DATA for (word,) in ONE.iter_unpack(node.blocks))
        blocks = hashlib.sha256(self._image.read(node.start, size)).digest() if size else b""
        offset = node.offset if node.fragment != NONE else 0
        packed = (self._image.superblock.compressor, self._image.superblock.block_size)
        return (packed, node.size, node.blocks, blocks, self._fragment(node.fragment), offset)

    def _fragment(self, number: int) -> bytes:
        if number == NONE:
            return b""
        if number not in self._fragment_sums:
            start, word, _ = self._fragments[number]
            block = self._image.read(start, word & ~STORED_DATA)
            self._fragment_sums[number] = hashlib.sha256(block + word.to_bytes(4, "little")).digest()
        return self._fragment_sums[number]
