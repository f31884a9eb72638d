"""A curve as text: braille dots where the terminal can show them, ASCII elsewhere. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sifkit.rundir.trainlog import Point

# Unicode, Braille Patterns: the bit of each dot of a cell, [row from above][column].
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BRAILLE = 0x2800


def can_show(encoding: str | None) -> bool:
    """Whether text in this encoding can hold the dots."""
    try:
        chr(_BRAILLE).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def draw(points: Sequence[Point], width: int, height: int, *, unicode: bool) -> list[str]:
    """The curve in `height` lines of at most `width` columns and one line below with the steps; [] without points.

    Where there are more points than columns, their means are drawn. Values that are not finite are left out.
    `width` ≥ 24, `height` ≥ 2.
    """
    points = _means([point for point in points if math.isfinite(point.value)], width)
    if not points:
        return []
    low, high = min(point.value for point in points), max(point.value for point in points)
    labels = _labels(low, high, height)
    margin = max(len(label) for label in labels)
    columns = max(width - margin - 2, 8)
    rows = _braille(points, columns, height) if unicode else _ascii(points, columns, height)
    bar = "┤" if unicode else "|"
    lines = [f"{label:>{margin}} {bar}{row}".rstrip() for label, row in zip(labels, rows, strict=True)]
    first, last = str(points[0].step), str(points[-1].step)
    steps = first if len(points) == 1 else f"{first}{last:>{max(columns - len(first), len(last) + 1)}}"
    return [*lines, f"{'':{margin}}  {steps}"]


def _means(points: Sequence[Point], most: int) -> list[Point]:
    """At most `most` points: the means of as many neighbours each as that takes."""
    group = math.ceil(len(points) / most)
    groups = [points[at : at + group] for at in range(0, len(points), group)] if points else []
    return [Point(each[-1].step, sum(point.value / len(each) for point in each)) for each in groups]


def _labels(low: float, high: float, height: int) -> list[str]:
    """The highest value at the top, the lowest at the bottom."""
    return [f"{high:.4g}", *[""] * (height - 2), f"{low:.4g}"]


def _cells(points: Sequence[Point], columns: int, rows: int) -> list[tuple[int, int]]:
    """Column and row from above of each point on a grid, neighbours joined by a line."""
    first, last = points[0].step, points[-1].step
    low, high = min(point.value for point in points), max(point.value for point in points)
    cells: list[tuple[int, int]] = []
    for point in points:
        across = (point.step - first) / (last - first) if last > first else 0.0
        scale = high - low
        up = ((point.value - low) / scale if math.isfinite(scale) else 0.5) if scale > 0 else 0.0
        cell = (round(across * (columns - 1)), round((1 - up) * (rows - 1)))
        cells += _joined(cells[-1], cell) if cells else [cell]
    return cells


def _joined(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The cells of a straight line, `end` included and `start` not."""
    length = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
    return [
        (round(start[0] + (end[0] - start[0]) * at / length), round(start[1] + (end[1] - start[1]) * at / length))
        for at in range(1, length + 1)
    ]


def _braille(points: Sequence[Point], columns: int, height: int) -> list[str]:
    grid = [[0] * columns for _ in range(height)]
    for x, y in _cells(points, columns * 2, height * 4):
        grid[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
    return ["".join(chr(_BRAILLE | bits) if bits else " " for bits in row) for row in grid]


def _ascii(points: Sequence[Point], columns: int, height: int) -> list[str]:
    grid = [[" "] * columns for _ in range(height)]
    for x, y in _cells(points, columns, height):
        grid[y][x] = "*"
    return ["".join(row) for row in grid]
