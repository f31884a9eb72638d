"""What of this host meets an image: packages in the home, and the driver libraries that --nv binds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from sifkit.errors import CommandFailed, HostError
from sifkit.run import Runner
from sifkit.verify.nvlibs import read_nv_libraries, wanted_paths

_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?")


def user_packages(home: Path) -> tuple[str, ...]:
    """The Pythons, "3.13", of which packages lie in the home: Python there would import them before its own.

    Of a home that cannot be read: none.
    """
    try:
        found = sorted(home.glob(".local/lib/python3.*/site-packages"))
        return tuple(path.parent.name.removeprefix("python") for path in found if any(path.iterdir()))
    except OSError:
        return ()


def nv_glibc(runner: Runner) -> str | None:
    """The newest glibc that the libraries which --nv binds need; None on a host that has none of them."""
    names = read_nv_libraries(runner)
    if not names:
        return None
    try:
        return needed_glibc(map(Path, wanted_paths(names, runner.output("ldconfig", "-p"))))
    except (CommandFailed, HostError):
        return None


def needed_glibc(libraries: Iterable[Path]) -> str | None:
    """The newest glibc whose symbols one of these libraries needs; None where none of them needs any.

    Read from the files, as `sifkit audit` does; what is no ELF file needs none.
    """
    from sifkit.verify.probes import elf  # takes long to load, and most login nodes have no driver

    needed = {
        (int(match[1]), int(match[2]))
        for library in libraries
        for versions in elf.read_object(str(library))["versions"].values()
        for version in versions
        if (match := _GLIBC.fullmatch(version))
    }
    return "{}.{}".format(*max(needed)) if needed else None
