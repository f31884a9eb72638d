"""The GPUs that a run may get, and what the site says of itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from sifkit.check.facts import HostFacts, SiteFacts, TargetGpu
from sifkit.compat.tables import Tables
from sifkit.errors import UsageError
from sifkit.model import Site
from sifkit.slurm.cluster import Partition

GB = 1024**3  # memory_gb of gpus.yaml is what CUDA shows, in GiB


def site_facts(
    site: Site,
    tables: Tables,
    *,
    models: tuple[str, ...] = (),
    driver: str | None = None,
    host: HostFacts | None = None,
    partition: Partition | None = None,
) -> SiteFacts:
    """What the command line names, else the site file, else the partition's gres, else this host.

    Raises `UsageError` for a GPU on the command line that no table knows.
    """
    for model in models:
        if tables.gpu(model) is None:
            raise UsageError(f"--gpu {model}: no such GPU is known", tables.nearest_gpu(model))
    gpus, source = _gpus(site, tables, models, host, partition)
    on_host = host.driver if host and source == "this host" else None
    return SiteFacts(
        gpus=gpus,
        driver=driver or site.gpu.driver or on_host,
        source=source,
        binds=site.binds,
        hf_home=site.cache.hf_home,
        slurm=partition is not None,
    )


def _gpus(
    site: Site, tables: Tables, models: tuple[str, ...], host: HostFacts | None, partition: Partition | None
) -> tuple[tuple[TargetGpu, ...], str]:
    if models:
        return _targets(models, tables), "--gpu"
    if site.gpu.models:
        return _targets(site.gpu.models, tables), "the site file"
    typed = partition_models(partition)
    if partition and typed and all(tables.gpu(model) for model in typed):
        return _targets(typed, tables), f"partition {partition.name}"
    if host and host.gpus:
        found = (
            TargetGpu(g.name, g.capability, g.memory, g.capability >= (8, 0), g.capability >= (8, 9)) for g in host.gpus
        )
        return tuple(dict.fromkeys(found)), "this host"
    return (), "nothing"


def partition_models(partition: Partition | None) -> tuple[str, ...]:
    """The types of a partition's GPUs, as its gres names them."""
    groups = partition.groups if partition else ()
    return tuple(dict.fromkeys(model for group in groups for model in group.models))


def _targets(models: Iterable[str], tables: Tables) -> tuple[TargetGpu, ...]:
    return tuple(target(model, tables) for model in models)


def target(model: str, tables: Tables) -> TargetGpu:
    """A GPU by name. Of one that is sold with several sizes of memory, the smallest, unless its name says which."""
    row = tables.gpu(model)
    if row is None:
        return TargetGpu(model, None, None, None, None)
    named = [size for size in row.memory_gb if f"{size}gb" in model.lower().replace(" ", "")]
    sizes = named or row.memory_gb
    largest = int(max(sizes) * GB) if len(sizes) > 1 else None
    return TargetGpu(row.model, row.pair, int(min(sizes) * GB), row.bf16, row.fp8, largest)


def default_partition(partitions: tuple[Partition, ...] | None, wanted: str | None) -> Partition | None:
    """The partition by name, else the cluster's default. Raises `UsageError` for a name that it does not have."""
    by_name = {partition.name: partition for partition in partitions or ()}
    if wanted is None:
        return next((partition for partition in by_name.values() if partition.is_default), None)
    if by_name and wanted not in by_name and "," not in wanted:
        near = difflib.get_close_matches(wanted, by_name, n=1)
        raise UsageError(
            f"there is no partition {wanted}",
            f"did you mean {near[0]}?" if near else f"there are: {', '.join(by_name)}",
        )
    return by_name.get(wanted)
