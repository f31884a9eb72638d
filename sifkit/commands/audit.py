"""`sifkit audit`: do the compiled files of an image or an environment fit each other, torch, and the GPUs?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sifkit import audit as auditing
from sifkit.apptainer import Apptainer
from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    make_tools,
    out_console,
    print_json,
)
from sifkit.errors import Exit, UsageError
from sifkit.execute import Tools
from sifkit.verify.checks import Check, any_failed
from sifkit.verify.report import check_table, checks_json


def audit(
    subject: Annotated[
        str, typer.Argument(metavar="IMAGE|FILE.sif|DIRECTORY", help="an image, or a Python environment")
    ],
    gpu: Annotated[
        list[str] | None, typer.Option(help="a GPU that torch must have kernels for; else the site's")
    ] = None,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Read every compiled file: does it fit?

    Libraries, symbol versions, torch's C++ ABI, architectures; without a GPU and without running anything of it.

    Exit code 1: something does not fit.
    """
    tools = make_tools(project, site_file, verbose)
    with tools.progress.phase(f"audit {subject}"):
        checks = _audit(subject, tools, tuple(gpu or ()) or tools.site.gpu.models)
    if json_:
        print_json(checks_json(checks))
    else:
        out_console().print(check_table(checks, f"audit of {subject}"))
    if any_failed(checks):
        raise typer.Exit(Exit.PROBLEM)


def _audit(subject: str, tools: Tools, gpus: tuple[str, ...]) -> tuple[Check, ...]:
    path = Path(subject)
    if path.is_dir():
        return auditing.audit_environment(path.absolute(), tools.runner, tools.tables, gpus)
    image = path if path.suffix == ".sif" else tools.store.sif(subject)
    if not image.is_file():
        raise UsageError(f"{image}: no such image", f"build it, or name a .sif or an environment: build.py {subject}")
    return auditing.audit_image(image.absolute(), Apptainer.find(tools.runner), tools.tables, gpus)
