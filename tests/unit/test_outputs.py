"""`sifkit outputs`: the curve, what a person and a machine see, exit codes, and names that a terminal must not obey."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sifkit.cli import main
from sifkit.commands.outputs import size_text
from sifkit.errors import Exit
from sifkit.printable import printable
from sifkit.rundir.curve import can_show, draw
from sifkit.rundir.trainlog import Point
from tests.unit.run_dirs import rows, safetensors, write, write_finished, write_unfinished

FALLING = [Point(step, 10.0 - step) for step in range(1, 9)]


def test_a_falling_curve_falls() -> None:
    assert draw(FALLING, 24, 4, unicode=False) == [
        "9 |*****",
        "  |     *****",
        "  |          ******",
        "2 |                *****",
        "   1                   8",
    ]


def test_the_dots_show_the_same_curve() -> None:
    assert draw(FALLING, 24, 4, unicode=True) == [
        "9 ┤⠉⠒⠢⠤⣀⡀",
        "  ┤     ⠈⠉⠒⠢⢄⡀",
        "  ┤          ⠈⠑⠢⠤⣀⡀",
        "2 ┤               ⠈⠉⠒⠢⠤⣀",
        "   1                   8",
    ]


def test_one_point_and_none_are_no_trouble() -> None:
    assert draw([], 40, 4, unicode=True) == []
    assert draw([Point(1, math.nan)], 40, 4, unicode=True) == []
    assert draw([Point(5, 1.0)], 40, 2, unicode=False)[-1].split() == ["5"]


@given(
    st.lists(st.tuples(st.integers(0, 2**62), st.floats(allow_nan=True, allow_infinity=True)), max_size=40),
    st.integers(24, 200),
    st.integers(2, 12),
    st.booleans(),
)
def test_any_values_are_drawn_in_the_room_there_is(
    values: list[tuple[int, float]], width: int, height: int, unicode: bool
) -> None:
    points = [Point(step, value) for step, value in sorted(values, key=lambda each: each[0])]
    lines = draw(points, width, height, unicode=unicode)
    assert lines == [] or len(lines) == height + 1
    assert all(len(line) <= max(width, 64) for line in lines[:-1])


@pytest.mark.parametrize(("encoding", "can"), [("utf-8", True), ("ascii", False), ("latin-1", False), (None, False)])
def test_ascii_where_the_terminal_has_no_dots(encoding: str | None, can: bool) -> None:
    assert can_show(encoding) is can


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb", "a\\nb"),
        ("a\udcffb", "a\\xffb"),
        ("\u202egpj", "\\u202egpj"),
        ("é", "é"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize(("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (4_758_392_832, "4.8 GB")])
def test_sizes(size: int, text: str) -> None:
    assert size_text(size) == text


# ------------------------------------------------------------------ the command


def test_a_finished_run_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outputs", str(write_finished(tmp_path, best_model_checkpoint="/x/checkpoint-3"))]) == Exit.OK
    said = capsys.readouterr().out
    assert "lora, sft or pt; finished at step 6 of 6" in said
    assert "loss 6.99 → 6.94, lowest 6.94 at step 6" in said
    assert "training took 0:01:01 (3.5 samples/s); mean loss 6.9" in said
    lines = {line.split()[0]: " ".join(line.split()) for line in said.splitlines() if line.strip()}
    assert lines["checkpoint-3/"].endswith("complete, the best")
    assert lines["training_args.bin"].endswith("a pickle, never loaded by sifkit whole")
    assert "checkpoint-3/optimizer.pt" not in lines


def test_all_lists_the_files_of_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outputs", "--all", str(write_finished(tmp_path))]) == Exit.OK
    assert "checkpoint-3/optimizer.pt" in capsys.readouterr().out


def test_an_unfinished_run_that_is_whole_is_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["outputs", str(write_unfinished(tmp_path, steps=5))]) == Exit.OK
    assert "the same command goes on from checkpoint-6" in capsys.readouterr().out


def test_damage_exits_with_one_and_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_finished(tmp_path)
    write(directory / "checkpoint-3" / "adapter_model.safetensors", safetensors()[:-1])
    assert main(["outputs", str(directory)]) == Exit.PROBLEM
    said = capsys.readouterr().out
    assert "checkpoint-3/adapter_model.safetensors" in said
    assert "incomplete: adapter_model.safetensors is cut off" in said


def test_json_holds_everything_and_no_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_unfinished(tmp_path, steps=5)
    write(directory / "trainer_log.jsonl", rows(range(1, 5)) + rows([5], loss=math.nan))
    assert main(["outputs", "--json", str(directory)]) == Exit.OK
    said = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(word))
    assert (said["finished"], said["steps"]["current"], said["steps"]["total"]) == (False, 5, 6)
    assert said["resume_from"] == "checkpoint-6"
    assert said["loss"]["last"] == {"step": 5, "value": None}
    assert [each["status"] for each in said["checkpoints"]] == ["complete", "complete"]
    assert {file["name"] for file in said["files"]} >= {"trainer_log.jsonl", "checkpoint-3/optimizer.pt"}


def test_hostile_names_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = write_finished(tmp_path)
    for name in ("\x1b[2J", "[red]x[/red]", "a\nb", "-rf", "\udcff"):
        write(directory / name, "x")
    assert main(["outputs", str(directory)]) == Exit.OK
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert {"\\x1b[2J", "[red]x[/red]", "a\\nb", "-rf", "\\xff"} <= {
        line.split()[0] for line in said.splitlines() if line
    }


def test_ascii_terminals_get_ascii(tmp_path: Path) -> None:
    directory = write_unfinished(tmp_path / "é", steps=5)
    argv = [sys.executable, "-m", "sifkit", "outputs", str(directory)]
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.isascii()
    assert "|*" in done.stdout
    assert "-> the same command" in done.stdout
    assert "/\\xe9: lora" in done.stdout
