"""Reading what a running trainer writes: only what is new, in constant memory."""

from __future__ import annotations

import json
import os
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, NamedTuple

from sifkit.rundir.read import LOG, STATE, End, judge_end
from sifkit.rundir.trainlog import Log, LogReader, State, number, parse_elapsed, read_state

CHUNK = 1 << 20  # bytes that are read at once; a row has some hundred
READ_FOR = 0.5  # seconds of reading after which the view is shown again
RECENT = timedelta(minutes=5)  # over which the speed is measured
_MARK = 64  # bytes before the offset that must still be there
_TAIL = 1 << 14  # bytes of a log of which the last lines are shown
_LATER_RUN = 60.0  # seconds between a state and a log that were written by two different runs, as rundir.read has it


class LineFollower:
    """The whole lines that were appended to a file since the last look.

    A last line without its end is left for the next look. A file that was replaced or cut off is read from its
    beginning, and `restarts` counts that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._identity: tuple[int, int] | None = None
        self._mark = b""  # the bytes before the offset
        self.restarts = 0
        self.more = False  # whether there was more than one chunk
        self.written: float | None = None  # mtime, seconds since the epoch

    def read(self) -> list[bytes]:
        """At most one chunk's lines; [] for a file that is not there, or cannot be read now (network filesystems)."""
        try:
            with self._path.open("rb") as file:
                return self._read(file)
        except OSError:
            self.more = False
            return []

    def _read(self, file: IO[bytes]) -> list[bytes]:
        status = os.fstat(file.fileno())
        self.written = status.st_mtime
        self._start_again_if_replaced(file, status)
        file.seek(self._offset)
        chunk = file.read(CHUNK)
        self.more = len(chunk) == CHUNK
        end = chunk.rfind(b"\n") + 1
        if end == 0 and self.more:  # no row is that long
            end = len(chunk)
        if end:
            self._offset += end
            self._mark = (self._mark + chunk[:end])[-_MARK:]
        return chunk[:end].splitlines()

    def _start_again_if_replaced(self, file: IO[bytes], status: os.stat_result) -> None:
        identity = (status.st_dev, status.st_ino)
        file.seek(self._offset - len(self._mark))
        same = self._identity in (None, identity) and file.read(len(self._mark)) == self._mark
        if not same:
            self.restarts += 1
            self._offset, self._mark = 0, b""
        self._identity = identity


class Sample(NamedTuple):
    """When a step was logged, by the trainer's own clock."""

    step: int
    elapsed: timedelta


@dataclass(frozen=True)
class Pace:
    """What the newest rows say beside losses. None: they do not say it."""

    learning_rate: float | None = None
    steps_per_second: float | None = None
    remaining: timedelta | None = None
    tokens_per_second: float | None = None
    memory_gb: float | None = None  # of a GPU, the peak that torch allocated; logged with RECORD_VRAM=1
    reserved_gb: float | None = None


@dataclass(frozen=True)
class Progress:
    """A run so far."""

    log: Log = field(default_factory=Log)
    pace: Pace = field(default_factory=Pace)
    end: End = End.UNFINISHED
    written: float | None = None  # when the log was last written to, seconds since the epoch
    catching_up: bool = False  # there are rows that were not read yet


