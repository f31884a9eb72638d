"""Run one program so that nothing of it outlives sifkit, whatever ends sifkit.

    python supervise.py [--remove PATH]… [--remove-on-failure PATH]… -- PROGRAM ARG…

Standard input is the leash: a pipe that sifkit holds. When it closes, because sifkit finished, was
interrupted or was killed with SIGKILL, every descendant is stopped (SIGTERM, then SIGKILL) and each PATH
is removed; those of --remove-on-failure only if the program did not end well. As a "subreaper" (prctl(2))
this process inherits the children of children that died, so daemons that a build leaves behind
(squashfuse, fuse-overlayfs, gpg-agent) are found too.

Stands alone on purpose: standard library only, started by path, alive while its parent is dead. It is started for
every program, so that what takes long to import (subprocess, shutil, pathlib: half its time) waits until needed.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_TERMINAL = (signal.SIGINT, signal.SIGHUP)  # sifkit's to answer
_PYTHONS = (signal.SIGPIPE, signal.SIGXFSZ)  # ignored by Python
_LEASH = 0  # standard input
REMOVALS = 50
GRACE_SECONDS = 20.0  # Apptainer removes its sandbox on SIGTERM; an 8 GB tree takes seconds


def main(argv: list[str]) -> int:
    """Run the program after `--`; return its exit code (128+N when signal N ended it)."""
    split = argv.index("--")
    options = list(zip(argv[:split:2], argv[1:split:2], strict=True))
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in _TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    wakeup = _wake_on(signal.SIGTERM, signal.SIGCHLD)
    code = 1
    try:
        child = _start(argv[split + 1 :])
    except OSError as error:
        print(f"{argv[split + 1]}: {error.strerror}", file=sys.stderr)
        return 127
    try:
        code = _wait(child, wakeup)
    finally:
        stop_descendants(GRACE_SECONDS)
        for flag, path in options:
            if flag == "--remove" or code != 0:
                _remove(path)
    return code


def _start(argv: list[str]) -> int:
    """The child's pid. It has no input, none of our open files, and signals as they are by default."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            os.set_inheritable(descriptor, descriptor in (1, 2))
        except OSError:
            continue  # that of the list itself
    nothing = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawnp(argv[0], argv, os.environ, file_actions=[nothing], setsigdef=[*_TERMINAL, *_PYTHONS])


def _wake_on(*signals: int) -> int:
    """Turn signals into bytes on a pipe, so that one `select` waits for them and for the leash."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write)
    for number in signals:
        signal.signal(number, lambda *_: None)
    return read


def _wait(child: int, wakeup: int) -> int:
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        ready, _, _ = select.select([_LEASH, wakeup], [], [])
        if wakeup in ready and signal.SIGTERM in os.read(wakeup, 4096):
            return 128 + signal.SIGTERM
        if _LEASH in ready and not os.read(_LEASH, 4096):
            return 128 + signal.SIGTERM


def stop_descendants(grace: float) -> None:
    """SIGTERM to every descendant, SIGKILL to what is left after `grace` seconds; reap them all."""
    deadline = time.monotonic() + grace
    _signal_all(signal.SIGTERM)
    while _reap() and time.monotonic() < deadline:
        time.sleep(0.05)
    while _reap():
        _signal_all(signal.SIGKILL)
        time.sleep(0.05)


def _reap() -> bool:
    """Collect finished children; True while there are others."""
    try:
        while True:
            pid, _ = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return True
    except ChildProcessError:
        return False


def _signal_all(number: int) -> None:
    for pid in _descendants(os.getpid()):
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue  # gone meanwhile, or of a mapped user, whose parent we do reach


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                stat = file.read()
        except OSError:
            continue  # ended between listdir and here
        children.setdefault(int(stat.rpartition(b")")[2].split()[1]), []).append(int(entry))
    found, queue = [], [root]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _remove(path: str) -> None:
    """Remove a file or tree; again while a program of another supervisor still writes into it."""
    for _ in range(REMOVALS):
        _remove_once(path)
        if not os.path.exists(path):
            return
        time.sleep(0.1)


def _remove_once(path: str) -> None:
    """Files of mapped users (a rootless build that was killed) need their namespace."""
    import shutil
    import subprocess

    if os.path.isfile(path):
        os.unlink(path)
        return
    shutil.rmtree(path, ignore_errors=True)
    if os.path.exists(path) and shutil.which("unshare"):
        enter = ["unshare", "--user", "--map-auto", "--map-root-user"]  # util-linux ≥ 2.38
        subprocess.run([*enter, "rm", "-rf", "--", path], stdin=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
