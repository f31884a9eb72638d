"""The files of an output directory: found without following links, each with its purpose and what is wrong with it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from sifkit.model import Strict
from sifkit.rundir.whole import fault_of
from sifkit.yamlfile import load_own

_TABLE = Path(__file__).parent.parent / "data" / "run_files.yaml"
MAX_DEPTH = 16  # directories in directories; a run has three
MAX_FILES = 100_000  # of one output directory; a run leaves some dozens


class Kind(str, Enum):
    """What a name in a directory stands for."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"  # a pipe, a socket, a device


@dataclass(frozen=True)
class FoundFile:
    """Something in the output directory. `name`: relative to it. `size`: bytes; of a link, those of its target."""

    name: str
    kind: Kind
    size: int
    fault: str | None = None
    modified: float = 0.0  # seconds since the epoch; of a file alone

    @property
    def purpose(self) -> str | None:
        """What it is for; None: no run writes such a thing."""
        return purpose_of(f"{self.name}/" if self.kind is Kind.DIRECTORY else self.name)

    @property
    def base(self) -> str:
        """The name without its directories."""
        return self.name.rpartition("/")[2]

    @property
    def top(self) -> str:
        """The first part of the name."""
        return self.name.partition("/")[0]


class FileRow(Strict):
    """A row of data/run_files.yaml."""

    name: str
    purpose: str
    source: str


class FileTable(Strict):
    """All rows, the specific before the general."""

    files: tuple[FileRow, ...]


@cache
def file_table() -> tuple[FileRow, ...]:
    """The rows of data/run_files.yaml."""
    return load_own(_TABLE, FileTable).files


def purpose_of(name: str) -> str | None:
    """What a file is for, by its name and the directories that it lies in; None: nothing of a run is called so."""
    *folders, base = name.split("/")
    for row in file_table():
        if base and not row.name.endswith("/") and fnmatchcase(base, row.name):
            return row.purpose
    for folder in reversed(folders):
        for row in file_table():
            if fnmatchcase(f"{folder}/", row.name):
                return row.purpose
    return None


def walk(directory: Path, below: str = "") -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything in `directory` with its relative name, sorted, directories before what is in them.

    Links are named and not followed. A subdirectory that cannot be read, or that a running job has just removed, is
    named alone.
    """
    try:
        with os.scandir(directory / below) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError:
        if not below:
            raise
        return
    for entry in entries:
        name = f"{below}/{entry.name}" if below else entry.name
        yield name, entry
        if entry.is_dir(follow_symlinks=False) and name.count("/") < MAX_DEPTH:
            yield from walk(directory, name)


def look_at(directory: Path, name: str, entry: os.DirEntry[str], *, check: bool = True) -> list[FoundFile]:
    """One entry, with `check` its content too if it is a file or a link to one. What cannot be read says so.

    Empty when it is gone by now: a running job removes old checkpoints.
    """
    try:
        return [_look_at(directory / name, name, entry, check=check)]
    except FileNotFoundError:
        return []


def _look_at(path: Path, name: str, entry: os.DirEntry[str], *, check: bool) -> FoundFile:
    try:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return _look_at_link(path, name)
        if stat.S_ISDIR(status.st_mode):
            return FoundFile(name, Kind.DIRECTORY, 0, None if os.access(path, os.R_OK | os.X_OK) else "cannot be read")
        if not stat.S_ISREG(status.st_mode):
            return FoundFile(name, Kind.OTHER, 0, "is no regular file")
        fault = _fault(path, name, status.st_size) if check else None
        return FoundFile(name, Kind.FILE, status.st_size, fault, status.st_mtime)
    except FileNotFoundError:
        raise
    except OSError as error:
        return FoundFile(name, Kind.FILE, 0, f"cannot be read: {error.strerror}")


def _look_at_link(path: Path, name: str) -> FoundFile:
    if not path.exists():
        return FoundFile(name, Kind.LINK, 0, f"is a link to {path.readlink()}, which is not there")
    if not path.is_file():
        return FoundFile(name, Kind.LINK, 0)
    size = path.stat().st_size
    return FoundFile(name, Kind.LINK, size, _fault(path, name, size))


def _fault(path: Path, name: str, size: int) -> str | None:
    """Files that no run writes may be empty."""
    return None if size == 0 and purpose_of(name) is None else fault_of(path)
