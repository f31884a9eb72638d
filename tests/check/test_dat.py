from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import Kind
from sifkit.check.rule import Severity, all_rules, apply
from tests.check import good
from tests.check.checkout_tree import ALPACA, Tree, changed, make_tree, one, register_rows

PAIRS = [{"instruction": "a", "chosen": "b", "rejected": "c"}]
PAIRED = {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}}
TALK: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
TALKED = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def test_a_good_config_in_a_good_checkout_has_no_finding(tree: Tree) -> None:
    rules = [rule for rule in all_rules().values() if rule.family in ("DAT", "SLM", "DST")]
    assert apply(rules, tree.look())[0] == ()


def test_the_good_facts_have_no_finding() -> None:
    rules = [rule for rule in all_rules().values() if rule.family == "DAT"]
    assert apply(rules, good.facts())[0] == ()


# ---------------------------------------------------------------------------------------------- datasets


def test_a_missing_dataset_info_is_found(tree: Tree) -> None:
    found = one(tree.look(dataset_dir="dta"), "DAT001")
    assert found.message == f"{tree.root}/dta/dataset_info.json is not there, so alpaca_en_demo cannot be found"
    assert (found.severity, found.line) == (Severity.ERROR, tree.look(dataset_dir="dta").config.line("dataset_dir"))
    assert found.fix == "name the directory that holds it: dataset_dir: data"
    assert good.found(tree.look(dataset_dir="data"), "DAT001") == ()


def test_a_dataset_info_that_does_not_parse_is_found_at_its_line(tree: Tree) -> None:
    path = tree.write("data/dataset_info.json", "{\n'a': 1}")
    found = one(tree.look(), "DAT001")
    assert (found.file, found.line) == (path, 2)


def test_tokenized_data_makes_every_dataset_superfluous(tree: Tree) -> None:
    tree.write("tokens/dataset_dict.json", {})
    assert good.found(tree.look(dataset="nothing", tokenized_path="tokens"), "DAT001", "DAT002") == ()


def test_a_misspelt_dataset_is_found_and_mended(tree: Tree) -> None:
    facts = tree.look(dataset="alpaca_en_dmo, alpaca_en_demo")
    found = one(facts, "DAT002")
    assert (found.fix, found.line) == ("did you mean alpaca_en_demo?", facts.config.line("dataset"))
    assert found.edit is not None
    assert found.edit.value == "alpaca_en_demo,alpaca_en_demo"
    again = changed(facts, found).config.values["dataset"]
    assert good.found(tree.look(dataset=again), "DAT002") == ()


def test_an_unknown_dataset_is_found_without_a_guess(tree: Tree) -> None:
    found = one(tree.look(dataset="qqq"), "DAT002")
    assert (found.edit, found.fix) == (None, 'add an entry to it: "qqq": {"file_name": "FILE"}')


def test_a_comma_too_much_is_taken_out(tree: Tree) -> None:
    found = one(tree.look(dataset="alpaca_en_demo,"), "DAT002")
    assert found.edit is not None
    assert found.edit.value == "alpaca_en_demo"


def test_a_missing_file_is_found(tree: Tree) -> None:
    tree.register(mine={"file_name": "gone.json"})
    found = one(tree.look(dataset="mine"), "DAT003")
    assert "mine is data/gone.json by" in found.message
    tree.write("data/gone.json", ALPACA)
    assert good.found(tree.look(dataset="mine"), "DAT003") == ()


def test_an_entry_that_names_no_data_is_found(tree: Tree) -> None:
    tree.register(mine={"columns": {}})
    assert one(tree.look(dataset="mine"), "DAT003").cause == "KeyError: 'file_name'"


def test_data_of_a_hub_is_no_missing_file(tree: Tree) -> None:
    tree.register(mine={"hf_hub_url": "org/data"})
    assert good.found(tree.look(dataset="mine"), "DAT002", "DAT003", "DAT005") == ()


@pytest.mark.parametrize("stage", ["sft", "pt", "kto", "ppo"])
def test_pairs_are_refused_by_stages_without_them(tree: Tree, stage: str) -> None:
    register_rows(tree, PAIRS, **PAIRED)
    found = one(tree.look(dataset="mine", stage=stage), "DAT004")
    assert found.message == f"dataset: mine has pairs (ranking: true), which stage {stage} refuses"
    assert good.found(tree.look(dataset="mine", stage="dpo"), "DAT004") == ()


@pytest.mark.parametrize("stage", ["dpo", "rm"])
def test_stages_of_pairs_refuse_other_data(tree: Tree, stage: str) -> None:
    facts = tree.look(stage=stage)
    found = one(facts, "DAT004")
    assert f"has no pairs (ranking: true), which stage {stage} trains on" in found.message
    assert found.line == facts.config.line("dataset")
    assert good.found(tree.look(stage="sft"), "DAT004") == ()


