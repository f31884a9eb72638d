"""Disks that fill up while a build writes to them, and disks that are too small from the start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import pytest

from sifkit.errors import Exit
from tests.faults import disks
from tests.faults.conftest import MakePlace
from tests.faults.place import wait_for

pytestmark = pytest.mark.apptainer

Part = Literal["tmpdir", "images", "cache"]
PARTS: tuple[Part, ...] = ("tmpdir", "images", "cache")


@pytest.fixture
def stack(tmp_path: Path, make_place: MakePlace) -> Iterator[ExitStack]:
    """For disks, unmounted before the place is removed; the test is skipped where none can be had."""
    if why := disks.why_no_disks(tmp_path):
        pytest.skip(why)
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("part", PARTS)
def test_a_disk_that_fills_up_during_a_build_harms_nothing(
    part: Part, tmp_path: Path, stack: ExitStack, make_place: MakePlace
) -> None:
    disk = stack.enter_context(disks.disk(tmp_path, f"{part}-disk", 2500))
    place = make_place(packages=part == "images", image=True, **{part: disk})
    place.change("second")
    before = place.whole()

    running = place.start("build", "toy")
    wait_for(lambda: place.log_has("\n"))  # before the log is begun, room is looked for
    disks.fill(disk)
    ended = running.ended()
    assert ended.code in (Exit.HOST, Exit.PROGRAM), ended.said
    assert "no space left on device" in " ".join(ended.said.lower().split())
    assert "Traceback" not in ended.said
    assert place.whole() == before
    disks.free(disk)
    place.nothing_left()
    place.recovers()


@pytest.mark.parametrize("part", PARTS)
def test_a_disk_that_is_too_small_is_said_with_figures_before_anything_starts(
    part: Part, tmp_path: Path, stack: ExitStack, make_place: MakePlace
) -> None:
    size = 500 if part == "cache" else 200  # the base, of 100 MB, lies in the cache
    place = make_place(**{part: stack.enter_context(disks.disk(tmp_path, f"{part}-disk", size))})
    ended = place.build()
    assert ended.code == Exit.HOST, ended.said
    said = " ".join(ended.said.split())
    assert "not enough space" in said
    assert "GB needed" in said
    assert str(getattr(place, part)) in said
    assert not place.log_has("")
    place.nothing_left()
