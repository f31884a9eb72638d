"""`sifkit compat update`: read again, from the package index, what wheels can tell.

One function for each file of the tables; each row is read from one release, so that releases are read side
by side. Nothing is kept from the old tables: what they say is what the index said.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from sifkit.compat.read_packages import llamafactory_releases, tied_releases
from sifkit.compat.read_torch import TorchIndex, torch_builds
from sifkit.compat.wheels import Index
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


def read_all(index: Index, others: TorchIndex | None, progress: Progress) -> dict[str, str]:
    """The texts of the files that wheels can tell, by file name."""
    return {
        "torch.yaml": as_text(
            "torch",
            torch_builds(index, others, progress),
            "METADATA, version.py, libtorch_python.so, libc10_cuda.so; companions' METADATA, version.py and extension",
        ),
        "llamafactory.yaml": as_text(
            "llamafactory",
            llamafactory_releases(index, progress),
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
        partial = directory / f".{name}.partial"
        partial.write_text(texts[name], encoding="utf-8")
        partial.replace(directory / name)


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
