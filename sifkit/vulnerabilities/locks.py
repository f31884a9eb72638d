"""The lock of whatever a person names: an image of the project, a lock file, or an image file that carries its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import UsageError
from sifkit.lock import parse_lock, read_lock
from sifkit.model import Lock
from sifkit.provenance import LOCK, read_carried
from sifkit.sif import NotSif
from sifkit.spec import Project, load_spec


@dataclass(frozen=True)
class Locked:
    """A lock, and where it was read."""

    lock: Lock
    where: str
    image: str | None  # of the project, whose spec a fix would change


def find_lock(subject: str, project: Project) -> Locked:
    """The lock that `subject` stands for. Raises `UsageError` for what has none."""
    path = Path(subject)
    if path.is_dir():
        raise UsageError(f"{path} is a directory: --vulnerabilities reads locks", "name an image, a .sif or a .lock")
    if path.suffix == ".lock":
        return Locked(read_lock(path), str(path), _image_of(path, project))
    if path.suffix == ".sif":
        return Locked(carried_lock(path), f"{path}: {LOCK}", None)
    name = path.stem if path.suffix == ".yaml" else subject
    load_spec(project, name)
    return Locked(read_lock(project.lock_path(name)), str(project.lock_path(name)), name)


def _image_of(path: Path, project: Project) -> str | None:
    own = project.lock_path(path.stem)
    return path.stem if own.exists() and own.resolve() == path.resolve() else None


def carried_lock(image: Path) -> Lock:
    """The lock in an image file, read without starting anything. Raises `UsageError` for an image without one."""
    if not image.is_file():
        raise UsageError(f"{image}: no such image", f"build it, or name an image of the project: {image.stem}")
    try:
        text = read_carried(image).lock
    except NotSif as error:
        raise UsageError(f"{image} is no whole image: {error}", "build it, or fetch it again") from None
    if text is None:
        fix = "images of sifkit carry one; of others, audit the compiled files: leave --vulnerabilities out"
        raise UsageError(f"{image} carries no lock", fix)
    return parse_lock(text, f"{image}: {LOCK}")
