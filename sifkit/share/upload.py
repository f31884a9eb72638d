"""A file sent as a blob: in pieces, going on where the registry says it stopped, else from the beginning.

Source: github.com/opencontainers/distribution-spec, spec.md, "Pushing blobs". Docker's registry 2.8 goes on only from
the end of a whole piece, and only by the newest location that it gave [tried with 2.8.2]; hence pieces, not too large.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests

from sifkit.errors import HostError, ProblemFound
from sifkit.meter import Meter, size_text
from sifkit.registry import PUSH, Client, Lost
from sifkit.share.artifact import Descriptor
from sifkit.share.patience import Patience

PIECE = 16 << 20  # bytes; more where the registry asks for it
_OCTETS = {"Content-Type": "application/octet-stream"}
_MOST_RESTARTS = 3
_WHOLE_ONLY = (400, 404, 405, 411, 413, 415, 416, 501)  # of a first piece: the registry takes none, or not this size


@dataclass(frozen=True)
class Upload:
    """What is to be sent where, and the file that remembers how far it is."""

    repository: str
    blob: Descriptor
    source: Path
    memory: Path


@dataclass(frozen=True)
class _Session:
    """An upload that the registry has begun: where the next piece goes, and how many bytes it has."""

    location: str
    offset: int = 0
    piece: int = PIECE


def memory_of(directory: Path, registry: str, repository: str, digest: str) -> Path:
    """The file that remembers an upload."""
    name = hashlib.sha256(f"{registry}/{repository}@{digest}".encode()).hexdigest()[:32]
    return directory / f"{name}.json"


def send(client: Client, upload: Upload, meter: Meter, patience: Patience) -> bool:
    """Send the file, unless the repository has it; its memory is ours alone.

    False where it was there. Raises `Lost` when the registry stays away, `HostError` for one that takes no pushes.
    """
    there = client.has_blob(upload.repository, upload.blob.digest)
    forgotten = 0
    while not there and not _attempt(client, upload, meter, patience):
        upload.memory.unlink(missing_ok=True)
        forgotten += 1
        if forgotten == _MOST_RESTARTS:
            _raise_not_taken(client, upload.repository)
    upload.memory.unlink(missing_ok=True)
    return not there


def send_bytes(client: Client, repository: str, data: bytes, blob: Descriptor) -> None:
    """Send something small, unless the repository has it."""
    if client.has_blob(repository, blob.digest):
        return
    if not _put(client, repository, blob, _begin(client, repository), io.BytesIO(data)):
        _raise_not_taken(client, repository)


def _raise_not_taken(client: Client, repository: str) -> NoReturn:
    raise HostError(
        f"{client.registry} forgets each upload to {repository} before its end, or says that other bytes came",
        "push again; if it stays so, ask whoever runs the registry to look into its log",
    )


def _attempt(client: Client, upload: Upload, meter: Meter, patience: Patience) -> bool:
    """Send until all is there; False where the registry does not know of the upload any more.

    Raises `Lost` when too many connections brought nothing.
    """
    while True:
        before = meter.done
        try:
            session = _recall(client, upload) or _begin(client, upload.repository)
            meter.start_at(session.offset)
            # of an earlier attempt all may be there, and only the answer was lost
            return _send_rest(client, upload, session, meter) or client.has_blob(upload.repository, upload.blob.digest)
        except Lost as lost:
            kept = f"{size_text(meter.done)} of {size_text(upload.blob.size)} are sent"
            again = "push again: it goes on there if the registry can, else from the beginning"
            patience.after(lost, progressed=meter.done > before, kept=kept, again=again)


def _begin(client: Client, repository: str) -> _Session:
    with client.request("POST", f"{repository}/blobs/uploads/", repository, actions=PUSH) as answer:
        if answer.status_code in (404, 405):
            _raise_no_pushes(client, repository, answer)
        client.require_ok(answer, repository)
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        piece = max(PIECE, int(least)) if re.fullmatch("[0-9]{1,10}", least) else PIECE
        return _Session(_location(answer), piece=piece)


def _raise_no_pushes(client: Client, repository: str, answer: requests.Response) -> NoReturn:
    why = "it has no such project" if answer.status_code == 404 else "it is read-only, or a mirror of another one"
    raise HostError(
        f"{client.registry} takes no pushes to {repository}: HTTP {answer.status_code}: {why}",
        "make the project there first, if the registry has projects; or push to another",
    )


def _recall(client: Client, upload: Upload) -> _Session | None:
    """The session of an earlier attempt, as far as the registry has it."""
    try:
        kept = json.loads(upload.memory.read_bytes())
        location, piece = str(kept["location"]), int(kept["piece"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    try:
        with client.request("GET", location, upload.repository, actions=PUSH) as answer:
            last = re.fullmatch("(?:bytes=)?0-([0-9]{1,18})", answer.headers.get("Range", ""))
            if answer.status_code != 204 or last is None:
                return None
            offset = int(last[1]) + 1 if last[1] != "0" else 0  # 0-0 is what registries say of an empty one
            return _Session(_location(answer, location), offset, piece) if offset <= upload.blob.size else None
    except Lost:
        raise
    except HostError:  # an address that a signature of its own let in, for a while
        return None


def _send_rest(client: Client, upload: Upload, session: _Session, meter: Meter) -> bool:
    """True when all is sent; False where the registry goes on no more."""
    with upload.source.open("rb") as file:
        while session.offset < upload.blob.size:
            file.seek(session.offset)
            data = file.read(session.piece)
            if not data:
                raise ProblemFound(f"{upload.source} became shorter while it was sent", "push again")
            after = _patch(client, upload.repository, session, data)
            if after is None:
                return session.offset == 0 and _send_whole(client, upload, meter)
            session = after
            _remember(upload, session)
            meter.add(len(data))
    return _put(client, upload.repository, upload.blob, session, None)


def _patch(client: Client, repository: str, session: _Session, data: bytes) -> _Session | None:
    """The session with one more piece; None where the registry refuses it."""
    end = session.offset + len(data)
    headers = {**_OCTETS, "Content-Range": f"{session.offset}-{end - 1}"}
    with client.request("PATCH", session.location, repository, actions=PUSH, headers=headers, data=data) as answer:
        if answer.status_code in _WHOLE_ONLY:
            return None
        client.require_ok(answer, repository)
        return replace(session, location=_location(answer, session.location), offset=end)


def _send_whole(client: Client, upload: Upload, meter: Meter) -> bool:
    """For registries that take no pieces."""
    session = _begin(client, upload.repository)
    with upload.source.open("rb", buffering=0) as raw:
        return _put(client, upload.repository, upload.blob, session, _Counted(raw, meter))


class _Counted(io.RawIOBase):
    """A file that tells how far it was read."""

    def __init__(self, raw: io.RawIOBase, meter: Meter) -> None:
        self._raw = raw
        self._meter = meter

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def __len__(self) -> int:
        return os.fstat(self._raw.fileno()).st_size

    def read(self, size: int = -1) -> bytes | None:
        data = self._raw.read(size)
        self._meter.add(len(data or b""))
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._meter.start_at(0)
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()


def _put(
    client: Client, repository: str, blob: Descriptor, session: _Session, body: io.BytesIO | _Counted | None
) -> bool:
    """The end of an upload, with its digest, which the registry checks. False where it does not agree."""
    url = f"{session.location}{'&' if urlsplit(session.location).query else '?'}digest={blob.digest}"
    headers = {**_OCTETS, **({"Content-Length": "0"} if body is None else {})}
    with client.request("PUT", url, repository, actions=PUSH, headers=headers, data=body) as answer:
        if answer.status_code in (400, 404, 416):  # other bytes than its digest says, or a forgotten upload
            return False
        client.require_ok(answer, repository)
        return True


def _location(answer: requests.Response, before: str = "") -> str:
    """Where an upload goes on. Behind a proxy some registries do not know that they are reached by https."""
    told = answer.headers.get("Location")
    if told is None and before:
        return before
    found, asked = urlsplit(urljoin(answer.url, told or "")), urlsplit(answer.url)
    if told is None or found.scheme not in ("http", "https"):
        raise HostError(f"{asked.netloc} does not say where an upload goes on", "is this a registry?")
    return urlunsplit(found._replace(scheme=asked.scheme) if found.hostname == asked.hostname else found)


def _remember(upload: Upload, session: _Session) -> None:
    """For a later run. What cannot be remembered is sent again."""
    text = json.dumps({"location": session.location, "piece": session.piece})
    with suppress(OSError):
        upload.memory.touch(mode=0o600)  # the location may hold a right of its own
        upload.memory.write_text(text, encoding="utf-8")
