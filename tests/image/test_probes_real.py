"""The probes of levels host and kernel in the real image, as far as they go without a GPU."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sifkit.apptainer import Apptainer
from sifkit.verify.checks import Outcome
from sifkit.verify.container import IN_PROBES, Container
from sifkit.verify.host import judge_device_files, judge_libraries
from sifkit.verify.kernel import judge_all_reduce, tolerance
from sifkit.verify.nvml import HostFacts

pytestmark = pytest.mark.image


@pytest.fixture
def container(apptainer: Apptainer, sif: Path, tmp_path: Path) -> Container:
    work = tmp_path / "work"
    work.mkdir()
    return Container(apptainer, sif, work, nv=True)


def test_two_processes_agree_on_the_sum(container: Container, tmp_path: Path) -> None:
    launcher = ("torchrun", "--standalone", "--nproc-per-node", "2")
    answer = container.ask("allreduce", "gloo", "100003", log=tmp_path / "log", launcher=launcher)
    assert answer.facts is not None, answer.said
    assert [(rank["rank"], rank["wrong"]) for rank in answer.facts["ranks"]] == [(0, 0), (1, 0)]
    assert answer.facts["seconds"] == max(rank["seconds"] for rank in answer.facts["ranks"]) > 0
    check = judge_all_reduce(answer.facts, answer.said, 2)
    assert check.outcome is Outcome.PASSED
    assert check.message.startswith("2 GPUs, GLOO")
    assert judge_all_reduce(answer.facts, answer.said, 3).outcome is Outcome.FAILED


PRODUCTS = f"""
import json, sys, torch
sys.path.insert(0, "{IN_PROBES}")
import kernel
torch.manual_seed(0)
found = {{name: kernel.product_error(300, 200, 100, getattr(torch, name), "cpu") for name in ("bfloat16", "float32")}}
a, b = torch.randn(300, 200), torch.randn(200, 100)
spoilt = a @ b
spoilt[7, :4] += 30
found["spoilt"] = kernel.error_of(a, b, spoilt)
spoilt[7, 0] = float("nan")
found["nan"] = str(kernel.error_of(a, b, spoilt))
print(json.dumps(found))
"""


def test_products_are_right_and_four_wrong_elements_of_30000_are_seen(container: Container, tmp_path: Path) -> None:
    found: dict[str, Any] = json.loads(container.run(("python3", "-c", PRODUCTS), log=tmp_path / "log").output)
    assert 0.0005 < found["bfloat16"] < tolerance("bf16 matmul") / 5
    assert found["float32"] < 1e-6
    assert found["spoilt"] > tolerance("fp32 matmul")
    assert found["nan"] == "nan"


@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU here")
def test_without_a_driver_each_of_its_libraries_is_named(container: Container, tmp_path: Path) -> None:
    answer = container.ask("host", log=tmp_path / "log")
    assert answer.facts is not None, answer.said
    host = HostFacts("580.65.06", "13.0", (), device_files=("/dev/nvidiactl", "/dev/nvidia-uvm"))
    check = judge_libraries(host, answer.facts)
    assert check.outcome is Outcome.FAILED
    assert "libcuda.so.1: cannot open shared object file" in check.message
    assert "--nv is missing" in (check.cause or "")
    assert "/dev/nvidiactl: not in the container" in judge_device_files(host, (), answer.facts).message
