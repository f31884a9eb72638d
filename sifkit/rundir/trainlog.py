"""trainer_log.jsonl and trainer_state.json, read in constant memory: a run of a million steps logs a million rows.

Sources: llamafactory/train/callbacks.py, LogCallback; transformers/trainer_callback.py, TrainerState.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sifkit.rundir.whole import json_object

POINTS = 1024  # of a curve that are kept; a terminal shows fewer
_MAX_ROW = 1 << 20  # bytes; a row has some hundred
_SCANNED = 10_000  # keys of rows that are looked at for the quantities that are logged
_WHOLE_STATE = 8 << 20  # bytes of a trainer_state.json that is parsed as a whole; a larger one line by line


class Point(NamedTuple):
    """A logged value."""

    step: int
    value: float


@dataclass(frozen=True)
class Series:
    """A logged quantity over a run; `points` are means of neighbours where there were too many."""

    count: int = 0
    not_finite: int = 0
    first: Point | None = None
    last: Point | None = None
    lowest: Point | None = None
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Log:
    """What trainer_log.jsonl says. None: no row says it."""

    rows: int = 0
    torn: int = 0  # lines that are no JSON object
    restarts: int = 0  # how often the step went back: the run was started again
    current_steps: int | None = None
    total_steps: int | None = None
    epoch: float | None = None
    elapsed: timedelta | None = None  # since the last start
    longest_pause: timedelta = timedelta(0)  # between two rows of the last start
    loss: Series = field(default_factory=Series)
    eval_loss: Series = field(default_factory=Series)
    reward: Series = field(default_factory=Series)  # only PPO logs one


@dataclass(frozen=True)
class State:
    """What trainer_state.json says of the run; `quantities` are the keys of its log."""

    global_step: int | None = None
    max_steps: int | None = None
    best_checkpoint: str | None = None  # its name, without the directories of whoever trained
    best_metric: float | None = None
    quantities: frozenset[str] = frozenset()


class SeriesBuilder:
    """Gathers a series point by point in the memory of `limit` points."""

    def __init__(self, limit: int = POINTS) -> None:
        self._limit = limit
        self._stride = 1
        self._points: list[Point] = []
        self._pending: list[Point] = []
        self._count = self._not_finite = 0
        self._first: Point | None = None
        self._last: Point | None = None
        self._lowest: Point | None = None

    def add(self, step: int, value: float) -> None:
        """Take one value. A step that was there before replaces what was logged from it on: the run was resumed."""
        if self._last and step <= self._last.step:
            self._drop_from(step)
        self._count += 1
        self._last = Point(step, value)
        self._first = self._first or self._last
        if not math.isfinite(value):
            self._not_finite += 1
            return
        if self._lowest is None or value < self._lowest.value:
            self._lowest = self._last
        self._pending.append(self._last)
        if len(self._pending) >= self._stride:
            self._points.append(_mean(self._pending))
            self._pending = []
        if len(self._points) >= self._limit:
            self._points = [_mean(self._points[at : at + 2]) for at in range(0, len(self._points), 2)]
            self._stride *= 2

    def _drop_from(self, step: int) -> None:
        self._pending = [point for point in self._pending if point.step < step]
        while self._points and self._points[-1].step >= step:
            self._points.pop()

    def series(self) -> Series:
        """What was gathered so far."""
        points = [*self._points, *([_mean(self._pending)] if self._pending else [])]
        return Series(self._count, self._not_finite, self._first, self._last, self._lowest, tuple(points))


def _mean(points: list[Point]) -> Point:
    return Point(points[-1].step, sum(point.value for point in points) / len(points))


class LogReader:
    """Rows of trainer_log.jsonl, taken one by one."""

    def __init__(self) -> None:
        self._loss, self._eval_loss, self._reward = SeriesBuilder(), SeriesBuilder(), SeriesBuilder()
        self._rows = self._torn = self._restarts = 0
        self._step: int | None = None
        self._total: int | None = None
        self._epoch: float | None = None
        self._elapsed: timedelta | None = None
        self._longest = timedelta(0)

    def take(self, line: bytes) -> None:
        """One line of the file; what is no row is counted."""
        row = _row(line)
        step = _whole_number(row.get("current_steps")) if row else None
        if row is None or step is None:
            self._torn += 1
            return
        self._rows += 1
        self._time(row, restarted=self._step is not None and step < self._step)
        self._step, self._total = step, _whole_number(row.get("total_steps")) or self._total
        self._epoch = number(row.get("epoch")) or self._epoch
        named = (("loss", self._loss), ("eval_loss", self._eval_loss), ("reward", self._reward))
        for name, series in named:
            if (value := number(row.get(name))) is not None:
                series.add(step, value)

    def _time(self, row: dict[str, Any], *, restarted: bool) -> None:
        elapsed = parse_elapsed(row.get("elapsed_time"))
        if restarted:
            self._restarts += 1
            self._longest, self._elapsed = timedelta(0), None
        if elapsed is not None:
            self._longest = max(self._longest, elapsed - (self._elapsed or timedelta(0)))
            self._elapsed = elapsed

    def log(self) -> Log:
        """What the rows so far say."""
        return Log(
            rows=self._rows,
            torn=self._torn,
            restarts=self._restarts,
            current_steps=self._step,
            total_steps=self._total,
            epoch=self._epoch,
            elapsed=self._elapsed,
            longest_pause=self._longest,
            loss=self._loss.series(),
            eval_loss=self._eval_loss.series(),
            reward=self._reward.series(),
        )


def read_log(lines: Iterable[bytes]) -> Log:
    """All rows; a million take some seconds and no more memory than a thousand."""
    reader = LogReader()
    for line in lines:
        reader.take(line)
    return reader.log()


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, none longer than a row can be; nothing when there is no file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        while line := file.readline(_MAX_ROW):
            yield line


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def number(value: object) -> float | None:
    """A number of JSON as Python writes it, NaN and Infinity included; None for anything else."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62 else None


