"""`sifkit outputs`: what a training run left."""

from __future__ import annotations

import math
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sifkit.commands.options import JsonOption, out_console, print_json
from sifkit.errors import Exit
from sifkit.printable import printable
from sifkit.rundir.advice import advice, how_far
from sifkit.rundir.checkpoints import Checkpoint, Status
from sifkit.rundir.curve import can_show, draw
from sifkit.rundir.files import FoundFile, Kind
from sifkit.rundir.read import End, Run, read_run
from sifkit.rundir.trainlog import Series

CURVE_HEIGHT = 8
CURVE_WIDTH = 100  # columns at most
_COLOURS = {Status.COMPLETE: "green", Status.MODEL_ONLY: "yellow", Status.INCOMPLETE: "red"}


def outputs(
    directory: Annotated[Path, typer.Argument(metavar="DIR", readable=False, help="output_dir of a run")],
    every: Annotated[bool, typer.Option("--all", help="list the files of each checkpoint too")] = False,
    json_: JsonOption = False,
) -> None:
    """Show what a training run left: how far it came, losses, each file's purpose and whether it is whole.

    Nothing is loaded: training_args.bin and optimizer.pt are pickles.

    Exit code 1: a file is damaged, a checkpoint is incomplete, or a part of the model is missing.
    """
    run = read_run(directory)
    if json_:
        print_json(as_json(run))
    else:
        show(run, out_console(), every=every)
    if not run.whole:
        raise typer.Exit(Exit.PROBLEM)


def show(run: Run, console: Console, *, every: bool) -> None:
    """For people."""
    kind = ", ".join(word for word in (run.method, run.stage) if word)
    _say(console, f"{run.directory}: {kind}; {how_far(run)}")
    unicode = can_show(sys.stdout.encoding)
    for line in (*figures(run, "→" if unicode else "->"), *curves(run, min(console.width, CURVE_WIDTH), unicode)):
        _say(console, line)
    console.print()
    console.print(_table(run, every=every))
    for line in advice(run):
        _say(console, f"{'→' if unicode else '->'} {line}")


def _say(console: Console, text: str) -> None:
    console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def figures(run: Run, arrow: str) -> list[str]:
    """Losses, time and speed, as far as they are known."""
    lines = [
        line for line in (_series("loss", run.log.loss, arrow), _series("eval loss", run.log.eval_loss, arrow)) if line
    ]
    results = run.results
    if "train_runtime" in results:
        took = timedelta(seconds=round(results["train_runtime"])) if math.isfinite(results["train_runtime"]) else "?"
        lines.append(f"training took {took}{_speed(results)}; mean loss {results.get('train_loss', math.nan):.4g}")
    elif run.log.elapsed is not None:
        lines.append(
            f"{run.log.elapsed} since the last start" + (f", {run.log.restarts} before" if run.log.restarts else "")
        )
    others = {name: value for name, value in results.items() if name.startswith(("eval_", "predict_"))}
    dull = ("runtime", "per_second", "preparation_time", "eval_loss" if run.log.eval_loss.count else "\0")
    told = [f"{name} {value:.4g}" for name, value in others.items() if not name.endswith(dull)]
    return [*lines, *([", ".join(told)] if told else [])]


def _series(name: str, series: Series, arrow: str) -> str:
    if series.first is None or series.last is None:
        return ""
    said = f"{name} {series.first.value:.4g} {arrow} {series.last.value:.4g}"
    return said + (f", lowest {series.lowest.value:.4g} at step {series.lowest.step:,}" if series.lowest else "")


def _speed(results: dict[str, float]) -> str:
    named = (("train_samples_per_second", "samples/s"), ("train_steps_per_second", "steps/s"))
    known = [f"{results[name]:.4g} {unit}" for name, unit in named if name in results]
    return f" ({', '.join(known)})" if known else ""


