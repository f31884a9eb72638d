"""Tells one squashfs from another without reading all of it."""

from __future__ import annotations

import hashlib

from sifkit.squash.layout import Source
from sifkit.squash.read import named, opened

_BEGINNING = 1 << 20


def fingerprint(source: Source) -> bytes:
    """A hash of the first MiB and of all tables, with owners and times as `source` says.

    The tables hold the compressed size of each block, so that other contents give other fingerprints but for a
    change behind the first MiB that alters no size at all. Raises `NotJoinable`, and `OSError`.
    """
    with opened(source) as image, named(source):
        used, tables = image.superblock.used, image.superblock.inode_table
        digest = hashlib.sha256(f"{source.all_root} {source.time} {used}\n".encode())
        digest.update(image.read(0, min(_BEGINNING, used)))
        for at in range(tables, used, _BEGINNING):
            digest.update(image.read(at, min(_BEGINNING, used - at)))
    return digest.digest()
