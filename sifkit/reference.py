"""Names of images in registries, and the docker base that a lock pins. What a registry answers is in `registry`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from sifkit.credentials import DOCKER_HUB
from sifkit.errors import UsageError
from sifkit.lock import base_of
from sifkit.model import Base, DockerBase, ImageBase, Lock, Site

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_REFERENCE = re.compile(
    r"(?:(?P<registry>(?:localhost|[A-Za-z0-9-]*[.:A-Z][A-Za-z0-9.:-]*|\[[0-9a-fA-F:]+\](?::[0-9]+)?))/)?"
    rf"(?P<repository>{_COMPONENT}(?:/{_COMPONENT})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?"
    r"(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)


@dataclass(frozen=True)
class Reference:
    """An image's name, whole: `docker.io/library/debian:trixie-slim`."""

    registry: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a name as Docker does: no registry is Docker Hub, no tag is `latest`. Raises `UsageError`."""
        found = _REFERENCE.fullmatch(text.removeprefix("docker://").removeprefix("oras://"))
        if found is None:
            raise UsageError(f"{text!r} is no image's name", "write REGISTRY/NAME:TAG, as in docker.io/debian:trixie")
        registry = found["registry"] or DOCKER_HUB
        registry = DOCKER_HUB if registry in ("index.docker.io", "registry-1.docker.io") else registry
        repository = found["repository"]
        if registry == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        tag = found["tag"] or ("" if found["digest"] else "latest")
        return cls(registry, repository, tag, found["digest"] or "")

    def at(self, digest: str) -> Reference:
        """The same name by digest, without a tag: nothing that reads definitions takes both."""
        return replace(self, tag="", digest=digest)

    @property
    def short(self) -> str:
        """As people write it: without the registry and folder that Docker assumes."""
        name = f"{self.registry}/{self.repository}" if self.registry != DOCKER_HUB else self.repository
        return f"{name.removeprefix('library/')}{self._end}"

    def __str__(self) -> str:
        return f"{self.registry}/{self.repository}{self._end}"

    @property
    def _end(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def mirrored(reference: Reference, site: Site) -> Reference:
    """Where this site takes an image from: the name itself, or the one that its mirror has for it."""
    known = site.registries.get(reference.registry)
    if known is None or known.mirror is None:
        return reference
    host, _, folder = known.mirror.partition("/")
    return replace(reference, registry=host, repository=f"{folder}/{reference.repository}".lstrip("/"))


def reference_of(source: Base) -> Reference | None:
    """The name of a docker base that stands under a tag; None for what needs no digest."""
    if not isinstance(source, DockerBase):
        return None
    reference = Reference.parse(source.from_)
    return None if reference.digest else reference


def pinned(base: ImageBase, lock: Lock) -> ImageBase:
    """The base by the digest that the lock has for its name; as it is, where the lock has none for it.

    A name with both a tag and a digest loses its tag, which Apptainer does not take beside a digest.
    """
    source = base.source
    if not isinstance(source, DockerBase):
        return base
    reference = Reference.parse(source.from_)
    locked = base_of(lock.text)
    digest = reference.digest or (locked.digest if locked and locked.name == str(reference) else "")
    if not digest:
        return base
    return replace(base, source=source.model_copy(update={"from_": reference.at(digest).short}))
