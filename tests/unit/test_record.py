"""reports/NAME/verified.jsonl, and what --list makes of it."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sifkit import store
from sifkit.errors import HostError
from sifkit.execute import load_image
from sifkit.listing import as_json, judge_verifications, list_images
from sifkit.model import Site
from sifkit.plan import recipe_of
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.spec import Project
from sifkit.stamp import put_on_record
from sifkit.store import Manifest
from sifkit.tools import Tools
from sifkit.verify import Level, Report
from sifkit.verify.checks import Check, failed, not_run, passed
from sifkit.verify.nvml import Gpu, HostFacts
from sifkit.verify.record import (
    FILE,
    Record,
    append,
    latest_of_each_kind,
    parse_record,
    read_records,
    record_of,
)
from sifkit.verify.report import write_report

IMAGE, OTHER = "a" * 64, "b" * 64
H100 = "NVIDIA H100 80GB HBM3"
OUTCOME = {"static": "passed", "host": "passed", "kernel": "passed", "train": "passed"}


def record(day: int, *gpus: str, passes: bool = True, sha256: str = IMAGE) -> Record:
    device = "gpu" if gpus else "cpu"
    return Record(sha256, device, gpus, None, f"2026-11-{day:02}T10:00:00+00:00", passes, OUTCOME, 60.0)


GOOD = passed(Level.STATIC, "import torch", "works")


def report(*checks: Check, device: str = "gpu", gpus: tuple[str, ...] = (H100, H100)) -> Report:
    gpu = Gpu(0, "GPU-1", H100, (9, 0), 85.0, 84.0, 0, ())
    host = HostFacts("580.65.06", "13.0", (gpu, replace(gpu, index=1), replace(gpu, index=2)))
    started = "2026-11-25T10:00:00+00:00"
    given = (device, started, 84.0, tuple(Level), checks, host if device == "gpu" else None, None)
    return Report("example", IMAGE, 1, {}, *given, gpus=gpus if device == "gpu" else ())


# ------------------------------------------------------------------ a line


def test_a_report_becomes_a_line_with_the_gpus_that_were_used() -> None:
    found = record_of(report(GOOD))
    assert found is not None
    assert (found.sha256, found.device, found.gpus, found.driver) == (IMAGE, "gpu", (H100, H100), "580.65.06")
    assert found.outcome == {"static": "passed", "host": "not run", "kernel": "not run", "train": "not run"}
    assert (found.kind, found.date, found.passed, found.seconds) == ("2 × H100 80GB HBM3", "2026-11-25", True, 84.0)


def test_what_never_reached_the_image_says_nothing_about_it() -> None:
    hidden = failed(Level.HOST, "GPUs are visible", "0 of 1")
    stopped = tuple(not_run(level, level.value, "not started") for level in (Level.STATIC, Level.KERNEL, Level.TRAIN))
    assert record_of(report(hidden, *stopped)) is None
    assert record_of(report(failed(Level.STATIC, "import torch", "no"))) is not None


def test_a_config_of_the_users_own_that_does_not_train_says_nothing_about_the_image() -> None:
    checks = (GOOD, failed(Level.TRAIN, "losses are finite", "step 2: loss nan"))
    assert record_of(replace(report(*checks), own=True)) is None
    assert record_of(report(*checks)) is not None
    broken = failed(Level.STATIC, "import torchaudio", "ImportError")
    assert record_of(replace(report(*checks, broken), own=True)) is not None


@pytest.mark.parametrize(
    "change", [{"gpus": 5}, {"gpus": "abc"}, {"gpus": [1]}, {"seconds": 10**400}, {"seconds": float("nan")}]
)
def test_a_line_of_another_shape_is_skipped(tmp_path: Path, change: dict[str, Any]) -> None:
    good = asdict(record(1, H100))
    (tmp_path / FILE).write_text(json.dumps({**good, **change}) + "\n" + json.dumps(good) + "\n")
    assert read_records(tmp_path) == (record(1, H100),)


def test_a_record_that_is_no_file_hides_no_other_image(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert read_records(tmp_path) == ()
    os.mkfifo(tmp_path / "report.json")
    assert read_records(tmp_path) == ()


def test_kinds_are_words() -> None:
    assert record(1).kind == "CPU"
    assert record(1, H100).kind == "H100 80GB HBM3"
    assert record(1, H100, "NVIDIA A40").kind == "H100 80GB HBM3, A40"


# ------------------------------------------------------------------ the file


def test_lines_are_added_and_read_again(tmp_path: Path) -> None:
    written = (record(1), record(2, H100), record(3, H100, passes=False))
    for one in written:
        append(tmp_path / "reports", one)
    assert read_records(tmp_path / "reports") == written


@pytest.mark.parametrize("torn", ['{"sha256": "aaa', "[1, 2]\n", "\xff\xfe\n", "[" * 100_000, "null\n\n"])
def test_what_is_torn_is_skipped_and_spoils_no_later_line(tmp_path: Path, torn: str) -> None:
    append(tmp_path, record(1))
    with (tmp_path / FILE).open("ab") as stream:
        stream.write(torn.encode("latin-1"))
    append(tmp_path, record(2))
    assert read_records(tmp_path) == (record(1), record(2))


def _append_many(directory: Path, first: int) -> None:
    for day in range(first, first + 10):
        append(directory, record(day, *[H100] * 200))


def test_writers_at_the_same_time_leave_whole_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(tmp_path, first)) for first in (1, 11)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [one.date for one in read_records(tmp_path)] == [f"2026-11-{day:02}" for day in range(1, 21)]


def test_a_filesystem_without_locks_still_gets_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(stream: Any, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    with pytest.raises(HostError), store.exclusive(tmp_path / "x", lambda: None):
        pass
    append(tmp_path, record(1))
    assert read_records(tmp_path) == (record(1),)


def test_a_report_of_an_older_version_counts_and_a_new_one_is_not_counted_twice(tmp_path: Path) -> None:
    write_report(report(GOOD), tmp_path)
    (alone,) = read_records(tmp_path)
    assert (alone.sha256, alone.passed, alone.kind) == (IMAGE, True, "2 × H100 80GB HBM3")
    append(tmp_path, alone)
    assert read_records(tmp_path) == (alone,)
    old = {name: value for name, value in json.loads((tmp_path / "report.json").read_text()).items() if name != "gpus"}
    assert parse_record(old) == replace(alone, gpus=(H100,))


def test_no_directory_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "none") == ()


# ------------------------------------------------------------------ --list


def state(*records: Record) -> tuple[str, str]:
    return judge_verifications(latest_of_each_kind(records, IMAGE))


def test_verified_names_each_kind_and_its_day_newest_first() -> None:
    assert state(record(24), record(25, H100)) == ("verified", "on H100 80GB HBM3, 2026-11-25; CPU, 2026-11-24")


def test_only_this_very_image_counts() -> None:
    assert state(record(24, sha256=OTHER)) == ("built", "")


def test_a_later_failure_on_the_same_kind_takes_the_stamp_back() -> None:
    before, after = record(24, H100), record(25, H100, passes=False)
    word, why = state(before, after)
    assert word == "built"
    assert "verification failed on H100 80GB HBM3, 2026-11-25" in why
    assert state(after, record(26, H100))[0] == "verified"


def test_a_failure_on_another_kind_is_said_and_takes_nothing_back() -> None:
    word, why = state(record(24), record(25, H100, passes=False))
    assert word == "verified"
    assert why.startswith("on CPU, 2026-11-24; verification failed on H100 80GB HBM3, 2026-11-25")


# ------------------------------------------------------------------ in a project


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def tools(project: Path, said: io.StringIO) -> Tools:
    return Tools(Project(project), Site(), Runner(os.environ), PlainProgress(Console(file=said)), os.environ)


@pytest.fixture
def built(tools: Tools) -> Path:
    """An image of the spec as it stands, with its manifest; what is in the file nobody asks."""
    sif = tools.store.sif("example")
    sif.parent.mkdir()
    sif.write_bytes(b"image")
    recipe = recipe_of(load_image("example", tools))
    manifest = Manifest("example", IMAGE, 5, sif.stat().st_mtime_ns, "2026-11-24", recipe, "debian-trixie", {}, {})
    tools.store.manifest_path("example").write_text(manifest.to_json())
    return sif


def test_the_list_shows_where_an_image_was_verified_until_the_file_changes(tools: Tools, built: Path) -> None:
    (before,) = list_images(tools)
    assert (before.state, before.verifications) == ("built", ())
    append(tools.project.reports / "example", record(24))
    append(tools.project.reports / "example", record(25, H100))
    (row,) = list_images(tools)
    assert (row.state, row.why) == ("verified", "on H100 80GB HBM3, 2026-11-25; CPU, 2026-11-24")
    assert as_json([row])[0]["verifications"] == (asdict(record(25, H100)), asdict(record(24)))
    built.write_bytes(b"other")
    (after,) = list_images(tools)
    assert (after.state, after.verifications) == ("stale", ())


def test_a_project_that_may_not_be_written_to_keeps_no_verification_from_ending(
    tools: Tools, said: io.StringIO
) -> None:
    tools.project.reports.write_text("in the way")
    put_on_record(report(GOOD), tools)
    assert "not on record" in " ".join(said.getvalue().split())
