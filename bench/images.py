"""Build and verify images of the matrix on this host's CPU, and record results, sizes and times in docs/images.md.

    python -m bench.images [--checkout DIR] [--config YAML] [--remove] [IMAGE …]

Rows of images that are not named stay as an earlier run left them; --remove deletes each image afterwards, so that
a matrix of 60 GB can be verified on a smaller disk.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

from bench import page
from sifkit.cli import main as sifkit
from sifkit.compat.tables import Tables, load_tables
from sifkit.listing import representatives
from sifkit.lock import read_lock
from sifkit.spec import Project, load_spec
from sifkit.store import Manifest, Store

ROOT = Path(__file__).parent.parent
PROJECT = Project(ROOT)
HEAD = (
    "| image | torch | Python | driver | GPUs | packages | to download | size | base, build, test | on the CPU |\n"
    "|---|---|---|---|---|---:|---:|---:|---:|---|\n"
)
NOT_BUILT = "| | | locked, not built here |"


def row(name: str, tables: Tables, results: str) -> str:
    """One image: what is known from spec and lock, then the results of building and verifying it."""
    spec, lock = load_spec(PROJECT, name), read_lock(PROJECT.lock_path(name))
    build = tables.build(spec.torch.version, spec.torch.cuda)
    gpus = representatives([gpu.model for gpu in tables.gpus_served(build)], tables) if build else ("not known",)
    driver = f"≥ {tables.oldest_driver(spec.torch.cuda) or '?'}"
    cells = [name, f"{spec.torch.version}, CUDA {spec.torch.cuda}", spec.python, driver, ", ".join(gpus)]
    return f"| {' | '.join(cells)} | {len(lock.packages)} | {lock.download_bytes() / 1e9:.1f} GB {results}"


def results(manifest: Manifest, report: dict[str, Any]) -> str:
    """Of one image that was built and verified here. Raises `ValueError` when the report is of another file."""
    if report["sha256"] != manifest.sha256:
        raise ValueError(f"{manifest.name}: the report is of another image")
    levels = ", ".join(f"{level} {outcome}" for level, outcome in report["outcome"].items() if outcome != "not run")
    seconds = ", ".join(
        f"{manifest.seconds[phase]:.0f} s" for phase in ("base", "build", "test") if phase in manifest.seconds
    )
    when = report["started"][:10]
    return f"| {manifest.size / 1e9:.2f} GB | {seconds} | {levels}: {report['seconds']:.0f} s, {when} |"


def verify(name: str, checkout: Path | None, config: Path | None) -> str:
    """Build if stale, verify, and say the results."""
    own = ["--checkout", str(checkout)] if checkout else []
    own += ["--config", str(config)] if config else []
    code = sifkit(["build", "--verify", "--device", "cpu", name, *own])
    manifest = Store(PROJECT.images).manifest(name)
    path = PROJECT.reports / name / "report.json"
    if manifest is None or code not in (0, 1) or not path.is_file():
        raise SystemExit(f"{name}: not built or not verified (exit code {code})")
    return results(manifest, json.loads(path.read_text()))


def recorded() -> dict[str, str]:
    """What earlier runs left: image → results."""
    found = re.findall(
        r"^\| (\S+) \|(?:[^|]*\|){5}[^|]*?GB (\|.*)$", page.read("images.md", "make matrix"), re.MULTILINE
    )
    return {name: kept for name, kept in found if kept != NOT_BUILT}


def record(done: dict[str, str], tables: Tables) -> None:
    """Write the table: every image of definitions/, with its results where there are some."""
    rows = [row(name, tables, done.get(name, NOT_BUILT)) for name in sorted(PROJECT.names(), reverse=True)]
    where = f"{os.cpu_count()} processors, {time.strftime('%Y-%m-%d')}; times are of single runs:\n\n"
    page.write("images.md", "make matrix", where + HEAD + "\n".join(rows) + "\n")


def main() -> int:
    """One image after the other; what is done is recorded at once."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="default: none, the table is written anew")
    parser.add_argument("--checkout", type=Path, help="LLaMA-Factory checkout for all of them")
    parser.add_argument("--config", type=Path, help="training YAML for all of them")
    parser.add_argument("--remove", action="store_true", help="delete each image after it was verified")
    options = parser.parse_args()
    tables, done = load_tables(PROJECT.compat), recorded()
    record(done, tables)
    for name in options.images:
        done[name] = verify(name, options.checkout, options.config)
        record(done, tables)
        if options.remove:
            Store(PROJECT.images).sif(name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
