"""The audit of compiled files on the real default image: it passes; wheels of another torch in it are named."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from uv import find_uv_bin

from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.audit import audit_image, read_image
from sifkit.deffile import VENV
from sifkit.run import Runner
from sifkit.verify.checks import Check, Outcome
from sifkit.verify.elf import parse_elf
from tests.conftest import TABLES

pytestmark = pytest.mark.image

RESOLVE = "shared objects resolve"
VERSIONS = "symbol versions are there"
ABI = "extensions fit torch's C++ ABI"
KERNELS = "torch has kernels for the site's GPUs"

SITE_PACKAGES = f"{VENV}/lib/python3.13/site-packages"

ASK_TORCH = (
    "import json, torch; "
    "print(json.dumps([torch.__version__, torch.version.cuda, torch._C._cuda_getArchFlags().split(), "
    "torch.compiled_with_cxx11_abi()]))"
)


def audited(image: Path, apptainer: Apptainer, binds: tuple[Bind, ...] = ()) -> dict[str, Check]:
    return {check.name: check for check in audit_image(image, apptainer, TABLES, ("A100", "H100"), binds)}


def test_the_default_image_passes(default_sif: Path, apptainer: Apptainer) -> None:
    checks = audited(default_sif, apptainer)
    assert {name: check.outcome for name, check in checks.items()} == dict.fromkeys(
        (RESOLVE, VERSIONS, ABI, KERNELS), Outcome.PASSED
    )


def test_what_is_read_of_torch_is_what_torch_says(default_sif: Path, apptainer: Apptainer) -> None:
    answer = read_image(default_sif, apptainer)
    assert answer.facts is not None
    torch = parse_elf(answer.facts).torch
    assert torch is not None
    command = Exec(default_sif, ("python3", "-c", ASK_TORCH)).command(apptainer)
    said = json.loads(apptainer.runner.run(command).output.splitlines()[-1])
    assert [torch.version, torch.cuda, list(torch.architectures), torch.cxx11_abi] == said


def test_every_extension_of_torch_is_among_those_that_are_looked_at(default_sif: Path, apptainer: Apptainer) -> None:
    answer = read_image(default_sif, apptainer)
    assert answer.facts is not None
    facts = parse_elf(answer.facts)
    symbols = {extension.path.removeprefix(f"{SITE_PACKAGES}/"): extension.symbols for extension in facts.extensions}
    assert symbols["torchvision/_C.so"] > 100
    assert symbols["torchaudio/lib/libtorchaudio.so"] > 100
    assert {"torch", "torchvision", "torchaudio", "numpy", "pyarrow"} <= {one.owner.split()[0] for one in facts.native}


def wheel(tmp_path: Path, requirement: str) -> Path:
    """The files of one wheel for the image's Python; uv keeps it in its cache."""
    target = tmp_path / "wheel"
    argv = [find_uv_bin(), "pip", "install", "--no-deps", "--target", str(target), "--python", sys.executable]
    argv += ["--python-version", "3.13", "--python-platform", "x86_64-manylinux_2_28", requirement]
    Runner({**os.environ}).output(*argv)
    return target


def in_place_of(default_sif: Path, apptainer: Apptainer, tree: Path, package: str) -> tuple[Bind, ...]:
    """The folders of a wheel, bound where the image's release of that package has its own."""
    command = Exec(default_sif, ("sh", "-c", f"ls -d {SITE_PACKAGES}/{package}-*.dist-info")).command(apptainer)
    (own,) = apptainer.runner.run(command).output.split()
    empty = tree / "empty"
    empty.mkdir()
    folders = [path for path in tree.iterdir() if path.is_dir() and path.name.startswith(package)]
    return (Bind(empty, own), *(Bind(folder, f"{SITE_PACKAGES}/{folder.name}") for folder in folders))


@pytest.mark.index
def test_torchvision_with_the_other_abi_is_named(default_sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    """torchvision 0.21.0 is for torch 2.6.0, whose wheels have the older ABI."""
    tree = wheel(tmp_path, "torchvision==0.21.0")
    checks = audited(default_sif, apptainer, in_place_of(default_sif, apptainer, tree, "torchvision"))
    assert {name for name, check in checks.items() if check.outcome is Outcome.FAILED} == {ABI}
    assert "c10::detail::torchCheckFail [_ZN3c106detail14torchCheckFailEPKcS2_jRKSs]" in checks[ABI].message
    assert checks[ABI].cause == (
        "torchvision 0.21.0 was built with the other C++ ABI (_GLIBCXX_USE_CXX11_ABI=0; torch 2.9.1 (CUDA 12.8) has 1)"
    )


@pytest.mark.index
def test_torchaudio_of_another_torch_is_named(default_sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    tree = wheel(tmp_path, "torchaudio==2.11.0")
    check = audited(default_sif, apptainer, in_place_of(default_sif, apptainer, tree, "torchaudio"))[RESOLVE]
    assert check.outcome is Outcome.FAILED
    assert "libcudart.so.13 (needed by torchaudio/" in check.message
    assert (check.cause or "").startswith("torchaudio 2.11.0 belongs to another torch: it needs libcudart.so.13")


def test_an_image_without_python_is_one_failed_check(default_sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    missing = tmp_path / "python3"
    missing.write_text("#!/bin/sh\necho 'no Python here' >&2\nexit 127\n")
    missing.chmod(0o755)
    (check,) = audit_image(default_sif, apptainer, TABLES, binds=(Bind(missing, f"{VENV}/bin/python3"),))
    assert (check.name, check.outcome, check.message) == ("the image starts", Outcome.FAILED, "no Python here")
