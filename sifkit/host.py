"""What this host offers for building: mirrors, directories with room, left-overs of killed builds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import HostError, UsageError
from sifkit.filesystems import MEMORY, NETWORK, mounted_type
from sifkit.model import Lock, Site
from sifkit.resolve import HostBases
from sifkit.run import Runner
from sifkit.site import apt_mirrors

DEBOOTSTRAP_SCRIPTS = Path("/usr/share/debootstrap/scripts")

# Bytes in an image for each byte downloaded, measured on llamafactory-0.9.5-cu128 (docs/benchmarks.md):
# 4.4 GB of wheels become a tree of 8.9 GB with bytecode, and a .sif of 4.8 GB.
TREE_PER_DOWNLOAD = 2.1
SIF_PER_DOWNLOAD = 1.15
SIF_PER_TREE = 0.7  # the same image has 0.54 bytes in the .sif for each of its tree; others compress less
BASE_BYTES = 700_000_000  # operating system with Debian packages, unpacked


@dataclass(frozen=True)
class Room:
    """What a build of one image takes, in bytes."""

    tree: int
    sif: int

    @classmethod
    def for_lock(cls, lock: Lock) -> Room:
        """Estimated from the sizes in the lock."""
        downloads = lock.download_bytes()
        return cls(int(downloads * TREE_PER_DOWNLOAD) + BASE_BYTES, int(downloads * SIF_PER_DOWNLOAD) + BASE_BYTES // 3)

    @classmethod
    def for_host_tree(cls, copied: int, lock: Lock) -> Room:
        """For a tree of this host's directories, `copied` bytes, with what the lock adds to it."""
        tree = copied + int(lock.download_bytes() * TREE_PER_DOWNLOAD)
        return cls(tree, int(tree * SIF_PER_TREE))


def tree_bytes(paths: Iterable[str]) -> int:
    """What files and directories take on disk, links not followed; absent ones take nothing."""
    total = 0
    for path in paths:
        total += _allocated(path)
        for folder, _, files in os.walk(path):
            total += sum(_allocated(os.path.join(folder, name)) for name in files)  # noqa: PTH118 60,000 files
    return total


def _allocated(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:  # absent, or removed while we look
        return 0


def host_bases(runner: Runner) -> HostBases:
    """debootstrap, its scripts, and the mirrors in apt's sources."""
    if runner.which("debootstrap") is None:
        return HostBases(mirrors=apt_mirrors())
    suites = tuple(sorted(path.name for path in DEBOOTSTRAP_SCRIPTS.glob("*")))
    return HostBases(debootstrap=True, suites=suites, mirrors=apt_mirrors())


def filesystem_type(path: Path, mounts: str | None = None) -> str:
    """Of the mount that holds `path`, as /proc/mounts names it."""
    text = Path("/proc/mounts").read_text() if mounts is None else mounts
    return mounted_type(path.resolve(), text)


def existing(path: Path) -> Path:
    """`path`, or the nearest directory above it that is there."""
    return next(parent for parent in (path, *path.parents) if parent.exists())


def free_bytes(path: Path) -> int:
    """What this user may still write where `path` is or would be."""
    return shutil.disk_usage(existing(path)).free


def choose_tmpdir(site: Site, environ: Mapping[str, str], room: Room, cache: Path) -> Path:
    """The directory in which images are assembled: the site's, or the first local one with room.

    Raises `HostError` with figures when there is none, `UsageError` when the site's is not a directory.
    """
    needed = room.tree + room.sif  # Apptainer writes the squashfs beside the tree
    if site.tmpdir != "auto":
        directory = Path(site.tmpdir).absolute()
        if not directory.is_dir():
            raise UsageError(f"the site's tmpdir {directory} is not a directory", "correct the site file")
        candidates = [directory]
    else:
        named = [environ[name] for name in ("APPTAINER_TMPDIR", "TMPDIR") if environ.get(name)]
        candidates = [
            path
            for path in (Path(word).absolute() for word in [*named, "/var/tmp", "/tmp", str(cache)])
            if path.is_dir() or path == cache
        ]
        candidates = [path for path in candidates if filesystem_type(existing(path)) not in MEMORY] or candidates
        candidates.sort(key=lambda path: filesystem_type(existing(path)) in NETWORK)
    for path in candidates:
        if free_bytes(path) >= needed and os.access(existing(path), os.W_OK):
            return path
    shown = "; ".join(f"{path}: {gigabytes(free_bytes(path))} free" for path in dict.fromkeys(candidates))
    raise HostError(
        f"not enough space to assemble the image: {gigabytes(needed)} needed; {shown}",
        "free some, or name a roomy local directory: TMPDIR=…, or tmpdir: in the site file",
    )


def check_images_room(images: Path, tmpdir: Path, room: Room) -> None:
    """Raises `HostError` with figures when the finished image would not fit."""
    same = existing(images).stat().st_dev == existing(tmpdir).stat().st_dev
    needed = room.sif + (room.tree + room.sif if same else 0)
    free = free_bytes(images)
    if free < needed:
        also = f" (it also holds TMPDIR {tmpdir})" if same else ""
        raise HostError(
            f"not enough space in {images}{also}: {gigabytes(needed)} needed, {gigabytes(free)} free",
            "remove images that are no longer used, or put images/ on another filesystem",
        )


def check_cache_room(cache: Path, room: Room) -> None:
    """uv keeps each wheel unpacked: a first build fills the cache with a tree of its own. Raises `HostError`."""
    if any((cache / "uv").glob("archive-v*")):
        return  # filled by an earlier build; what is new in this one is small against the rest
    free = free_bytes(cache)
    if free < room.tree:
        raise HostError(
            f"not enough space for the package cache {cache}: {gigabytes(room.tree)} needed, {gigabytes(free)} free",
            "free some, or put the cache elsewhere: SIFKIT_CACHE=…",
        )


def gigabytes(size: int) -> str:
    """For people."""
    return f"{size / 1e9:.1f} GB"
