"""Line charts as SVG text. Pure.

Colours and fonts are the page's: each series has a class s0, s1, …; axes and text have classes too, so that
dark mode and print need nothing of their own here.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 12, 40  # around the plot: room for numbers and for the axes' names
COLOURS = 8  # classes; a ninth series has the first's


@dataclass(frozen=True)
class Series:
    """One line. A y that is None, or not finite, is a gap."""

    label: str
    points: tuple[tuple[float, float | None], ...]
    dashed: bool = False


@dataclass(frozen=True)
class Axes:
    """What stands at the axes. `top`: the largest y that is shown at least (100 for per cent)."""

    title: str
    x: str
    y: str
    from_zero: bool = False
    top: float | None = None
    whole_x: bool = False  # steps: no 2.5


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """0 at the low end, 1 at the high."""
        return (value - self.low) / (self.high - self.low)


def line_chart(series: Sequence[Series], axes: Axes) -> str | None:
    """The chart; None when no series has a finite point."""
    drawn = [(x, y) for one in series for x, y in one.points if finite(y)]
    if not drawn:
        return None
    # The x axis spans gaps too: a loss that is not a number has its step.
    x_scale = _scale([x for one in series for x, _ in one.points], whole=axes.whole_x)
    ends = [0.0] if axes.from_zero else []
    ends += [axes.top] if axes.top is not None else []
    y_scale = _nice(_scale([float(y) for _, y in drawn if y is not None] + ends))
    root = ET.Element(
        "svg",
        {"viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img", "class": "chart", "xmlns": "http://www.w3.org/2000/svg"},
    )
    ET.SubElement(root, "title").text = axes.title
    _draw_axes(root, x_scale, y_scale, axes)
    for place, one in enumerate(series):
        _draw_line(root, one, f"s{place % COLOURS}", x_scale, y_scale)
    return ET.tostring(root, encoding="unicode")


def finite(value: float | None) -> bool:
    """Whether there is a point to draw."""
    return value is not None and math.isfinite(value)


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> tuple[float, ...]:
    """Round numbers (1, 2 or 5 times a power of ten) from `low` to `high`, both included where they are round."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    if whole:
        step = max(step, 1.0)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(number * step for number in range(first, last + 1))


def _scale(values: Iterable[float], *, whole: bool = False) -> _Scale:
    """From the least to the greatest; one value alone gets room on both sides."""
    found = list(values)
    low, high = min(found), max(found)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        room = 1.0 if whole or low == 0 else abs(low) / 2
        low, high = low - room, high + room
    return _Scale(low, high, ticks(low, high, whole=whole))


def _nice(scale: _Scale) -> _Scale:
    """The scale from tick to tick, so that its ends have numbers."""
    step = scale.ticks[1] - scale.ticks[0] if len(scale.ticks) > 1 else scale.high - scale.low
    low, high = math.floor(scale.low / step + 1e-9) * step, math.ceil(scale.high / step - 1e-9) * step
    return _Scale(low, high, ticks(low, high))


def _x(scale: _Scale, value: float) -> float:
    return _LEFT + scale.share(value) * (WIDTH - _LEFT - _RIGHT)


def _y(scale: _Scale, value: float) -> float:
    return HEIGHT - _BOTTOM - scale.share(value) * (HEIGHT - _TOP - _BOTTOM)


def _draw_axes(root: ET.Element, x_scale: _Scale, y_scale: _Scale, axes: Axes) -> None:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in y_scale.ticks:
        at = _y(y_scale, value)
        _line(root, (_LEFT, at), (right, at), "grid")
        _text(root, (_LEFT - 6, at + 4), number(value, y_scale.ticks), "end")
    for value in x_scale.ticks:
        at = _x(x_scale, value)
        _line(root, (at, bottom), (at, bottom + 4), "axis")
        _text(root, (at, bottom + 17), number(value, x_scale.ticks), "middle")
    _line(root, (_LEFT, bottom), (right, bottom), "axis")
    _text(root, ((_LEFT + right) / 2, HEIGHT - 6), axes.x, "middle")
    label = _text(root, (12, (bottom + _TOP) / 2), axes.y, "middle")
    label.set("transform", f"rotate(-90 12 {(bottom + _TOP) / 2:.1f})")


def number(value: float, among: Sequence[float]) -> str:
    """With as many decimals as tell the ticks apart."""
    step = abs(among[1] - among[0]) if len(among) > 1 else abs(value) or 1.0
    if step < 1e-4 or abs(value) >= 1e6:
        return f"{value:.3g}"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _line(root: ET.Element, start: tuple[float, float], end: tuple[float, float], kind: str) -> None:
    names = ("x1", "y1", "x2", "y2")
    values = (f"{value:.1f}" for value in (*start, *end))
    ET.SubElement(root, "line", {**dict(zip(names, values, strict=True)), "class": kind})


def _text(root: ET.Element, at: tuple[float, float], words: str, anchor: str) -> ET.Element:
    found = ET.SubElement(root, "text", {"x": f"{at[0]:.1f}", "y": f"{at[1]:.1f}", "text-anchor": anchor})
    found.text = words
    return found


def segments(points: Iterable[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The stretches between gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None and finite(y):
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [stretch for stretch in found if stretch]


def _draw_line(root: ET.Element, series: Series, colour: str, x_scale: _Scale, y_scale: _Scale) -> None:
    """Its stretches; with dots where there are few points, and for a stretch of one."""
    few = len(series.points) <= 40
    for stretch in segments(series.points):
        places = [(_x(x_scale, x), _y(y_scale, y)) for x, y in stretch]
        words = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        kind = f"line {colour} dashed" if series.dashed else f"line {colour}"
        ET.SubElement(root, "polyline", {"points": words, "class": kind})
        for x, y in places if few or len(places) == 1 else ():
            ET.SubElement(root, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3", "class": f"dot {colour}"})
