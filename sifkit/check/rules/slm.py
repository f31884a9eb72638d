"""The Slurm job: what it asks for, against what the run does with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sifkit.check.facts import Facts, JobFacts, Kind
from sifkit.check.rule import Edit, Found, NotChecked, Severity, rule
from sifkit.estimate.numbers import is_count

GIB = 1024**3
# Of host memory, at least; measured in the default image on the CPU, training a model of 0.2 million parameters:
_RANK = GIB  # 0.91 GiB: Python with torch and LLaMA-Factory; with a GPU, CUDA's own comes on top
_WORKER = GIB // 64  # 0.01 to 0.02 GiB: a process that tokenizes or loads data, which shares the rest with its parent


def job_of(facts: Facts) -> JobFacts:
    """The job's facts, which a rule that needs them has."""
    assert facts.job is not None
    return facts.job


@rule(
    "SLM001",
    "no-log-directory",
    needs=(Kind.JOB,),
    prevents="nothing at all: the job is FAILED in 0 s, without a log",
    why="Slurm opens the log of --output before anything runs, and makes no directory for it",
    fix="mkdir -p LOGS before sbatch",
    source="Slurm 22.05, tried: State=FAILED Reason=JobLaunchFailure ExitCode=0:53",
    rows=(14,),
)
def no_log_directory(facts: Facts) -> Iterator[Found]:
    """The directory of --output is not there, is a file, or may not be written."""
    job = job_of(facts)
    made = job.ours and job.logs_fault == "is not there"  # sifkit submit makes it
    if job.logs is not None and job.logs_fault is not None and not made:
        fix = f"mkdir -p {job.logs}" if job.logs_fault == "is not there" else "name another directory in --output"
        yield Found(f"the directory of --output, {job.logs}, {job.logs_fault}", fix, file=job.script_path)


@rule(
    "SLM005",
    "memory-too-small",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="exitcode: -9, without a traceback; the job's state is OUT_OF_MEMORY",
    why="the job's memory (--mem) holds its processes, those that tokenize and load data, and what DeepSpeed keeps on "
    "the CPU; weights go to the GPU directly",
    fix="ask for more (--mem), or lower preprocessing_num_workers",
    source="measured in the default image: 0.9 GiB a process, a lower bound; deepspeed.readthedocs.io, memory "
    "requirements (offload: 16 bytes a parameter)",
    rows=(20,),
)
def memory_too_small(facts: Facts) -> Iterator[Found]:
    """The job asks for less host memory than its processes need at the very least."""
    job = job_of(facts)
    if job.memory is None or job.device != "gpu":
        return
    ranks = max(job.gpus, 1)
    workers = _number(facts.value("preprocessing_num_workers")) + ranks * _number(facts.value("dataloader_num_workers"))
    parts = {f"{ranks} processes": ranks * _RANK, f"{workers} workers": workers * _WORKER, **_offloaded(facts)}
    needed = sum(parts.values())
    if needed >= job.memory:
        said = ", ".join(f"{name} {size / GIB:.3g}" for name, size in parts.items() if size)
        message = (
            f"the job asks for {job.memory / GIB:.3g} GiB on a node, and needs more than {needed / GIB:.3g}: {said}"
        )
        fix = f"--mem={-(-needed * 5 // 4 // GIB)}G"
        yield Found(message, fix, file=job.script_path)


def _offloaded(facts: Facts) -> dict[str, int]:
    """What ZeRO keeps on the CPU: of each trained parameter 16 bytes, over all nodes (full tuning alone)."""
    job = job_of(facts)
    if facts.checkout is None or facts.value("finetuning_type") != "full":
        return {}
    files = [path.json for path in facts.checkout.at("deepspeed") if path.json]
    sizes = [path.size for path in facts.checkout.at("model_name_or_path") if path.size]
    zero = files[0].get("zero_optimization") if files else None
    offload = zero.get("offload_optimizer") if isinstance(zero, dict) else None
    if not isinstance(offload, dict) or offload.get("device") != "cpu" or not sizes:
        return {}
    return {"DeepSpeed's optimizer": sizes[0] // 2 * 16 // job.nodes}  # weights of 2 bytes


def _number(value: object) -> int:
    return value if is_count(value) else 0


@rule(
    "SLM006",
    "more-workers-than-cpus",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="RuntimeError: One of the subprocesses has abruptly died during map operation.",
    why="preprocessing_num_workers processes tokenize at once on a node, and each GPU's process has "
    "dataloader_num_workers of its own; more of them than CPUs wait for each other and take memory",
    fix="at most as many as the job has CPUs (--cpus-per-task)",
    source="datasets 4.0.0, utils/py_utils.py, iflatmap_unordered; llamafactory/data/loader.py, num_proc",
    rows=(22,),
)
def more_workers_than_cpus(facts: Facts) -> Iterator[Found | NotChecked]:
    """More processes that tokenize or load data than the job has CPUs."""
    job = job_of(facts)
    if job.cpus is None:
        yield NotChecked("how many CPUs the job gets is not known")
        return
    for key, processes in (("preprocessing_num_workers", 1), ("dataloader_num_workers", max(job.gpus, 1))):
        workers = _number(facts.value(key))
        if workers * processes > job.cpus:
            best = max(job.cpus // processes, 1)
            of_each = f" for each of {processes} GPUs" if processes > 1 else ""
            message = f"{key}: {workers}{of_each}, and the job has {job.cpus} CPUs on a node"
            if best < workers:
                yield Found(message, f"{key}: {best}", key, edit=Edit(key, str(best)))


@rule(
    "SLM015",
    "output-not-on-nodes",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="nothing: the run's results are gone, or on one node alone",
    why="/tmp and the like belong to each node; some are emptied after each job (job_container/tmpfs), the others by "
    "and by",
    fix="output_dir on a filesystem that all nodes see",
    source="hier(7); slurm.conf(5) of Slurm 22.05, JobContainerType; "
    "https://slurm.schedmd.com/job_container_tmpfs.html",
)
def output_not_on_nodes(facts: Facts) -> Iterator[Found]:
    """A queued run writes its results into /tmp or another directory of the node alone."""
    text = facts.config.values.get("output_dir")
    queued = facts.site is not None and facts.site.slurm
    if (
        queued
        and isinstance(text, str)
        and any(Path(text).is_relative_to(at) for at in ("/tmp", "/var/tmp", "/dev/shm"))
    ):
        message = f"output_dir: {text} is the node's own, and is not kept"
        yield Found(message, "a directory of a filesystem that all nodes see, as saves/NAME", "output_dir")
