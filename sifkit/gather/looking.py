"""Files of others, looked at carefully: nothing but plain files is opened, and a mount that does not answer is left."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TimedOut
from pathlib import Path
from typing import Any, TypeVar

ANSWERS_WITHIN = 2.0  # seconds; a file server that is alive answers in milliseconds
MAX_JSON = 16 << 20  # bytes of a file that is parsed as one JSON text
MAX_NAMES = 10_000  # of a directory
_LINKS = 40  # as the kernel follows (path_resolution(7))
_CHECKOUT = Path("/mnt")  # where the container has it

T = TypeVar("T")


def answer(call: Callable[[], T]) -> T | None:
    """What `call` returns or raises; None when it takes longer than a living filesystem does."""
    found: Future[T] = Future()

    def work() -> None:
        try:
            found.set_result(call())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, daemon=True).start()  # a dead mount must not keep us, now or at the end
    try:
        return found.result(ANSWERS_WITHIN)
    except TimedOut:  # another class than TimeoutError before Python 3.11
        if found.done():
            raise
        return None


def is_plain(path: Path) -> bool:
    """Whether it is a plain file, after links: pipes and devices are never opened."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def read_plain(path: Path, most: int) -> bytes | None:
    """Up to `most` bytes of a plain file; None for anything else, or what cannot be read."""
    if not is_plain(path):
        return None
    try:
        with path.open("rb") as file:
            return file.read(most)
    except OSError:
        return None


def read_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none."""
    content = read_plain(path, MAX_JSON + 1)
    if content is None or len(content) > MAX_JSON:
        return None
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def names_in(directory: Path) -> tuple[str, ...]:
    """What lies in a directory, sorted; empty when it cannot be listed."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) >= MAX_NAMES:
                    break
    except OSError:
        return ()
    return tuple(sorted(found))


def in_container(path: Path, root: Path) -> Path:
    """The place in the container of a place on this host: the checkout is at /mnt, the rest where it is here."""
    return _CHECKOUT / path.relative_to(root) if path.is_relative_to(root) else path


def on_host(place: Path, root: Path) -> Path:
    """The place on this host of a place in the container."""
    return root / place.relative_to(_CHECKOUT) if place.is_relative_to(_CHECKOUT) else place


def links_outside(path: Path, root: Path) -> tuple[Path, ...]:
    """Places outside the checkout to which links on the way lead, in the order in which the container meets them.

    `path` as this host has it. In the container an absolute link starts again at its root, and a relative one that
    climbs out of the checkout lands beside /mnt.
    """
    todo = list(reversed(in_container(path, root).parts[1:]))
    at, left, followed = Path("/"), [], 0
    while todo and followed < _LINKS:
        part = todo.pop()
        at = at.parent if part == ".." else at / part
        target = _target(on_host(at, root))
        if target is None:
            continue
        followed += 1
        at = Path("/") if target.is_absolute() else at.parent
        todo += reversed(target.parts[1:] if target.is_absolute() else target.parts)
        place = Path(os.path.normpath(at.joinpath(*reversed(todo))))
        if not place.is_relative_to(_CHECKOUT):
            left.append(place)
    return tuple(dict.fromkeys(left))


def _target(path: Path) -> Path | None:
    try:
        return path.readlink()
    except (OSError, ValueError):
        return None
