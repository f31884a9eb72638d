"""report.html: whole, self-contained, safe against what stands in logs; and the charts in it."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sifkit.verify import Level, Report, write_report
from sifkit.verify.checks import Check, failed, not_run, passed, warned
from sifkit.verify.html import duration, page_of, render_html
from sifkit.verify.nvml import Gpu, GpuSample, HostFacts
from sifkit.verify.svg import HEIGHT, WIDTH, Axes, Series, line_chart, number, segments, ticks
from sifkit.verify.train import TrainFacts

GPU = Gpu(0, "GPU-1", "NVIDIA H100 80GB HBM3", (9, 0), 85.0, 84.0, 0, ())
HOST = HostFacts("580.65.06", "13.0", (GPU, replace(GPU, index=1)))
LOSSES = ((1, 2.3), (2, 2.0), (3, math.nan), (4, 1.5))
SAMPLES = tuple(GpuSample(at / 2, index, 10.0 + at, 50 + at) for at in range(20) for index in (0, 1))
FACTS = TrainFacts(
    *("/mnt/x.yaml", "smoke model", LOSSES, ((4, 1.4),), 1.9, 1.7, 0.8, 31.0, "cuda:0", 41.2, 97),
    ("adapter_config.json",),
    gpus=2,
    tokens_per_second=1234.5,
    samples=SAMPLES,
)
EVIL = "</style><script>alert(1)</script>\x1b[0m\x00\ud800<img src=x onerror='y'>\"&"
GOOD = passed(Level.STATIC, "import torch", "works")
BAD = failed(Level.TRAIN, "losses are finite", "step 3: loss nan", "learning rate too high", "lower it")


def report(*checks: Check, train: TrainFacts | None = FACTS, name: str = "example") -> Report:
    given = ("a" * 64, 4_600_000_000, {"torch": "2.9.1"}, "gpu", "2026-11-25T10:00:00+00:00", 84.0)
    return Report(name, *given, tuple(Level), checks, HOST, train, (GPU.name, GPU.name), {"static": 12.0})


class Seen(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def parsed(text: str) -> ET.Element:
    """The page is well-formed XML too."""
    return ET.fromstring(text)


def charts(text: str) -> list[ET.Element]:
    return list(parsed(text).iter("{http://www.w3.org/2000/svg}svg"))


def lines(chart: ET.Element) -> list[str]:
    return [line.get("class", "") for line in chart.iter("{http://www.w3.org/2000/svg}polyline")]


# ------------------------------------------------------------------ the page


def test_the_page_says_what_failed_first_and_what_to_do() -> None:
    text = Seen(render_html(report(warned(Level.HOST, "driver", "old", "it is old", "a newer one"), GOOD, BAD))).text
    assert "not verified" in text
    first, then = text.index("Do this first"), text.index("Then")
    assert first < text.index("train: losses are finite") < text.index("lower it") < then < text.index("host: driver")
    assert "on 2 × NVIDIA H100 80GB HBM3" in text
    assert "when 2026-11-25 10:00 UTC took 84 s" in text


def test_a_page_that_passed_has_nothing_to_do_first() -> None:
    text = Seen(render_html(report(GOOD))).text
    assert "Do this first" not in text
    assert "example verified" in text
    assert "1,234 tokens per second" in text
    assert "NVIDIA driver 580.65.06" in text


def test_levels_have_their_outcome_and_time() -> None:
    page = page_of(report(GOOD, not_run(Level.KERNEL, "kernel", "level host failed"), BAD))
    found = [(level.name, level.outcome, level.seconds) for level in page.levels]
    assert found == [
        ("static", "passed", "12 s"),
        ("host", "not run", ""),
        ("kernel", "not run", ""),
        ("train", "failed", ""),
    ]


def test_nothing_is_loaded_and_no_script_runs() -> None:
    seen = Seen(render_html(report(GOOD, BAD)))
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on") or name in ("src", "href")]
    text = render_html(report(GOOD, BAD)).replace("http://www.w3.org/2000/svg", "")
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text


@pytest.mark.parametrize("place", ["name", "check", "facts"])
def test_hostile_words_are_words(place: str) -> None:
    check = failed(Level.TRAIN, EVIL, EVIL, EVIL, EVIL) if place == "check" else GOOD
    facts = replace(FACTS, config=EVIL, model=EVIL, device=EVIL, files=(EVIL,)) if place == "facts" else FACTS
    text = render_html(report(check, train=facts, name=EVIL if place == "name" else "example"))
    seen = Seen(text)
    assert not {"script", "img"} & set(seen.tags)
    assert "alert(1)" in seen.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff]", text)
    parsed(text)


def test_without_a_training_there_is_no_part_of_it() -> None:
    text = render_html(report(BAD, train=None))
    assert charts(text) == []
    assert "Training" not in Seen(text).text


def test_write_report_leaves_the_page_beside_the_others(tmp_path: Path) -> None:
    write_report(report(GOOD), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "junit.xml", "report.html"}
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (63.2, "63 s"), (119.6, "2 min 0 s"), (3661, "61 min 1 s")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


# ------------------------------------------------------------------ the charts in it


def test_losses_memory_and_utilisation_are_drawn_one_line_for_each_gpu() -> None:
    loss, memory, utilisation = charts(render_html(report(GOOD)))
    assert lines(loss) == ["line s0", "line s0", "line s1 dashed"]  # training has a gap at step 3
    assert sorted(lines(memory)) == sorted(lines(utilisation)) == ["line s0", "line s1"]
    assert "no finite value at step 3" in Seen(render_html(report(GOOD))).text


def test_losses_without_one_finite_number_have_no_axes_but_are_said() -> None:
    facts = replace(FACTS, losses=((1, math.nan), (2, math.inf)), resumed_losses=(), samples=())
    text = render_html(report(BAD, train=facts))
    assert charts(text) == []
    assert "no finite value at step 1, 2" in Seen(text).text


def test_one_sample_is_a_dot_and_none_no_chart() -> None:
    one = replace(FACTS, losses=(), resumed_losses=(), samples=SAMPLES[:1])
    memory, _ = charts(render_html(report(GOOD, train=one)))
    assert len(list(memory.iter("{http://www.w3.org/2000/svg}circle"))) == 1
    assert charts(render_html(report(GOOD, train=replace(one, samples=())))) == []


def test_utilisation_that_was_not_answered_is_a_gap() -> None:
    samples = (*SAMPLES[:4], GpuSample(2.0, 0, 20.0, None), GpuSample(2.5, 0, 20.0, 60))
    _, utilisation = charts(
        render_html(report(GOOD, train=replace(FACTS, losses=(), resumed_losses=(), samples=samples)))
    )
    assert lines(utilisation).count("line s0") == 2


# ------------------------------------------------------------------ charts


def test_ticks_are_round_numbers_within_the_span() -> None:
    assert ticks(0, 100) == (0, 20, 40, 60, 80, 100)
    assert ticks(1, 6, whole=True) == (1, 2, 3, 4, 5, 6)
    assert ticks(1, 2, whole=True) == (1, 2)
    assert [round(value, 3) for value in ticks(6.76, 6.94)] == [6.8, 6.85, 6.9]


def test_numbers_tell_the_ticks_apart() -> None:
    assert [number(value, (6.8, 6.85)) for value in (6.8, 6.85)] == ["6.80", "6.85"]
    assert number(20, (0, 20)) == "20"
    assert number(1e-7, (0, 1e-7)) == "1e-07"


def test_stretches_between_gaps() -> None:
    points = ((1, None), (2, 1.0), (3, math.nan), (4, 2.0), (5, 3.0), (6, math.inf))
    assert segments(points) == [[(2, 1.0)], [(4, 2.0), (5, 3.0)]]


@pytest.mark.parametrize(
    "points",
    [
        ((1, 5.0),),
        ((1, 5.0), (2, 5.0), (3, 5.0)),
        ((0, 0.0),),
        ((1, -3.0), (2, 4.0)),
        ((1, 1e300), (2, 1e-300)),
        ((1, 1e-12), (2, 2e-12)),
        tuple((float(step), 1.0 / (step + 1)) for step in range(10_000)),
    ],
)
def test_every_point_lies_in_the_picture(points: tuple[tuple[float, float | None], ...]) -> None:
    text = line_chart([Series("x", points)], Axes("t", "step", "loss"))
    assert text is not None
    polylines = [part.get("points", "") for part in ET.fromstring(text) if part.tag.endswith("polyline")]
    drawn = [pair for words in polylines for pair in words.split()]
    places = [tuple(map(float, pair.split(","))) for pair in drawn]
    assert len(places) == len(points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places)
    assert [text for text in ET.fromstring(text).itertext() if re.fullmatch(r"-?[\d.]+(e[-+]\d+)?", text)]


def test_a_chart_of_nothing_is_none() -> None:
    assert line_chart([], Axes("t", "x", "y")) is None
    assert line_chart([Series("x", ((1, None), (2, math.nan)))], Axes("t", "x", "y")) is None


def test_words_in_a_chart_are_escaped() -> None:
    text = line_chart([Series("x", ((1, 1.0),))], Axes("<b>&", "<i>", '"y"'))
    assert text is not None
    assert "&lt;b&gt;&amp;" in text
