"""What an image is in a registry: its manifest, and those of the artifacts that refer to it. Pure.

Sources: github.com/opencontainers/image-spec, manifest.md ("Guidelines for Artifact Usage") and descriptor.md;
the image itself as `apptainer push` writes it [compared with 1.4.5], so that `apptainer pull oras://` reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from sifkit.errors import UsageError
from sifkit.reference import Reference
from sifkit.registry import INDEXES, MANIFESTS, Manifest, sha256_digest

SIF_CONFIG = "application/vnd.sylabs.sif.config.v1+json"
SIF_LAYER = "application/vnd.sylabs.sif.layer.v1.sif"
_SIF_LAYERS = (SIF_LAYER, "appliciation/vnd.sylabs.sif.layer.tar")  # the first releases wrote the second, so spelled
_EMPTY = "application/vnd.oci.empty.v1+json"
NOTHING = b"{}"  # the configuration of both kinds

KIND = "org.sifkit.kind"
_TITLE = "org.opencontainers.image.title"
_CREATED = "org.opencontainers.image.created"
_DIGEST = re.compile("sha256:[0-9a-f]{64}")


class Kind(Enum):
    """What travels with an image."""

    MANIFEST = "manifest"
    SBOM = "sbom"
    REPORT = "report"


_ARTIFACT = {
    Kind.MANIFEST: "application/vnd.sifkit.manifest.v1+json",
    Kind.SBOM: "application/vnd.cyclonedx+json",  # what scanners look for
    Kind.REPORT: "application/vnd.sifkit.report.v1+json",
}
MANIFEST_FILE, SBOM_FILE, REPORT_FILE = "manifest.json", "sbom.cdx.json", "report.json"
FILES = {
    Kind.MANIFEST: {MANIFEST_FILE: "application/json"},
    Kind.SBOM: {SBOM_FILE: "application/vnd.cyclonedx+json"},
    Kind.REPORT: {REPORT_FILE: "application/json", "report.html": "text/html", "junit.xml": "application/xml"},
}


@dataclass(frozen=True)
class Descriptor:
    """A blob or a manifest, as others name it."""

    media_type: str
    digest: str
    size: int  # bytes
    artifact_type: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Without what is empty."""
        values = {"mediaType": self.media_type, "size": self.size, "digest": self.digest}
        more = {"artifactType": self.artifact_type, "annotations": dict(self.annotations)}
        return {**values, **{name: value for name, value in more.items() if value}}

    @classmethod
    def from_json(cls, value: Any) -> Descriptor:
        """Raises `ValueError` for what is none, or of a digest other than sha256."""
        try:
            kind, digest, size = value["mediaType"], value["digest"], value["size"]
            artifact, notes = value.get("artifactType") or "", value.get("annotations") or {}
        except (TypeError, KeyError, AttributeError):
            raise ValueError("no descriptor") from None
        if not isinstance(notes, dict):
            raise ValueError("no descriptor")
        texts = all(isinstance(one, str) for one in (kind, digest, artifact, *notes, *notes.values()))
        if not texts or not isinstance(size, int) or size < 0 or not _DIGEST.fullmatch(digest):
            raise ValueError("no descriptor")
        return cls(kind, digest, size, artifact, notes)

    @property
    def title(self) -> str:
        """The file's name."""
        return self.annotations.get(_TITLE, "")

    @property
    def created(self) -> str:
        """ISO 8601; "" where it does not say."""
        return self.annotations.get(_CREATED, "")


@dataclass(frozen=True)
class Companion:
    """What refers to an image: one kind of thing, as its files by name. `created`: ISO 8601."""

    kind: Kind
    files: Mapping[str, bytes]
    created: str = ""


def blob_of(data: bytes, media_type: str, title: str = "") -> Descriptor:
    """How a manifest names these bytes."""
    return Descriptor(media_type, sha256_digest(data), len(data), annotations={_TITLE: title} if title else {})


