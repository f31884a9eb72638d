"""Level host: does this node's driver carry this image's CUDA, and does --nv reach the container? Needs a GPU."""

from __future__ import annotations

from typing import Any

from packaging.version import Version

from sifkit.compat.tables import Tables, has_kernels
from sifkit.verify.checks import Check, Level, failed, passed, warned
from sifkit.verify.gpus import kernels_fix
from sifkit.verify.nvml import HostFacts, Visible

NEEDED_GB = 4.0  # the smoke run with its CUDA context; with less, cuBLAS fails to start [seen with 1 GB free]


def judge_host(
    host: HostFacts, visible: tuple[Visible, ...], wanted: int, probe: dict[str, Any], tables: Tables
) -> tuple[Check, ...]:
    """Every check of the level. `probe` is what probes/host.py saw inside the container."""
    cuda, architectures = probe["torch_cuda"], tuple(probe["architectures"])
    return (
        judge_libraries(probe),
        judge_driver(host, cuda, tables),
        judge_capabilities(visible, architectures, tables),
        judge_torch(probe, wanted),
        *judge_health(visible),
    )


def judge_libraries(probe: dict[str, Any]) -> Check:
    """--nv bound the driver's libraries, they load, and libcuda starts: a stub or cuda/compat would not."""
    name = "NVIDIA libraries in the container"
    broken = [f"{library}: {error}" for library, error in probe["libraries"].items() if error]
    if broken:
        cause = "--nv did not bind the host's driver, or it needs a newer C library than the image has"
        return failed(
            Level.HOST, name, "; ".join(broken), cause, "the host's ldconfig must know them: ldconfig -p | grep libcuda"
        )
    if probe["cuinit"] != 0:
        return _judge_cuinit(name, probe["cuinit"])
    compat = [path for path in probe["loaded"] if "/compat/" in path or "/stubs/" in path]
    if compat:
        cause = "the image's own copy hides the host's driver"
        return failed(
            Level.HOST, name, ", ".join(compat), cause, "take compat and stubs out of LD_LIBRARY_PATH in the image"
        )
    return passed(Level.HOST, name, f"{', '.join(probe['libraries'])} load, libcuda starts")


def _judge_cuinit(name: str, code: int) -> Check:
    # CUresult in cuda.h: NO_DEVICE, SYSTEM_DRIVER_MISMATCH, COMPAT_NOT_SUPPORTED_ON_DEVICE
    known = {
        100: (
            "no device is visible to CUDA in the container",
            "ask for a GPU (--gres=gpu:1); check CUDA_VISIBLE_DEVICES",
        ),
        803: (
            "the driver's library and its kernel module are of different versions",
            "reboot or reload the driver (administrator)",
        ),
        804: ("cuda/compat is in front of the host's driver", "take compat out of LD_LIBRARY_PATH in the image"),
    }
    cause, fix = known.get(
        code, ("the driver does not start in the container", "look at nvidia-smi and dmesg on the host")
    )
    return failed(Level.HOST, name, f"cuInit answers {code}", cause, fix)


def judge_driver(host: HostFacts, cuda: str | None, tables: Tables) -> Check:
    """The driver knows the image's CUDA, or at least its major version (minor-version compatibility)."""
    name = "driver new enough"
    if cuda is None:
        fix = "choose a CUDA build of torch in the spec"
        return failed(Level.HOST, name, "torch in this image is built without CUDA", "it is a CPU build", fix)
    said = f"driver {host.driver} (CUDA {host.cuda}), image CUDA {cuda}"
    if Version(host.cuda) >= Version(cuda):
        return passed(Level.HOST, name, said)
    oldest = tables.oldest_driver(cuda)
    if oldest is None:
        return failed(
            Level.HOST, name, said, "the driver is older than the image's CUDA", "use an image with an older CUDA"
        )
    if Version(host.driver) >= Version(oldest):
        major = Version(cuda).major
        cause = f"minor-version compatibility: any CUDA {major} starts on driver {oldest} or newer; PTX does not"
        return warned(Level.HOST, name, said, cause, "a newer driver, if something needs PTX compiled at run time")
    return failed(
        Level.HOST,
        name,
        said,
        f"CUDA {Version(cuda).major} needs driver {oldest} or newer; the image brings no forward compatibility "
        "(cuda-compat), which only data centre GPUs support",
        f"use {_image_for(host, tables)}, or ask for driver {oldest}",
    )


def _image_for(host: HostFacts, tables: Tables) -> str:
    majors = [major for major, row in tables.cuda_majors().items() if Version(host.driver) >= Version(row.driver)]
    return f"an image with CUDA {max(majors)}" if majors else "an image with an older CUDA"


def judge_capabilities(visible: tuple[Visible, ...], architectures: tuple[str, ...], tables: Tables) -> Check:
    """torch has kernels for every visible GPU."""
    name = "torch has kernels for these GPUs"
    shown = {device.gpu.name: f"sm_{device.gpu.capability[0]}{device.gpu.capability[1]}" for device in visible}
    without = [device.gpu.name for device in visible if not has_kernels(architectures, device.gpu.capability)]
    if without:
        cause = f"torch has kernels for {' '.join(architectures)}, the GPU is {shown[without[0]]}"
        fix = kernels_fix(tables, *(device.gpu.capability for device in visible))
        return failed(Level.HOST, name, f"none for {without[0]}", cause, fix)
    return passed(Level.HOST, name, ", ".join(f"{model} {architecture}" for model, architecture in shown.items()))


def judge_torch(probe: dict[str, Any], wanted: int) -> Check:
    """torch in the container sees the GPUs that were asked for."""
    name = "torch sees the GPUs"
    if probe["torch_error"]:
        return failed(Level.HOST, name, probe["torch_error"], "CUDA does not start in the container", "read host.log")
    if probe["device_count"] != wanted:
        fix = "check CUDA_VISIBLE_DEVICES and the job's --gres"
        return failed(
            Level.HOST, name, f"{probe['device_count']} of {wanted}", "fewer devices reach the container", fix
        )
    return passed(Level.HOST, name, f"{wanted}: {', '.join(probe['devices'])}")


def judge_health(visible: tuple[Visible, ...]) -> tuple[Check, ...]:
    """Somebody else's memory, and memory errors: reported, since they explain failures later."""
    gpus = {device.gpu.index: device.gpu for device in visible}.values()
    busy = [f"GPU {gpu.index}: {gpu.memory_free_gb:.0f} of {gpu.memory_total_gb:.0f} GB free" for gpu in gpus]
    used = any(gpu.memory_free_gb < 0.9 * gpu.memory_total_gb for gpu in gpus)
    errors = [f"GPU {gpu.index}: {gpu.ecc_errors}" for gpu in gpus if gpu.ecc_errors]
    words = ("GPU memory free", ", ".join(busy), "another process uses the GPU", "look who: nvidia-smi; or wait for it")
    if any(gpu.memory_free_gb < NEEDED_GB for gpu in gpus):
        memory = failed(Level.HOST, *words)
    else:
        memory = warned(Level.HOST, *words) if used else passed(Level.HOST, *words[:2])
    ecc = (
        warned(
            Level.HOST,
            "no memory errors",
            ", ".join(errors),
            "uncorrected ECC errors since boot",
            "tell the administrator",
        )
        if errors
        else passed(
            Level.HOST,
            "no memory errors",
            "no uncorrected ECC errors"
            if any(gpu.ecc_errors is not None for gpu in gpus)
            else "these GPUs do not count them",
        )
    )
    return (memory, ecc)
