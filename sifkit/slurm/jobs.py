"""Jobs that sifkit submitted, as squeue and scontrol tell of them. Works without an accounting database."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from sifkit.errors import CommandFailed, HostError, Interrupted
from sifkit.run import Runner
from sifkit.slurm.cluster import slurm_command

COMMENT = "sifkit:"  # of each job, followed by the token of its submission
ANSWERS_WITHIN = timedelta(seconds=30)

_FIELDS = "%i|%A|%T|%r|%P|%M|%l|%N|%j|%k"  # the comment last: it may hold anything
_FINAL = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"),
        *("LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT"),
    }
)


@dataclass(frozen=True)
class QueuedJob:
    """One line of squeue, which keeps a job for some minutes after its end (MinJobAge)."""

    id: str  # 12, or 12_3 for a task of an array, 12_[0-3] while it is pending
    state: str
    reason: str
    partition: str
    ran: str
    limit: str
    nodes: str
    name: str
    token: str


@dataclass(frozen=True)
class Ended:
    """How a job ended: Slurm's word, the exit code and signal of its script."""

    state: str
    code: int
    signal: int

    @property
    def exit(self) -> int:
        """One number for a shell: 0 only if the job completed."""
        if self.state == "COMPLETED":
            return 0
        return self.code or (128 + self.signal if self.signal else 1)


def list_jobs(runner: Runner) -> tuple[QueuedJob, ...]:
    """This user's jobs that carry sifkit's comment. Raises `CommandFailed` when Slurm does not answer."""
    command = slurm_command(runner, "squeue", "--me", "--noheader", "--states=all", f"--format={_FIELDS}")
    try:
        return parse_squeue(runner.run(command, timeout=ANSWERS_WITHIN).output)
    except CommandFailed as error:
        if "configuration source" in error.message:
            raise HostError("no Slurm is configured here", "ask on a login node, or set SLURM_CONF") from None
        raise


def parse_squeue(text: str) -> tuple[QueuedJob, ...]:
    """Lines in the order of `_FIELDS`; those of other people's making are left out."""
    found = []
    for line in text.splitlines():
        words = line.split("|", 9)
        if len(words) != 10:
            raise CommandFailed(f"squeue answered {line!r}", returncode=0)
        job, _, state, reason, partition, ran, limit, nodes, name, comment = words
        if comment.startswith(COMMENT):
            token = comment.removeprefix(COMMENT).strip()
            found.append(QueuedJob(job, state, reason, partition, ran, limit, nodes, name, token))
    return tuple(found)


def read_fields(runner: Runner, job: str) -> tuple[dict[str, str], ...]:
    """`scontrol show job`, one mapping for each task of an array. Raises `CommandFailed` for a job it has forgotten."""
    command = slurm_command(runner, "scontrol", "--oneliner", "show", "job", job)
    return parse_show_job(runner.run(command, timeout=ANSWERS_WITHIN).output)


def parse_show_job(text: str) -> tuple[dict[str, str], ...]:
    """Lines of KEY=VALUE; a value goes on up to the next word that looks like a key."""
    lines = [line for line in text.splitlines() if line.startswith("JobId=")]
    return tuple(
        dict(re.findall(r"(?:^|\s)([A-Za-z][\w:/]*)=(.*?)(?=\s[A-Za-z][\w:/]*=|\s*$)", line)) for line in lines
    )


def ended(fields: dict[str, str]) -> Ended | None:
    """How the job ended, None while it has not."""
    state = fields.get("JobState", "")
    if state not in _FINAL:
        return None
    code, _, signal = fields.get("ExitCode", "0:0").partition(":")
    return Ended(state, int(code or 0), int(signal or 0))


@contextmanager
def goes_on(number: str) -> Iterator[None]:
    """Whatever interrupts us does not stop the job: that is said."""
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"stopped waiting; job {number} goes on", f"to stop it: scancel {number}") from None


def wait_for(
    runner: Runner, job: str, on_state: Callable[[str], None], *, every: float = 5.0, patience: float = 600.0
) -> Ended:
    """Wait until all tasks of a job have ended; the worst of them. A requeued job is waited for again.

    A Slurm that does not answer is asked again for `patience` seconds, then `CommandFailed` goes on.
    """
    said, failing_since = "", None
    while True:
        try:
            tasks = read_fields(runner, job)
            failing_since = None
        except CommandFailed as error:
            failing_since = failing_since or time.monotonic()
            if "Invalid job id" in error.message or time.monotonic() - failing_since > patience:
                raise
            time.sleep(every)
            continue
        state = ", ".join(sorted({_state(task) for task in tasks}))
        if state != said:
            on_state(state)
            said = state
        ends = [ended(task) for task in tasks]
        if tasks and all(ends):
            return max((end for end in ends if end), key=lambda end: end.exit)
        time.sleep(every)


def _state(fields: dict[str, str]) -> str:
    state, reason = fields.get("JobState", "UNKNOWN"), fields.get("Reason", "None")
    return state if reason in ("None", "") else f"{state} ({reason})"
