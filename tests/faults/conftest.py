"""Places to build in, one base for all of them, and how often, when and with what builds are killed."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sifkit.site import user_cache

pytest.register_assert_rewrite("tests.faults.place")  # before it is imported: its assertions say what they compared

from tests.faults import wheels  # noqa: E402
from tests.faults.place import Place  # noqa: E402

KILLS = int(os.environ.get("SIFKIT_KILLS", "5"))  # nightly: 50
SEED = int(os.environ.get("SIFKIT_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


# ---------------------------------------------------------------------------------------------- random kills


@dataclass(frozen=True)
class Kill:
    """One of the random kills: how far the build is let go, as a share of its whole time, and what then hits it."""

    number: int
    share: float
    signal: signal.Signals
    cold: bool  # no packages in the cache
    replaces: bool  # a good image lies under the name
    at_once: bool  # the next build starts while the killed one is still dying

    def __str__(self) -> str:
        words = [f"{self.signal.name} at {self.share:.0%} of a {'cold' if self.cold else 'warm'} build"]
        words += ["over an image"] if self.replaces else []
        words += ["and again at once"] if self.at_once else []
        return ", ".join(words)


def draw_kills(count: int, seed: int) -> tuple[Kill, ...]:
    """Moments spread over the whole build, in random order; signals and circumstances by turns."""
    drawn = random.Random(seed)
    shares = [(number + drawn.random()) / count for number in range(count)]
    drawn.shuffle(shares)
    return tuple(
        Kill(number, share, SIGNALS[number % 3], number % 2 == 0, number % 4 in (1, 2), number % 5 in (2, 3))
        for number, share in enumerate(shares)
    )


@dataclass
class Tally:
    """What the random kills were, for the end of the report: seconds, and whether the build still ran."""

    done: list[tuple[Kill, float, bool]] = field(default_factory=list)


TALLY = Tally()


@pytest.fixture
def tally() -> Tally:
    """To be told of each kill."""
    return TALLY


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The random kills, one test each."""
    if "kill" in metafunc.fixturenames:
        metafunc.parametrize("kill", draw_kills(KILLS, SEED), ids=lambda kill: f"{kill.number}-{kill.signal.name}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many kills there were, and how to have the same again."""
    if not TALLY.done:
        return
    hit = sum(1 for _, _, running in TALLY.done if running)
    counts = ", ".join(f"{sum(kill.signal == one for kill, _, _ in TALLY.done)} {one.name}" for one in SIGNALS)
    again = f"SIFKIT_KILLS={KILLS} SIFKIT_KILL_SEED={SEED}"
    terminalreporter.write_sep("=", f"random kills: {len(TALLY.done)} ({counts}), {hit} of a running build; {again}")
    for kill, seconds, running in TALLY.done:
        terminalreporter.write_line(f"  {seconds:5.1f} s  {kill}{'' if running else '; it had ended'}")


# ---------------------------------------------------------------------------------------------- places


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy packages."""
    return wheels.make_wheelhouse(tmp_path_factory.mktemp("wheels"))


@dataclass(frozen=True)
class First:
    """A finished image and the cache that it left, for all others to start from."""

    place: Place
    base: Path
    cold_seconds: float  # over a ready base, without packages
    warm_seconds: float


@pytest.fixture(scope="session")
def first(wheelhouse: Path, tmp_path_factory: pytest.TempPathFactory) -> First:
    """Made on the base of the other tests, if they kept one; its packages are its own."""
    root, kept = tmp_path_factory.mktemp("first"), user_cache(os.environ) / "bases"
    place = Place.make(root, wheelhouse, root / "cache")
    place.lock()
    for path in kept.glob("[!.]*.sif*"):
        link(path, place.cache / "bases" / path.name)
    seconds_of(place)  # makes the base if need be
    (lock,) = (place.cache / "bases").glob(".*.lock")
    base = lock.with_name(lock.name[1:].removesuffix(".lock"))
    for path in base.parent.glob(f"{base.name}*"):
        link(path, kept / path.name)
    place.forget_packages()
    cold = seconds_of(place, "--force")
    place.change("first")
    return First(place, base, cold, seconds_of(place))


def seconds_of(place: Place, *options: str) -> float:
    """Wall time of a build."""
    started = time.monotonic()
    ended = place.build(*options)
    assert ended.code == 0, ended.said
    return time.monotonic() - started


def link(source: Path, target: Path) -> None:
    """A hard link, a copy on another filesystem: what a test damages it replaces, and never writes into."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def link_tree(source: Path, target: Path) -> None:
    """Likewise, each file."""
    shutil.copytree(source, target, symlinks=True, copy_function=lambda one, other: link(Path(one), Path(other)))


MakePlace = Callable[..., Place]


@pytest.fixture
def make_place(tmp_path: Path, wheelhouse: Path, first: First) -> Iterator[MakePlace]:
    """`make_place(packages=False, image=False)`: a place with the base in its cache; with packages; with an image.

    More by name: `name` of its directory, `cache`, `images` and `tmpdir` elsewhere.
    """
    places: list[Place] = []

    def make(*, name: str = "place", packages: bool = False, image: bool = False, **directories: Path) -> Place:
        root = tmp_path / name
        cache = directories.pop("cache", root / "cache")
        places.append(start_from(first, Place.make(root, wheelhouse, cache, **directories), packages, image))
        return places[-1]

    yield make
    for place in places:
        place.stop()
    shutil.rmtree(tmp_path)  # 200 MB each


def start_from(first: First, place: Place, packages: bool, image: bool) -> Place:
    """Give a place the first one's lock and base, and more."""
    lock = place.spec.with_suffix(".lock").name
    shutil.copy(first.place.spec.with_name(lock), place.spec.with_name(lock))
    for path in first.base.parent.glob(f"{first.base.name}*"):
        link(path, place.cache / "bases" / path.name)
    for folder in first.place.cache.iterdir() if packages else ():
        if folder.name != "bases":
            link_tree(folder, place.cache / folder.name)
    if image:
        place.change("first")
        for path in first.place.images.glob("toy.*"):
            link(path, place.images / path.name)
    return place
