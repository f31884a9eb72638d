"""Clocks that are set back, and files from the future: what is current stays so, what is stale is built."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import pytest

from sifkit.errors import Exit
from tests.faults.conftest import MakePlace
from tests.faults.place import Place

pytestmark = pytest.mark.apptainer
YEAR = 365 * 86400
LIBRARY = next(iter(sorted(Path("/usr").glob("lib*/**/faketime/libfaketime.so.1"))), None)


def date(place: Place, seconds: float) -> None:
    """Give everything but the image itself this time; its own is part of its identity."""
    for path in (place.spec, place.spec.with_suffix(".lock"), place.site, place.images / "toy.json"):
        os.utime(path, (seconds, seconds))


def test_files_from_the_future_or_of_long_ago_change_nothing(make_place: MakePlace) -> None:
    place = make_place(packages=True, image=True)
    before = place.whole()
    for seconds in (time.time() + YEAR, 1.0):
        date(place, seconds)
        assert "up to date" in place.build().said
        assert place.whole() == before
    place.change("later")
    date(place, 1.0)
    after = place.recovers()
    assert after != before


@pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed: apt-get install faketime")
def test_a_clock_that_was_set_back_since_the_last_build(make_place: MakePlace) -> None:
    place = make_place(packages=True, image=True)
    before = place.whole()
    past = {"LD_PRELOAD": str(LIBRARY), "FAKETIME": "-400d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    assert "up to date" in place.build(env=past).said
    place.change("built in the past")
    ended = place.build(env=past)
    assert ended.code == Exit.OK, ended.said
    after = place.whole()
    assert before is not None
    assert after is not None
    assert built(before.built) - built(after.built) > datetime.timedelta(days=399)
    assert min(after.seconds.values()) >= 0
    assert "up to date" in place.build().said
    place.nothing_left()
    place.change("built in the present")
    place.recovers()


def built(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)
