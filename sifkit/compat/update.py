"""`sifkit compat update`: read again, from the package index, what wheels can tell.

One function for each file of the tables; each row is read from one release, so that releases are read side
by side. Nothing that the index tells is kept from the old tables: they say what it said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from packaging.version import Version

from sifkit.compat.read_packages import llamafactory_releases, tied_releases
from sifkit.compat.read_torch import TorchIndex, torch_builds
from sifkit.compat.tables import TorchBuild
from sifkit.compat.wheels import Index, shown
from sifkit.errors import HostError
from sifkit.files import write_whole
from sifkit.model import Strict
from sifkit.progress import Progress

HEADER = """\
# Written by `sifkit compat update` from the package index; do not edit. `source` names the files that were read:
# {read}
"""


def as_text(key: str, rows: Sequence[Strict], read: str) -> str:
    """A table's file: a header, and each row on a few lines, defaults left out."""
    values = [row.model_dump(mode="json", exclude_defaults=True) for row in rows]
    body = yaml.safe_dump({key: values}, sort_keys=False, default_flow_style=None, width=116)
    return HEADER.format(read=read) + body


def read_all(
    index: Index, others: TorchIndex | None, progress: Progress, kept: Sequence[TorchBuild] = ()
) -> dict[str, str]:
    """The texts of the files that wheels can tell, by file name. `kept`: rows of PyTorch's own index that stay.

    Raises `HostError` for an index that has no torch or no LLaMA-Factory: it is another one than was meant.
    """
    builds, releases = torch_builds(index, others, progress), llamafactory_releases(index, progress)
    for name, found in (("torch", builds), ("llamafactory", releases)):
        if not found:
            fix = "correct python_index.url in the site file; the tables stay as they are"
            raise HostError(f"{shown(index.url)} has no wheel of {name}", fix)
    known = {(row.version, row.cuda) for row in builds}
    builds += [row for row in kept if (row.version, row.cuda) not in known]
    builds.sort(key=lambda row: (row.parsed, Version(row.cuda)))
    return {
        "torch.yaml": as_text(
            "torch",
            builds,
            "METADATA, version.py, libtorch_python.so, libc10_cuda.so; companions' METADATA, version.py and extension",
        ),
        "llamafactory.yaml": as_text(
            "llamafactory",
            releases,
            "METADATA, check_version() and require_version() in the code, requirements/*.txt of the source archive",
        ),
        "packages.yaml": as_text("packages", tied_releases(index, progress), "METADATA and the names of libraries"),
    }


def changed(directory: Path, texts: dict[str, str]) -> list[str]:
    """The names of the files that say something else."""
    return [name for name, text in texts.items() if _text(directory / name) != text]


def write(directory: Path, texts: dict[str, str]) -> None:
    """Write what changed, each file whole or not at all."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in changed(directory, texts):
        write_whole(directory / name, texts[name])


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
