"""The image under test, and the spec and lock that it should have been made from.

Default: the project's default image. Another: `pytest tests/image --sif images/NAME.sif`. Users keep this
directory in their own repository beside definitions/.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from sifkit import checkout
from sifkit.apptainer import Apptainer
from sifkit.lock import read_lock
from sifkit.model import ImageSpec, Lock
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.spec import DEFAULT_IMAGE, Project, find_project, load_spec


@pytest.fixture(scope="session")
def project() -> Project:
    return find_project(Path(__file__).parent)


@pytest.fixture(scope="session")
def default_sif(project: Project) -> Path:
    """Where `make sif` puts it; the fixture `sif` fails when it is not there."""
    return project.images / f"{DEFAULT_IMAGE}.sif"


@pytest.fixture(scope="session")
def spec(project: Project, sif: Path) -> ImageSpec:
    """The spec that the image is named after."""
    return load_spec(project, sif.stem)


@pytest.fixture(scope="session")
def lock(project: Project, sif: Path) -> Lock:
    return read_lock(project.lock_path(sif.stem))


@pytest.fixture(scope="session")
def llamafactory() -> Path:
    """A whole checkout of the default image's version; fetched once, kept in the cache."""
    runner, progress = Runner(os.environ), PlainProgress(Console(stderr=True))
    return checkout.cached("0.9.5", user_cache(os.environ), runner, progress)


@pytest.fixture(scope="session")
def apptainer() -> Apptainer:
    return Apptainer.find(Runner(os.environ))


@pytest.fixture(scope="session")
def labels(apptainer: Apptainer, sif: Path) -> dict[str, str]:
    return apptainer.labels(sif)
