"""Estimates: parameters against real models, memory and disk against what can be counted by hand."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import DatasetFacts
from sifkit.estimate.disk import Disk, disk, read_saves
from sifkit.estimate.memory import Estimate, memory
from sifkit.estimate.model import Shape, lora, oft, read_shape
from sifkit.estimate.run import RunLength, run_length
from sifkit.estimate.settings import Unknown

REAL = json.loads(Path(__file__).with_name("models.json").read_text())
MODELS: Mapping[str, Any] = REAL["models"]
MEASURED = json.loads(Path(__file__).with_name("measured_memory.json").read_text())
GIB = 1024**3
LLAMA_1B = MODELS["Llama-3.2-1B"]
FULL = {"finetuning_type": "full", "bf16": True, "gradient_accumulation_steps": 8, "per_device_train_batch_size": 1}
LORA = {**FULL, "finetuning_type": "lora"}


def shape_of(name: str, *, fused_experts: bool = True) -> Shape:
    shape = read_shape(MODELS[name]["config"], fused_experts=fused_experts)
    assert shape is not None
    return shape


def estimate(values: Mapping[str, Any], name: str = "Llama-3.2-1B", **options: Any) -> Estimate:
    settings: dict[str, Any] = {"processes": 1, "stored": 2, **options}
    found = memory(shape_of(name), values.get, **settings)
    assert isinstance(found, Estimate), found
    return found


# ---------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("fused", [True, False], ids=["transformers 5", "transformers 4"])
@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_matrices_are_those_of_the_real_model(name: str, fused: bool) -> None:
    shape, real = shape_of(name, fused_experts=fused), MODELS[name]
    counts: Counter[tuple[str, int, int]] = Counter()
    for each in shape.linears:
        counts[each.name, each.inputs, each.outputs] += each.count
    assert shape.total == real["total"]
    assert shape.embedding == real["embedding"]
    assert sorted([*key, count] for key, count in counts.items()) == real["linears_5" if fused else "linears_4"]


@pytest.mark.parametrize("row", REAL["adapters"], ids=lambda row: f"{row['model']} {row['values']}")
def test_adapters_have_as_many_parameters_as_pefts(row: dict[str, Any]) -> None:
    count = oft if row["values"]["finetuning_type"] == "oft" else lora
    assert count(shape_of(row["model"]), row["values"].get) == row["trained"]


def test_the_language_model_of_a_multimodal_one_is_counted() -> None:
    config = {"model_type": "llava", "text_config": LLAMA_1B["config"], "vision_config": {}}
    shape = read_shape(config)
    assert shape is not None
    assert shape.text == LLAMA_1B["total"]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mamba", "hidden_size": 768},
        {},
        {**LLAMA_1B["config"], "hidden_size": "2048"},
        {**LLAMA_1B["config"], "num_hidden_layers": 0},
        {**LLAMA_1B["config"], "num_attention_heads": None, "head_dim": -1},
        {**LLAMA_1B["config"], "vocab_size": True},
    ],
)
def test_of_unknown_or_senseless_configs_nothing_is_said(config: dict[str, Any]) -> None:
    assert read_shape(config) is None


def test_modules_that_the_model_does_not_have_are_not_counted_as_an_adapter() -> None:
    assert lora(shape_of("Llama-3.2-1B"), {"lora_target": "query_key_value"}.get) is None


# ---------------------------------------------------------------------------------------------- memory


def test_full_tuning_takes_sixteen_bytes_for_each_parameter() -> None:
    assert estimate(FULL).certain == 16 * LLAMA_1B["total"]


def test_pure_bf16_takes_half_of_that() -> None:
    assert estimate({**FULL, "bf16": False, "pure_bf16": True}).certain == 8 * LLAMA_1B["total"]


def test_lora_takes_the_stored_weights_and_sixteen_bytes_for_each_number_of_the_adapter() -> None:
    adapter = lora(shape_of("Llama-3.2-1B"), LORA.get)
    assert adapter is not None
    assert estimate(LORA).certain == 2 * LLAMA_1B["total"] + 16 * adapter


def test_four_bits_take_a_quarter_of_the_matrices_and_leave_embeddings() -> None:
    shape = shape_of("Llama-3.2-1B")
    saved = estimate(LORA).weights - estimate({**LORA, "quantization_bit": 4}).weights
    assert saved == pytest.approx(shape.matrices * 1.5, rel=0.03)


def test_logits_take_twelve_bytes_for_each_word_of_the_vocabulary_and_token() -> None:
    found = estimate({**LORA, "per_device_train_batch_size": 4, "cutoff_len": 1024})
    assert found.moment == "gradient of the loss"
    assert found.logits == 12 * 128256 * 4 * 1024


def test_without_checkpointing_every_layer_keeps_what_it_computed() -> None:
    kept = estimate({**LORA, "cutoff_len": 4096}).activations
    opened = estimate({**LORA, "cutoff_len": 4096, "disable_gradient_checkpointing": True}).activations
    assert opened > 20 * kept


def test_dpo_counts_two_sequences_and_with_full_tuning_a_second_model() -> None:
    sft, dpo = (estimate({**FULL, "stage": stage}) for stage in ("sft", "dpo"))
    assert dpo.weights - sft.weights == 2 * LLAMA_1B["total"]
    assert dpo.logits == pytest.approx(sft.logits * 2 * 18 / 12, rel=0.2)


def test_evaluation_with_many_rows_can_be_the_peak() -> None:
    values = {**LORA, "eval_strategy": "steps", "per_device_eval_batch_size": 16}
    assert estimate(values).moment == "evaluation"


def test_zero_3_spreads_weights_gradients_and_states_over_processes() -> None:
    zero = {"zero_optimization": {"stage": 3}}
    one, eight = (
        estimate({**FULL, "deepspeed": "ds.json"}, "Llama-3.1-8B", processes=n, deepspeed=zero).certain for n in (1, 8)
    )
    assert one == 16 * MODELS["Llama-3.1-8B"]["total"]
    assert eight == pytest.approx(one / 8, rel=1e-6)


def test_zero_2_keeps_all_weights_in_half_precision() -> None:
    zero = {"zero_optimization": {"stage": 2}}
    found = estimate({**FULL, "deepspeed": "ds.json"}, processes=4, deepspeed=zero)
    assert found.weights == 2 * LLAMA_1B["total"]
    assert found.optimizer == pytest.approx(12 * LLAMA_1B["total"] / 4, rel=1e-6)


def test_offloaded_states_are_not_on_the_gpu() -> None:
    zero = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
    assert estimate({**FULL, "deepspeed": "ds.json"}, deepspeed=zero).optimizer == 0


def test_ddp_holds_gradients_twice() -> None:
    shape = shape_of("Qwen2.5-0.5B")
    short = {**FULL, "cutoff_len": 16, "gradient_accumulation_steps": 1}
    one, two = (estimate(short, "Qwen2.5-0.5B", processes=n) for n in (1, 2))
    assert two.allocated - one.allocated == pytest.approx(4 * shape.total, rel=0.05)


def _of_run(run: dict[str, Any]) -> Estimate:
    shape = read_shape(MEASURED["sizes"][run["size"]])
    assert shape is not None
    read = MEASURED["deepspeed"].get(Path(run["values"].get("deepspeed", "")).name)
    found = memory(shape, run["values"].get, processes=run["gpus"], stored=2, deepspeed=read)
    assert isinstance(found, Estimate), found
    return found


@pytest.mark.parametrize("run", MEASURED["runs"], ids=lambda run: f"{run['gpus']} GPU: {run['name']}")
def test_tensors_are_those_of_the_measured_run(run: dict[str, Any]) -> None:
    assert _of_run(run).allocated / GIB == pytest.approx(run["allocated"], rel=0.01)


@pytest.mark.parametrize("run", MEASURED["runs"], ids=lambda run: f"{run['gpus']} GPU: {run['name']}")
def test_what_the_allocator_holds_is_near_the_measured(run: dict[str, Any]) -> None:
    found = _of_run(run)
    assert found.reserved / GIB == pytest.approx(run["reserved"], rel=0.1)
    assert found.total / GIB < (run["used"] or run["reserved"] + 2)


def test_gradients_that_are_kept_cost_more_than_twice_the_tokens() -> None:
    kept, once = (
        {**FULL, "gradient_accumulation_steps": steps, "cutoff_len": cutoff} for steps, cutoff in ((2, 512), (1, 1024))
    )
    assert (estimate(kept).moment, estimate(once).moment) == ("loss", "gradient of the embeddings")
    assert estimate(kept).allocated > estimate(once).allocated


def test_tied_embeddings_have_their_gradient_twice_at_the_end_of_the_backward_pass() -> None:
    once = {**FULL, "gradient_accumulation_steps": 1, "cutoff_len": 64}
    tied = estimate(once)
    assert tied.allocated - tied.certain == pytest.approx(4 * 128256 * 2048 + 64 * 1024**2, rel=0.01)


def test_without_auto_wrap_fsdp_is_not_estimated() -> None:
    wrapped = {**FULL, "fsdp": "full_shard auto_wrap"}
    assert estimate(wrapped, processes=8).weights == pytest.approx(4 * LLAMA_1B["total"] / 8, rel=1e-6)
    found = memory(shape_of("Llama-3.2-1B"), {**FULL, "fsdp": "full_shard"}.get, processes=8, stored=2)
    assert isinstance(found, Unknown)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"stage": "ppo"}, "stage ppo"),
        ({"use_unsloth": True}, "use_unsloth"),
        ({"use_galore": True}, "use_galore"),
        ({"optim": "schedule_free_adamw"}, "optim: schedule_free_adamw"),
        ({"deepspeed": "ds.json"}, "was not read"),
        ({"per_device_train_batch_size": "4"}, "per_device_train_batch_size is '4'"),
        ({"finetuning_type": "lora", "lora_target": "c_attn"}, "modules"),
        ({"quantization_bit": 8, "quantization_method": "hqq"}, "hqq"),
        ({"freeze_language_model": True}, "freeze_language_model: true"),
        ({"freeze_vision_tower": False}, "freeze_vision_tower: false"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}, "bf16": False}, "deepspeed without bf16 and fp16"),
    ],
)
def test_what_was_not_measured_is_not_estimated(values: dict[str, Any], reason: str) -> None:
    found = memory(shape_of("Llama-3.2-1B"), values.get, processes=1, stored=2)
    assert isinstance(found, Unknown)
    assert reason in found.reason


# ---------------------------------------------------------------------------------------------- steps


def dataset(rows: int | None, mean: float | None = 100.0, entry: dict[str, Any] | None = None) -> DatasetFacts:
    return DatasetFacts("alpaca", "dataset", entry or {}, rows=rows, mean_tokens=mean)


def steps(values: dict[str, Any], *datasets: DatasetFacts, processes: int = 1) -> RunLength:
    found = run_length(values.get, datasets, processes)
    assert isinstance(found, RunLength)
    return found


BATCHES = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "num_train_epochs": 3.0}


@pytest.mark.parametrize(
    ("values", "processes", "expected"),
    [
        ({}, 1, 375),  # 500 batches, 125 steps an epoch
        ({}, 4, 96),  # 125 batches each, 32 steps
        ({"num_train_epochs": 0.5}, 1, 63),
        ({"max_samples": 100}, 1, 39),  # 50 batches, 13 steps
        ({"val_size": 0.1}, 1, 339),  # 900 rows, 113 steps
        ({"val_size": 200}, 1, 300),
        ({"max_steps": 7}, 1, 7),
        ({"gradient_accumulation_steps": 3, "dataloader_drop_last": True}, 3, 168),  # 166 batches, 56 steps
        ({"per_device_train_batch_size": 2000}, 1, 3),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(values: dict[str, Any], processes: int, expected: int) -> None:
    assert steps({**BATCHES, **values}, dataset(1000), processes=processes).steps == expected


def test_packing_makes_rows_of_cutoff_len() -> None:
    found = steps({**BATCHES, "packing": True, "cutoff_len": 1000}, dataset(1000, 97.0))
    assert found.rows == 100
    assert found.tokens == 3 * 97_000


def test_rows_longer_than_cutoff_len_are_cut() -> None:
    assert steps({**BATCHES, "cutoff_len": 512}, dataset(1000, 9000.0)).tokens == 3 * 1000 * 512


def test_pairs_have_two_sequences() -> None:
    assert steps({**BATCHES, "stage": "dpo"}, dataset(1000)).tokens == 3 * 1000 * 200


def test_the_effective_batch_counts_gpus_of_all_nodes() -> None:
    assert steps(BATCHES, dataset(1000), processes=8).batch.size == 64


def test_num_samples_of_dataset_info_replaces_the_rows() -> None:
    assert steps(BATCHES, dataset(1000, entry={"num_samples": 80})).steps == 30


@pytest.mark.parametrize(
    ("values", "rows"), [({}, None), ({"streaming": True}, 10), ({"mix_strategy": "interleave_under"}, 10)]
)
def test_steps_are_unknown_where_rows_are(values: dict[str, Any], rows: int | None) -> None:
    assert steps({**BATCHES, **values}, dataset(rows)).steps is None


# ---------------------------------------------------------------------------------------------- disk


def needs(values: dict[str, Any], steps: int | None = 1000, **options: Any) -> Disk:
    found = disk(shape_of("Llama-3.2-1B"), values.get, stored=2, steps=steps, **options)
    assert isinstance(found, Disk)
    return found


def test_a_checkpoint_of_full_tuning_holds_fp32_weights_and_two_states() -> None:
    assert needs(FULL).checkpoint == pytest.approx(12 * LLAMA_1B["total"], rel=0.01)


def test_a_checkpoint_of_an_adapter_is_small() -> None:
    assert needs(LORA).checkpoint == pytest.approx(12 * 5_636_096, abs=25_000_000)


def test_save_only_model_leaves_the_states_out() -> None:
    assert needs({**FULL, "save_only_model": True}).checkpoint == pytest.approx(4 * LLAMA_1B["total"], rel=0.01)


def test_without_a_limit_every_checkpoint_stays() -> None:
    found = needs({**FULL, "save_steps": 100})
    assert found.peak == 10 * found.checkpoint + found.final


def test_with_a_limit_there_is_one_more_while_saving() -> None:
    found = needs({**FULL, "save_steps": 100, "save_total_limit": 2})
    assert found.peak == 3 * found.checkpoint + found.final


def test_without_saving_there_is_the_model_at_the_end() -> None:
    found = needs({**FULL, "save_strategy": "no"})
    assert found.peak == found.final == 4 * LLAMA_1B["total"]


def test_a_part_of_the_steps_is_a_number_of_steps() -> None:
    saves = read_saves({"save_steps": 0.1}.get, 950)
    assert saves is not None
    assert (saves.every, saves.count) == (95, 10)


def test_checkpoints_of_epochs_are_counted_without_steps() -> None:
    saves = read_saves({"save_strategy": "epoch", "num_train_epochs": 4}.get, None)
    assert saves is not None
    assert saves.count == 4


def test_the_peak_is_unknown_where_steps_are_and_nothing_limits_it() -> None:
    assert needs(FULL, steps=None).peak is None
