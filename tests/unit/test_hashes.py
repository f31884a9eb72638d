"""Hashes of files, whole and in part."""

from __future__ import annotations

import hashlib
import os
from io import FileIO
from pathlib import Path

import pytest

from sifkit.hashes import feed, sha256_of

DATA = os.urandom(3 * (1 << 18) + 5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    return path


def test_a_whole_file(path: Path) -> None:
    assert sha256_of(path) == hashlib.sha256(DATA).hexdigest()
    path.write_bytes(b"")
    assert sha256_of(path) == hashlib.sha256().hexdigest()
    path.write_bytes(b"abc")
    assert sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("size", [0, 1, 1 << 18, len(DATA) - 7])
def test_the_next_bytes_of_a_file(path: Path, size: int) -> None:
    with FileIO(path) as file:
        file.seek(7)
        assert (
            feed(hashlib.sha256(b"before"), file, size).digest()
            == hashlib.sha256(b"before" + DATA[7 : 7 + size]).digest()
        )
        assert file.tell() == 7 + size


def test_a_file_with_fewer_bytes(path: Path) -> None:
    with FileIO(path) as file, pytest.raises(EOFError):
        feed(hashlib.sha256(), file, len(DATA) + 1)
