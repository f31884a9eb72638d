"""IMG: each fault planted in an image is found with its fix; the fix applied, it is gone; a good image has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import CheckpointFacts, Facts, HostFacts, ImageFacts, ImageRecord, JobFacts, PathFacts
from sifkit.check.rule import Finding, Severity, all_rules, apply
from tests.check.good import CHECKOUT, HOST, IMAGE, JOB, ROOT, config, facts, found
from tests.check.real import real_facts

PARSER, TUNER = "llamafactory.hparams.parser", "llamafactory.train.tuner"
CODES = [f"IMG{number:03}" for number in range(1, 15)]


def image(**changes: Any) -> ImageFacts:
    return replace(IMAGE, **changes)


def packages(**versions: str | None) -> dict[str, str]:
    merged: Mapping[str, str | None] = {**IMAGE.packages, **{k.replace("_", "-"): v for k, v in versions.items()}}
    return {name: version for name, version in merged.items() if version is not None}


def host(**changes: Any) -> HostFacts:
    return replace(HOST, **changes)


def job(**changes: Any) -> JobFacts:
    return replace(JOB, **changes)


def only(of: Facts, code: str) -> Finding:
    (one,) = found(of, code)
    return one


def not_checked(of: Facts, code: str) -> str:
    (skipped,) = apply([all_rules()[code]], of)[1]
    return skipped.reason


def test_a_good_image_has_no_fault() -> None:
    assert found(facts(), *CODES) == ()


@pytest.mark.parametrize("version", ["0.9.4", "0.9.5"])
def test_the_real_images_have_no_fault(version: str) -> None:
    real = facts(image=real_facts(version), checkout=replace(CHECKOUT, version=version))
    assert found(real, *CODES) == ()


# ------------------------------------------------------------------ versions


def test_a_package_that_the_start_refuses_is_an_error() -> None:
    one = only(facts(image=image(packages=packages(transformers="5.7.0"))), "IMG001")
    assert one.severity is Severity.ERROR
    assert one.message == (
        "the image has transformers 5.7.0; LLaMA-Factory 0.9.5 asks for transformers>=4.55.0,<=5.6.0 "
        "and stops when it starts"
    )
    assert "sifkit lock" in one.fix


def test_a_package_that_is_not_there_is_an_error_too() -> None:
    assert "the image has trl none" in only(facts(image=image(packages=packages(trl=None))), "IMG001").message


def test_a_local_version_above_the_range_is_refused_as_transformers_does() -> None:
    """transformers/utils/versions.py compares Version("5.6.0+x") with Version("5.6.0")."""
    assert only(facts(image=image(packages=packages(transformers="5.6.0+site"))), "IMG001").severity is Severity.ERROR


@pytest.mark.parametrize(("value", "severity"), [("1", Severity.WARNING), ("no", Severity.ERROR)])
def test_a_check_that_is_switched_off_only_warns(value: str, severity: Severity) -> None:
    environment = {**IMAGE.environment, "DISABLE_VERSION_CHECK": value}
    planted = image(packages=packages(peft="0.17.1"), environment=environment)
    assert only(facts(image=planted), "IMG001").severity is severity


def test_what_metadata_alone_asks_for_is_a_warning() -> None:
    """0.9.5: metadata says accelerate<=1.11.0, its own check <=1.15.0."""
    one = only(facts(image=image(packages=packages(accelerate="1.12.0"))), "IMG001")
    assert (one.severity, "accelerate 1.12.0" in one.message) == (Severity.WARNING, True)
    assert only(facts(image=image(packages=packages(accelerate="1.16.0"))), "IMG001").severity is Severity.ERROR


def test_an_unknown_llamafactory_is_said_and_its_ranges_are_not_checked() -> None:
    of = facts(image=image(llamafactory="0.9.99"), checkout=replace(CHECKOUT, version="0.9.99"))
    one = only(of, "IMG014")
    assert (one.severity, "the image has LLaMA-Factory 0.9.99" in one.message) == (Severity.INFO, True)
    assert not_checked(of, "IMG001") == "the tables know no LLaMA-Factory 0.9.99"


def test_a_checkout_of_another_version_is_seen() -> None:
    one = only(facts(checkout=replace(CHECKOUT, version="0.9.4")), "IMG002")
    assert one.message == f"the checkout {ROOT} is LLaMA-Factory 0.9.4; what runs is the image's own 0.9.5"
    assert one.fix == "use a checkout of that version: sifkit checkout 0.9.5 DIR"
    assert "does not say" in not_checked(facts(checkout=replace(CHECKOUT, version=None)), "IMG002")


OLD = image(packages=packages(torch="2.5.1+cu124", transformers="4.52.4"), transformers="4.52.4")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"config": config(resume_from_checkpoint="saves/x/checkpoint-5")}, "this run resumes one"),
        ({"job": job(requeue=True)}, "this job requeues itself, and then goes on from its newest checkpoint"),
        (
            {"checkout": replace(CHECKOUT, checkpoints=(CheckpointFacts(Path("saves/x/checkpoint-5"), 5, ()),))},
            "this run goes on from checkpoint-5 in output_dir",
        ),
    ],
)
def test_a_run_that_resumes_with_an_old_torch_is_an_error(changes: dict[str, Any], said: str) -> None:
    one = only(facts(image=OLD, **changes), "IMG006")
    assert one.severity is Severity.ERROR
    assert one.message == f"transformers 4.52.4 resumes no checkpoint with torch 2.5.1+cu124: {said}"
    assert "torch 2.6" in one.fix
    assert found(facts(image=replace(OLD, packages=packages(torch="2.6.0+cu124")), **changes), "IMG006") == ()


def test_a_run_that_need_not_resume_is_warned() -> None:
    one = only(facts(image=OLD), "IMG006")
    assert (one.severity, "a run that is stopped cannot go on" in one.message) == (Severity.WARNING, True)
    assert found(facts(image=replace(OLD, transformers="4.51.3")), "IMG006") == ()
    assert found(facts(image=OLD, config=config(do_train=False)), "IMG006") == ()


def test_a_run_that_starts_afresh_is_only_warned() -> None:
    checkout = replace(CHECKOUT, checkpoints=(CheckpointFacts(Path("saves/x/checkpoint-5"), 5, ()),))
    of = facts(image=OLD, checkout=checkout, config=config(overwrite_output_dir=True))
    assert only(of, "IMG006").severity is Severity.WARNING


# ------------------------------------------------------------------ imports

AUDIO = """Traceback (most recent call last):
  File "/opt/venv/lib/python3.13/site-packages/torchaudio/_extension/utils.py", line 56, in _load_lib
    torch.ops.load_library(path)