def curves(run: Run, width: int, unicode: bool) -> list[str]:
    """The loss, and the loss of the evaluations where there are several."""
    lines = draw(run.log.loss.points, width, CURVE_HEIGHT, unicode=unicode)
    if run.log.eval_loss.count > 1:
        lines += ["eval loss", *draw(run.log.eval_loss.points, width, CURVE_HEIGHT // 2, unicode=unicode)]
    return lines


def size_text(size: int) -> str:
    """Bytes as people read them."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size} B"


def _table(run: Run, *, every: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("file", overflow="fold")
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("for", overflow="fold")
    table.add_column("state", overflow="fold")
    checkpoints = {each.name: each for each in run.checkpoints}
    for file in run.files:
        checkpoint = checkpoints.get(file.name)
        if checkpoint:
            _row(table, file, size_text(checkpoint.size), checkpoint_state(checkpoint, run))
        elif file.fault or every or file.top not in checkpoints:
            own = "" if file.kind is Kind.DIRECTORY else size_text(file.size)
            _row(table, file, own, Text(printable(file.fault), "red") if file.fault else _sound(file))
    table.add_section()
    table.add_row(
        Text(f"{sum(file.kind is not Kind.DIRECTORY for file in run.files)} files"), Text(size_text(run.size))
    )
    return table


def _row(table: Table, file: FoundFile, size: str, state: Text) -> None:
    shown = printable(file.name) + {Kind.DIRECTORY: "/", Kind.LINK: " (link)"}.get(file.kind, "")
    table.add_row(Text(shown), Text(size), Text(file.purpose or "not written by a run"), state)


def _sound(file: FoundFile) -> Text:
    return Text("whole" if file.kind is Kind.FILE else "")


def checkpoint_state(checkpoint: Checkpoint, run: Run) -> Text:
    """Its status, what it lacks, and whether it is the best."""
    best = ", the best" if checkpoint.name == run.best else ""
    problems = f": {'; '.join(checkpoint.problems)}" if checkpoint.problems else ""
    return Text(printable(checkpoint.status.value + problems + best), _COLOURS[checkpoint.status])


# ---------------------------------------------------------------------------------------------- for machines


def as_json(run: Run) -> dict[str, Any]:
    """Everything; numbers that are not finite are null."""
    return {
        "directory": str(run.directory),
        "whole": run.whole,
        "finished": run.end is not End.UNFINISHED,
        "end": run.end.value,
        "method": run.method,
        "stage": run.stage,
        "steps": {"current": _step(run), "total": _total(run), "restarts": run.log.restarts},
        "loss": _series_json(run.log.loss),
        "eval_loss": _series_json(run.log.eval_loss),
        "reward": _series_json(run.log.reward),
        "results": {name: _finite(value) for name, value in run.results.items()},
        "missing": run.missing,
        "best_checkpoint": run.best,
        "resume_from": run.resumable.name if run.resumable and run.end is End.UNFINISHED else None,
        "advice": advice(run),
        "checkpoints": [_checkpoint_json(each) for each in run.checkpoints],
        "files": [_file_json(file) for file in run.files],
    }


def _step(run: Run) -> int | None:
    if run.end is End.FINISHED and run.state:
        return run.state.global_step
    return run.log.current_steps


def _total(run: Run) -> int | None:
    return run.log.total_steps if run.log.total_steps is not None else run.state.max_steps if run.state else None


def _series_json(series: Series) -> dict[str, Any]:
    points = [[point.step, point.value] for point in series.points]
    last = series.last and {"step": series.last.step, "value": _finite(series.last.value)}
    return {"count": series.count, "not_finite": series.not_finite, "last": last, "points": points}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _checkpoint_json(each: Checkpoint) -> dict[str, Any]:
    names = {"name": each.name, "step": each.step, "size": each.size, "status": each.status.value}
    return {**names, "problems": each.problems, "optimizer": each.optimizer, "optimizer_size": each.optimizer_size}


def _file_json(file: FoundFile) -> dict[str, Any]:
    said = {"name": file.name, "kind": file.kind.value, "size": file.size}
    return {**said, "purpose": file.purpose, "fault": file.fault}
