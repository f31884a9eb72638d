from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import Facts
from sifkit.check.places import IN_CHECKOUT
from sifkit.check.rule import all_rules, apply
from sifkit.launch import IN_CHECKOUT as LAUNCHED_IN
from tests.check import good
from tests.check.checkout_tree import ALPACA, Tree, make_tree, one


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def test_rules_and_launches_have_the_checkout_at_the_same_place() -> None:
    assert str(IN_CHECKOUT) == LAUNCHED_IN


def linked(tree: Tree, tmp_path: Path) -> Path:
    far = tmp_path / "far"
    far.mkdir()
    (far / "mine.json").write_text(json.dumps(ALPACA))
    (tree.root / "data/mine.json").symlink_to(far / "mine.json")
    tree.register(mine={"file_name": "mine.json"})
    return far


def elsewhere(facts: Facts) -> Facts:
    """The container has no /tmp of this host, where these tests are."""
    config = {**good.HOST.apptainer_config, "mount tmp": "no"}
    return replace(facts, host=replace(good.HOST, apptainer_config=config))


def test_a_link_that_leaves_the_binds_is_found(tree: Tree, tmp_path: Path) -> None:
    far = linked(tree, tmp_path)
    facts = elsewhere(tree.look(dataset="mine"))
    found = one(facts, "DAT008")
    assert (
        found.message == f"dataset: data/mine.json of mine leads to {far}/mine.json, which the container does not have"
    )
    assert found.fix == f"bind it: binds: [{far}] in the site file; or copy it"
    bound = replace(facts, site=replace(good.SITE, binds=(f"{far}:{far}:ro",)))
    assert good.found(bound, "DAT008") == ()


def test_links_below_what_apptainer_mounts_pass(tree: Tree, tmp_path: Path) -> None:
    linked(tree, tmp_path)
    facts = tree.look(dataset="mine")
    at_home = replace(good.HOST, home=str(tmp_path), apptainer_config={"mount tmp": "no"})
    assert good.found(replace(facts, host=at_home), "DAT008") == ()


def test_an_absolute_file_of_dataset_info_is_not_bound(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "far.json").write_text(json.dumps(ALPACA))
    tree.register(mine={"file_name": str(tmp_path / "far.json")})
    assert "which the container does not have" in one(elsewhere(tree.look(dataset="mine")), "DAT008").message


def test_links_are_not_judged_where_the_binds_are_not_known(tree: Tree, tmp_path: Path) -> None:
    linked(tree, tmp_path)
    facts = elsewhere(tree.look(dataset="mine"))
    for unknown in (replace(facts, job=replace(good.JOB, ours=False)), replace(facts, host=None)):
        findings, skipped = apply([all_rules()["DAT008"]], unknown)
        assert (findings, len(skipped)) == ((), 1)


DEEPSPEED = {"train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}


def test_a_deepspeed_file_that_is_not_there_is_found(tree: Tree) -> None:
    facts = tree.look(deepspeed="ds.json")
    assert one(facts, "DAT009").message == f"deepspeed: {tree.root}/ds.json is not there"
    tree.write("ds.json", DEEPSPEED)
    assert good.found(tree.look(deepspeed="ds.json"), "DAT009") == ()
    tree.write("ds.json", "[]")
    assert "holds no JSON object" in one(tree.look(deepspeed="ds.json"), "DAT009").message


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"bf16": {"enabled": False}}, "ds.json says bf16.enabled: false, and bf16 is true"),
        (
            {"train_micro_batch_size_per_gpu": 4},
            "train_micro_batch_size_per_gpu: 4, and per_device_train_batch_size is 1",
        ),
        ({"optimizer": {"params": {"lr": 1.0}}}, "optimizer.params.lr: 1.0, and learning_rate is 0.0001"),
        ({"train_batch_size": 64}, "ds.json says train_batch_size: 64, and this run has 8"),
    ],
)
def test_a_deepspeed_file_that_says_otherwise_is_found(tree: Tree, says: dict[str, Any], message: str) -> None:
    tree.write("ds.json", {**DEEPSPEED, **says})
    assert message in one(tree.look(deepspeed="ds.json"), "DAT009").message


def test_a_path_that_leaves_the_checkout_is_found_and_mended(tree: Tree) -> None:
    found = one(tree.look(output_dir="../saves"), "DAT013")
    assert found.fix == f"output_dir: {tree.root.parent}/saves"
    assert good.found(tree.look(output_dir=f"{tree.root.parent}/saves"), "DAT013") == ()
    assert good.found(tree.look(output_dir="saves/../other"), "DAT013") == ()


def test_a_model_below_mnt_is_hidden_by_the_checkout(tree: Tree) -> None:
    facts = tree.look(model_name_or_path="/mnt/models/llama")
    found = one(facts, "DAT014")
    assert "in the container /mnt is the checkout, which has no models/llama" in found.message
    assert found.fix.startswith("bind it elsewhere, binds: [/mnt/models:/models] in the site file")
    assert good.found(facts, "DAT006") == ()
    assert good.found(tree.look(deepspeed="/mnt/data/dataset_info.json"), "DAT014") == ()


@pytest.mark.parametrize(
    ("bind", "found"),
    [("$PWD:/mnt", True), ("$PWD:/mnt:ro", True), ("/mnt/nfs:/mnt/nfs", False), ("/data:/mnt/data", False)],
)
def test_in_a_job_file_of_the_users_own_mnt_is_the_checkout_only_where_it_says_so(
    tree: Tree, bind: str, found: bool
) -> None:
    script = f"#!/bin/bash\ncd LLaMA-Factory\napptainer exec --bind {bind} x.sif llamafactory-cli train x.yaml\n"
    job = replace(good.JOB, ours=False, script=script, script_path=Path("job.sh"))
    facts = replace(tree.look(model_name_or_path="/mnt/nfs/llama", output_dir="../saves"), job=job)
    assert {each.code for each in good.found(facts, "DAT013", "DAT014")} == ({"DAT013", "DAT014"} if found else set())


@pytest.mark.parametrize("key", ["output_dir", "tokenized_path"])
def test_writing_into_the_shared_checkout_is_found(tree: Tree, key: str) -> None:
    changes: dict[str, Any] = {"output_dir": "/out", key: "saves/x"}
    assert one(tree.look(shared=True, **changes), "DAT016").key == key
    assert good.found(tree.look(shared=True, output_dir="/out"), "DAT016") == ()
    assert good.found(tree.look(**changes), "DAT016") == ()
