"""Building the default image, against the definition that a user writes by hand: same base, same host, one run."""

from __future__ import annotations

import fcntl
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console

from sifkit import execute, kept, site
from sifkit.apptainer import Apptainer, Exec, Privileges
from sifkit.assemble import Layers
from sifkit.deffile import HOST_DIR
from sifkit.errors import UsageError
from sifkit.hashes import sha256_of
from sifkit.model import Image
from sifkit.progress import PlainProgress
from sifkit.run import Command, Runner
from sifkit.sifwrite import partition
from sifkit.spec import DEFAULT_IMAGE, Project
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop, fresh_log

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
IMPORTS = "import torch, transformers, datasets, peft, trl"
ROUNDS = 3  # of imports, each image in turn; of builds that take less than a minute
ORDINARY_USER = "nobody"  # of every distribution
_CLONE = 0x40049409  # FICLONE of linux/fs.h
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Built:
    """One way to an image. `goal`: the share of the hand-written definition's time that it may take; seconds if ≥ 1."""

    what: str
    seconds: float
    size: int | None = None  # bytes of the image
    goal: float | None = None

    def size_against(self, other: Built) -> str:
        """Ratio of two images' sizes."""
        return f"{self.size / other.size:.3f}" if self.size and other.size else "unknown"


@dataclass(frozen=True)
class Imports:
    """Median wall seconds of IMPORTS, container start included, with nothing of the image in the page cache.

    `unpacked`: the same files as a plain directory, which no way of packing can beat.
    """

    by_hand: float
    ours: float
    unpacked: float
    user_by_hand: float  # an ordinary user's, for whom squashfuse mounts and not the kernel
    user_ours: float


@dataclass(frozen=True)
class Measured:
    """All rows, and the median seconds of cold imports; None where caches cannot be dropped."""

    rows: tuple[Built, ...]
    imports: Imports | None
    identical: bool  # whether two builds, the second with layers made anew, gave one sha256


def timed(
    what: str,
    action: Callable[[], None],
    image: Path | None = None,
    goal: float | None = None,
    *,
    rounds: int = 1,
    before: Callable[[], None] = lambda: None,
) -> Built:
    """Median wall time of an action; what is to be done before each is not counted."""
    seconds = []
    for _ in range(rounds):
        before()
        started = time.monotonic()
        action()
        seconds.append(time.monotonic() - started)
    return Built(what, statistics.median(seconds), image.stat().st_size if image else None, goal)


def hand_written(image: Image, base: Path, workshop: Workshop, target: Path) -> None:
    """Build what a user writes: pip, no cache, Apptainer's default compression. Only certificates are lent to it."""
    pins = {name: image.lock.version_of(name) for name in ("torch", "torchvision", "torchaudio", "llamafactory")}
    lent = f"if [ -r {HOST_DIR}/site.sh ]; then . {HOST_DIR}/site.sh; fi"
    scratch = Path(tempfile.mkdtemp(prefix="sifkit-bench-", dir=workshop.tmpdir))
    definition = scratch / "hand.def"
    definition.write_text(HAND_WRITTEN.format(base=base, site=lent, **pins))
    ours = workshop.apptainer.build_command(
        target, definition, binds=workshop.lend(scratch / "lent"), root=ROOT, tmpdir=scratch
    )
    (packing,) = (word for word in ours.argv if word.startswith("--mksquashfs-args="))
    argv = tuple(word for word in ours.argv if word not in ("--notest", packing))
    command = Command(argv, cwd=ours.cwd, env=ours.env, remove_after=ours.remove_after)
    progress = workshop.tools.progress
    with progress.phase("build the hand-written definition"):
        workshop.tools.runner.run(command, log=workshop.log, on_line=progress.line)


def measure(work: Path) -> Measured:
    """Both sides, the hand-written one first, so that it cannot profit from our page cache."""
    project = Project(work / "project")
    shutil.copytree(ROOT / "definitions", project.definitions)
    environ = {**os.environ, "TMPDIR": str(work)}
    progress = PlainProgress(Console(stderr=True))
    tools = Tools(project, site.load_site(None, environ, ROOT), Runner(environ), progress, environ)
    image = execute.load_image(DEFAULT_IMAGE, tools)
    project.images.mkdir()
    workshop = Workshop(tools, Apptainer.find(tools.runner), work, fresh_log(project, "hand-written"))
    base = workshop.base(image, Timings())
    by_hand, sif = work / "hand.sif", tools.store.sif(DEFAULT_IMAGE)
    rows = [timed("hand-written definition", lambda: hand_written(image, base, workshop, by_hand), by_hand)]
    layers = Layers(image, base, workshop)

    def sifkit(*options: str) -> None:
        argv = [sys.executable, "-m", "sifkit", "build", "--project", str(project.root), *options]
        subprocess.run(argv, check=True, cwd=ROOT, env=environ)

    def forget(*names: str) -> None:
        for layer in layers.wanted:
            if not names or layer.name in names:
                kept.drop(layers.path(layer))

    sifkit()  # fills the package cache where it is empty
    before = sha256_of(sif)
    forget()
    rows.append(timed("packages downloaded, no layer made yet", lambda: sifkit("--force"), sif, 1 / 8))
    identical = sha256_of(sif) == before
    again = partial(timed, action=lambda: sifkit("--force"), image=sif, rounds=ROUNDS)
    rows.append(again("everything in the cache", goal=1 / 8))
    rows.append(again("another LLaMA-Factory, or a small package", goal=1 / 20, before=lambda: forget("llamafactory")))
    rows.append(timed("nothing changed", sifkit, sif, 2, rounds=ROUNDS))
    imports = None
    if may_drop_caches():
        unpack(sif, work / "unpacked", workshop.apptainer)
        imports = cold_imports(by_hand, sif, work / "unpacked", workshop.apptainer)
    return Measured(tuple(rows), imports, identical)


