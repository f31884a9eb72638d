"""A job file of the user's own: how it starts containers, tasks and torchrun."""

from __future__ import annotations

import re
from collections.abc import Iterator

from sifkit.check.facts import Facts, Kind
from sifkit.check.rule import Found, Severity, rule
from sifkit.check.rules.slm import job_of
from sifkit.check.script import Line, Option, Script, parse_script

_RENDEZVOUS = ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_LAUNCHER = "llamafactory/launcher.py, launch; 0.9.4 and 0.9.5"
_SRUN = "srun(1) of Slurm 22.05"
_SBATCH = "sbatch(1) of Slurm 22.05"
_IN_USE = (
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. "
    "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use"
)


def _script(facts: Facts) -> Script | None:
    """The script, where it is the user's own."""
    job = job_of(facts)
    return parse_script(job.script) if job.script and not job.ours else None


def _at(facts: Facts, line: Line | int, message: str, fix: str, cause: str | None = None) -> Found:
    number = line if isinstance(line, int) else line.number
    return Found(message, fix, file=job_of(facts).script_path, line=number, cause=cause)


def _starts_torchrun(script: Script, line: Line) -> bool:
    """Whether each process that this line starts becomes a torchrun (launcher.py)."""
    if line.has("torchrun"):
        return True
    return line.has("llamafactory-cli", "lmf") and (script.mentions("FORCE_TORCHRUN") or script.gpus > 1)


def _sruns(script: Script) -> list[Line]:
    return [line for line in script.lines if line.has("srun")]


@rule(
    "SLM002",
    "tasks-start-torchrun-each",
    needs=(Kind.JOB,),
    prevents=_IN_USE,
    why="srun starts its command once for each task, and each torchrun starts a process for every GPU of the node",
    fix="#SBATCH --ntasks-per-node=1",
    source=f"{_LAUNCHER}; {_SRUN}; the message provoked with torch 2.9.1",
    rows=(36,),
)
def tasks_start_torchrun_each(facts: Facts) -> Iterator[Found]:
    """Several tasks on a node, each of which starts torchrun."""
    script = _script(facts)
    for line in _sruns(script) if script and not _hiding(script) else ():
        alone = re.search(r"--ntasks-per-node[= ]1\b|--ntasks[= ]1\b|-n ?1\b", line.text)
        if script and script.tasks > 1 and not alone and _starts_torchrun(script, line):
            message = f"srun starts {script.tasks} torchruns on each node: one for each task"
            yield _at(facts, line, message, "#SBATCH --ntasks-per-node=1")


@rule(
    "SLM003",
    "gpus-per-task",
    needs=(Kind.JOB,),
    prevents="CUDA error: invalid device ordinal",
    why="with --gpus-per-task each task sees its own GPUs alone, all of them numbered from 0: processes do not find "
    "the GPU of their rank",
    fix="#SBATCH --ntasks-per-node=1 and --gpus-per-node=N",
    source=f"{_SRUN}, --gpus-per-task and --gpu-bind (ignored with one task); {_LAUNCHER}",
    rows=(38,),
)
def gpus_per_task(facts: Facts) -> Iterator[Found]:
    """GPUs are given to tasks, of which there are several on a node."""
    script = _script(facts)
    option = _hiding(script) if script else None
    if script and option:
        message = (
            f"--{option.name}={option.value} with {script.tasks} tasks on a node: none sees the GPUs of the others"
        )
        fix = f"--ntasks-per-node=1 and --gpus-per-node={max(script.gpus, 1)}"
        yield _at(facts, option.line, message, fix)


def _hiding(script: Script) -> Option | None:
    """What keeps the GPUs of a node's several tasks from each other; --gpu-bind=none undoes --gpus-per-task."""
    bind, each = script.options.get("gpu-bind"), script.options.get("gpus-per-task")
    if script.tasks == 1:
        return None
    if bind is None:
        return each
    return (
        bind if bind.value.removeprefix("verbose,").startswith(("single", "per_task", "map_gpu", "mask_gpu")) else None
    )


