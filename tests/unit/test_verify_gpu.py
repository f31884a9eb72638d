"""Levels host and kernel: what NVML and the container would answer, judged."""

from __future__ import annotations

import ast
import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from sifkit.errors import HostError
from sifkit.run import Runner
from sifkit.verify import nvml
from sifkit.verify.checks import Outcome
from sifkit.verify.host import (
    judge_capabilities,
    judge_device_files,
    judge_driver,
    judge_health,
    judge_host,
    judge_libraries,
    judge_persistence,
    judge_torch,
    judge_visible,
    loaded_driver,
)
from sifkit.verify.kernel import bus_bandwidth, headline, judge_all_reduce, judge_kernels
from sifkit.verify.nvlibs import listed_names, read_nv_libraries, wanted_paths
from sifkit.verify.nvml import (
    MOST_SAMPLES,
    Gpu,
    GpuSample,
    GpuUse,
    HostFacts,
    MemoryRepair,
    Visible,
    read_host,
    visible_devices,
)
from sifkit.verify.request import gpu_environment
from tests.conftest import TABLES, FakeTool

PROBES = Path(nvml.__file__).with_name("probes")
GPU = Gpu(0, "GPU-aaaa-1", "NVIDIA H200", (9, 0), 150.0, 149.0, 0, (), minor=0, persistence=True)
SECOND = replace(GPU, index=1, uuid="GPU-bbbb-2", minor=1)
LIBRARIES = ("libGL.so.1", "libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-nvvm.so.4", "libnvidia-ptxjitcompiler.so.1")
FILES = ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm")
HOST = HostFacts("580.65.06", "13.0", (GPU, SECOND), LIBRARIES, FILES)
PROBE: dict[str, Any] = {
    "libraries": {"libcuda.so.1": None, "libnvidia-ml.so.1": None, "libnvidia-ptxjitcompiler.so.1": None},
    "bound": dict.fromkeys(LIBRARIES) | {"libGL.so.1": "libX11.so.6: cannot open shared object file"},
    "cuinit": 0,
    "driver_cuda": "13.0",
    "start_seconds": 0.8,
    "device_files": dict.fromkeys(FILES),
    "loaded": ["/.singularity.d/libs/libcuda.so.1"],
    "torch_cuda": "12.8",
    "architectures": ["sm_80", "sm_90", "sm_100"],
    "torch_error": None,
    "device_count": 1,
    "devices": ["NVIDIA H200"],
}
ONE = (Visible("0", GPU),)


def test_a_good_node_passes_every_check() -> None:
    assert {check.outcome for check in judge_host(HOST, ONE, 1, PROBE, TABLES)} == {Outcome.PASSED}


# ------------------------------------------------------------------ no GPU


def test_without_a_gpu_the_error_says_what_was_looked_at_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", missing)
    with pytest.raises(HostError, match=r"no NVIDIA GPU here.*NVML.*/dev/nvidia0") as raised:
        read_host()
    assert "--device cpu" in (raised.value.fix or "")


# ------------------------------------------------------------------ which devices


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, ("0", "1")),
        ("1", ("1",)),
        ("1,0", ("1", "0")),
        ("", ()),
        ("7,0", ()),
        ("0,-1,1", ("0",)),
        ("GPU-bbbb", ("GPU-bbbb",)),
        ("GPU-", ()),  # fits both
        ("GPU-bbbb,GPU-aaaa-1", ("GPU-bbbb", "GPU-aaaa-1")),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0,0", ()),  # a device named twice leaves none
        ("0, 1", ("0", "1")),
        ("0gpu,1x", ("0", "1")),
        ("0,GPU-bbbb", ("0",)),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(given: str | None, words: tuple[str, ...]) -> None:
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert tuple(device.word for device in visible_devices(HOST, environ)) == words


