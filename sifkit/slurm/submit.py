"""Submitting once: a job whose sbatch timed out is looked up by its comment before anything is submitted again."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path

from sifkit.errors import CommandFailed, HostError, UsageError
from sifkit.launch import passed_names
from sifkit.run import Command, Result, Runner
from sifkit.slurm.jobs import COMMENT, list_jobs, read_fields

# What sbatch says when slurmctld may or may not have taken the job (slurm_errno.c); all else is a refusal.
_UNCLEAR = re.compile(
    r"timed out|timeout|unable to contact|connection (refused|reset)|zero bytes|communication|unexpected message"
    r"|socket|controller not responding|no end after",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Patience:
    """How long sbatch may take, and how long a job whose fate is unclear is looked for. Seconds."""

    sbatch: float = 60.0
    look: float = 20.0
    pause: float = 2.0
    attempts: int = 3


@dataclass(frozen=True)
class Dependency:
    """Start after another job ended well; if it did not, end instead of waiting for ever."""

    job: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9]+(_[0-9]+)?", self.job):
            raise UsageError(f"--after {self.job!r} is no job id", "give the number that sbatch printed")

    @property
    def options(self) -> tuple[str, ...]:
        """For sbatch."""
        return (f"--dependency=afterok:{self.job}", "--kill-on-invalid-dep=yes")


def require_known(runner: Runner, after: Dependency) -> None:
    """Slurm drops a dependency on a job that it does not know, and starts at once. Raises `UsageError`."""
    try:
        read_fields(runner, after.job)
    except CommandFailed as error:
        if "Invalid job id" not in error.message:
            raise
        fix = "give a job that squeue shows; of one that ended long ago Slurm knows nothing any more"
        raise UsageError(f"--after {after.job}: there is no such job", fix) from None


# How `module` gets into a job: its shell functions and settings (Environment Modules, Lmod).
_MODULES = ("BASH_ENV", "BASH_FUNC_*", "MODULE*", "LMOD_*", "LOADEDMODULES", "_LMFILES_", "__LMOD_*", "__Init_*")


def job_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a job takes along: what its container may see, and `module`. Slurm's own variables are those of the job."""
    names = [*passed_names(environ), *(name for name in environ for pattern in _MODULES if fnmatchcase(name, pattern))]
    return {name: environ[name] for name in names if not name.startswith("SLURM_")}


def new_token() -> str:
    """Names one submission."""
    return secrets.token_hex(8)


def submit(
    runner: Runner,
    file: Path,
    token: str,
    *,
    after: Dependency | None = None,
    environ: Mapping[str, str] | None = None,
    patience: Patience | None = None,
) -> str:
    """Submit a job file from the current directory; return its job id. The job sees `environ`.

    Raises `CommandFailed` with sbatch's words when Slurm refuses, `HostError` when it cannot be told whether the
    job was taken.
    """
    wait = patience or Patience()
    options = after.options if after else ()
    argv = ("sbatch", "--parsable", f"--comment={COMMENT}{token}", *options, str(file))
    command = Command(argv, env={**(environ or {}), **runner.slurm_environment})
    for _ in range(wait.attempts):
        result = runner.run(command, check=False, timeout=timedelta(seconds=wait.sbatch))
        if result.returncode == 0:
            return parse_job_id(result.output)
        if not _UNCLEAR.search("\n".join(result.tail)):
            raise _refused(command, result)
        found = look_for(runner, token, wait)
        if found:
            return found
    raise CommandFailed(
        f"sbatch did not get through in {wait.attempts} attempts; no job of this submission is in the queue:\n"
        + "\n".join(result.tail[-5:]),
        "try later; `sinfo` says whether Slurm answers",
        returncode=result.returncode,
        tail=result.tail,
    )


def parse_job_id(text: str) -> str:
    """`4711` or `4711;cluster`, in sbatch's last line. Raises `CommandFailed` on anything else."""
    lines = text.strip().splitlines()
    match = re.fullmatch(r"([0-9]+)(;\S+)?", lines[-1].strip()) if lines else None
    if match is None:
        raise CommandFailed(f"sbatch answered {text!r}, which is no job id", "look with: squeue --me", returncode=0)
    return match[1]


def look_for(runner: Runner, token: str, wait: Patience) -> str | None:
    """The job of this token. A job may show late, so it is looked for some time before None is the answer.

    Raises `HostError` when Slurm never answered: submitting again might then be submitting twice.
    """
    until, answered = time.monotonic() + wait.look, False
    while True:
        try:
            found = [job.id for job in list_jobs(runner) if job.token == token]
            answered = True
        except CommandFailed:
            found = []
        if found:
            return found[0].partition("_")[0]
        if time.monotonic() >= until:
            break
        time.sleep(wait.pause)
    if answered:
        return None
    raise HostError(
        "Slurm does not answer: whether the job was taken is not known",
        f"when it answers again, look for {COMMENT}{token}: squeue --me --states=all -o '%A %T %k'",
    )


def _refused(command: Command, result: Result) -> CommandFailed:
    said = "\n".join(result.tail[-8:])
    return CommandFailed(
        f"sbatch refused {command.argv[-1]}:\n{said}", _advice(said), returncode=result.returncode, tail=result.tail
    )


def _advice(said: str) -> str | None:
    """What to do about the commonest refusals (slurm_errno.c)."""
    table = {
        "Invalid account": "name yours: --account; `sacctmgr show associations user=$USER` lists them",
        "Invalid qos": "name one of yours: --qos",
        "invalid partition": "name one that `sinfo` shows: --partition",
        "node configuration is not available": "ask for what a node has: --gpus, --cpus, --mem; see `sinfo -Nl`",
        "time limit": "ask for less: --time",
        "configuration source": "no Slurm is configured here: run this on a login node, or set SLURM_CONF",
        "Job dependency": "the job of --after is gone or failed: `scontrol show job ID`",
    }
    return next((fix for words, fix in table.items() if words.lower() in said.lower()), None)
