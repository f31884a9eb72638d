"""`sifkit explain` with a fake Apptainer that answers as probes/facts.py does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from tests.check.test_image_facts import ANSWER, sif_bytes
from tests.conftest import FakeTool

# What the probe says of compiled files, from which the rest of the answer is judged here.
ELF: dict[str, object] = {
    "machine": "EM_X86_64",
    "objects": [],
    "libraries": [],
    "torch": None,
    "extensions": [],
    "seconds": 0.1,
}

CONFIG = "bf16: true\nbf61: true\n"


@pytest.fixture
def image(tmp_path: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A .sif whose `apptainer exec` writes ANSWER where the probe would, and counts."""
    monkeypatch.setenv("SIFKIT_CACHE", str(tmp_path / "cache"))
    answer = tmp_path / "answer.json"
    answer.write_text(json.dumps({**ANSWER, "elf": ELF}))
    script = f"""
[ "$1" = --version ] && echo "apptainer version 1.4.5" && exit 0
echo asked >> {tmp_path}/asked
work=$(printf '%s\\n' "$@" | sed -n 's/^\\(.*\\):\\/sifkit\\/work$/\\1/p')
cp {answer} "$work/facts.json"
"""
    fake_tool("apptainer", script)
    path = tmp_path / "x.sif"
    path.write_bytes(sif_bytes(a=b"{}"))
    return path


def asked(image: Path) -> int:
    path = image.parent / "asked"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_an_unknown_key_is_a_problem_with_its_line(
    image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "train.yaml"
    config.write_text(CONFIG)
    assert main(["explain", str(config), "--image", str(image)]) == Exit.PROBLEM
    captured = capsys.readouterr()
    assert "BF16 [bool]" in captured.out
    assert f"{config}:2: bf61: LLaMA-Factory 0.9.5 knows no such key" in captured.err
    assert "did you mean bf16?" in captured.err


def test_json_has_values_and_arguments(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text("bf16: true\n")
    assert main(["explain", str(config), "--image", str(image), "--json"]) == Exit.OK
    (row,) = json.loads(capsys.readouterr().out)["keys"]
    assert (row["key"], row["line"], row["value"], row["argument"]["default"]) == ("bf16", 1, True, False)


def test_the_second_time_nothing_is_started(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [main(["explain", "--all", "--image", str(image)]) for _ in range(2)] == [Exit.OK] * 2
    assert asked(image) == 1
    image.write_bytes(sif_bytes(another=b"{}"))
    assert main(["explain", "bf16", "--image", str(image)]) == Exit.OK
    assert asked(image) == 2
    assert capsys.readouterr().out.count("BF16 [bool]") == 3


def test_searching_in_vain_is_said(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--search", "zzz", "--image", str(image)]) == Exit.USAGE
    assert "no argument holds 'zzz'" in capsys.readouterr().err


def test_a_word_that_is_neither_file_nor_key_is_said(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "bf17", "--image", str(image)]) == Exit.USAGE
    assert "did you mean bf16?" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["x.yaml", "--all"], ["--all", "--search", "x"]])
def test_one_thing_is_explained_at_a_time(image: Path, words: list[str]) -> None:
    assert main(["explain", *words, "--image", str(image)]) == Exit.USAGE
    assert asked(image) == 0


def test_no_such_image_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--all", "--image", str(tmp_path / "no.sif")]) == Exit.USAGE
    assert "no such image" in capsys.readouterr().err


def test_an_image_that_does_not_answer_is_a_failed_program(
    image: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    script = '[ "$1" = --version ] && echo "apptainer version 1.4.5" && exit 0\necho "no llamafactory here" >&2; exit 1'
    fake_tool("apptainer", script)
    assert main(["explain", "--all", "--image", str(image)]) == Exit.PROGRAM
    assert "no llamafactory here" in capsys.readouterr().err


def test_hostile_keys_are_shown_and_not_obeyed(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "train.yaml"
    config.write_text('"\\e[2J": "\\e[31m"\n"[red]": "[/red]"\n')
    assert main(["explain", str(config), "--image", str(image)]) == Exit.PROBLEM
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err
    assert "[red]" in captured.out
