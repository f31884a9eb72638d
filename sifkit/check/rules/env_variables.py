"""ENV: variables of this shell that act on a container unasked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from sifkit.check.facts import Facts, Kind
from sifkit.check.rule import Found, Severity, rule
from sifkit.check.rules.env_places import is_clean
from sifkit.check.script import parse_script

_PYTHON = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "LD_PRELOAD")
_CONDA = re.compile(r"CONDA_(?:PREFIX|DEFAULT_ENV|EXE|SHLVL|PYTHON_EXE)$")
_SET_INSIDE = re.compile(r"(?:APPTAINER|SINGULARITY)ENV_.")
# Options of apptainer that may stand in the environment; what only says where Apptainer keeps its own is left out.
_OPTION = re.compile(
    r"(?:APPTAINER|SINGULARITY)_(?!ENVIRONMENT$|NAME$|CONTAINER$|COMMAND$|APPNAME$|MESSAGELEVEL$)[A-Z]"
)
_HARMLESS = re.compile(
    r"\w+_(?:CACHEDIR|TMPDIR|CONFIGDIR|KEYSDIR|NO_PRIVS|DOCKER_\w+|LOGIN_\w+|VERSION|ROOT|HOME|DIR)$"
)


@rule(
    "ENV004",
    "environment-leaks",
    Severity.WARNING,
    needs=(Kind.HOST,),
    prevents="nothing is said: the container imports the host's packages, or has other mounts and variables",
    why="`apptainer exec` hands its caller's environment on, and takes options from APPTAINER_… variables; "
    "APPTAINERENV_… reaches the container in spite of --cleanenv",
    fix="unset the variables; sifkit's own runs start from a clean environment (docs/slurm.md lists what they pass)",
    source="Apptainer 1.4.5, measured; sifkit/run.py, ENVIRONMENT_KEPT; sifkit/slurm/jobfile.py; AP#2563",
    rows=(9,),
)
def environment_leaks(facts: Facts) -> Iterator[Found]:
    """Variables of this shell change what a container does: PYTHONPATH, LD_PRELOAD, CONDA_…, APPTAINER_BIND, ….

    For sifkit's own runs, which do not pass them, it is a remark.
    """
    assert facts.host is not None
    job = facts.job
    ours = job is None or job.ours
    script = "" if job is None or ours else job.script
    leaking = [name for name in _leaking(facts.host.environment, clean=is_clean(script)) if not _undone(script, name)]
    if not leaking:
        return
    shown = ", ".join(leaking)
    if ours:
        said = f"{shown}: a container started by hand gets this; sifkit's own runs do not"
        yield Found(said, f"nothing, for sifkit; else: unset {' '.join(leaking)}", severity=Severity.INFO)
        return
    said = f"{shown} of this shell, which sbatch takes along, reaches the container of this job"
    clean = "" if is_clean(script) else "; and apptainer exec --cleanenv in the job file"
    yield Found(said, f"unset {' '.join(leaking)}{clean}", file=job.script_path if job else None)


def _leaking(environment: Mapping[str, str], *, clean: bool) -> list[str]:
    """Names that act. LD_LIBRARY_PATH does not get in, but Apptainer's own helpers (squashfuse) load by it."""
    always = [name for name in environment if _SET_INSIDE.match(name) or _is_option(name)]
    acting = [name for name in environment if name in _PYTHON or _CONDA.match(name)]
    helpers = [name for name in ("LD_LIBRARY_PATH",) if name in environment]
    found = sorted({*always, *helpers, *(() if clean else acting)})
    return [name for name in found if environment[name]]


def _undone(script: str, name: str) -> bool:
    """A job file of the user's own may take nothing along, or unset what it must not have."""
    exported = parse_script(script).value("export") or ""
    return exported.upper() == "NONE" or re.search(rf"^\s*unset\b.*\b{name}\b", script, re.MULTILINE) is not None


def _is_option(name: str) -> bool:
    return bool(_OPTION.match(name)) and not _HARMLESS.match(name)