@rule(
    "SLM004",
    "srun-ignores-cpus",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="nothing: data is loaded and tokenized on one core",
    why="since Slurm 22.05 srun does not take sbatch's --cpus-per-task over, and binds each of its tasks to one CPU",
    fix="export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before srun",
    source=f"{_SRUN}, --cpus-per-task and SRUN_CPUS_PER_TASK; its release notes, as "
    "https://github.com/reframe-hpc/reframe/issues/2655 quotes them",
    rows=(40,),
)
def srun_ignores_cpus(facts: Facts) -> Iterator[Found]:
    """srun in a job with --cpus-per-task, and nothing hands that on."""
    script = _script(facts)
    cpus = script.number("cpus-per-task", 1) if script else 1
    if script is None or cpus == 1 or script.mentions("SRUN_CPUS_PER_TASK"):
        return
    runs = [line for line in _sruns(script) if not re.search(r"--cpus-per-task|\s-c ?[\d$\"]", line.text)]
    for line in (line for line in runs if line.has("apptainer", "singularity", "llamafactory-cli", "torchrun")):
        message = f"srun gives its tasks one CPU, not the {cpus} of --cpus-per-task"
        yield _at(facts, line, message, "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK before it")


# ---------------------------------------------------------------------------------------------- rendezvous


@rule(
    "SLM007",
    "fixed-port",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents=_IN_USE,
    why="two jobs with the same port on one node: the second one dies; without MASTER_PORT a free one is taken",
    fix="a port of the job's own: MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))",
    source=_LAUNCHER,
    rows=(36,),
)
def fixed_port(facts: Facts) -> Iterator[Found]:
    """MASTER_PORT is the same for every job."""
    script = _script(facts)
    if script is None or "exclusive" in script.options:
        return
    for line in script.lines:
        if match := re.search(r"\bMASTER_PORT=[\"']?(\d+)\b|--master[-_]port[= ](\d+)\b", line.text):
            port = match[1] or match[2]
            message = f"port {port} is that of every job with this file: two on one node do not start"
            yield _at(facts, line, message, "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))")


@rule(
    "SLM008",
    "rendezvous-not-set",
    needs=(Kind.JOB,),
    prevents="nothing: the nodes wait for each other until the time limit",
    why="LLaMA-Factory's torchrun takes NNODES (1), NODE_RANK (0), MASTER_ADDR (127.0.0.1) and MASTER_PORT (random) "
    "from the environment; NODE_RANK must be another one on each node",
    fix="set NNODES, MASTER_ADDR, MASTER_PORT in the job file, and NODE_RANK=$SLURM_NODEID within the task that srun "
    "starts on each node; or let sifkit write the job file: sifkit sbatch",
    source=_LAUNCHER,
    rows=(37,),
)
def rendezvous_not_set(facts: Facts) -> Iterator[Found]:
    """Several nodes, without srun, or without what torchrun needs to find the others."""
    script = _script(facts)
    if script is None or script.nodes == 1:
        return
    sruns, at = _sruns(script), script.options["nodes"].line
    if not sruns:
        message = f"{script.nodes} nodes are asked for, and without srun everything runs on the first one"
        yield _at(facts, at, message, "srun --ntasks-per-node=1 before the command, with NODE_RANK set in its task")
        return
    elastic = script.mentions("RDZV_ID")  # the nodes number themselves
    missing = [name for name in _RENDEZVOUS if not script.mentions(name) and not (elastic and name == "NODE_RANK")]
    launched = [line for line in sruns if line.has("llamafactory-cli", "lmf")]
    if missing and launched:
        message = f"{', '.join(missing)} not set: each of the {script.nodes} nodes trains by itself, or waits for ever"
        yield _at(facts, launched[0], message, "set them, NODE_RANK within the task: bash -c 'export NODE_RANK=…'")
    elif (rank := script.assigned().get("NODE_RANK")) and launched and not elastic:
        message = f"NODE_RANK={rank[0]} is set before srun, so that it is the same on all nodes"
        fix = "set it within the task: srun … bash -c 'export NODE_RANK=$SLURM_NODEID; exec …'"
        yield _at(facts, rank[1], message, fix)


# ---------------------------------------------------------------------------------------------- containers


@rule(
    "SLM009",
    "no-nv",
    needs=(Kind.JOB,),
    prevents="ValueError: Your setup doesn't support bf16/gpu.",
    why="without --nv the container has no driver libraries: torch finds no GPU, and trains on the CPU or stops",
    fix="apptainer exec --nv",
    source="apptainer exec --help of 1.4.5, --nv; transformers 4.57.1 and 5.6.0, training_args.py",
    rows=(6,),
)
def no_nv(facts: Facts) -> Iterator[Found]:
    """GPUs are asked for, and the container is started without --nv."""
    script = _script(facts)
    always = facts.host is not None and facts.host.apptainer_config.get("always use nv") == "yes"
    if script is None or not script.gpus or always or script.mentions("APPTAINER_NV"):
        return
    for line in script.containers():
        if not line.has("--nv", "--nvccli", "--rocm") and not _has_more_options(line) and _trains(line):
            yield _at(facts, line, "the container is started without --nv, and sees no GPU", "add --nv after exec")


