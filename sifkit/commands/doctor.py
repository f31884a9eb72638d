"""`sifkit doctor`: what this host offers for running and building images, and what is in the way."""

from __future__ import annotations

import os
import platform
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from sifkit.check.rule import Finding, Severity
from sifkit.commands.options import JsonOption, VerboseOption, narration, out_console, print_json
from sifkit.doctor import Diagnosis, Row, State, diagnose, what_it_stops
from sifkit.errors import Exit
from sifkit.gather.host import gather_host
from sifkit.printable import printable
from sifkit.run import Runner

_MARKS = {
    State.OK: ("ok", "green"),
    State.WARNING: ("!", "yellow"),
    State.FAULT: ("no", "bold red"),
    State.NOTE: ("-", ""),
}
_COLOURS = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: ""}


def doctor(json_: JsonOption = False, verbose: VerboseOption = False) -> None:
    """Look at this host: can images be run and built here, and what is in the way?

    Nothing needs to be installed; nothing is changed. Of a compute node: srun -p PARTITION sifkit doctor.

    Exit code 1: something that a run or a build needs is missing.
    """
    echo = (lambda text: narration.print(text, markup=False, highlight=False, soft_wrap=True)) if verbose else None
    found = diagnose(gather_host(Runner(os.environ, echo), os.environ, ask_slurm=True))
    if json_:
        print_json(_as_json(found))
    else:
        _show(found, out_console())
    if not (found.run and found.build):
        raise typer.Exit(Exit.PROBLEM)


def _show(found: Diagnosis, console: Console) -> None:
    console.print(_rows_table(found.rows))
    for finding in found.findings:
        _show_finding(finding, console)
    console.print("\nWays to build images here:", highlight=False)
    console.print(_ways_table(found))
    console.print(f"\n{_verdict(found)}", style="green" if found.run and found.build else "bold red", highlight=False)


def _rows_table(rows: tuple[Row, ...]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        mark, colour = _MARKS[row.state]
        table.add_row(Text(mark, colour), Text(row.name), Text(printable(row.found)))
    return table


def _show_finding(finding: Finding, console: Console) -> None:
    stopped = what_it_stops(finding)
    head = Text(f"{finding.code} {finding.name}", _COLOURS[finding.severity])
    console.print(Text.assemble("\n", head, f" ({stopped})" if stopped else ""))
    console.print(Padding(Text(printable(finding.message)), (0, 0, 0, 2), expand=False))
    console.print(Padding(Text.assemble(("fix: ", "green"), printable(finding.fix)), (0, 0, 0, 2), expand=False))


def _ways_table(found: Diagnosis) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for wrapped in (False, True, True):
        table.add_column(no_wrap=not wrapped, overflow="fold")
    for way in found.ways:
        why = f"{way.why} (sifkit takes this)" if way.taken else way.why
        mark = Text("yes", "green") if way.works else Text("no")
        table.add_row(mark, Text(way.name), Text(printable(why)))
    return table


def _verdict(found: Diagnosis) -> str:
    if not found.run:
        return "Images can neither be run nor built here."
    return "Images can be run and built here." if found.build else "Images can be run here, but not built."


def _as_json(found: Diagnosis) -> dict[str, Any]:
    """In the order of the table, so that two nodes can be compared line by line."""
    return {
        "node": platform.node(),
        "run": found.run,
        "build": found.build,
        "rows": [{"name": row.name, "found": row.found, "state": row.state.value} for row in found.rows],
        "findings": [_finding_json(finding) for finding in found.findings],
        "ways": [{"name": way.name, "works": way.works, "taken": way.taken, "why": way.why} for way in found.ways],
    }


def _finding_json(finding: Finding) -> dict[str, str]:
    return {
        "code": finding.code,
        "name": finding.name,
        "severity": finding.severity.value,
        "message": finding.message,
        "fix": finding.fix,
        "stops": what_it_stops(finding),
    }
