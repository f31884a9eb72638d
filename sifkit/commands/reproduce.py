"""`sifkit reproduce`: does building an image again from what it carries give the same file?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from sifkit import reproduce as reproducing
from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    make_tools,
    out_console,
    print_json,
)
from sifkit.errors import Exit
from sifkit.gather.image import require_image
from sifkit.printable import printable

_MOST = 10  # lines of each kind that a person reads; --json has all


def reproduce(
    subject: Annotated[str, typer.Argument(metavar="IMAGE|FILE.sif", help="an image of this project, or any file")],
    fresh: Annotated[bool, typer.Option("--fresh", help="use no base and no packages built before")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build an image again from the spec, lock and definition that it carries, and compare the two.

    Says the first file that differs and how many do. Signatures do not count.

    Exit code 1: the two are not the same.
    """
    tools = make_tools(project, site_file, verbose)
    path = Path(subject) if Path(subject).suffix == ".sif" else tools.store.sif(subject)
    require_image(path)
    found = reproducing.reproduce(path.absolute(), tools, fresh=fresh)
    if json_:
        print_json(as_json(path, found))
    else:
        show(found, out_console())
    if not found.comparison.identical:
        raise typer.Exit(Exit.PROBLEM)


def as_json(path: Path, found: reproducing.Reproduction) -> dict[str, Any]:
    """Everything that was found."""
    comparison = found.comparison
    return {
        "image": str(path),
        "name": found.name,
        "identical": comparison.identical,
        "sha256": comparison.sha256[0],
        "rebuilt_sha256": comparison.sha256[1],
        "signed": comparison.signed,
        "files_compared": comparison.compared,
        "files": [{"path": one.path, "how": one.how} for one in comparison.files],
        "objects": [{"name": one.path, "how": one.how} for one in comparison.objects],
        "debian_packages": list(found.packages),
        "definition": list(found.definition) if found.definition else None,
    }


def show(found: reproducing.Reproduction, console: Console) -> None:
    """For a person: identical, or the first difference and what else is known of it."""
    comparison, first = found.comparison, found.comparison.first
    if comparison.identical:
        but = " but for its signatures" if comparison.signed else ""
        console.print(f"{found.name}: identical{but}, sha256 {comparison.sha256[0]}", highlight=False, soft_wrap=True)
        return
    where = f"first {first.path} ({first.how})" if first else "only the header of the SIF file, its identity or times"
    _line(f"{found.name}: not the same: {where}", console)
    if comparison.files:
        _line(f"{len(comparison.files)} of {comparison.compared} files differ", console)
        _list([f"{one.path}: {one.how}" for one in comparison.files], console)
    others = [f"{one.path}: {one.how}" for one in comparison.objects if one.path != "file system"]
    if others:
        _line("beside the file system:", console)
        _list(others, console)
    if found.definition:
        _line("the definition, in the image and of this release:", console)
        _list(list(found.definition), console)
    if found.packages:
        _line(f"{len(found.packages)} Debian packages differ; {reproducing.SNAPSHOT_ADVICE}:", console)
        _list(list(found.packages), console)


def _list(lines: list[str], console: Console) -> None:
    for line in lines[:_MOST]:
        _line(f"  {line}", console)
    if len(lines) > _MOST:
        _line(f"  and {len(lines) - _MOST} more: --json", console)


def _line(text: str, console: Console) -> None:
    console.print(Text(printable(text)), soft_wrap=True)
