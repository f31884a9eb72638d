"""What an image tells of its own making: objects of its SIF file beside the file system, written and read back.

`apptainer sif list` shows them and `apptainer sif dump` gives each, without anything of sifkit's: docs/provenance.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sifkit import __version__, yamlfile
from sifkit.errors import ProblemFound, UsageError
from sifkit.layers import TIME
from sifkit.lock import parse_lock
from sifkit.model import IMAGE_NAME, Image, ImageSpec, Inherited, Lock, LockedPackage
from sifkit.sif import DEFINITION, GENERIC_JSON, OBJECT_NAME, NotSif, SifObject, read_objects
from sifkit.sifwrite import NewObject, partition
from sifkit.squash import NotJoinable, Source, listing, read_file

GENERIC = 0x4007

SPEC = "spec.yaml"
LOCK = "requirements.lock"
DEBIAN_PACKAGES = "debian-packages"
SBOM = "sbom.cdx.json"
INSPECT = "inspect-metadata.json"  # what `apptainer inspect` reads, so that it starts no container [tried with 1.4.5]

_LARGEST = 1 << 25  # bytes of an object that is read whole
_IMAGE_DIR = "/opt/sifkit"
_VERSION = "org.sifkit.version"  # the label of every image of ours
_LABELS = "/.singularity.d/labels.json"
_DEFFILE = "org.label-schema.usage.singularity.deffile."
_ENVIRONMENT = re.compile(r"/\.singularity\.d/env/(10-docker[^/]*|90-environment)\.sh")  # those that Apptainer tells
_ATTRIBUTES = {
    "runscript": "/.singularity.d/runscript",
    "test": "/.singularity.d/test",
    "startscript": "/.singularity.d/startscript",
    "helpfile": "/.singularity.d/runscript.help",
    "deffile": "/.singularity.d/Singularity",
}


@dataclass(frozen=True)
class DebianPackage:
    """A line of `/opt/sifkit/debian-packages`. `sha256`: of the .deb, None where the base does not know it."""

    name: str
    version: str
    architecture: str
    sha256: str | None


def parse_debian_packages(text: str) -> tuple[DebianPackage, ...]:
    """`name version architecture sha256`, a line each. Raises `ProblemFound` for a line that is anything else."""
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if len(words) not in (3, 4):
            fix = "delete the base in the cache, and build again"
            raise ProblemFound(f"{DEBIAN_PACKAGES}:{number}: {line!r} names no package", fix)
        sha256 = words[3] if re.fullmatch("[0-9a-f]{64}", words[-1]) else None
        found.append(DebianPackage(words[0], words[1], words[2], sha256))
    return tuple(found)


# ---------------------------------------------------------------------------------------------- writing


def objects_of(
    image: Image,
    *,
    definition: str,
    debian_packages: str,
    spec_text: str,
    time: int = TIME,
    python_packages: Iterable[LockedPackage | Inherited] | None = None,
) -> tuple[NewObject, ...]:
    """Definition, spec, lock, the base's packages and the bill of materials, in this order.

    `python_packages`: where the image holds others than its lock says. `time`: in seconds, of the bill.
    """
    from sifkit.sbom import sbom_of  # here: CycloneDX's library takes long to import, and reading needs none of it

    locked: tuple[LockedPackage | Inherited, ...] = (*image.lock.packages, *image.lock.inherited)
    python = locked if python_packages is None else python_packages
    bill = sbom_of(image, parse_debian_packages(debian_packages), python, time=time, sifkit_version=__version__)
    return (
        NewObject(DEFINITION, "", definition.encode()),
        NewObject(GENERIC, SPEC, spec_text.encode()),
        NewObject(GENERIC, LOCK, image.lock.text.encode()),
        NewObject(GENERIC, DEBIAN_PACKAGES, debian_packages.encode()),
        NewObject(GENERIC_JSON, SBOM, bill.encode()),
    )


def inspect_metadata_of(top: Source) -> NewObject:
    """What `apptainer inspect` tells of a file system, as Apptainer writes it down when it builds an image.

    Without this object Apptainer starts a container to find out, which not every root may.
    """
    told = {*_ATTRIBUTES.values(), _LABELS}
    files = [path for path, entry in listing(top).items() if entry.kind == "file"]
    paths = [path for path in files if path in told or _ENVIRONMENT.fullmatch(path)]
    return inspect_metadata({path: read_file(top, path).decode("utf-8", "replace") for path in paths})


def inspect_metadata(files: Mapping[str, str]) -> NewObject:
    """The same, of texts by their path in the image."""
    texts = {path: text.rstrip("\n") for path, text in sorted(files.items())}
    attributes: dict[str, object] = {name: texts[path] for name, path in _ATTRIBUTES.items() if path in texts}
    attributes["environment"] = {path: text for path, text in texts.items() if _ENVIRONMENT.fullmatch(path)}
    attributes["labels"] = json.loads(files.get(_LABELS, "{}"))
    answer = {"data": {"attributes": attributes}, "type": "container"}
    return NewObject(GENERIC_JSON, INSPECT, json.dumps(answer, sort_keys=True, separators=(",", ":")).encode())


# ---------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Carried:
    """What an image file tells; None, where it does not carry that."""

    definition: str | None = None
    spec: str | None = None
    lock: str | None = None
    packages: str | None = None
    sbom: str | None = None
    labels: Mapping[str, str] | None = None
    facts: bool = False

    @property
    def nothing(self) -> bool:
        """An image that was built elsewhere: no spec, no lock, no list of packages."""
        return not any((self.spec, self.lock, self.packages, self.sbom))


def read_carried(path: Path) -> Carried:
    """Read the image file, starting nothing. Raises `NotSif`, or `OSError` for what cannot be opened.

    Images of earlier releases have spec and lock in their file system alone: they are read there.
    """
    objects = read_objects(path)
    named = {(found.kind, found.name): found for found in objects}
    labels = _labels(_text_of(path, named.get((GENERIC_JSON, INSPECT))), path)

    def text(name: str) -> str | None:
        carried = _text_of(path, named.get((GENERIC, name)))
        ours = labels is not None and _VERSION in labels
        return _inside(path, f"{_IMAGE_DIR}/{name}") if carried is None and ours else carried

    return Carried(
        definition=_text_of(path, next((found for found in objects if found.kind == DEFINITION), None)),
        spec=text(SPEC),
        lock=text(LOCK),
        packages=text(DEBIAN_PACKAGES),
        sbom=_text_of(path, named.get((GENERIC_JSON, SBOM))),
        labels=labels,
        facts=(GENERIC_JSON, OBJECT_NAME) in named,
    )


def _text_of(path: Path, found: SifObject | None) -> str | None:
    if found is None or found.size > _LARGEST:
        return None
    with path.open("rb") as file:
        file.seek(found.offset)
        return file.read(found.size).decode("utf-8", "replace")


def _inside(path: Path, inside: str) -> str | None:
    """A file of the image's file system; None where there is none, or the file system is of another kind."""
    try:
        return read_file(partition(path), inside).decode("utf-8", "replace")
    except (NotJoinable, NotSif, OSError):
        return None


