"""images/: finished images and their manifests. Nothing gets a final name before it is whole and tested."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sifkit.errors import HostError
from sifkit.plan import Built, Recipe


@dataclass(frozen=True)
class Manifest:
    """`images/NAME.json`: what an image is and how it came to be."""

    name: str
    sha256: str
    size: int  # bytes
    mtime_ns: int  # of the .sif when it was published: a cheap sign that it is still the same file
    built: str  # ISO 8601, UTC
    recipe: Recipe
    base: str
    versions: dict[str, str]  # sifkit, apptainer, and what is in the image
    seconds: dict[str, float]  # wall time of each phase

    def as_built(self) -> Built:
        """What a plan compares."""
        return Built(self.recipe, self.size, self.mtime_ns)

    def to_json(self) -> str:
        """The file's text."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest | None:
        """None when the text is not a manifest of this version: the image is then built again."""
        try:
            values = json.loads(text)
            return cls(**{**values, "recipe": Recipe(**values["recipe"])})
        except (ValueError, TypeError, KeyError, RecursionError):
            return None


class Store:
    """The directory of finished images."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def sif(self, name: str) -> Path:
        """An image's final name."""
        return self.directory / f"{name}.sif"

    def partial(self, name: str) -> Path:
        """Where this process makes an image. Its own name: a killed build's supervisor may still remove its own."""
        return self.directory / f".{name}.sif.{os.getpid()}.partial"

    def remove_partials(self, name: str) -> None:
        """What killed builds left; only for the holder of the image's lock."""
        self.manifest(name)  # gives a manifest its name if a build was killed after its image had one
        for path in (*self._partials(name, "sif"), *self._partials(name, "json")):
            path.unlink(missing_ok=True)

    def manifest_path(self, name: str) -> Path:
        """Beside the image."""
        return self.directory / f"{name}.json"

    def manifest(self, name: str) -> Manifest | None:
        """None when there is none that can be read. Finishes what a build killed in the middle of `publish` began."""
        found, there = _read_manifest(self.manifest_path(name)), self.on_disk(name)
        if there is None or (found is not None and there == (found.size, found.mtime_ns)):
            return found
        for path in self._partials(name, "json"):
            late = _read_manifest(path)
            if late is not None and there == (late.size, late.mtime_ns):
                # Another reader may be first, or a directory of somebody else's: the answer is the same.
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    path.replace(self.manifest_path(name))
                return late
        return found

    def on_disk(self, name: str) -> tuple[int, int] | None:
        """Size and mtime_ns of the image, None when it is not there."""
        try:
            status = self.sif(name).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def publish(self, manifest: Manifest) -> None:
        """Give a finished image and its manifest their names.

        The manifest is on disk before the image gets its name. Killed between the two, the next reader gives the
        manifest its own; a disk that is full, or a build killed before, leaves the image that was there, and its
        manifest, as they were.
        """
        partial, final = self.partial(manifest.name), self.sif(manifest.name)
        coming = self.directory / f".{manifest.name}.json.{os.getpid()}.partial"
        with _kept_open(final):
            try:
                coming.write_text(manifest.to_json(), encoding="utf-8")
                for path in (partial, coming):
                    flush(path)
                _flush_names(self.directory)
                partial.replace(final)
            except BaseException:
                if partial.exists():  # else a signal came just after the image got its name
                    coming.unlink(missing_ok=True)
                raise
            with contextlib.suppress(FileNotFoundError):  # a reader was faster
                coming.replace(self.manifest_path(manifest.name))
            _flush_names(self.directory)

    def _partials(self, name: str, suffix: str) -> list[Path]:
        pattern = re.compile(rf"\.{re.escape(name)}\.{suffix}\.\d+\.partial")
        try:
            return sorted(path for path in self.directory.iterdir() if pattern.fullmatch(path.name))
        except FileNotFoundError:
            return []


def _read_manifest(path: Path) -> Manifest | None:
    try:
        return Manifest.from_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def flush(path: Path) -> None:
    """Wait until the disk has a file's bytes. Raises `OSError` where it cannot take them."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def _kept_open(path: Path) -> Iterator[None]:
    """A file replaced inside is freed after it: a flush would wait for that, where a disk discards seconds for 5 GB."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # none, or not ours to read: then it is freed when it is replaced
        yield
        return
    try:
        yield
    finally:
        os.close(descriptor)


def _flush_names(directory: Path) -> None:
    """So that a power cut does not undo a rename, or keep it without the bytes of the file."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with contextlib.suppress(OSError):  # some network filesystems cannot: they order renames themselves
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[IO[str]]:
    """Hold the lock file `path`; call `on_wait` once if another process has it. The kernel frees it when we die.

    What is yielded is the open file: a program that inherits it holds the lock, too.

    Raises `HostError` where the filesystem knows no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError as error:
            raise HostError(
                f"{path.parent} cannot lock files ({error.strerror})", "use a filesystem with flock"
            ) from None
        yield stream
