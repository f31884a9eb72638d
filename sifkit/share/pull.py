"""`pull`: an image and what belongs to it, brought from a registry. It gets its name when all of it was checked."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError

from sifkit import sign
from sifkit.apptainer import Apptainer
from sifkit.errors import ProblemFound, UsageError
from sifkit.files import write_whole
from sifkit.hashes import sha256_of
from sifkit.meter import Meter, size_text
from sifkit.model import IMAGE_NAME
from sifkit.provenance import read_carried, tell
from sifkit.reference import Reference
from sifkit.registry import Client, Manifest, Settings, sha256_digest
from sifkit.share.artifact import FILES, MANIFEST_FILE, SBOM_FILE, Descriptor, Kind, layers_of, newest, sif_of
from sifkit.share.download import Download, fetch
from sifkit.share.patience import Patience
from sifkit.share.referrers import referrers
from sifkit.sif import fault_of
from sifkit.store import Manifest as ImageManifest
from sifkit.store import exclusive
from sifkit.tools import Tools

_LARGEST = 1 << 26  # bytes of one file that travels with an image
_TAGS_SHOWN = 10


@dataclass(frozen=True)
class Offer:
    """What a registry has under a name."""

    reference: Reference
    digest: str  # of the artifact
    layer: Descriptor  # the .sif
    manifest: ImageManifest | None  # None: pushed by another program, or from a file
    files: Mapping[str, str] = field(default_factory=dict)  # what travels with it, by name

    @property
    def sha256(self) -> str:
        """Of the .sif."""
        return self.layer.digest.removeprefix("sha256:")


@dataclass(frozen=True)
class Pulled:
    """What is here now."""

    offer: Offer
    path: Path
    fetched: bool  # False: it was here
    beside: Path | None  # the directory of what travelled with it


def pull(reference: Reference, output: Path | None, tools: Tools, settings: Settings, *, force: bool = False) -> Pulled:
    """Bring an image into images/, or into the file `output`. Raises with the fix for whatever stands in the way.

    `force`: put it in place of another one.
    """
    with Client(reference.registry, settings) as client:
        offer = ask(client, reference)
        fetching = _Fetching(client, offer, tools, settings, force)
        path, beside, fetched = fetching.into_file(output.absolute()) if output else fetching.into_store()
    tools.progress.note(f"{path}  {size_text(offer.layer.size)}  sha256 {offer.sha256[:12]}…")
    return Pulled(offer, path, fetched, beside if offer.files else None)


# ---------------------------------------------------------------------------------------------- asking


def ask(client: Client, reference: Reference) -> Offer:
    """What is behind a name. Raises `UsageError` for a name that is not there, or is no image for Apptainer."""
    found = client.find_manifest(reference)
    if found is None:
        raise UsageError(f"{client.registry} has no {reference.short}", _other_tags(client, reference))
    layer = sif_of(reference, found)
    files = _files(client, reference.at(found.digest))
    listed = files.get(MANIFEST_FILE)
    return Offer(reference, found.digest, layer, _image_manifest(listed, layer, reference) if listed else None, files)


def _other_tags(client: Client, reference: Reference) -> str:
    with client.request("GET", f"{reference.repository}/tags/list", reference.repository) as answer:
        try:
            tags = [str(tag) for tag in answer.json()["tags"] or ()] if answer.ok else []
        except (ValueError, KeyError, TypeError):
            tags = []
    tags = [tag for tag in tags if re.fullmatch("[A-Za-z0-9_][A-Za-z0-9._-]*", tag) and not tag.startswith("sha256-")]
    if not tags:
        return f"correct the name, or push it first: sifkit push IMAGE oras://{reference}"
    more = f" and {len(tags) - _TAGS_SHOWN} more" if len(tags) > _TAGS_SHOWN else ""
    return f"take a tag that is there: {', '.join(tags[-_TAGS_SHOWN:])}{more}"


def _files(client: Client, subject: Reference) -> dict[str, str]:
    """The texts that travel with an image, each checked against its digest."""
    found: dict[str, str] = {}
    rows = referrers(client, subject)
    for kind in Kind:
        row = newest(rows, kind)
        manifest = client.find_manifest(replace(subject, digest=row.digest)) if row else None
        for layer in _layers(manifest, subject) if manifest else ():
            if layer.title in FILES[kind]:
                found[layer.title] = _text(client, subject, layer)
    return found


def _layers(manifest: Manifest, subject: Reference) -> list[Descriptor]:
    try:
        return layers_of(manifest)
    except ValueError:
        raise _damaged(subject, f"the artifact {manifest.digest} that refers to it") from None


def _text(client: Client, subject: Reference, layer: Descriptor) -> str:
    if layer.size > _LARGEST:
        raise ProblemFound(f"{subject}: its {layer.title} has {size_text(layer.size)}", "have the image pushed again")
    data = b""
    for piece in client.blob(subject, layer.digest):
        data += piece
        if len(data) > layer.size:
            break
    if sha256_digest(data) != layer.digest:
        raise _damaged(subject, f"its {layer.title}")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _damaged(subject, f"its {layer.title}") from None


def _damaged(reference: Reference, what: str) -> ProblemFound:
    return ProblemFound(f"{reference}: {what} is damaged in the registry", "have the image pushed again")


def _image_manifest(text: str, layer: Descriptor, reference: Reference) -> ImageManifest | None:
    """None for one of another release. Raises `ProblemFound` for that of another image."""
    try:
        found = TypeAdapter(ImageManifest).validate_json(text)
    except ValidationError:
        return None
    if (f"sha256:{found.sha256}", found.size) != (layer.digest, layer.size) or not re.fullmatch(IMAGE_NAME, found.name):
        raise ProblemFound(
            f"{reference}: the {MANIFEST_FILE} that refers to it is of another image", "have the image pushed again"
        )
    return found


# ---------------------------------------------------------------------------------------------- fetching


@dataclass(frozen=True)
class _Fetching:
    client: Client
    offer: Offer
    tools: Tools
    settings: Settings
    force: bool

    def into_store(self) -> tuple[Path, Path, bool]:
        """Into images/, with its manifest; what is there already is not fetched."""
        manifest, store = self.offer.manifest, self.tools.store
        if manifest is None:
            raise UsageError(
                f"{self.offer.reference} comes without a manifest of sifkit's, which an image in images/ has",
                "pull it into a file: -o FILE.sif",
            )
        name, target = manifest.name, store.sif(manifest.name)
        beside = self.tools.project.reports / name / "pulled"
        with self._alone(store.directory / f".{name}.lock", target) as guard:
            store.remove_partials(name)
            there, size_and_time = store.manifest(name), store.on_disk(name)
            same = there is not None and (there.size, there.mtime_ns) == size_and_time
            fetching = not (there and same and there.sha256 == self.offer.sha256)
            if fetching:
                self._require_replaceable(target)
                coming, partial = self._bring(target), store.partial(name)
                with self.tools.runner.removing(partial, lock=guard):
                    coming.replace(partial)
                    store.publish(replace(manifest, mtime_ns=partial.stat().st_mtime_ns))
            _keep_files(self.offer, beside)
        return target, beside, fetching

    def into_file(self, target: Path) -> tuple[Path, Path, bool]:
        """Into a file of any name."""
        if not target.parent.is_dir():
            raise UsageError(f"{target.parent}: there is no such directory", "make it, or name another file")
        if target.is_dir():
            raise UsageError(f"{target} is a directory", f"name a file: -o {target}/NAME.sif")
        beside = target.with_name(f"{target.name.removesuffix('.sif')}.pulled")
        with self._alone(target.with_name(f".{target.name}.lock"), target):
            same_size = target.is_file() and target.stat().st_size == self.offer.layer.size
            fetching = not (same_size and sha256_of(target) == self.offer.sha256)
            if fetching:
                self._require_replaceable(target)
                coming = self._bring(target)
                with coming.open("rb") as file:
                    os.fsync(file.fileno())
                coming.replace(target)
            _keep_files(self.offer, beside)
        return target, beside, fetching

    @contextmanager
    def _alone(self, lock: Path, target: Path) -> Iterator[IO[str]]:
        """Two that pull the same, on any host of a shared filesystem, fetch once."""
        waiting = f"{target.name}: another pull or build of it is running; waiting for it to end"
        with exclusive(lock, lambda: self.tools.progress.note(waiting)) as guard:
            yield guard

    def _require_replaceable(self, target: Path) -> None:
        if target.exists() and not self.force:
            raise UsageError(
                f"{target} is another image than {self.offer.reference} (sha256 {self.offer.sha256[:12]}…)",
                "put this one in its place: --force; or keep both: -o FILE.sif",
            )

    def _bring(self, target: Path) -> Path:
        """The image, whole and checked, under a name that says what it will be."""
        layer = self.offer.layer
        coming = target.with_name(f".{target.name}.{self.offer.sha256[:16]}.download")
        for other in target.parent.glob(f".{glob.escape(target.name)}.{'?' * 16}.download"):
            if other != coming:  # of a pull that was given up
                other.unlink(missing_ok=True)
        meter = Meter(layer.size, self.tools.progress.line)
        patience = Patience(self.tools.progress.note, self.settings.sleep)
        with self.tools.progress.phase(f"pull {target.name}, {size_text(layer.size)}"):
            fetch(self.client, Download(self.offer.reference, layer, coming), meter, patience)
        try:
            require_sound(coming, self.offer, self.tools)
        except ProblemFound:
            coming.unlink()
            raise
        return coming


# ---------------------------------------------------------------------------------------------- judging


def require_sound(image: Path, offer: Offer, tools: Tools) -> None:
    """Raises `ProblemFound` for what is no image, not signed as the site asks, or not as described."""
    fault = fault_of(image)
    if fault:
        raise ProblemFound(
            f"{offer.reference} is no image: {fault}", "have it pushed again, from the file as it was built"
        )
    _require_signature(image, offer, tools)
    _require_described(image, offer)


def _require_signature(image: Path, offer: Offer, tools: Tools) -> None:
    policy = tools.site.signatures
    if not policy.required and not sign.signatures(image):
        return
    name = offer.manifest.name if offer.manifest else offer.reference.repository.rpartition("/")[2]
    with tools.progress.phase(f"{name}: check its signature"):
        try:
            found = sign.check(image, policy, Apptainer.find(tools.runner), sign.keyring_of(tools.environ))
        except ProblemFound as error:
            fix = (error.fix or "").replace(image.stem, name)
            raise ProblemFound(
                f"{error.message.replace(str(image), str(offer.reference))}; it is not kept", fix
            ) from None
    said = f"; {found.state.value}" if found.state is sign.State.STRANGER else ""
    tools.progress.note(f"{name}: signed by {', '.join(found.fingerprints)}{said}")


def _require_described(image: Path, offer: Offer) -> None:
    """Manifest and bill say of the image what it carries itself: anybody who may push can attach others."""
    carried = read_carried(image)
    told, manifest = tell(carried, image), offer.manifest
    doubted = []
    if manifest:
        pairs = {"spec": (told.spec_digest, manifest.recipe.spec), "lock": (told.lock_digest, manifest.recipe.lock)}
        doubted += [f"{MANIFEST_FILE}: {what}" for what, (own, said) in pairs.items() if own and own != said]
    bill = offer.files.get(SBOM_FILE)
    doubted += [SBOM_FILE] if bill is not None and carried.sbom is not None and bill != carried.sbom else []
    if doubted:
        raise ProblemFound(
            f"{offer.reference}: what travels with it is not of this image ({', '.join(doubted)})",
            "have the image pushed again by whoever built it",
        )


def _keep_files(offer: Offer, directory: Path) -> None:
    if offer.files:
        directory.mkdir(parents=True, exist_ok=True)
    for name, text in offer.files.items():
        write_whole(directory / name, text)