def _labels(metadata: str | None, path: Path) -> dict[str, str] | None:
    """As Apptainer wrote them down when it built the image, else from its file system; None where neither tells."""
    try:
        if metadata is not None:
            return _texts(json.loads(metadata)["data"]["attributes"]["labels"])
        inside = _inside(path, _LABELS)
        return None if inside is None else _texts(json.loads(inside))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _texts(value: Mapping[object, object]) -> dict[str, str]:
    return {str(name): str(each) for name, each in value.items()}


# ---------------------------------------------------------------------------------------------- telling


@dataclass(frozen=True)
class Told:
    """What follows from what an image carries. Digests: of spec and lock, as its labels name them too."""

    name: str
    sifkit: str | None  # the release that built it
    versions: Mapping[str, str]
    base: str | None
    python_packages: int | None
    debian_packages: int | None
    spec: ImageSpec | None
    lock: Lock | None
    spec_digest: str | None
    lock_digest: str | None
    doubts: tuple[str, ...]  # what it carries and its labels do not agree in


_VERSIONS = ("llamafactory", "torch", "cuda", "python", "transformers")


def tell(carried: Carried, path: Path) -> Told:
    """Read what an image carries. What is no spec or no lock is said among the doubts."""
    labels = carried.labels or {}
    doubts: list[str] = []
    title = labels.get("org.opencontainers.image.title", "")
    spec = _read_spec(carried.spec, doubts)
    lock = _read_lock(carried.lock, doubts)
    digests = {"spec": spec.digest() if spec else None, "lock": lock.digest() if lock else None}
    for what, digest in digests.items():
        named = labels.get(f"org.sifkit.{what}-digest", "").removeprefix("sha256:")
        if digest and named and digest != named:
            doubts.append(f"the {what} that it carries is not the one that its labels name")
    return Told(
        name=title if re.fullmatch(IMAGE_NAME, title) else path.stem,
        sifkit=labels.get(_VERSION),
        versions={name: labels[f"org.sifkit.{name}"] for name in _VERSIONS if labels.get(f"org.sifkit.{name}")},
        base=labels.get("org.opencontainers.image.base.name") or labels.get(f"{_DEFFILE}from"),
        python_packages=len(lock.versions()) if lock else None,
        debian_packages=_lines(carried.packages),
        spec=spec,
        lock=lock,
        spec_digest=digests["spec"],
        lock_digest=digests["lock"],
        doubts=tuple(doubts),
    )


