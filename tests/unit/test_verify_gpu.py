"""Levels host and kernel: what NVML and the container would answer, judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pynvml
import pytest

from sifkit.errors import HostError
from sifkit.verify.checks import Outcome
from sifkit.verify.host import (
    judge_capabilities,
    judge_driver,
    judge_health,
    judge_host,
    judge_libraries,
    judge_torch,
)
from sifkit.verify.kernel import headline, judge_all_reduce, judge_kernels
from sifkit.verify.nvml import Gpu, HostFacts, Visible, read_host, visible_devices
from sifkit.verify.request import gpu_environment
from tests.conftest import TABLES

GPU = Gpu(0, "GPU-aaaa-1", "NVIDIA H200", (9, 0), 150.0, 149.0, 0, ())
SECOND = replace(GPU, index=1, uuid="GPU-bbbb-2")
HOST = HostFacts("580.65.06", "13.0", (GPU, SECOND))
PROBE: dict[str, Any] = {
    "libraries": {"libcuda.so.1": None, "libnvidia-ml.so.1": None},
    "cuinit": 0,
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
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(given: str | None, words: tuple[str, ...]) -> None:
    environ = {} if given is None else {"CUDA_VISIBLE_DEVICES": given}
    assert tuple(device.word for device in visible_devices(HOST, environ)) == words


def test_a_gpu_in_mig_mode_is_used_through_its_parts() -> None:
    host = replace(HOST, gpus=(replace(GPU, mig=("MIG-1", "MIG-2")),))
    assert [device.word for device in visible_devices(host, {})] == ["MIG-1", "MIG-2"]
    assert [device.word for device in visible_devices(host, {"CUDA_VISIBLE_DEVICES": "MIG-2"})] == ["MIG-2"]


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


def test_libraries_that_nv_did_not_bind_fail() -> None:
    libraries = {"libcuda.so.1": "libcuda.so.1: cannot open shared object file"}
    check = judge_libraries({**PROBE, "libraries": libraries, "cuinit": None})
    assert check.outcome is Outcome.FAILED
    assert "--nv" in (check.cause or "")


@pytest.mark.parametrize(
    ("code", "word"), [(100, "no device"), (803, "different versions"), (804, "cuda/compat"), (1, "")]
)
def test_a_driver_that_does_not_start_is_explained(code: int, word: str) -> None:
    check = judge_libraries({**PROBE, "cuinit": code})
    assert check.outcome is Outcome.FAILED
    assert word in (check.cause or "")


def test_the_images_own_libcuda_fails() -> None:
    check = judge_libraries({**PROBE, "loaded": ["/usr/local/cuda/compat/libcuda.so.1"]})
    assert check.outcome is Outcome.FAILED


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
    checks = judge_kernels({"matmul_bfloat16": tried()})
    assert sum(check.outcome is Outcome.FAILED for check in checks) == 4


SUM = {"world": 2, "right": True, "nccl": "2.27.5", "gigabytes_per_second": 200.0}


def test_all_reduce() -> None:
    assert judge_all_reduce(None, "", 1).outcome is Outcome.NOT_RUN
    assert judge_all_reduce(SUM, "", 2).outcome is Outcome.PASSED
    assert judge_all_reduce({**SUM, "right": False}, "", 2).outcome is Outcome.FAILED
    assert judge_all_reduce({**SUM, "world": 1}, "", 2).outcome is Outcome.FAILED
    failed = judge_all_reduce(None, "DistBackendError: NCCL error in: x", 2)
    assert "NCCL_NVLS_ENABLE" in (failed.fix or "")
