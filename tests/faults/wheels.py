"""The toy packages with hashes in their RECORDs, as every real wheel has them."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from pathlib import Path

from tests.integration import toy


def make_wheelhouse(directory: Path) -> Path:
    """The toys, and the real uv and setuptools for the image's platform."""
    toy.make_wheelhouse(directory)
    for name in toy.TOYS:
        (wheel,) = directory.glob(f"{name}-*.whl")
        record_hashes(wheel)
    return directory


def record_hashes(wheel: Path) -> None:
    """Write a wheel again with the hash and size of each file in RECORD (PyPA's specification of wheels)."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (record,) = (name for name in files if name.endswith(".dist-info/RECORD"))
    rows = [f"{name},sha256={_hash(content)},{len(content)}" for name, content in files.items() if name != record]
    files[record] = "".join(f"{row}\n" for row in [*rows, f"{record},,"]).encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
