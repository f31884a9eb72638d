"""Run a program and wait until nothing that it started is left: `python watched.py PIDFILE PROGRAM ARG…`.

As a subreaper (prctl(2)) this process inherits every process whose parents died, whatever it calls itself and in
whatever session it is. Exit code: the program's, 128+N when signal N ended it; 99 when something outlived it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
OUTLIVED = 99
PATIENCE = 45.0  # seconds after the program's end: supervise.py gives Apptainer 20 to clean up, then removes a tree


def main(pidfile: Path, argv: list[str]) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # A group of its own, as a shell gives it: Ctrl-C then reaches the program with what shares its group.
    child = subprocess.Popen(argv, start_new_session=True)
    partial = pidfile.with_suffix(".partial")
    partial.write_text(str(child.pid))
    partial.replace(pidfile)
    code = child.wait()
    deadline = time.monotonic() + PATIENCE
    while left := children():
        if time.monotonic() > deadline:
            stop(left)
            return OUTLIVED
        time.sleep(0.02)
    return code if code >= 0 else 128 - code


def children() -> list[int]:
    """Of this process, inherited ones included; those that have ended are collected."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return []
    mine = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(word) for word in mine.read_text().split()]


def stop(left: list[int]) -> None:
    while left:
        for pid in left:
            print("outlived:", Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" "), file=sys.stderr)
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
        left = children()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
