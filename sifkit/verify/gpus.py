"""Has torch kernels for the GPUs that an image is for? Judged from the list of architectures in torch's own files."""

from __future__ import annotations

from sifkit.compat.hardware import kernels_fix
from sifkit.compat.tables import Tables, has_kernels
from sifkit.verify.checks import Check, Level, failed, not_run, passed, warned


def judge_architectures(
    architectures: tuple[str, ...], cuda: str | None, gpu_models: tuple[str, ...], tables: Tables
) -> Check:
    """torch has kernels for each GPU that the image is for; of a GPU that no row knows nothing is concluded."""
    name = "torch has kernels for the site's GPUs"
    if not architectures:
        return not_run(Level.STATIC, name, "torch's files name no architectures (a CPU build, or there is no torch)")
    listed = " ".join(architectures)
    if not gpu_models:
        return not_run(Level.STATIC, name, f"the site names no GPUs (gpu.models); torch has kernels for {listed}")
    known = {model: gpu for model in gpu_models if (gpu := tables.gpu(model))}
    without = {model: gpu for model, gpu in known.items() if not has_kernels(architectures, gpu.pair)}
    if without:
        cause = f"this torch (CUDA {cuda}) has kernels for {listed}"
        fix = kernels_fix(tables, *(gpu.pair for gpu in known.values()))
        return failed(Level.STATIC, name, f"none for {', '.join(without)}", cause, fix)
    unknown = [model for model in gpu_models if model not in known]
    if unknown:
        said = f"not known for {', '.join(unknown)}; torch has kernels for {listed}"
        cause = "no row of definitions/compat/gpus.yaml has a GPU of that name"
        return warned(Level.STATIC, name, said, cause, tables.nearest_gpu(unknown[0]))
    return passed(Level.STATIC, name, f"{', '.join(gpu_models)}: among {listed}")
