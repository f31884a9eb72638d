"""`sifkit watch`: follow a job or a run's directory to its end."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from sifkit.commands.options import VerboseOption, narration, out_console
from sifkit.errors import CommandFailed, Exit, HostError, Interrupted, UsageError
from sifkit.printable import printable
from sifkit.run import Runner
from sifkit.rundir.curve import can_show
from sifkit.watch import view as words
from sifkit.watch.directory import DirectoryWatch
from sifkit.watch.jobs import JobWatch
from sifkit.watch.queue import ask, newest_job
from sifkit.watch.view import View, Watched

EVERY = 2.0  # seconds between two looks
_SIGN_OF_LIFE = 30.0  # seconds between two plain lines of progress


class Source(Protocol):
    """What is watched."""

    def look(self) -> View:
        """What is known now."""


class Display(Protocol):
    """Where it is shown."""

    def show(self, view: View) -> None:
        """Called at each look."""

    def close(self) -> None:
        """Nothing more comes."""


def watch(
    target: Annotated[
        str | None, typer.Argument(metavar="[JOB|DIR]", help="job id (12, 12_3), or output_dir of a run")
    ] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="output_dir of the job, where its job file does not say it")
    ] = None,
    every: Annotated[float, typer.Option("--every", min=0.2, max=3600, help="seconds between two looks")] = EVERY,
    json_: Annotated[bool, typer.Option("--json", help="a stream of JSON objects, one a line")] = False,
    verbose: VerboseOption = False,
) -> None:
    """Follow a job from pending to its end, or a run's directory; without either, the job that was submitted last.

    Ends with the job's state and, if it failed, the cause and the fix. Ctrl-C ends the watching alone.

    Exit code: 0 the job completed, 1 it failed, 2 there is no such job or directory, 3 there is no Slurm here.
    """
    echo = (lambda text: narration.print(text, markup=False, highlight=False, soft_wrap=True)) if verbose else None
    name, source = open_target(target, directory, Runner(os.environ, echo))
    display = _display(json_)
    try:
        view = follow(source, display, every=every)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"watching stopped; {name} goes on", _how_to_stop(name)) from None
    finally:
        display.close()
    if not view.ok:
        raise typer.Exit(Exit.PROBLEM)


def open_target(target: str | None, directory: Path | None, runner: Runner) -> tuple[str, Source]:
    """What is watched, and its name.

    Raises `UsageError` when there is no such thing, `HostError` without Slurm, `CommandFailed` when it is silent.
    """
    if target is not None and not re.fullmatch(r"[0-9]+(_[0-9]+)?", target):
        return target, DirectoryWatch(Path(target))
    if runner.which("scontrol") is None or runner.which("squeue") is None:
        raise HostError("there are no Slurm commands here", "watch from a login node, or name the run's output_dir")
    job = target or newest_job(runner)
    if job is None:
        raise UsageError("no job of sifkit's is in the queue", "name a job, or the output_dir of a run")
    first = ask(runner, job)
    if first.silent is not None:
        raise CommandFailed(f"Slurm does not answer: {first.silent}", "try later; `sinfo` says", returncode=1)
    if first.forgotten:
        hint = f"; the directory is ./{job}" if Path(job).is_dir() else ""
        raise UsageError(f"Slurm knows no job {job}", f"name the output_dir of its run{hint}; see: sifkit jobs")
    return f"job {job}", JobWatch(runner, job, first, directory=directory)


def follow(
    source: Source, display: Display, *, every: float = EVERY, sleep: Callable[[float], None] = time.sleep
) -> View:
    """Look until it has ended; the last view. There is no pause while a long log is read for the first time."""
    while True:
        view = source.look()
        display.show(view)
        if view.ended:
            return view
        if not any(run.progress.catching_up for run in view.runs):
            sleep(every)


def _how_to_stop(name: str) -> str:
    job = name.removeprefix("job ")
    return f"to stop it: scancel {job}" if name != job else "to stop it: end its process"


def _display(as_json: bool) -> Display:
    if as_json:
        return JsonDisplay(lambda line: _write(f"{line}\n"))
    console = out_console()
    return LiveDisplay(console) if console.is_terminal else PlainDisplay(console)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


class LiveDisplay:
    """Redrawn in place when something changed; the last view stays."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, vertical_overflow="crop")
        self._shown: list[str] = []
        self._unicode = can_show(sys.stdout.encoding)

    def show(self, view: View) -> None:
        """The first call starts it."""
        if not self._live.is_started:
            self._live.start()
        lines = words.screen(view, self._console.width, self._console.height - 1, unicode=self._unicode)
        if lines != self._shown:
            self._shown = lines
            rows = [Text(printable(line), "bold" if at == 0 else "", no_wrap=True) for at, line in enumerate(lines)]
            self._live.update(Group(*rows), refresh=True)
        if view.ended:
            self.close()
            for run in view.runs:
                _show_end(self._console, run)

    def close(self) -> None:
        """Leave the last view on the screen."""
        self._live.stop()


