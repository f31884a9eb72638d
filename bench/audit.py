"""The audit's ELF checks against the naive way, `ldd` on each of the same files: same image, one run.

`ldd` has the loader map each file with all that it needs, `ldd -r` also look up every symbol, as the audit does of
torch's; with some loaders either runs the file. Here the image is our own.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sifkit.apptainer import Apptainer
from sifkit.errors import CommandFailed
from sifkit.verify.container import IN_LIBRARIES, IN_WORK, Container
from sifkit.verify.elf import judge_elf, parse_elf

_LDD = f'while IFS= read -r file; do ldd "$@" "$file"; done < {IN_WORK}/files > {IN_WORK}/ldd.txt 2>&1'


@dataclass(frozen=True)
class AuditRow:
    """One way to look at the same files."""

    what: str
    seconds: float
    files: int


def measure(image: Path, apptainer: Apptainer, work: Path) -> tuple[AuditRow, ...]:
    """Both ways over the environment of `image`; the audit comes first, so that `ldd` has the warmer page cache.

    Raises `CommandFailed` if a container does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="sifkit-bench-", dir=work) as folder:
        container = Container(apptainer, image, Path(folder), nv=False)
        first, again = _audit(container, "first"), _audit(container, "again")
        files = [found["path"] for found in first.facts["objects"]]
        (Path(folder) / "files").write_text("".join(f"{file}\n" for file in files))
        ldd, ldd_r = _ldd(container), _ldd(container, "-r")
    count = len(files)
    return (
        AuditRow("ELF audit, container start and judgement included", first.seconds, count),
        AuditRow("the same again", again.seconds, count),
        AuditRow("of that, reading the files", again.facts["seconds"], count),
        AuditRow("`ldd` on each of the same files, container start included", ldd, count),
        AuditRow("`ldd -r` likewise", ldd_r, count),
    )


@dataclass(frozen=True)
class _Audit:
    seconds: float
    facts: dict[str, Any]


def _audit(container: Container, name: str) -> _Audit:
    started = time.monotonic()
    answer = container.ask("elf", log=container.work / f"{name}.log", env={"PYTHONPATH": IN_LIBRARIES})
    if answer.facts is None:
        raise CommandFailed(f"probes/elf.py did not answer:\n{answer.said}", returncode=answer.result.returncode)
    judge_elf(parse_elf(answer.facts))
    return _Audit(time.monotonic() - started, answer.facts)


def _ldd(container: Container, *options: str) -> float:
    started = time.monotonic()
    result = container.run(("/bin/bash", "-c", _LDD, "bash", *options), log=container.work / "ldd.log")
    seconds = time.monotonic() - started
    if "libc.so.6 => /" not in (container.work / "ldd.txt").read_text():  # its exit code is that of the last file
        raise CommandFailed("ldd could not be run in the image", returncode=result.returncode, tail=result.tail)
    return seconds


def table(rows: tuple[AuditRow, ...]) -> str:
    """Markdown, for docs/benchmarks.md."""
    lines = ["| ELF files of the default image | files | wall |", "|---|---:|---:|"]
    lines += [f"| {row.what} | {row.files} | {row.seconds:.1f} s |" for row in rows]
    return "\n".join(lines) + "\n"