def test_pairs_are_asked_of_online_datasets_too(tree: Tree) -> None:
    assert one(tree.look(stage="dpo", dataset_dir="ONLINE"), "DAT004").key == "dataset_dir"


def test_kto_without_a_tag_drops_every_row(tree: Tree) -> None:
    assert one(tree.look(stage="kto"), "DAT004").severity is Severity.ERROR
    register_rows(tree, [{"m": "a", "label": True}], columns={"prompt": "m", "response": "m", "kto_tag": "label"})
    assert good.found(tree.look(stage="kto", dataset="mine"), "DAT004") == ()
    mixed = one(tree.look(stage="kto", dataset="mine,alpaca_en_demo"), "DAT004")
    assert mixed.severity is Severity.WARNING


def test_texts_without_answers_are_for_pretraining_alone(tree: Tree) -> None:
    register_rows(tree, [{"text": "a"}], columns={"prompt": "text"})
    assert one(tree.look(dataset="mine"), "DAT004").fix.startswith("train with stage: pt")
    assert good.found(tree.look(dataset="mine", stage="pt"), "DAT004") == ()


def test_a_tag_that_is_no_truth_value_is_none(tree: Tree) -> None:
    register_rows(
        tree, [{**ALPACA[0], "t": "good"}], columns={"prompt": "instruction", "response": "output", "kto_tag": "t"}
    )
    assert "column t is neither true nor false" in one(tree.look(dataset="mine", stage="kto"), "DAT004").message
    assert good.found(tree.look(dataset="mine"), "DAT004") == ()


def test_a_split_that_a_file_does_not_have_is_found(tree: Tree) -> None:
    register_rows(tree, ALPACA, split="test")
    assert one(tree.look(dataset="mine"), "DAT026").fix == 'remove "split" from its entry'
    register_rows(tree, ALPACA, split="train[:50%]")
    assert good.found(tree.look(dataset="mine"), "DAT026") == ()


def test_rows_whose_turns_do_not_alternate_are_found(tree: Tree) -> None:
    broken = [{"messages": TALK[0]["messages"][:1]}]
    register_rows(tree, TALK + broken, **TALKED)
    found = one(tree.look(dataset="mine"), "DAT025")
    assert (found.severity, found.message[:39]) == (Severity.WARNING, "dataset: 1 of 2 rows of mine are droppe")
    assert one(tree.look(dataset="mine", stage="pt"), "DAT025").severity is Severity.ERROR
    register_rows(tree, broken, **TALKED)
    assert one(tree.look(dataset="mine"), "DAT025").severity is Severity.ERROR
    register_rows(tree, TALK, **TALKED)
    assert good.found(tree.look(dataset="mine"), "DAT025") == ()


@pytest.mark.parametrize(
    ("rows", "entry", "said"),
    [
        ([{**ALPACA[0], "instruction": 3}], {}, "column instruction is a int, and no text"),
        ([{"messages": "hello"}], TALKED, "column messages is no list of messages"),
        ([{"messages": [{"role": "user", "content": 1}, *TALK[0]["messages"][1:]]}], TALKED, "content is no text"),
        (
            [{**ALPACA[0], "history": ["abc"]}],
            {"columns": {"prompt": "instruction", "response": "output", "history": "history"}},
            "column history is no list of pairs",
        ),
    ],
)
def test_values_of_another_type_are_found(tree: Tree, rows: object, entry: dict[str, Any], said: str) -> None:
    register_rows(tree, rows, **entry)
    assert said in one(tree.look(dataset="mine"), "DAT005").message


def test_pairs_without_named_columns_are_found(tree: Tree) -> None:
    register_rows(tree, PAIRS, ranking=True, columns={"prompt": "instruction"})
    found = one(tree.look(dataset="mine", stage="dpo"), "DAT005")
    assert found.fix == 'name them: "columns": {"chosen": "COLUMN", "rejected": "COLUMN"}'


def test_columns_that_no_row_has_are_found(tree: Tree) -> None:
    register_rows(tree, [{"question": "a", "output": "b"}])
    found = one(tree.look(dataset="mine"), "DAT005")
    assert found.message == ("dataset: mine has no column instruction (prompt), input (query); it has output, question")
    assert found.fix == 'name the columns in its entry: "columns": {"prompt": "COLUMN", "query": "COLUMN"}'
    register_rows(tree, [{"question": "a", "output": "b"}], columns={"prompt": "question", "response": "output"})
    assert good.found(tree.look(dataset="mine"), "DAT005") == ()


