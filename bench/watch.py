"""`sifkit watch` while a run writes its log: memory and share of a core, children included.

A writer appends rows as LLaMA-Factory does, at a rate that no real trainer reaches, to a log that is already long.
The watcher is the whole program, as people start it, on a directory; Slurm is not asked.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import CommandFailed

ROWS_A_SECOND = 100
FOLLOWED_FOR = 60.0  # seconds
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class WatchRow:
    """A watcher of a log of `rows` rows: reading what was there, then following."""

    rows: int
    catch_up_seconds: float  # of a processor
    share: float  # of a core, while rows come
    memory_mb: float  # the most that was resident


def rows(first: int, count: int, total: int) -> str:
    """What LogCallback writes (llamafactory/train/callbacks.py)."""
    return "".join(_row(step, total) for step in range(first, first + count))


def _row(step: int, total: int) -> str:
    elapsed = f"{step // 360000}:{step // 6000 % 60:02d}:{step // 100 % 60:02d}"
    values = {"current_steps": step, "total_steps": total, "loss": round(2 + 1 / step, 4), "lr": 5e-05}
    times = {"epoch": round(step / total, 2), "elapsed_time": elapsed, "remaining_time": elapsed}
    return json.dumps({**values, "percentage": round(100 * step / total, 2), **times}) + "\n"


def measure(work: Path) -> tuple[WatchRow, ...]:
    """Logs of ten thousand and of a million rows. Raises `CommandFailed` when the watcher ended early."""
    return tuple(_watch(work / str(count), count) for count in (10_000, 1_000_000))


def _watch(directory: Path, count: int) -> WatchRow:
    directory.mkdir()
    log, total = directory / "trainer_log.jsonl", count + round(ROWS_A_SECOND * FOLLOWED_FOR * 4)
    with log.open("w", encoding="utf-8", buffering=1 << 20) as file:
        for first in range(1, count + 1, 10_000):
            file.write(rows(first, 10_000, total))
    argv = [sys.executable, "-m", "sifkit", "watch", str(directory), "--json"]
    with (
        (directory / "events").open("wb") as events,
        subprocess.Popen(argv, stdout=events, stderr=subprocess.DEVNULL) as watcher,
    ):
        try:
            _until_read(directory / "events", watcher, count)
            caught_up = cpu_seconds(watcher.pid)
            seconds = _append(log, count + 1, total)
            return WatchRow(count, caught_up, (cpu_seconds(watcher.pid) - caught_up) / seconds, peak_mb(watcher.pid))
        finally:
            watcher.send_signal(signal.SIGINT)


def _until_read(events: Path, watcher: subprocess.Popen[bytes], count: int) -> None:
    until = time.monotonic() + 300
    while not any(step is not None and step >= count for step in _steps(events)):
        if watcher.poll() is not None or time.monotonic() > until:
            raise CommandFailed("sifkit watch did not read the log", returncode=watcher.returncode or 0)
        time.sleep(0.2)


def _steps(events: Path) -> Iterator[int | None]:
    lines = events.read_text().splitlines()
    return (json.loads(line)["step"] for line in lines[-1:] if line.endswith("}"))


def _append(log: Path, first: int, total: int) -> float:
    """Rows ten times a second; how long it took."""
    started, step = time.monotonic(), first
    with log.open("a", encoding="utf-8") as file:
        while (passed := time.monotonic() - started) < FOLLOWED_FOR:
            due = first + round(passed * ROWS_A_SECOND)
            file.write(rows(step, due - step, total))
            file.flush()
            step = due
            time.sleep(0.1)
    return time.monotonic() - started


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its ended children (proc(5), /proc/PID/stat)."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(word) for word in words[11:15]) / _TICK


def peak_mb(pid: int) -> float:
    """VmHWM: the most that was resident, in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / 1e6


def table(measured: tuple[WatchRow, ...]) -> str:
    """Markdown, for docs/benchmarks.md."""
    share = f"then, {ROWS_A_SECOND} rows/s: share of a core"
    lines = [f"| rows already there | reading them, processor time | {share} | most memory |", "|---:|---:|---:|---:|"]
    for row in measured:
        cells = (f"{row.rows:,}", f"{row.catch_up_seconds:.1f} s", f"{row.share:.2%}", f"{row.memory_mb:.0f} MB")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
