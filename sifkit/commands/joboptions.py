"""What `sifkit sbatch` and `sifkit submit` share: their options, and the job that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from sifkit import checking, preflight
from sifkit.apptainer import Apptainer
from sifkit.errors import CommandFailed, UsageError
from sifkit.slurm import cluster
from sifkit.slurm.request import Job, Resources, Resume, for_array, job_name, parse_time
from sifkit.tools import Tools

PartitionOption = Annotated[str | None, typer.Option(help="else the site's, else the cluster's default")]
AccountOption = Annotated[str | None, typer.Option(help="whose budget")]
QosOption = Annotated[str | None, typer.Option(help="quality of service")]
ConstraintOption = Annotated[str | None, typer.Option(help="features that the nodes must have")]
NodesOption = Annotated[int, typer.Option(min=1, help="nodes; on several, one container each")]
GpusOption = Annotated[int | None, typer.Option(min=0, help="GPUs of each node; 0: train on the CPU")]
CpusOption = Annotated[int | None, typer.Option(min=1, help="cores of each node; else its GPUs' share")]
MemOption = Annotated[str | None, typer.Option(help="memory of each node, as 64G; else its GPUs' share")]
TimeOption = Annotated[str | None, typer.Option(help="time limit: 24:00:00, or 2-12 (days-hours)")]
MailOption = Annotated[str | None, typer.Option("--mail", help="address that Slurm writes to")]
MailTypeOption = Annotated[str, typer.Option(help="when it writes")]
RequeueOption = Annotated[
    bool | None, typer.Option("--requeue/--no-requeue", help="go on after time limit and preemption")
]
SignalOption = Annotated[
    int | None, typer.Option("--signal", min=20, help="seconds before the time limit at which the job is warned")
]
CopyImageOption = Annotated[
    bool | None, typer.Option("--copy-image/--no-copy-image", help="copy the image to the node first")
]
NameOption = Annotated[str | None, typer.Option("--name", help="job name; else the config's")]
LogsOption = Annotated[str, typer.Option("--logs", help="directory of the job's output")]


@dataclass(frozen=True)
class JobWishes:
    """What the command line says of the job; None: the site's, else a default."""

    run: preflight.Wishes
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: int = 1
    cpus: int | None = None
    mem: str | None = None
    time: str | None = None
    mail: str | None = None
    mail_type: str = "END,FAIL"
    requeue: bool | None = None
    signal: int | None = None
    copy_image: bool | None = None
    name: str | None = None
    logs: str = "logs"
    checked: bool = True


def make_job(configs: tuple[Path, ...], overrides: tuple[str, ...], wishes: JobWishes, tools: Tools) -> Job:
    """The job, checked as far as this host can: config, checkout, image, and what the cluster says of itself."""
    site = tools.site.slurm
    resources = make_resources(wishes, tools)
    run = _run_wishes(wishes, resources.gpus)
    readies = [preflight.make_ready(config, overrides, run, tools) for config in configs]
    requeue = site.requeue if wishes.requeue is None else wishes.requeue
    resume = None
    if requeue:
        lead = timedelta(seconds=wishes.signal or site.signal)
        resume = Resume(lead, saves_on_signal=all(_saves_on_signal(ready) for ready in readies))
    elif wishes.signal:
        raise UsageError("--signal warns a job that goes on afterwards", "say so: --requeue")
    job = Job(
        name=wishes.name or job_name(configs[0].stem),
        launches=for_array(tuple(ready.launch for ready in readies)),
        resources=resources,
        logs=wishes.logs,
        resume=resume,
        copy_image=site.copy_image if wishes.copy_image is None else wishes.copy_image,
        modules=site.modules,
        hf_home=tools.site.cache.hf_home,
        environment=tuple(Apptainer.find(tools.runner).privileges.run_env.items()),
    )
    if wishes.checked:
        _require_sound(job, run, tools)
    return job


def _require_sound(job: Job, run: preflight.Wishes, tools: Tools) -> None:
    """What `sifkit check` finds in each config, for what this job asks of Slurm. Raises `ProblemFound`."""
    asked = checking.Asked(image=str(job.launches[0].image), checkout=run.checkout, partition=job.resources.partition)
    paths = [launch.training.path for launch in job.launches]
    around = checking.surroundings(asked, checking.Workplace.of(tools), paths[0], checking.job_facts(job))
    checking.require_sound(paths, job.launches[0].training.overrides, around, tools.progress)


def make_resources(wishes: JobWishes, tools: Tools) -> Resources:
    """What is asked of Slurm, completed from the site and from what the cluster says of itself."""
    gpus = tools.site.slurm.gpus if wishes.run.gpus is None else wishes.run.gpus
    return cluster.fit(_resources(wishes, gpus, tools), _partitions(tools))


def _partitions(tools: Tools) -> tuple[cluster.Partition, ...] | None:
    """A job file can be written where Slurm does not answer; what the cluster offers is then not known."""
    try:
        return cluster.read_cluster(tools.runner)
    except CommandFailed as error:
        last = error.tail[-1] if error.tail else error.message
        tools.progress.note(f"not checked against what the cluster offers, since sinfo does not answer: {last}")
        return None


def _saves_on_signal(ready: preflight.Ready) -> bool:
    wanted = ready.launch.training.values.get("enable_jit_checkpoint") is not False
    return wanted and ready.image.saves_on_signal


def _run_wishes(wishes: JobWishes, gpus: int) -> preflight.Wishes:
    run = wishes.run
    torchrun = wishes.nodes > 1 or gpus > 1
    return preflight.Wishes(run.image, run.checkout, run.nv, torchrun, gpus, wishes.checked)


def _resources(wishes: JobWishes, gpus: int, tools: Tools) -> Resources:
    site = tools.site.slurm
    limit = wishes.time or site.time
    return Resources(
        partition=wishes.partition or site.partition,
        account=wishes.account or site.account,
        qos=wishes.qos or site.qos,
        constraint=wishes.constraint or site.constraint,
        nodes=wishes.nodes,
        gpus=gpus,
        gres=site.gres,
        cpus=wishes.cpus or site.cpus,
        memory=wishes.mem or site.mem,
        time=parse_time(limit) if limit else None,
        mail_user=wishes.mail or site.mail_user,
        mail_type=wishes.mail_type,
    )