def test_a_column_that_only_some_rows_have_is_there(tree: Tree) -> None:
    register_rows(tree, [{"instruction": "a", "output": "b"}, {"instruction": "a", "input": "c", "output": "b"}])
    assert good.found(tree.look(dataset="mine"), "DAT005") == ()


def test_messages_without_formatting_are_told_how_to_register(tree: Tree) -> None:
    register_rows(tree, TALK)
    found = one(tree.look(dataset="mine"), "DAT005")
    assert found.fix == 'write into its entry: "formatting": "sharegpt", "columns": {"messages": "messages"}'


def test_tags_that_messages_do_not_have_are_found(tree: Tree) -> None:
    register_rows(tree, TALK, formatting="sharegpt", columns={"messages": "messages"})
    found = one(tree.look(dataset="mine"), "DAT005")
    assert found.message == "dataset: messages of mine have no from and value; they have content, role"
    register_rows(tree, TALK, **TALKED)
    assert good.found(tree.look(dataset="mine"), "DAT005") == ()


def test_speakers_that_no_tag_names_are_found(tree: Tree) -> None:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "human", "assistant_tag": "gpt"}
    register_rows(tree, TALK, **{**TALKED, "tags": tags})
    found = one(tree.look(dataset="mine"), "DAT005")
    assert "who speaks in mine (assistant, user)" in found.message


def test_an_unknown_formatting_is_found(tree: Tree) -> None:
    register_rows(tree, ALPACA, formatting="chatml")
    assert one(tree.look(dataset="mine"), "DAT005").fix == "write one of alpaca, sharegpt, openai into its entry"


def test_a_malformed_file_is_found_at_its_line(tree: Tree) -> None:
    register_rows(tree, '[{"instruction": "a"},\n{"instruction": }]')
    found = one(tree.look(dataset="mine"), "DAT010")
    assert (found.file, found.line) == (tree.root / "data/mine.json", 2)
    register_rows(tree, ALPACA)
    assert good.found(tree.look(dataset="mine"), "DAT010") == ()


def test_missing_images_are_found(tree: Tree) -> None:
    register_rows(tree, [{**ALPACA[0], "images": ["a.jpg"]}], columns={"prompt": "instruction", "images": "images"})
    assert one(tree.look(dataset="mine"), "DAT019").message == "dataset: a.jpg of mine is not in data"
    tree.write("pictures/a.jpg", "x")
    assert good.found(tree.look(dataset="mine", media_dir="pictures"), "DAT019") == ()


def test_a_stream_cannot_be_saved(tree: Tree) -> None:
    facts = tree.look(streaming=True, tokenized_path="tokens")
    assert one(facts, "DAT020").line == facts.config.line("streaming")
    assert good.found(tree.look(streaming=True), "DAT020") == ()
    tree.write("tokens/dataset_dict.json", {})
    assert good.found(tree.look(streaming=True, tokenized_path="tokens"), "DAT020") == ()


def test_a_stream_of_files_needs_workers_and_is_mended(tree: Tree) -> None:
    facts = tree.look(streaming=True)
    found = one(facts, "DAT027")
    assert (found.line, found.fix) == (facts.config.line("streaming"), "dataloader_num_workers: 1")
    assert good.found(tree.look(streaming=True, dataloader_num_workers=1), "DAT027") == ()
    tree.register(far={"hf_hub_url": "org/far"})
    assert good.found(tree.look(streaming=True, dataset="far"), "DAT027") == ()


def test_one_rule_speaks_of_a_dataset_that_cannot_be_read(tree: Tree) -> None:
    codes = [rule.code for rule in all_rules().values() if rule.family == "DAT"]
    cases: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("DAT003", {"columns": {"prompt": "instruction"}}, {}),
        ("DAT005", {"file_name": "mine.json", "columns": {"prompt": "question", "response": "answer"}}, {}),
        ("DAT005", {"file_name": "talk.json", "formatting": "sharegpt", "columns": {"messages": "messages"}}, {}),
        ("DAT005", {"file_name": "mine.json", "ranking": True, "columns": {"prompt": "a"}}, {"stage": "dpo"}),
        ("DAT013", {"file_name": "mine.json"}, {"dataset_dir": "../none"}),
    ]
    tree.write("data/mine.json", [{"a": "b"}])
    tree.write("data/talk.json", TALK)
    for code, entry, changes in cases:
        tree.register(mine=entry)
        assert [each.code for each in good.found(tree.look(dataset="mine", **changes), *codes)] == [code]


def test_rules_of_the_checkout_need_it() -> None:
    rules = [rule for rule in all_rules().values() if rule.family == "DAT"]
    without = {rule.code for rule in rules if Kind.CHECKOUT not in rule.needs}
    assert without == {"DAT012", "DAT013"}
