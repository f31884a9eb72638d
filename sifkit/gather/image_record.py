"""What a project knows of an image file: whether it is the one that was built, and on what it was verified."""

from __future__ import annotations

from sifkit.check.facts import ImageRecord
from sifkit.gather.image import file_identity
from sifkit.hashes import sha256_of
from sifkit.spec import Project
from sifkit.store import Manifest, Store
from sifkit.verify.record import latest_of_each_kind, read_records


def identity_of(store: Store, name: str) -> str:
    """By which the facts of a project's image are kept: its sha256 where its size and time are those of the build.

    Raises `FileNotFoundError` where there is no image.
    """
    manifest = store.manifest(name)
    if manifest is not None and store.on_disk(name) == (manifest.size, manifest.mtime_ns):
        return manifest.sha256
    return file_identity(store.sif(name))


def read_record(project: Project, name: str, *, hash_: bool = False) -> ImageRecord | None:
    """What is on record of an image of this project; None where it was not built here.

    `hash_`: read the whole file, which takes about 5 s; else its size and time tell whether it changed.
    """
    store = Store(project.images)
    manifest, there = store.manifest(name), store.on_disk(name)
    if manifest is None or there is None:
        return None
    sha256 = sha256_of(store.sif(name)) if hash_ else manifest.sha256
    change = _change_of(manifest, *there, sha256 if hash_ else None)
    verified = latest_of_each_kind(read_records(project.reports / name), sha256) if hash_ or not change else ()
    return ImageRecord(name, change, tuple(record.kind for record in verified if record.passed))


def _change_of(manifest: Manifest, size: int, mtime_ns: int, sha256: str | None) -> str | None:
    if size != manifest.size:
        return f"it has {size} bytes, the image that was built {manifest.size}"
    if sha256 is not None:
        return None if sha256 == manifest.sha256 else f"its sha256 is {sha256[:12]}…, not {manifest.sha256[:12]}…"
    return None if mtime_ns == manifest.mtime_ns else "it was written to after it was built"
