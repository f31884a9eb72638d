"""make bench-gpu's pure parts: what is compared, what a run took, what is said of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from bench import page
from bench.gpu import (
    Load,
    Pair,
    Run,
    arguments,
    busy_utilisation,
    differences,
    head,
    main,
    parse,
    read_run,
    require_same,
    spread,
    table,
)
from sifkit.errors import CommandFailed, Exit, UsageError
from sifkit.lock import render_lock
from sifkit.model import Inherited
from sifkit.verify.nvml import GpuSample, GpuUse
from sifkit.verify.stopwatch import Stopwatch
from tests.conftest import make_spec, wanted

SAME: dict[str, Any] = {
    "python": "3.12.3",
    "packages": {
        "torch": "2.11.0+cu130",
        "transformers": "5.6.0",
        "llamafactory": "0.9.5",
        "accelerate": "1.11.0",
        "peft": "0.18.1",
        "datasets": "4.0.0",
        "numpy": "2.5.2",
        "triton": "3.6.0",
        "pip": "26.0",
    },
}


def other(**packages: str) -> dict[str, Any]:
    return {**SAME, "packages": {**SAME["packages"], **packages}}


def watched(*utilisation: int | None) -> GpuUse:
    return GpuUse(samples=[GpuSample(place / 2, 0, 10.0, rate) for place, rate in enumerate(utilisation)])


def test_the_same_packages_may_be_compared_whatever_installed_them() -> None:
    outside = other(pip="23.2", jax="0.11.2")
    outside["python"] = "3.12.9"
    assert differences(SAME, outside) == []


def test_another_version_refuses_the_measurement() -> None:
    with pytest.raises(UsageError, match=r"transformers 5\.6\.0 inside, 5\.17\.0 outside"):
        require_same(SAME, other(transformers="5.17.0"))


def test_a_package_that_neither_side_has_to_have_is_compared_where_both_do() -> None:
    assert differences(other(deepspeed="0.18.4"), other(deepspeed="0.18.3")) == [
        "deepspeed 0.18.4 inside, 0.18.3 outside"
    ]
    assert differences(other(deepspeed="0.18.4"), SAME) == []


def test_a_package_that_training_needs_and_neither_has_is_named() -> None:
    without = {**SAME, "packages": {name: v for name, v in SAME["packages"].items() if name != "peft"}}
    assert differences(without, without) == ["peft missing inside, missing outside"]


def test_another_python_is_named() -> None:
    assert differences(SAME, {**SAME, "python": "3.13.0"}) == ["Python 3.12 inside, 3.13 outside"]


def timed(*seconds: float) -> Stopwatch:
    """A log whose steps ended so many seconds after the command."""
    now = [0.0]
    watch = Stopwatch(lambda: now[0])
    for now[0] in seconds:
        watch.line("{'loss': 6.9}")
    return watch


def test_startup_is_what_the_first_steps_took_beyond_the_others() -> None:
    assert read_run(timed(20.0, 21.0, 22.0, 22.5, 23.0), watched()) == Run(2.0, 22.0 - 3 / 2, None)


def test_a_log_with_too_few_steps_is_an_error() -> None:
    with pytest.raises(CommandFailed, match="has 3 steps"):
        read_run(timed(20.0, 21.0, 22.0), watched())


def test_waiting_between_two_busy_looks_counts_and_startup_does_not() -> None:
    assert busy_utilisation(watched(0, 0, 100, 40, 100, 0)) == 80.0


def test_a_gpu_that_was_never_busy_is_not_hidden() -> None:
    assert busy_utilisation(watched(0, 5, 0)) == 0.0
    assert busy_utilisation(watched(None, None)) is None


def test_both_sides_get_the_same_arguments_but_for_places() -> None:
    load = Load("billion", batch=8, accumulation=4, cutoff=2048, steps=30)
    inside = arguments(load, model="/a/model", output="/a/out", device="gpu")
    outside = arguments(load, model="/b/model", output="/b/out", device="gpu")
    assert [word.replace("=/b/", "=/a/") for word in outside] == list(inside)
    assert "use_cpu=true" not in inside
    assert "use_cpu=true" in arguments(load, model="m", output="o", device="cpu")
    assert load.tokens == 65_536


def test_the_table_gives_each_pair_and_the_spread() -> None:
    pairs = [
        Pair(Run(0.99, 22.0, 97.4), Run(1.0, 20.0, 98.0)),
        Pair(Run(1.01, 20.0, 97.0), Run(1.0, 20.0, 96.0)),
    ]
    lines = table(pairs).splitlines()
    assert lines[2] == "| 1 | 0.990 | 1.000 | 0.990 | 22.0 s | 20.0 s | 1.10 | 97 % | 98 % |"
    assert lines[-1] == (
        "Inside ÷ outside over 2 pairs: steps per second 1.000 (0.990 to 1.010), start-up 1.050 (1.000 to 1.100)."
    )
    assert math.isclose(pairs[0].speed, 0.99)


def test_one_value_has_a_spread() -> None:
    assert spread([0.5]) == "0.500 (0.500 to 0.500)"


def test_the_head_names_gpu_driver_and_load() -> None:
    said = head("NVIDIA H100 80GB HBM3, driver 580.159.04", SAME, 973_000_000, Load("billion", 8, 4, 2048, 30))
    assert "H100" in said
    assert "driver 580.159.04" in said
    assert "0.97 B parameters; 30 steps of 65,536 tokens (4 × 8 sequences of 2048)" in said


def test_the_page_has_the_section() -> None:
    assert page.read("benchmarks.md", "make bench-gpu").strip()


def test_recording_prints_and_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.md").write_text("before\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    monkeypatch.setattr(page, "DOCS", tmp_path)
    page.record("p.md", "x", "new\n")
    assert (tmp_path / "p.md").read_text() == "before\n<!-- x: begin -->\nnew\n<!-- x: end -->\nafter\n"
    assert capsys.readouterr().out == "new\n"


def test_an_image_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cpu", "--small", str(tmp_path / "none.sif")]) == Exit.USAGE
    assert "is not there" in capsys.readouterr().err


def test_a_python_that_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "x.sif"
    image.touch()
    assert main(["--device", "cpu", "--outside", str(tmp_path / "python"), str(image)]) == Exit.USAGE
    assert "--outside" in capsys.readouterr().err


def test_an_inherited_lock_wants_the_environment_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "definitions").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "example.sif").touch()
    spec = make_spec()
    text = render_lock(spec, wanted(spec), [], [Inherited("torch", "2.11.0+cu130")])
    (tmp_path / "definitions" / "example.lock").write_text(text)
    assert main(["--device", "cpu", str(tmp_path / "images" / "example.sif")]) == Exit.HOST
    assert "--outside" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--pairs", "0"], ["--steps", "0"]])
def test_nothing_is_measured_in_no_steps(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        parse(words)