_ELAPSED = re.compile(r"(?:(\d{1,6}) days?, )?(\d{1,2}):(\d\d):(\d\d)")


def parse_elapsed(value: object) -> timedelta | None:
    """`str(timedelta)` as LLaMA-Factory writes it: `0:00:20`, `1 day, 2:03:04`."""
    match = _ELAPSED.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)


# ---------------------------------------------------------------------------------------------- state


def read_state(path: Path) -> State | None:
    """None when the file is missing, or is not what transformers writes."""
    try:
        if path.stat().st_size <= _WHOLE_STATE:
            values = json_object(path)
            history = values.get("log_history")
            rows = [row for row in history if isinstance(row, dict)] if isinstance(history, list) else []
            return _state(values, {key for row in rows for key in row}) if values else None
        return _scanned_state(path)
    except OSError:
        return None


# json.dumps(…, indent=2, sort_keys=True): keys of the state start in column 2, those of a row of its log in column 6.
_STATE_KEY = re.compile(rb'^  "(\w{1,40})": (.+?),?\s*$')
_ROW_KEY = re.compile(rb'^      "([\w/.-]{1,60})": ')


def _scanned_state(path: Path) -> State | None:
    values: dict[str, Any] = {}
    quantities: set[str] = set()
    last, scanned = b"", 0
    with path.open("rb") as file:
        while line := file.readline(_MAX_ROW):
            last = line if line != b"\n" else last
            if line[2:3] == b'"' and (key := _STATE_KEY.match(line)):
                values.update(_scalar(key[1].decode(), key[2]))
            elif scanned < _SCANNED and (key := _ROW_KEY.match(line)):
                scanned += 1
                quantities.add(key[1].decode())
    return _state(values, quantities) if last.strip() == b"}" else None


def _scalar(key: str, text: bytes) -> dict[str, Any]:
    try:
        return {key: json.loads(text)}
    except (ValueError, RecursionError):  # the beginning of a list or an object
        return {}


def _state(values: dict[str, Any], quantities: set[str]) -> State:
    best = values.get("best_model_checkpoint")
    return State(
        global_step=_whole_number(values.get("global_step")),
        max_steps=_whole_number(values.get("max_steps")),
        best_checkpoint=best.rstrip("/").rpartition("/")[2] if isinstance(best, str) and best else None,
        best_metric=number(values.get("best_metric")),
        quantities=frozenset(quantities),
    )
