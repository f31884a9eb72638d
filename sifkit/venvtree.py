"""A virtual environment on disk: whose its files are, whether they are as recorded, and a tree of links for each owner.

Paths are text here: there are 60,000 of them, and `Path` takes six seconds for what `os` does in one.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

from sifkit.bytecode import site_packages
from sifkit.deffile import VENV
from sifkit.hashes import feed
from sifkit.layers import TIME, Owned, bytecode_of, owned, package_of, shared, with_time_of_source


class Tree:
    """A virtual environment on disk, and whose its files are."""

    def __init__(self, venv: Path, python: str) -> None:
        self._venv = str(venv)
        self._python = python
        infos = sorted((venv / site_packages(python)).glob("*.dist-info/RECORD"))
        records = {package_of(info.parent.name): info.read_text(encoding="utf-8") for info in infos}
        self._owned = {name: owned(record, python) for name, record in records.items()}
        self._shared = shared(self._owned)
        self._recorded = {
            file.path for each in self._owned.values() for file in each if file.digest
        }  # not what pip compiled

    def package(self, name: str) -> tuple[str, ...] | None:
        """The paths of a package with its bytecode; None where it is absent, or another has overwritten a file."""
        if any(file.path in self._shared and not self._is_as_recorded(file) for file in self._owned.get(name, ())):
            return None
        return self._with_bytecode(self._owned.get(name, ())) or None

    def skeleton(self, locked: frozenset[str]) -> tuple[str, ...]:
        """All paths but those of locked packages: the environment as `python -m venv` makes it."""
        theirs = {path for name in self._owned if name in locked for path in self._with_bytecode(self._owned[name])}
        everything = {
            f"{folder}/{name}"[len(self._venv) + 1 :]
            for folder, folders, names in os.walk(self._venv)
            for name in [*names, *(one for one in folders if _is_leaf(f"{folder}/{one}"))]
        }
        return tuple(sorted(everything - theirs))

    def _at(self, path: str) -> str:
        return f"{self._venv}/{path}"

    def _with_bytecode(self, files: Iterable[Owned]) -> tuple[str, ...]:
        paths = {file.path for file in files}
        paths |= {found for path in paths if (found := bytecode_of(path, self._python))}
        return tuple(sorted(path for path in paths if os.path.lexists(self._at(path))))

    def is_damaged(self, name: str) -> bool:
        """Whether a file that no other package has overwritten is not the one in the package's RECORD."""
        own = (file for file in self._owned.get(name, ()) if file.digest and file.path not in self._shared)
        return not all(self._is_as_recorded(file) for file in own)

    def _is_as_recorded(self, file: Owned) -> bool:
        name, _, wanted = file.digest.partition("=")
        if name not in hashlib.algorithms_guaranteed or not os.path.isfile(self._at(file.path)):
            return not file.digest
        with FileIO(self._at(file.path)) as stream:
            digest = feed(hashlib.new(name), stream)
        return base64.urlsafe_b64encode(digest.digest()).rstrip(b"=").decode() == wanted

    def size(self, paths: Iterable[str]) -> int:
        """Bytes of these files."""
        return sum(os.lstat(self._at(path)).st_size for path in paths)

    def farm(self, paths: Iterable[str], root: Path) -> Path:
        """A tree of hard links to these files, where they will be in the image."""
        root.parent.mkdir(parents=True, exist_ok=True)
        top, made = f"{root}{VENV}", {str(root.parent)}
        for path in paths:
            source, target = self._at(path), f"{top}/{path}"
            _make_directories(os.path.dirname(target), made)
            if os.path.isdir(source) and not os.path.islink(source):
                _make_directories(target, made)
                continue
            os.link(source, target, follow_symlinks=False)
            if path.endswith(".pyc") and path not in self._recorded:
                _date(target)
        return root


def _is_leaf(directory: str) -> bool:
    """A link to a directory, or an empty one: what a list of files would miss."""
    return os.path.islink(directory) or not os.listdir(directory)


def _date(bytecode: str) -> None:
    """Make bytecode that was compiled here valid for the time that sources have in an image."""
    with open(bytecode, "r+b", buffering=0) as file:
        header = file.read(16)
        if len(header) == 16:
            file.seek(0)
            file.write(with_time_of_source(header, TIME))


def _make_directories(directory: str, made: set[str]) -> None:
    """As apt and uv make them, whatever the umask is; `made` are there, and get what is made here."""
    if directory in made:
        return
    _make_directories(os.path.dirname(directory), made)
    os.mkdir(directory)
    os.chmod(directory, 0o755)
    made.add(directory)
