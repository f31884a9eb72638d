"""The default image carried to a host without network: how big the bundle is, and how long each step takes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import UsageError
from sifkit.hashes import sha256_of
from sifkit.spec import DEFAULT_IMAGE

ROOT = Path(__file__).parent.parent
NEEDED = 20e9  # bytes: the bundle, its content in another cache, and two images


@dataclass(frozen=True)
class Carried:
    """Bytes of the bundle, and wall seconds of the steps."""

    size: int
    seconds: Mapping[str, float]  # by step
    cut_off: bool  # whether the second build ran in a namespace without network
    identical: bool  # whether the two images have one sha256


def measure(work: Path) -> Carried:
    """Build with a network (from the cache, where it is filled), bundle; in an empty cache unbundle, build, verify."""
    require_room(work)
    here, there = work / "here", work / "there"
    shutil.copytree(ROOT / "definitions", here / "definitions")
    environ = {**os.environ, "TMPDIR": str(work)}
    other = {**environ, "SIFKIT_CACHE": str(work / "cache")}
    bundle, seconds = work / "default.bundle", {}

    def sifkit(step: str, *words: str, env: Mapping[str, str] = environ, before: tuple[str, ...] = ()) -> None:
        started = time.monotonic()
        subprocess.run([*before, sys.executable, "-m", "sifkit", *words], check=True, cwd=ROOT, env=env)
        seconds[step] = time.monotonic() - started

    sifkit("build, with a network", "build", "--project", str(here), DEFAULT_IMAGE)
    sifkit("`sifkit bundle`, all in the cache", "bundle", DEFAULT_IMAGE, "--project", str(here), "-o", str(bundle))
    sifkit("`sifkit unbundle` into an empty cache", "unbundle", str(bundle), "--project", str(there), env=other)
    no_network = ("unshare", "--net") if os.geteuid() == 0 else ()
    words = ("build", "--offline", "--project", str(there), DEFAULT_IMAGE)
    sifkit("`build.py --offline`", *words, env=other, before=no_network)
    sifkit(
        "`build.py --offline --verify`, on the CPU", *words, "--verify", "--device", "cpu", env=other, before=no_network
    )
    images = [project / "images" / f"{DEFAULT_IMAGE}.sif" for project in (here, there)]
    identical = sha256_of(images[0]) == sha256_of(images[1])
    return Carried(bundle.stat().st_size, seconds, bool(no_network), identical)


def table(carried: Carried) -> str:
    """Markdown."""
    lines = ["| step | wall |", "|---|---:|"]
    lines += [f"| {step} | {seconds:.1f} s |" for step, seconds in carried.seconds.items()]
    where = "in a namespace without network" if carried.cut_off else "with the network on (no root here)"
    same = "one sha256" if carried.identical else "DIFFERENT FILES"
    lines += ["", f"- The bundle: {carried.size / 1e9:.2f} GB, with sifkit's own wheels and the checkout."]
    lines += [f"- The image built offline, {where}, and the one built with a network: {same}."]
    return "\n".join(lines) + "\n"


def require_room(work: Path) -> None:
    """Raises `UsageError` where bundle, second cache and images would not fit."""
    free = shutil.disk_usage(work).free
    if free < NEEDED:
        fix = "name a roomy directory: TMPDIR=…"
        raise UsageError(f"{work} has {free / 1e9:.0f} GB free; bundling needs {NEEDED / 1e9:.0f}", fix)
