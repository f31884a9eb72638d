"""Try directories: is a file written and locked there, and how much is free?

    python places_probe.py PATH…

A JSON line for each, as soon as it is known: index, real, exists, writable, locks, free, inodes, fault. One that is
not there yet is tried at its nearest parent. Nothing stays. Stands alone: standard library only.
"""

# ruff: noqa: PTH100, PTH110, PTH112, PTH114, PTH120

from __future__ import annotations

import fcntl
import json
import os
import sys
import tempfile
import threading

_LOCK = threading.Lock()


def main(paths: list[str]) -> None:
    """Every path in a thread of its own: one that never answers keeps nobody waiting but itself."""
    threads = [threading.Thread(target=_answer, args=each, daemon=True) for each in enumerate(paths)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _answer(index: int, path: str) -> None:
    try:
        found = look(path)
    except (OSError, ValueError) as error:
        found = {"writable": False, "fault": _words(error)}
    line = json.dumps({"index": index, **found}) + "\n"
    with _LOCK:
        os.write(1, line.encode())


def look(path: str) -> dict[str, object]:
    """What is known of the directory, or of its nearest parent that is there."""
    where = os.path.abspath(path)
    while where != "/" and not _is_there(where):
        where = os.path.dirname(where)
    found: dict[str, object] = {"real": os.path.realpath(where), "exists": where == os.path.abspath(path)}
    if not os.path.isdir(where):
        broken = os.path.islink(where) and not os.path.exists(where)
        return {**found, "writable": False, "fault": "a link that leads nowhere" if broken else "not a directory"}
    room = os.statvfs(where)
    found["free"] = room.f_bavail * room.f_frsize
    found["inodes"] = room.f_favail if room.f_files else None
    return {**found, **_tried(where)}


def _is_there(path: str) -> bool:
    """Raises `OSError` for a place that fails in another way than by not being there: a stale file handle."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):  # its parent will say what is not permitted
        return False
    return True


def _tried(where: str) -> dict[str, object]:
    try:
        with tempfile.TemporaryFile(dir=where, prefix=".sifkit-") as file:  # has no name that could be left
            return {"writable": True, **_locked(file.fileno())}
    except OSError as error:
        return {"writable": False, "fault": _words(error)}


def _locked(descriptor: int) -> dict[str, object]:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return {"locks": False, "fault": _words(error)}
    return {"locks": True}


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


if __name__ == "__main__":
    main(sys.argv[1:])
