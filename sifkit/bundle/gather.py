"""Making a bundle: what builds of some images need, made where the cache lacks it, written into one file."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sifkit import __version__, checkout, kept, offline
from sifkit.apptainer import Apptainer
from sifkit.assemble import Layers, layers_held
from sifkit.bundle.archive import Item, Manifest, write
from sifkit.bundle.extras import apptainer_packages, sifkit_wheels
from sifkit.compat.tables import PACKAGED
from sifkit.errors import HostError, UsageError
from sifkit.execute import load_image, require_fits
from sifkit.hashes import sha256_of
from sifkit.host import Room, check_cache_room, choose_tmpdir, free_bytes
from sifkit.layers import TIME
from sifkit.meter import Meter, size_text
from sifkit.model import Image
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop, fresh_log


@dataclass(frozen=True)
class Wishes:
    """What goes in beside what the builds read."""

    python: str | None  # minor version for which sifkit's own wheels are; None: none of them
    apptainer: bool = False


@dataclass(frozen=True)
class Bundled:
    """A finished bundle."""

    path: Path
    size: int  # bytes
    sha256: str
    manifest: Manifest


def bundle(names: Sequence[str], target: Path, tools: Tools, wishes: Wishes) -> Bundled:
    """Write `target`, whole or not at all. Everything is read and checked before anything is made."""
    require_target(target)
    images = [load_image(name, tools) for name in names]
    for image in images:
        offline.require_layers(image)
        require_fits(image.spec, image.lock, tools)
    apptainer = Apptainer.find(tools.runner)
    workshop = Workshop(tools, apptainer, _tmpdir(images, tools, apptainer), fresh_log(tools.project, "bundle"))
    with workshop.scratch() as scratch:
        few = [*definitions(images, tools), *checkouts(images, scratch, tools)]
        if wishes.python:
            with tools.progress.phase("sifkit's own wheels"):
                few += sifkit_wheels(wishes.python, scratch, tools)
        if wishes.apptainer:
            with tools.progress.phase("Apptainer's packages"):
                few += apptainer_packages(scratch, tools)
        with layers_held(tools) as lock:
            parts = {item.member.name: item for image in images for item in _parts(image, workshop, lock)}
            return _write(images, [*few, *parts.values()], target, tools)


def require_target(target: Path) -> None:
    """Raises `UsageError` for a name that no file can get."""
    if target.is_dir():
        raise UsageError(f"{target} is a directory", f"name a file: -o {target / 'images.bundle'}")
    if not target.absolute().parent.is_dir():
        raise UsageError(f"{target.absolute().parent}: no such directory", "make it, or name a file elsewhere: -o FILE")


def _tmpdir(images: Sequence[Image], tools: Tools, apptainer: Apptainer) -> Path:
    """With room for what has to be built. Raises `HostError` where there is none."""
    short = [image for image in images if offline.lacking(image, tools, apptainer)]
    rooms = [Room.for_lock(image.lock) for image in short]
    for room in rooms:
        check_cache_room(tools.cache, room)
    return choose_tmpdir(
        tools.site, tools.environ, max(rooms, key=lambda room: room.tree, default=Room(0, 0)), tools.cache
    )


def _write(images: Sequence[Image], items: Sequence[Item], target: Path, tools: Tools) -> Bundled:
    ordered = sorted(items, key=lambda item: item.member.name)
    names = tuple(sorted(image.name for image in images))
    manifest = Manifest(sifkit=__version__, images=names, members=tuple(item.member for item in ordered))
    size = manifest.length(len(manifest.to_bytes()))
    _require_room(target, size)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    meter = Meter(size, tools.progress.line)
    with tools.runner.removing(partial.absolute()), tools.progress.phase(f"write {target.name}, {size_text(size)}"):
        with partial.open("wb") as stream:
            sha256 = write(stream, manifest, ordered, meter.add)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(target)
    return Bundled(target, size, sha256, manifest)


def _require_room(target: Path, size: int) -> None:
    free = free_bytes(target.absolute())
    if free < size:
        message = f"not enough space for {target}: {size_text(size)} needed, {size_text(free)} free"
        raise HostError(message, "free some, or name a file on another filesystem: -o FILE")


# ---------------------------------------------------------------------------------------------- what goes in


def _parts(image: Image, workshop: Workshop, lock: IO[str]) -> list[Item]:
    """Base and layers, made now where the cache lacks them."""
    timings = Timings()
    base = workshop.base(image, timings)
    layers = Layers(image, base, workshop)
    layers.complete(timings, lock)
    record = offline.record_of(image).model_dump_json(by_alias=True, indent=1) + "\n"
    paths = sorted(layers.path(layer) for layer in layers.wanted)
    return [
        Item.of_bytes("base", f"bases/{offline.record_path(base).name}", record.encode()),
        Item.of_file("base", f"bases/{base.name}", base, _sum(base)),
        *(Item.of_file("layer", f"layers/{path.name}", path, _sum(path)) for path in paths),
    ]


def _sum(path: Path) -> str:
    return kept.sum_of(path).read_text(encoding="ascii").strip()


def definitions(images: Sequence[Image], tools: Tools) -> list[Item]:
    """Specs and locks, and the project's compatibility tables where they are not those of this release."""
    project = tools.project
    paths = [path for image in images for path in (project.spec_path(image.name), project.lock_path(image.name))]
    items = [Item.of_bytes("definition", f"definitions/{path.name}", path.read_bytes()) for path in paths]
    for path in sorted(project.compat.glob("*.yaml")):
        ours = PACKAGED / path.name
        if not ours.is_file() or sha256_of(ours) != sha256_of(path):
            items.append(Item.of_bytes("table", f"definitions/compat/{path.name}", path.read_bytes()))
    return items


def checkouts(images: Sequence[Image], scratch: Path, tools: Tools) -> list[Item]:
    """The LLaMA-Factory of each version, as one archive each, for `--verify` and for training."""
    items = []
    for version in sorted({image.spec.llamafactory.version for image in images}):
        tree = checkout.cached(
            version,
            tools.cache,
            tools.runner,
            tools.progress,
            sources=checkout.Sources.of_site(tools.site, tools.environ),
        )
        archive = scratch / f"{version}.tar"
        pack_tree(tree, archive)
        items.append(Item.of_file("checkout", f"checkouts/{archive.name}", archive, sha256_of(archive)))
    return items


def pack_tree(tree: Path, target: Path) -> None:
    """An archive of a directory's files without git's, the same for the same files. Links into it become copies."""
    root = tree.resolve()
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(root.rglob("*")):
            relative = path.relative_to(root)
            if ".git" in relative.parts or not path.is_file() or not path.resolve().is_relative_to(root):
                continue
            header = tarfile.TarInfo(f"{tree.name}/{relative.as_posix()}")
            header.size, header.mtime = path.stat().st_size, TIME
            header.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as stream:
                tar.addfile(header, stream)
