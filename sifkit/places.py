"""Directories of this host, tried: written, locked, measured. A dead network mount is left, not waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sifkit.child import ask
from sifkit.filesystems import mounted_type

_PROBE = Path(__file__).with_name("places_probe.py")
ANSWERS_WITHIN = timedelta(seconds=1)  # a file server that is alive answers in milliseconds


@dataclass(frozen=True)
class Tried:
    """A directory, or the nearest above it that is there."""

    real: Path  # links followed, of what was tried
    exists: bool
    writable: bool
    locks: bool | None  # None: not tried
    filesystem: str
    free: int  # bytes
    inodes: int | None
    fault: str | None  # in the system's words
    answers: bool = True


def try_places(paths: Iterable[Path], within: timedelta = ANSWERS_WITHIN) -> dict[Path, Tried]:
    """All at the same time; files that are written are removed again."""
    wanted = tuple(dict.fromkeys(Path(os.path.abspath(path)) for path in paths))  # noqa: PTH100 no links followed
    if not wanted:
        return {}
    answers = [json.loads(line) for line in ask(_PROBE, [str(path) for path in wanted], within)]
    mounts = Path("/proc/mounts").read_text(encoding="utf-8", errors="replace")
    by_path = {wanted[answer["index"]]: _tried(answer, mounts) for answer in answers}
    return {path: by_path.get(path) or _silent(path, mounts) for path in wanted}


def fault_of(path: Path) -> str | None:
    """What keeps a file from being written and locked there; None when nothing does."""
    return try_places([path])[Path(os.path.abspath(path))].fault  # noqa: PTH100


def _tried(answer: dict[str, Any], mounts: str) -> Tried:
    real = Path(answer.get("real", "/"))
    return Tried(
        real=real,
        exists=answer.get("exists", False),
        writable=answer["writable"],
        locks=answer.get("locks"),
        filesystem=mounted_type(real, mounts),
        free=answer.get("free", 0),
        inodes=answer.get("inodes"),
        fault=answer.get("fault"),
    )


def _silent(path: Path, mounts: str) -> Tried:
    fault = "it does not answer (a network mount whose server is gone?)"
    return Tried(path, False, False, None, mounted_type(path, mounts), 0, None, fault, answers=False)
