"""`sifkit sbatch`: write a job file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sifkit import files, preflight
from sifkit.commands import joboptions as options
from sifkit.commands.options import NoCheckOption, ProjectOption, SiteOption, VerboseOption, make_tools
from sifkit.commands.train import CheckoutOption, ConfigArgument, ImageOption, NvOption, OverridesArgument
from sifkit.errors import UsageError
from sifkit.slurm.jobfile import render


def sbatch(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the file; - is standard output; else NAME.sbatch here")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace a file that says something else")] = False,
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
    verbose: VerboseOption = False,
) -> None:
    """Write a job file for Slurm: plain sbatch and Apptainer, yours to keep and change.

    What the image, the checkout, the config and the cluster show to be wrong is said now.
    """
    tools = make_tools(project, site_file, verbose)
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
    job = options.make_job((config,), tuple(overrides or ()), wishes, tools)
    text = render(job)
    if output == Path("-"):
        sys.stdout.write(text)
        return
    target = output or Path(f"{job.name}.sbatch")
    _write(target, text, force=force)
    sys.stdout.write(f"{target}\n")
    tools.progress.note(f"submit it: mkdir -p {job.logs} && sbatch {target}")


def _write(target: Path, text: str, *, force: bool) -> None:
    if target.exists() and not force and target.read_bytes() != text.encode():
        raise UsageError(f"{target} is there and says something else", "another name: -o FILE; or replace it: --force")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is no directory", "make it, or name another: -o FILE")
    files.write_whole(target, text)
