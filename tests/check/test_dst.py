from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import DatasetFacts, Facts, Place
from sifkit.check.rule import Severity, all_rules, apply
from tests.check import good
from tests.check.checkout_tree import Tree, changed, make_tree, one

GIB = 1024**3
FOUR = replace(good.JOB, gpus=4, torchrun=True)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def sized(rows: int | None, **changes: Any) -> Facts:
    """Four GPUs and a dataset of so many rows of 500 tokens."""
    entry = {"file_name": "alpaca_en_demo.json"}
    dataset = DatasetFacts("alpaca_en_demo", "dataset", entry, rows=rows, mean_tokens=None if rows is None else 500.0)
    checkout = replace(good.CHECKOUT, datasets=(dataset,))
    return good.facts(config=good.config(ddp_timeout=None, **changes), checkout=checkout, job=FOUR)


def on_host(variables: dict[str, str], *, nodes: int = 1) -> Facts:
    host = replace(good.HOST, environment={**good.HOST.environment, **variables})
    return good.facts(host=host, job=replace(FOUR, nodes=nodes))


def test_the_good_facts_have_no_finding() -> None:
    rules = [rule for rule in all_rules().values() if rule.family == "DST"]
    assert apply(rules, good.facts()) == ((), ())


def test_tokenizing_that_outlasts_the_timeout_is_found_and_mended() -> None:
    given = sized(20_000_000)
    found = one(given, "DST001")
    assert found.message == "tokenizing takes some 208 minutes, and processes wait 30 for it"
    assert found.edit is not None
    assert (found.edit.key, found.edit.value) == ("ddp_timeout", "180000000")
    mended = replace(given, config=good.config(ddp_timeout=180000000))
    assert good.found(mended, "DST001") == ()


@pytest.mark.parametrize("changes", [{"max_samples": 1000}, {"streaming": True}, {}])
def test_few_rows_many_workers_or_a_stream_are_in_time(changes: dict[str, Any]) -> None:
    assert good.found(sized(200_000, **changes), "DST001") == ()


def test_one_process_waits_for_nobody() -> None:
    assert good.found(replace(sized(20_000_000), job=good.JOB), "DST001") == ()


def test_a_dataset_of_unknown_size_is_not_checked() -> None:
    findings, skipped = apply([all_rules()["DST001"]], sized(None))
    assert findings == ()
    assert skipped[0].reason == "how large alpaca_en_demo is cannot be seen here; ddp_timeout is 1,800 s"


def test_deepspeed_on_one_gpu_needs_torchrun_in_a_job_file_of_ones_own() -> None:
    own = replace(good.JOB, ours=False, script="#!/bin/bash\n", script_path=Path("a.sbatch"))
    given = good.facts(config=good.config(deepspeed="ds.json"), job=own)
    assert one(given, "DST002").fix == "export FORCE_TORCHRUN=1 in the job file"
    for job in (replace(own, script="#!/bin/bash\nFORCE_TORCHRUN=1 llamafactory-cli train\n"), good.JOB):
        assert good.found(replace(given, job=job), "DST002") == ()


def test_the_effective_batch_of_several_gpus_is_told() -> None:
    found = one(good.facts(job=replace(FOUR, nodes=2)), "DST003")
    assert found.severity is Severity.INFO
    assert found.message == "effective batch 64: 1 on each GPU × 8 accumulated × 4 GPUs × 2 nodes"
    assert good.found(good.facts(), "DST003") == ()


@pytest.mark.parametrize(
    ("variables", "nodes", "said"),
    [
        ({"NCCL_IB_DISABLE": "1"}, 2, "without InfiniBand"),
        ({"NCCL_SOCKET_IFNAME": "eth0"}, 2, "each node needs an interface of that name"),
        ({"NCCL_P2P_DISABLE": "1"}, 1, "through its memory"),
    ],
)
def test_variables_that_slow_nccl_down_are_found(variables: dict[str, str], nodes: int, said: str) -> None:
    assert said in one(on_host(variables, nodes=nodes), "DST004").message
    assert good.found(replace(on_host(variables), job=good.JOB), "DST004") == ()


def test_interfaces_may_be_left_out() -> None:
    assert good.found(on_host({"NCCL_SOCKET_IFNAME": "^docker0,lo"}, nodes=2), "DST004") == ()


def test_one_node_needs_no_infiniband() -> None:
    assert good.found(on_host({"NCCL_IB_DISABLE": "1"}), "DST004") == ()


