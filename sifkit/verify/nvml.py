"""The host's NVIDIA GPUs, asked through NVIDIA's own binding of its management library (NVML)."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from sifkit.errors import HostError

_SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Gpu:
    """One GPU of the host, in PCI order."""

    index: int
    uuid: str
    name: str
    capability: tuple[int, int]
    memory_total_gb: float
    memory_free_gb: float
    ecc_errors: int | None  # uncorrected since the driver was loaded; None: it does not count them
    mig: tuple[str, ...]  # UUIDs of its MIG devices; empty when MIG is off


@dataclass(frozen=True)
class HostFacts:
    """The driver and its GPUs. `cuda` is the newest CUDA that the driver knows."""

    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]


def read_host() -> HostFacts:
    """Raises `HostError` in words when there is no NVIDIA GPU, or its driver does not answer."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise _no_gpu(str(error)) from None
    try:
        count = pynvml.nvmlDeviceGetCount()
        if count == 0:
            raise _no_gpu("NVML counts 0 devices")
        cuda = pynvml.nvmlSystemGetCudaDriverVersion()
        gpus = tuple(_read_gpu(index) for index in range(count))
        return HostFacts(_text(pynvml.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}", gpus)
    except pynvml.NVMLError as error:
        raise HostError(f"the NVIDIA driver answers with an error: {error}", "look at nvidia-smi and dmesg") from None
    finally:
        pynvml.nvmlShutdown()


def _no_gpu(said: str) -> HostError:
    looked = {
        "/dev/nvidia0": Path("/dev/nvidia0").exists(),
        "/proc/driver/nvidia": Path("/proc/driver/nvidia").exists(),
    }
    seen = ", ".join(f"{path}: {'there' if there else 'not there'}" for path, there in looked.items())
    return HostError(
        f"no NVIDIA GPU here (NVML: {said}; {seen})",
        "run this on a GPU node (a job with a GPU allocated), or verify what needs none: --device cpu",
    )


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(
        index=index,
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        capability=tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
        memory_total_gb=memory.total / 1e9,
        memory_free_gb=memory.free / 1e9,
        ecc_errors=_ecc_errors(handle),
        mig=_mig_devices(handle),
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # nvidia-ml-py before 11.515 answered bytes


def _ecc_errors(handle: Any) -> int | None:
    try:
        return int(
            pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        )
    except pynvml.NVMLError:
        return None  # consumer cards and MIG devices have no counter


def _mig_devices(handle: Any) -> tuple[str, ...]:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current == pynvml.NVML_DEVICE_MIG_ENABLE else 0
    except pynvml.NVMLError:
        return ()  # GPUs before A100 have no MIG mode to ask for
    return tuple(uuid for index in range(count) if (uuid := _mig_uuid(handle, index)))


def _mig_uuid(handle: Any, index: int) -> str | None:
    try:
        return _text(pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
    except pynvml.NVMLError:
        return None  # fewer devices are configured than the GPU could hold


@dataclass(frozen=True)
class Visible:
    """A device that a program may use: the word for CUDA_VISIBLE_DEVICES, and the GPU that it is (part of)."""

    word: str
    gpu: Gpu


def visible_devices(host: HostFacts, environ: Mapping[str, str]) -> tuple[Visible, ...]:
    """The devices that CUDA_VISIBLE_DEVICES leaves, in its order; all when it is not set.

    As CUDA does, the list ends at the first word that names nothing; UUIDs may be shortened. A GPU with MIG
    on is used through its MIG devices. Source: CUDA Programming Guide, "CUDA Environment Variables".
    """
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return tuple(visible for gpu in host.gpus for visible in _all_of(gpu))
    found: list[Visible] = []
    for word in given.split(","):
        named = _named(host, word.strip())
        if not named:
            break
        found += named
    return tuple(found)


def _all_of(gpu: Gpu) -> tuple[Visible, ...]:
    return tuple(Visible(uuid, gpu) for uuid in gpu.mig) if gpu.mig else (Visible(str(gpu.index), gpu),)


def _named(host: HostFacts, word: str) -> tuple[Visible, ...]:
    for gpu in host.gpus:
        if word == str(gpu.index):
            return _all_of(gpu) if gpu.mig else (Visible(word, gpu),)
        if word.startswith("GPU-") and gpu.uuid.startswith(word):
            return (Visible(word, gpu),)
        if word.startswith("MIG-") and any(uuid.startswith(word) for uuid in gpu.mig):
            return (Visible(word, gpu),)
    return ()


@dataclass(frozen=True)
class GpuSample:
    """One look at one GPU. `utilisation`: per cent of the last second in which a kernel ran; None: not answered."""

    seconds: float  # since the watching began
    index: int
    memory_gb: float
    utilisation: int | None


@dataclass
class GpuUse:
    """What the sampled GPUs did: highest memory above the start, highest and mean utilisation."""

    start_memory_gb: float = 0.0
    peak_memory_gb: float = 0.0
    utilisation: list[int] = field(default_factory=list)
    samples: list[GpuSample] = field(default_factory=list)

    @property
    def peak_utilisation(self) -> int:
        """Per cent of the time in which some kernel ran, at its highest."""
        return max(self.utilisation, default=0)


@contextmanager
def sampled(indices: tuple[int, ...]) -> Iterator[GpuUse]:
    """Watch GPUs while something runs; with no indices nothing is asked."""
    use, stop = GpuUse(), threading.Event()
    if not indices:
        yield use
        return
    pynvml.nvmlInit()
    thread = threading.Thread(target=_sample, args=(indices, use, stop), daemon=True)
    try:
        use.start_memory_gb = use.peak_memory_gb = _memory_gb(indices)
        thread.start()
        yield use
    finally:
        stop.set()
        thread.join(timeout=10)
        pynvml.nvmlShutdown()


def _memory_gb(indices: tuple[int, ...]) -> float:
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices]
    return float(sum(pynvml.nvmlDeviceGetMemoryInfo(handle).used for handle in handles)) / 1e9


def _sample(indices: tuple[int, ...], use: GpuUse, stop: threading.Event) -> None:
    while not stop.wait(_SAMPLE_SECONDS):
        try:
            use.peak_memory_gb = max(use.peak_memory_gb, _memory_gb(indices))
            rates = [
                pynvml.nvmlDeviceGetUtilizationRates(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in indices
            ]
            use.utilisation.append(max(int(rate.gpu) for rate in rates))
        except pynvml.NVMLError:
            continue  # a GPU with MIG on answers no utilisation; memory is counted above
