"""Golden files hold whole texts. A missing one fails; only `make goldens` rewrites them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/golden; read the diff")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """`golden(name, text)` compares with tests/golden/NAME."""

    def compare(name: str, text: str) -> None:
        path = Path(__file__).parent / name
        if request.config.getoption("--update-goldens"):
            path.write_text(text)
        assert path.is_file(), f"{path} is missing: run make goldens and read it"
        assert text == path.read_text(), f"{path.name} changed: if that is meant, run make goldens and read the diff"

    return compare
