"""Level host: does this node's driver carry this image's CUDA, and does --nv reach the container? Needs a GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from packaging.version import Version

from sifkit.compat.hardware import kernels_fix
from sifkit.compat.tables import Tables, has_kernels
from sifkit.verify.checks import Check, Level, failed, not_run, passed, warned
from sifkit.verify.nvml import Gpu, HostFacts, Visible

NEEDED_GB = 4.0  # the smoke run with its CUDA context; with less, cuBLAS fails to start [seen with 1 GB free]
SLOW_START_SECONDS = 5.0  # of cuInit, beyond which persistence mode is worth a word

# Of what --nv binds, that which computing needs: libcuda starts; the JIT compilers turn PTX into code (nvvm: where
# the driver has it, from 525). The rest is for graphics, video and OpenCL. Source: NVIDIA driver README,
# "Installed Components".
_COMPUTE = ("libcuda.so", "libnvidia-ml.so", "libnvidia-ptxjitcompiler.so", "libnvidia-nvvm.so")
_BOUND = "/.singularity.d/libs"
_LDCONFIG = "the host's ldconfig must know them: ldconfig -p | grep libcuda"


def judge_host(
    host: HostFacts, visible: tuple[Visible, ...], wanted: int, probe: dict[str, Any], tables: Tables
) -> tuple[Check, ...]:
    """Every check of the level. `probe` is what probes/host.py saw inside the container."""
    cuda, architectures = probe["torch_cuda"], tuple(probe["architectures"])
    return (
        judge_libraries(host, probe),
        judge_device_files(host, visible, probe),
        judge_driver(host, cuda, tables, loaded_driver(host, probe)),
        judge_capabilities(visible, architectures, tables),
        judge_torch(probe, wanted),
        *judge_health(visible),
        judge_persistence(visible, probe["start_seconds"]),
    )


def judge_visible(
    host: HostFacts, visible: tuple[Visible, ...], wanted: int, environ: Mapping[str, str]
) -> Check | None:
    """Fewer GPUs than asked for: on the host, or left by CUDA_VISIBLE_DEVICES. None when there are enough."""
    if len(visible) >= wanted:
        return None
    name, given = "GPUs are visible", environ.get("CUDA_VISIBLE_DEVICES")
    said = f"{wanted} {'GPU is' if wanted == 1 else 'GPUs are'} asked for, {len(visible)} of {len(host.gpus)} visible"
    if visible and visible[0].gpu.mig:
        cause = "a CUDA program sees one MIG device, however many there are"
        return failed(Level.HOST, name, said, cause, "--gpus 1, or GPUs without MIG")
    if given is None:
        fix = f"ask for fewer (--gpus {max(len(visible), 1)}), or for more in the job (--gres=gpu:{wanted})"
        return failed(Level.HOST, name, said, "this node, or this job's part of it, has no more", fix)
    cause = f"CUDA_VISIBLE_DEVICES={given!r} {_hidden(host, given, len(visible))}"
    return failed(Level.HOST, name, said, cause, "unset CUDA_VISIBLE_DEVICES, or let Slurm set it (--gres=gpu:N)")


def _hidden(host: HostFacts, given: str, left: int) -> str:
    """What is wrong with a CUDA_VISIBLE_DEVICES that leaves `left` GPUs."""
    words = [word.strip() for word in given.split(",")]
    if not given.strip():
        return "hides every GPU: it is set, and empty"
    if len(set(words)) < len(words):
        return "names a device twice, and CUDA then shows none"
    if left < len(words):
        return f"ends at {words[left]!r}, which names none of this host's {len(host.gpus)}"
    return "names no more"


# ------------------------------------------------------------------------------------- libraries


def judge_libraries(host: HostFacts, probe: dict[str, Any]) -> Check:
    """--nv bound what the host has, what computing needs loads, and the host's own libcuda starts."""
    name = "NVIDIA libraries in the container"
    broken = {library: error for library, error in probe["libraries"].items() if error}
    broken |= {file: error for file, error in probe["bound"].items() if error and file.startswith(_COMPUTE)}
    missing = [file for file in host.libraries if file not in probe["bound"] and file not in broken]
    unbound = [file for file in missing if file.startswith(_COMPUTE)]
    if broken or unbound:
        said = "; ".join([*_once(broken), *(f"{file}: not in {_BOUND}" for file in unbound)])
        return failed(Level.HOST, name, said, _unbound_cause(host, probe), _LDCONFIG)
    if probe["cuinit"] != 0:
        return _judge_cuinit(name, probe["cuinit"])
    driver = loaded_driver(host, probe)
    if driver.foreign and not driver.forward:
        cause = f"the image's own copy hides the host's driver, and is no newer (CUDA {driver.cuda}, host {host.cuda})"
        fix = "take compat and stubs out of LD_LIBRARY_PATH in the image"
        return failed(Level.HOST, name, driver.path, cause, fix)
    if missing:
        said = f"{', '.join(missing[:5])}{' …' if len(missing) > 5 else ''}: on the host and in Apptainer's list"
        cause = f"--nv did not bind them to {_BOUND}; computing needs none of them"
        return warned(Level.HOST, name, said, cause, "compare ldconfig -p with nvliblist.conf")
    return passed(Level.HOST, name, _libraries_said(probe, driver))