def unpack(image: Path, directory: Path, apptainer: Apptainer) -> None:
    """All files of an image."""
    where = ("-o", str(partition(image).offset), "-d", str(directory))
    apptainer.runner.run(Command(("unsquashfs", "-q", "-n", "-no-xattrs", *where, str(image))))


def may_drop_caches() -> bool:
    """Whether imports can be measured cold; who may is root, and can run them as another user, too."""
    return os.access(DROP_CACHES, os.W_OK)


def cold_imports(by_hand: Path, ours: Path, unpacked: Path, apptainer: Apptainer) -> Imports:
    """ROUNDS of each, in turn. Only where caches may be dropped, and of images that ORDINARY_USER can reach."""
    with tempfile.TemporaryDirectory() as home:
        shutil.chown(home, ORDINARY_USER)
        as_user = partial(_as_user, Path(home), apptainer)
        root = [_importing(side).command(apptainer) for side in (by_hand, ours, unpacked)]
        commands = [*root, *(as_user(side) for side in (by_hand, ours))]
        seconds: list[list[float]] = [[] for _ in commands]
        for _ in range(ROUNDS):
            for command, found in zip(commands, seconds, strict=True):
                found.append(_cold(command, apptainer.runner))
    return Imports(*map(statistics.median, seconds))


def _importing(image: Path) -> Exec:
    return Exec(image, ("python3", "-c", IMPORTS))


def _as_user(home: Path, apptainer: Apptainer, image: Path) -> Command:
    """The same as ORDINARY_USER, who needs none of root's privileges, and a home to write to."""
    command = _importing(image).command(Apptainer(apptainer.runner, apptainer.program, Privileges()))
    return Command(("runuser", "-u", ORDINARY_USER, "--", *command.argv), env={"HOME": str(home)})


def _cold(command: Command, runner: Runner) -> float:
    """Wall seconds with nothing in the page cache."""
    os.sync()
    DROP_CACHES.write_text("3")
    started = time.monotonic()
    runner.run(command)
    return time.monotonic() - started


def table(measured: Measured) -> str:
    """Markdown, each goal beside what was measured."""
    first, *others = measured.rows
    lines = ["| build of the default image | wall | times as fast | goal | size |", "|---|---:|---:|---:|---:|"]
    lines.append(f"| hand-written definition | {first.seconds:.1f} s | 1.0 | | {_gigabytes(first)} |")
    for row in others:
        ratio = first.seconds / row.seconds
        lines.append(f"| {row.what} | {row.seconds:.1f} s | {ratio:.1f} | {_goal(row)} | {_gigabytes(row)} |")
    size = others[0].size_against(first)
    lines += ["", f"- Size: {size} of the hand-written image's, bytecode included; goal: at most 1."]
    lines += imports_table(measured.imports) if measured.imports else []
    same = "one sha256" if measured.identical else "DIFFERENT FILES"
    lines.append(f"- Two builds, the second with every layer made anew: {same}.")
    return "\n".join(lines) + "\n"


def imports_table(cold: Imports) -> list[str]:
    """Lines of text, the goal beside what was measured."""
    share, user_share = cold.ours / cold.by_hand, cold.user_ours / cold.user_by_hand
    return [
        f"- Cold `{IMPORTS}`: {cold.by_hand:.1f} s by hand, {cold.ours:.1f} s here:",
        f"  {share:.2f} of it; goal: at most 0.6. The same files unpacked on this disk:",
        f"  {cold.unpacked:.1f} s, {cold.unpacked / cold.by_hand:.2f} of it. For an ordinary user, for whom",
        f"  squashfuse mounts: {cold.user_by_hand:.1f} s by hand, {cold.user_ours:.1f} s here, {user_share:.2f} of it.",
    ]


def _goal(row: Built) -> str:
    if row.goal is None:
        return ""
    return f"{1 / row.goal:.0f}" if row.goal < 1 else f"{row.goal:.0f} s"


def _gigabytes(row: Built) -> str:
    return f"{row.size / 1e9:.2f} GB" if row.size else ""


def require_place(work: Path) -> None:
    """Raises `UsageError` where the two images and the hand-written tree would not fit, or nobody else may look."""
    free = shutil.disk_usage(work).free
    if free < 35e9:
        raise UsageError(f"{work} has {free / 1e9:.0f} GB free; building needs 35", "name a roomy directory: TMPDIR=…")
    require_reachable(work)


def require_reachable(place: Path) -> None:
    """Raises `UsageError` where ORDINARY_USER cannot come to a path."""
    closed = next((above for above in place.resolve().parents if not above.stat().st_mode & 0o001), None)
    if closed:
        raise UsageError(f"others may not enter {closed}; imports are also measured as theirs", "name one: TMPDIR=…")


def share_extents(one: Path, other: Path) -> bool:
    """Whether a file of one directory takes no room in the other: XFS and btrfs, both directories on one of them."""
    one.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=one) as source, tempfile.NamedTemporaryFile(dir=other) as target:
        source.write(bytes(1 << 16))
        source.flush()
        try:
            fcntl.ioctl(target.fileno(), _CLONE, source.fileno())
        except OSError:
            return False
    return True
