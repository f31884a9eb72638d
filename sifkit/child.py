"""Scripts of ours in a child process that can be left behind: what they look at may never answer.

A program that waits for a dead network mount cannot be stopped before the kernel lets it go, and whoever waits for
such a child waits as long. `Runner` waits, as it must for builds; here the child is left to the kernel.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path


def ask(script: Path, words: Sequence[str], within: timedelta) -> tuple[str, ...]:
    """The whole lines that `script` wrote to standard output in time. It sees nothing of the environment."""
    reading, writing = os.pipe()
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, writing, 1),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    argv = [sys.executable, "-S", "-E", str(script), *words]
    try:
        child = os.posix_spawn(sys.executable, argv, {}, file_actions=streams)
    except OSError:
        os.close(reading)
        return ()
    finally:
        os.close(writing)
    try:
        text, ended = _read(reading, time.monotonic() + within.total_seconds())
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # of one that has ended, this does nothing
    os.waitpid(child, 0 if ended else os.WNOHANG)
    return tuple(text.decode("utf-8", "replace").split("\n")[:-1])


def _read(stream: int, deadline: float) -> tuple[bytes, bool]:
    """What came until the end, or until the deadline; and which of the two it was."""
    text = b""
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([stream], [], [], left)[0]:
            break
        part = os.read(stream, 65536)
        if not part:
            return text, True
        text += part
    return text, False
