"""`sifkit audit`: do the compiled files of an image or an environment fit each other, torch, and the GPUs?

With `--vulnerabilities`: is anything in its lock known to be vulnerable?
"""

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
from sifkit.site import ca_bundle
from sifkit.tools import Tools
from sifkit.verify.checks import Check, any_failed
from sifkit.verify.report import check_table, checks_json
from sifkit.vulnerabilities import report
from sifkit.vulnerabilities.database import Wire, ask
from sifkit.vulnerabilities.locks import find_lock
from sifkit.vulnerabilities.osv import find


def audit(
    subject: Annotated[
        str, typer.Argument(metavar="IMAGE|FILE.sif|DIRECTORY", help="an image, or a Python environment")
    ],
    gpu: Annotated[
        list[str] | None, typer.Option(help="a GPU that torch must have kernels for; else the site's")
    ] = None,
    vulnerabilities: Annotated[
        bool, typer.Option("--vulnerabilities", help="the lock of an image, a .sif or a .lock against OSV's database")
    ] = False,
    database: Annotated[
        str | None, typer.Option(metavar="FILE|DIR|URL", help="OSV's all.zip, JSON files, or an API; else OSV's own")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="a vulnerability that is known and accepted")
    ] = None,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Read every compiled file: does it fit?

    Libraries, symbol versions, torch's C++ ABI, architectures; without a GPU and without running anything of it.

    With --vulnerabilities, instead: is a package of its lock known to be vulnerable?

    Exit code 1: something does not fit, or is vulnerable; 3: no database was reached, so nothing was checked.
    """
    if not vulnerabilities and (database or ignore):
        raise UsageError("an option of --vulnerabilities without it", "add --vulnerabilities, or leave the option out")
    if vulnerabilities and gpu:
        raise UsageError("--gpu and --vulnerabilities are different audits", "give one of them")
    tools = make_tools(project, site_file, verbose)
    if vulnerabilities:
        _check_lock(subject, tools, database, ignore or [], as_json=json_)
        return
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


def _check_lock(subject: str, tools: Tools, database: str | None, ignore: list[str], *, as_json: bool) -> None:
    locked = find_lock(subject, tools.project)
    packages = locked.lock.versions()
    answer = ask(database, packages, Wire(ca_bundle(tools.site, tools.environ), tools.environ), tools.progress)
    judged = report.sort_out(locked, answer, find(packages, answer.entries), ignore)
    for name in judged.unused:
        tools.progress.note(f"--ignore {name}: nothing of that name was found")
    if as_json:
        print_json(report.as_json(judged))
    else:
        _print_judged(judged)
    if judged.findings:
        raise typer.Exit(Exit.PROBLEM)


def _print_judged(judged: report.Judged) -> None:
    console = out_console()
    console.print(report.headline(judged), markup=False, highlight=False, soft_wrap=True)
    if judged.findings:
        console.print(report.as_table(judged.findings))
    for line in report.advice(judged):
        console.print(f"fix: {line}", markup=False, highlight=False, soft_wrap=True)
