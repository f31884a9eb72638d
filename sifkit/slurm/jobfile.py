"""Job files: a text that a person would keep, plain Slurm and plain Apptainer. Pure.

Every value of the user's stands once, quoted, in the settings at the top; what follows is fixed text that only
reads them. A test runs the text under bash with hostile values, another holds it to shellcheck.
"""

from __future__ import annotations

import shlex

from sifkit import __version__
from sifkit.apptainer import Bind
from sifkit.launch import ENVIRONMENT_PASSED, FIXED, IN_CACHE, IN_CHECKOUT, Launch
from sifkit.slurm.request import Job, Resources, require_resumable, show_time, with_signal

_STRICT = """\
# shellcheck disable=SC2317,SC2329 # functions that signals call
set -euo pipefail
"""

_ENVIRONMENT = """\
# ---- the container's environment
# It sees of this one only what is named here. PYTHONPATH, CONDA_*, LD_LIBRARY_PATH and the like stay outside.
unset APPTAINER_BIND APPTAINER_BINDPATH SINGULARITY_BIND SINGULARITY_BINDPATH
unset "${!APPTAINERENV_@}" "${!SINGULARITYENV_@}"
pass_environment() {
    local name
    for name in $(compgen -e); do
        case $name in
            @PASSED@)
                export "APPTAINERENV_$name=${!name}" ;;
        esac
    done
}
"""

_ONE_NODE = """\
on_every_node() { "$@"; }
"""

_SEVERAL_NODES = """\
on_every_node() { # without GPUs, for which srun before 22.05 waits until the trainer gives them back
    srun --overlap --gres=none --mem=0 --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "$@"
}
"""

_SCRATCH = """\
# ---- temporary files and compilers' caches: local to the node, gone at the end
tmp=${TMPDIR:-/tmp} # Slurm's TMPDIR may not be there, and Apptainer does not bind it
case $tmp in *[:,]*) tmp=/tmp ;; esac
if ! [ -d "$tmp" ] || ! [ -w "$tmp" ]; then tmp=/tmp; fi
scratch=$tmp/sifkit-$SLURM_JOB_ID-$RANDOM$RANDOM
on_every_node mkdir -p -m 700 "$scratch"
trainer=
at_exit() {
    if [ -n "$trainer" ]; then kill -KILL "$trainer" 2> /dev/null || true; fi
    on_every_node rm -rf "$scratch" || true
}
trap at_exit EXIT
on_every_node mkdir -p "$scratch/tmp" "$scratch/triton" "$scratch/inductor" "$scratch/matplotlib"
options+=(--bind "$scratch:@CACHE@")
export APPTAINERENV_TMPDIR=@CACHE@/tmp APPTAINERENV_TRITON_CACHE_DIR=@CACHE@/triton
export APPTAINERENV_TORCHINDUCTOR_CACHE_DIR=@CACHE@/inductor APPTAINERENV_MPLCONFIGDIR=@CACHE@/matplotlib
"""

_COPY_IMAGE = """\
# A copy of the image on each node: many small reads of a shared filesystem become one large one.
on_every_node cp "$image" "$scratch/image.sif"
image=$scratch/image.sif
"""

_HF_HOME = """\
if [ -n "${HF_HOME:-}" ]; then
    mkdir -p "$HF_HOME"
    options+=(--bind "$HF_HOME:$HF_HOME")
fi
"""

_CPUS = """\
# srun does not take sbatch's --cpus-per-task; without this, data loading gets one core (Slurm 22.05 and newer).
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SRUN_CPUS_PER_TASK > ranks ? SRUN_CPUS_PER_TASK / ranks : 1))}
"""

_GPU = """\
if ! on_every_node test -e /dev/nvidiactl; then
    echo "job: a node of $SLURM_JOB_NODELIST has no NVIDIA driver: LLaMA-Factory would train on its CPU" >&2
    exit 1
fi
"""

_TORCHRUN = """\
# ---- torchrun, which LLaMA-Factory starts: one a node, @RANKS@
export FORCE_TORCHRUN=1 NNODES=$SLURM_JOB_NUM_NODES NPROC_PER_NODE=$ranks
# This script runs on the first node. Its address is the one that Slurm itself uses; the port is this job's.
MASTER_ADDR=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
export MASTER_ADDR MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
"""

_ALONE = """\
# ---- one process; what another job set for torchrun does not count here
unset FORCE_TORCHRUN NNODES NODE_RANK NPROC_PER_NODE MASTER_ADDR MASTER_PORT
"""

_START_ONE = """\
pass_environment
apptainer exec "${options[@]}" "$image" llamafactory-cli "${arguments[@]}" &
trainer=$!
"""