def _once(broken: dict[str, str]) -> list[str]:
    """FILE: ERROR, where the error does not begin with the file's name already, as the loader's words do."""
    return [error if error.startswith(file) else f"{file}: {error}" for file, error in broken.items()]


def _unbound_cause(host: HostFacts, probe: dict[str, Any]) -> str:
    if not any(file.startswith(_COMPUTE) for file in probe["bound"]):
        return f"{_BOUND} has none of the driver's: --nv is missing, or it did not find the driver on the host"
    absent = [name for name in _COMPUTE[:3] if host.libraries and not any(f.startswith(name) for f in host.libraries)]
    if absent:
        return f"the host's ldconfig knows no {', '.join(absent)}: its driver is not installed whole"
    return "--nv did not bind the host's driver, or it needs a newer C library than the image has"


def _libraries_said(probe: dict[str, Any], driver: LoadedDriver) -> str:
    others = {file: error for file, error in probe["bound"].items() if not file.startswith(_COMPUTE)}
    unusable = [file for file, error in others.items() if error]
    said = f"{', '.join(probe['libraries'])} load, libcuda starts in {probe['start_seconds']:.1f} s ({driver.path})"
    if driver.forward:
        said += f"; forward compatibility: CUDA {driver.cuda} from the image on the host's older driver"
    if not others:
        return said
    rest = f"; {len(others)} more bound, {len(others) - len(unusable)} of them load"
    return said + rest + (" (the others are for graphics, and want X11 or GL)" if unusable else "")


@dataclass(frozen=True)
class LoadedDriver:
    """The libcuda that programs in the container get."""

    path: str
    cuda: str | None  # the newest CUDA that it knows
    foreign: bool  # not the host's: a cuda-compat, a stub, or one installed in the image
    forward: bool  # one of those that works and knows a newer CUDA than the host's driver


def loaded_driver(host: HostFacts, probe: dict[str, Any]) -> LoadedDriver:
    """Whose libcuda is loaded. Source: CUDA Compatibility, "Forward Compatibility" (its files lie in …/compat)."""
    path, cuda = ", ".join(probe["loaded"]), probe["driver_cuda"]
    folders = {part for file in probe["loaded"] for part in PurePosixPath(file).parts}
    bound = all(file.startswith(f"{_BOUND}/") for file in probe["loaded"])
    foreign = bool(folders & {"compat", "stubs"}) or (not bound and cuda != host.cuda)
    newer = cuda is not None and Version(cuda) > Version(host.cuda)
    return LoadedDriver(path, cuda, foreign, forward=foreign and probe["cuinit"] == 0 and newer)


