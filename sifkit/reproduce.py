"""`sifkit reproduce`: an image built again from what it carries, and compared with what it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from sifkit import __version__, execute, yamlfile
from sifkit.apptainer import Apptainer
from sifkit.deffile import render
from sifkit.difference import Comparison, compare
from sifkit.errors import HostError, ProblemFound
from sifkit.host import Room, choose_tmpdir
from sifkit.lock import parse_lock
from sifkit.model import Base, Debootstrap, DockerBase, Image, ImageBase, ImageSpec, Lock, Scratch
from sifkit.provenance import LOCK, SPEC, parse_debian_packages, read_carried
from sifkit.resolve import resolution
from sifkit.spec import Project
from sifkit.tools import Tools

SNAPSHOT_ADVICE = (
    "the mirror gives other Debian packages by now: `snapshot:` at the base, in the site file or the spec, "
    "has those of one moment"
)


@dataclass(frozen=True)
class Made:
    """What an image carries of its making."""

    spec: ImageSpec
    spec_text: str
    lock: Lock
    definition: str
    packages: str  # of Debian


@dataclass(frozen=True)
class Reproduction:
    """An image and its second build compared.

    `definition`: where this release writes another definition than the one that the image carries, a line each of both.
    `packages`: Debian packages that are not the same, the first image's version and the second's.
    """

    name: str
    comparison: Comparison
    definition: tuple[str, str] | None
    packages: tuple[str, ...]


def reproduce(path: Path, tools: Tools, *, fresh: bool = False) -> Reproduction:
    """Build the image again in a project of its own, and compare. `fresh`: no cached base or layer is used.

    Raises `ProblemFound` for an image that carries too little, and whatever a build raises.
    """
    made = read_made(path)
    image = image_of(made, tools)
    definition = first_difference(made.definition, render(image, sifkit_version=__version__))
    if definition:
        tools.progress.note(f"{image.name}: this release of sifkit, {__version__}, writes another definition")
    with workplace(made, image, tools, fresh=fresh) as own:
        step = execute.make_step(image, own)
        execute.build(step, own, Apptainer.find(own.runner), execute.How())
        again = own.store.sif(image.name)
        with tools.progress.phase(f"compare {path.name} with its second build"):
            comparison = compare(path, again)
        return Reproduction(
            image.name, comparison, definition, package_changes(made.packages, read_made(again).packages)
        )


@contextmanager
def workplace(made: Made, image: Image, tools: Tools, *, fresh: bool) -> Iterator[Tools]:
    """A project that holds this one spec and its lock; gone afterwards."""
    tmpdir = choose_tmpdir(tools.site, tools.environ, Room.for_lock(image.lock), tools.cache)
    tmpdir.mkdir(parents=True, exist_ok=True)
    with tools.runner.scratch("sifkit-again-", tmpdir) as root:
        project = Project(root)
        project.definitions.mkdir()
        project.spec_path(image.name).write_text(made.spec_text, encoding="utf-8")
        project.lock_path(image.name).write_text(made.lock.text, encoding="utf-8")
        # what was downloaded is checked against the lock's hashes anyway
        yield dataclasses.replace(tools, project=project, fresh_parts=root / "parts" if fresh else None)


# ---------------------------------------------------------------------------------------------- what an image carries


def read_made(path: Path) -> Made:
    """Spec, lock, definition and packages of an image. Raises `ProblemFound` for one that lacks them."""
    carried = read_carried(path)
    parts = {
        "spec": carried.spec,
        "lock": carried.lock,
        "definition": carried.definition,
        "list of Debian packages": carried.packages,
    }
    missing = [name for name, text in parts.items() if text is None]
    if missing:
        message = f"{path} cannot be built again from what it carries: it has no {', no '.join(missing)}"
        raise ProblemFound(message, "sifkit of this release builds images that carry all of it")
    spec, lock, definition, packages = (text or "" for text in parts.values())
    return Made(yamlfile.parse(spec, ImageSpec, SPEC), spec, parse_lock(lock, LOCK), definition, packages)


def image_of(made: Made, tools: Tools) -> Image:
    """The image that was built: its base is the one of the definition, wherever this site would take it from."""
    source = base_of(made.definition, made.spec.name)
    if isinstance(source, Scratch):
        message = f"{made.spec.name} was made of files of the host that built it, and nothing tells what they were"
        raise ProblemFound(
            message, "only images on a base with packages of a mirror or from an image can be built again"
        )
    if not isinstance(source, Debootstrap | DockerBase) and not Path(source.from_).exists():
        fix = "bring the base to the same place"
        raise HostError(f"{made.spec.name} was built on {source.from_}, which is not on this host", fix)
    name = made.spec.base if isinstance(made.spec.base, str) else ""
    wanted = resolution(made.spec, tools.tables, tools.site)
    base = ImageBase(name, source, f"definition:{name}")
    return Image(made.spec, wanted, made.lock, f"definitions/{made.spec.name}.lock", base)


_KEYS = {"Bootstrap": "bootstrap", "From": "from", "OSVersion": "suite", "MirrorURL": "mirror"}


def base_of(definition: str, name: str) -> Base:
    """The base that a definition's header names. Raises `ProblemFound` for a header that is not of sifkit's."""
    found: dict[str, str] = {}
    for line in definition.splitlines():
        key, colon, value = line.partition(": ")
        if line.startswith("%"):
            break
        if colon and key in _KEYS:
            found[_KEYS[key]] = value.strip()
    try:
        adapter: TypeAdapter[Base] = TypeAdapter(Base)
        return adapter.validate_python(found)
    except ValidationError:
        raise ProblemFound(f"the definition that {name} carries does not say on what it was built") from None


# ---------------------------------------------------------------------------------------------- what differs


def first_difference(before: str, after: str) -> tuple[str, str] | None:
    """The first line in which two texts differ, as each has it; None where they are equal."""
    for one, other in zip_longest(before.splitlines(), after.splitlines(), fillvalue=""):
        if one != other:
            return one.strip(), other.strip()
    return None


def package_changes(before: str, after: str) -> tuple[str, ...]:
    """Debian packages that two lists do not have alike, a line each: NAME OLD -> NEW."""
    had, has = _packages(before), _packages(after)
    return tuple(
        _change(key, had.get(key), has.get(key)) for key in sorted({*had, *has}) if had.get(key) != has.get(key)
    )


def _packages(text: str) -> dict[str, tuple[str, str | None]]:
    return {f"{one.name}:{one.architecture}": (one.version, one.sha256) for one in parse_debian_packages(text)}


def _change(key: str, old: tuple[str, str | None] | None, new: tuple[str, str | None] | None) -> str:
    name = key.removesuffix(":all")
    if old and new and old[0] == new[0]:
        return f"{name} {old[0]}: another file, sha256 {old[1] or 'unknown'} -> {new[1] or 'unknown'}"
    return f"{name} {old[0] if old else 'none'} -> {new[0] if new else 'none'}"
