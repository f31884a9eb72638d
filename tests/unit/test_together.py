"""Programs at the same time: answers in order, and nothing left running when something goes wrong."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from sifkit.run import Command, Result, Runner
from sifkit.together import Ahead, pool, together


def test_results_keep_the_order_of_the_tasks() -> None:
    met = threading.Barrier(2, timeout=10)  # neither passes unless both run at the same time

    def task(value: int) -> int:
        met.wait()
        return value

    assert together([lambda: task(1), lambda: task(2)], stop=pytest.fail, workers=2) == [1, 2]


def test_a_question_is_asked_before_its_answer_is_wanted() -> None:
    asked = threading.Event()

    def question() -> str:
        asked.set()
        return "yes"

    with pool(stop=pytest.fail, workers=1) as threads:
        ahead = Ahead[str](threads)
        ahead.ask("q", question)
        assert asked.wait(timeout=10)
        assert ahead.answer("q") == "yes"


def test_what_stops_us_stops_the_programs(runner: Runner, tmp_path: Path) -> None:
    """Ctrl-C in the main thread: a program that another thread waits for ends, and so do we."""
    pid, found = tmp_path / "pid", list[Result]()
    script = f"echo $$ > {pid}; exec sleep 60"

    def program() -> None:
        found.append(runner.run(Command(("sh", "-c", script)), check=False))

    def interrupted() -> None:
        with pool(runner.stop_all, workers=1) as threads:
            threads.submit(program)
            while not (pid.exists() and pid.read_text().strip()):
                time.sleep(0.01)
            raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - started < 30
    assert found[0].returncode != 0
    assert not os.path.exists(f"/proc/{pid.read_text().strip()}")  # noqa: PTH110


def test_the_first_error_is_raised() -> None:
    def fails() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        together([fails, lambda: None], stop=lambda: None, workers=1)
