"""Is a run's directory in use? Asked before anything in it is removed.

Three signs. A trainer on this host whose output_dir is this very directory, by device and inode, whatever the container
calls it. A process of this host that has a file in it open for writing. A file that was written to a moment ago: the
job may run on another node. The last is a guess, and may be overruled; the first two are facts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import yaml

from sifkit.rundir.read import End, Run

QUIET = timedelta(minutes=10)  # after which an unfinished run that logs more often than this is taken for stopped
_PAUSES = 3  # or after this many times the longest pause between two rows of its log
_MAX_YAML = 1_000_000  # bytes
Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Sign:
    """A sign that a run is going on. `certain`: seen, not guessed."""

    said: str
    certain: bool


def signs_of_running(run: Run, now: datetime, proc: Path = Path("/proc")) -> tuple[Sign, ...]:
    """Every sign that something writes into the directory."""
    signs = [Sign(said, True) for said in writers(run.directory, proc)]
    fresh = _fresh(run, now)
    return (*signs, Sign(fresh, False)) if fresh else tuple(signs)


def writers(directory: Path, proc: Path = Path("/proc")) -> tuple[str, ...]:
    """Processes of this host that train into the directory, or have a file in it open for writing, in words."""
    status = directory.stat()
    return tuple(_processes((status.st_dev, status.st_ino), str(directory.resolve()), proc))


def quiet_after(longest_pause: timedelta) -> timedelta:
    """How long the log of a run that is going on may stay as it is."""
    return max(QUIET, _PAUSES * longest_pause)


def _fresh(run: Run, now: datetime) -> str | None:
    if run.end is not End.UNFINISHED:
        return None
    age = timedelta(seconds=now.timestamp() - max(file.modified for file in run.files))
    limit = quiet_after(run.log.longest_pause)
    if age > limit:
        return None
    written, stopped = (round(span.total_seconds() / 60) for span in (max(age, timedelta(0)), limit))
    return f"it is not finished, and was written to {written} min ago (after {stopped} min it is taken for stopped)"


# ---------------------------------------------------------------------------------------------- processes


def _processes(identity: Identity, real: str, proc: Path) -> Iterator[str]:
    for entry in sorted(proc.iterdir()):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = _words(entry)
                if _trains_into(entry, words, identity):
                    yield f"process {entry.name} trains into it ({' '.join(words[:4])[:120]} …)"
                elif file := _open_for_writing(entry, real):
                    yield f"process {entry.name} ({words[0] if words else '?'}) has {file} open for writing"
            except OSError:
                continue  # ended meanwhile, or another user's


def _words(process: Path) -> list[str]:
    return [os.fsdecode(word) for word in (process / "cmdline").read_bytes().split(b"\0") if word]


def _trains_into(process: Path, words: list[str], identity: Identity) -> bool:
    if not any("llamafactory" in word or word.endswith("train.py") for word in words):
        return False
    output_dir = output_dir_of(words, lambda name: _read_yaml(_inside(process, name)))
    if output_dir is None:
        return False
    status = _inside(process, output_dir).stat()
    return (status.st_dev, status.st_ino) == identity


def _inside(process: Path, name: str) -> Path:
    """A path as that process sees it, in its container and from its working directory."""
    return process / "root" / name.lstrip("/") if name.startswith("/") else process / "cwd" / name


def output_dir_of(words: list[str], read_yaml: Callable[[str], object]) -> str | None:
    """The output_dir of a trainer's command line: an override, an option, or the YAML's key."""
    for at, word in enumerate(words):
        if word.startswith(("output_dir=", "--output_dir=")):
            return word.partition("=")[2]
        if word == "--output_dir" and at + 1 < len(words):
            return words[at + 1]
    for config in (word for word in words if word.endswith((".yaml", ".yml"))):
        values = read_yaml(config)
        if isinstance(values, dict) and isinstance(values.get("output_dir"), str):
            return str(values["output_dir"])
    return None


def _read_yaml(path: Path) -> object:
    with path.open("rb") as file:
        text = file.read(_MAX_YAML)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _open_for_writing(process: Path, real: str) -> str | None:
    """A file below `real` that the process may write to. Reading, as tail and TensorBoard do, is no sign."""
    for link in (process / "fd").iterdir():
        target = str(link.readlink())
        if target.startswith(f"{real}/") and _writes(process / "fdinfo" / link.name):
            return target
    return None


def _writes(fdinfo: Path) -> bool:
    for line in fdinfo.read_text().splitlines():
        if line.startswith("flags:"):
            return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    return False
