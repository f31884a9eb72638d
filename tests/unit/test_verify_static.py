"""Level static: facts that a container would answer, judged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sifkit.compat.tables import has_kernels
from sifkit.model import Inherited, Lock, LockedPackage
from sifkit.verify.checks import Outcome
from sifkit.verify.elf import ElfFacts, ElfObject, Torch
from sifkit.verify.gpus import judge_architectures
from sifkit.verify.static import (
    Compiler,
    Distribution,
    ImageFacts,
    Import,
    Nvcc,
    judge_compiler,
    judge_imports,
    judge_nvcc,
    judge_origin,
    judge_packages,
    judge_static,
    parse_facts,
)
from tests.conftest import TABLES

SITE = "/opt/venv/lib/python3.13/site-packages"
ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")

ELF = ElfFacts(
    "EM_X86_64", (ElfObject(f"{SITE}/x.so"),), (), Torch("2.9.1+cu128", "12.8", ARCHITECTURES, True), (), 0.5
)

FACTS = ImageFacts(
    python="3.13.5",
    user_site=False,
    distributions=(Distribution("torch", "2.9.1"), Distribution("torchaudio", "2.9.1")),
    elf=ELF,
    compiler=Compiler("/usr/bin/gcc", True, ""),
    nvcc=None,
    imports=(Import("torch", 3.0, None),),
    importing=None,
    outside=(),
    torch_cuda="12.8",
    architectures=ARCHITECTURES,
)


def lock_of(**versions: str) -> Lock:
    packages = tuple(LockedPackage(name, version, f"{name}.whl", 1, "0" * 64) for name, version in versions.items())
    return Lock("", "", packages)


LOCK = lock_of(torch="2.9.1", torchaudio="2.9.1")


def test_a_good_image_passes_every_check() -> None:
    checks = judge_static(FACTS, LOCK, ("A100", "H100"), TABLES)
    assert {check.name: check.outcome for check in checks if check.outcome is not Outcome.PASSED} == {}


# ------------------------------------------------------------------ packages


def test_another_version_than_locked_fails() -> None:
    check = judge_packages(FACTS.distributions, lock_of(torch="2.9.0", torchaudio="2.9.1"))
    assert check.outcome is Outcome.FAILED
    assert check.message == "torch 2.9.1 (lock: 2.9.0)"


def test_a_missing_package_fails() -> None:
    check = judge_packages(FACTS.distributions, lock_of(torch="2.9.1", torchaudio="2.9.1", trl="0.24.0"))
    assert check.outcome is Outcome.FAILED
    assert "trl missing (lock: 0.24.0)" in check.message


def test_a_package_besides_the_lock_is_a_warning() -> None:
    check = judge_packages((*FACTS.distributions, Distribution("flash-attn", "2.8.3")), LOCK)
    assert check.outcome is Outcome.WARNED
    assert "flash-attn 2.8.3" in check.message


def test_installers_besides_the_lock_are_nothing() -> None:
    installers = tuple(Distribution(name, "1") for name in ("pip", "uv", "setuptools"))
    assert judge_packages((*FACTS.distributions, *installers), LOCK).outcome is Outcome.PASSED


def test_packages_of_the_hosts_environment_are_compared_like_locked_ones() -> None:
    lock = replace(lock_of(torchaudio="2.9.1"), inherited=(Inherited("torch", "2.9.1"),))
    check = judge_packages(FACTS.distributions, lock)
    assert (check.outcome, check.message) == (
        Outcome.PASSED,
        "2 packages, each of the locked version, 1 of them the host's",
    )
    other = judge_packages(FACTS.distributions, replace(lock, inherited=(Inherited("torch", "2.9.1+cu128"),)))
    assert (other.outcome, other.message) == (Outcome.FAILED, "torch 2.9.1 (lock: 2.9.1+cu128)")


def test_of_a_package_that_is_there_twice_the_first_on_the_path_counts() -> None:
    twice = [{"name": "Six", "version": "1.17"}, {"name": "six", "version": "1.16"}, {"name": "a", "version": "1"}]
    assert parse_facts({**ANSWER, "distributions": twice}).distributions == (
        Distribution("a", "1"),
        Distribution("six", "1.17"),
    )


def test_names_are_compared_in_their_normal_form() -> None:
    lock = Lock("", "", (LockedPackage("Typing_Extensions", "4.1", "x.whl", 1, "0" * 64),))
    assert judge_packages((Distribution("typing-extensions", "4.1"),), lock).outcome is Outcome.PASSED


def test_without_a_lock_packages_are_not_judged() -> None:
    assert judge_packages(FACTS.distributions, None).outcome is Outcome.NOT_RUN


# ------------------------------------------------------------------ imports


def test_an_import_that_fails_is_explained() -> None:
    error = "Traceback …\nModuleNotFoundError: No module named 'mpi4py'\n"
    (check,) = judge_imports(replace(FACTS, imports=(Import("torch", 1.0, error),)))
    assert check.outcome is Outcome.FAILED
    assert check.message == "ModuleNotFoundError: No module named 'mpi4py'"
    assert check.cause == "the Python module mpi4py is not in the image"


def test_an_import_that_kills_the_interpreter_fails() -> None:
    checks = judge_imports(replace(FACTS, importing="torchvision"))
    assert checks[-1].outcome is Outcome.FAILED
    assert checks[-1].name == "import torchvision"


def test_modules_from_outside_the_image_fail() -> None:
    check = judge_origin(replace(FACTS, outside=(("torch", "/home/u/.local/lib/python3.13/torch/__init__.py"),)))
    assert check.outcome is Outcome.FAILED
    assert "PYTHONNOUSERSITE" in (check.fix or "")


def test_an_enabled_user_site_fails() -> None:
    assert judge_origin(replace(FACTS, user_site=True)).outcome is Outcome.FAILED


def test_the_origin_of_what_could_not_be_imported_is_not_judged() -> None:
    assert judge_origin(replace(FACTS, imports=(Import("torch", 1.0, "boom"),))).outcome is Outcome.NOT_RUN


# ------------------------------------------------------------------ GPUs and compilers


@pytest.mark.parametrize(
    ("model", "capability"),
    [("A100", (8, 0)), ("rtx-4090", (8, 9)), ("NVIDIA H100", (9, 0)), ("Tesla V100", (7, 0)), ("b200", (10, 0))],
)
def test_models_are_found_as_sites_write_them(model: str, capability: tuple[int, int]) -> None:
    gpu = TABLES.gpu(model)
    assert gpu is not None
    assert gpu.pair == capability


def test_an_unknown_model_suggests_the_nearest() -> None:
    assert TABLES.gpu("H1000") is None
    check = judge_architectures(ARCHITECTURES, "12.8", ("A100", "H1000"), TABLES)
    assert (check.outcome, check.fix) == (Outcome.WARNED, "did you mean H100?")


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((7, 0), True),
        ((8, 9), True),
        ((9, 0), True),
        ((10, 3), True),
        ((12, 0), True),
        ((6, 1), False),
        ((11, 0), False),
    ],
)
def test_binary_code_runs_within_its_major_version(capability: tuple[int, int], runs: bool) -> None:
    assert has_kernels(ARCHITECTURES, capability) is runs


def test_ptx_runs_on_what_comes_later_and_special_code_only_on_its_own() -> None:
    assert has_kernels(("sm_80", "compute_90"), (12, 0))
    assert not has_kernels(("compute_90",), (8, 0))
    assert has_kernels(("sm_90a",), (9, 0))
    assert not has_kernels(("sm_100a",), (10, 3))


def test_a_gpu_without_kernels_fails_before_anybody_queues() -> None:
    check = judge_architectures(("sm_80", "sm_90"), "12.4", ("A100", "B200"), TABLES)
    assert check.outcome is Outcome.FAILED
    assert check.message == "none for B200"
    assert "has kernels for them" in (check.fix or "")


def test_kernels_are_not_judged_without_gpu_models_or_torch() -> None:
    assert judge_architectures(ARCHITECTURES, "12.8", (), TABLES).outcome is Outcome.NOT_RUN
    assert judge_architectures((), None, ("A100",), TABLES).outcome is Outcome.NOT_RUN


def test_cuda_major_versions_have_their_oldest_driver() -> None:
    assert TABLES.oldest_driver("12.8") == "525.60.13"
    assert TABLES.oldest_driver("99.0") is None


def test_missing_python_headers_are_explained() -> None:
    said = "probe.c:1:10: fatal error: Python.h: No such file or directory"
    check = judge_compiler(Compiler("/usr/bin/gcc", False, said))
    assert check.outcome is Outcome.FAILED
    assert check.fix == "add python3-dev to apt in the spec"


def test_a_missing_compiler_fails() -> None:
    check = judge_compiler(Compiler(None, False, "no gcc, clang or cc on PATH"))
    assert check.outcome is Outcome.FAILED
    assert "gcc" in (check.fix or "")


# ------------------------------------------------------------------ the probe's answer


ANSWER: dict[str, Any] = {
    "python": "3.13.5",
    "user_site": False,
    "distributions": [{"name": "PyYAML", "version": "6.0.3", "path": SITE}],
    "elf": {
        "machine": "EM_X86_64",
        "objects": [],
        "libraries": [],
        "torch": {"version": "2.9.1+cu128", "cuda": "12.8", "architectures": ["sm_90"], "cxx11_abi": True},
        "extensions": [],
        "seconds": 0.5,
    },
    "compiler": {"program": None, "works": False, "said": ""},
    "nvcc": None,
    "imports": [],
    "importing": "torch",
    "outside": [],
}


def test_an_answer_that_ended_during_an_import_is_still_read() -> None:
    facts = parse_facts(ANSWER)
    assert facts.importing == "torch"
    assert facts.version_of("pyyaml") == "6.0.3"
    assert (facts.torch_cuda, facts.architectures) == ("12.8", ("sm_90",))  # read, though torch did not import


# ------------------------------------------------------------------ nvcc

NVCC = Nvcc("/usr/local/cuda/bin/nvcc", "12.8", True, "")
DEEPSPEED = (*FACTS.distributions, Distribution("deepspeed", "0.18.4"))


def test_a_deepspeed_that_imports_without_nvcc_is_not_asked_for_it() -> None:
    facts = replace(FACTS, nvcc=None, distributions=(*FACTS.distributions, Distribution("deepspeed", "0.19.8")))
    assert judge_nvcc(facts) == ()


def test_an_image_without_nvcc_and_without_deepspeed_is_not_asked_for_it() -> None:
    assert judge_nvcc(FACTS) == ()


@pytest.mark.parametrize(
    ("nvcc", "outcome", "said"),
    [
        (None, Outcome.FAILED, "no nvcc, and deepspeed is installed"),
        (NVCC, Outcome.PASSED, "/usr/local/cuda/bin/nvcc, CUDA 12.8; torch has 12.8"),
        (replace(NVCC, release="12.4"), Outcome.WARNED, "CUDA 12.4; torch has 12.8"),
        (replace(NVCC, release="13.0"), Outcome.FAILED, "CUDA 13.0; torch has 12.8"),
        (replace(NVCC, works=False, said="cannot find -lcudart"), Outcome.FAILED, "cannot find -lcudart"),
    ],
)
def test_nvcc_must_be_torchs_and_compile(nvcc: Nvcc | None, outcome: Outcome, said: str) -> None:
    (check,) = judge_nvcc(replace(FACTS, nvcc=nvcc, distributions=DEEPSPEED))
    assert (check.outcome, said in check.message) == (outcome, True)
    assert check.fix or outcome is Outcome.PASSED
