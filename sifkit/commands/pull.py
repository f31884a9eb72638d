"""`sifkit pull`: an image brought from a registry into images/, or into a file, checked before it gets its name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sifkit.commands.options import JsonOption, ProjectOption, SiteOption, VerboseOption, print_json
from sifkit.commands.push import TargetArgument, reference_of, settings_of, tools_around
from sifkit.share import pull as pulling


def pull(
    source: TargetArgument,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="into this file; else into images/")] = None,
    force: Annotated[bool, typer.Option("--force", help="put it in place of another image")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring an image from a registry; its sha256 and signature are checked before it gets its name.

    An interrupted pull goes on. Several on one shared filesystem fetch once.
    """
    reference = reference_of(source)
    tools = tools_around(project, site_file, verbose, needed=output is None)
    done = pulling.pull(reference, output, tools, settings_of(tools), force=force)
    if json_:
        print_json(as_json(done))


def as_json(done: pulling.Pulled) -> dict[str, Any]:
    """What is here now."""
    offer = done.offer
    return {
        "reference": f"oras://{offer.reference}",
        "digest": offer.digest,
        "image": str(done.path),
        "name": offer.manifest.name if offer.manifest else None,
        "sha256": offer.sha256,
        "size": offer.layer.size,
        "fetched": done.fetched,
        "beside": str(done.beside) if done.beside else None,
    }