class PlainDisplay:
    """A line for each change of state, and one for progress every half minute."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._states: dict[str, str] = {}
        self._progress: dict[str, tuple[float, str]] = {}
        self._silent = False

    def show(self, view: View) -> None:
        """Lines for what is new."""
        self._show_silence(view)
        for run in view.runs:
            state = words.plain_state(run)
            if self._states.get(run.name) != state and not run.verdict:
                self._states[run.name] = state
                self._say(state)
            self._show_progress(run)
            if run.verdict and self._states.get(run.name) != "ended":
                self._states[run.name] = "ended"
                _show_end(self._console, run)
                for line in () if run.verdict.ok else run.stderr:
                    self._say(f"  {line}")

    def _show_progress(self, run: Watched) -> None:
        line, now = words.plain_progress(run), self._clock()
        at, shown = self._progress.get(run.name, (-_SIGN_OF_LIFE, ""))
        is_last = run.verdict is not None and self._states.get(run.name) != "ended"
        if line and line != shown and not run.progress.catching_up and (is_last or now - at >= _SIGN_OF_LIFE):
            self._progress[run.name] = (now, line)
            self._say(line)

    def _show_silence(self, view: View) -> None:
        silent = view.silent_for is not None
        if silent != self._silent:
            self._silent = silent
            self._say(words.silent_words(view) if silent else "Slurm answers again")

    def _say(self, text: str) -> None:
        stamp = datetime.now().strftime("%H:%M:%S")
        self._console.print(f"{stamp} {printable(text)}", markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Nothing is open."""


def _show_end(console: Console, run: Watched) -> None:
    for line in words.end_lines(run):
        console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
    if run.directory and run.directory.is_dir():
        shown = printable(f"see: sifkit outputs {run.directory}")
        console.print(shown, markup=False, highlight=False, soft_wrap=True)


class JsonDisplay:
    """An object for each change: `state`, `progress`, `silent`, `answers`, and for each run one `end`."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._states: dict[str, object] = {}
        self._steps: dict[str, object] = {}
        self._silent = False

    def show(self, view: View) -> None:
        """Objects for what is new."""
        silent = view.silent_for is not None
        if silent != self._silent:
            self._silent = silent
            said = view.silent_words if silent else None
            self._put({"event": "silent" if silent else "answers", "words": said})
        for run in view.runs:
            self._show(run)

    def _show(self, run: Watched) -> None:
        facts = run.facts
        state = (run.state, facts and facts.reason, facts and facts.restarts, bool(run.verdict))
        if self._states.get(run.name) != state:
            self._states[run.name] = state
            self._put(words.as_json(run, "end" if run.verdict else "state"))
        elif not run.progress.catching_up and self._steps.get(run.name) != run.progress.log.rows:
            self._put(words.as_json(run, "progress"))
        self._steps[run.name] = run.progress.log.rows

    def _put(self, values: dict[str, object]) -> None:
        time_ = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._write(json.dumps({"time": time_, **values}, allow_nan=False))

    def close(self) -> None:
        """Nothing is open."""
