"""Images joined from layers: what is missing is made in a container of the base, then everything is put into one file.

docs/adr/0003-images-from-layers.md says why. The rendered definition gives the same files with plain Apptainer.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sifkit import __version__, kept
from sifkit.apptainer import Bind
from sifkit.deffile import (
    CARRIED_LOCK,
    CARRIED_SPEC,
    DEBIAN_PACKAGES,
    MISSING_LOCK,
    VENV,
    WHOLE_LOCK,
    header,
    install_script,
    render,
    render_top,
    spec_path,
)
from sifkit.errors import CommandFailed
from sifkit.layers import (
    SKELETON,
    SQUASH,
    TIME,
    Wanted,
    partial_lock,
    toolkit_links,
    wanted_layers,
)
from sifkit.model import Image, LockedPackage, Scratch
from sifkit.provenance import inspect_metadata_of, objects_of
from sifkit.run import Command
from sifkit.sif import DEFINITION
from sifkit.sifwrite import NewObject, append_object, partition, write_sif
from sifkit.squash import NotJoinable, Source, listing, read_file
from sifkit.store import exclusive
from sifkit.together import pool, processors, together
from sifkit.tools import Timings, Tools
from sifkit.venvtree import Tree
from sifkit.workshop import Workshop, say_waiting


def assemble(image: Image, workshop: Workshop, target: Path, timings: Timings) -> None:
    """Make `target`, an image that is whole but for its facts. Raises `CommandFailed`."""
    base = workshop.base(image, timings)
    layers = Layers(image, base, workshop)
    with layers_held(workshop.tools) as lock:
        known = layers.there()
        layers.supply([layer for layer in layers.wanted if layer not in known], timings, lock)
        while damaged := _join_and_check(layers, known, target, timings):
            layers.supply(damaged, timings, lock)
            known = ()


def _join_and_check(layers: Layers, known: Sequence[Wanted], target: Path, timings: Timings) -> tuple[Wanted, ...]:
    """Join all layers; meanwhile another processor reads those that the cache held. Returns the damaged ones.

    Where there are some, `target` is of no use.
    """
    image, workshop = layers.image, layers.workshop
    tools = workshop.tools
    with (
        timings.phase("join", tools.progress, f"join {image.name}"),
        workshop.scratch() as scratch,
        pool(tools.runner.stop_all, 1) as beside,
    ):
        damaged = beside.submit(layers.damaged, known)
        try:
            join(image, layers.sources, workshop, scratch, target)
        except CommandFailed:
            if not damaged.result():
                raise
        return damaged.result()


@contextmanager
def layers_held(tools: Tools) -> Iterator[IO[str]]:
    """The cache's layers for this process alone; yields the lock. Packages are installed there, wherever layers go."""
    with exclusive(tools.cache / "layers" / ".lock", lambda: say_waiting("its packages", tools.progress)) as lock:
        yield lock


def join(image: Image, sources: Sequence[Source], workshop: Workshop, scratch: Path, target: Path) -> None:
    """The file of an image, whose first source holds the Debian packages and their list; with what only it has."""
    try:
        top = make_top(image, sources, workshop, scratch)
        packages = "" if isinstance(image.base.source, Scratch) else read_file(sources[0], DEBIAN_PACKAGES).decode()
        objects = (*carried_by(image, packages, workshop.tools), inspect_metadata_of(top))
        write_sif(target, [*sources, top], objects, time=TIME)
    except NotJoinable as error:
        fix = f"remove what the cache holds, and build again: {workshop.tools.cache}/bases and layers"
        raise CommandFailed(f"{image.name} cannot be joined: {error}", fix, returncode=0) from None


def carried_by(image: Image, debian_packages: str, tools: Tools) -> tuple[NewObject, ...]:
    """What an image's file says of how it came to be."""
    spec = tools.project.root / spec_path(image)
    definition = render(image, sifkit_version=__version__)
    text = spec.read_text(encoding="utf-8")
    return objects_of(image, definition=definition, debian_packages=debian_packages, spec_text=text, time=TIME)


