"""What is known of others' images and tools, from `sifkit/data/importing.yaml`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sifkit import yamlfile
from sifkit.model import MinorVersion, OneWord, Strict
from sifkit.reference import Reference

_FILE = Path(__file__).parent.parent / "data" / "importing.yaml"


class _Image(Strict):
    image: OneWord
    tag: str
    source: str


class _Ngc(Strict):
    release: MinorVersion
    cuda: MinorVersion
    source: str


class CondaName(Strict):
    """What a package of conda's is elsewhere; nothing: it is not needed."""

    requirement: str | None = None
    apt: str | None = None
    cuda: bool = False


class Facts(Strict):
    """The file."""

    images: tuple[_Image, ...]
    releases: dict[str, OneWord]
    ngc: tuple[_Ngc, ...]
    conda: dict[str, CondaName]
    build_tools: tuple[OneWord, ...]
    apt_python: tuple[str, ...]


@cache
def facts() -> Facts:
    """Read once."""
    return yamlfile.load_own(_FILE, Facts)


@dataclass(frozen=True)
class KnownImage:
    """What the name of an image tells; empty where it does not."""

    torch: str = ""
    cuda: str = ""
    python: str = ""
    base: str = ""  # a logical name


def known_image(reference: Reference) -> KnownImage | None:
    """None for an image that no row knows: it is somebody's own."""
    name = f"{reference.registry}/{reference.repository}"
    for row in facts().images:
        if row.image == name:
            found = re.fullmatch(row.tag, reference.tag)
            return _image(found.groupdict(default="") if found else {})
    return None


def _image(found: dict[str, str]) -> KnownImage:
    cuda = found.get("cuda", "") or cuda_of(found.get("cu", ""))
    ngc = next((row.cuda for row in facts().ngc if row.release == found.get("ngc")), "")
    release = found.get("debian") or found.get("ubuntu") or ""
    base = facts().releases.get(release, "")
    own = cuda or found.get("python")  # a Python beside the system's, or CUDA below it: neither is needed
    return KnownImage(found.get("torch", ""), cuda or ngc, found.get("python", ""), "" if own else base)


def cuda_of(text: str) -> str:
    """`124` as `12.4`."""
    return f"{text[:-1]}.{text[-1]}" if re.fullmatch(r"\d{3}", text) else ""


def is_python_of_debian(package: str) -> bool:
    """Whether a Debian package is Python itself, or prepares for another Python."""
    return any(re.fullmatch(pattern, package) for pattern in facts().apt_python)
