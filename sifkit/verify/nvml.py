"""The host's NVIDIA GPUs, asked through NVIDIA's own binding of its management library (NVML)."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pynvml

from sifkit.errors import HostError
from sifkit.run import Runner
from sifkit.verify.nvlibs import read_nv_libraries

SAMPLE_SECONDS = 0.5
MOST_SAMPLES = 2000  # kept; a longer watch keeps every second look, then every fourth, …


@dataclass(frozen=True)
class MemoryRepair:
    """Rows of a GPU's memory that were replaced after errors (before Ampere: pages that were retired)."""

    rows: int | None  # for uncorrectable errors; None: not answered
    pending: bool  # takes effect when the GPU is reset
    failed: bool  # no spare row was left


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
    mig_legacy: tuple[str, ...] = ()  # the same devices as drivers before R470 named them: MIG-GPU-UUID/GI/CI
    minor: int | None = None  # of its device file, /dev/nvidiaN
    persistence: bool | None = None  # the driver stays loaded without clients; None: not answered
    repair: MemoryRepair | None = None  # None: not answered


@dataclass(frozen=True)
class HostFacts:
    """The driver and its GPUs. `cuda` is the newest CUDA that the driver knows."""

    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]
    libraries: tuple[str, ...] = ()  # files that `apptainer --nv` should bind; empty: that is not known
    device_files: tuple[str, ...] = ()  # /dev/nvidia*


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
        libraries = read_nv_libraries(Runner(os.environ))
        driver, files = (
            _text(pynvml.nvmlSystemGetDriverVersion()),
            tuple(map(str, sorted(Path("/dev").glob("nvidia*")))),
        )
        return HostFacts(driver, f"{cuda // 1000}.{cuda % 1000 // 10}", gpus, libraries, files)
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
        mig_legacy=_mig_legacy(handle),
        minor=_asked(pynvml.nvmlDeviceGetMinorNumber, handle),
        persistence=_persistence(handle),
        repair=_memory_repair(handle),
    )


def _asked(question: Any, handle: Any) -> Any:
    """NVML's answer; None where this GPU or driver has none (consumer cards, MIG, old drivers)."""
    try:
        return question(handle)
    except pynvml.NVMLError:
        return None


def _persistence(handle: Any) -> bool | None:
    mode = _asked(pynvml.nvmlDeviceGetPersistenceMode, handle)
    return None if mode is None else mode == pynvml.NVML_FEATURE_ENABLED


def _memory_repair(handle: Any) -> MemoryRepair | None:
    rows = _asked(pynvml.nvmlDeviceGetRemappedRows, handle)
    if rows is not None:
        return MemoryRepair(rows[1], bool(rows[2]), bool(rows[3]))
    pending = _asked(pynvml.nvmlDeviceGetRetiredPagesPendingStatus, handle)
    return None if pending is None else MemoryRepair(None, bool(pending), failed=False)


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
    return tuple(_text(pynvml.nvmlDeviceGetUUID(part)) for part in _mig_handles(handle))


def _mig_legacy(handle: Any) -> tuple[str, ...]:
    """`MIG-GPU-UUID/GPU instance/compute instance`. Source: NVIDIA's MIG User Guide, "Device Enumeration"."""
    names = []
    for part in _mig_handles(handle):
        instances = (pynvml.nvmlDeviceGetGpuInstanceId(part), pynvml.nvmlDeviceGetComputeInstanceId(part))
        names.append(f"MIG-{_text(pynvml.nvmlDeviceGetUUID(handle))}/{instances[0]}/{instances[1]}")
    return tuple(names)


def _mig_handles(handle: Any) -> list[Any]:
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
        count = pynvml.nvmlDeviceGetMaxMigDeviceCount(handle) if current == pynvml.NVML_DEVICE_MIG_ENABLE else 0
    except pynvml.NVMLError:
        return []  # GPUs before A100 have no MIG mode to ask for
    found = []
    for index in range(count):
        try:
            found.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
        except pynvml.NVMLError:
            continue  # fewer devices are configured than the GPU could hold
    return found


@dataclass(frozen=True)
class Visible:
    """A device that a program may use: the word for CUDA_VISIBLE_DEVICES, and the GPU that it is (part of)."""

    word: str
    gpu: Gpu


def visible_devices(host: HostFacts, environ: Mapping[str, str]) -> tuple[Visible, ...]:
    """The devices that CUDA_VISIBLE_DEVICES leaves, in its order; when it is not set, all.

    As in CUDA the list ends at the first word that names nothing, a device named twice leaves none, UUIDs may
    be shortened while they name one GPU, and of MIG devices a program sees one. Numbers count in PCI order, as
    nvidia-smi does and CUDA with CUDA_DEVICE_ORDER=PCI_BUS_ID, which verification sets. Sources: CUDA
    Programming Guide, "CUDA Environment Variables"; MIG User Guide, "CUDA Device Enumeration"; of doubles and
    numbers with letters behind, torch/cuda/__init__.py, _parse_visible_devices.
    """
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        whole = [Visible(str(gpu.index), gpu) for gpu in host.gpus if not gpu.mig]
        return tuple(whole) or _one_part([Visible(uuid, gpu) for gpu in host.gpus for uuid in gpu.mig])
    kind = next((prefix for prefix in ("GPU-", "MIG-") if given.startswith(prefix)), "")
    found: list[Visible] = []
    for word in given.split(","):
        named = _with_prefix(host, word, kind) if kind else _numbered(host, word)
        if named is None:
            break
        if any(named == other for other in found):
            return ()
        found.append(named)
    return _one_part(found)