def test_a_cache_on_nfs_that_processes_share_is_found() -> None:
    place = Place("TORCH_EXTENSIONS_DIR", Path("/home/mika/.cache/torch_extensions"), True, True, True, "nfs4", GIB)
    host = replace(good.HOST, places=(place,))
    given = good.facts(config=good.config(deepspeed="ds.json"), host=host, job=FOUR)
    assert "4 processes compile into /home/mika/.cache/torch_extensions" in one(given, "DST006").message
    assert good.found(given, "ENV006") == ()  # one of the two speaks
    assert len(good.found(replace(given, job=good.JOB), "ENV006")) == 1
    local = replace(host, places=(replace(place, filesystem="ext4"),))
    for other in (replace(given, host=local), replace(given, config=good.config()), replace(given, job=good.JOB)):
        assert good.found(other, "DST006") == ()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MIN_NNODES": "1", "MAX_NNODES": "2"}, "MIN_NNODES, MAX_NNODES without RDZV_ID has no effect"),
        ({"MAX_RESTARTS": "3"}, "MAX_RESTARTS without RDZV_ID has no effect"),
        ({"RDZV_ID": "7", "MIN_NNODES": "1"}, "MAX_NNODES is not set: the number of nodes stays fixed"),
    ],
)
def test_elastic_settings_that_do_nothing_are_found(variables: dict[str, str], said: str) -> None:
    assert one(on_host(variables), "DST007").message == said
    whole = {**variables, "RDZV_ID": "7", "MIN_NNODES": "1", "MAX_NNODES": "2"}
    assert good.found(on_host(whole), "DST007") == ()


# ---------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"quantization_bit": 8}, "Only 4-bit quantized model can use fsdp+qlora or auto device map."),
        ({"quantization_bit": 4, "quantization_method": "hqq"}, "HQQ quantization is incompatible with DeepSpeed"),
        ({"quantization_bit": 8, "quantization_method": "eetq"}, "EETQ quantization is incompatible with DeepSpeed"),
    ],
)
def test_quantisation_that_zero_3_does_not_take_is_found(tree: Tree, changes: dict[str, Any], cause: str) -> None:
    tree.write("ds.json", {"zero_optimization": {"stage": 3}})
    found = one(tree.look(deepspeed="ds.json", **changes), "DST005")
    assert (cause in found.cause, found.fix) == (True, "a ZeRO-2 file, as ds_z2_config.json")
    tree.write("ds.json", {"zero_optimization": {"stage": 2}})
    assert good.found(tree.look(deepspeed="ds.json", **changes), "DST005") == ()


def test_four_bits_may_be_cut(tree: Tree) -> None:
    tree.write("ds.json", {"zero_optimization": {"stage": 3}})
    assert good.found(tree.look(deepspeed="ds.json", quantization_bit=4), "DST005") == ()


@pytest.mark.parametrize(("method", "fits"), [("gptq", False), ("awq", False), ("fp8", True), ("mxfp4", True)])
def test_a_quantised_model_with_fsdp(tree: Tree, method: str, fits: bool) -> None:
    tree.model(quantization_config={"quant_method": method})
    older = replace(good.IMAGE, transformers="4.57.1")
    given = replace(tree.look(fsdp="full_shard", fsdp_config={"cpu_ram_efficient_loading": True}), image=older)
    assert (good.found(given, "DST005") == ()) is fits
    assert good.found(replace(given, image=good.IMAGE), "DST005") == ()  # which loads the model before it knows
    assert good.found(replace(tree.look(fsdp="full_shard"), image=older), "DST005") == ()


def test_several_adapters_with_zero_3_are_found(tree: Tree) -> None:
    tree.write("ds.json", {"zero_optimization": {"stage": 3}})
    given = tree.look(deepspeed="ds.json", adapter_name_or_path="saves/x/a,saves/x/b")
    assert "2 adapters with ZeRO-3" in one(given, "DST005").message
    assert good.found(tree.look(deepspeed="ds.json", adapter_name_or_path="saves/x/a"), "DST005") == ()


@pytest.mark.parametrize("name", ["galore", "apollo"])
def test_layerwise_optimizers_do_not_accumulate(name: str) -> None:
    changes = {f"use_{name}": True, f"{name}_layerwise": True}
    given = good.facts(config=good.config(None, **changes))
    found = one(given, "DST008")
    assert found.line == given.config.line("gradient_accumulation_steps")
    mended = good.facts(config=good.config(None, gradient_accumulation_steps=1, **changes))
    assert good.found(mended, "DST008") == ()


def test_ppo_needs_another_trl_than_the_images() -> None:
    image = replace(good.IMAGE, packages={**good.IMAGE.packages, "trl": "0.24.0"})
    given = good.facts(config=good.config(stage="ppo"), image=image)
    assert one(given, "DST009").message == "stage: ppo needs trl 0.8.6 to 0.9.6, and the image has 0.24.0"
    older = replace(image, packages={**image.packages, "trl": "0.9.6"})
    assert good.found(replace(given, image=older), "DST009") == ()
    evaluated = good.facts(config=good.config(stage="ppo", val_size=0.1), image=older)
    assert one(evaluated, "DST009").fix == "remove val_size"


def test_the_edit_of_a_finding_is_one_that_mends_it() -> None:
    given = sized(20_000_000)
    mended = changed(given, one(given, "DST001"))
    as_number = {**mended.config.values, "ddp_timeout": int(str(mended.config.values["ddp_timeout"]))}
    assert good.found(replace(mended, config=good.config(as_number)), "DST001") == ()