_START_SEVERAL = """\
pass_environment
# shellcheck disable=SC2016 # these are variables of each task
in_task='
    export APPTAINERENV_NODE_RANK=$SLURM_NODEID APPTAINERENV_SLURM_NODEID=$SLURM_NODEID
    export APPTAINERENV_SLURM_PROCID=$SLURM_PROCID APPTAINERENV_SLURMD_NODENAME=$SLURMD_NODENAME
    exec "$@"'
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 bash -c "$in_task" task \\
    apptainer exec "${options[@]}" "$image" llamafactory-cli "${arguments[@]}" &
trainer=$!
"""

_WAIT = """\
# `wait` returns early when a signal arrives; the last one gives the trainer's own exit code.
while kill -0 "$trainer" 2> /dev/null; do wait "$trainer" || true; done
status=0
wait "$trainer" || status=$?
"""

_END = """\
exit "$status"
"""

_SIGNAL_ONE = """\
terminate() { kill -TERM "$trainer" 2> /dev/null || true; }
"""

# torchrun would pass SIGTERM on and kill its ranks 30 s later (torch/distributed/elastic/multiprocessing/api.py):
# the ranks are told themselves. Those of data loading must not be: their end ends the run.
_SIGNAL_RANKS = """\
# The ranks themselves: children of torchrun, which have LOCAL_RANK where it has none. torchrun would kill them after
# 30 s, and the end of a process that loads data would end the run; one that outlived its rank is no rank, either.
# shellcheck disable=SC2016 # run on each node
signal_ranks='
    variables() { { tr "\\0" "\\n" < "/proc/$1/environ"; } 2> /dev/null; }
    of_job() { variables "$1" | grep -qx "SLURM_JOB_ID=$SLURM_JOB_ID"; }
    is_rank() { variables "$1" | grep -q "^LOCAL_RANK="; }
    ranks=()
    for directory in /proc/[0-9]*; do
        pid=${directory#/proc/}
        of_job "$pid" && is_rank "$pid" || continue
        parent=$(sed -n "s/^PPid:[[:space:]]*//p" "$directory/status" 2> /dev/null) || continue
        ! of_job "$parent" || is_rank "$parent" || ranks+=("$pid")
    done
    [ "${#ranks[@]}" -eq 0 ] || kill -TERM "${ranks[@]}"'
terminate() { on_every_node bash -c "$signal_ranks" || true; }
"""

_SAVES = "    terminate # the trainer writes a checkpoint then: enable_jit_checkpoint\n"
_SAVES_NOT = "    # this image's transformers saves by save_steps alone: the next checkpoint is waited for\n"

_RESUME = """\
# ---- checkpoints: the newest complete one is where this job goes on
# transformers takes the one with the highest number, whole or not. It writes trainer_state.json last.
is_complete() { # is_complete CHECKPOINT
    local file shard
    [ ! -e "$1/checkpoint-is-incomplete.txt" ] || return 1
    [ "$(tail -c 2 "$1/trainer_state.json" 2> /dev/null | tr -d '[:space:]')" = '}' ] || return 1
    for file in "$1"/global_step*; do
        [ ! -d "$file" ] || [ -d "$1/$(cat "$1/latest" 2> /dev/null || echo none)" ] || return 1
        [ ! -d "$file" ] || return 0
    done
    has_one "$1"/optimizer* "$1"/rank*-optimizer.pt || return 1
    [ -s "$1/scheduler.pt" ] || return 1
    has_one "$1"/adapter_model.* "$1"/model*.safetensors "$1"/pytorch_model* || return 1
    for file in "$1"/model.safetensors.index.json "$1"/pytorch_model.bin.index.json; do
        [ -e "$file" ] || continue
        while read -r shard; do
            [ -s "$1/$shard" ] || return 1
        done < <(grep -oE '(pytorch_)?model-[0-9]+-of-[0-9]+\\.(safetensors|bin)' "$file")
    done
}

has_one() { # has_one FILE…: one of them is there and not empty
    local file
    for file in "$@"; do [ ! -s "$file" ] || return 0; done
    return 1
}

checkpoints() { # the steps of all checkpoints, the newest first
    local directory
    for directory in "$output_dir"/checkpoint-*; do
        [ ! -d "$directory" ] || printf '%s\\n' "${directory##*/checkpoint-}"
    done | grep -xE '[0-9]{1,18}' | sort -rn || true
}

newest_complete() {
    local step
    for step in $(checkpoints); do
        if is_complete "$output_dir/checkpoint-$step"; then
            echo "$step"
            return 0 # within a trap, a bare return would give the status from before the signal
        fi
    done
    echo 0
}

for step in $(checkpoints); do # what was cut off is set aside, not deleted; older ones mislead nobody
    if is_complete "$output_dir/checkpoint-$step"; then break; fi
    aside=$output_dir/incomplete-checkpoint-$step-$(date +%Y%m%dT%H%M%S)
    mv "$output_dir/checkpoint-$step" "$aside"
    echo "job: checkpoint-$step is incomplete; set aside as $aside" >&2
done
first=$(newest_complete)
echo "job: start ${SLURM_RESTART_COUNT:-0} goes on from step $first" >&2
"""

