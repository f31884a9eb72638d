"""The table of where a verification's time goes, from a report as verification writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.verified import read, table
from sifkit.errors import UsageError

REPORT: dict[str, Any] = {
    "passed": True,
    "started": "2026-11-25T10:00:00+00:00",
    "seconds": 59.4,
    "level_seconds": {"static": 16.2, "host": 0.0, "kernel": 0.0, "train": 42.0},
    "versions": {"torch": "2.11.0", "cuda": "13.0"},
    "gpus": ["NVIDIA H100"] * 2,
    "host": {"driver": "580.1"},
    "train": {"method": "lora", "seconds": 24.0, "phases": {"start and imports": 11.0, "first step": 7.5}},
    "checks": [
        {"name": "longest batch", "seconds": 17.0},
        {"name": "a stopped run resumes", "seconds": 0.0},
        {"name": "train", "seconds": 24.0},
    ],
}


def test_a_report_is_a_row_and_a_line_of_phases() -> None:
    lines = table([REPORT]).splitlines()
    assert lines[2] == (
        "| 2026-11-25 | 2 × NVIDIA H100, driver 580.1 | 2.11.0, CUDA 13.0 | lora | 16 s | 0 s | 0 s | 42 s | 59 s |"
    )
    assert lines[-1] == (
        "- 2 × NVIDIA H100, driver 580.1: the first train took 24 s (start and imports 11.0 s, first step 7.5 s); "
        "then, at the same time: longest batch 17 s."
    )


def test_levels_that_did_not_run_have_no_time() -> None:
    cpu = {**REPORT, "gpus": [], "level_seconds": {"static": 16.2, "train": 42.0}}
    assert "| CPU | 2.11.0, CUDA 13.0 | lora | 16 s |  |  | 42 s |" in table([cpu])


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({**REPORT, "passed": False}), json.dumps({"passed": True})])
def test_what_is_no_report_of_a_passed_verification_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError):
        read(path)
