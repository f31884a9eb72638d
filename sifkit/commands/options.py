"""What commands share: their options, the tools that they act with, and how results are printed."""

from __future__ import annotations

import io
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from sifkit import index, site
from sifkit.errors import UsageError
from sifkit.model import Site
from sifkit.progress import progress_for
from sifkit.redact import redact, secrets_of
from sifkit.run import Runner
from sifkit.spec import find_project
from sifkit.tools import Tools

narration = Console(stderr=True, emoji=False)  # `:x:` in a path is no emoji

Device = Literal["gpu", "cpu"]


SiteOption = Annotated[
    Path | None, typer.Option("--site", help="site file; else $SIFKIT_SITE, ./site.yaml, user config")
]
ProjectOption = Annotated[Path | None, typer.Option("--project", help="directory that holds definitions/")]
JsonOption = Annotated[bool, typer.Option("--json", help="results as JSON on standard output")]
NoCheckOption = Annotated[bool, typer.Option("--no-check", help="go on whatever `sifkit check` finds")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="show commands and all their output")]


def site_and_environ(site_file: Path | None, cwd: Path) -> tuple[Site, dict[str, str]]:
    """The site with its indexes named, and the environment with its proxies and certificates."""
    found = index.complete(site.load_site(site_file, os.environ, cwd), os.environ)
    return found, site.reach(os.environ, found)


def make_tools(project: Path | None, site_file: Path | None, verbose: bool) -> Tools:
    """Everything that a command acts with. Raises `UsageError` for a site file that is wrong."""
    echo = (lambda text: narration.print(text, markup=False, highlight=False, soft_wrap=True)) if verbose else None
    if project is not None and not (project / "definitions").is_dir():
        raise UsageError(f"--project {project}: there is no definitions/ in it", "name the directory that holds it")
    found, environ = site_and_environ(site_file, Path.cwd())
    secrets = (*secrets_of(environ, found), *site.passwords_of_mirrors(found))
    return Tools(
        project=find_project((project or Path.cwd()).absolute()),
        site=found,
        runner=Runner(environ, echo, partial(redact, secrets=secrets)),
        progress=progress_for(narration, verbose=verbose),
        environ=environ,
    )


def image_name(word: str, tools: Tools, *, verify: bool = False) -> str:
    """An image may be given as its name, its spec's path or its .sif; a foreign .sif can be verified as a file."""
    path = Path(word)
    if path.suffix not in (".yaml", ".sif", ".lock"):
        return word
    foreign = path.suffix == ".sif" and path.absolute() != tools.store.sif(path.stem)
    if foreign and verify and not path.is_file():
        raise UsageError(f"{path}: no such file")
    if foreign and verify:
        return word
    home = tools.project.images if path.suffix == ".sif" else tools.project.definitions
    places = {path.resolve().parent, (tools.project.root / path).resolve().parent}
    if len(path.parts) > 1 and home.resolve() not in places:
        raise UsageError(f"{path} is not in this project", f"name an image of {tools.project.root}, or give --project")
    return path.stem


def out_console() -> Console:
    """Standard output; a pipe has no width to fit into. What its encoding does not have is shown as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    return Console(emoji=False) if sys.stdout.isatty() else Console(width=200, emoji=False)


def print_json(value: object) -> None:
    """Results for machines, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
