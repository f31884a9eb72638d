"""Watching a run's directory alone, without Slurm: until it is finished, or nobody writes to it any more."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from sifkit.errors import SifkitError, UsageError
from sifkit.rundir.advice import advice
from sifkit.rundir.read import LOG, End, read_run
from sifkit.rundir.running import QUIET, quiet_after, writers
from sifkit.watch.ends import Verdict
from sifkit.watch.follow import Progress, RunFollower
from sifkit.watch.view import View, Watched

_SUSPICIOUS = 20.0  # seconds without a row after which the host's processes are looked through
_SCAN = 10.0  # seconds between two such searches
_SCANS_WITHOUT = 2  # after which a process that was seen is taken for gone


class DirectoryWatch:
    """A directory. Raises `UsageError` for one that is not there, or that no run is writing to or has written to."""

    def __init__(
        self,
        directory: Path,
        *,
        now: Callable[[], float] = time.time,
        scan: Callable[[Path], tuple[str, ...]] = writers,
        scan_every: float = _SCAN,
        suspicious: float = _SUSPICIOUS,
    ) -> None:
        if not directory.is_dir():
            raise UsageError(f"{directory}: no such directory", "name the output_dir of a run, or a job")
        self._directory, self._now, self._scan = directory, now, scan
        self._every, self._suspicious = scan_every, suspicious
        self._follower = RunFollower(directory)
        self._scanned: float | None = None
        self._seen_writer, self._without = False, 0
        self._require_run()

    def _require_run(self) -> None:
        """An empty directory that was made a moment ago may be that of a run that begins."""
        is_new = self._now() - self._directory.stat().st_mtime < QUIET.total_seconds()
        if is_new and not any(self._directory.iterdir()):
            return
        if not (self._directory / LOG).is_file() and not self._scan(self._directory):
            read_run(self._directory)

    def look(self) -> View:
        """What is known now."""
        progress = self._follower.look()
        verdict = None if progress.catching_up else self._verdict(progress)
        note = "" if verdict else self._note(progress)
        return View((Watched(str(self._directory), None, self._directory, progress, (), verdict, note),))

    def _note(self, progress: Progress) -> str:
        """Why the end is not said yet, though no process of this host writes."""
        if not self._without or self._seen_writer or progress.catching_up:
            return ""
        limit = round(quiet_after(progress.log.longest_pause).total_seconds() / 60)
        return f"no process of this host writes to it; after {limit} min without a row it is taken for stopped"

    def _verdict(self, progress: Progress) -> Verdict | None:
        quiet = self._quiet(progress)
        finished = progress.end is not End.UNFINISHED
        if not finished and quiet < self._suspicious:
            self._without = 0
            return None
        if not self._is_abandoned():
            return None
        if finished:
            return Verdict(True, "FINISHED")
        if self._seen_writer or quiet > quiet_after(progress.log.longest_pause).total_seconds():
            return self._stopped(quiet)
        return None

    def _quiet(self, progress: Progress) -> float:
        """Seconds since something was written. A checkpoint that begins changes the directory itself."""
        try:
            written = self._directory.stat().st_mtime
        except OSError:  # removed
            written = 0.0
        return self._now() - max(written, progress.written or 0.0)

    def _is_abandoned(self) -> bool:
        """Whether no process of this host has been writing to it for some searches."""
        now = self._now()
        if self._scanned is None or now - self._scanned >= self._every:
            self._scanned = now
            found = self._directory.is_dir() and bool(self._scan(self._directory))
            self._seen_writer |= found
            self._without = 0 if found else self._without + 1
        return self._without >= (_SCANS_WITHOUT if self._seen_writer else 1)

    def _stopped(self, quiet: float) -> Verdict:
        minutes = timedelta(seconds=round(quiet))
        cause = f"the run is not finished; nothing was written for {minutes}, and no process of this host writes to it"
        return Verdict(False, "STOPPED", "stopped", cause, self._advice())

    def _advice(self) -> str:
        """What `sifkit outputs` would say."""
        try:
            return "; ".join(advice(read_run(self._directory)))
        except SifkitError as error:
            return error.message
