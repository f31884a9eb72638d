"""GPU: each fault planted is found with its fix; the fix applied, it is gone; the good facts have none."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from sifkit.check.facts import Facts, GpuFacts, PathFacts, TargetGpu
from sifkit.check.rule import Edit, Finding, Severity, all_rules, apply
from tests.check.good import CHECKOUT, GIB, H100, HOST, IMAGE, JOB, SITE, V100, config, facts, found

CODES = [f"GPU{number:03}" for number in range(1, 13)]
A10 = TargetGpu("A10", (8, 6), 24 * GIB, bf16=True, fp8=False)
B200 = TargetGpu("B200", (10, 0), 180 * GIB, bf16=True, fp8=True)
UNKNOWN = TargetGpu("H9000", None, None, None, None)


def values(*gpus: TargetGpu, **changes: Any) -> Facts:
    return facts(config=config(**changes), site=replace(SITE, gpus=gpus or (H100,)))


def only(of: Facts, code: str) -> Finding:
    (one,) = found(of, code)
    return one


def not_checked(of: Facts, code: str) -> str:
    (skipped,) = apply([all_rules()[code]], of)[1]
    return skipped.reason


def applied(of: Facts, fix: str) -> Facts:
    """The YAML with the keys that a fix names."""
    changes = {key: _read(value) for key, value in re.findall(r"(\w+): ([\w.]+)", fix)}
    return replace(of, config=config({**of.config.values, **changes}))


def _read(word: str) -> Any:
    return int(word) if word.isdigit() else {"true": True, "false": False}.get(word, word)


def test_good_facts_have_an_estimate_and_no_fault() -> None:
    assert [each.code for each in found(facts(), *CODES)] == ["GPU006"]


def test_a_run_on_the_cpu_is_asked_nothing_of_gpus() -> None:
    cpu = facts(
        config=config(bf16=None, use_cpu=True), job=replace(JOB, device="cpu"), site=replace(SITE, gpus=(V100, UNKNOWN))
    )
    assert found(cpu, *CODES) == ()


# ------------------------------------------------------------------ driver and kernels


def test_a_driver_older_than_the_cuda_of_torch_is_found() -> None:
    old = facts(image=replace(IMAGE, torch_cuda="13.0"), site=replace(SITE, driver="570.86"))
    one = only(old, "GPU001")
    assert one.severity is Severity.ERROR
    assert "CUDA 13.0" in one.message
    assert "570.86" in one.message
    assert "CUDA 12.9 or older" in one.fix
    assert found(replace(old, image=replace(IMAGE, torch_cuda="12.9")), "GPU001") == ()
    assert found(replace(old, site=replace(SITE, driver="580")), "GPU001") == ()


def test_a_cuda_that_no_table_has_is_not_judged() -> None:
    assert "CUDA 99.0" in not_checked(facts(image=replace(IMAGE, torch_cuda="99.0")), "GPU001")


def test_without_a_driver_nothing_is_concluded() -> None:
    assert "gpu.driver" in not_checked(facts(site=replace(SITE, driver=None)), "GPU001")


def test_a_gpu_newer_than_torchs_kernels_is_found() -> None:
    old = replace(IMAGE, torch_cuda="12.4", torch_architectures=("sm_70", "sm_80", "sm_90"))
    one = only(facts(image=old, site=replace(SITE, gpus=(B200,))), "GPU002")
    assert one.severity is Severity.ERROR
    assert "B200 (sm_100)" in one.message
    assert "CUDA 1" in one.fix


def test_where_one_of_the_sites_gpus_has_kernels_it_is_a_warning() -> None:
    image = replace(IMAGE, torch_architectures=("sm_80", "sm_90"))
    one = only(facts(image=image, site=replace(SITE, gpus=(H100, V100))), "GPU002")
    assert one.severity is Severity.WARNING
    assert "another than V100" in one.fix


def test_kernels_of_a_sibling_and_ptx_will_do() -> None:
    sibling = facts(image=replace(IMAGE, torch_architectures=("sm_80",)), site=replace(SITE, gpus=(A10,)))
    ptx = facts(image=replace(IMAGE, torch_architectures=("sm_80", "compute_90")), site=replace(SITE, gpus=(B200,)))
    assert found(sibling, "GPU002") == ()
    assert found(ptx, "GPU002") == ()


def test_a_torch_built_for_the_cpu_is_found() -> None:
    one = only(facts(image=replace(IMAGE, torch_cuda=None, torch_architectures=())), "GPU002")
    assert "built for the CPU" in one.message


# ------------------------------------------------------------------ number types


def test_bf16_on_a_gpu_that_emulates_it_becomes_fp16() -> None:
    one = only(values(V100), "GPU003")
    assert (one.severity, one.line) == (Severity.WARNING, config().line("bf16"))
    assert one.edit == Edit("bf16", value="true", rename="fp16")
    assert found(values(V100, bf16=None, fp16=True), "GPU003") == ()


def test_bf16_that_one_of_the_gpus_emulates_is_left_to_the_user() -> None:
    one = only(values(H100, V100), "GPU003")
    assert one.edit is None
    assert "another GPU than V100" in one.fix


@pytest.mark.parametrize(
    ("changes", "severity"),
    [
        ({}, Severity.ERROR),
        ({"bf16": None, "pure_bf16": True}, Severity.ERROR),
        ({"bf16": None, "pure_bf16": True, "use_cpu": True}, Severity.ERROR),
        ({"bf16": None, "bf16_full_eval": True}, Severity.ERROR),
        ({"bf16": None, "fp16": True}, Severity.WARNING),
    ],
)
def test_half_precision_without_a_gpu_is_found(changes: dict[str, Any], severity: Severity) -> None:
    without = facts(config=config(**changes), job=replace(JOB, device="cpu", gpus=0))
    assert only(without, "GPU004").severity is severity
    assert found(replace(without, job=JOB), "GPU004") == ()


def test_bf16_on_a_cpu_that_is_meant_is_taken() -> None:
    assert found(facts(config=config(use_cpu=True), job=replace(JOB, device="cpu")), "GPU004") == ()


def test_pure_bf16_on_the_cpu_of_a_node_with_gpus_is_taken() -> None:
    pure = config(bf16=None, pure_bf16=True, use_cpu=True)
    assert found(facts(config=pure, job=replace(JOB, device="cpu", gpus=1)), "GPU004") == ()


def test_fp8_without_hardware_or_with_an_old_torch_is_found() -> None:
    assert "A10 has no FP8" in only(values(A10, fp8=True), "GPU007").message
    old = replace(values(fp8=True), image=replace(IMAGE, packages={**IMAGE.packages, "torch": "2.6.0"}))
    assert "torch 2.7" in only(old, "GPU007").message
    assert found(values(H100, fp8=True), "GPU007") == ()


FLASH = replace(IMAGE, packages={**IMAGE.packages, "flash-attn": "2.8.3"})


def test_flash_attention_on_an_old_gpu_is_an_error() -> None:
    of = replace(values(V100, flash_attn="fa2"), image=FLASH)
    one = only(of, "GPU008")
    assert (one.severity, one.edit) == (Severity.ERROR, Edit("flash_attn", value="auto"))
    assert found(replace(of, config=config(flash_attn="auto")), "GPU008") == ()
    assert found(replace(values(A10, flash_attn="fa2"), image=FLASH), "GPU008") == ()


def test_flash_attention_without_its_package_is_a_warning() -> None:
    one = only(values(flash_attn="fa2"), "GPU008")
    assert (one.severity, one.cause) == (Severity.WARNING, "FlashAttention-2 is not installed.")


def test_flash_attention_on_the_cpu_is_a_warning_since_another_is_taken() -> None:
    cpu = config(flash_attn="fa2", use_cpu=True)
    one = only(facts(config=cpu, image=FLASH, job=replace(JOB, device="cpu")), "GPU008")
    assert (one.severity, one.fix) == (Severity.WARNING, "flash_attn: auto")
    assert "the run has no GPU" in one.message


def test_eight_bits_before_turing_are_found() -> None:
    one = only(values(V100, quantization_bit=8), "GPU011")
    assert "quantization_bit: 4" in one.fix
    assert found(values(V100, quantization_bit=4), "GPU011") == ()
    assert found(values(quantization_bit=8), "GPU011") == ()


def test_freeze_tuning_of_half_weights_wants_mixed_precision() -> None:
    plain = values(finetuning_type="freeze", bf16=None)
    one = only(plain, "GPU012")
    assert one.edit == Edit("bf16", value="true")
    assert only(values(V100, finetuning_type="freeze", bf16=None), "GPU012").edit == Edit("fp16", value="true")
    assert found(applied(plain, one.fix), "GPU012") == ()
    assert found(values(finetuning_type="lora", bf16=None), "GPU012") == ()
    assert found(replace(plain, checkout=_model(torch_dtype="float32")), "GPU012") == ()


# ------------------------------------------------------------------ which GPUs


def test_gpus_that_no_table_knows_are_not_judged() -> None:
    assert "H9000" in not_checked(values(H100, UNKNOWN), "GPU009")
    assert "--gpu" in not_checked(facts(site=replace(SITE, gpus=())), "GPU009")


def test_more_gpus_than_this_host_has_are_found() -> None:
    here = replace(JOB, gpus=4, here=True)
    gpu = GpuFacts("NVIDIA H100", 80 * GIB, (9, 0))
    one = only(facts(job=here, host=replace(HOST, gpus=(gpu, gpu))), "GPU010")
    assert one.fix == "--gpus 2"
    assert found(facts(job=replace(here, gpus=2), host=replace(HOST, gpus=(gpu, gpu))), "GPU010") == ()
    assert found(facts(job=replace(here, here=False)), "GPU010") == ()


# ------------------------------------------------------------------ memory


def _model(**changes: Any) -> Any:
    model = CHECKOUT.paths[0]
    return replace(CHECKOUT, paths=(replace(model, json={**(model.json or {}), **changes}),))


LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}  # 8 B


def test_weights_gradients_and_optimizer_beyond_the_gpu_are_an_error() -> None:
    of = replace(values(finetuning_type="full"), checkout=_model(**LARGE))
    one = only(of, "GPU005")
    assert (one.severity, one.key) == (Severity.ERROR, "finetuning_type")
    assert "H100 has 80 GiB" in one.message
    assert "finetuning_type: lora" in one.fix
    assert found(applied(of, one.fix), "GPU005") == ()


def test_a_batch_beyond_the_gpu_is_a_warning_with_a_batch_that_fits() -> None:
    of = values(A10, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    one = only(of, "GPU005")
    assert (one.severity, one.key) == (Severity.WARNING, "per_device_train_batch_size")
    assert "logits" in one.message
    assert re.fullmatch(r"per_device_train_batch_size: (2|4|8), gradient_accumulation_steps: (8|4|2)", one.fix)
    assert found(applied(of, one.fix), "GPU005") == ()
    assert found(of, "GPU006") == ()


def test_a_gpu_of_which_a_larger_variant_may_be_given_is_no_error() -> None:
    a100 = TargetGpu("A100", (8, 0), 40 * GIB, bf16=True, fp8=False, largest=80 * GIB)
    deep = _model(**{**LARGE, "num_hidden_layers": 14})  # 4.1 B: 62 GiB
    one = only(replace(values(a100, finetuning_type="full"), checkout=deep), "GPU005")
    assert one.severity is Severity.WARNING
    assert "A100 has 40 GiB, of its variants the largest 80 GiB" in one.message
    named = replace(a100, largest=None)
    assert only(replace(values(named, finetuning_type="full"), checkout=deep), "GPU005").severity is Severity.ERROR


def test_a_fix_names_no_change_that_makes_no_difference() -> None:
    of = replace(
        values(finetuning_type="full", eval_strategy="steps", per_device_eval_batch_size=2), checkout=_model(**LARGE)
    )
    assert only(of, "GPU005").fix == "finetuning_type: lora"


def test_quantisation_is_named_with_the_image_that_it_needs() -> None:
    v100 = TargetGpu("V100", (7, 0), 16 * GIB, bf16=False, fp8=False)
    bare = replace(IMAGE, packages={k: v for k, v in IMAGE.packages.items() if k != "bitsandbytes"})
    one = only(replace(values(v100), checkout=_model(**LARGE), image=bare), "GPU005")
    assert one.fix == "quantization_bit: 4, with an image that has bitsandbytes; or more GPUs with ZeRO-3"


def test_where_one_of_the_gpus_is_large_enough_it_may_be_asked_for() -> None:
    one = only(values(A10, H100, per_device_train_batch_size=16), "GPU005")
    assert "another GPU than A10" in one.fix


def test_more_gpus_are_the_fix_where_nothing_else_is() -> None:
    one = only(replace(values(A10), checkout=_model(**{**LARGE, "num_hidden_layers": 80})), "GPU005")
    assert "ZeRO-3" in one.fix


def test_zero_3_over_all_gpus_is_heeded() -> None:
    of = replace(values(finetuning_type="full", deepspeed="ds.json"), checkout=_model(**LARGE))
    read = PathFacts("deepspeed", "ds.json", CHECKOUT.root / "ds.json", True, False, CHECKOUT.root / "ds.json", True)
    read = replace(read, json={"zero_optimization": {"stage": 3}})
    checkout = replace(of.checkout or CHECKOUT, paths=(*_model(**LARGE).paths, read))
    assert found(replace(of, checkout=checkout, job=replace(JOB, gpus=8)), "GPU005") == ()
    assert "was not read" in not_checked(of, "GPU005")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"model_type": "mamba"}, "mamba"), ({"quantization_config": {"quant_method": "awq"}}, "quantised already")],
)
def test_memory_of_unknown_models_is_not_judged(changes: dict[str, Any], reason: str) -> None:
    assert reason in not_checked(facts(checkout=_model(**changes)), "GPU005")


def test_the_estimate_names_the_gpu_and_the_parts() -> None:
    one = only(facts(), "GPU006")
    assert one.severity is Severity.INFO
    assert "of the 80 GiB of each H100" in one.message
    assert "weights 2.3" in one.message


def test_what_the_allocator_keeps_is_told_apart_from_what_the_run_needs() -> None:
    one = only(values(per_device_train_batch_size=8), "GPU006")
    assert "nvidia-smi shows up to" in one.message