def _lines(text: str | None) -> int | None:
    return None if text is None else sum(bool(line.strip()) for line in text.splitlines())


def _read_spec(text: str | None, doubts: list[str]) -> ImageSpec | None:
    try:
        return yamlfile.parse(text, ImageSpec, SPEC) if text is not None else None
    except UsageError as error:
        doubts.append(f"its spec cannot be read by this release: {error.message}")
        return None


def _read_lock(text: str | None, doubts: list[str]) -> Lock | None:
    try:
        return parse_lock(text, LOCK) if text is not None else None
    except UsageError:
        doubts.append("its lock is not as sifkit wrote it")
        return None


def differences(told: Told, spec: ImageSpec, lock: Lock | None) -> tuple[str, ...]:
    """What the project's spec and lock say otherwise than the image, a line each: the image's value, then the new."""
    found = []
    if told.spec:
        was, now = _values(told.spec), _values(spec)
        keys = [key for key in (*was, *now) if was.get(key) != now.get(key)]
        found += [f"spec: {key}: {was.get(key, 'nothing')} -> {now.get(key, 'nothing')}" for key in dict.fromkeys(keys)]
    if told.lock and lock:
        had, has = told.lock.versions(), lock.versions()
        names = [name for name in sorted({*had, *has}) if had.get(name) != has.get(name)]
        found += [f"lock: {name}: {had.get(name, 'nothing')} -> {has.get(name, 'nothing')}" for name in names]
        if not names and told.lock.digest() != lock.digest():
            found.append("lock: the same versions, but other files or inputs")
    return tuple(found)


def _values(spec: ImageSpec) -> dict[str, str]:
    """Each value that counts for an image by its key, as `torch.version`."""
    flat: dict[str, str] = {}
    for key, value in spec.model_dump(mode="json", by_alias=True, exclude={"gpu", "driver"}).items():
        inner = value if isinstance(value, dict) else None
        flat |= {key: str(value)} if inner is None else {f"{key}.{name}": str(each) for name, each in inner.items()}
    return flat
