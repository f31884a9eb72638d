"""Labels are read through spython, from whatever program Apptainer is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit.apptainer import Apptainer, Privileges
from sifkit.errors import HostError
from sifkit.run import Runner
from tests.conftest import FakeTool

ANSWER = '{"data": {"attributes": {"labels": {"org.sifkit.llamafactory": "0.9.5"}}}, "type": "container"}'


def test_no_program_named_singularity_is_needed(fake_tool: FakeTool, runner: Runner, tmp_path: Path) -> None:
    fake_tool("singularity", "echo wrong program >&2; exit 1")
    program = fake_tool("apptainer", f"echo '{ANSWER}'")
    apptainer = Apptainer(runner, str(program), Privileges())
    assert apptainer.labels(tmp_path / "x.sif") == {"org.sifkit.llamafactory": "0.9.5"}


def test_a_file_that_is_no_image_is_said(fake_tool: FakeTool, runner: Runner, tmp_path: Path) -> None:
    program = fake_tool("apptainer", "echo 'FATAL: not a SIF' >&2; exit 255")
    with pytest.raises(HostError, match="is not an image that Apptainer can read"):
        Apptainer(runner, str(program), Privileges()).labels(tmp_path / "x.sif")
