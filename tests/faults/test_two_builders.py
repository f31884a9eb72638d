"""Two builders of one image at the same time, and one that is killed while the other waits."""

from __future__ import annotations

import signal

import pytest

from sifkit.errors import Exit
from tests.faults.conftest import MakePlace
from tests.faults.place import says, wait_for

pytestmark = pytest.mark.apptainer
WAITING = "another build of it is running; waiting"


def test_two_builders_make_one_image(make_place: MakePlace) -> None:
    place = make_place(packages=True)
    both = [place.start("build", "toy") for _ in range(2)]
    ended = [one.ended() for one in both]
    assert [one.code for one in ended] == [Exit.OK, Exit.OK], ended
    (waited,) = (one for one in ended if WAITING in one.said)
    assert "the other build made it" in waited.said
    place.recovers()


@pytest.mark.parametrize("who", ["the one that builds", "the one that waits"])
def test_one_of_two_builders_is_killed(who: str, make_place: MakePlace) -> None:
    place = make_place(packages=True)
    builds = place.start("build", "toy")
    wait_for(lambda: place.log_has("\n"))
    waits = place.start("build", "toy")
    wait_for(lambda: says(waits, WAITING))
    killed, other = (builds, waits) if who == "the one that builds" else (waits, builds)
    killed.signal(signal.SIGKILL)
    assert other.ended().code == Exit.OK
    killed.ended()
    assert place.whole() is not None
    place.recovers()
