"""`push`: an image and what belongs to it, sent to a registry. Under its tag it is there whole, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import ProblemFound, UsageError
from sifkit.hashes import sha256_of
from sifkit.meter import Meter, size_text
from sifkit.provenance import read_carried
from sifkit.reference import Reference
from sifkit.registry import Client, Manifest, NotTaken, Settings
from sifkit.share.artifact import (
    FILES,
    MANIFEST_FILE,
    NOTHING,
    REPORT_FILE,
    SBOM_FILE,
    Companion,
    Descriptor,
    Kind,
    companion_manifest,
    image_manifest,
    layers_of,
    referrer,
)
from sifkit.share.patience import Patience
from sifkit.share.referrers import add_referrers
from sifkit.share.upload import Upload, memory_of, send, send_bytes
from sifkit.sif import NotSif
from sifkit.store import Manifest as ImageManifest
from sifkit.store import exclusive
from sifkit.tools import Tools


@dataclass(frozen=True)
class Parcel:
    """An image file and what goes with it. `manifest`: None for a file that is not of this project."""

    path: Path
    manifest: ImageManifest | None
    sha256: str
    size: int  # bytes
    companions: tuple[Companion, ...]

    @property
    def title(self) -> str:
        """The file's name, as others will see it."""
        return f"{self.manifest.name}.sif" if self.manifest else self.path.name


@dataclass(frozen=True)
class Pushed:
    """What is in the registry now."""

    reference: Reference
    digest: str  # of the artifact
    parcel: Parcel
    sent: bool  # the image itself; False: the registry had it


def push(word: str, reference: Reference, tools: Tools, settings: Settings) -> Pushed:
    """Send an image of this project, or any .sif. Raises with the fix for whatever stands in the way."""
    require_pushable(reference)
    found = pack(word, tools)
    subject = image_manifest(f"sha256:{found.sha256}", found.size, found.title)
    [layer] = layers_of(subject)
    memory = memory_of(tools.cache / "uploads", reference.registry, reference.repository, layer.digest)
    upload = Upload(reference.repository, layer, found.path, memory)
    waiting = f"{found.title}: another push of it is running; waiting for it to end"
    # alone on this host: the other's upload is not sent twice, and registries mix up equal manifests at the same time
    with (
        Client(reference.registry, settings) as client,
        exclusive(memory.with_suffix(".lock"), lambda: tools.progress.note(waiting)),
    ):
        sent = _send_image(client, upload, found.title, tools, settings)
        _send_config(client, reference.repository, subject)
        send_companions(client, reference.at(subject.digest), subject, found, tools.progress.note)
        client.put_manifest(reference, subject)
    tools.progress.note(f"{reference}  {subject.digest}")
    return Pushed(reference, subject.digest, found, sent)


def require_pushable(reference: Reference) -> None:
    """Raises `UsageError` for a name by digest."""
    if reference.digest:
        raise UsageError(
            f"{reference} names a digest, which follows from the image", "name a tag: oras://REGISTRY/NAME:TAG"
        )


# ---------------------------------------------------------------------------------------------- gathering


def pack(word: str, tools: Tools) -> Parcel:
    """The image, hashed, with what is known of it. Raises `ProblemFound` for one that is not what was built."""
    path = Path(word) if word.endswith(".sif") else tools.store.sif(word)
    if not path.is_file():
        raise UsageError(f"{path}: no such file", f"build it: python build.py {path.stem}")
    try:
        carried = read_carried(path)
    except NotSif as error:
        raise UsageError(
            f"{path} is no image: {error}", f"build it again: python build.py --force {path.stem}"
        ) from None
    own = path.absolute() == tools.store.sif(path.stem).absolute()
    manifest = tools.store.manifest(path.stem) if own else None
    with tools.progress.phase(f"{path.name}: compute its sha256"):
        sha256 = sha256_of(path)
    if own and (manifest is None or manifest.sha256 != sha256):
        raise ProblemFound(
            f"{path} is not the image that was built: " + ("its sha256 differs" if manifest else "it has no manifest"),
            f"build it again: python build.py --force {path.stem}; or push it as a file, from another directory",
        )
    report = _report(tools.project.reports / path.stem, sha256)
    bill = _bill(carried.sbom, manifest)
    listed = (
        Companion(Kind.MANIFEST, {MANIFEST_FILE: manifest.to_json().encode()}, manifest.built) if manifest else None
    )
    companions = tuple(one for one in (listed, bill, report) if one)
    return Parcel(path, manifest, sha256, path.stat().st_size, companions)


def _bill(text: str | None, manifest: ImageManifest | None) -> Companion | None:
    return Companion(Kind.SBOM, {SBOM_FILE: text.encode()}, manifest.built if manifest else "") if text else None


def _report(directory: Path, sha256: str) -> Companion | None:
    """The last verification, if it was of this very file."""
    try:
        files = {name: (directory / name).read_bytes() for name in FILES[Kind.REPORT] if (directory / name).is_file()}
        told = json.loads(files[REPORT_FILE])
        return Companion(Kind.REPORT, files, str(told["started"])) if told["sha256"] == sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---------------------------------------------------------------------------------------------- sending


def _send_image(client: Client, upload: Upload, title: str, tools: Tools, settings: Settings) -> bool:
    """False where the registry had it."""
    meter = Meter(upload.blob.size, tools.progress.line)
    patience = Patience(tools.progress.note, settings.sleep)
    with tools.progress.phase(f"push {title}, {size_text(upload.blob.size)}"):
        sent = send(client, upload, meter, patience)
    if not sent:
        tools.progress.note(f"{title}: the registry has it already")
    return sent


def _send_config(client: Client, repository: str, manifest: Manifest) -> None:
    send_bytes(client, repository, NOTHING, Descriptor.from_json(manifest.content["config"]))


def send_companions(
    client: Client, subject: Reference, manifest: Manifest, found: Parcel, say: Callable[[str], None]
) -> None:
    """They come before the tag: whoever pulls it finds them. `subject`: the image, by digest.

    A registry that takes images alone gets the image alone, which is said.
    """
    unlisted = []
    try:
        for companion in found.companions:
            own = companion_manifest(companion, manifest)
            _send_files(client, subject.repository, own, companion.files)
            if not client.put_manifest(subject, own):
                unlisted.append(referrer(companion, own))
    except NotTaken as error:
        say(f"{found.title}: pushed alone, so it can be pulled into a file only (-o FILE): {error.message}")
        return
    if unlisted:
        add_referrers(client, subject, unlisted)


def _send_files(client: Client, repository: str, manifest: Manifest, files: Mapping[str, bytes]) -> None:
    _send_config(client, repository, manifest)
    for layer in layers_of(manifest):
        send_bytes(client, repository, files[layer.title], layer)