PARTED = replace(GPU, mig=("MIG-1a", "MIG-2b"), mig_legacy=("MIG-GPU-aaaa-1/1/0", "MIG-GPU-aaaa-1/13/0"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, ("MIG-1a",)),
        ("MIG-2b", ("MIG-2b",)),
        ("MIG-2", ("MIG-2",)),
        ("MIG-", ()),  # fits both
        ("MIG-1a,MIG-2b", ("MIG-1a",)),
        ("0", ("MIG-1a",)),
        ("GPU-aaaa", ("MIG-1a",)),
        ("MIG-GPU-aaaa-1/1/0", ("MIG-GPU-aaaa-1/1/0",)),
        ("MIG-GPU-aaaa-1/1/1", ()),
    ],
)
def test_of_a_gpu_in_mig_mode_a_program_sees_one_part(given: str | None, words: tuple[str, ...]) -> None:
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert tuple(device.word for device in visible_devices(replace(HOST, gpus=(PARTED,)), environ)) == words


def test_whole_gpus_come_before_parts_of_one() -> None:
    host = replace(HOST, gpus=(PARTED, SECOND))
    assert [device.word for device in visible_devices(host, {})] == ["1"]


@pytest.mark.parametrize(
    ("given", "wanted", "said"),
    [
        ("", 1, "hides every GPU"),
        ("0,0", 1, "names a device twice"),
        ("7", 1, "'7', which names none of this host's 2"),
        ("0,9", 2, "'9', which names none"),
        ("1", 2, "names no more"),
        (None, 3, "has no more"),
    ],
)
def test_fewer_visible_gpus_than_asked_for_fail_with_the_reason(given: str | None, wanted: int, said: str) -> None:
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    check = judge_visible(HOST, visible_devices(HOST, environ), wanted, environ)
    assert check is not None
    assert (check.level.value, check.outcome) == ("host", Outcome.FAILED)
    assert said in (check.cause or "")
    assert check.fix


def test_enough_visible_gpus_are_no_check_and_two_mig_parts_are_explained() -> None:
    assert judge_visible(HOST, visible_devices(HOST, {}), 2, {}) is None
    host = replace(HOST, gpus=(PARTED,))
    check = judge_visible(host, visible_devices(host, {}), 2, {})
    assert check is not None
    assert "one MIG device" in (check.cause or "")


def test_only_what_concerns_gpus_is_forwarded() -> None:
    environ = {"NCCL_NVLS_ENABLE": "0", "CUDA_VISIBLE_DEVICES": "1", "PYTHONPATH": "/x", "LD_LIBRARY_PATH": "/y"}
    assert gpu_environment(environ) == {"NCCL_NVLS_ENABLE": "0", "CUDA_VISIBLE_DEVICES": "1"}


# ------------------------------------------------------------------ drivers


@pytest.mark.parametrize(
    ("driver", "cuda", "image", "outcome"),
    [
        ("580.65.06", "13.0", "12.8", Outcome.PASSED),
        ("570.86.10", "12.8", "12.8", Outcome.PASSED),
        ("550.54.15", "12.4", "12.8", Outcome.WARNED),
        ("470.82.01", "11.4", "12.8", Outcome.FAILED),
        ("570.86.10", "12.8", "13.0", Outcome.FAILED),
    ],
)
def test_drivers_against_the_images_cuda(driver: str, cuda: str, image: str, outcome: Outcome) -> None:
    assert judge_driver(HostFacts(driver, cuda, ()), image, TABLES).outcome is outcome


def test_minor_version_and_forward_compatibility_are_told_apart() -> None:
    minor = judge_driver(HostFacts("550.54.15", "12.4", ()), "12.8", TABLES)
    forward = judge_driver(HostFacts("550.54.15", "12.4", ()), "13.0", TABLES)
    assert "minor-version compatibility" in (minor.cause or "")
    assert "forward compatibility" in (forward.cause or "")
    assert forward.fix == "use an image with CUDA 12, or ask for driver 580.65.06"


def test_a_cpu_build_of_torch_fails_on_a_gpu_node() -> None:
    assert judge_driver(HOST, None, TABLES).outcome is Outcome.FAILED


