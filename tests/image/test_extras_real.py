"""The image with extras: its static level passes, and DeepSpeed compiles for a GPU that is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sifkit import checkout
from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.compat.tables import load_tables
from sifkit.execute import build_all
from sifkit.hashes import sha256_of
from sifkit.lock import read_lock
from sifkit.model import Lock
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.site import load_site, user_cache
from sifkit.spec import Project
from sifkit.tools import Tools
from sifkit.verify import Level, Outcome, Report, Subject, VerifyOptions, verify

pytestmark = pytest.mark.image

NAME = "llamafactory-0.9.5-cu130-extras"
PROGRESS = PlainProgress(Console(stderr=True))


@pytest.fixture(scope="module")
def image(project: Project) -> Iterator[Path]:
    """Built where it is stale, as a user builds it. Taken away again, with its layers, if it was not there before."""
    runner = Runner(os.environ)
    site = load_site(None, os.environ, project.root)
    tools = Tools(project, site, runner, PROGRESS, dict(os.environ))
    ours, there = project.images / f"{NAME}.sif", set(layers_in(tools))
    keeps = ours.exists()
    build_all([NAME], tools)
    yield ours
    if not keeps:  # 9 GB, which the tests that follow would have to do without
        for path in (ours, ours.with_suffix(".json"), *(set(layers_in(tools)) - there)):
            path.unlink()


def layers_in(tools: Tools) -> Iterator[Path]:
    """With their sums."""
    return (tools.parts / "layers").glob("[!.]*.sqfs*")


@pytest.fixture(scope="module")
def lock(project: Project) -> Lock:
    return read_lock(project.lock_path(NAME))


@pytest.fixture(scope="module")
def report(image: Path, lock: Lock, tmp_path_factory: pytest.TempPathFactory) -> Report:
    runner = Runner(os.environ)
    options = VerifyOptions(
        device="cpu",
        checkout=checkout.cached("0.9.5", user_cache(os.environ), runner, PROGRESS),
        config=None,
        model=None,
        gpus=1,
        report_dir=tmp_path_factory.mktemp("extras"),
        levels=(Level.STATIC,),
        gpu_models=("H100", "B200"),
        tables=load_tables(),
    )
    return verify(Subject(image, NAME, sha256_of(image), lock), options, Apptainer.find(runner), PROGRESS)


def test_its_static_level_passes(report: Report) -> None:
    assert [check for check in report.checks if check.outcome is not Outcome.PASSED] == []


def test_every_extra_imports_and_nvcc_is_torchs(report: Report) -> None:
    found = {check.name: check.message for check in report.checks}
    modules = ("deepspeed", "bitsandbytes", "liger_kernel.transformers", "nltk", "jieba", "rouge_chinese")
    assert {f"import {module}" for module in modules} <= set(found)
    assert found["nvcc compiles for torch"] == "/usr/local/cuda/bin/nvcc, CUDA 13.0; torch has 13.0"
    assert "H100, B200" in found["torch has kernels for the site's GPUs"]


# DeepSpeed compiles for the GPUs that it sees; here is none, so it is shown one: an H100.
FUSED_ADAM = """\
import torch
from deepspeed.ops.op_builder import FusedAdamBuilder
torch.cuda.device_count, torch.cuda.get_device_capability = (lambda: 1), (lambda device=None: (9, 0))
print(FusedAdamBuilder().load().multi_tensor_adam)
"""


def test_deepspeed_compiles_an_operation_for_a_gpu(image: Path, tmp_path: Path) -> None:
    """nvcc, ninja, g++, torch's headers and linkable libraries together; DeepSpeed does so when a job first asks."""
    apptainer = Apptainer.find(Runner(os.environ))
    env = {
        "DS_ACCELERATOR": "cuda",
        "TORCH_CUDA_ARCH_LIST": "9.0",
        "TORCH_EXTENSIONS_DIR": "/out/extensions",
        "MAX_JOBS": "2",
        "HOME": "/out",
        "TRITON_CACHE_DIR": "/out/triton",
    }
    words = tuple(f"{name}={value}" for name, value in env.items())
    program = Exec(
        image, ("/usr/bin/env", *words, "python3", "-c", FUSED_ADAM), (Bind(tmp_path, "/out", writable=True),)
    )
    result = apptainer.runner.run(program.command(apptainer), check=False)
    said = "\n".join(result.tail)
    assert result.returncode == 0, said
    assert "multi_tensor_adam" in said
    assert (tmp_path / "extensions" / "fused_adam" / "fused_adam.so").is_file()
