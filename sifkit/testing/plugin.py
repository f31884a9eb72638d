"""pytest plugin: `pytest --sif IMAGE.sif` runs testinfra tests inside an image.

Loaded in every pytest run of this environment, so it imports no more than testinfra's own plugin does.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import testinfra
import testinfra.host

from sifkit.testing import hostspec, register


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option --sif."""
    group = parser.getgroup("sifkit")
    text = "image to test, for the fixtures sif, sif_host and testinfra's host (may be repeated)"
    group.addoption("--sif", action="append", dest="sif", metavar="PATH", default=[], help=text)


def pytest_configure(config: pytest.Config) -> None:
    """testinfra learns the scheme; its `host` fixture means the images of --sif unless --hosts is given."""
    register()
    images: list[str] = config.option.sif
    if images and not getattr(config.option, "hosts", None):
        config.option.hosts = ",".join(hostspec(str(Path(path).absolute())) for path in images)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that uses an image runs once for each --sif."""
    images = [Path(path).absolute() for path in metafunc.config.option.sif]
    if images and "sif" in metafunc.fixturenames:
        metafunc.parametrize("sif", images, ids=[path.name for path in images], indirect=True, scope="session")


@pytest.fixture(scope="session")
def default_sif() -> Path | None:
    """The image where no --sif is given; a conftest.py may say which."""
    return None


@pytest.fixture(scope="session")
def sif(request: pytest.FixtureRequest, default_sif: Path | None) -> Path:
    """The image under test. A missing one fails, for a skipped test looks like a good image."""
    path: Path | None = getattr(request, "param", default_sif)
    if path is None:
        pytest.fail("no image to test: name one with --sif PATH", pytrace=False)
    if not path.is_file():
        pytest.fail(f"{path} is not there: build it with make sif, or name another with --sif PATH", pytrace=False)
    return path


@pytest.fixture(scope="session")
def sif_host(sif: Path) -> testinfra.host.Host:
    """testinfra's host for the image under test."""
    return testinfra.get_host(hostspec(str(sif)))