def _one_part(found: list[Visible]) -> tuple[Visible, ...]:
    """A CUDA program enumerates whole GPUs, or a single MIG device."""
    if found and _is_part(found[0]):
        return tuple(found[:1])
    return tuple(visible for visible in found if not _is_part(visible))


def _is_part(visible: Visible) -> bool:
    return bool(visible.gpu.mig)


def _numbered(host: HostFacts, word: str) -> Visible | None:
    digits = re.match(r"\+?(\d+)", word.strip())
    gpu = next((gpu for gpu in host.gpus if digits and gpu.index == int(digits[1])), None)
    if gpu is None:
        return None
    return Visible(gpu.mig[0] if gpu.mig else str(gpu.index), gpu)


def _with_prefix(host: HostFacts, word: str, kind: str) -> Visible | None:
    """By UUID. One that fits two devices names none."""
    if not word.startswith(kind):
        return None
    if kind == "GPU-":
        whole = [gpu for gpu in host.gpus if gpu.uuid.startswith(word)]
        return Visible(whole[0].mig[0] if whole[0].mig else word, whole[0]) if len(whole) == 1 else None
    named = [gpu for gpu in host.gpus if word in gpu.mig_legacy]  # whole: …/1/1 begins …/1/13 too
    shortened = [gpu for gpu in host.gpus for uuid in gpu.mig if uuid.startswith(word)]
    fitting = named or shortened
    return Visible(word, fitting[0]) if len(fitting) == 1 else None


@dataclass(frozen=True)
class GpuSample:
    """One look at one GPU. `utilisation`: per cent of the last second in which a kernel ran; None: not answered."""

    seconds: float  # since the watching began
    index: int
    memory_gb: float
    utilisation: int | None


@dataclass
class GpuUse:
    """What the sampled GPUs did. Memory in GB: of all together, and of each by its index."""

    start_memory_gb: float = 0.0
    peak_memory_gb: float = 0.0
    utilisation: list[int] = field(default_factory=list)
    samples: list[GpuSample] = field(default_factory=list)
    start_gb: dict[int, float] = field(default_factory=dict)
    peak_gb: dict[int, float] = field(default_factory=dict)

    @property
    def peak_utilisation(self) -> int:
        """Per cent of the time in which some kernel ran, at its highest."""
        return max(self.utilisation, default=0)

    def grown_gb(self) -> dict[int, float]:
        """By how much each GPU's used memory rose above the start, at its highest: who was really used."""
        return {index: self.peak_gb[index] - start for index, start in self.start_gb.items()}

    def begin(self, memory_gb: dict[int, float]) -> None:
        """What each GPU holds before the work."""
        self.start_gb, self.peak_gb = dict(memory_gb), dict(memory_gb)
        self.start_memory_gb = self.peak_memory_gb = sum(memory_gb.values())

    def add(self, look: list[GpuSample], *, kept: bool) -> None:
        """One look at all GPUs. Peaks count every look; `samples` has those that are kept."""
        self.peak_memory_gb = max(self.peak_memory_gb, sum(sample.memory_gb for sample in look))
        for sample in look:
            self.peak_gb[sample.index] = max(self.peak_gb.get(sample.index, 0.0), sample.memory_gb)
        busiest = max((sample.utilisation for sample in look if sample.utilisation is not None), default=None)
        if busiest is not None:
            self.utilisation.append(busiest)
        if len(self.utilisation) > MOST_SAMPLES:  # the higher of each two
            self.utilisation = [max(self.utilisation[at : at + 2]) for at in range(0, len(self.utilisation), 2)]
        if kept:
            self.samples += look

    def thin(self) -> None:
        """Keep every second look."""
        times = sorted({sample.seconds for sample in self.samples})
        kept = set(times[::2])
        self.samples = [sample for sample in self.samples if sample.seconds in kept]


@contextmanager
def sampled(indices: tuple[int, ...]) -> Iterator[GpuUse]:
    """Watch GPUs while something runs; with no indices nothing is asked."""
    use, stop = GpuUse(), threading.Event()
    if not indices:
        yield use
        return
    pynvml.nvmlInit()
    thread = threading.Thread(target=_watch, args=(indices, use, stop), daemon=True)
    try:
        use.begin({sample.index: sample.memory_gb for sample in _look(indices, 0.0)})
        thread.start()
        yield use
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join(timeout=10)
        pynvml.nvmlShutdown()


def _watch(indices: tuple[int, ...], use: GpuUse, stop: threading.Event) -> None:
    """A look each half second until `stop`; what is kept stays bounded however long that takes."""
    started, count, stride = time.monotonic(), 0, 1
    while not stop.wait(SAMPLE_SECONDS):
        try:
            look = _look(indices, time.monotonic() - started)
        except pynvml.NVMLError:
            continue  # the driver did not answer this time: a gap, not an end
        use.add(look, kept=count % stride == 0)
        count += 1
        if len(use.samples) > MOST_SAMPLES:
            use.thin()
            stride *= 2


def _look(indices: tuple[int, ...], seconds: float) -> list[GpuSample]:
    found = []
    for index in indices:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        rates = _asked(pynvml.nvmlDeviceGetUtilizationRates, handle)  # a GPU with MIG on answers none
        memory_gb = float(pynvml.nvmlDeviceGetMemoryInfo(handle).used) / 1e9
        found.append(GpuSample(seconds, index, memory_gb, None if rates is None else int(rates.gpu)))
    return found
