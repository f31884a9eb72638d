"""What Slurm knows of a job: scontrol while it keeps it, sacct afterwards where there is accounting."""

from __future__ import annotations

import re
import shlex
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from sifkit.errors import CommandFailed, HostError
from sifkit.run import Runner
from sifkit.slurm.cluster import slurm_command
from sifkit.slurm.jobs import Ended, ended, list_jobs, parse_show_job

ANSWERS_WITHIN = timedelta(seconds=40)  # scontrol itself tries for 18 s to reach a slurmctld that is not there
_UNKNOWN = re.compile(r"Invalid job id|not found")  # scontrol: `Job 12_9 not found` of a task that never was
_SACCT = "JobID,JobName,State,ExitCode,NodeList,Elapsed,Timelimit,WorkDir"
_NO_TASK = "4294967294"  # NO_VAL, in the log's name of an array that was not split yet
MAY_COME_BACK = frozenset({"NODE_FAIL", "PREEMPTED", "BOOT_FAIL"})  # Slurm shows these for a moment, then requeues


@dataclass(frozen=True)
class JobFacts:
    """A job, or a task of a job array, as Slurm tells of it now."""

    id: str  # 12, 12_3, or 12_[0-3] while the tasks are pending
    name: str
    state: str
    index: int | None = None  # of a task
    reason: str = "None"
    nodes: str = ""
    ran: str = ""
    limit: str = ""
    starts: str | None = None  # when a pending job may start, as Slurm guesses
    restarts: int = 0
    requeues: bool = False
    memory: str = "?"
    exit_code: str = "0:0"
    dependency: str = "(null)"
    stdout: Path | None = None
    stderr: Path | None = None
    end: Ended | None = None


@dataclass(frozen=True)
class Answer:
    """To one question. `silent`: why there was no answer; `forgotten`: Slurm does not know the job (any more)."""

    tasks: tuple[JobFacts, ...] = ()
    silent: str | None = None
    forgotten: bool = False


def facts_of(fields: dict[str, str]) -> JobFacts:
    """Of `scontrol show job`."""
    task = fields.get("ArrayTaskId")
    base = fields.get("ArrayJobId", fields.get("JobId", "?"))
    index = int(task) if task and task.isdigit() else None
    number = base if task is None else f"{base}_{task}" if index is not None else f"{base}_[{task}]"
    memory = fields.get("MinMemoryNode") or (f"{fields['MinMemoryCPU']} a core" if "MinMemoryCPU" in fields else "?")
    start, restarts = fields.get("StartTime", "Unknown"), fields.get("Restarts", "0")
    return JobFacts(
        id=number,
        name=fields.get("JobName", ""),
        state=fields.get("JobState", "UNKNOWN"),
        index=index,
        reason=fields.get("Reason", "None"),
        nodes=_word(fields.get("NodeList")),
        ran=fields.get("RunTime", ""),
        limit=fields.get("TimeLimit", ""),
        starts=None if start in ("Unknown", "N/A", "") else start,
        restarts=int(restarts) if restarts.isdigit() else 0,
        requeues=fields.get("Requeue") == "1",
        memory=memory,
        exit_code=fields.get("ExitCode", "0:0"),
        dependency=fields.get("Dependency", "(null)"),
        stdout=_path(fields.get("StdOut")),
        stderr=_path(fields.get("StdErr")),
        end=ended(fields),
    )


def _word(value: str | None) -> str:
    return "" if value in (None, "(null)", "None assigned") else str(value)


def _path(value: str | None) -> Path | None:
    if not value or not value.startswith("/") or value == "/dev/null" or _NO_TASK in value:
        return None
    return Path(value)


def ask(runner: Runner, job: str) -> Answer:
    """One question to scontrol, and to sacct for a job that scontrol has forgotten. Raises nothing."""
    command = slurm_command(runner, "scontrol", "--oneliner", "show", "job", job)
    try:
        text = runner.run(command, timeout=ANSWERS_WITHIN).output
    except CommandFailed as error:
        said = error.tail[-1] if error.tail else error.message
        return ask_sacct(runner, job) if _UNKNOWN.search(error.message) else Answer(silent=said)
    except (HostError, OSError) as error:  # out of processes, or the program's filesystem does not answer
        return Answer(silent=str(error))
    found = tuple(facts_of(fields) for fields in parse_show_job(text))
    return Answer(tuple(sorted(found, key=lambda each: (each.index is None, each.index or 0))), forgotten=not found)


