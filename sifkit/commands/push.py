"""`sifkit push`: an image sent to a registry, with its manifest, bill of materials and verification report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    make_tools,
    narration,
    print_json,
    site_and_environ,
)
from sifkit.errors import UsageError
from sifkit.progress import progress_for
from sifkit.reference import Reference
from sifkit.registry import Settings
from sifkit.run import Runner
from sifkit.share import push as pushing
from sifkit.site import ca_bundle
from sifkit.spec import NoProject, Project
from sifkit.tools import Tools

TargetArgument = Annotated[str, typer.Argument(metavar="oras://HOST/NAME:TAG", help="where it is in the registry")]


def push(
    subject: Annotated[str, typer.Argument(metavar="IMAGE|FILE.sif", help="an image of this project, or any file")],
    target: TargetArgument,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Send an image to a registry; manifest, bill of materials and verification report travel with it.

    `apptainer pull` reads it, too. What the registry has is not sent again; an interrupted push goes on.
    """
    reference = reference_of(target)
    tools = tools_around(project, site_file, verbose, needed=not subject.endswith(".sif"))
    done = pushing.push(subject, reference, tools, settings_of(tools))
    if json_:
        print_json(as_json(done))


def reference_of(word: str) -> Reference:
    """Raises `UsageError` for what is no address of an image in a registry."""
    if not word.startswith("oras://"):
        raise UsageError(f"{word!r} is no address in a registry", "write oras://HOST/NAME:TAG")
    return Reference.parse(word)


def tools_around(project: Path | None, site_file: Path | None, verbose: bool, *, needed: bool) -> Tools:
    """With the project around here; files are pushed and pulled where there is none, unless it is `needed`."""
    try:
        return make_tools(project, site_file, verbose)
    except NoProject:
        if needed:
            raise
        here = Path.cwd()
        site, environ = site_and_environ(site_file, here)
        return Tools(Project(here), site, Runner(environ), progress_for(narration, verbose=verbose), environ)


def settings_of(tools: Tools) -> Settings:
    """How registries are reached from here."""
    return Settings(tools.environ, ca_bundle(tools.site, tools.environ), tools.progress.note, site=tools.site)


def as_json(done: pushing.Pushed) -> dict[str, Any]:
    """What is in the registry now."""
    return {
        "reference": f"oras://{done.reference}",
        "digest": done.digest,
        "image": str(done.parcel.path),
        "sha256": done.parcel.sha256,
        "size": done.parcel.size,
        "sent": done.sent,
        "with": [companion.kind.value for companion in done.parcel.companions],
    }
