"""Builds that are killed at random moments: a good image stays, and the next build is like any other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import First, Kill, Tally, start_from
from tests.faults.place import Place

pytestmark = pytest.mark.apptainer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, wheelhouse: Path, first: First) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("killed")
    place = start_from(first, Place.make(root, wheelhouse, root / "cache"), packages=True, image=True)
    yield place
    place.stop()
    shutil.rmtree(root)


def test_a_build_killed_at_a_random_moment_harms_nothing(place: Place, first: First, kill: Kill, tally: Tally) -> None:
    print(kill)
    whole = first.cold_seconds if kill.cold else first.warm_seconds
    if kill.cold:
        place.forget_packages()
    if not kill.replaces:
        place.clear()
    place.change(f"kill {kill.number}")
    before = place.whole()

    started = time.monotonic()
    running = place.start("build", "toy")
    time.sleep(max(kill.share * whole, 0))
    hit = running.signal(kill.signal)
    tally.done.append((kill, time.monotonic() - started, hit))

    if not kill.at_once:
        running.ended()
    after = place.whole()
    assert after is not None or before is None, "a good image was lost"
    place.recovers()
    running.ended()
    place.nothing_left()
