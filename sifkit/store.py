"""images/: finished images and their manifests. Nothing gets a final name before it is whole and tested."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import HostError
from sifkit.plan import Built, Recipe

CHUNK = 1 << 22


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
        for path in self.directory.glob(f".{name}.sif.*.partial"):
            path.unlink(missing_ok=True)

    def manifest_path(self, name: str) -> Path:
        """Beside the image."""
        return self.directory / f"{name}.json"

    def manifest(self, name: str) -> Manifest | None:
        """None when there is none that can be read."""
        try:
            return Manifest.from_json(self.manifest_path(name).read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def on_disk(self, name: str) -> tuple[int, int] | None:
        """Size and mtime_ns of the image, None when it is not there."""
        try:
            status = self.sif(name).stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def publish(self, manifest: Manifest) -> None:
        """Give a finished image its name. Killed in between, it leaves an image without manifest, built again."""
        partial = self.partial(manifest.name)
        _flush(partial)
        self.manifest_path(manifest.name).unlink(missing_ok=True)
        partial.replace(self.sif(manifest.name))
        temporary = self.manifest_path(manifest.name).with_suffix(".json.partial")
        temporary.write_text(manifest.to_json())
        _flush(temporary)
        temporary.replace(self.manifest_path(manifest.name))


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


@contextmanager
def exclusive(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`; call `on_wait` once if another process has it. The kernel frees it when we die.

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
        yield


def sha256_of(path: Path) -> str:
    """Of a file's bytes; 5 GB take about 5 s a core."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