_SIGNALS = """\
warned=
on_warning() { # the time limit is near, or the job is to make room
    trap '' USR1
    warned=yes
    [ -n "$trainer" ] || return 0
    local before second
    before=$(newest_complete)
    echo "job: warned; waiting up to $grace s for a checkpoint after step $before" >&2
@SAVE@    for ((second = 0; second < grace; second++)); do
        kill -0 "$trainer" 2> /dev/null || return 0
        if [ "$(newest_complete)" -gt "$before" ]; then break; fi
        sleep 1
    done
    terminate
    for ((second = 0; second < 10; second++)); do
        kill -0 "$trainer" 2> /dev/null || return 0
        sleep 1
    done
    kill -KILL "$trainer" 2> /dev/null || true
}
trap on_warning USR1
on_cancel() { # scancel, or preemption: Slurm itself decides whether the job comes back
    trap '' TERM
    [ -n "$trainer" ] || exit 143
    terminate
}
trap on_cancel TERM
"""

_REQUEUE = """\
is_finished() { # the run came to its last step: transformers says so in the output directory
    local state=$output_dir/trainer_state.json now last
    now=$(sed -n 's/^  "global_step": \\([0-9]*\\).*/\\1/p' "$state" 2> /dev/null) || return 1
    last=$(sed -n 's/^  "max_steps": \\([0-9]*\\).*/\\1/p' "$state" 2> /dev/null) || return 1
    [ "$status" -eq 0 ] && [ -n "$now" ] && [ "$now" = "$last" ]
}

if [ -n "$warned" ] && ! is_finished; then
    newest=$(newest_complete)
    if [ "$newest" -le "$first" ]; then
        echo "job: no checkpoint after step $first in this start: not requeued, it would come no further." >&2
        echo "job: give it more time, or write checkpoints more often (save_steps)" >&2
        exit 1
    fi
    echo "job: requeued, to go on from step $newest" >&2
    task=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # one task's number may be the whole array's
    if ! scontrol requeue "${task:-$SLURM_JOB_ID}"; then
        echo "job: the cluster does not requeue it. Submit the job file again: it goes on from step $newest" >&2
        exit 1
    fi
    exit 0
fi
"""


def render(job: Job) -> str:
    """The job file. Raises `UsageError` for what a resumable job may not say."""
    if job.resume:
        require_resumable(job)
    parts = [
        _head(job),
        _directives(job),
        _STRICT,
        *([load_modules(job.modules)] if job.modules else []),
        _settings(job),
        *_environment(job),
        *([_RESUME] if job.resume else []),
        _run(job),
    ]
    return "\n".join(parts)


def _head(job: Job) -> str:
    configs = "\n".join(f"#   {launch.training.path}" for launch in job.launches)
    return (
        f"#!/bin/bash\n"
        f"# {job.name}: LLaMA-Factory training in an Apptainer image.\n"
        f"# Written by sifkit {__version__} from\n{configs}\n"
        f"# Plain Slurm and Apptainer: it needs no sifkit, and is yours to change.\n"
        f"#\n"
        f"#   mkdir -p {job.logs} && sbatch {job.name}.sbatch   # a missing {job.logs}/ fails the job without a word\n"
        f"#   squeue --me; tail -f {job.logs}/{job.name}-*.out\n"
    )


def _directives(job: Job) -> str:
    tasks = len(job.launches) if job.is_array else None
    text = directives(job.name, job.log_pattern, job.resources, tasks)
    if not job.resume:
        return text + "#SBATCH --no-requeue\n"
    lead = int(job.resume.lead.total_seconds())
    return text + f"#SBATCH --requeue\n#SBATCH --open-mode=append\n#SBATCH --signal=B:USR1@{lead}\n"


def directives(name: str, log_pattern: str, asked: Resources, tasks: int | None) -> str:
    """The `#SBATCH` lines of what is asked. `tasks`: of a job array, None for a job of its own."""
    lines = [
        ("job-name", name),
        ("output", f"{log_pattern}.out"),
        ("error", f"{log_pattern}.err"),
        ("partition", asked.partition),
        ("account", asked.account),
        ("qos", asked.qos),
        ("constraint", asked.constraint),
        ("nodes", str(asked.nodes)),
        ("ntasks-per-node", "1"),
        ("cpus-per-task", str(asked.cpus) if asked.cpus else None),
        ("gres", asked.gres.replace("{n}", str(asked.gpus)) if asked.gpus else None),
        ("mem", asked.memory),
        ("time", show_time(asked.time) if asked.time else None),
        ("mail-user", asked.mail_user),
        ("mail-type", asked.mail_type if asked.mail_user else None),
        ("array", None if tasks is None else f"0-{tasks - 1}"),
    ]
    return "".join(f"#SBATCH --{name}={value}\n" for name, value in lines if value is not None)


