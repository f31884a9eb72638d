"""LLaMA-Factory's parser, foretold. Against real parsers it is held in tests/image/test_parser_agreement.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sifkit.check.parser import Device, Refusal, covered, refusals
from sifkit.check.parser_steps import Step, compiled, steps_of
from sifkit.check.parser_tables import needed, renamed, reporters
from tests.check import good
from tests.check.real import real_facts

GPU, CPU = Device(gpu=True), Device(gpu=False)
TORCHRUN = Device(gpu=True, distributed=True)


def refused(
    version: str = "0.9.5", device: Device = GPU, files: dict[str, Any] | None = None, **changes: Any
) -> list[str]:
    """The steps at which the parser of an image stops; the first is the one that it would say."""
    return [each.id for each in of(version, device, files, **changes)]


def of(version: str, device: Device = GPU, files: dict[str, Any] | None = None, **changes: Any) -> tuple[Refusal, ...]:
    values = {key: value for key, value in {**good.VALUES, **changes}.items() if value != "absent"}
    return refusals(values, real_facts(version), device, files)


VERSIONS = pytest.mark.parametrize("version", ["0.9.4", "0.9.5"])


@VERSIONS
def test_a_good_config_is_accepted(version: str) -> None:
    assert refused(version) == []


@VERSIONS
@pytest.mark.parametrize(
    ("step", "changes"),
    [
        ("no-model", {"model_name_or_path": None}),
        ("val-size-and-eval-dataset", {"val_size": 0.1, "eval_dataset": "a"}),
        ("ppo-reward-model", {"stage": "ppo", "report_to": "none"}),
        ("lora-optimizers", {"use_badam": True}),
        ("eval-strategy", {"eval_strategy": False}),  # what YAML makes of `no`
        ("optim", {"optim": "adamw"}),
        ("fp16-bf16", {"fp16": True}),
        ("backend-alone", {"ddp_backend": "nccl"}),
        ("streaming-max-steps", {"streaming": True}),
        ("quantized-method", {"quantization_bit": 4, "finetuning_type": "full"}),
        ("unknown-keys", {"lora_ranks": 8}),
        ("seed", {"seed": -1}),
        ("json-scheduler", {"lr_scheduler_kwargs": "{no json"}),
        ("accelerator", {"accelerator_config": {"nope": 1}}),
    ],
)
def test_both_releases_refuse_it(version: str, step: str, changes: dict[str, Any]) -> None:
    assert step in refused(version, **changes)


def test_releases_differ_where_their_sources_do() -> None:
    assert refused("0.9.4", neat_packing=True) == ["neat-packing-transformers"]
    assert refused("0.9.5", neat_packing=True) == []
    assert refused("0.9.4", no_cuda=True) == []
    assert refused("0.9.5", no_cuda=True) == ["unknown-keys"]
    assert refused("0.9.4", warmup_steps=0.1) == ["warmup-steps"]
    assert refused("0.9.5", warmup_steps=0.1) == []


def test_what_python_would_raise_is_a_refusal() -> None:
    (refusal,) = of("0.9.5", logging_steps="often")
    assert refusal.raised == "TypeError"
    assert refusal.message == "'>' not supported between instances of 'str' and 'int'"
    assert refusal.keys == ("logging_steps",)
    assert refusal.fix == "correct logging_steps (float)"


def test_the_first_refusal_is_the_one_the_parser_says() -> None:
    found = of("0.9.5", model_name_or_path=None, val_size=0.1, dataset=None, lora_ranks=8)
    assert [each.id for each in found] == ["no-model", "val-size-no-dataset", "unknown-keys", "no-dataset"]
    assert found[0].message == "Please provide `model_name_or_path`."


def test_a_wrong_value_is_not_said_twice() -> None:
    assert refused(eval_strategy="stepss", load_best_model_at_end=True) == ["eval-strategy"]


@pytest.mark.parametrize(
    ("device", "changes", "step"),
    [
        (CPU, {}, "bf16-device"),
        (CPU, {"bf16": False}, None),
        (CPU, {"bf16": False, "pure_bf16": True}, "pure-bf16-device"),
        (CPU, {"use_cpu": True}, None),
        (replace(GPU, tf32=False), {"tf32": True}, "tf32"),
        (GPU, {"tf32": True}, None),
        (replace(GPU, gpus=2), {}, "several-gpus-one-process"),
        (TORCHRUN, {"ddp_backend": "nccl"}, None),
        (TORCHRUN, {"ddp_backend": "ncccl"}, "backend-gpu"),
        (TORCHRUN, {"use_cpu": True, "ddp_backend": "nccl"}, "backend-cpu"),
    ],
)
def test_the_device_decides(device: Device, changes: dict[str, Any], step: str | None) -> None:
    assert refused("0.9.5", device, **changes) == ([step] if step else [])


def test_a_package_that_is_missing_is_a_refusal_with_its_name() -> None:
    (refusal,) = of("0.9.5", enable_liger_kernel=True)
    assert refusal.package == "liger-kernel"
    assert refusal.message.startswith("The 'liger-kernel' distribution was not found")


def test_versions_are_compared_plainly_as_transformers_does() -> None:
    image = real_facts("0.9.4")
    values = {**good.VALUES, "deepspeed": {"zero_optimization": {"stage": 2}}}
    with_local = replace(image, packages={**image.packages, "deepspeed": "0.16.9+cu124"})
    found = refusals(values, with_local, TORCHRUN)
    assert [each.message for each in found] == [
        "deepspeed>=0.10.0,<=0.16.9 is required for a normal functioning of this module, "
        "but found deepspeed==0.16.9+cu124."
    ]


def test_a_deepspeed_config_is_looked_into() -> None:
    image = real_facts("0.9.5")
    image = replace(image, packages={**image.packages, "deepspeed": "0.18.1"})
    values = {**good.VALUES, "deepspeed": "ds.json", "pure_bf16": True}
    zero3, none, unknown = {"ds.json": {"zero_optimization": {"stage": 3}}}, {"ds.json": None}, dict[str, Any]()
    assert [each.id for each in refusals(values, image, TORCHRUN, zero3)] == ["pure-bf16-zero3"]
    assert [each.id for each in refusals(values, image, TORCHRUN, none)] == ["deepspeed-config"]
    assert refusals(values, image, TORCHRUN, unknown) == ()


def test_only_images_whose_sources_were_read_are_covered() -> None:
    image = real_facts("0.9.5")
    assert covered(image)
    assert not covered(replace(image, llamafactory="0.9.6"))
    assert not covered(replace(image, transformers="4.51.3"))
    assert not covered(replace(image, arguments=()))  # its parser did not import
    with pytest.raises(ValueError, match="no steps for LLaMA-Factory"):
        refusals({}, replace(image, llamafactory="0.9.6"), GPU)


@pytest.mark.parametrize(
    "text", ["__import__('os')", "a.__class__", "lambda: 1", "open('x').read()", "(a := 1)", "f'{a}'"]
)
def test_steps_hold_nothing_but_harmless_python(text: str) -> None:
    if text.startswith("__import__"):
        with pytest.raises(NameError):
            compiled(text).value({})
        return
    with pytest.raises(ValueError, match="not for a step of the parser"):
        compiled(text)


SECTIONS = [
    *(("llamafactory.yaml", section) for section in ("model", "data", "ray", "finetuning", "checks")),
    ("transformers-4.yaml", "training"),
    ("transformers-5.yaml", "training"),
]
STEPS = [pytest.param(step, id=f"{file}-{step.id}") for file, part in SECTIONS for step in steps_of(file, part)]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_names_arguments_that_there_are_and_says_what_to_do(step: Step) -> None:
    assert step.source
    assert bool(step.let) + bool(step.refuse) + bool(step.package) == 1
    known = [real_facts(version) for version in ("0.9.4", "0.9.5")]
    assert all(any(image.argument(key) for image in known) for key in step.keys)
    if step.refuse or step.package:
        assert step.fix
    if step.refuse:
        assert step.says


def test_tables_name_arguments_that_there_are() -> None:
    known = [real_facts(version) for version in ("0.9.4", "0.9.5")]
    for row in renamed():
        assert row.new is None or any(image.argument(row.new) for image in known), row
        assert row.new or row.advice, row
    assert all(known[1].argument(row.key) for row in needed())
    assert {"wandb", "tensorboard", "swanlab"} <= set(reporters())


def test_a_file_that_is_read_as_json_must_be_json() -> None:
    assert refused(fsdp="full_shard", fsdp_config="fsdp.json") == []
    assert refused(fsdp="full_shard", fsdp_config="fsdp.json", files={"fsdp.json": None}) == ["fsdp-config"]
    assert refused(fsdp="full_shard", fsdp_config="examples/accelerate/fsdp_config.yaml") == ["fsdp-config"]


def test_a_negative_timeout_is_refused_where_there_are_several_processes() -> None:
    assert refused("0.9.5", TORCHRUN, ddp_timeout=-1) == ["timeout-negative"]
    assert refused("0.9.5", GPU, ddp_timeout=-1) == []
