"""What an image holds, written into it at build with a fake Apptainer: in which order, and when something fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.errors import Exit
from tests.check.test_image_facts import ANSWER
from tests.conftest import FakeTool
from tests.tools.test_build_fake import FAKE_APPTAINER, build, calls, home
from tests.tools.test_explain_cli import ELF

__all__ = ["home"]  # a fixture

ANSWERS = """
exec)
    work=$(printf '%s\\n' "$@" | sed -n 's/^\\(.*\\):\\/sifkit\\/work$/\\1/p')
    cp "$HOME/answer.json" "$work/facts.json"
    ;;
sif) {sif} ;;
esac
"""


def answering(home: Path, fake_tool: FakeTool, sif: str) -> None:
    (home / "answer.json").write_text(json.dumps({**ANSWER, "elf": ELF}))
    fake_tool("apptainer", FAKE_APPTAINER.removesuffix("esac\n") + ANSWERS.replace("{sif}", sif).lstrip())


def test_the_finished_image_is_asked_and_its_answer_added(project: Path, home: Path, fake_tool: FakeTool) -> None:
    answering(home, fake_tool, 'for last; do :; done; cp "$last" "$HOME/added.json"')
    assert build(project) == Exit.OK
    assert [call for call in calls(home) if call != "--version"] == ["build", "build", "test", "exec", "sif"]
    assert json.loads((home / "added.json").read_text())["packages"] == ANSWER["packages"]
    added = next(line for line in (home / "calls").read_text().splitlines() if line.startswith("sif "))
    assert added.startswith("sif add --datatype 6 --groupid 1 --filename sifkit-facts.json ")
    assert "facts" in json.loads((project / "images" / "example.json").read_text())["seconds"]


def test_an_image_that_does_not_answer_is_not_lost(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("apptainer", FAKE_APPTAINER.replace("test)", 'exec) echo "no python3 here" >&2; exit 127 ;;\ntest)'))
    assert build(project) == Exit.OK
    assert (project / "images" / "example.sif").is_file()
    said = " ".join(capsys.readouterr().err.split())
    assert "example: what it holds is not written into it" in said
    assert "no python3 here" in said
    assert "sif" not in calls(home)


def test_an_image_that_cannot_be_written_to_is_none(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    answering(home, fake_tool, 'echo "no space left on device" >&2; exit 255')
    assert build(project) == Exit.PROGRAM
    assert not (project / "images" / "example.sif").exists()
    assert "no space left on device" in capsys.readouterr().err
