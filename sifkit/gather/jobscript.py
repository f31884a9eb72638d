"""A job file of the user's own, read for the rules."""

from __future__ import annotations

import os
import re
from datetime import timedelta
from pathlib import Path

from sifkit.check.facts import JobFacts
from sifkit.check.script import Script, parse_script
from sifkit.errors import UsageError
from sifkit.gather.looking import read_plain
from sifkit.slurm.request import parse_time

_MOST = 1 << 20  # bytes; job files have some kilobytes
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def read_script(path: Path, cwd: Path) -> JobFacts:
    """What a job file asks for. `cwd`: where sbatch will be called.

    Raises `UsageError` for what is no job file.
    """
    fix = "name a job file: a shell script with #SBATCH lines"
    content = read_plain(path, _MOST + 1)
    if content is None:
        raise UsageError(f"{path} is no file that can be read", fix)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text", fix) from None
    if len(content) > _MOST:
        raise UsageError(f"{path} has more than {_MOST >> 20} MiB", fix)
    if not text.startswith("#!"):
        raise UsageError(f"{path} does not begin with #!: sbatch would refuse it", fix)
    return job_of(parse_script(text), text, path, cwd)


def job_of(script: Script, text: str, path: Path, cwd: Path) -> JobFacts:
    """What the script asks for."""
    logs = _logs(script, cwd)
    starts = any(line.has("torchrun") for line in script.lines) or script.mentions("FORCE_TORCHRUN")
    return JobFacts(
        device="gpu" if script.gpus else "cpu",
        nodes=script.nodes,
        gpus=script.gpus,
        cpus=_cpus(script),
        memory=_memory(script),
        time=_time(script.value("time")),
        requeue="requeue" in script.options,
        torchrun=starts or script.gpus > 1,
        ours=False,
        script=text,
        script_path=path,
        logs=logs,
        logs_fault=logs_fault(logs) if logs else None,
    )


def _cpus(script: Script) -> int | None:
    """On each node; None: what the cluster gives by default."""
    if (each := script.number("cpus-per-task")) is not None:
        return each * script.tasks
    if (each := script.number("cpus-per-gpu")) is not None and script.gpus:
        return each * script.gpus
    return None if "exclusive" in script.options else script.tasks if script.tasks > 1 else None


def _memory(script: Script) -> int | None:
    """On each node, in bytes; None where it is not said, or is all of the node's (`--mem=0`)."""
    if (given := bytes_of(script.value("mem"))) is not None:
        return given or None
    if (each := bytes_of(script.value("mem-per-gpu"))) is not None and script.gpus:
        return each * script.gpus
    each, cpus = bytes_of(script.value("mem-per-cpu")), _cpus(script)
    return each * cpus if each is not None and cpus else None


def bytes_of(text: str | None) -> int | None:
    """An amount of memory as sbatch takes it: 64G, 64GB; a number alone counts megabytes. None for no amount."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", (text or "").upper())
    return int(match[1]) * _UNITS[match[2] or "M"] if match else None


def _time(text: str | None) -> timedelta | None:
    try:
        return parse_time(text) if text else None
    except UsageError:  # UNLIMITED, or what sbatch itself will refuse
        return None


def _logs(script: Script, cwd: Path) -> Path | None:
    """The directory of --output; None where it is named by a pattern."""
    output = script.value("output") or ""
    folder = Path(output).parent
    return cwd / (script.value("chdir") or "") / folder if output and "%" not in str(folder) else None


def logs_fault(logs: Path) -> str | None:
    """Why slurmd could not write a log there."""
    if not os.path.exists(logs):  # noqa: PTH110 never raises
        return "is not there"
    if not logs.is_dir():
        return "is a file"
    return None if os.access(logs, os.W_OK | os.X_OK) else "may not be written by this user"