def _has_more_options(line: Line) -> bool:
    """Whether a variable after `exec` may hold options: "${options[@]}", $APPTAINER_ARGS."""
    given = line.text[line.container :]
    return bool(re.search(r"\$\{?\w+\[@\]|\$\{?\w*(?:OPT|ARG|FLAG)\w*", given, re.IGNORECASE))


def _trains(line: Line) -> bool:
    return line.has("llamafactory-cli", "lmf", "torchrun") or ".sif" in line.text


@rule(
    "SLM010",
    "no-gpu-asked",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="ValueError: Your setup doesn't support bf16/gpu.",
    why="Slurm gives a job the GPUs that it asks for, mostly none by default",
    fix="#SBATCH --gres=gpu:1",
    source=f"{_SBATCH}, --gres; transformers 4.57.1 and 5.6.0, training_args.py",
    rows=(6,),
)
def no_gpu_asked(facts: Facts) -> Iterator[Found]:
    """The container is started with --nv, and no option asks for a GPU."""
    script = _script(facts)
    if script is None or script.gpus or "exclusive" in script.options:
        return
    for line in script.containers():
        if line.has("--nv", "--nvccli"):
            yield _at(facts, line, "--nv, and no #SBATCH line asks for a GPU", "#SBATCH --gres=gpu:1")


@rule(
    "SLM011",
    "no-cleanenv",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="packages and libraries of the host in the container: PYTHONPATH, LD_LIBRARY_PATH, CONDA_* act there",
    why="Apptainer hands the environment of the job to the container unless it is told not to",
    fix="apptainer exec --cleanenv, and by --env what the run needs",
    source="apptainer exec --help of 1.4.5, --cleanenv",
    rows=(9,),
)
def no_cleanenv(facts: Facts) -> Iterator[Found]:
    """The container is started without --cleanenv."""
    script = _script(facts)
    for line in script.containers() if script else ():
        clean = line.has("--cleanenv", "-e", "--containall", "-C") or _has_more_options(line)
        if not clean and script and not script.mentions("APPTAINER_CLEANENV"):
            message = "the container is started with the environment of the job"
            yield _at(facts, line, message, "--cleanenv, and --env NAME=VALUE for what the run needs")


@rule(
    "SLM012",
    "no-working-directory",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="ValueError: Cannot open data/dataset_info.json due to [Errno 2] No such file or directory: "
    "'data/dataset_info.json'.",
    why="data/ and other relative paths count from where the command starts, which is where sbatch was called",
    fix="apptainer exec --bind CHECKOUT:/mnt --pwd /mnt",
    source=f"{_SBATCH}, --chdir; apptainer exec --help of 1.4.5, --pwd; llamafactory/data/parser.py, 0.9.4 and 0.9.5",
    rows=(4,),
)
def no_working_directory(facts: Facts) -> Iterator[Found]:
    """The container is started without --pwd, and the script goes to no directory."""
    script = _script(facts)
    if script is None or "chdir" in script.options:
        return
    goes = any(re.search(r"(?:^|[;&|'\"]\s*)(?:cd|pushd)\s", line.text.strip()) for line in script.lines)
    for line in script.containers() if not goes else ():
        if line.has("llamafactory-cli", "lmf") and not line.has("--pwd", "--cwd", "-W") and not _has_more_options(line):
            message = "relative paths count from where sbatch is called: nothing goes to the checkout"
            yield _at(facts, line, message, "--bind CHECKOUT:/mnt --pwd /mnt")


@rule(
    "SLM013",
    "requeue-overwrites-log",
    Severity.WARNING,
    needs=(Kind.JOB,),
    prevents="nothing: the log of the first start, which says why it ended, is gone",
    why="a requeued job opens its logs anew, and by default empties them",
    fix="#SBATCH --open-mode=append",
    source=f"{_SBATCH}, --open-mode; slurm.conf(5), JobFileAppend: by default, any existing file is truncated",
    rows=(15,),
)
def requeue_overwrites_log(facts: Facts) -> Iterator[Found]:
    """--requeue without --open-mode=append."""
    script = _script(facts)
    requeue = script.options.get("requeue") if script else None
    if script and requeue and script.value("open-mode") != "append":
        message = "a requeued start empties the log of the one before"
        yield _at(facts, requeue.line, message, "#SBATCH --open-mode=append")
