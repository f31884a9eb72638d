"""What sifkit promises in figures, each against the way that people have today: same host, one run.

    python -m bench [build] [audit] [watch] [check]

Prints tables, and writes them into docs/benchmarks.md. The build needs about 30 GB of space and a quarter of an hour.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from bench import audit, check, page, watch
from sifkit import checkout, execute, site
from sifkit.apptainer import Apptainer
from sifkit.deffile import HOST_DIR
from sifkit.errors import SifkitError, UsageError
from sifkit.execute import Timings, Tools, Workshop
from sifkit.model import Image
from sifkit.progress import PlainProgress
from sifkit.run import Command, Runner
from sifkit.spec import DEFAULT_IMAGE, Project
from sifkit.store import Store

ROOT = Path(__file__).parent.parent

HAND_WRITTEN = """\
Bootstrap: localimage
From: {base}

%post
  {site}
  python3 -m venv /opt/venv
  /opt/venv/bin/pip install --no-cache-dir torch=={torch} torchvision=={torchvision} torchaudio=={torchaudio} \\
      llamafactory=={llamafactory}
%environment
  export PATH=/opt/venv/bin:$PATH
%test
  /opt/venv/bin/llamafactory-cli version
"""


@dataclass(frozen=True)
class Measured:
    """One side of a comparison."""

    what: str
    seconds: float
    size: int | None = None  # bytes of the image


def timed(what: str, action: Callable[[], None], image: Path | None = None) -> Measured:
    """Wall time of one action."""
    started = time.monotonic()
    action()
    return Measured(what, time.monotonic() - started, image.stat().st_size if image else None)


def hand_written(image: Image, base: Path, workshop: Workshop, target: Path) -> None:
    """Build what a user writes: pip, no cache, Apptainer's default compression. Only certificates are lent to it."""
    pins = {name: image.lock.version_of(name) for name in ("torch", "torchvision", "torchaudio", "llamafactory")}
    lent = f"if [ -r {HOST_DIR}/site.sh ]; then . {HOST_DIR}/site.sh; fi"
    scratch = Path(tempfile.mkdtemp(prefix="sifkit-bench-", dir=workshop.tmpdir))
    definition = scratch / "hand.def"
    definition.write_text(HAND_WRITTEN.format(base=base, site=lent, **pins))
    ours = workshop.apptainer.build_command(
        target, definition, binds=workshop._lend(scratch / "lent"), root=ROOT, tmpdir=scratch
    )
    split = ours.argv.index("--mksquashfs-args")
    argv = tuple(word for word in (*ours.argv[:split], *ours.argv[split + 2 :]) if word != "--notest")
    workshop.tools.runner.run(
        Command(argv, cwd=ours.cwd, env=ours.env, remove_after=ours.remove_after),
        log=workshop.log,
        on_line=workshop.tools.progress.line,
    )


def measure(work: Path) -> list[Measured]:
    """Both sides, the hand-written one first, so that it cannot profit from our page cache."""
    project = Project(work / "project")
    shutil.copytree(ROOT / "definitions", project.definitions)
    environ = dict(os.environ)
    tools = Tools(
        project, site.load_site(None, environ, ROOT), Runner(environ), PlainProgress(Console(stderr=True)), environ
    )
    image = execute.load_image(DEFAULT_IMAGE, tools)
    project.images.mkdir()
    workshop = Workshop(tools, Apptainer.find(tools.runner), work, execute.fresh_log(project, "hand-written"))
    base = workshop.base(image, Timings())
    by_hand = work / "hand.sif"
    rows = [timed("hand-written definition", lambda: hand_written(image, base, workshop, by_hand), by_hand)]
    by_hand.unlink()
    sif = tools.store.sif(DEFAULT_IMAGE)

    def sifkit(*options: str) -> None:
        argv = [sys.executable, "-m", "sifkit", "build", "--project", str(project.root), *options]
        subprocess.run(argv, check=True, cwd=ROOT, env={**environ, "TMPDIR": str(work)})

    sifkit()  # fills the package cache where it is empty
    rows.append(timed("sifkit, warm package cache", lambda: sifkit("--force"), sif))
    rows.append(timed("sifkit, nothing changed", sifkit, sif))
    return rows


def table(rows: list[Measured]) -> str:
    """Markdown, ratios against the first row."""
    first = rows[0]
    lines = ["| build of the default image | wall | times as fast | size |", "|---|---:|---:|---:|"]
    for row in rows:
        size = f"{row.size / 1e9:.2f} GB" if row.size else ""
        lines.append(f"| {row.what} | {row.seconds:.1f} s | {first.seconds / row.seconds:.1f} | {size} |")
    return "\n".join([f"{where()}:", "", *lines]) + "\n"


def where() -> str:
    """When, and on what."""
    machine = f"{os.cpu_count()} processors, {os.uname().sysname} {os.uname().release.split('-')[0]}"
    return f"{time.strftime('%Y-%m-%d')}, {machine}"


def builds(work: Path) -> None:
    """Building the default image against the hand-written definition."""
    page.record("benchmarks.md", "make bench", table(measure(work)))


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


PARTS = {"build": builds, "audit": audits, "watch": watches, "check": checks}


def _parts(words: list[str]) -> list[str]:
    """Those named, else all. Raises `UsageError` for one that is not there."""
    unknown = [word for word in words if word not in PARTS]
    if unknown:
        raise UsageError(f"there is no part {unknown[0]!r}", f"name one of: {', '.join(PARTS)}")
    return words or list(PARTS)


def main() -> int:
    """Measure all parts, or those that are named."""
    try:
        for name in _parts(sys.argv[1:]):
            with tempfile.TemporaryDirectory(prefix="sifkit-bench-", dir=os.environ.get("TMPDIR", "/var/tmp")) as work:
                PARTS[name](Path(work))
    except SifkitError as error:
        return page.say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