OSError: libcudart.so.13: cannot open shared object file: No such file or directory
"""


def imports(**said: str) -> ImageFacts:
    return image(imports={**IMAGE.imports, **said})


def test_a_parser_that_does_not_import_is_one_error_with_its_cause() -> None:
    one = only(
        facts(image=imports(**{PARSER: AUDIO, TUNER: f"of another place\n{AUDIO}", "torchaudio": AUDIO})), "IMG003"
    )
    assert one.severity is Severity.ERROR
    assert one.message == (
        f"{PARSER} does not import in the image: OSError: libcudart.so.13: cannot open shared object file: "
        "No such file or directory"
    )
    assert "torchaudio belongs to another torch" in one.cause
    assert one.fix.startswith("pin torch, torchvision and torchaudio as one set")


def test_a_tuner_that_alone_does_not_import_is_an_error() -> None:
    assert only(facts(image=imports(**{TUNER: "ImportError: x"})), "IMG003").severity is Severity.ERROR


def test_torchaudio_that_does_not_import_is_a_warning_where_the_rest_does() -> None:
    assert only(facts(image=imports(torchaudio=AUDIO)), "IMG003").severity is Severity.WARNING


FLASH = (
    "ImportError: /opt/venv/lib/python3.13/site-packages/flash_attn_2_cuda.cpython-313-x86_64-linux-gnu.so: "
    "undefined symbol: _ZN3c104cuda9SetDeviceEa"
)
BNB = "RuntimeError: x"


@pytest.mark.parametrize(
    ("module", "said", "changes", "key"),
    [
        ("flash_attn", FLASH, {"flash_attn": "fa2"}, "flash_attn"),
        ("deepspeed", "MissingCUDAException: CUDA_HOME does not exist", {"deepspeed": "z.json"}, "deepspeed"),
        ("bitsandbytes", BNB, {"quantization_bit": 4}, "quantization_bit"),
        ("bitsandbytes", BNB, {"optim": "paged_adamw_8bit"}, "optim"),
        ("liger_kernel.transformers", "ImportError: x", {"enable_liger_kernel": True}, "enable_liger_kernel"),
    ],
)
def test_an_option_whose_package_does_not_import_is_an_error(
    module: str, said: str, changes: dict[str, Any], key: str
) -> None:
    of = facts(image=imports(**{module: said}), config=config(**changes))
    one = only(of, "IMG003")
    assert (one.severity, one.key, one.line) == (Severity.ERROR, key, of.config.line(key))
    assert only(facts(image=imports(**{module: said})), "IMG003").severity is Severity.WARNING
    assert found(facts(image=imports(**{module: ""}), config=config(**changes)), "IMG003") == ()


def test_hqq_does_not_use_bitsandbytes() -> None:
    of = facts(image=imports(bitsandbytes=BNB), config=config(quantization_bit=4, quantization_method="hqq"))
    assert only(of, "IMG003").severity is Severity.WARNING


def test_an_import_that_needs_a_driver_is_not_judged() -> None:
    of = facts(image=imports(vllm="ImportError: libcuda.so.1: cannot open shared object file"))
    assert found(of, "IMG003") == ()
    assert not_checked(of, "IMG003") == "vllm imports only where there is a GPU"


def test_only_what_it_said_last_counts_as_the_need_of_a_driver() -> None:
    said = 'File "deepspeed/accelerator/cuda.py", line 1, libcuda.so\nValueError: x'
    assert only(facts(image=imports(deepspeed=said)), "IMG003").message.endswith("in the image: ValueError: x")


def test_libraries_that_are_nowhere_are_said_once_a_package() -> None:
    needing = ("torchaudio/lib/a.so needs libcudart.so.13", "torchaudio/lib/b.so needs libcudart.so.13")
    one = only(facts(image=image(unresolved=needing)), "IMG004")
    assert one.message == "libcudart.so.13, which torchaudio/lib/a.so and 1 more of the image need, is not there"
    assert "take torchaudio out" in one.fix
    assert one.severity is Severity.WARNING


# ------------------------------------------------------------------ the file


def test_an_image_that_never_passed_is_said() -> None:
    of = facts(image=image(record=ImageRecord("x", None, ())))
    assert only(of, "IMG012").fix.startswith("verify it: python build.py --verify x")
    assert found(facts(image=image(record=ImageRecord("x", None, ("CPU",)))), "IMG012") == ()
    assert "of no project" in not_checked(facts(), "IMG012")


def test_an_image_that_is_another_than_was_built_is_said_once() -> None:
    of = facts(image=image(record=ImageRecord("x", "it has 7 bytes, the image that was built 8", ())))
    (one,) = found(of, "IMG012", "IMG013")
    assert one.code == "IMG013"
    assert "is not the image that was built: it has 7 bytes" in one.message
    assert "python build.py --force x" in one.fix


# ------------------------------------------------------------------ compilers


@pytest.mark.parametrize("key", ["enable_liger_kernel", "use_unsloth", "torch_compile"])
def test_an_image_without_a_compiler_fails_what_compiles(key: str) -> None:
    bare = image(programs={"git": "/usr/bin/git"})
    changes: dict[str, Any] = {key: True}
    of = facts(image=bare, config=config(**changes))
    one = only(of, "IMG007")
    assert (one.severity, one.key) == (Severity.ERROR, key)
    assert one.message == f"the image has no C compiler: {key} compiles kernels when the run starts, and fails"
    assert one.fix.startswith("add gcc, libc6-dev and python3-dev to apt")
    assert only(facts(image=bare), "IMG007").severity is Severity.WARNING
    assert only(replace(of, job=job(device="cpu")), "IMG007").severity is Severity.WARNING


def test_headers_are_needed_beside_the_compiler() -> None:
    assert "no Python.h" in only(facts(image=image(python_headers=False)), "IMG007").message


@pytest.mark.parametrize("changes", [{"programs": {"clang": "/x"}}, {"programs": {}, "environment": {"CC": "/x"}}])
def test_another_compiler_will_do(changes: dict[str, Any]) -> None:
    assert found(facts(image=image(**changes)), "IMG007") == ()


WHOLE = {**IMAGE.programs, "nvcc": "/x", "ninja": "/x", "g++": "/x"}


def deepspeed(settings: object, **changes: Any) -> Facts:
    has = image(**{"packages": packages(deepspeed="0.18.4"), **changes})
    place = ROOT / "z.json"
    path = PathFacts("deepspeed", "z.json", place, True, False, place, True, json=settings)  # type: ignore[arg-type]
    return facts(image=has, checkout=replace(CHECKOUT, paths=(path,)), config=config(deepspeed="z.json"))


OFFLOAD = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}
FUSED = {"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}


@pytest.mark.parametrize(
    ("settings", "operator", "cause"),
    [(OFFLOAD, "cpu_adam", "offload_optimizer"), (FUSED, "fused_adam", "optimizer adamw")],
)
def test_a_deepspeed_file_that_compiles_needs_nvcc(settings: object, operator: str, cause: str) -> None:
    one = only(deepspeed(settings), "IMG008")
    assert one.severity is Severity.ERROR
    assert one.message == f"{cause}: DeepSpeed compiles {operator}, and the image has no nvcc, no ninja, no g++"
    assert "extras: [deepspeed]" in one.fix
    assert found(deepspeed(settings, programs=WHOLE), "IMG008") == ()
    assert found(deepspeed(settings, libraries=frozenset({f"{operator}_op"})), "IMG008") == ()
    assert found(replace(deepspeed(settings), job=job(device="cpu")), "IMG008") == ()


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_optimization": {"stage": 3}},
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "none"}}},
        {**OFFLOAD, "zero_force_ds_cpu_optimizer": False},
        {"optimizer": {"type": "AdamW", "params": {"torch_adam": True}}},
    ],
)
def test_a_deepspeed_file_that_compiles_nothing_needs_none(settings: object) -> None:
    assert found(deepspeed(settings), "IMG008") == ()


def test_a_deepspeed_file_that_is_not_there_is_not_judged() -> None:
    assert not_checked(deepspeed(None), "IMG008") == "the DeepSpeed file cannot be read"


# ------------------------------------------------------------------ libraries and environment


def test_several_nodes_want_infiniband() -> None:
    bare = image(libraries=frozenset({"libibverbs.so.1"}))
    one = only(facts(image=bare, job=job(nodes=2)), "IMG010")
    assert one.message == "2 nodes, and no libmlx5.so.1 in the image: NCCL goes over TCP sockets"
    assert "libibverbs1 and ibverbs-providers" in one.fix
    assert found(facts(image=bare), "IMG010") == ()
    whole = image(libraries=frozenset({"libibverbs.so.1", "libmlx5.so.1"}))
    assert found(facts(image=whole, job=job(nodes=2)), "IMG010") == ()


COMPAT = "/usr/local/cuda/compat"


def test_a_libcuda_of_the_image_before_the_hosts_is_seen() -> None:
    environment = {"LD_LIBRARY_PATH": f"/opt/x:{COMPAT}:/.singularity.d/libs"}
    one = only(facts(image=image(environment=environment, cuda_compat=(COMPAT,))), "IMG009")
    assert one.message == f"{COMPAT} of the image holds a libcuda, and LD_LIBRARY_PATH puts it before the host's"
    assert "'/opt/x'" in one.fix


@pytest.mark.parametrize("path", [f"/.singularity.d/libs:{COMPAT}", ""])
def test_a_libcuda_after_the_hosts_does_no_harm(path: str) -> None:
    planted = image(environment={"LD_LIBRARY_PATH": path}, cuda_compat=(COMPAT,))
    assert found(facts(image=planted), "IMG009") == ()


@pytest.mark.parametrize(("needed", "count"), [("2.42", 1), ("2.41", 0), ("2.9", 0)])
def test_driver_libraries_that_are_newer_than_the_images_libc_are_seen(needed: str, count: int) -> None:
    said = found(facts(host=host(nv_glibc=needed)), "IMG011")
    assert len(said) == count
    assert all("the image has glibc 2.41; libraries of this host that --nv binds need 2.42" in s.message for s in said)


def test_without_driver_libraries_here_nothing_is_said_of_libc() -> None:
    assert not_checked(facts(), "IMG011") == "this host has no libraries that --nv would bind"


def test_packages_in_the_home_shadow_an_image_that_does_not_guard_itself() -> None:
    bare = image(environment={"PATH": "/usr/bin"})
    one = only(facts(image=bare, host=host(user_packages=("3.12", "3.13"))), "IMG005")
    assert one.message.startswith("~/.local/lib/python3.13 holds packages")
    assert "PYTHONNOUSERSITE" in one.fix
    assert found(facts(host=host(user_packages=("3.13",))), "IMG005") == ()
    assert found(facts(image=bare, host=host(user_packages=("3.12",))), "IMG005") == ()
    guarded = job(ours=False, script="apptainer exec --no-home x.sif llamafactory-cli train x.yaml")
    assert found(facts(image=bare, host=host(user_packages=("3.13",)), job=guarded), "IMG005") == ()
