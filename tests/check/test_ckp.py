"""CKP: each fault planted is found with its fix; the fix applied, it is gone; the good facts have none."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import CheckoutFacts, CheckpointFacts, DatasetFacts, Facts, HostFacts, PathFacts
from sifkit.check.rule import Edit, Finding, Severity, all_rules, apply
from tests.check.good import CHECKOUT, GIB, HOST, IMAGE, JOB, ROOT, config, facts, found

CODES = [f"CKP{number:03}" for number in range(1, 11)]
OUTPUT = ROOT / "saves/llama/lora"
REQUEUED = replace(JOB, requeue=True)


def only(of: Facts, code: str) -> Finding:
    (one,) = found(of, code)
    return one


def not_checked(of: Facts, code: str) -> str:
    (skipped,) = apply([all_rules()[code]], of)[1]
    return skipped.reason


def values(**changes: Any) -> Facts:
    return facts(config=config(**changes))


def rows(count: int, **changes: Any) -> Facts:
    """A dataset of so many rows; a step sees eight."""
    checkout = replace(CHECKOUT, datasets=(DatasetFacts("alpaca_en_demo", "dataset", {}, rows=count, mean_tokens=200),))
    return facts(config=config(**changes), checkout=checkout)


def checkpoint(step: int, *missing: str) -> CheckpointFacts:
    return CheckpointFacts(OUTPUT / f"checkpoint-{step}", step, missing)


def output(*checkpoints: CheckpointFacts, names: tuple[str, ...] = ()) -> CheckoutFacts:
    there = PathFacts("output_dir", "saves/llama/lora", OUTPUT, True, True, OUTPUT, True, names=names)
    return replace(CHECKOUT, output=there, checkpoints=checkpoints)


def room(size: int) -> HostFacts:
    return replace(HOST, places=tuple(replace(each, free=size) for each in HOST.places))


def test_good_facts_have_no_fault() -> None:
    assert found(facts(), *CODES) == ()


# ------------------------------------------------------------------ resuming


def test_a_requeued_job_that_overwrites_starts_at_step_0() -> None:
    of = replace(values(overwrite_output_dir=True), job=REQUEUED)
    one = only(of, "CKP001")
    assert (one.severity, one.line) == (Severity.ERROR, of.config.line("overwrite_output_dir"))
    assert one.edit == Edit("overwrite_output_dir", value="false")
    assert found(replace(of, config=config(overwrite_output_dir=False)), "CKP001") == ()


def test_that_a_job_overwrites_which_does_not_go_on_is_told_and_left_to_the_user() -> None:
    one = only(values(overwrite_output_dir=True), "CKP001")
    assert (one.severity, one.edit) == (Severity.INFO, None)
    assert found(replace(values(overwrite_output_dir=True), job=replace(JOB, time=None)), "CKP001") == ()


def test_the_newest_checkpoint_without_its_state_is_found() -> None:
    of = facts(checkout=output(checkpoint(10), checkpoint(30, "trainer_state.json", "scheduler.pt")))
    one = only(of, "CKP002")
    assert one.severity is Severity.ERROR
    assert one.fix == f"set it aside: mv {OUTPUT}/checkpoint-30 {OUTPUT}/incomplete-checkpoint-30"
    assert found(replace(of, checkout=output(checkpoint(10))), "CKP002") == ()


def test_an_older_incomplete_checkpoint_does_not_matter() -> None:
    assert found(facts(checkout=output(checkpoint(10, "trainer_state.json"), checkpoint(30))), "CKP002") == ()


def test_a_checkpoint_without_optimizer_is_a_warning() -> None:
    assert only(facts(checkout=output(checkpoint(30, "the optimizer"))), "CKP002").severity is Severity.WARNING


@pytest.mark.parametrize(
    "changes",
    [
        {"overwrite_output_dir": True},
        {"resume_from_checkpoint": "saves/other/checkpoint-5"},
        {"stage": "rm", "finetuning_type": "full"},
        {"do_train": False},
    ],
)
def test_a_run_that_looks_for_no_checkpoint_may_find_an_incomplete_one(changes: dict[str, Any]) -> None:
    of = replace(values(**changes), checkout=output(checkpoint(30, "trainer_state.json")))
    assert found(of, "CKP002") == ()


def test_our_job_file_sets_incomplete_checkpoints_aside() -> None:
    of = facts(checkout=output(checkpoint(30, "trainer_state.json")), job=REQUEUED)
    assert found(of, "CKP002") == ()
    assert only(replace(of, job=replace(REQUEUED, ours=False)), "CKP002").severity is Severity.ERROR


def test_weights_without_a_checkpoint_stop_the_run() -> None:
    of = facts(checkout=output(names=("README.md", "adapter_model.safetensors")))
    one = only(of, "CKP004")
    assert "adapter_model.safetensors" in one.message
    assert found(replace(of, config=config(overwrite_output_dir=True)), "CKP004") == ()
    assert found(replace(of, checkout=output(checkpoint(5), names=("adapter_model.safetensors",))), "CKP004") == ()
    assert found(replace(of, checkout=output(names=("README.md",))), "CKP004") == ()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"save_only_model": True}, "save_only_model"),
        ({"resume_from_checkpoint": "saves/x/checkpoint-5"}, "resume_from_checkpoint"),
        ({"stage": "ppo"}, "stage"),
    ],
)
def test_a_requeued_job_that_cannot_go_on_is_found(changes: dict[str, Any], key: str) -> None:
    of = replace(values(**changes), job=REQUEUED)
    assert only(of, "CKP005").key == key
    assert found(replace(of, job=JOB), "CKP005") == ()
    assert found(facts(job=REQUEUED), "CKP005") == ()


def test_without_saving_a_requeued_job_needs_a_trainer_that_saves_when_warned() -> None:
    of = replace(values(save_strategy="no"), job=REQUEUED)
    assert found(of, "CKP005") == ()
    old = replace(of, image=replace(IMAGE, transformers="4.57.1"))
    assert only(old, "CKP005").key == "save_strategy"


def target(exists: bool, *names: str) -> CheckoutFacts:
    path = Path("/saves/checkpoint-5")
    found_there = PathFacts("resume_from_checkpoint", str(path), path, exists, exists, path, exists, names=names)
    return replace(CHECKOUT, paths=(*CHECKOUT.paths, found_there))


def test_a_checkpoint_to_resume_from_that_is_not_there_is_found() -> None:
    of = replace(values(resume_from_checkpoint="/saves/checkpoint-5"), checkout=target(False))
    assert "is not there" in only(of, "CKP007").message
    assert "trainer_state.json" in only(replace(of, checkout=target(True, "model.safetensors")), "CKP007").message
    assert found(replace(of, checkout=target(True, "trainer_state.json")), "CKP007") == ()


def test_ppo_is_not_given_a_checkpoint() -> None:
    of = replace(values(stage="ppo"), checkout=output(checkpoint(5)))
    assert str(OUTPUT / "checkpoint-5") in only(of, "CKP010").message
    assert found(replace(of, config=config(stage="ppo", overwrite_output_dir=True)), "CKP010") == ()
    assert found(replace(of, checkout=output()), "CKP010") == ()


# ------------------------------------------------------------------ how often, how much


FULL: dict[str, Any] = {"finetuning_type": "full", "save_steps": 100}  # 15 GB a checkpoint


def test_checkpoints_that_do_not_fit_are_found_with_a_limit_that_does() -> None:
    of = replace(rows(8000, **FULL, save_total_limit=None), host=room(80 * GIB))
    one = only(of, "CKP003")
    assert one.severity is Severity.WARNING
    assert "30 checkpoints of 13.8 GiB" in one.message
    assert one.fix == "save_total_limit: 2"
    assert found(replace(of, config=config(**FULL, save_total_limit=2)), "CKP003") == ()


def test_less_room_than_two_checkpoints_leaves_the_model_alone() -> None:
    of = replace(rows(8000, **FULL), host=room(20 * GIB))
    assert only(of, "CKP003").fix.startswith("save_only_model: true and save_total_limit: 1")
    fixed = config(**{**FULL, "save_only_model": True, "save_total_limit": 1})
    assert found(replace(of, config=fixed), "CKP003") == ()


def test_a_requeued_job_needs_another_place() -> None:
    of = replace(rows(8000, **FULL), host=room(20 * GIB), job=REQUEUED)
    assert only(of, "CKP003").fix.startswith("an output_dir with")


def test_where_steps_are_unknown_two_checkpoints_must_fit() -> None:
    unlimited = {**FULL, "save_total_limit": None}
    assert only(replace(values(**unlimited), host=room(20 * GIB)), "CKP003").code == "CKP003"
    assert "how many checkpoints" in not_checked(values(**unlimited), "CKP003")


def test_a_run_shorter_than_save_steps_leaves_nothing_before_its_end() -> None:
    of = rows(800, save_steps=500)  # 300 steps
    one = only(of, "CKP006")
    assert (one.severity, one.line) == (Severity.INFO, of.config.line("save_steps"))
    assert one.fix == "save_steps: 60"
    assert found(replace(of, config=config(save_steps=60)), "CKP006") == ()
    assert found(replace(of, job=replace(JOB, time=None)), "CKP006") == ()
    assert found(replace(of, config=config(save_strategy="epoch")), "CKP006") == ()


def test_nothing_saved_before_the_end_is_a_warning_where_the_end_may_not_come() -> None:
    of = rows(800, save_steps=500)
    short, theirs = replace(JOB, time=timedelta(minutes=30)), replace(REQUEUED, ours=False)
    old = replace(of, job=REQUEUED, image=replace(IMAGE, transformers="4.57.1"))
    for urgent in (replace(of, job=short), replace(of, job=theirs), old):
        assert only(urgent, "CKP006").severity is Severity.WARNING
    assert only(replace(of, job=REQUEUED), "CKP006").severity is Severity.INFO  # saves when it is warned


def test_steps_that_are_unknown_are_not_judged() -> None:
    assert "rows of a dataset" in not_checked(facts(), "CKP006")


def test_many_checkpoints_without_a_limit_are_found() -> None:
    of = rows(8000, save_steps=100, save_total_limit=None)  # 3000 steps
    one = only(of, "CKP008")
    assert "all 30 checkpoints" in one.message
    assert one.fix == "save_total_limit: 2"
    assert found(replace(of, config=config(save_steps=100, save_total_limit=2)), "CKP008") == ()
    assert found(rows(8000, save_steps=1000, save_total_limit=None), "CKP008") == ()


def test_the_run_is_told_in_steps_tokens_and_bytes() -> None:
    one = only(rows(8000), "CKP009")
    assert one.severity is Severity.INFO
    assert one.message == (
        "3,000 steps of 8 rows, about 4.8 million tokens, 83.6 MiB a checkpoint, at most 272 MiB on the disk"
    )
