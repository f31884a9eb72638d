"""A blob brought into a file: it goes on where it stopped, in this run or a later one, and is checked as it comes."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sifkit.errors import HostError, ProblemFound
from sifkit.hashes import CHUNK
from sifkit.host import free_bytes, gigabytes
from sifkit.meter import Meter, size_text
from sifkit.reference import Reference
from sifkit.registry import Client, Lost
from sifkit.share.artifact import Descriptor
from sifkit.share.patience import Patience

SPARE = 64 << 20  # bytes that stay free


@dataclass(frozen=True)
class Download:
    """What is to be brought, and the file that it grows in, which nobody else writes."""

    reference: Reference
    blob: Descriptor
    target: Path

    @property
    def there(self) -> int:
        """Bytes that are there already; more than there can be count as none."""
        size = self.target.stat().st_size if self.target.is_file() else 0
        return size if size <= self.blob.size else 0


def require_room(download: Download) -> None:
    """Raises `HostError` with figures where the rest would not fit."""
    directory, needed = download.target.parent, download.blob.size - download.there + SPARE
    free = free_bytes(directory)
    if free < needed:
        raise HostError(
            f"not enough space in {directory}: {gigabytes(needed)} needed, {gigabytes(free)} free",
            "remove images that are no longer used, or pull to another filesystem: -o FILE",
        )


def fetch(client: Client, download: Download, meter: Meter, patience: Patience) -> None:
    """Bring the blob, whole and of the digest that its name says.

    Raises `Lost` when the registry stays away: what came is kept, and the next call goes on there. `ProblemFound` for
    data that is not what it should be: twice, if the first attempt went on with bytes of an earlier one.
    """
    require_room(download)
    resumed = download.there > 0
    digest = _fetch(client, download, meter, patience)
    if digest != download.blob.digest and resumed:
        download.target.unlink()
        digest = _fetch(client, download, meter, patience)
    if digest != download.blob.digest:
        download.target.unlink()
        raise ProblemFound(
            f"{download.reference}: what the registry sent is damaged: {digest}, not {download.blob.digest}; "
            "nothing of it is kept",
            "pull again; if it stays so, the registry's own copy is damaged: have the image pushed again",
        )


def _fetch(client: Client, download: Download, meter: Meter, patience: Patience) -> str:
    """Its digest."""
    hasher = hashlib.sha256()
    # 0o777: as Apptainer makes images; the umask counts
    with os.fdopen(os.open(download.target, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o777), "r+b") as file:
        file.truncate(download.there)
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
        meter.start_at(file.tell())
        while file.tell() < download.blob.size:
            _append(client, download, file, hasher, meter, patience)
    return f"sha256:{hasher.hexdigest()}"


def _append(
    client: Client, download: Download, file: IO[bytes], hasher: hashlib._Hash, meter: Meter, patience: Patience
) -> None:
    """As much as comes before the connection breaks. Raises `Lost` when it did too often."""
    before = file.tell()
    try:
        for piece in client.blob(download.reference, download.blob.digest, offset=before):
            piece = piece[: download.blob.size - file.tell()]
            _write(file, piece, download.target)
            hasher.update(piece)
            meter.add(len(piece))
        lost = Lost(f"{client.registry} ended the transfer before its end", "try again")
    except Lost as error:
        lost = error
    if file.tell() < download.blob.size:
        kept = f"{size_text(file.tell())} of {size_text(download.blob.size)} are kept in {download.target}"
        patience.after(lost, progressed=file.tell() > before, kept=kept, again="pull again: it goes on there")


def _write(file: IO[bytes], piece: bytes, path: Path) -> None:
    try:
        file.write(piece)
        file.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = gigabytes(free_bytes(path.parent))
        raise HostError(
            f"{path.parent} is full ({error.strerror}; {free} free); what came is kept in {path}",
            "free some space and pull again: it goes on there",
        ) from None
