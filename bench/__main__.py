"""What sifkit promises in figures, each against the way that people have today: same host, one run.

    python -m bench [build] [audit] [watch] [check] [bundle]

Prints tables, and writes them into docs/benchmarks.md. The build needs about 30 GB of space and a quarter of an hour.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from rich.console import Console

from bench import audit, bundles, check, page, watch
from bench.builds import measure, require_place, share_extents, table
from bench.scratch import scratch
from sifkit import checkout, site
from sifkit.apptainer import Apptainer
from sifkit.errors import SifkitError, UsageError
from sifkit.host import filesystem_type
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.spec import DEFAULT_IMAGE, Project
from sifkit.store import Store

ROOT = Path(__file__).parent.parent


def where() -> str:
    """When, and on what."""
    machine = f"{os.cpu_count()} processors, {os.uname().sysname} {os.uname().release.split('-')[0]}"
    return f"{time.strftime('%Y-%m-%d')}, {machine}"


def builds(work: Path) -> None:
    """Building the default image against the hand-written definition.

    A table of its own where TMPDIR and the cache are on one filesystem that shares extents: joining copies nothing.
    """
    require_place(work)
    shares = share_extents(site.user_cache(os.environ), work)
    what = "make bench, on a filesystem that shares extents" if shares else "make bench"
    page.record("benchmarks.md", what, f"{where()}, {filesystem_type(work)}:\n\n{table(measure(work))}")


def audits(work: Path) -> None:
    """Reading every compiled file of the default image against `ldd` on each."""
    environ = dict(os.environ)
    image = Store(Project(ROOT).images).sif(DEFAULT_IMAGE)
    if not image.is_file():
        raise UsageError(f"{image} is not there", "build it first: make sif")
    rows = audit.measure(image, Apptainer.find(Runner(environ)), work)
    page.record("benchmarks.md", "make bench, audit", f"{where()}:\n\n{audit.table(rows)}")


def watches(work: Path) -> None:
    """Watching a log that grows."""
    page.record("benchmarks.md", "make bench, watch", f"{where()}:\n\n{watch.table(watch.measure(work))}")


def checks(work: Path) -> None:
    """Checking a YAML before the queue."""
    environ = dict(os.environ)
    runner, image = Runner(environ), Store(Project(ROOT).images).sif(DEFAULT_IMAGE)
    if not image.is_file():
        raise UsageError(f"{image} is not there", "build it first: make sif")
    tree = checkout.cached("0.9.5", site.user_cache(environ), runner, PlainProgress(Console(stderr=True)))
    rows = check.measure(image, tree, work)
    page.record("benchmarks.md", "make bench, check", f"{where()}:\n\n{check.table(rows)}")


def carried(work: Path) -> None:
    """The default image built and verified without network, from a bundle."""
    page.record("benchmarks.md", "make bench, bundle", f"{where()}:\n\n{bundles.table(bundles.measure(work))}")


PARTS = {"build": builds, "audit": audits, "watch": watches, "check": checks, "bundle": carried}


def _parts(words: list[str]) -> list[str]:
    """Those named, else all. Raises `UsageError` for one that is not there."""
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        raise UsageError(f"there is no part {unknown[0]!r}", f"name one of: {', '.join(PARTS)}")
    return words or list(PARTS)


def main() -> int:
    """Measure all parts, or those that are named."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it: sifkit's own modules are compiled once
    try:
        for name in _parts(sys.argv[1:]):
            with scratch() as work:
                PARTS[name](work)
    except SifkitError as error:
        return page.say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
