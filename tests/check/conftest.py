"""The ground on which failures are planted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.check.planting import Ground, make_ground


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ground:
    return make_ground(tmp_path, monkeypatch, lambda: capsys.readouterr().out)
