"""Building from the cache alone: what `sifkit unbundle` put there, or earlier builds. Nothing here asks a network.

A base in the cache is named by its definition, with the mirror in it from which it was made. So that it serves where
that mirror is not, its source stands beside it (`BaseRecord`), and the image says of itself what it says elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from sifkit import execute, kept
from sifkit.apptainer import Apptainer
from sifkit.assemble import Layers, join, layers_held
from sifkit.deffile import needs_whole_build
from sifkit.errors import HostError, UsageError
from sifkit.host import host_bases
from sifkit.lock import base_of, current_lock
from sifkit.model import Base, DockerBase, Image, ImageBase, ImageSpec, Lock, OneWord, Strict
from sifkit.reference import pinned
from sifkit.resolve import resolution, resolve_base
from sifkit.sign import SigningKey
from sifkit.spec import load_spec
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop, base_path

_MOST = 12  # names in a message


class BaseRecord(Strict):
    """Where a base in the cache came from: beside `NAME.sif`, as `NAME.json`."""

    asked: OneWord | Base  # in specs
    identity: str
    source: Base


@dataclass(frozen=True)
class Held:
    """An image, and what of it the cache lacks, in words."""

    image: Image
    lacking: tuple[str, ...]


# ---------------------------------------------------------------------------------------------- what is there


def record_path(base: Path) -> Path:
    """Of a base in the cache."""
    return base.with_suffix(".json")


def record_of(image: Image) -> BaseRecord:
    """Of the base of an image as this host obtains it."""
    return BaseRecord(asked=image.spec.base, identity=image.base.identity, source=image.base.source)


def lacking(image: Image, tools: Tools, apptainer: Apptainer) -> tuple[str, ...]:
    """What a build would have to make that the cache does not hold; looks at names, reads no content."""
    base = base_path(image, tools.cache)
    layers = Layers(image, base, Workshop(tools, apptainer, tools.cache, Path(os.devnull)))
    missing = [layer.name for layer in layers.wanted if not _is_kept(layers.path(layer))]
    return (*(() if _is_kept(base) else (f"the base {base.stem}",)), *missing)


def _is_kept(path: Path) -> bool:
    return path.is_file() and kept.sum_of(path).is_file()


def find(name: str, tools: Tools, apptainer: Apptainer) -> Held:
    """An image on the base that the cache holds for its spec. Raises `UsageError` for whatever is wrong with it."""
    spec, path = load_spec(tools.project, name), tools.project.lock_path(name)
    wanted = resolution(spec, tools.tables, tools.site)
    lock = current_lock(wanted, path)
    lock_path = path.relative_to(tools.project.root).as_posix()
    images = [Image(spec, wanted, lock, lock_path, base) for base in _bases(spec, lock, tools)]
    for image in images[:1]:
        require_layers(image)
    return min((Held(image, lacking(image, tools, apptainer)) for image in images), key=lambda held: len(held.lacking))


def require_layers(image: Image) -> None:
    """Raises `UsageError` for an image that is made of more than a cache can hold."""
    if needs_whole_build(image):
        raise UsageError(
            f"{image.name} is built in one step: its raw sections, or files of the host, are in no cache",
            "build it where it can be built, and carry the .sif",
        )


def _bases(spec: ImageSpec, lock: Lock, tools: Tools) -> list[ImageBase]:
    """As the records of the cache say, the newest first, then as this host would obtain it."""
    name = spec.base if isinstance(spec.base, str) else ""
    records = [record for record in _records(tools.cache) if record.asked == spec.base and _is_locked(record, lock)]
    try:
        own = [pinned(resolve_base(spec, tools.site, host_bases(tools.runner)), lock)]
    except UsageError:  # no mirror here, or a name of another site's
        if not records:
            raise
        own = []
    identities = [own[0].identity if own else record.identity for record in records]
    found = [ImageBase(name, record.source, one) for record, one in zip(records, identities, strict=True)]
    return [*found, *own]


def _is_locked(record: BaseRecord, lock: Lock) -> bool:
    """Whether a base from a registry is the one whose digest is in the lock."""
    locked = base_of(lock.text)
    return not (locked and isinstance(record.source, DockerBase)) or record.source.from_.endswith(locked.digest)


def _records(cache: Path) -> list[BaseRecord]:
    paths = sorted((cache / "bases").glob("[!.]*.json"), key=lambda path: (-path.stat().st_mtime_ns, path.name))
    found = []
    for path in paths:
        try:
            found.append(BaseRecord.model_validate_json(path.read_bytes()))
        except ValidationError:
            raise HostError(f"{path} is damaged", "remove it, and unbundle again") from None
    return found


# ---------------------------------------------------------------------------------------------- building


def build_all(
    names: Sequence[str],
    tools: Tools,
    *,
    force: bool = False,
    checked: bool = True,
    signing: SigningKey | None = None,
    checkouts: bool = False,
) -> list[execute.Step]:
    """Build what is stale, from the cache alone; return what was planned.

    Raises `HostError` that names all that is missing, before anything is built. `checkouts`: a verification follows.
    """
    apptainer = Apptainer.find(tools.runner)
    found = [find(name, tools, apptainer) for name in names]
    for held in found if checked else ():
        execute.require_fits(held.image.spec, held.image.lock, tools)
    steps = [execute.make_step(held.image, tools, force=force) for held in found]
    require_held([held for held, step in zip(found, steps, strict=True) if step.reasons])
    if checkouts:
        require_checkouts([held.image for held in found], tools)
    execute.say_current(steps, tools)
    execute.build_stale(steps, tools, execute.How(force, signing, assemble))
    return steps


def require_held(found: Sequence[Held]) -> None:
    """Raises `HostError` with the names of what is missing."""
    short = [held for held in found if held.lacking]
    if short:
        said = "\n".join(f"{held.image.name} cannot be built offline: {_missing(held.lacking)}" for held in short)
        raise HostError(said, _bring(*(held.image.name for held in short)))


def _missing(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"the cache lacks {', '.join(names[:_MOST])}{more}"


def _bring(*names: str) -> str:
    return f"where there is a network: sifkit bundle {' '.join(names)} -o FILE; then here: sifkit unbundle FILE"


def require_checkouts(images: Sequence[Image], tools: Tools) -> None:
    """Raises `HostError` for a checkout that a verification would fetch."""
    for image in images:
        version = image.spec.llamafactory.version
        if not (tools.cache / "checkouts" / version).is_dir():
            message = f"{image.name} cannot be verified offline: the cache has no checkout of LLaMA-Factory {version}"
            raise HostError(message, f"name one: --checkout DIR; or {_bring(image.name)}")


def assemble(image: Image, workshop: Workshop, target: Path, timings: Timings) -> None:
    """As `assemble.assemble`, but what is missing or damaged by now ends it. Raises `HostError` with the names."""
    tools = workshop.tools
    base = base_path(image, tools.cache)
    layers = Layers(image, base, workshop)
    with layers_held(tools):
        with timings.phase("read", tools.progress, f"check what the cache holds of {image.name}"):
            damaged = () if kept.is_whole(base) else (f"the base {base.stem}",)
            require_held([Held(image, (*damaged, *(layer.name for layer in layers.missing())))])
        with timings.phase("join", tools.progress, f"join {image.name}"), workshop.scratch() as scratch:
            join(image, layers.sources, workshop, scratch, target)