def ask_sacct(runner: Runner, job: str) -> Answer:
    """`forgotten` where there is no accounting, or no such job in it."""
    command = slurm_command(runner, "sacct", "--jobs", job, "-X", "--noheader", "--parsable2", f"--format={_SACCT}")
    try:
        text = runner.run(command, timeout=ANSWERS_WITHIN).output
    except (CommandFailed, HostError, OSError):
        return Answer(forgotten=True)
    tasks = parse_sacct(text)
    return Answer(tasks, forgotten=not tasks)


def parse_sacct(text: str) -> tuple[JobFacts, ...]:
    """Lines of `_SACCT`; a line that is none of them is left out."""
    found = []
    for line in text.splitlines():
        words = line.split("|")
        if len(words) != len(_SACCT.split(",")) or not re.match(r"\d+", words[0]):
            continue
        number, name, state, code, nodes, ran, limit, directory = words
        state = (state.split() or ["UNKNOWN"])[0].rstrip("+")  # `CANCELLED by 1000`
        task = re.fullmatch(r"\d+_(\d+)", number)
        logs = Path(directory) / "logs" / f"{name}-{number}.err"
        found.append(
            JobFacts(
                id=number,
                name=name,
                state=state,
                index=int(task[1]) if task else None,
                nodes=_word(nodes),
                ran=ran,
                limit=limit,
                exit_code=code or "0:0",
                stdout=logs.with_suffix(".out") if directory else None,
                stderr=logs if directory else None,
                end=ended({"JobState": state, "ExitCode": code}),
            )
        )
    return tuple(found)


def newest_job(runner: Runner) -> str | None:
    """The job that sifkit submitted last, of those that squeue still shows. Raises `CommandFailed`."""
    numbers = [int(match[0]) for job in list_jobs(runner) if (match := re.match(r"\d+", job.id))]
    return str(max(numbers)) if numbers else None


def read_script(runner: Runner, job: str) -> str | None:
    """The job file as Slurm took it; it keeps that as long as the job. None where it does not give it."""
    command = slurm_command(runner, "scontrol", "write", "batch_script", job, "-")
    try:
        return runner.run(command, timeout=ANSWERS_WITHIN).output
    except (CommandFailed, HostError, OSError):
        return None


def output_dirs(script: str) -> dict[int | None, Path]:
    """The run's directory of each task of a job file of ours; None stands for a job that is no array."""
    found: dict[int | None, Path] = {}
    index: int | None = None
    for line in script.splitlines():
        case = re.fullmatch(r"\s+(\d+)\)", line)
        if case:
            index = int(case[1])
        elif line.strip().startswith("output_dir="):
            path = _assigned(line)
            if path and path.startswith("/"):
                found.setdefault(index, Path(path))
    return found


def _assigned(line: str) -> str | None:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # an open quote
        return None
    return words[0].partition("=")[2] if len(words) == 1 else None


class Questions:
    """Questions to Slurm that may take long, one at a time beside the reading of the run."""

    def __init__(self, question: Callable[[], Answer]) -> None:
        self._question = question
        self._answers: list[Answer] = []
        self._thread: threading.Thread | None = None

    @property
    def open(self) -> bool:
        """Whether a question is not answered yet."""
        return self._thread is not None and self._thread.is_alive()

    def ask(self) -> None:
        """Start one, unless one is open."""
        if not self.open:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        self._answers.append(self._question())

    def answer(self) -> Answer | None:
        """The newest that has come since the last call."""
        return self._answers.pop(0) if self._answers else None


def without_end(facts: JobFacts) -> JobFacts:
    """The job as going on: for states that Slurm shows for a moment before it requeues."""
    return replace(facts, end=None)
