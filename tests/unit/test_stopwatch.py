"""Where a run spends its time, read from its log with a clock that the test turns."""

from __future__ import annotations

import pytest

from sifkit.verify.stopwatch import Stopwatch

LOG = (
    (
        13.0,
        "[INFO|2026-11-25 01:14:08] llamafactory.hparams.parser:523 >> Process rank: 0, world size: 1, device: cuda:0",
    ),
    (15.0, "[INFO|trainer.py:1469] 2026-11-25 01:14:11,436 >> ***** Running training *****"),
    (25.0, "{'loss': '6.94', 'grad_norm': '0.2408'}"),
    (25.5, "{'loss': '6.879', 'grad_norm': '0.2268'}"),
    (26.0, "{'loss': '6.827', 'grad_norm': '0.1989'}"),
    (26.5, "Training completed. Do not forget to share your model on huggingface.co/models =)"),
)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def fed(*lines: tuple[float, str]) -> tuple[Stopwatch, Clock]:
    clock = Clock()
    watch = Stopwatch(clock)
    for at, text in lines:
        clock.now = 100.0 + at
        watch.line(text)
    return watch, clock


def test_every_phase_is_timed() -> None:
    watch, clock = fed(*LOG)
    clock.now = 133.0
    assert watch.phases() == {
        "start and imports": 13.0,
        "data and model": 2.0,
        "first step": 10.0,
        "other steps": 1.5,
        "saving, evaluation, plots": 6.5,
    }


def test_a_run_that_dies_early_has_the_phases_that_it_reached() -> None:
    watch, clock = fed(*LOG[:1])
    clock.now = 120.0
    assert watch.phases() == {"start and imports": 13.0, "saving, evaluation, plots": 7.0}


def test_the_speed_leaves_out_the_steps_that_warm_up() -> None:
    watch, _ = fed(*LOG)
    assert watch.steps_per_second(1) == pytest.approx(2.0)
    assert watch.steps_per_second(0) == pytest.approx(3 / 26)
    assert watch.steps_per_second(3) is None
