"""Copies bytes from file to file, in the kernel where it can, so that filesystems with shared extents share them."""

from __future__ import annotations

import errno
import os
import stat
from typing import IO

_STEP = 1 << 26  # bytes a call: Ctrl-C is heard in between
_CHUNK = 1 << 22
_SHARED = 4096  # filesystems share extents that begin at such a multiple
_CANNOT = {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY}


def copy_bytes(descriptor: int, position: int, size: int, target: IO[bytes]) -> None:
    """Append `size` bytes from `position` of a file to `target`. Raises `EOFError` when there are fewer."""
    number = _plain(target)
    if number is not None:
        done = _in_kernel(descriptor, position, size, number, target)
        position, size = position + done, size - done
    while size:
        chunk = os.pread(descriptor, min(size, _CHUNK), position)
        if not chunk:
            raise EOFError
        write_all(target, chunk)
        position, size = position + len(chunk), size - len(chunk)


def write_all(target: IO[bytes], data: bytes) -> None:
    """Write all of it, also to a file without a buffer."""
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


def _plain(target: IO[bytes]) -> int | None:
    """The descriptor of a target that is a plain file."""
    try:
        number = target.fileno()
    except OSError:  # io.UnsupportedOperation is one
        return None
    return number if stat.S_ISREG(os.fstat(number).st_mode) and hasattr(os, "copy_file_range") else None


def _in_kernel(descriptor: int, position: int, size: int, number: int, target: IO[bytes]) -> int:
    """How many bytes the kernel copied: all, or those before it could not."""
    target.flush()
    at, done = target.tell(), 0
    while done < size:
        step = min(size - done, -(position + done) % _SHARED or _STEP)
        try:
            count = os.copy_file_range(descriptor, number, step, position + done, at + done)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            break
        if not count:
            break
        done += count
    target.seek(at + done)
    return done
