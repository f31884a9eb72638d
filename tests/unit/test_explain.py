"""`sifkit explain`: a YAML's keys beside the arguments of a LLaMA-Factory; what does not fit is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sifkit.check.facts import Argument, ImageFacts
from sifkit.errors import UsageError
from sifkit.explain import Explained, default_text, explain, search, shortened
from sifkit.yamlfile import MAX_BYTES, load_entries, parse_entries
from tests.check.good import IMAGE


def argument(name: str, type_: str, default: object = None, choices: tuple[str, ...] = (), help_: str = "") -> Argument:
    return Argument(name, "TrainingArguments", "x.TrainingArguments", type_, help_, False, default, choices)


KNOWN = replace(
    IMAGE,
    llamafactory="0.9.5",
    arguments=(
        argument("learning_rate", "float", 5e-5, help_="The initial learning rate."),
        argument("save_strategy", "str", "steps", ("no", "steps", "epoch")),
        argument("max_steps", "int", -1),
        argument("max_samples", "int | null"),
        argument("bf16", "bool", False),
        argument("dataset", "str | null"),
        argument("deepspeed", "dict | str | null"),
        argument("warmup_ratio", "float | null", help_="Linear warmup up to the learning rate."),
    ),
    derived=frozenset({"compute_dtype"}),
)


def problem(text: str, known: ImageFacts = KNOWN) -> str | None:
    (row,) = explain(parse_entries(text, "x.yaml"), known)
    return row.problem


# ------------------------------------------------------------------ judging


@pytest.mark.parametrize(
    "text",
    [
        "learning_rate: 1.0e-4",
        "learning_rate: 1e-4",
        "learning_rate: 1",
        'save_strategy: "no"',
        "max_steps: 6",
        "max_steps: 6.0",
        "max_samples: null",
        "bf16: true",
        "dataset: identity,alpaca_en_demo",
        "dataset: [identity, alpaca]",
        "dataset: 2024",
        "deepspeed: {stage: 3}",
    ],
)
def test_what_fits_is_no_problem(text: str) -> None:
    assert problem(text) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("learnig_rate: 1", "LLaMA-Factory 0.9.5 knows no such key, and stops at it: did you mean learning_rate?"),
        ("zzzzzz: 1", "LLaMA-Factory 0.9.5 knows no such key, and stops at it"),
        ("compute_dtype: bf16", "is derived from other keys and must not be set"),
        ("save_strategy: no", 'YAML reads no as false; write it in quotes: "no"'),
        ("save_strategy: step", "is none of its choices: did you mean steps?"),
        ("save_strategy: 7", "is none of its choices: no, steps, epoch"),
        ("max_steps: many", "is no number (found str)"),
        ("max_steps: 2.5", "is no whole number"),
        ("max_steps: true", "is no number (found bool)"),
        ("max_samples: [1]", "is no number (found tuple)"),
        ("learning_rate: ${rate}", "is not filled in: LLaMA-Factory takes it as it is written"),
        ('bf16: "false"', "is no true or false (found str): any text counts as true"),
    ],
)
def test_what_does_not_fit_is_said(text: str, said: str) -> None:
    assert problem(text) == said


def test_an_exponent_without_a_point_is_text_to_an_old_llamafactory() -> None:
    old = replace(KNOWN, llamafactory="0.9.3")
    assert problem("learning_rate: 1e-4", old) == ("is text to this LLaMA-Factory, not a number; write it as 1.0e-4")
    assert (problem("learning_rate: 1e5", old) or "").endswith("1.0e+5")


def test_keys_come_in_the_files_order_with_their_lines() -> None:
    rows = explain(parse_entries("# a recipe\n\nbf16: true\ndataset: x\n", "x.yaml"), KNOWN)
    assert rows[0] == Explained("bf16", 3, "true", True, KNOWN.argument("bf16"), None)
    assert [(row.key, row.line, row.shown) for row in rows] == [("bf16", 3, "true"), ("dataset", 4, "x")]


def test_search_finds_every_word_and_names_first() -> None:
    assert [each.name for each in search(KNOWN, "RATE learning")] == ["learning_rate", "warmup_ratio"]
    assert search(KNOWN, "no such thing") == ()


def test_long_lists_of_choices_are_shortened() -> None:
    assert shortened([str(number) for number in range(13)]) == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (13 in all)"


@pytest.mark.parametrize(
    ("default", "required", "text"),
    [(None, True, "(required)"), (None, False, "null"), ("", False, '""'), (5e-5, False, "5e-05")],
)
def test_defaults_are_shown_as_yaml_has_them(default: object, required: bool, text: str) -> None:
    assert default_text(Argument("x", "", "", "str", "", required, default, ())) == text


# ------------------------------------------------------------------ hostile files

# "Billion laughs": each list holds the one before it 99 times.
LAUGHS = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{f'*a{n - 1},' * 99}]" for n in range(1, 5))]).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"\x80\x00\xff", "not a text file"),
        (b"a: [1,\n", "not YAML"),
        (b"- a\n- b\n", "expected keys and values"),
        (b"a: 1\na: 2\n", "stands twice"),
        (b"a: !!python/name:os.system x\n", "not YAML"),
        (b"a: " + b"[" * 5000, "nested too deeply|not YAML"),
        (b"? [a]\n: 1\n", "a key must be plain text"),
        (LAUGHS, "more than"),
    ],
)
def test_what_is_no_yaml_of_keys_is_refused(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=match):
        load_entries(path)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UsageError, match="are no spec"):
        load_entries(path)


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match="are no spec"):
        load_entries(Path("/dev/zero"))


def test_an_empty_file_has_no_keys(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("# nothing\n")
    assert load_entries(tmp_path / "x.yaml") == ()
