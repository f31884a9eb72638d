"""Reports: what counts as passed, and the three forms for machines and people."""

from __future__ import annotations

import io
import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from sifkit.verify import Level, Outcome, Report, render_table, write_report
from sifkit.verify.checks import failed, not_run, passed, timed, warned
from sifkit.verify.nvml import GpuSample
from sifkit.verify.report import json_text, verdict
from sifkit.verify.train import TrainFacts

GOOD = passed(Level.STATIC, "import torch", "works")
BAD = failed(Level.TRAIN, "losses are finite", "step 2: loss nan \x1b[0m", "learning rate too high", "lower it")
ABSENT = not_run(Level.HOST, "host", "needs a GPU")


def report_of(*checks: object, train: TrainFacts | None = None) -> Report:
    return Report(
        name="example",
        sha256="0" * 64,
        size=4_600_000_000,
        versions={"torch": "2.9.1"},
        device="cpu",
        started="2026-01-01T00:00:00+00:00",
        seconds=63.0,
        levels=(Level.STATIC, Level.HOST, Level.TRAIN),
        checks=checks,  # type: ignore[arg-type]
        host=None,
        train=train,
    )


FACTS = TrainFacts("x.yaml", "smoke model", ((1, math.nan),), (), None, None, None, 1.0, "cpu", None, None, ())


def test_passed_means_that_something_passed_and_nothing_failed() -> None:
    assert report_of(GOOD).passed
    assert report_of(GOOD, ABSENT, warned(Level.TRAIN, "x", "y")).passed
    assert not report_of(GOOD, BAD).passed
    assert not report_of(ABSENT).passed
    assert not report_of().passed


def test_a_level_that_did_not_run_has_not_passed() -> None:
    report = report_of(GOOD, ABSENT, BAD)
    outcomes = [report.outcome_of(level) for level in report.levels]
    assert outcomes == [Outcome.PASSED, Outcome.NOT_RUN, Outcome.FAILED]


def test_a_level_stopped_before_its_own_work_has_not_run() -> None:
    checkout = passed(Level.TRAIN, "checkout", "whole")
    stopped = report_of(GOOD, checkout, not_run(Level.TRAIN, "train", "level kernel failed"))
    assert stopped.outcome_of(Level.TRAIN) is Outcome.NOT_RUN


def test_the_json_is_strict_and_says_it_all(tmp_path: Path) -> None:
    write_report(report_of(GOOD, ABSENT, BAD, train=FACTS), tmp_path)
    text = (tmp_path / "report.json").read_text()
    value = json.loads(text, parse_constant=lambda word: 1 / 0)
    assert value["passed"] is False
    assert value["outcome"] == {"static": "passed", "host": "not run", "train": "failed"}
    assert value["checks"][2]["fix"] == "lower it"
    assert value["train"]["losses"] == [[1, "nan"]]


def test_junit_has_a_suite_for_each_level(tmp_path: Path) -> None:
    write_report(report_of(GOOD, ABSENT, BAD), tmp_path)
    suites = ET.parse(tmp_path / "junit.xml").getroot().findall("testsuite")
    counts = [(suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("skipped")) for suite in suites]
    assert counts == [("static", "1", "0", "0"), ("host", "1", "0", "1"), ("train", "1", "1", "0")]
    assert "fix: lower it" in (suites[2].findtext("testcase/failure") or "")


def test_the_table_shows_cause_and_fix_of_what_failed() -> None:
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(render_table(report_of(GOOD, ABSENT, BAD)))
    text = captured.get()
    assert "cause: learning rate too high" in text
    assert "fix: lower it" in text
    assert "not run: needs a GPU" in text


def test_the_verdict_names_each_level() -> None:
    assert verdict(report_of(GOOD, ABSENT)) == (
        "example: verified (static passed, host not run, train not run) in 63 s"
    )


def test_a_levels_time_is_that_of_the_wall_or_of_its_checks(tmp_path: Path) -> None:
    checks = (timed(GOOD, 2.0), timed(GOOD, 1.5))
    assert report_of(*checks).seconds_of(Level.STATIC) == 3.5
    write_report(replace(report_of(*checks), level_seconds={"static": 2.25}), tmp_path)
    value = json.loads((tmp_path / "report.json").read_text())
    assert value["level_seconds"] == {"static": 2.25, "host": 0.0, "train": 0.0}


def test_samples_are_rows_each_on_one_line(tmp_path: Path) -> None:
    samples = (GpuSample(0.5004, 0, 10.12345, 97), GpuSample(0.5004, 1, 2.0, None))
    write_report(report_of(GOOD, train=replace(FACTS, samples=samples)), tmp_path)
    text = (tmp_path / "report.json").read_text()
    assert "        [0.5, 0, 10.123, 97],\n        [0.5, 1, 2.0, null]\n" in text
    table = json.loads(text)["train"]["samples"]
    assert table["columns"] == ["seconds", "gpu", "memory_gb", "utilisation_percent"]


def test_compact_json_says_the_same_whatever_stands_in_it() -> None:
    value = {"a": ["\x00", "[ 1, 2 ]", None], 'k"': [[1], {"x": []}, "y"], "b": "[ 3 ]", "c": [[], [[2.5]]], "d": {}}
    assert json.loads(json_text(value)) == value
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"x": [math.nan]})
