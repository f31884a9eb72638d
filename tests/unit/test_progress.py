"""Plain lines in logs, a live display on terminals."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sifkit.progress import LiveProgress, PlainProgress, clock, progress_for


def plain(verbose: bool = False) -> tuple[PlainProgress, io.StringIO]:
    out = io.StringIO()
    return PlainProgress(Console(file=out, width=80), verbose=verbose), out


def test_phases_start_and_end_with_their_time() -> None:
    progress, out = plain()
    with progress.phase("build x"):
        progress.line("noise")
    assert out.getvalue() == "build x …\nbuild x: done in 0:00\n"


def test_a_phase_that_fails_says_so() -> None:
    progress, out = plain()
    with pytest.raises(ValueError, match="why"), progress.phase("build x"):
        raise ValueError("why")
    assert "build x: stopped after 0:00" in out.getvalue()


def test_a_silent_phase_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("sifkit.progress.time.monotonic", lambda: now[0])
    progress, out = plain()
    with progress.phase("build x"):
        progress.line("one")
        now[0] = 31.0
        progress.line("two [bold]")
    assert out.getvalue().splitlines()[1] == "build x: 0:31  two [bold]"


def test_verbose_shows_every_line() -> None:
    progress, out = plain(verbose=True)
    progress.line("one")
    assert out.getvalue() == "  one\n"


def test_a_terminal_gets_a_live_display_with_the_last_line() -> None:
    out = io.StringIO()
    progress = progress_for(Console(file=out, force_terminal=True, width=80))
    assert isinstance(progress, LiveProgress)
    with progress.phase("build [x]"):
        progress.line("Installing [torch]")
    shown = out.getvalue()
    assert "✓" in shown
    assert "build [x]" in shown


def test_clock() -> None:
    assert [clock(seconds) for seconds in (0, 59.9, 61, 3600)] == ["0:00", "0:59", "1:01", "60:00"]