class RunFollower:
    """An output directory whose run goes on. It need not be there yet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lines = LineFollower(directory / LOG)
        self._reader = LogReader()
        self._restarts = 0
        self._samples: deque[Sample] = deque(maxlen=512)
        self._row: dict[str, Any] = {}
        self._state: State | None = None
        self._state_seen: tuple[float, int] | None = None

    def look(self) -> Progress:
        """Read what is new, for at most half a second at a time."""
        until = time.monotonic() + READ_FOR
        while True:
            self._take(self._lines.read())
            if not self._lines.more or time.monotonic() > until:
                break
        log = self._reader.log()
        pace = pace_of(self._row, tuple(self._samples), log)
        return Progress(log, pace, self._end(log), self._lines.written, self._lines.more)

    def _take(self, lines: list[bytes]) -> None:
        if self._lines.restarts != self._restarts:
            self._restarts = self._lines.restarts
            self._reader, self._row = LogReader(), {}
            self._samples.clear()
        for line in lines:
            self._reader.take(line)
        # The speed needs some rows, not all: the first and the last of a chunk, or each of a few.
        for line in lines if len(lines) <= 4 else (lines[0], *lines[-3:]):
            self._note(line)

    def _note(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict):
            return
        keys = ("lr", "throughput", "vram_allocated", "vram_reserved")
        self._row.update({key: row[key] for key in keys if key in row})
        step, elapsed = row.get("current_steps"), parse_elapsed(row.get("elapsed_time"))
        if not isinstance(step, int) or elapsed is None:
            return
        last = self._samples[-1] if self._samples else None
        if last and (step < last.step or elapsed < last.elapsed):  # started again: its clock began anew
            self._samples.clear()
        self._samples.append(Sample(step, elapsed))

    def _end(self, log: Log) -> End:
        path = self.directory / STATE
        try:
            status = path.stat()
        except OSError:
            self._state = self._state_seen = None
            return End.UNFINISHED
        seen = (status.st_mtime, status.st_size)
        if seen != self._state_seen:
            self._state, self._state_seen = read_state(path), seen
        younger = self._lines.written is not None and self._lines.written > status.st_mtime + _LATER_RUN
        return judge_end(log, self._state, {}, younger, trained=True)


def pace_of(row: dict[str, Any], samples: tuple[Sample, ...], log: Log) -> Pace:
    """Pure. The trainer's own `remaining_time` counts steps of before a resume as if they had taken no time."""
    speed = steps_per_second(samples)
    left = log.total_steps - log.current_steps if log.total_steps and log.current_steps is not None else None
    return Pace(
        learning_rate=number(row.get("lr")),
        steps_per_second=speed,
        remaining=_time_for(left, speed),
        tokens_per_second=number(row.get("throughput")),
        memory_gb=number(row.get("vram_allocated")),
        reserved_gb=number(row.get("vram_reserved")),
    )


def _time_for(steps: int | None, speed: float | None) -> timedelta | None:
    if steps is None or not speed or steps / speed > timedelta.max.total_seconds() / 2:
        return None
    return timedelta(seconds=round(max(steps, 0) / speed))


def steps_per_second(samples: tuple[Sample, ...]) -> float | None:
    """Over the last minutes, or since the start; None until there are two rows a second apart."""
    if len(samples) < 2:
        return None
    last = samples[-1]
    recent = [each for each in samples[:-1] if last.elapsed - each.elapsed <= RECENT]
    first = recent[0] if recent else samples[-2]
    seconds = (last.elapsed - first.elapsed).total_seconds()
    return (last.step - first.step) / seconds if seconds >= 1 and last.step > first.step else None


def last_lines(path: Path | None, count: int) -> tuple[str, ...]:
    """The last lines of a log, of a progress bar its last state; () where there is none."""
    lines = [line.rpartition("\r")[2].rstrip() for line in last_text(path, _TAIL).replace("\r\n", "\n").split("\n")]
    return tuple([line for line in lines if line][-count:])


def last_text(path: Path | None, most: int) -> str:
    """The end of a file, at most `most` bytes, from a whole line on."""
    if path is None:
        return ""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(size - most, 0))
            text = file.read(most).decode("utf-8", errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if size > most and "\n" in text else text


class TailFollower:
    """The last lines of a log, read again only when it changed."""

    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count = path, count
        self._seen: tuple[float, int] | None = None
        self._lines: tuple[str, ...] = ()

    def look(self) -> tuple[str, ...]:
        """`()` while there is no such file."""
        try:
            status = self._path.stat()
        except OSError:
            return self._lines
        seen = (status.st_mtime, status.st_size)
        if seen != self._seen:
            self._seen, self._lines = seen, last_lines(self._path, self._count)
        return self._lines
