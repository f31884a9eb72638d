"""What the kernel and the user database let this user do: user namespaces, ranges of ids, mounts without privileges."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sifkit.child import ask
from sifkit.errors import CommandFailed, HostError
from sifkit.run import Command, Runner

_PROBE = Path(__file__).with_name("namespace_probe.py")
_RANGE = 65536  # the least that Apptainer takes: internal/pkg/fakeroot/fakeroot.go, validRangeCount
_MAX = Path("/proc/sys/user/max_user_namespaces")
_CLONE = Path("/proc/sys/kernel/unprivileged_userns_clone")  # Debian's own, before 11
_APPARMOR = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")  # Ubuntu, from 23.10


@dataclass(frozen=True)
class Namespaces:
    """`fault`: why a user namespace is of no use. Mounts in it: None where that was not tried."""

    fault: str | None
    fuse: bool | None = None
    overlay: bool | None = None


def read_namespaces(uid: int, tried: bool, apparmor_profiles: Path = Path("/etc/apparmor.d")) -> Namespaces:
    """What the settings say; and, `tried`, what happens."""
    restricted = _number(_APPARMOR) == 1 and uid != 0
    allowed = restricted and any(apparmor_profiles.glob("*apptainer*"))  # Apptainer's own profile lets it do more
    said = _forbidden(uid) or (
        "AppArmor keeps rights from it, and has no profile for Apptainer" if restricted else None
    )
    if said and not allowed:
        return Namespaces(said)
    if not tried or allowed:  # what another program may do says nothing of Apptainer there
        return Namespaces(None)
    return _judged(ask(_PROBE, (), timedelta(seconds=1)))


def _forbidden(uid: int) -> str | None:
    if _number(_MAX) == 0:
        return f"{_MAX} is 0"
    if _number(_CLONE) == 0 and uid != 0:
        return f"{_CLONE} is 0"
    return None if Path("/proc/self/ns/user").exists() else "this kernel has none"


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _judged(lines: tuple[str, ...]) -> Namespaces:
    found: dict[str, str] = json.loads(lines[0]) if lines else {"user": "no answer"}
    for step in ("user", "mounts"):
        if found.get(step):
            return Namespaces(f"the kernel refuses: {found[step]}")
    return Namespaces(None, fuse=found.get("fuse") == "", overlay=found.get("overlay") == "")


# ---------------------------------------------------------------------------------------------- ranges of ids


def subuid_fault(user: str, uid: int, runner: Runner, etc: Path = Path("/etc")) -> str | None:
    """Why this user has no range that Apptainer takes, in both files; None when there is one."""
    if _asks_elsewhere(etc / "nsswitch.conf") and runner.which("getsubids"):
        said = _getsubids(user, runner)
        return None if said else f"getsubids {user} answers nothing"
    for name in ("subuid", "subgid"):
        fault = range_fault(_text(etc / name), user, uid)
        if fault:
            return f"{etc / name}: {fault}"
    return None


def range_fault(text: str, user: str, uid: int) -> str | None:
    """Of one file's text. Apptainer wants 65536 ids in one line, and lets `!` before a name disable it."""
    counts = []
    for line in text.splitlines():
        name, *rest = line.strip().split(":")
        numbers = [int(word) for word in rest if word.isdecimal()]
        if len(rest) != 2 or len(numbers) != 2:
            continue
        if name in (f"!{user}", f"!{uid}"):
            return f"{user} is disabled in it (!)"
        if name in (user, str(uid)):
            counts.append(numbers[1])
    if not counts:
        return f"no line for {user}"
    return None if max(counts) >= _RANGE else f"{user} has {max(counts)} ids, {_RANGE} are needed"


def _asks_elsewhere(nsswitch: Path) -> bool:
    """subid: may name sssd, whose ranges are in no file (nsswitch.conf(5) of shadow-utils)."""
    sources = [line.split()[1:] for line in _text(nsswitch).splitlines() if line.startswith("subid:")]
    return any(source != "files" for words in sources for source in words)


def _getsubids(user: str, runner: Runner) -> str:
    try:
        return runner.run(Command(("getsubids", user)), timeout=timedelta(seconds=1)).output.strip()
    except (CommandFailed, HostError):
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def newuidmap_fault(runner: Runner) -> str | None:
    """Why newuidmap and newgidmap cannot do their work; None when they can."""
    if "NoNewPrivs:\t1" in _text(Path("/proc/self/status")):
        return "this process may gain no privileges (no_new_privs), so that setuid programs are of no use"
    for name in ("newuidmap", "newgidmap"):
        program = runner.which(name)
        if program is None:
            return f"{name} is not installed"
        if not _privileged(Path(program)):
            return f"{program} is neither setuid root nor has file capabilities"
        if os.statvfs(program).f_flag & os.ST_NOSUID:
            return f"{program} lies on a filesystem mounted nosuid"
    return None


def _privileged(program: Path) -> bool:
    found = program.stat()
    if found.st_mode & stat.S_ISUID and found.st_uid == 0:
        return True
    try:
        return bool(os.getxattr(program, "security.capability"))
    except OSError:
        return False


def fuse_fault() -> str | None:
    """Why /dev/fuse does not open for this user; None when it does."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    return None