def _judge_cuinit(name: str, code: int) -> Check:
    # CUresult in cuda.h: STUB_LIBRARY, NO_DEVICE, SYSTEM_NOT_READY, SYSTEM_DRIVER_MISMATCH,
    # COMPAT_NOT_SUPPORTED_ON_DEVICE
    known = {
        34: (
            "a stub libcuda, which is there to link against, is in front of the host's driver",
            "take stubs out of LD_LIBRARY_PATH in the image",
        ),
        100: (
            "no device is visible to CUDA in the container",
            "ask for a GPU (--gres=gpu:1); check CUDA_VISIBLE_DEVICES",
        ),
        802: (
            "the GPUs' NVSwitch fabric is not ready",
            "start nvidia-fabricmanager, of the driver's version (administrator)",
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


# ---------------------------------------------------------------------------------- device files


def judge_device_files(host: HostFacts, visible: tuple[Visible, ...], probe: dict[str, Any]) -> Check:
    """The driver's files in /dev exist on the host and open in the container: control, memory, each visible GPU."""
    name = "device files"
    if "/dev/nvidiactl" not in host.device_files:
        return not_run(Level.HOST, name, "this host's driver answers without /dev/nvidiactl (WSL and others)")
    wanted = needed_files(visible)
    absent = [file for file in wanted if file not in host.device_files]
    if absent:
        cause = "nothing made them: the kernel's module is loaded, but its files in /dev are not there"
        fix = "nvidia-modprobe -u -c=0 makes them, as does nvidia-persistenced (administrator)"
        return failed(Level.HOST, name, f"not on this host: {', '.join(absent)}", cause, fix)
    inside = probe["device_files"]
    shut = {file: inside.get(file, "not in the container") for file in wanted if inside.get(file, "not there")}
    if shut:
        said = ", ".join(f"{file}: {error}" for file, error in shut.items())
        cause = "the job may not use it (a device cgroup), its mode shuts you out, or --nv did not bind it"
        return failed(Level.HOST, name, said, cause, f"ask for the GPU in the job (--gres=gpu:1); ls -l {min(shut)}")
    if any(device.gpu.mig for device in visible):
        return _judge_capability_files(name, inside)
    return passed(Level.HOST, name, f"{', '.join(wanted)} open in the container")


def needed_files(visible: tuple[Visible, ...]) -> tuple[str, ...]:
    """What libcuda opens. Source: NVIDIA driver README, "NVIDIA Device Files"."""
    minors = sorted({device.gpu.minor for device in visible if device.gpu.minor is not None})
    return ("/dev/nvidiactl", "/dev/nvidia-uvm", *(f"/dev/nvidia{minor}" for minor in minors))


def _judge_capability_files(name: str, inside: dict[str, str | None]) -> Check:
    """A MIG device is guarded by files of its own. Source: MIG User Guide, "Device Nodes and Capabilities"."""
    found = {file: error for file, error in inside.items() if file.startswith("/dev/nvidia-caps/")}
    if not found or all(found.values()):
        said = ", ".join(f"{file}: {error}" for file, error in found.items()) or "/dev/nvidia-caps is not there"
        cause = "MIG devices are opened through /dev/nvidia-caps"
        return failed(Level.HOST, name, said, cause, "bind /dev/nvidia-caps, or ask for the MIG device in the job")
    return passed(Level.HOST, name, f"{sum(not error for error in found.values())} MIG capabilities open")


# ---------------------------------------------------------------------------------------- driver


def judge_driver(host: HostFacts, cuda: str | None, tables: Tables, loaded: LoadedDriver | None = None) -> Check:
    """The driver knows the image's CUDA; or at least its major version (minor-version compatibility); or the
    image brings a newer libcuda that works on it (forward compatibility)."""
    name = "driver new enough"
    if cuda is None:
        fix = "choose a CUDA build of torch in the spec"
        return failed(Level.HOST, name, "torch in this image is built without CUDA", "it is a CPU build", fix)
    said = f"driver {host.driver} (CUDA {host.cuda}), image CUDA {cuda}"
    if Version(host.cuda) >= Version(cuda):
        return passed(Level.HOST, name, said)
    if loaded and loaded.forward and loaded.cuda and Version(loaded.cuda) >= Version(cuda):
        return passed(Level.HOST, name, f"{said}: forward compatibility through {loaded.path} (CUDA {loaded.cuda})")
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


# ---------------------------------------------------------------------------------------- health


def judge_health(visible: tuple[Visible, ...]) -> tuple[Check, Check]:
    """Somebody else's memory, and memory errors: reported, since they explain failures later."""
    gpus = tuple({device.gpu.index: device.gpu for device in visible}.values())
    return _judge_memory(gpus), _judge_ecc(gpus)


def _judge_memory(gpus: tuple[Gpu, ...]) -> Check:
    name, cause = "GPU memory free", "another process uses the GPU"
    said = ", ".join(f"GPU {gpu.index}: {gpu.memory_free_gb:.0f} of {gpu.memory_total_gb:.0f} GB free" for gpu in gpus)
    fix = "look who: nvidia-smi; or wait for it"
    if any(gpu.memory_free_gb < NEEDED_GB for gpu in gpus):
        return failed(Level.HOST, name, said, cause, fix)
    if any(gpu.memory_free_gb < 0.9 * gpu.memory_total_gb for gpu in gpus):
        return warned(Level.HOST, name, said, cause, fix)
    return passed(Level.HOST, name, said)


def _judge_ecc(gpus: tuple[Gpu, ...]) -> Check:
    """Source of what pending and failed repairs mean: NVIDIA GPU Memory Error Management, "Row Remapping"."""
    name = "no memory errors"
    spent = [f"GPU {gpu.index}" for gpu in gpus if gpu.repair and gpu.repair.failed]
    if spent:
        cause = "no spare row was left to replace a defective one: this GPU is to be exchanged"
        said = f"{', '.join(spent)}: row remapping failed"
        return warned(Level.HOST, name, said, cause, "tell the administrator; train on another node")
    pending = [f"GPU {gpu.index}" for gpu in gpus if gpu.repair and gpu.repair.pending]
    if pending:
        cause = "memory errors were found, and the repair takes effect when the GPU is reset"
        said = f"{', '.join(pending)}: a repair is pending"
        return warned(Level.HOST, name, said, cause, "tell the administrator: the GPU needs a reset")
    errors = [f"GPU {gpu.index}: {gpu.ecc_errors}" for gpu in gpus if gpu.ecc_errors]
    if errors:
        cause = "uncorrected ECC errors since boot"
        return warned(Level.HOST, name, ", ".join(errors), cause, "tell the administrator")
    counted = any(gpu.ecc_errors is not None for gpu in gpus)
    repaired = sum(gpu.repair.rows or 0 for gpu in gpus if gpu.repair)
    said = "no uncorrected ECC errors" if counted else "these GPUs do not count them"
    return passed(Level.HOST, name, said + (f", {repaired} rows remapped earlier" if repaired else ""))


def judge_persistence(visible: tuple[Visible, ...], start_seconds: float | None) -> Check:
    """Without persistence mode the driver sets a GPU up again for each first program: a matter of seconds, and
    worth a warning only where they were measured. Source: NVIDIA Driver Persistence."""
    name = "persistence mode"
    off = [f"GPU {device.gpu.index}" for device in visible if device.gpu.persistence is False]
    if not off:
        answered = any(device.gpu.persistence for device in visible)
        return passed(Level.HOST, name, "on" if answered else "not answered by this driver")
    started = f"libcuda starts in {start_seconds:.1f} s" if start_seconds is not None else "not measured"
    said = f"off on {', '.join(dict.fromkeys(off))}; {started}"
    if start_seconds is not None and start_seconds > SLOW_START_SECONDS:
        cause = "the driver sets the GPU up again whenever the first program comes: each job's start waits for it"
        return warned(Level.HOST, name, said, cause, "start nvidia-persistenced (administrator)")
    return passed(Level.HOST, name, said)