# ------------------------------------------------------------------ inside the container


def libraries(host: HostFacts = HOST, **change: Any) -> Any:
    return judge_libraries(host, {**PROBE, **change})


def test_graphics_libraries_that_want_x11_are_counted_and_not_blamed() -> None:
    check = libraries()
    assert check.outcome is Outcome.PASSED
    assert "1 more bound, 0 of them load" in check.message


def test_libraries_that_nv_did_not_bind_fail() -> None:
    broken = {"libcuda.so.1": "libcuda.so.1: cannot open shared object file"}
    check = libraries(libraries=broken, bound={}, cuinit=None, driver_cuda=None, loaded=[])
    assert check.outcome is Outcome.FAILED
    assert "--nv is missing" in (check.cause or "")
    assert "libcuda.so.1: cannot open" in check.message


def test_a_compiler_library_that_the_host_has_must_be_bound_and_load() -> None:
    without = {name: error for name, error in PROBE["bound"].items() if "nvvm" not in name}
    assert "libnvidia-nvvm.so.4: not in /.singularity.d/libs" in libraries(bound=without).message
    glibc = {**PROBE["bound"], "libnvidia-nvvm.so.4": "version `GLIBC_2.34' not found"}
    check = libraries(bound=glibc)
    assert (check.outcome, "newer C library" in (check.cause or "")) == (Outcome.FAILED, True)


def test_a_graphics_library_that_was_not_bound_warns_at_most() -> None:
    check = libraries(bound={name: None for name in LIBRARIES if name != "libGL.so.1"})
    assert (check.outcome, check.message.split(":")[0]) == (Outcome.WARNED, "libGL.so.1")


def test_where_the_hosts_list_is_not_known_only_what_computing_needs_is_asked() -> None:
    assert libraries(replace(HOST, libraries=())).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("code", "word"),
    [(34, "stub"), (100, "no device"), (802, "NVSwitch"), (803, "different versions"), (804, "cuda/compat"), (1, "")],
)
def test_a_driver_that_does_not_start_is_explained(code: int, word: str) -> None:
    check = libraries(cuinit=code)
    assert check.outcome is Outcome.FAILED
    assert word in (check.cause or "")


COMPAT = ["/usr/local/cuda/compat/libcuda.so.580.65.06"]


def test_the_images_own_libcuda_fails_where_it_is_no_newer_than_the_hosts() -> None:
    check = libraries(loaded=COMPAT)
    assert (check.outcome, check.message) == (Outcome.FAILED, COMPAT[0])
    assert libraries(loaded=["/usr/lib/x86_64-linux-gnu/libcuda.so.1"], driver_cuda="12.4").outcome is Outcome.FAILED


def test_a_libcuda_bound_elsewhere_is_the_hosts_if_it_is_of_its_version() -> None:
    assert libraries(loaded=["/usr/local/nvidia/lib64/libcuda.so.1"]).outcome is Outcome.PASSED


def test_forward_compatibility_that_works_is_said_and_makes_the_driver_new_enough() -> None:
    host, probe = replace(HOST, driver="550.54.15", cuda="12.4"), {**PROBE, "loaded": COMPAT}
    check = judge_libraries(host, probe)
    assert check.outcome is Outcome.PASSED
    assert "forward compatibility: CUDA 13.0" in check.message
    driver = judge_driver(host, "13.0", TABLES, loaded_driver(host, probe))
    assert driver.outcome is Outcome.PASSED
    assert "forward compatibility through" in driver.message
    broken = {**probe, "cuinit": 804}
    assert judge_libraries(host, broken).outcome is Outcome.FAILED
    assert judge_driver(host, "13.0", TABLES, loaded_driver(host, broken)).outcome is Outcome.FAILED


# ------------------------------------------------------------------ what --nv should bind