def load_modules(modules: tuple[str, ...]) -> str:
    """`module load` of each."""
    loads = "".join(f"module load {shlex.quote(module)}\n" for module in modules)
    return f"# ---- the site's modules; their scripts are not made for `set -u`\nset +u\n{loads}set -u\n"


def _settings(job: Job) -> str:
    first = job.launches[0]
    lines = [
        "# ---- what runs",
        f"image={shlex.quote(str(first.image))}",
        f"checkout={shlex.quote(str(first.checkout))} # at {IN_CHECKOUT} in the container, where the run starts",
        f"ranks={max(job.resources.gpus, 1)} # processes on each node",
    ]
    if job.resume:
        lines.append(f"grace={job.resume.grace} # seconds between warning and requeue")
    if job.is_array:
        lines.append('case "$SLURM_ARRAY_TASK_ID" in')
        for index, launch in enumerate(job.launches):
            body = "\n".join(f"        {line}" for line in _one(launch, job))
            lines.append(f"    {index})\n{body}\n        ;;")
        lines.append("esac")
    else:
        lines += _one(first, job)
    return "\n".join(lines) + "\n"


def _one(launch: Launch, job: Job) -> list[str]:
    run = with_signal(launch, job.resume)
    words = " ".join(shlex.quote(word) for word in run.command[1:])
    return [
        f"output_dir={shlex.quote(str(launch.output_dir))}",
        f"arguments=({words}) # of llamafactory-cli",
        f"options=({' '.join(_options(launch))})",
        *(f"options+=(--bind {shlex.quote(bind.option())})" for bind in launch.binds),
        *_made(launch),
    ]


def _options(launch: Launch) -> list[str]:
    words = ["--cleanenv", *(["--nv"] if launch.nv else []), "--pwd", IN_CHECKOUT]
    mode = "" if launch.checkout_bind.writable else ":ro"
    return [*words, "--bind", f'"$checkout:{IN_CHECKOUT}{mode}"']


def _made(launch: Launch) -> list[str]:
    """Directories that are bound must be there."""
    written = [bind for bind in launch.binds if bind.writable and not _covers(bind, launch)]
    return ['mkdir -p "$output_dir"', *(f"mkdir -p {shlex.quote(str(bind.source))}" for bind in written)]


def _covers(bind: Bind, launch: Launch) -> bool:
    return launch.output_dir.is_relative_to(bind.source)


def _environment(job: Job) -> list[str]:
    passed = " | ".join(ENVIRONMENT_PASSED)
    own = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in job.environment)
    fixed = "".join(f"export APPTAINERENV_{name}={shlex.quote(value)}\n" for name, value in FIXED.items())
    site = f'if [ -z "${{HF_HOME:-}}" ]; then export HF_HOME={shlex.quote(job.hf_home)}; fi\n' if job.hf_home else ""
    parts = [
        _ENVIRONMENT.replace("@PASSED@", _folded(passed)) + own + fixed,
        site + _HF_HOME,
        (_ONE_NODE if job.resources.nodes == 1 else _SEVERAL_NODES)
        + (_GPU if job.resources.gpus and job.launches[0].nv else "")
        + _CPUS,
        _SCRATCH.replace("@CACHE@", IN_CACHE),
    ]
    return [*parts, *([_COPY_IMAGE] if job.copy_image else [])]


def _folded(patterns: str) -> str:
    """The list of patterns in lines that fit."""
    lines, line = [], ""
    for word in patterns.split(" | "):
        if len(line) + len(word) > 90:
            lines.append(line)
            line = ""
        line += word + " | "
    return "\\\n            ".join([*lines, line.removesuffix(" | ")])


def _run(job: Job) -> str:
    one_node = job.resources.nodes == 1
    ranks = "a process for each GPU" if job.resources.gpus else "one process"
    parts = [_TORCHRUN.replace("@RANKS@", ranks) if job.torchrun else _ALONE]
    if job.resume:
        parts.append("\n# ---- time limit and preemption\n")
        parts.append(_SIGNAL_RANKS if job.torchrun else _SIGNAL_ONE)
        parts.append(_SIGNALS.replace("@SAVE@", _SAVES if job.resume.saves_on_signal else _SAVES_NOT))
    parts += ["\n# ---- the run\n", _START_ONE if one_node else _START_SEVERAL, _WAIT]
    if job.resume:
        parts.append("\n" + _REQUEUE)
    return "".join(parts) + _END
