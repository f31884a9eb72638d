"""Watching a job: Slurm is asked now and then beside the reading of the run's directory, and may be silent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from sifkit.run import Runner
from sifkit.rundir.read import End
from sifkit.watch.ends import SlurmEnd, Verdict, judge, last_start
from sifkit.watch.follow import Progress, RunFollower, TailFollower, last_text
from sifkit.watch.queue import (
    MAY_COME_BACK,
    Answer,
    JobFacts,
    Questions,
    ask,
    output_dirs,
    read_script,
    without_end,
)
from sifkit.watch.view import View, Watched

STDERR_LINES = 5
_LOG = 1 << 17  # bytes of a log that are searched for the cause
_SLOW = 6.0  # seconds without an answer after which it is said
_TIMES_FORGOTTEN = 2
_NOT_RUN = "00:00:00"  # RunTime of a job that waits, or never started


class JobWatch:
    """A job, or all tasks of a job array. `directory`: where it writes, for a job file that does not say it."""

    def __init__(
        self,
        runner: Runner,
        job: str,
        first: Answer,
        *,
        directory: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner, self._job, self._clock = runner, job, clock
        self._directory = directory
        self._script = read_script(runner, job)
        self._questions = Questions(self._ask)
        self._tasks: tuple[JobFacts, ...] = ()
        self._changed = self._answered = self._asked = clock()
        self._silent_words, self._is_silent = "", False
        self._forgotten = 0
        self._followers: dict[int | None, RunFollower] = {}
        self._stderr: dict[Path, TailFollower] = {}
        self._verdicts: dict[str, Verdict] = {}
        self._doubted: dict[str, str] = {}  # tasks in a state that may be one before a requeue
        self._take(first)

    def look(self) -> View:
        """What is known now. Never waits for Slurm."""
        answer = self._questions.answer()
        if answer:
            self._take(answer)
        runs = tuple(self._watched(task) for task in self._tasks)
        if self._is_due(runs):
            self._asked = self._clock()
            self._questions.ask()
        waited = self._clock() - self._asked if self._questions.open else 0.0
        silent = self._is_silent or waited > _SLOW
        since = timedelta(seconds=self._clock() - self._answered) if silent else None
        return View(runs, since, self._silent_words if self._is_silent else "")

    def _ask(self) -> Answer:
        answer = ask(self._runner, self._job)
        if answer.tasks and self._script is None:
            self._script = read_script(self._runner, self._job)
        return answer

    def _is_due(self, runs: tuple[Watched, ...]) -> bool:
        now = self._clock()
        if self._questions.open or all(run.verdict for run in runs):
            return False
        return now - self._asked >= pause_between(self._tasks, now - self._changed, _nearly_done(runs))

    def _take(self, answer: Answer) -> None:
        self._is_silent = answer.silent is not None
        if answer.silent is not None:
            self._silent_words = answer.silent
            return
        now = self._clock()
        self._answered = now
        if answer.forgotten:
            self._forgotten += 1
            return
        self._forgotten = 0
        tasks = tuple(self._without_doubt(self._with_logs(task)) for task in answer.tasks)
        if [(each.id, each.state) for each in tasks] != [(each.id, each.state) for each in self._tasks]:
            self._changed = now
        self._tasks = tasks

    def _with_logs(self, task: JobFacts) -> JobFacts:
        """sacct does not tell where the logs are; what scontrol said before stays true."""
        known = next((each for each in self._tasks if each.id == task.id), task)
        return replace(task, stdout=known.stdout or task.stdout, stderr=known.stderr or task.stderr)

    def _without_doubt(self, task: JobFacts) -> JobFacts:
        """A state that may only be on the way to a requeue must be seen twice to be the end."""
        if not (task.end and task.state in MAY_COME_BACK and task.requeues):
            self._doubted.pop(task.id, None)
            return task
        before, self._doubted[task.id] = self._doubted.get(task.id), task.state
        return task if before == task.state else without_end(task)

    def _watched(self, task: JobFacts) -> Watched:
        follower = self._follower(task)
        progress = follower.look() if follower else Progress()
        directory = follower.directory if follower else None
        run = Watched(f"job {task.id}", task, directory, progress, self._tail(task.stderr))
        return replace(run, verdict=self._verdict(task, progress))

    def _follower(self, task: JobFacts) -> RunFollower | None:
        known = self._followers.get(task.index)
        if known or (task.ran == _NOT_RUN and task.restarts == 0):  # what lies there is an older run's
            return known
        directory = self._directory or output_dirs(self._script or "").get(task.index)
        if directory:
            self._followers[task.index] = RunFollower(directory)
        return self._followers.get(task.index)

    def _tail(self, path: Path | None) -> tuple[str, ...]:
        if path is None:
            return ()
        return self._stderr.setdefault(path, TailFollower(path, STDERR_LINES)).look()

    def _verdict(self, task: JobFacts, progress: Progress) -> Verdict | None:
        if progress.catching_up:
            return None
        if self._forgotten >= _TIMES_FORGOTTEN and not task.end:
            return forgotten_verdict(progress)
        if not task.end:
            self._verdicts.pop(task.id, None)
            return None
        if task.id not in self._verdicts:
            self._verdicts[task.id] = judge(slurm_end(task), log_of(task))
        return self._verdicts[task.id]


def pause_between(tasks: tuple[JobFacts, ...], unchanged: float, nearly_done: bool) -> float:
    """Seconds between two questions to Slurm: often where something is about to happen, seldom otherwise."""
    if nearly_done or any(task.state == "COMPLETING" for task in tasks) or unchanged < 60:
        return 5.0
    return 15.0 if unchanged < 3600 else 30.0


def _nearly_done(runs: tuple[Watched, ...]) -> bool:
    logs = [run.progress.log for run in runs if not run.verdict]
    return any(log.total_steps and log.current_steps and log.current_steps >= log.total_steps for log in logs)


def slurm_end(task: JobFacts) -> SlurmEnd:
    """What the catalogue of ends needs."""
    return SlurmEnd(
        state=task.state,
        reason=task.reason,
        exit_code=task.exit_code,
        dependency=task.dependency,
        memory=task.memory,
        limit=task.limit or "?",
        node=task.nodes or "?",
        log=str(task.stderr or task.stdout or "the job's log"),
    )


def log_of(task: JobFacts) -> str:
    """The end of what the job's last start printed."""
    said = last_start(last_text(task.stderr, _LOG))
    if task.stdout == task.stderr or task.restarts:
        return said
    return f"{last_text(task.stdout, _LOG)}\n{said}"


def forgotten_verdict(progress: Progress) -> Verdict:
    """Slurm keeps an ended job for some minutes (MinJobAge), and there is no accounting: only the run can tell."""
    if progress.end is End.UNFINISHED:
        fix = "`sifkit outputs DIR` says how far the run came, and how to go on"
        return Verdict(False, "FORGOTTEN", "forgotten", "Slurm has forgotten the job, and the run is not finished", fix)
    return Verdict(True, "FORGOTTEN", "forgotten", "Slurm has forgotten the job; its run is finished")
