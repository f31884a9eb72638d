"""Try what Apptainer does without privileges: a user namespace, and in it mounts of tmpfs, overlay and FUSE.

    python namespace_probe.py

One JSON line: user, mounts, overlay, fuse; each "" where it works, else why not. All of it ends with this process.
Stands alone: standard library only.
"""

# ruff: noqa: PTH102, PTH123

from __future__ import annotations

import ctypes
import errno
import json
import os
import sys

CLONE_NEWUSER = 0x10000000  # linux/sched.h
CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | (1 << 18)  # linux/mount.h: MS_REC, MS_PRIVATE
TMPFS_AT = "/tmp"  # hidden from nobody but this process
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Stops at the first that does not work: what follows needs it."""
    found: dict[str, str] = {}
    try:
        for name, attempt in (("user", _user), ("mounts", _mounts), ("overlay", _overlay), ("fuse", _fuse)):
            found[name] = _tried(attempt)
            if found[name] and name in ("user", "mounts"):
                break
    finally:
        sys.stdout.write(json.dumps(found) + "\n")


def _tried(attempt) -> str:  # type: ignore[no-untyped-def]
    try:
        attempt()
    except OSError as error:
        return f"{errno.errorcode.get(error.errno or 0, '')}: {error.strerror}"
    return ""


def _user() -> None:
    uid, gid = os.geteuid(), os.getegid()
    _call(LIBC.unshare, CLONE_NEWUSER)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _mounts() -> None:
    _call(LIBC.unshare, CLONE_NEWNS)
    _mount("none", "/", "", MS_REC_PRIVATE, "")
    _mount("tmpfs", TMPFS_AT, "tmpfs", 0, "size=1m")
    for name in ("lower", "upper", "work", "merged", "fuse"):
        os.mkdir(f"{TMPFS_AT}/{name}")


def _overlay() -> None:
    options = ",".join(f"{name}dir={TMPFS_AT}/{name}" for name in ("lower", "upper", "work"))
    _mount("overlay", f"{TMPFS_AT}/merged", "overlay", 0, options)


def _fuse() -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    _mount("probe", f"{TMPFS_AT}/fuse", "fuse", 0, f"fd={device},rootmode=40000,user_id=0,group_id=0")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    words = [text.encode() for text in (source, target, kind)]
    _call(LIBC.mount, *words, ctypes.c_ulong(flags), options.encode())


def _call(function, *arguments) -> None:  # type: ignore[no-untyped-def]
    if function(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main()
