"""Digests of docker bases: what a tag stands for now, kept in the lock, used by the definition.

Asked of the Docker daemon where one runs, since it knows its mirrors and credentials, else of the registry. Either
names the digest of the tag itself: for images of several platforms that of their index, the same for everybody.
"""

from __future__ import annotations

import json
import platform as platform_
import socket
from collections.abc import Mapping

from sifkit.errors import SifkitError, UsageError
from sifkit.reference import Reference, mirrored
from sifkit.registry import INDEXES, Client, Manifest, Settings, sha256_digest

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "ppc64le": "ppc64le"}
SOCKET = "/var/run/docker.sock"
LARGEST_CONFIG = 4 << 20


def resolve(reference: Reference, settings: Settings, *, architecture: str | None = None) -> str:
    """The digest of a name, held to be for this platform. Raises with the fix for whatever stands in the way."""
    reference = mirrored(reference, settings.site)
    wanted = architecture or ARCHITECTURES.get(platform_.machine(), platform_.machine())
    told, refusal = _ask_daemon(reference, settings.environ, wanted)
    if told:
        return told
    try:
        with Client(reference.registry, settings) as client:
            manifest = client.manifest(reference)
            _require_platform(reference, _platforms(client, reference, manifest), wanted)
            return manifest.digest
    except SifkitError as error:
        said = f"\n  (the Docker daemon, asked first: {refusal})" if refusal else ""
        raise type(error)(f"{error.message}{said}", error.fix) from error


def _require_platform(reference: Reference, found: tuple[str, ...], wanted: str) -> None:
    if found and f"linux/{wanted}" not in found:
        raise UsageError(
            f"{reference.short} has no image for linux/{wanted}; it has {', '.join(sorted(set(found)))}",
            "take another base: from:",
        )


def _platforms(client: Client, reference: Reference, manifest: Manifest) -> tuple[str, ...]:
    """Which platforms an image is for; empty where it does not say."""
    if manifest.media_type in INDEXES:
        rows = [row.get("platform") or {} for row in manifest.content["manifests"]]
    else:
        rows = [_config(client, reference, manifest)]
    return tuple(f"{row['os']}/{row['architecture']}" for row in rows if row.get("os") and row.get("architecture"))


def _config(client: Client, reference: Reference, manifest: Manifest) -> Mapping[str, str]:
    """The configuration of an image. Raises `UsageError` for what is none: an artifact, a chart."""
    row = manifest.content.get("config") or {}
    if not str(row.get("mediaType", "")).endswith((".image.v1+json", ".image.config.v1+json")):
        kind = row.get("mediaType", "no configuration")
        raise UsageError(f"{reference.short} is no container image ({kind})", "name a container image: from:")
    data = b""
    for piece in client.blob(reference, row["digest"]):
        data += piece
        if len(data) > LARGEST_CONFIG:
            break
    if sha256_digest(data) != row["digest"]:
        raise UsageError(f"{reference.short}: its configuration is damaged in the registry", "push the image again")
    return dict(json.loads(data))


def _ask_daemon(reference: Reference, environ: Mapping[str, str], architecture: str) -> tuple[str, str]:
    """The digest, or why the daemon does not tell it; both empty where no daemon runs."""
    if not _listens(environ.get("DOCKER_HOST") or f"unix://{SOCKET}"):
        return "", ""
    import docker  # here: it takes a third of a second
    from docker.errors import DockerException
    from requests import RequestException

    try:
        client = docker.from_env(environment=dict(environ), timeout=30)
    except DockerException:  # not a daemon
        return "", ""
    try:
        data = client.images.get_registry_data(str(reference))
    except (DockerException, RequestException) as error:
        return "", " ".join(str(getattr(error, "explanation", None) or error).split())[:300]
    finally:
        client.close()
    rows = data.attrs.get("Platforms") or ()
    found = tuple(f"{row['os']}/{row['architecture']}" for row in rows if row.get("os") and row.get("architecture"))
    _require_platform(reference, found, architecture)
    return str(data.id), ""


def _listens(address: str) -> bool:
    """Whether something is behind a socket file, and for this user; other addresses are for the SDK to try."""
    scheme, _, path = address.partition("://")
    if scheme != "unix":
        return True
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
