"""Small disks that can be full: ext4 in a file, mounted at a directory."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"


@contextmanager
def disk(root: Path, name: str, megabytes: int) -> Iterator[Path]:
    """A filesystem of its own at `root/name`. Its file is sparse, so it takes what is written into it.

    Raises `CalledProcessError` where nothing may be mounted.
    """
    image, place = root / f"{name}.ext4", root / name
    place.mkdir()
    with image.open("wb") as stream:
        stream.truncate(megabytes * 10**6)
    try:
        options = ("-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1")
        subprocess.run(["/usr/sbin/mkfs.ext4", *options, str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
        try:
            (place / "lost+found").rmdir()
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        image.unlink()


def why_no_disks(root: Path) -> str | None:
    """Why this host cannot have them; None where it can."""
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    try:
        with disk(root, "tried", 8):
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        return f"a small disk cannot be mounted here: {said.decode(errors='replace').strip()}"


def fill(place: Path) -> None:
    """Leave no block free."""
    with (place / FILLER).open("ab") as stream:
        size = 1 << 30
        while size >= 512:
            try:
                os.posix_fallocate(stream.fileno(), stream.seek(0, os.SEEK_END), size)
            except OSError:
                size //= 2


def free(place: Path) -> None:
    """As it was before `fill`."""
    (place / FILLER).unlink()
