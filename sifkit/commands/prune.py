"""`sifkit prune`: free the room that checkpoints take."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sifkit.commands.options import JsonOption, narration, out_console, print_json
from sifkit.commands.outputs import size_text
from sifkit.errors import ProblemFound, UsageError
from sifkit.printable import printable
from sifkit.rundir.prune import Identity, Plan, Removal, carry_out, identity_of, make_plan
from sifkit.rundir.read import read_run
from sifkit.rundir.running import signs_of_running


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    keep: int
    optimizer_only: bool
    stopped: bool


def prune(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR…", help="output_dir of runs")],
    keep: Annotated[int, typer.Option(min=0, help="keep this many of the newest, whole")] = 0,
    optimizer_only: Annotated[
        bool, typer.Option("--optimizer-only", help="remove optimizers alone; every checkpoint's weights stay")
    ] = False,
    stopped: Annotated[
        bool, typer.Option("--stopped", help="the run has stopped: its log may be as fresh as it is")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show, and remove nothing")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False,
    json_: JsonOption = False,
) -> None:
    """Remove checkpoints that are not needed any more.

    Of a finished run all but the best one; of an unfinished run all but the best and the newest complete one, from
    which it goes on. The final model stays. A run that is going on is refused. Shows what would go, then asks.

    Without a terminal to ask on and without --yes: shows, removes nothing, and exits with 2.
    """
    plans = _plans(directories, Wishes(keep, optimizer_only, stopped))
    wanted = any(plan.remove for plan, _ in plans)
    agreed = wanted and not dry_run and (yes or _asks(json_))
    if not json_:
        _show([plan for plan, _ in plans])
    if agreed and not yes:
        agreed = typer.confirm("remove them?", default=False, err=True)
    if agreed:
        _carry_out(plans)
    if json_:
        print_json([_as_json(plan, removed=agreed) for plan, _ in plans])
    if wanted and not (agreed or dry_run or _asks(json_)):
        raise UsageError("nothing was removed: there is no terminal to ask on", "give --yes, or --dry-run to look only")


def _asks(as_json: bool) -> bool:
    return sys.stdin.isatty() and not as_json


def _plans(directories: Sequence[Path], wishes: Wishes) -> list[tuple[Plan, Identity]]:
    """A plan for each directory, all of them before anything is removed. One named twice is planned once."""
    plans: dict[Identity, Plan] = {}
    for directory in directories:
        run = read_run(directory)
        identity = identity_of(directory)
        signs = [sign for sign in signs_of_running(run, datetime.now()) if sign.certain or not wishes.stopped]
        if signs:
            certain = any(sign.certain for sign in signs)
            fix = "wait for its end, or stop it" if certain else "if it has stopped (squeue says so): --stopped"
            raise ProblemFound(printable(f"{directory} is in use: {'; '.join(sign.said for sign in signs)}"), fix)
        plans.setdefault(identity, make_plan(run, keep=wishes.keep, optimizer_only=wishes.optimizer_only))
    return [(plan, identity) for identity, plan in plans.items()]


def _show(plans: Sequence[Plan]) -> None:
    console = out_console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "checkpoint", "size", "why"):
        table.add_column(title, justify="right" if title == "size" else "left", overflow="fold")
    for plan in plans:
        for kept in plan.keep:
            table.add_row(Text("keep", "green"), _text(plan, kept.name), "", Text(printable(kept.why)))
        for each in plan.remove:
            row = (Text(size_text(each.size)), Text(printable(each.why)))
            table.add_row(Text("remove", "red"), _text(plan, each.name), *row)
    if table.row_count:
        console.print(table)
    freed = sum(plan.freed for plan in plans)
    console.print(f"{size_text(freed)} to free" if any(plan.remove for plan in plans) else "nothing to remove")


def _text(plan: Plan, name: str) -> Text:
    return Text(printable(str(plan.directory / name)))


def _carry_out(plans: Sequence[tuple[Plan, Identity]]) -> None:
    def say(removal: Removal) -> None:
        narration.print(f"removed {printable(removal.name)}", markup=False, highlight=False, soft_wrap=True)

    for plan, identity in plans:
        carry_out(plan, identity, say)


def _as_json(plan: Plan, *, removed: bool) -> dict[str, Any]:
    return {
        "directory": str(plan.directory),
        "keep": [{"name": each.name, "why": each.why} for each in plan.keep],
        "remove": [{"name": each.name, "size": each.size, "why": each.why} for each in plan.remove],
        "freed": plan.freed,
        "removed": removed,
    }
