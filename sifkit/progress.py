"""What a person sees while something takes minutes: phases with elapsed time and the last line of output.

On a terminal one live display, redrawn in place; otherwise plain lines, one for each phase's start and
end and a sign of life every half minute, so that CI logs stay readable. All of it on standard error.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.spinner import Spinner
from rich.text import Text

SIGN_OF_LIFE_SECONDS = 30.0


class Progress(Protocol):
    """What long steps report to. `phase` nests in time, not in depth: one runs at a time."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:  # noqa: ARG002
        """A named step; its time is shown when it ends."""
        yield

    def line(self, text: str) -> None:
        """One line of a program's output."""

    def note(self, text: str) -> None:
        """Something the person should read, kept on screen."""


def clock(seconds: float) -> str:
    """Elapsed time as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class PlainProgress:
    """Lines for logs. With `verbose`, every line of output too."""

    def __init__(self, console: Console, *, verbose: bool = False) -> None:
        self._console = console
        self._verbose = verbose
        self._phase = ""
        self._started = self._shown = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Say that `name` starts, and how long it took."""
        self._phase, self._started, self._shown = name, time.monotonic(), time.monotonic()
        self.note(f"{name} …")
        try:
            yield
        except BaseException:
            self.note(f"{name}: stopped after {clock(time.monotonic() - self._started)}")
            raise
        self.note(f"{name}: done in {clock(time.monotonic() - self._started)}")

    def line(self, text: str) -> None:
        """Every line when verbose, else the newest one each half minute."""
        now = time.monotonic()
        if self._verbose:
            self._print(f"  {text}")
        elif now - self._shown > SIGN_OF_LIFE_SECONDS:
            self._shown = now
            self._print(f"{self._phase}: {clock(now - self._started)}  {text[:160]}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class LiveProgress:
    """One display at the bottom of the terminal, finished phases above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = 0.0
        self._name = self._last = ""
        self._spinner = Spinner("dots")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Show `name` with a running clock; leave one line when it ends."""
        self._name, self._last, self._started = name, "", time.monotonic()
        mark = "[red]✗[/red]"
        try:
            with Live(get_renderable=self._view, console=self._console, refresh_per_second=8, transient=True):
                yield
            mark = "[green]✓[/green]"
        finally:
            elapsed = clock(time.monotonic() - self._started)
            self._console.print(f"{mark} {escape(name)}  [dim]{elapsed}[/dim]", highlight=False)

    def _view(self) -> Group:
        elapsed = clock(time.monotonic() - self._started)
        self._spinner.update(text=Text.assemble((self._name, "bold"), f"  {elapsed}"))
        return Group(self._spinner, Text(f"  {self._last}", style="dim", no_wrap=True, overflow="ellipsis"))

    def line(self, text: str) -> None:
        """The newest line of output, under the phase."""
        self._last = text

    def note(self, text: str) -> None:
        """Kept above the display."""
        self._console.print(text, markup=False, highlight=False)


def progress_for(console: Console, *, verbose: bool = False) -> Progress:
    """A live display on a terminal, plain lines otherwise or when every line is asked for."""
    if console.is_terminal and not verbose:
        return LiveProgress(console)
    return PlainProgress(console, verbose=verbose)
