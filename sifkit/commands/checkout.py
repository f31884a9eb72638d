"""`sifkit checkout`: bring a LLaMA-Factory checkout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sifkit import checkout as checkouts
from sifkit.commands.options import JsonOption, ProjectOption, SiteOption, VerboseOption, make_tools, print_json


def checkout(
    version: Annotated[str, typer.Argument(help="of LLaMA-Factory, as the image has it")],
    directory: Annotated[Path | None, typer.Argument(help="default: LLaMA-Factory-VERSION")] = None,
    site_file: SiteOption = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring a LLaMA-Factory checkout.

    The git tag where git hosting is reached, else the package index's source archive.
    """
    tools = make_tools(project, site_file, verbose)
    target = directory or Path(f"LLaMA-Factory-{version}")
    sources = checkouts.Sources.of_site(tools.site, tools.environ)
    path = checkouts.fetch(version, target, tools.runner, tools.progress, sources=sources)
    if json_:
        print_json({"version": version, "checkout": str(path)})
    else:
        sys.stdout.write(f"{path}\n")