CONF = "# libs\nnvidia-smi\nlibcuda.so\nlibnvidia-ml.so\n/usr/share/x.json\n#libGL.so\n"
CACHE = """5 libs found in cache `/etc/ld.so.cache'
\tlibcuda.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so.1
\tlibcuda.so (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so
\tlibcudart.so.12 (libc6,x86-64) => /lib/libcudart.so.12
\tlibnvidia-ml.so.1 (libc6,x86-64, OS ABI: Linux 2.3.99) => /lib/libnvidia-ml.so.1
"""


def test_the_list_of_libraries_is_apptainers_against_the_loaders() -> None:
    names = listed_names(CONF)
    assert names == ("libcuda.so", "libnvidia-ml.so")
    assert wanted_paths(names, CACHE) == (
        "/lib/x86_64-linux-gnu/libcuda.so.1",
        "/lib/x86_64-linux-gnu/libcuda.so",
        "/lib/libnvidia-ml.so.1",
    )


def test_the_hosts_own_list_is_read_and_libraries_of_other_machines_left_out(
    fake_tool: FakeTool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = tmp_path / "libcuda.so.1", tmp_path / "32" / "libcuda.so.2"
    other.parent.mkdir()
    here.write_bytes(Path(sys.executable).read_bytes()[:20])
    other.write_bytes(b"\x7fELF\x01" + bytes(15))
    lines = "\n".join(f"\tlibcuda.so.9 (libc6) => {path}" for path in (here, other, tmp_path / "gone.so"))
    fake_tool("ldconfig", f"cat <<'END'\n{lines}\nEND")
    program = fake_tool("apptainer", "exit 1")
    conf = program.parent.parent / "etc" / "apptainer" / "nvliblist.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(CONF)
    assert read_nv_libraries(Runner(os.environ)) == ("libcuda.so.1",)
    fake_tool("ldconfig", "exit 1")
    assert read_nv_libraries(Runner(os.environ)) == ()


# ------------------------------------------------------------------ device files


def test_device_files_must_exist_on_the_host_and_open_in_the_container() -> None:
    assert judge_device_files(HOST, ONE, PROBE).outcome is Outcome.PASSED
    gone = judge_device_files(replace(HOST, device_files=("/dev/nvidiactl", "/dev/nvidia0")), ONE, PROBE)
    assert "not on this host: /dev/nvidia-uvm" in gone.message
    assert "nvidia-modprobe" in (gone.fix or "")
    shut = {**PROBE, "device_files": {**PROBE["device_files"], "/dev/nvidia0": "Operation not permitted"}}
    assert "/dev/nvidia0: Operation not permitted" in judge_device_files(HOST, ONE, shut).message
    absent = {**PROBE, "device_files": {}}
    assert "/dev/nvidiactl: not in the container" in judge_device_files(HOST, ONE, absent).message


def test_another_gpus_file_may_be_shut() -> None:
    inside = {**PROBE, "device_files": {**PROBE["device_files"], "/dev/nvidia1": "Operation not permitted"}}
    assert judge_device_files(HOST, ONE, inside).outcome is Outcome.PASSED


def test_a_host_without_nvidias_files_is_not_judged_by_them() -> None:
    assert judge_device_files(replace(HOST, device_files=()), ONE, PROBE).outcome is Outcome.NOT_RUN


def test_mig_devices_need_their_capability_files() -> None:
    part = (Visible("MIG-1a", PARTED),)
    assert "nvidia-caps" in (judge_device_files(HOST, part, PROBE).cause or "")
    files = {**PROBE["device_files"], "/dev/nvidia-caps/nvidia-cap21": None, "/dev/nvidia-caps/nvidia-cap1": "no"}
    assert judge_device_files(HOST, part, {**PROBE, "device_files": files}).outcome is Outcome.PASSED


def test_the_probe_loads_in_a_child_and_a_crash_is_an_answer(tmp_path: Path) -> None:
    source = tmp_path / "crash.c"
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) static void go(void) { abort(); }\n")
    library = tmp_path / "libcrash.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    asked = f"import host; print([host.load_error(name) for name in ('libc.so.6', '/none.so', {str(library)!r})])"
    run = subprocess.run([sys.executable, "-c", asked], cwd=PROBES, capture_output=True, text=True, check=True)
    works, gone, crashes = ast.literal_eval(run.stdout)
    assert works is None
    assert "/none.so" in gone
    assert crashes == "loading it crashes (signal 6)"


