"""What the cluster offers, as sinfo and scontrol tell it, and whether a job fits."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, replace
from datetime import timedelta

from sifkit.errors import CommandFailed, UsageError
from sifkit.run import Command, Runner
from sifkit.slurm.request import Resources, parse_time, show_time

ANSWERS_WITHIN = timedelta(seconds=30)
_SINFO = "%P|%a|%l|%D|%c|%m|%G"


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of one kind in one partition."""

    count: int
    cpus: int  # a node
    memory_mb: int  # a node
    gpus: int  # a node
    models: tuple[str, ...] = ()  # of its GPUs, where the cluster types them: gpu:a100:4


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes."""

    name: str
    is_default: bool
    is_up: bool
    time_limit: timedelta | None  # None: infinite
    groups: tuple[NodeGroup, ...]

    @property
    def gpus(self) -> int:
        """The most GPUs that one node has."""
        return max((group.gpus for group in self.groups), default=0)


def read_cluster(runner: Runner) -> tuple[Partition, ...] | None:
    """The partitions; None where there is no Slurm. Raises `CommandFailed` when it does not answer."""
    if runner.which("sinfo") is None:
        return None
    result = runner.run(slurm_command(runner, "sinfo", "--noheader", f"--format={_SINFO}"), timeout=ANSWERS_WITHIN)
    return parse_sinfo(result.output)


def slurm_command(runner: Runner, *argv: str) -> Command:
    """A client program, in an environment that keeps Slurm's own settings and drops options set by variable."""
    return Command(argv, env=runner.slurm_environment)


def parse_sinfo(text: str) -> tuple[Partition, ...]:
    """Lines of PARTITION|AVAIL|TIMELIMIT|NODES|CPUS|MEMORY|GRES. Raises `CommandFailed` on anything else."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        words = line.split("|")
        if len(words) != 7:
            raise CommandFailed(f"sinfo answered {line!r}", returncode=0)
        name, group = words[0].rstrip("*"), _group(words)
        known = found.get(name)
        if known:
            found[name] = replace(known, groups=(*known.groups, group))
        else:
            found[name] = Partition(name, words[0].endswith("*"), words[1] == "up", _limit(words[2]), (group,))
    return tuple(found.values())


def _group(words: list[str]) -> NodeGroup:
    nodes, cpus, memory = (_number(word) for word in words[3:6])
    return NodeGroup(nodes, cpus, memory, count_gpus(words[6]), gpu_models(words[6]))


def _number(word: str) -> int:
    """A number, or the smallest of mixed nodes: `64+`."""
    match = re.match(r"\d+", word)
    return int(match[0]) if match else 0


def _limit(word: str) -> timedelta | None:
    return None if word in ("infinite", "n/a", "UNLIMITED") else parse_time(word)


def count_gpus(gres: str) -> int:
    """GPUs in a gres list: `gpu:a100:4(S:0-1),nvme:1`, `gpu:2`, `(null)`."""
    return sum(int(word[-1]) if word[-1].isdigit() else 1 for word in _gpu_words(gres))


def gpu_models(gres: str) -> tuple[str, ...]:
    """The types of the GPUs in a gres list: `a100` of `gpu:a100:4`; of `gpu:2` none."""
    types = (word[1] for word in _gpu_words(gres) if len(word) > 1 and not word[1].isdigit())
    return tuple(dict.fromkeys(types))


def _gpu_words(gres: str) -> list[list[str]]:
    plain = re.sub(r"\([^)]*\)", "", gres)
    return [word.split(":") for word in plain.split(",") if word.split(":")[0] == "gpu"]


def fit(resources: Resources, partitions: tuple[Partition, ...] | None) -> Resources:
    """The request, completed from what the cluster offers. Raises `UsageError` for what can never run there."""
    if not partitions:
        return resources
    partition = choose_partition(resources, partitions)
    if partition is None:
        return resources
    _require_time(resources, partition)
    groups = [group for group in partition.groups if group.gpus >= resources.gpus]
    if sum(group.count for group in groups) < resources.nodes:
        _too_few(resources, partition)
    chosen = replace(resources, partition=resources.partition or (None if partition.is_default else partition.name))
    return _with_share(chosen, groups)


def choose_partition(resources: Resources, partitions: tuple[Partition, ...]) -> Partition | None:
    """The one that is named, else the default, else, for GPUs that the default lacks, the only one that has them."""
    by_name = {partition.name: partition for partition in partitions}
    if resources.partition:
        if "," in resources.partition:
            return None  # several: Slurm chooses
        if resources.partition not in by_name:
            near = difflib.get_close_matches(resources.partition, by_name, n=1)
            known = f"did you mean {near[0]}?" if near else f"there are: {', '.join(by_name)}"
            raise UsageError(f"there is no partition {resources.partition}", known)
        return by_name[resources.partition]
    default = next((partition for partition in partitions if partition.is_default), None)
    if default and default.gpus >= resources.gpus:
        return default
    able = [partition for partition in partitions if partition.is_up and partition.gpus >= resources.gpus]
    if len(able) == 1 and resources.gpus:
        return able[0]
    if resources.gpus and not able:
        most = max(partition.gpus for partition in partitions)
        raise UsageError(
            f"no node has {resources.gpus} GPUs; the most is {most}", "ask for fewer: --gpus N, or several --nodes"
        )
    if resources.gpus and able:
        names = ", ".join(partition.name for partition in able)
        raise UsageError("the default partition has no such GPUs", f"name one: --partition, of {names}")
    return default


def _require_time(resources: Resources, partition: Partition) -> None:
    limit = partition.time_limit
    if resources.time and limit and resources.time > limit:
        raise UsageError(
            f"--time {show_time(resources.time)} is more than partition {partition.name} gives: {show_time(limit)}",
            "ask for less and go on after the limit: --requeue; or name another --partition",
        )


def _too_few(resources: Resources, partition: Partition) -> None:
    shown = "; ".join(f"{group.count} × {group.gpus} GPUs" for group in partition.groups)
    raise UsageError(
        f"partition {partition.name} has no {resources.nodes} nodes with {resources.gpus} GPUs each: {shown}",
        "ask for fewer: --nodes, --gpus, or name another --partition",
    )


def _with_share(resources: Resources, groups: list[NodeGroup]) -> Resources:
    """Of a GPU node, the share of cores and memory that goes with the GPUs; else four cores."""
    node = min(groups, key=lambda group: (group.gpus, group.cpus))
    cpus = resources.cpus
    if cpus is None:
        cpus = node.cpus * resources.gpus // node.gpus if resources.gpus else min(4, node.cpus)
    memory = resources.memory
    if memory is None and resources.gpus and node.memory_mb:
        memory = f"{node.memory_mb * resources.gpus // node.gpus}M"
    if cpus > max(group.cpus for group in groups):
        raise UsageError(f"no such node has {cpus} cores; the most is {max(g.cpus for g in groups)}", "--cpus N")
    return replace(resources, cpus=max(cpus, 1), memory=memory)
