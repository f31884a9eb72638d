"""`sifkit submit`: check, write the job file, submit once; `sifkit jobs`: what was submitted."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from sifkit import files, preflight
from sifkit.commands import joboptions as options
from sifkit.commands.matrix import submit_verification
from sifkit.commands.options import (
    JsonOption,
    NoCheckOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    make_tools,
    out_console,
    print_json,
)
from sifkit.commands.train import CheckoutOption, ImageOption, NvOption
from sifkit.errors import HostError, UsageError
from sifkit.printable import printable
from sifkit.slurm import jobs as queue
from sifkit.slurm import submit as submission
from sifkit.slurm.jobfile import render
from sifkit.slurm.request import Job
from sifkit.tools import Tools


def submit(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG… [KEY=VALUE]…", help="training YAML; several: with --array"),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="verify images on nodes instead: those named, else all that are built")
    ] = False,
    array: Annotated[bool, typer.Option("--array", help="several configs as one job array")] = False,
    after: Annotated[str | None, typer.Option("--after", help="start when this job has ended well")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="wait for the end; exit with the job's exit code")] = False,
    image: ImageOption = None,
    checkout: CheckoutOption = None,
    nv: NvOption = None,
    partition: options.PartitionOption = None,
    account: options.AccountOption = None,
    qos: options.QosOption = None,
    constraint: options.ConstraintOption = None,
    nodes: options.NodesOption = 1,
    gpus: options.GpusOption = None,
    cpus: options.CpusOption = None,
    mem: options.MemOption = None,
    time: options.TimeOption = None,
    mail: options.MailOption = None,
    mail_type: options.MailTypeOption = "END,FAIL",
    requeue: options.RequeueOption = None,
    signal: options.SignalOption = None,
    copy_image: options.CopyImageOption = None,
    name: options.NameOption = None,
    logs: options.LogsOption = "logs",
    no_check: NoCheckOption = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check, make the log directory, submit once, and say how to follow.

    Prints the job id. A submission whose sbatch timed out is looked up by the job's comment before it is repeated.
    """
    tools = make_tools(project, site_file, verbose)
    _require_slurm(tools)
    wishes = options.JobWishes(
        run=preflight.Wishes(image=image, checkout=checkout, nv=nv, gpus=gpus),
        partition=partition,
        account=account,
        qos=qos,
        constraint=constraint,
        nodes=nodes,
        cpus=cpus,
        mem=mem,
        time=time,
        mail=mail,
        mail_type=mail_type,
        requeue=requeue,
        signal=signal,
        copy_image=copy_image,
        name=name,
        logs=logs,
        checked=not no_check,
    )
    if verify:
        _require_of_verification(array, nodes > 1, after, image, checkout, nv, requeue, signal, copy_image, name)
        submit_verification(words or [], wishes, tools, site=site_file, wait=wait, as_json=json_)
        return
    configs, overrides = split_words(words or [], array=array)
    dependency = None if after is None else submission.Dependency(after)
    if dependency:
        submission.require_known(tools.runner, dependency)
    job = options.make_job(configs, overrides, wishes, tools)
    token = submission.new_token()
    file = _job_file(job, token)
    environ = submission.job_environment(tools.environ)
    number = submission.submit(tools.runner, file, token, after=dependency, environ=environ)
    _tell(number, job, file, tools, as_json=json_)
    if wait:
        raise typer.Exit(_wait(number, tools))


def _require_of_verification(*of_training: object) -> None:
    """Raises `UsageError` for options that a verification does not heed."""
    if any(value not in (None, False) for value in of_training):
        raise UsageError(
            "--verify takes images' names and what is asked of the node: --gpus, --cpus, --mem, --time, --partition, …",
            "leave out what belongs to a training: --image, --checkout, --nodes, --after, --requeue, --name, …",
        )


def split_words(words: list[str], *, array: bool) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Configs, then overrides. Raises `UsageError` for several configs without --array."""
    overrides = [word for word in words if "=" in word and not os.path.isfile(word)]  # noqa: PTH113 never raises
    configs = [word for word in words if word not in overrides]
    if not configs:
        raise UsageError("no config is named", "give a training YAML: sifkit submit CONFIG")
    if len(configs) > 1 and not array:
        raise UsageError(f"{len(configs)} configs", "submit them one by one, or as one job array: --array")
    return tuple(Path(word) for word in configs), tuple(overrides)


def _require_slurm(tools: Tools) -> None:
    if tools.runner.which("sbatch") is None:
        raise HostError(
            "there is no sbatch here",
            "submit from a login node of the cluster; `sifkit sbatch` writes a job file anywhere",
        )


def _job_file(job: Job, token: str) -> Path:
    """Written beside the logs, so that what ran can be read and submitted again."""
    text = render(job)
    directory = Path(job.logs)
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        raise HostError(f"{directory.absolute()} cannot be written", "name another directory: --logs DIR")
    file = directory / f"{job.name}-{token[:8]}.sbatch"
    files.write_whole(file, text)
    return file


def _tell(number: str, job: Job, file: Path, tools: Tools, *, as_json: bool) -> None:
    logs = [f"{_log_name(number, job, task)}.out" for task in range(len(job.launches))]
    if as_json:
        outputs = [str(launch.output_dir) for launch in job.launches]
        print_json({"job": number, "file": str(file), "logs": logs, "output_dirs": outputs})
    else:
        sys.stdout.write(f"{number}\n")
    tools.progress.note(f"follow it: sifkit watch {number}; tail -F {' '.join(logs)}")
    tools.progress.note(f"stop it:   scancel {number}")


def _log_name(number: str, job: Job, task: int) -> str:
    return f"{job.logs}/{job.name}-{number}" + (f"_{task}" if job.is_array else "")


def _wait(number: str, tools: Tools) -> int:
    with queue.goes_on(number):
        end = queue.wait_for(tools.runner, number, lambda state: tools.progress.note(f"job {number}: {state}"))
    return end.exit


def jobs(
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Your jobs that sifkit submitted: in the queue, running, and those that ended in the last minutes."""
    tools = make_tools(project, site_file, verbose)
    if tools.runner.which("squeue") is None:
        raise HostError("there is no squeue here", "ask on a login node of the cluster")
    found = queue.list_jobs(tools.runner)
    if json_:
        print_json([job.__dict__ for job in found])
        return
    table = Table(box=None)
    for title in ("job", "name", "state", "reason", "partition", "ran", "limit", "nodes"):
        table.add_column(title)
    for job in found:
        row = (job.id, job.name, job.state, job.reason, job.partition, job.ran, job.limit, job.nodes)
        table.add_row(*(printable(word) for word in row))
    out_console().print(table, markup=False)