def test_the_probe_opens_device_files_without_following_folders(tmp_path: Path) -> None:
    (tmp_path / "nvidia-caps").mkdir()
    for name in ("nvidia0", "nvidia-caps/nvidia-cap1", "null"):
        (tmp_path / name).touch()
    asked = (
        "import host, pathlib, sys; files = host.device_files(pathlib.Path(sys.argv[1])); "
        "print([(file.name, host.open_error(file)) for file in files], host.open_error(pathlib.Path('/none')))"
    )
    run = subprocess.run(
        [sys.executable, "-c", asked, str(tmp_path)], cwd=PROBES, capture_output=True, text=True, check=True
    )
    assert run.stdout == "[('nvidia-cap1', None), ('nvidia0', None)] No such file or directory\n"


def test_a_gpu_without_kernels_fails() -> None:
    check = judge_capabilities((Visible("0", replace(GPU, capability=(12, 0), name="RTX 5090")),), ("sm_90",), TABLES)
    assert check.outcome is Outcome.FAILED
    assert "sm_120" in (check.cause or "")


def test_fewer_devices_than_asked_for_fail() -> None:
    assert judge_torch(PROBE, 2).outcome is Outcome.FAILED
    assert judge_torch({**PROBE, "torch_error": "RuntimeError: Error 804"}, 1).outcome is Outcome.FAILED


def test_a_gpu_whose_memory_is_taken_fails() -> None:
    memory, _ = judge_health((Visible("0", replace(GPU, memory_free_gb=1.0)),))
    assert (memory.outcome, memory.cause) == (Outcome.FAILED, "another process uses the GPU")


def test_repairs_of_memory_are_reported() -> None:
    def ecc(repair: MemoryRepair, errors: int = 0) -> Any:
        return judge_health((Visible("0", replace(GPU, repair=repair, ecc_errors=errors)),))[1]

    assert "2 rows remapped earlier" in ecc(MemoryRepair(2, pending=False, failed=False)).message
    pending = ecc(MemoryRepair(2, pending=True, failed=False), errors=1)
    assert (pending.outcome, "reset" in (pending.fix or "")) == (Outcome.WARNED, True)
    spent = ecc(MemoryRepair(9, pending=True, failed=True))
    assert "exchanged" in (spent.cause or "")


def test_persistence_mode_warns_only_where_it_costs() -> None:
    off = (Visible("0", replace(GPU, persistence=False)),)
    assert judge_persistence(ONE, 30.0).outcome is Outcome.PASSED
    assert judge_persistence(off, 0.8).outcome is Outcome.PASSED
    slow = judge_persistence(off, 12.0)
    assert (slow.outcome, slow.message) == (Outcome.WARNED, "off on GPU 0; libcuda starts in 12.0 s")
    assert judge_persistence((Visible("0", replace(GPU, persistence=None)),), None).outcome is Outcome.PASSED


def test_a_traceback_is_shown_by_the_line_that_names_the_exception() -> None:
    said = "Traceback (most recent call last):\n  File x\nmod.OopsError: why\n\nSet TORCHDYNAMO_VERBOSE=1"
    assert headline(said) == "mod.OopsError: why"
    assert headline("only words") == "only words"


def test_a_busy_gpu_and_memory_errors_are_reported() -> None:
    memory, ecc = judge_health((Visible("0", replace(GPU, memory_free_gb=20.0, ecc_errors=3)),))
    assert (memory.outcome, ecc.outcome) == (Outcome.WARNED, Outcome.WARNED)


# ------------------------------------------------------------------ kernels


