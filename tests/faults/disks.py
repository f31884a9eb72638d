"""Small disks of a kind that is asked for: a filesystem in a file, mounted at a directory. They can be full."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILLER = "filler"
MAKE = {
    "ext4": ("/usr/sbin/mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=1"),
    "xfs": ("/usr/sbin/mkfs.xfs", "-q", "-m", "reflink=1"),
}
SMALLEST = {"ext4": 8, "xfs": 320}  # megabytes


@contextmanager
def disk(root: Path, name: str, megabytes: int, kind: str = "ext4") -> Iterator[Path]:
    """A filesystem of its own at `root/name`. Its file is sparse, so it takes what is written into it.

    Raises `CalledProcessError` where nothing may be mounted, `FileNotFoundError` where it cannot be made.
    """
    image, place = root / f"{name}.{kind}", root / name
    place.mkdir()
    with image.open("wb") as stream:
        stream.truncate(megabytes * 10**6)
    try:
        subprocess.run([*MAKE[kind], str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True, capture_output=True)
        try:
            if kind == "ext4":
                (place / "lost+found").rmdir()
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True)
    finally:
        image.unlink()


def why_no_disks(root: Path, kind: str = "ext4") -> str | None:
    """Why this host cannot have them; None where it can."""
    if os.geteuid() != 0:
        return "only root may mount a small disk"
    try:
        with disk(root, "tried", SMALLEST[kind], kind):
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
