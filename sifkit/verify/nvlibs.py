"""What `apptainer --nv` should bind: the libraries of Apptainer's list that this host's loader knows.

Apptainer reads nvliblist.conf and takes every entry of `ldconfig -p` whose name begins with a line of it, if
it is of this machine's architecture. Source: apptainer/internal/pkg/util/paths/resolve.go, 1.4.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from sifkit.errors import CommandFailed, HostError
from sifkit.run import Runner

# Where Apptainer's configuration lies: packages, `make install`, and what it was called before.
_DIRECTORIES = ("/etc/apptainer", "/usr/local/etc/apptainer", "/etc/singularity", "/usr/local/etc/singularity")
_ELF_HEAD = 20  # bytes: magic, class (byte 4), byte order, type, machine (bytes 18, 19)


def read_nv_libraries(runner: Runner) -> tuple[str, ...]:
    """Names of the files that --nv should put into the container; empty where the list or ldconfig is not found."""
    listed = next((path for path in _candidates() if path.is_file()), None)
    if listed is None:
        return ()
    try:
        cache = runner.output("ldconfig", "-p")
    except (CommandFailed, HostError):  # no ldconfig, or no cache: Apptainer finds nothing either
        return ()
    paths = wanted_paths(listed_names(listed.read_text(encoding="utf-8", errors="replace")), cache)
    return tuple(sorted({path.name for path in map(Path, paths) if _of_this_machine(path)}))


def _candidates() -> Iterable[Path]:
    program = shutil.which("apptainer")
    prefix = [Path(program).resolve().parent.parent / "etc" / "apptainer"] if program else []
    return (directory / "nvliblist.conf" for directory in (*prefix, *map(Path, _DIRECTORIES)))


def listed_names(text: str) -> tuple[str, ...]:
    """The libraries of an nvliblist.conf; programs and other files are not for the loader."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(line for line in lines if line.endswith(".so") and not line.startswith(("#", "/")))


def wanted_paths(names: tuple[str, ...], ldconfig: str) -> tuple[str, ...]:
    """The entries of `ldconfig -p` whose name begins with one of `names`."""
    entries = re.findall(r"^\s*(\S+) \(.*\) => (\S+)$", ldconfig, re.MULTILINE)
    return tuple(path for name, path in entries if name.startswith(names))


def _of_this_machine(path: Path) -> bool:
    """Whether it is compiled for what runs this Python: a host with 32-bit libraries lists both."""
    try:
        ours, theirs = (_elf_head(file) for file in (Path(sys.executable), path))
    except OSError:
        return False  # listed, but gone
    return ours[4] == theirs[4] and ours[18:20] == theirs[18:20]


def _elf_head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_ELF_HEAD).ljust(_ELF_HEAD, b"\0")