def add_carried(image: Image, tools: Tools, target: Path) -> None:
    """The same for an image that Apptainer built whole, in whose file the definition is already."""
    try:
        packages = read_file(partition(target), DEBIAN_PACKAGES).decode()
    except FileNotFoundError:  # the host's own tree
        packages = ""
    for new in carried_by(image, packages, tools):
        if new.kind != DEFINITION:
            append_object(target, new, time=TIME)


def base_source(base: Path) -> Source:
    """The base's files, all root's and of one time: its bytecode was made not to depend on it (`render_base`)."""
    found = partition(base)
    return Source(found.path, found.offset, all_root=True, time=TIME)


# ---------------------------------------------------------------------------------------------- packages


@dataclass(frozen=True)
class Made:
    """What came of one installation: the layers that are in the cache now, and packages that uv keeps damaged."""

    done: frozenset[Wanted]
    damaged: frozenset[str]


@dataclass(frozen=True)
class Layers:
    """The layers of one image, in the cache."""

    image: Image
    base: Path
    workshop: Workshop

    @property
    def directory(self) -> Path:
        """Shared by all images; whole layers alone have a final name in it."""
        return self.workshop.tools.parts / "layers"

    @property
    def _cache(self) -> Path:
        return self.workshop.tools.cache

    @property
    def wanted(self) -> tuple[Wanted, ...]:
        """All, in the order of joining."""
        return wanted_layers(self.image, self.base.stem)

    @property
    def sources(self) -> list[Source]:
        """The base and all layers, in the order of joining."""
        return [base_source(self.base), *(Source(self.path(layer)) for layer in self.wanted)]

    def path(self, layer: Wanted) -> Path:
        """Of a layer in the cache; the name is for people, too."""
        return self.directory / f"{layer.name}-{layer.key[:32]}.sqfs"

    def complete(self, timings: Timings, lock: IO[str]) -> None:
        """Make what is missing or damaged. Only for the holder of the directory's lock."""
        self.supply(self.missing(), timings, lock)

    def supply(self, missing: Sequence[Wanted], timings: Timings, lock: IO[str]) -> None:
        """Make these layers, whatever is there. Only for the holder of the directory's lock."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for layer in missing:
            if kept.drop(self.path(layer)):
                self.workshop.tools.progress.note(f"the cached layer of {layer.name} is damaged: it is made again")
        for leftover in self.directory.glob(".*.partial"):
            leftover.unlink(missing_ok=True)
        anew: frozenset[str] = frozenset()
        while missing:  # a second round only where files are damaged, or packages overwrite each other's
            made = self.make(missing, timings, lock, anew)
            if not made.done and not made.damaged:
                names = ", ".join(layer.name for layer in missing)
                raise CommandFailed(f"uv did not install what the lock names: {names}", returncode=0)
            missing = tuple(layer for layer in missing if layer not in made.done)
            anew = made.damaged

    def missing(self) -> tuple[Wanted, ...]:
        """What the cache does not hold with the bytes that were put there."""
        known = self.there()
        damaged = self.damaged(known)
        return tuple(layer for layer in self.wanted if layer not in known or layer in damaged)

    def there(self) -> tuple[Wanted, ...]:
        """What has a file in the cache, whole or not."""
        return tuple(layer for layer in self.wanted if self.path(layer).exists())

    def damaged(self, layers: Sequence[Wanted]) -> tuple[Wanted, ...]:
        """Those whose bytes are not, or no longer, what was put into the cache; all are read."""
        tasks = [lambda layer=layer: kept.is_whole(self.path(layer)) for layer in layers]
        whole = together(tasks, lambda: None, processors())
        return tuple(layer for layer, is_whole in zip(layers, whole, strict=True) if not is_whole)

    def make(self, missing: Sequence[Wanted], timings: Timings, lock: IO[str], anew: frozenset[str]) -> Made:
        """Install all of `missing` at once, and make a layer of each that is whole.

        `anew`: packages that uv is to load again. What is not as recorded after that is the wheel's own fault: its
        hash is right.
        """
        progress = self.workshop.tools.progress
        packages = [layer.package for layer in missing if layer.package]
        venv, farms = self._cache / Path(VENV).name, self._cache / "farms"  # one at a time: /opt/venv has one name
        with self.workshop.tools.runner.removing(venv, farms, lock=lock):
            for leftover in (venv, farms):
                shutil.rmtree(leftover, ignore_errors=True)
            uv = self._uv(missing)
            with timings.phase("install", progress, f"install {len(packages)} of {len(self.wanted) - 1} packages"):
                anew |= self._install_whole(packages, venv, uv, anew)
            with timings.phase("layers", progress, f"keep {len(missing)} layers"):
                made = self._keep(missing, Tree(venv, self.image.spec.python), farms, anew)
        if made.damaged:
            self._say_again(made.damaged)
        return made

    def _say_again(self, names: Iterable[str]) -> None:
        self.workshop.tools.progress.note(f"damaged in uv's cache, loaded again: {', '.join(sorted(names))}")

    def _uv(self, missing: Sequence[Wanted]) -> Source | None:
        """The layer of the uv that installs; None where it, or the environment itself, is still to be made with pip.

        A damaged one, which the join would have noticed only later, is not run.
        """
        whole = {layer.name: layer for layer in self.wanted if layer not in missing}
        if not {"uv", SKELETON} <= whole.keys() or not kept.is_whole(self.path(whole["uv"])):
            return None
        return Source(self.path(whole["uv"]))

    def _install_whole(
        self, packages: Sequence[LockedPackage], venv: Path, uv: Source | None, anew: frozenset[str]
    ) -> frozenset[str]:
        """Install; returns what had to be loaded again to that end: uv does not say whose metadata it cannot read."""
        try:
            self._install(packages, venv, uv, anew)
            return frozenset()
        except CommandFailed as error:
            if not any("Failed to install" in line for line in error.tail):
                raise
            every = frozenset(one.name for one in packages)
            self._say_again(every)
            shutil.rmtree(venv)
            self._install(packages, venv, uv, every)
            return every

    def _install(self, packages: Sequence[LockedPackage], venv: Path, uv: Source | None, anew: Iterable[str]) -> None:
        """Make the environment, with the uv of a layer if there is one, and install into it."""
        _make_environment(venv, uv)
        files = {
            Path(WHOLE_LOCK).name: self.image.lock.text,
            Path(MISSING_LOCK).name: partial_lock(packages),
        }
        above = Bind(self._cache, str(Path(VENV).parent), writable=True)
        script = install_script(self.image, sorted(anew), uv_is_there=uv is not None)
        with self.workshop.scratch() as scratch:
            self.workshop.run_in(self.base, script, scratch, files, above)

    def _keep(self, missing: Sequence[Wanted], tree: Tree, farms: Path, trusted: frozenset[str]) -> Made:
        """A layer of each that nobody overwrote and whose files are as recorded; `trusted` are not looked at.

        uv does not look at what it keeps unpacked, so that its damage would come into the image. Files are read for
        it here, right before they are packed: a disk is asked for them once, while others are being packed.
        """
        ready = {layer: paths for layer in missing if (paths := self._paths(layer, tree)) is not None}
        finished: list[str] = []

        def keep(layer: Wanted, paths: Sequence[str]) -> bool:
            if layer.name not in trusted and tree.is_damaged(layer.name):
                return False
            farm = tree.farm(paths, farms / layer.key)
            self._squash(layer, farm)
            shutil.rmtree(farm)
            finished.append(layer.name)
            self.workshop.tools.progress.line(f"{len(finished)} of {len(missing)}: {layer.name}")
            return True

        largest_first = sorted(ready, key=lambda layer: tree.size(ready[layer]), reverse=True)
        tasks = [lambda layer=layer: keep(layer, ready[layer]) for layer in largest_first]
        # one more than there are processors: each waits for its disk at its end
        whole = together(tasks, self.workshop.tools.runner.stop_all, processors() + 1)
        done = frozenset(layer for layer, is_whole in zip(largest_first, whole, strict=True) if is_whole)
        return Made(done, frozenset(layer.name for layer in largest_first if layer not in done))

    def _paths(self, layer: Wanted, tree: Tree) -> tuple[str, ...] | None:
        if layer.package is None:
            return tree.skeleton(frozenset(one.name for one in self.image.lock.packages))
        return tree.package(layer.package.name)

    def _squash(self, layer: Wanted, farm: Path) -> None:
        partial = self.directory / f".{layer.key}.{os.getpid()}.partial"
        self.workshop.run(squash_command(farm, partial))
        kept.keep(partial, self.path(layer))


def _make_environment(venv: Path, uv: Source | None) -> None:
    """The directory that packages are installed into, with the uv of a layer in it."""
    venv.mkdir()
    if uv:
        program = venv / "bin" / "uv"
        program.parent.mkdir()
        program.write_bytes(read_file(uv, f"{VENV}/bin/uv"))
        program.chmod(0o755)


def squash_command(tree: Path, target: Path) -> Command:
    """A squashfs whose bytes depend on the files alone, packed as Apptainer is told to."""
    times = ("-mkfs-time", str(TIME), "-all-time", str(TIME))
    argv = ("mksquashfs", str(tree), str(target), "-noappend", *squash_options(), *times)
    return Command(argv, remove_on_failure=(target,))


def squash_options() -> tuple[str, ...]:
    """How a part of an image is packed, by mksquashfs and by sqfstar."""
    return (*SQUASH, "-processors", str(processors()), "-all-root", "-no-xattrs", "-no-progress", "-quiet")


# ---------------------------------------------------------------------------------------------- what is this image's


def make_top(image: Image, sources: Sequence[Source], workshop: Workshop, scratch: Path) -> Source:
    """The layer of what no other image has, with Apptainer's own files made by Apptainer."""
    tree, keep = scratch / "top", scratch / "kept"
    workshop.apptainer_build(render_top(image, sifkit_version=__version__), tree, sandbox=True)
    own = tree / ".singularity.d"
    (own / "Singularity").write_text(render(image, sifkit_version=__version__), encoding="utf-8")
    labels = own / "labels.json"
    labels.write_text(json.dumps(final_labels(json.loads(labels.read_text()), image), indent="\t"), encoding="utf-8")
    for carried in (CARRIED_LOCK, CARRIED_SPEC):  # as the definition does, for which this tree has no shell
        (tree / carried[1:]).chmod(0o644)
    keep.mkdir()
    for path in [*tree.glob(".*"), tree / "environment", tree / "singularity", tree / "opt"]:
        path.rename(keep / path.name)
    if image.resolution.toolkit:
        paths = (path for source in sources for path in listing(source))
        _make_links(keep, toolkit_links(paths, image.spec.python, image.resolution.toolkit))
    target = scratch / "top.sqfs"
    workshop.run(squash_command(keep, target))
    return Source(target)


def final_labels(written: Mapping[str, str], image: Image) -> dict[str, str]:
    """Apptainer's labels as the whole definition gives them, without the time of the build: an image has none."""
    prefix = "org.label-schema.usage.singularity.deffile."
    said = dict(line.split(": ", 1) for line in header(image.base.source).splitlines())
    kept_labels = {name: value for name, value in written.items() if name != "org.label-schema.build-date"}
    named = {f"{prefix}{name.lower()}": value for name, value in said.items() if name != "MirrorURL"}
    return dict(sorted({**kept_labels, **named}.items()))


def _make_links(root: Path, links: Mapping[str, str]) -> None:
    for path, target in links.items():
        link = root / path[1:]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
