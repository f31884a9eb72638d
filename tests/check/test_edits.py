from __future__ import annotations

import pytest
import yaml

from sifkit.check.edits import diff_of, edited
from sifkit.check.rule import Edit

TEXT = """\
# A recipe.
stage: sft  # the stage
lerning_rate: 1e-4
lora_target: [q_proj,
  v_proj]
system: |
  Be kind.
  Be short.
empty:
last: 'q'  # the end
"""


def changed_lines(before: str, after: str) -> list[str]:
    lines = diff_of(before, after, "train.yaml").splitlines()[2:]
    return [line for line in lines if line.startswith(("+", "-"))]


def test_a_value_changes_where_it_stands_and_its_comment_stays() -> None:
    after = edited(TEXT, [Edit("stage", "dpo")])
    assert changed_lines(TEXT, after) == ["-stage: sft  # the stage", "+stage: dpo  # the stage"]


def test_a_key_is_renamed_and_its_value_changed_at_once() -> None:
    after = edited(TEXT, [Edit("lerning_rate", "1.0e-4", rename="learning_rate")])
    assert changed_lines(TEXT, after) == ["-lerning_rate: 1e-4", "+learning_rate: 1.0e-4"]


@pytest.mark.parametrize("key", ["lora_target", "system", "last", "empty", "stage"])
def test_a_removed_key_takes_its_lines_and_no_others(key: str) -> None:
    after = edited(TEXT, [Edit(key)])
    values = yaml.safe_load(TEXT)
    del values[key]
    assert yaml.safe_load(after) == values
    assert all(line in TEXT for line in after.splitlines())
    assert "# A recipe." in after


def test_a_block_is_replaced_by_one_line() -> None:
    after = edited(TEXT, [Edit("system", "null")])
    assert yaml.safe_load(after) == {**yaml.safe_load(TEXT), "system": None}


def test_an_empty_value_is_filled_in() -> None:
    assert "empty: 3\n" in edited(TEXT, [Edit("empty", "3")])


def test_a_key_that_is_not_there_is_added_at_the_end() -> None:
    assert edited("stage: sft", [Edit("report_to", "none")]) == "stage: sft\nreport_to: none\n"


def test_windows_lines_and_a_byte_order_mark_stay() -> None:
    text = "\ufeffstage: sft\r\nseed: 1 # lucky\r\n"
    after = edited(text, [Edit("stage", "dpo"), Edit("seed", "2"), Edit("report_to", "none")])
    assert after == "\ufeffstage: dpo\r\nseed: 2 # lucky\r\nreport_to: none\r\n"


def test_in_a_mapping_on_one_line_values_change_but_nothing_is_added_or_removed() -> None:
    after = edited("{stage: sft, seed: 1}\n", [Edit("stage", "dpo"), Edit("seed"), Edit("report_to", "none")])
    assert after == "{stage: dpo, seed: 1}\n"


def test_of_two_edits_of_a_key_the_first_is_made() -> None:
    assert edited("seed: 1\n", [Edit("seed", "2"), Edit("seed", "3")]) == "seed: 2\n"


def test_letters_beyond_ascii_do_not_move_the_marks() -> None:
    text = "# 日本語の説明 🎌\nsystem: 日本語\nstage: sft\n"
    assert edited(text, [Edit("stage", "dpo")]) == "# 日本語の説明 🎌\nsystem: 日本語\nstage: dpo\n"


def test_what_follows_a_block_stays() -> None:
    text = "a:\n  - x\n  - y  # why\n\n# about b\nb: |\n  text\n\n# the end\n"
    assert edited(text, [Edit("a", "1"), Edit("b", "2")]) == "a: 1  # why\n\n# about b\nb: 2\n\n# the end\n"


def test_an_alias_and_what_it_stands_for_are_left_alone() -> None:
    text = "a: &x 1\nb: *x\nc: [*x]\n"
    assert edited(text, [Edit("a", "7"), Edit("b", "8"), Edit("a", "9", rename="d")]) == text
    assert edited(text, [Edit("b", rename="d")]) == text.replace("b:", "d:")
    assert edited(text, [Edit("c", "8")]) == "a: &x 1\nb: *x\nc: 8\n"
