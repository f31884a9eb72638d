"""Why a job ended: Slurm's word, then the log's. The catalogue of Slurm's words is data/job_ends.yaml."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from sifkit.causes import find_cause
from sifkit.model import Strict
from sifkit.yamlfile import load_own

_CATALOGUE = Path(__file__).parents[1] / "data" / "job_ends.yaml"


class EndRow(Strict):
    """One way to end."""

    id: str
    pattern: str
    log: Literal["before", "no"]
    cause: str
    fix: str
    source: str
    example: str


class Ends(Strict):
    """All rows, the specific before the general."""

    ends: tuple[EndRow, ...]


@dataclass(frozen=True)
class SlurmEnd:
    """How Slurm says that the job ended, and what it had been given."""

    state: str
    reason: str = "None"
    exit_code: str = "0:0"  # CODE:SIGNAL of the job's script
    dependency: str = "(null)"
    memory: str = "?"
    limit: str = "?"
    node: str = "?"
    log: str = "?"  # the path

    @property
    def said(self) -> str:
        """What the catalogue's patterns see."""
        return f"{self.state} reason={self.reason} exit={self.exit_code} dependency={self.dependency}"


@dataclass(frozen=True)
class Verdict:
    """How it ended. `id` is that of the catalogue's row; None where nothing is known of the cause."""

    ok: bool
    state: str
    id: str | None = None
    cause: str | None = None
    fix: str | None = None


@cache
def ends() -> tuple[EndRow, ...]:
    """The rows of data/job_ends.yaml."""
    return load_own(_CATALOGUE, Ends).ends


def judge(end: SlurmEnd, log: str) -> Verdict:
    """`log` is the end of what the job printed in its last start."""
    if end.state == "COMPLETED":
        return Verdict(True, end.state)
    row, match = _row(end)
    if row and match and row.log == "no":
        return _from_row(end, row, match)
    found = find_cause(log, "run")
    if found:
        return Verdict(False, end.state, found.id, found.cause, found.fix)
    said = said_by_job(log) or python_error(log)
    if said:
        return said_verdict(end.state, said)
    if row and match:
        return _from_row(end, row, match)
    return Verdict(False, end.state, None, f"the job's script ended with exit code {end.exit_code}", f"read {end.log}")


def _row(end: SlurmEnd) -> tuple[EndRow | None, re.Match[str] | None]:
    for row in ends():
        match = re.search(row.pattern, end.said)
        if match:
            return row, match
    return None, None


def _from_row(end: SlurmEnd, row: EndRow, match: re.Match[str]) -> Verdict:
    known = {"memory": end.memory, "limit": end.limit, "node": end.node, "log": end.log, **match.groupdict()}
    return Verdict(False, end.state, row.id, row.cause.format(**known), row.fix.format(**known))


@dataclass(frozen=True)
class Said:
    """A line of the log that tells the cause."""

    id: str
    cause: str
    fix: str


def said_verdict(state: str, said: Said) -> Verdict:
    """A cause in the log's own words."""
    return Verdict(False, state, said.id, said.cause, said.fix)


def said_by_job(log: str) -> Said | None:
    """What our job file said before it gave up: lines that begin with `job: `, the last two."""
    lines = [line.removeprefix("job: ") for line in log.splitlines() if line.startswith("job: ")]
    about = [line for line in lines if not re.match(r"start \d+ goes on|warned;|requeued", line)]
    if not about:
        return None
    return Said("job-file", about[-2] if len(about) > 1 else about[-1], about[-1])


_ERROR = re.compile(
    r"^(?:\[?rank\d+\]?:\s*)?(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): ?(?P<text>.*)$"
)
_FILE = re.compile(r"\[Errno 2\] No such file or directory: '(?P<path>[^']+)'")
# torchrun's own, which follows that of the rank
_WRAPPERS = ("ChildFailedError", "CalledProcessError")


def python_error(log: str) -> Said | None:
    """The last exception of the log that does not only pass another on."""
    found = [match for line in log.splitlines() if (match := _ERROR.match(line))]
    own = [match for match in found if not match["kind"].endswith(_WRAPPERS)]
    if not own:
        return None
    kind, text = own[-1]["kind"].rpartition(".")[2], own[-1]["text"].strip()
    missing = _FILE.search(text)
    if missing:
        return Said("missing-file", f"a file is missing: {missing['path']}", "correct the path, or bind its directory")
    return Said("python-error", f"{kind}: {text[:400]}" if text else kind, "read the traceback in the job's log")


def last_start(log: str) -> str:
    """What was printed since the job last started; a requeued job appends to the log of its former starts."""
    starts = list(re.finditer(r"^job: start \d+ goes on from step \d+$", log, re.MULTILINE))
    return log[starts[-1].start() :] if starts else log