def image_manifest(digest: str, size: int, title: str) -> Manifest:
    """Of a SIF file; the same file gives the same manifest."""
    layer = Descriptor(SIF_LAYER, digest, size, annotations={_TITLE: title})
    return _manifest({"config": blob_of(NOTHING, SIF_CONFIG).as_json(), "layers": [layer.as_json()]})


def companion_manifest(companion: Companion, subject: Manifest) -> Manifest:
    """Of something that refers to `subject`."""
    layers = [blob_of(data, FILES[companion.kind][name], name) for name, data in sorted(companion.files.items())]
    content = {
        "artifactType": _ARTIFACT[companion.kind],
        "config": blob_of(NOTHING, _EMPTY).as_json(),
        "layers": [layer.as_json() for layer in layers],
        "subject": Descriptor(subject.media_type, subject.digest, len(subject.data)).as_json(),
        "annotations": _notes(companion),
    }
    return _manifest(content)


def referrer(companion: Companion, manifest: Manifest) -> Descriptor:
    """How a list of referrers names it: with its artifact's type and all its annotations."""
    size = len(manifest.data)
    return Descriptor(manifest.media_type, manifest.digest, size, _ARTIFACT[companion.kind], _notes(companion))


def _notes(companion: Companion) -> dict[str, str]:
    return {KIND: companion.kind.value, **({_CREATED: companion.created} if companion.created else {})}


def _manifest(content: Mapping[str, Any]) -> Manifest:
    whole = {"schemaVersion": 2, "mediaType": MANIFESTS[0], **content}
    data = json.dumps(whole, separators=(",", ":")).encode()
    return Manifest(sha256_digest(data), MANIFESTS[0], data)


def index_of(rows: Sequence[Descriptor]) -> Manifest:
    """A list of referrers, as the referrers tag holds it."""
    content = {"schemaVersion": 2, "mediaType": INDEXES[0], "manifests": [row.as_json() for row in rows]}
    data = json.dumps(content, separators=(",", ":")).encode()
    return Manifest(sha256_digest(data), INDEXES[0], data)


def rows_of(index: Manifest) -> list[Descriptor]:
    """What a list of referrers names. Raises `ValueError` for what is no such list."""
    rows = index.content.get("manifests")
    if index.media_type != INDEXES[0] or not isinstance(rows, list):
        raise ValueError("no list of referrers")
    return [Descriptor.from_json(row) for row in rows]


def sif_of(reference: Reference, manifest: Manifest) -> Descriptor:
    """The one layer of an image for Apptainer. Raises `UsageError` for any other artifact, with what it is."""
    content = manifest.content
    try:
        layers = layers_of(manifest)
    except ValueError:
        layers = []
    if len(layers) == 1 and layers[0].media_type in _SIF_LAYERS:
        return layers[0]
    config = content.get("config")
    kind = content.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else "")
    if manifest.media_type in INDEXES or str(kind).endswith((".image.v1+json", ".image.config.v1+json")):
        raise UsageError(
            f"{reference} is a container image for Docker, not a .sif",
            f"build on it (base: {{bootstrap: docker, from: {reference.short}}}), "
            f"or convert it: apptainer pull docker://{reference}",
        )
    shown = str(kind or manifest.media_type)[:100]
    raise UsageError(f"{reference} is no image but {shown}", "name what `sifkit push` or `apptainer push` wrote")


def layers_of(manifest: Manifest) -> list[Descriptor]:
    """Raises `ValueError` for what has none."""
    layers = manifest.content.get("layers")
    if not isinstance(layers, list):
        raise ValueError("no layers")
    return [Descriptor.from_json(layer) for layer in layers]


def newest(rows: Sequence[Descriptor], kind: Kind) -> Descriptor | None:
    """The latest of ours of one kind; others may refer to an image with kinds of their own."""
    ours = [row for row in rows if row.annotations.get(KIND) == kind.value and row.media_type in MANIFESTS]
    return max(ours, key=lambda row: row.created, default=None)