def tried(relative_error: float | None = 0.001, error: str | None = None, skipped: str | None = None) -> dict[str, Any]:
    return {"relative_error": relative_error, "error": error, "skipped": skipped, "seconds": 1.0}


KERNELS = {name: tried(1e-6) for name in ("matmul_bfloat16", "matmul_float32", "triton", "compile", "backward")}
KERNELS["start"] = {**tried(None), "import_seconds": 5.1, "cuda_seconds": 1.9}


def outcome_of(**change: dict[str, Any]) -> list[Outcome]:
    checks = judge_kernels({**KERNELS, **change})
    return [check.outcome for check in checks if check.outcome is not Outcome.PASSED]


def test_kernels_that_agree_with_float64_pass() -> None:
    assert outcome_of() == []


def test_rounding_of_bf16_passes_and_of_fp32_does_not() -> None:
    assert outcome_of(matmul_bfloat16=tried(0.004)) == []
    assert outcome_of(matmul_float32=tried(0.004)) == [Outcome.FAILED]


def test_wrong_results_and_nan_fail() -> None:
    assert outcome_of(triton=tried(1.0), compile=tried(float("nan"))) == [Outcome.FAILED] * 2


def test_an_exception_is_explained() -> None:
    checks = judge_kernels({**KERNELS, "triton": tried(None, "RuntimeError: Failed to find C compiler. Please")})
    (check,) = [check for check in checks if check.outcome is Outcome.FAILED]
    assert check.fix == "add gcc, libc6-dev and python3-dev to apt in the spec"


def test_what_the_gpu_does_not_have_is_not_run() -> None:
    assert outcome_of(matmul_bfloat16=tried(None, None, "this GPU has no bfloat16")) == [Outcome.NOT_RUN]


def test_what_the_probe_did_not_reach_failed() -> None:
    checks = judge_kernels({"start": KERNELS["start"], "matmul_bfloat16": tried()})
    assert sum(check.outcome is Outcome.FAILED for check in checks) == 4


def test_speed_and_the_first_start_are_said() -> None:
    fast = {**tried(), "size": 4096, "teraflops": 745.2, "teraflops_size": 8192}
    start, bf16, *_ = judge_kernels({**KERNELS, "matmul_bfloat16": fast})
    assert start.message == "torch imported in 5.1 s, first memory on the GPU 1.9 s later"
    assert bf16.message == "relative error 0.001 at 4096²; 745 TFLOP/s at 8192²"
    assert outcome_of(start=tried(None, "RuntimeError: Found no NVIDIA driver on your system")) == [Outcome.FAILED]


SUM: dict[str, Any] = {
    "world": 2,
    "backend": "nccl",
    "version": "2.27.5",
    "elements": 1000,
    "bytes": 1_000_000_000,
    "seconds": 0.01,
    "ranks": [{"rank": 0, "device": "GPU-a", "wrong": 0}, {"rank": 1, "device": "GPU-b", "wrong": 0}],
}


def ranks(**change: Any) -> list[dict[str, Any]]:
    return [SUM["ranks"][0], {**SUM["ranks"][1], **change}]


def test_all_reduce_says_its_bandwidth_as_nccl_tests_does() -> None:
    assert judge_all_reduce(None, "", 1).outcome is Outcome.NOT_RUN
    check = judge_all_reduce(SUM, "", 2)
    assert check.outcome is Outcome.PASSED
    assert "algorithm 100.0 GB/s, bus 100.0 GB/s" in check.message
    assert bus_bandwidth(1_000_000_000, 0.01, 8) == pytest.approx(175.0)


def test_an_all_reduce_that_is_wrong_anywhere_fails() -> None:
    wrong = judge_all_reduce({**SUM, "ranks": ranks(wrong=7)}, "", 2)
    assert (wrong.outcome, wrong.message) == (Outcome.FAILED, "wrong on rank 1: 7 of 1000 elements")
    assert judge_all_reduce({**SUM, "ranks": SUM["ranks"][:1]}, "", 2).message == "1 of 2 ranks"
    same = judge_all_reduce({**SUM, "ranks": ranks(device="GPU-a")}, "", 2)
    assert "on one GPU" in (same.cause or "")
    failed = judge_all_reduce(None, "DistBackendError: NCCL error in: x", 2)
    assert "NCCL_NVLS_ENABLE" in (failed.fix or "")


