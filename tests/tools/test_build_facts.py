"""What an image holds, written into it at build with a fake Apptainer: in which order, and when something fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.errors import Exit
from sifkit.sif import OBJECT_NAME, read_object
from tests.check.test_image_facts import ANSWER
from tests.conftest import FakeTool
from tests.tools.test_build_fake import FAKE_APPTAINER, build, calls, home
from tests.tools.test_explain_cli import ELF

__all__ = ["home"]  # a fixture

ANSWER_FACTS = """
    */sifkit/facts.py*|*/facts.json)
        work=$(printf '%s\\n' "$@" | sed -n 's/^\\(.*\\):\\/sifkit\\/work$/\\1/p')
        cp "$HOME/answer.json" "$work/facts.json"
        ;;
    *) exit 1 ;;
"""


def answering(home: Path, fake_tool: FakeTool) -> None:
    (home / "answer.json").write_text(json.dumps({**ANSWER, "elf": ELF}))
    fake_tool("apptainer", FAKE_APPTAINER.replace("    *) exit 1 ;;\n", ANSWER_FACTS.lstrip("\n")))


def test_the_finished_image_is_asked_and_its_answer_added(project: Path, home: Path, fake_tool: FakeTool) -> None:
    answering(home, fake_tool)
    assert build(project) == Exit.OK
    made = [call for call in calls(home) if call != "--version"]
    assert made[:3] == ["build", "exec", "build"]
    assert sorted(made[3:]) == ["exec", "test"]
    added = read_object(project / "images" / "example.sif", OBJECT_NAME)
    assert added is not None
    assert json.loads(added)["packages"] == ANSWER["packages"]
    assert set(json.loads((project / "images" / "example.json").read_text())["seconds"]) == {
        "base",
        "install",
        "layers",
        "join",
        "test",
    }


def test_an_image_that_does_not_answer_is_not_lost(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("apptainer", FAKE_APPTAINER.replace("    *) exit 1", '    *) echo "no python3 here" >&2; exit 127'))
    assert build(project) == Exit.OK
    assert (project / "images" / "example.sif").is_file()
    said = " ".join(capsys.readouterr().err.split())
    assert "example: what it holds is not written into it" in said
    assert "no python3 here" in said
    assert read_object(project / "images" / "example.sif", OBJECT_NAME) is None
