"""A package index that answers errors, nothing, half of it, or something else."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from sifkit.errors import Exit
from tests.faults.conftest import MakePlace
from tests.faults.faulty_index import Fault, Index, served
from tests.faults.place import Ended, Place

pytestmark = pytest.mark.apptainer


def use(place: Place, index: Index) -> None:
    """Packages come from the index from now on."""
    place.site.write_text(f"tmpdir: {place.tmpdir}\npython_index: {{url: {index.url}/simple}}\n")


def test_an_index_that_fails_for_a_moment_is_asked_again(wheelhouse: Path, make_place: MakePlace) -> None:
    place = make_place()
    with served(wheelhouse) as index:
        use(place, index)
        index.faults = {
            "/simple/torch/": ("500", 1),
            "/files/torch-": ("503", 1),
            "/files/torchvision": ("reset", 1),
            "/files/torchaudio": ("500", 2),
        }
        place.recovers()
    assert {left for _, left in index.faults.values()} == {0}, "not every fault was met"


LASTING: tuple[tuple[str, Fault], ...] = (
    ("/simple/uv", "500"),
    ("/files/torchaudio", "503"),
    ("/files/torchaudio", "reset"),
    ("/files/torchaudio", "half"),
    ("/files/torchaudio", "wrong"),
)


def test_an_index_that_keeps_failing_harms_nothing(wheelhouse: Path, make_place: MakePlace) -> None:
    """All faults at the same time, each in a place of its own: what takes long is uv's patience."""
    places = [make_place(name=fault, image=True) for _, fault in LASTING]
    before = places[0].whole()
    with ExitStack() as stack:
        indexes = [stack.enter_context(served(wheelhouse)) for _ in LASTING]
        for index, place, (path, fault) in zip(indexes, places, LASTING, strict=True):
            index.faults = {path: (fault, -1)}
            use(place, index)
            place.change(f"after {fault}")
        running = [place.start("build", "toy") for place in places]
        for place, build, (path, fault) in zip(places, running, LASTING, strict=True):
            said = refused(build.ended(), path.rpartition("/")[2])
            assert place.whole() == before, f"{fault}: {said}"
            place.nothing_left()
        for index in indexes:
            index.faults = {}
        again = [place.start("build", "toy") for place in places]
        assert [build.ended().code for build in again] == [Exit.OK] * len(LASTING)
        for place in places:
            place.is_well()


def refused(ended: Ended, package: str) -> str:
    """The build failed, and said on which package, and what to do."""
    assert ended.code == Exit.PROGRAM, ended.said
    assert package in ended.said
    assert "fix:" in ended.said, ended.said
    return ended.said
