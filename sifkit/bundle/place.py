"""Taking a bundle in: every hash is compared first, then all is written beside its place, then it gets its names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sifkit import checkout, kept
from sifkit.bundle.archive import Manifest, Member, check, contents, copy, read_manifest
from sifkit.errors import HostError, ProblemFound, UsageError
from sifkit.files import write_whole
from sifkit.hashes import sha256_of
from sifkit.host import free_bytes
from sifkit.meter import Meter, size_text
from sifkit.progress import Progress
from sifkit.run import Runner
from sifkit.spec import Project
from sifkit.store import exclusive


@dataclass(frozen=True)
class Place:
    """Where the parts of a bundle go, and what the work is shown on."""

    project: Project
    cache: Path
    runner: Runner
    progress: Progress


@dataclass(frozen=True)
class Placed:
    """What a bundle held, and how much of it was not here yet."""

    manifest: Manifest
    written: tuple[Member, ...]


def unbundle(path: Path, place: Place) -> Placed:
    """Put a bundle's parts into cache and project. What is there already stays; what is refused leaves all as it was.

    Raises `ProblemFound` for a bundle that is damaged, `UsageError` for one that is none, or where another file of the
    project has the name of one in it, `HostError` where there is no room.
    """
    manifest = read_manifest(path)
    total = sum(member.size for member in manifest.members)
    with place.progress.phase(f"check {path.name}, {size_text(total)}"):
        check(path, manifest, Meter(total, place.progress.line).add)
    _require_no_other(manifest, place.project)
    with exclusive(place.cache / "layers" / ".lock", lambda: place.progress.note(_WAITING)):
        with place.progress.phase("look at what is here already"):
            missing = [member for member in manifest.members if not _is_here(member, place)]
        _require_room(missing, place)
        _take(path, manifest, missing, place)
    return Placed(manifest, tuple(missing))


_WAITING = "a build uses the cache; waiting for it to end"


# ---------------------------------------------------------------------------------------------- what is here


def _require_no_other(manifest: Manifest, project: Project) -> None:
    others = [
        member.name
        for member in manifest.members
        if member.kind in ("definition", "table") and not _is_free(project.root / member.name, member)
    ]
    if others:
        message = f"{project.root} has another {others[0]} than the bundle" + _and_more(others)
        raise UsageError(message, "move it away, or take the bundle into a project of its own: --project DIR")


def _and_more(names: Sequence[str]) -> str:
    return f", and {len(names) - 1} more such files" if len(names) > 1 else ""


def _is_free(target: Path, member: Member) -> bool:
    return not os.path.lexists(target) or (target.is_file() and sha256_of(target) == member.sha256)


def _is_here(member: Member, place: Place) -> bool:
    match member.kind:
        case "base" | "layer":
            target = place.cache / member.name
            return target.is_file() and _sum(target) == member.sha256 and kept.is_whole(target)
        case "checkout":
            return _has_checkout(member, place)
        case "definition" | "table":
            return (place.project.root / member.name).is_file()
        case _:  # taken with tar, before there is a sifkit: docs/airgap.md
            return True


def _sum(target: Path) -> str:
    path = kept.sum_of(target)
    return path.read_text(encoding="ascii", errors="replace").strip() if path.is_file() else ""


def _checkout_path(member: Member, cache: Path) -> Path:
    return cache / "checkouts" / member.file.removesuffix(".tar")


def _has_checkout(member: Member, place: Place) -> bool:
    """Whether a whole one is there. Raises `UsageError` for one that is not: somebody may have edited it."""
    target = _checkout_path(member, place.cache)
    if not os.path.lexists(target):
        return False
    found = checkout.problems(target, target.name)
    if found:
        raise UsageError(f"{target} stays as it is, and is no whole checkout: {found[0].message}", "move it away")
    return True


def _require_room(missing: Sequence[Member], place: Place) -> None:
    """A checkout is there twice for a moment."""
    needed = sum(member.size * (2 if member.kind == "checkout" else 1) for member in missing)
    free = free_bytes(place.cache)
    if free < needed:
        message = f"not enough space in {place.cache}: {size_text(needed)} needed, {size_text(free)} free"
        raise HostError(message, "free some, or put the cache elsewhere: SIFKIT_CACHE=…")


# ---------------------------------------------------------------------------------------------- writing


def _take(path: Path, manifest: Manifest, missing: Sequence[Member], place: Place) -> None:
    """All is written into a directory beside the cache's own first: a disk that is full leaves no half of a bundle."""
    total = sum(member.size for member in missing)
    with (
        place.runner.scratch(".unbundle-", place.cache) as staging,
        place.progress.phase(f"write {size_text(total)} into {place.cache} and {place.project.root}"),
    ):
        staged = _stage(path, manifest, {member.name for member in missing}, staging, Meter(total, place.progress.line))
        for member in sorted(missing, key=lambda member: member.kind in ("definition", "table")):  # specs come last
            _put(member, staged[member.name], place)


def _stage(path: Path, manifest: Manifest, missing: set[str], staging: Path, meter: Meter) -> Mapping[str, Path]:
    """Hashes are compared again: the file may have changed since they were."""
    staged: dict[str, Path] = {}
    for number, (member, stream) in enumerate(contents(path, manifest)):
        if member.name not in missing:
            continue
        target = staging / str(number)
        with target.open("wb") as file:
            copy(member, stream, file, path, meter.add)
            file.flush()
            os.fsync(file.fileno())
        staged[member.name] = _unpacked(member, target) if member.kind == "checkout" else target
    return staged


def _unpacked(member: Member, archive: Path) -> Path:
    """The tree in an archive, which must be a whole checkout of its version."""
    tree = checkout.unpack(archive, archive.with_name(f"{archive.name}.tree"))
    archive.unlink()
    found = checkout.problems(tree, member.file.removesuffix(".tar"))
    if found:
        raise ProblemFound(f"{member.name} in the bundle is no whole checkout: {found[0].message}", "bundle again")
    return tree


def _put(member: Member, staged: Path, place: Place) -> None:
    match member.kind:
        case "base" | "layer":
            target = place.cache / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept.sum_of(target), f"{member.sha256}\n")
            staged.replace(target)
        case "checkout":
            target = _checkout_path(member, place.cache)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():  # else somebody fetched it meanwhile
                staged.rename(target)
        case "definition" | "table":
            target = place.project.root / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, staged.read_text(encoding="utf-8"))
        case "sifkit" | "apptainer":
            raise AssertionError(member.kind)
