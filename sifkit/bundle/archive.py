"""The file of a bundle: an uncompressed tar, whose first member names all others with their size and sha256.

The same content gives the same bytes. Names are of a few known forms, each a directory of ours and one plain name in
it, so that nothing in a bundle can name a place elsewhere. A reader takes regular files in the manifest's order, or
nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Literal, Protocol

from pydantic import Field, StringConstraints, ValidationError, model_validator

from sifkit.errors import ProblemFound, UsageError
from sifkit.hashes import CHUNK
from sifkit.layers import TIME
from sifkit.model import IMAGE_NAME, Strict

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_MANIFEST = 16 << 20  # bytes; an image has about 250 members of 200 bytes each
LONGEST_NAME = 255  # of a file anywhere
AGAIN = "copy it again, and compare its sha256 with the one that `sifkit bundle` said"

Kind = Literal["base", "layer", "checkout", "definition", "table", "sifkit", "apptainer"]
Told = Callable[[int], None]  # bytes that were read since the last call

_PLAIN = r"[A-Za-z0-9_][A-Za-z0-9._+!%~-]*"
_FORMS: dict[str, str] = {
    "base": rf"bases/{_PLAIN}\.(sif|json)",
    "layer": rf"layers/{_PLAIN}\.sqfs",
    "checkout": r"checkouts/[0-9][0-9a-z.]*\.tar",
    "definition": rf"definitions/{IMAGE_NAME}\.(yaml|lock)",
    "table": r"definitions/compat/[a-z][a-z0-9_-]*\.yaml",
    "sifkit": rf"sifkit/{_PLAIN}\.(whl|txt)",
    "apptainer": rf"apptainer/{_PLAIN}\.deb",
}


class Member(Strict):
    """One file in a bundle. Its name has the form of its kind, or it is refused."""

    name: Annotated[str, StringConstraints(max_length=LONGEST_NAME)]
    kind: Kind
    size: Annotated[int, Field(ge=0)]  # bytes
    sha256: Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]

    @model_validator(mode="after")
    def _of_its_form(self) -> Member:
        if not re.fullmatch(_FORMS[self.kind], self.name):
            raise ValueError(f"{self.name!r} is no name of a {self.kind}")
        return self

    @property
    def file(self) -> str:
        """Its name within its directory."""
        return self.name.rpartition("/")[2]


class Manifest(Strict):
    """What a bundle holds."""

    format: Literal[1] = 1
    sifkit: str  # the version that made it
    images: tuple[Annotated[str, StringConstraints(pattern=f"^{IMAGE_NAME}$")], ...]
    members: tuple[Member, ...]  # in the order in which they follow

    @model_validator(mode="after")
    def _each_once(self) -> Manifest:
        if len({member.name for member in self.members}) != len(self.members):
            raise ValueError("a name stands in it twice")
        return self

    def to_bytes(self) -> bytes:
        """The text of its member."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()

    def length(self, own: int) -> int:
        """Bytes of a whole bundle whose manifest's text takes `own` bytes."""
        blocks = _blocks(MANIFEST, own) + sum(_blocks(member.name, member.size) for member in self.members)
        return -(-(blocks + 2) * tarfile.BLOCKSIZE // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _blocks(name: str, size: int) -> int:
    """Of a member: its header, two more for a long name, and its content, which ends with a whole block."""
    return (1 if len(name) <= tarfile.LENGTH_NAME else 3) - (-size // tarfile.BLOCKSIZE)


@dataclass(frozen=True)
class Item:
    """A member, and where its content is."""

    member: Member
    source: Path | bytes

    @classmethod
    def of_bytes(cls, kind: Kind, name: str, content: bytes) -> Item:
        """Something small."""
        return cls(Member(name=name, kind=kind, size=len(content), sha256=hashlib.sha256(content).hexdigest()), content)

    @classmethod
    def of_file(cls, kind: Kind, name: str, path: Path, sha256: str) -> Item:
        """A file whose hash is known."""
        return cls(Member(name=name, kind=kind, size=path.stat().st_size, sha256=sha256), path)


# ---------------------------------------------------------------------------------------------- writing


def write(stream: IO[bytes], manifest: Manifest, items: Sequence[Item], told: Told) -> str:
    """Write a whole bundle; returns its sha256. Raises `ProblemFound` for a file that changed since it was hashed."""
    whole, text = _Hashing(stream, told), manifest.to_bytes()
    left = manifest.length(len(text))
    left -= _add(whole, MANIFEST, len(text), io.BytesIO(text))
    for item in items:
        with io.BytesIO(item.source) if isinstance(item.source, bytes) else item.source.open("rb") as source:
            read = _Hashing(source)
            left -= _add(whole, item.member.name, item.member.size, read)
        if read.sha256 != item.member.sha256:
            raise _changed(item.member.name)
    whole.write(bytes(left))
    return whole.sha256


def _add(target: _Hashing, name: str, size: int, source: _Readable) -> int:
    """A header and the content, filled up to a whole block; returns the bytes that were written."""
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size, TIME, 0o644  # the same for every user and moment
    target.write(header.tobuf(tarfile.GNU_FORMAT))
    left = size
    while left:
        chunk = source.read(min(CHUNK, left))
        if not chunk:
            raise _changed(name)
        target.write(chunk)
        left -= len(chunk)
    target.write(bytes(-size % tarfile.BLOCKSIZE))
    return _blocks(name, size) * tarfile.BLOCKSIZE


def _changed(name: str) -> ProblemFound:
    return ProblemFound(f"{name} changed while it was read", "run it again")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Hashing:
    """A stream whose content is hashed, and its bytes told, as it passes."""

    def __init__(self, stream: IO[bytes], told: Told = lambda _: None) -> None:
        self._stream, self._told, self._digest = stream, told, hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._pass(data)
        return data

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._pass(data)

    def _pass(self, data: bytes) -> None:
        self._digest.update(data)
        self._told(len(data))

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()


# ---------------------------------------------------------------------------------------------- reading


def read_manifest(path: Path) -> Manifest:
    """What a bundle says that it holds. Raises `UsageError` for what is none, `ProblemFound` for one that was cut."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file", "name a file that `sifkit bundle` made")
    try:
        with tarfile.open(path, "r:") as tar:
            text = _manifest_text(tar)
    except (tarfile.TarError, EOFError, ValueError):
        text = None
    if text is None:
        raise UsageError(f"{path} is no bundle of sifkit, or its beginning is damaged", f"make one, or {AGAIN}")
    manifest = _parsed(path, text)
    wanted, found = manifest.length(len(text)), path.stat().st_size
    if found < wanted:
        raise ProblemFound(f"{path} was cut: it has {found:,} of {wanted:,} bytes", AGAIN)
    if found > wanted:
        raise ProblemFound(f"{path} is damaged: {found - wanted:,} bytes follow its end", AGAIN)
    return manifest


def _manifest_text(tar: tarfile.TarFile) -> bytes | None:
    first = tar.next()
    if first is None or first.name != MANIFEST or first.type != tarfile.REGTYPE or first.size > LARGEST_MANIFEST:
        return None
    stream = tar.extractfile(first)
    text = stream.read() if stream else b""
    return text if len(text) == first.size else None


def _parsed(path: Path, text: bytes) -> Manifest:
    try:
        found = json.loads(text)
        number = found.get("format") if isinstance(found, dict) else None
        if isinstance(number, int) and number > FORMAT:
            raise UsageError(f"{path} is of format {number}, this sifkit reads {FORMAT}", "use the sifkit that made it")
        return Manifest.model_validate_json(text)
    except (ValidationError, ValueError, RecursionError) as error:
        said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ProblemFound(f"{path} is damaged: its {MANIFEST} cannot be read: {said}", AGAIN) from None


def contents(path: Path, manifest: Manifest) -> Iterator[tuple[Member, IO[bytes]]]:
    """Every member with its content, to be read before the next one. Raises `ProblemFound` for anything unexpected."""
    with tarfile.open(path, "r:") as tar:
        tar.next()  # the manifest
        for member in manifest.members:
            yield member, _content(tar, member, path)


def _content(tar: tarfile.TarFile, member: Member, path: Path) -> IO[bytes]:
    try:
        header = tar.next()
    except (tarfile.TarError, EOFError, ValueError):
        header = None
    fits = header is not None and (header.name, header.size, header.type) == (member.name, member.size, tarfile.REGTYPE)
    stream = tar.extractfile(header) if header is not None and fits else None
    if stream is None:
        raise ProblemFound(f"{path} is damaged: {member.name} is not where its manifest says", AGAIN)
    return stream


def copy(member: Member, stream: IO[bytes], target: IO[bytes] | None, path: Path, told: Told) -> None:
    """Read a member to its end, into `target` if one is given. Raises `ProblemFound` when its hash is another."""
    source = _Hashing(stream, told)
    try:
        while chunk := source.read(CHUNK):
            if target:
                target.write(chunk)
    except tarfile.ReadError:  # the file was cut since its length was compared
        raise ProblemFound(f"{path} is damaged: it ends within {member.name}", AGAIN) from None
    if source.sha256 != member.sha256:
        raise ProblemFound(f"{path} is damaged: {member.name} has another sha256 than its manifest says", AGAIN)


def check(path: Path, manifest: Manifest, told: Told) -> None:
    """Read every byte and compare every hash; nothing is written. Raises `ProblemFound` for the first that differs."""
    for member, stream in contents(path, manifest):
        copy(member, stream, None, path, told)
