"""The image, and whose turn it is on the GPU.

SIFKIT_GPU_IMAGE=PROJECT/images/NAME.sif pytest tests/gpu: an image that `python build.py` made and that verifies here.
Without it, or without a GPU, these tests are skipped; with it and without a GPU they fail.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sifkit.errors import HostError
from sifkit.spec import Project, load_spec
from sifkit.verify.nvml import HostFacts, read_host
from tests.gpu.plant import ROOT, Subject, subject


@pytest.fixture(scope="session")
def host() -> HostFacts:
    try:
        return read_host()
    except HostError as error:
        if os.environ.get("SIFKIT_GPU_IMAGE"):
            pytest.fail(error.message)  # whoever names an image means to test it
        pytest.skip(error.message)


@pytest.fixture(scope="session")
def image(host: HostFacts) -> Path:
    """Fails, and is not skipped, where there is a GPU and the file that is named is not there."""
    named = os.environ.get("SIFKIT_GPU_IMAGE")
    if not named:
        pytest.skip("SIFKIT_GPU_IMAGE names no image")
    path = Path(named).absolute()
    assert path.is_file(), f"SIFKIT_GPU_IMAGE={named}: no such file"
    return path


@pytest.fixture(scope="session")
def on_gpu(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """The image in a project of its own, and a checkout of its LLaMA-Factory; the site may name a wheelhouse."""
    work = tmp_path_factory.mktemp("subject")
    version = load_spec(Project(image.parent.parent), image.stem).llamafactory.version
    checkout = work / "LLaMA-Factory"
    subprocess.run([sys.executable, "-m", "sifkit", "checkout", version, str(checkout)], cwd=ROOT, check=True)
    return subject(image, work, checkout, "gpu")


@pytest.fixture
def shared_gpu(on_gpu: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Others may use the GPU meanwhile."""
    with _turn(tmp_path_factory, fcntl.LOCK_SH):
        yield on_gpu


@pytest.fixture
def whole_gpu(on_gpu: Subject, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """No other test uses the GPU meanwhile, in no other worker either."""
    with _turn(tmp_path_factory, fcntl.LOCK_EX):
        yield on_gpu


@contextmanager
def _turn(factory: pytest.TempPathFactory, kind: int) -> Iterator[None]:
    base = factory.getbasetemp()
    place = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base  # a worker's own directory lies in the run's
    with (place / "gpu.lock").open("a") as file:
        fcntl.flock(file, kind)
        yield
