"""What a job asks of Slurm. Pure: words of the command line and the site in, checked values out."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import timedelta

from sifkit.errors import UsageError
from sifkit.launch import Launch
from sifkit.resuming import resume_obstacles

# What may stand in an #SBATCH line: sbatch splits it at blanks, ends it at "#", and reads quotes and backslashes.
_PLAIN = re.compile(r"[A-Za-z0-9._/:@,=+&|()\[\]*~-]+")

# sbatch(1), --time: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]
_TIME = re.compile(
    r"(?P<d>\d{1,4})-(?P<dh>\d{1,2})(:(?P<dm>\d{1,2})(:(?P<ds>\d{1,2}))?)?"
    r"|(?P<h>\d{1,4}):(?P<hm>\d{1,2}):(?P<hs>\d{1,2})|(?P<m>\d{1,6})(:(?P<ms>\d{1,2}))?",
    re.ASCII,
)
_MEMORY = re.compile(r"[0-9]{1,9}[KMGT]?")
MAIL_TYPES = ("NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "TIME_LIMIT", "TIME_LIMIT_80", "TIME_LIMIT_90")


@dataclass(frozen=True)
class Resources:
    """For each job. None: what the cluster gives by default."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    gpus: int = 1  # a node
    gres: str = "gpu:{n}"
    cpus: int | None = None  # a node
    memory: str | None = None  # a node, as sbatch writes it: 64G
    time: timedelta | None = None
    mail_user: str | None = None
    mail_type: str = "END,FAIL"

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "constraint", "gres", "mail_user"):
            value = getattr(self, name)
            if value is not None:
                require_plain(f"--{name.replace('_', '-')}", value.replace("{n}", "1"))
        if self.memory is not None and not _MEMORY.fullmatch(self.memory):
            raise UsageError(f"--mem {self.memory!r} is no amount of memory", "write it as 64G")
        for word in self.mail_type.split(","):
            if word not in MAIL_TYPES:
                raise UsageError(f"--mail-type {word!r} is none of Slurm's", f"choose of {', '.join(MAIL_TYPES)}")


@dataclass(frozen=True)
class Resume:
    """A job that goes on after its time limit or preemption."""

    lead: timedelta  # the warning comes this long before the end, or up to a minute earlier
    saves_on_signal: bool  # the trainer writes a checkpoint when it gets SIGTERM

    @property
    def grace(self) -> int:
        """Seconds that the trainer has for a checkpoint, before the job is requeued with what is there."""
        lead = int(self.lead.total_seconds())
        return lead - 30 if lead >= 90 else lead * 2 // 3


_LONGEST_NAME = 100  # with the job's number and an ending it names files, which may have 255 bytes


@dataclass(frozen=True)
class Job:
    """Everything that a job file says. Several launches: a job array, one task each."""

    name: str
    launches: tuple[Launch, ...]
    resources: Resources
    logs: str = "logs"
    resume: Resume | None = None
    copy_image: bool = False
    modules: tuple[str, ...] = ()
    hf_home: str | None = None  # the site's
    environment: tuple[tuple[str, str], ...] = ()  # that Apptainer itself needs here

    def __post_init__(self) -> None:
        require_plain("--name", self.name)
        require_plain("--logs", self.logs)
        for module in self.modules:
            require_plain("slurm.modules", module)
        if "/" in self.name or "%" in self.name + self.logs:
            raise UsageError(f"{self.name!r}, {self.logs!r}: a job's name holds '/' or '%'", "use another: --name NAME")
        if self.name.startswith(".") or len(self.name) > _LONGEST_NAME:
            said = "begins with a dot" if self.name.startswith(".") else f"has more than {_LONGEST_NAME} letters"
            raise UsageError(f"--name {self.name[:70]}: the name {said}, and its logs have it too", "use another")

    @property
    def is_array(self) -> bool:
        """Whether Slurm runs several tasks of it."""
        return len(self.launches) > 1

    @property
    def torchrun(self) -> bool:
        """One process for each GPU, started by torchrun; otherwise the trainer is one process."""
        return self.resources.nodes > 1 or self.resources.gpus > 1 or any(each.torchrun for each in self.launches)

    @property
    def log_pattern(self) -> str:
        """As sbatch's --output has it, without its ending."""
        return f"{self.logs}/%x-%A_%a" if self.is_array else f"{self.logs}/%x-%j"


def require_plain(what: str, value: str) -> None:
    """Raises `UsageError` for what an #SBATCH line cannot hold as it is."""
    if not _PLAIN.fullmatch(value) or value.startswith("-"):
        raise UsageError(
            f"{what} {value!r}: a line of #SBATCH cannot hold that safely",
            "use letters, digits and ._/:@,=+- without blanks, quotes or line breaks",
        )


def job_name(word: str) -> str:
    """A name for Slurm from a config's file name: every other character becomes a dash."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.")[:60] or "train"


def parse_time(text: str) -> timedelta:
    """A time limit as sbatch writes it. Raises `UsageError`."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--time {text!r} is no time limit", "write hours:minutes:seconds, as 24:00:00, or 2-12 (days-hours)"
        )
    part = {name: int(value) for name, value in match.groupdict().items() if value}
    limit = timedelta(
        days=part.get("d", 0),
        hours=part.get("dh", 0) + part.get("h", 0),
        minutes=part.get("dm", 0) + part.get("hm", 0) + part.get("m", 0),
        seconds=part.get("ds", 0) + part.get("hs", 0) + part.get("ms", 0),
    )
    if not limit:
        raise UsageError(f"--time {text}: a job without time does not run", "give one: --time 24:00:00")
    return limit


def show_time(limit: timedelta) -> str:
    """As sbatch reads it: 1-02:03:04, or 02:03:04."""
    hours, rest = divmod(limit.seconds, 3600)
    clock = f"{hours:02}:{rest // 60:02}:{rest % 60:02}"
    return f"{limit.days}-{clock}" if limit.days else clock


def require_resumable(job: Job) -> None:
    """What a job that goes on may not say. Raises `UsageError` with the fix."""
    assert job.resume is not None
    limit = job.resources.time
    if limit is not None and job.resume.lead * 2 > limit:
        raise UsageError(
            f"the warning comes {int(job.resume.lead.total_seconds())} s before the end of {show_time(limit)}",
            "give a longer --time, or a shorter --signal",
        )
    for launch in job.launches:
        _require_resumable(launch, saves_on_signal=job.resume.saves_on_signal)


def _require_resumable(launch: Launch, *, saves_on_signal: bool) -> None:
    values, path, config = launch.training.values, launch.training.path, launch.training.config
    for found in resume_obstacles(values, config.stage, resumes=config.resumes, saves_on_signal=saves_on_signal):
        raise UsageError(f"{path} sets {found.message}" if found.key else found.message, found.fix)


def for_array(launches: tuple[Launch, ...]) -> tuple[Launch, ...]:
    """Launches that may run side by side. Raises `UsageError` when two write to one directory."""
    seen: dict[str, Launch] = {}
    for launch in launches:
        other = seen.setdefault(str(launch.output_dir), launch)
        if other is not launch:
            raise UsageError(
                f"{other.training.path} and {launch.training.path} both write to {launch.output_dir}",
                "give each its own output_dir",
            )
    return launches


def with_signal(launch: Launch, resume: Resume | None) -> Launch:
    """The launch whose trainer saves when the job is warned."""
    if resume is None or not resume.saves_on_signal or "enable_jit_checkpoint" in launch.training.values:
        return launch
    overrides = (*launch.training.overrides, "enable_jit_checkpoint=true")
    return replace(launch, training=replace(launch.training, overrides=overrides))