# ------------------------------------------------------------------ what the GPUs did meanwhile


def look(seconds: float, *memory_gb: float) -> list[GpuSample]:
    return [GpuSample(seconds, index, memory, 10 * index) for index, memory in enumerate(memory_gb)]


def test_each_gpus_growth_is_known() -> None:
    use = GpuUse()
    use.begin({0: 1.0, 1: 2.0})
    use.add(look(0.5, 5.0, 2.0), kept=True)
    use.add(look(1.0, 3.0, 2.5), kept=False)
    assert use.grown_gb() == {0: 4.0, 1: 0.5}
    assert (use.start_memory_gb, use.peak_memory_gb, use.peak_utilisation) == (3.0, 7.0, 10)
    assert [sample.seconds for sample in use.samples] == [0.5, 0.5]


def test_a_gpu_that_answers_no_utilisation_leaves_a_gap() -> None:
    use = GpuUse()
    use.add([GpuSample(0.5, 0, 1.0, None)], kept=True)
    assert (use.utilisation, len(use.samples)) == ([], 1)


def test_a_long_watch_keeps_few_samples_and_every_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 20_000

    class Stop:
        def __init__(self) -> None:
            self.left = count

        def wait(self, seconds: float) -> bool:
            self.left -= 1
            return self.left < 0

    calls = iter(range(count))

    def one(indices: tuple[int, ...], seconds: float) -> list[GpuSample]:
        at = next(calls)
        return [GpuSample(float(at), index, 50.0 if at == 12_345 else 1.0, 99 if at == 777 else 3) for index in indices]

    monkeypatch.setattr(nvml, "_look", one)
    use = GpuUse()
    use.begin({0: 1.0, 1: 1.0})
    nvml._watch((0, 1), use, Stop())  # type: ignore[arg-type]
    assert len(use.samples) <= MOST_SAMPLES
    assert len(use.utilisation) <= MOST_SAMPLES
    times = [sample.seconds for sample in use.samples if sample.index == 0]
    gaps = {later - earlier for earlier, later in itertools.pairwise(times)}
    assert len(gaps) == 1  # thinned evenly
    assert times[-1] > 0.99 * count
    assert (use.grown_gb(), use.peak_utilisation) == ({0: 49.0, 1: 49.0}, 99)


def test_what_nvml_answers_becomes_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML's own binding with its calls answered here: an Ampere card with a pending repair, persistence off."""
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlSystemGetCudaDriverVersion": 12040,
        "nvmlSystemGetDriverVersion": b"550.54.15",
        "nvmlDeviceGetHandleByIndex": "handle",
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=80e9, free=79e9, used=1e9),
        "nvmlDeviceGetUUID": "GPU-1",
        "nvmlDeviceGetName": "NVIDIA A100",
        "nvmlDeviceGetCudaComputeCapability": (8, 0),
        "nvmlDeviceGetTotalEccErrors": 0,
        "nvmlDeviceGetMigMode": (0, 0),
        "nvmlDeviceGetMinorNumber": 3,
        "nvmlDeviceGetPersistenceMode": 0,
        "nvmlDeviceGetRemappedRows": (0, 1, 1, 0),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, lambda *words, answer=answer: answer)
    host = read_host()
    assert (host.driver, host.cuda) == ("550.54.15", "12.4")
    assert host.gpus == (
        Gpu(
            *(0, "GPU-1", "NVIDIA A100", (8, 0), 80.0, 79.0, 0, ()),
            minor=3,
            persistence=False,
            repair=MemoryRepair(1, pending=True, failed=False),
        ),
    )
