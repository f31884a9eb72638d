"""`sifkit bundle`: everything that builds of some images need, in one file."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from sifkit.bundle.extras import this_python
from sifkit.bundle.gather import Wishes
from sifkit.bundle.gather import bundle as make_bundle
from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    image_name,
    make_tools,
    print_json,
)
from sifkit.errors import UsageError


def bundle(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="of this project")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="the bundle; replaced if it is there")],
    with_apptainer: Annotated[
        bool, typer.Option("--with-apptainer", help="Apptainer's packages for this host's Debian or Ubuntu, too")
    ] = False,
    python: Annotated[
        str | None, typer.Option(metavar="3.X", help="of the other host, for sifkit's own wheels; else as here")
    ] = None,
    without_sifkit: Annotated[bool, typer.Option("--without-sifkit", help="leave sifkit's own wheels out")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Gather everything that builds of these images need into one file, for a host without network.

    Specs and locks, base and packages as the cache holds them (made first where they are missing), LLaMA-Factory's
    checkout, sifkit's own wheels. Says the file's size and sha256.

    On the other host: docs/airgap.md.
    """
    if python is not None and (without_sifkit or not re.fullmatch(r"3\.[0-9]{1,2}", python)):
        raise UsageError(f"--python {python}", "give a minor version, as in --python 3.11, and no --without-sifkit")
    tools = make_tools(project, site_file, verbose)
    names = list(dict.fromkeys(image_name(name, tools) for name in images))
    wishes = Wishes(None if without_sifkit else python or this_python(), with_apptainer)
    made = make_bundle(names, output, tools, wishes)
    if json_:
        files = len(made.manifest.members)
        print_json(
            {"bundle": str(made.path), "size": made.size, "sha256": made.sha256, "files": files, "images": names}
        )
    else:
        sys.stdout.write(f"{made.sha256}  {made.path}\n")
