"""Files kept in the cache, each with its sha256 beside it: one that was damaged is noticed, and made again."""

from __future__ import annotations

from pathlib import Path

from sifkit.files import write_whole
from sifkit.hashes import sha256_of
from sifkit.store import flush


def sum_of(path: Path) -> Path:
    """Where the sha256 of a kept file stands."""
    return path.with_name(f"{path.name}.sha256")


def keep(partial: Path, target: Path) -> None:
    """Give a finished file its name in the cache. Killed in between, it leaves a sum without its file: made again."""
    flush(partial)
    write_whole(sum_of(target), f"{sha256_of(partial)}\n")
    partial.replace(target)


def is_whole(path: Path) -> bool:
    """Whether a file is there with the bytes that were kept; reads all of them, about a second for each GB."""
    try:
        return sum_of(path).read_text(encoding="ascii", errors="replace").strip() == sha256_of(path)
    except FileNotFoundError:
        return False


def drop(path: Path) -> bool:
    """Remove a kept file and its sum; returns whether the file was there."""
    was_there = path.exists()
    path.unlink(missing_ok=True)
    sum_of(path).unlink(missing_ok=True)
    return was_there
