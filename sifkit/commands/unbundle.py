"""`sifkit unbundle`: what a bundle holds, put where builds look for it."""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from sifkit.bundle.place import Place
from sifkit.bundle.place import unbundle as take
from sifkit.commands.options import JsonOption, VerboseOption, narration, print_json
from sifkit.model import Site
from sifkit.progress import progress_for
from sifkit.redact import redact, secrets_of
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.spec import NoProject, Project, find_project


def unbundle(
    file: Annotated[Path, typer.Argument(help="that `sifkit bundle` made")],
    project: Annotated[
        Path | None, typer.Option("--project", help="directory that holds definitions/, or will; else the one here")
    ] = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Put a bundle's content where builds look: bases, packages and checkouts into the cache, specs into the project.

    Every hash is compared before anything is written. What is here already stays. Then: `sifkit build --offline IMAGE`.
    """
    environ = dict(os.environ)
    echo = (lambda text: narration.print(text, markup=False, highlight=False, soft_wrap=True)) if verbose else None
    runner = Runner(environ, echo, partial(redact, secrets=secrets_of(environ, Site())))
    place = Place(_project(project), user_cache(environ), runner, progress_for(narration, verbose=verbose))
    placed = take(file, place)
    if json_:
        written = [member.name for member in placed.written]
        print_json({"images": placed.manifest.images, "written": written, "project": str(place.project.root)})
    else:
        sys.stdout.write(f"sifkit build --offline --project {place.project.root} {' '.join(placed.manifest.images)}\n")


def _project(given: Path | None) -> Project:
    if given is not None:
        return Project(given.absolute())
    try:
        return find_project(Path.cwd())
    except NoProject:
        return Project(Path.cwd())
