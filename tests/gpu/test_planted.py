"""Failures that look like success, planted on a GPU node: each exits 1 and names its cause.

Each runs the real `python build.py --verify` of a real image on a real GPU.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from sifkit.errors import Exit
from sifkit.verify.checks import Outcome
from sifkit.verify.host import judge_capabilities
from sifkit.verify.nvml import HostFacts, visible_devices
from tests.conftest import TABLES
from tests.gpu import plant
from tests.gpu.plant import Subject

pytestmark = pytest.mark.gpu


def test_nv_left_out(shared_gpu: Subject, tmp_path: Path) -> None:
    done = shared_gpu.verify(tmp_path, env=plant.wrap_apptainer(tmp_path / "bin", drop=("--nv",)))
    assert done.code == Exit.PROBLEM
    assert "--nv" in done.failure("NVIDIA libraries in the container")


def test_no_gpu_is_visible(shared_gpu: Subject, tmp_path: Path) -> None:
    done = shared_gpu.verify(tmp_path, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.code == Exit.PROBLEM
    assert "CUDA_VISIBLE_DEVICES" in done.failure("GPUs are visible")


@pytest.mark.parametrize("name", ["stubs", "compat"])
def test_a_libcuda_that_does_not_start_in_front_of_the_driver(shared_gpu: Subject, tmp_path: Path, name: str) -> None:
    stub = next(iter(sorted(Path("/usr/local").glob("cuda*/**/stubs/libcuda.so"))), None)
    if stub is None:
        pytest.skip("no CUDA toolkit with stubs/libcuda.so below /usr/local")
    done = shared_gpu.verify(tmp_path, env=plant.with_library_in_front(tmp_path, name, stub))
    assert done.code == Exit.PROBLEM
    said = done.failure("NVIDIA libraries in the container")
    assert "stub" in said
    assert "LD_LIBRARY_PATH" in said


def test_a_compat_libcuda_that_is_no_newer_than_the_driver(shared_gpu: Subject, tmp_path: Path) -> None:
    done = shared_gpu.verify(tmp_path, env=plant.with_library_in_front(tmp_path, "compat", host_libcuda()))
    assert done.code == Exit.PROBLEM
    assert "compat" in done.failure("NVIDIA libraries in the container")


def host_libcuda() -> Path:
    known = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"libcuda\.so\.1 .*=> (\S+)", known)
    assert found, "the host's ldconfig knows no libcuda"
    return Path(found[1]).resolve()


def test_a_package_in_the_users_home(shared_gpu: Subject, tmp_path: Path) -> None:
    done = shared_gpu.verify(tmp_path, env=plant.with_user_packages(shared_gpu, tmp_path))
    assert done.code == Exit.PROBLEM
    assert "~/.local" in done.failure("imports come from the image")


def test_no_kernels_for_a_gpu_of_the_site(shared_gpu: Subject, tmp_path: Path) -> None:
    """As a file: an image of a project is refused before anything starts. No torch of today has kernels for a K80."""
    done = shared_gpu.verify(tmp_path, site={"gpu": {"models": ["K80"]}}, as_file=True)
    assert done.code == Exit.PROBLEM
    assert "K80" in done.failure("torch has kernels for the site's GPUs")


def test_an_image_without_kernels_for_a_gpu_of_the_site_is_refused_at_once(shared_gpu: Subject, tmp_path: Path) -> None:
    done = shared_gpu.verify(tmp_path, site={"gpu": {"models": ["K80"]}}, checked=True)
    assert (done.code, done.report) == (Exit.PROBLEM, None)
    assert "K80" in done.said


def test_no_kernels_for_this_gpu(host: HostFacts) -> None:
    visible = visible_devices(host, {})
    check = judge_capabilities(visible, ("sm_35", "sm_37"), TABLES)
    assert check.outcome is Outcome.FAILED
    assert host.gpus[0].name in check.message


@pytest.mark.parametrize("variable", ["HF_HOME", "TRITON_CACHE_DIR"])
def test_a_cache_that_cannot_be_written(shared_gpu: Subject, tmp_path: Path, variable: str) -> None:
    with plant.read_only(tmp_path / "cache") as directory:
        done = shared_gpu.verify(tmp_path, env={variable: str(directory)})
    assert done.code == Exit.PROBLEM
    assert variable in done.failure("caches are writable")


def test_no_c_compiler(shared_gpu: Subject, tmp_path: Path) -> None:
    done = shared_gpu.verify(tmp_path, env=plant.without_compiler(shared_gpu, tmp_path))
    assert done.code == Exit.PROBLEM
    assert "Triton" in done.failure("C compiler and Python headers")


def test_flash_attention_asked_for_and_not_there(shared_gpu: Subject, tmp_path: Path) -> None:
    config = changed_config(shared_gpu, tmp_path, flash_attn="fa2")
    done = shared_gpu.verify(tmp_path, "--config", str(config))
    assert done.code == Exit.PROBLEM
    assert "flash-attn" in done.failure("flash_attn: fa2")


def test_a_loss_that_is_not_a_number(shared_gpu: Subject, tmp_path: Path) -> None:
    config = changed_config(shared_gpu, tmp_path, learning_rate=1.0e6, warmup_ratio=0.0)
    done = shared_gpu.verify(tmp_path, "--config", str(config))
    assert done.code == Exit.PROBLEM
    assert "learning_rate" in done.failure(("losses", "trained weights"))


def changed_config(subject: Subject, tmp_path: Path, **changes: object) -> Path:
    """The checkout's own recipe with some keys changed."""
    recipe = next((subject.checkout / "examples" / "train_lora").glob("qwen3_lora_sft.yaml"))
    path = tmp_path / "changed.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(recipe.read_text()), **changes}))
    return path


def test_another_process_holds_the_memory(whole_gpu: Subject, tmp_path: Path) -> None:
    with plant.memory_taken(whole_gpu):
        done = whole_gpu.verify(tmp_path)
    assert done.code == Exit.PROBLEM
    assert "another process" in done.failure("GPU memory free")


def test_a_driver_older_than_the_images_cuda(on_gpu: Subject, tmp_path: Path) -> None:
    done = on_gpu.verify(tmp_path, site={"gpu": {"driver": "470.57.02"}}, checked=True)
    assert (done.code, done.report) == (Exit.PROBLEM, None)
    assert "470.57.02" in done.said
