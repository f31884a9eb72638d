"""`--verify --device cpu` on the real default image: it passes; each planted fault exits 1 and names its cause."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from rich.console import Console

from sifkit.apptainer import Apptainer
from sifkit.assemble import Layers, join, layers_held, squash_command
from sifkit.bytecode import site_packages
from sifkit.cli import main
from sifkit.deffile import VENV
from sifkit.errors import Exit
from sifkit.execute import load_image
from sifkit.model import Site
from sifkit.progress import PlainProgress
from sifkit.run import Command, Runner
from sifkit.spec import Project
from sifkit.squash import Source
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop, fresh_log

pytestmark = pytest.mark.image


def verify(image: Path, report: Path, *options: str) -> tuple[int, dict[str, Any]]:
    code = main(["build", "--verify", "--device", "cpu", "--report", str(report), *options, str(image)])
    return code, json.loads((report / "report.json").read_text())


def failures(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in report["checks"] if check["outcome"] == "failed"}


@pytest.fixture(scope="session")
def good(default_sif: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Path]:
    """One verification that should pass, with what it left."""
    directory = tmp_path_factory.mktemp("good")
    return (*verify(default_sif, directory, "--keep"), directory)


def test_the_default_image_trains(good: tuple[int, dict[str, Any], Path]) -> None:
    code, report, directory = good
    assert (code, failures(report)) == (Exit.OK, {})
    outcomes = {check["level"]: check["outcome"] for check in report["checks"]}
    assert outcomes["host"] == outcomes["kernel"] == "not run"
    passed = {check["name"] for check in report["checks"] if check["outcome"] == "passed"}
    assert {"packages equal the lock", "shared objects resolve", "expected files", "a stopped run resumes"} <= passed
    suites = ElementTree.parse(directory / "junit.xml").getroot()
    assert sum(int(suite.get("failures", "0")) for suite in suites) == 0


def test_plain_apptainer_trains_by_hand(
    good: tuple[int, dict[str, Any], Path], default_sif: Path, llamafactory: Path, tmp_path: Path
) -> None:
    """The design's command line, with the overrides that a tiny model on the CPU needs."""
    apptainer = Apptainer.find(Runner(os.environ))
    model = good[2] / "work" / "model"
    argv = [apptainer.program, "exec", "--bind", f"{llamafactory}:/mnt", "--bind", f"{model}:/model"]
    overrides = "model_name_or_path=/model output_dir=/out max_samples=8 max_steps=2 logging_steps=1 cutoff_len=128"
    overrides += " use_cpu=true bf16=false preprocessing_num_workers=1 dataloader_num_workers=0"
    script = f"cd /mnt && llamafactory-cli train examples/train_lora/qwen3_lora_sft.yaml {overrides}"
    out = tmp_path / "out"
    out.mkdir()
    command = (*argv, "--bind", f"{out}:/out", str(default_sif), "bash", "-c", script)
    apptainer.runner.run(Command(command, env={**apptainer.privileges.run_env, "APPTAINERENV_HF_HOME": "/out/hf"}))
    assert {"adapter_model.safetensors", "train_results.json", "trainer_log.jsonl"} <= {
        path.name for path in out.iterdir()
    }


def test_a_checkout_without_dataset_info_is_named_before_anything_starts(
    default_sif: Path, llamafactory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, report = copied(llamafactory, tmp_path), tmp_path / "report"
    (broken / "data" / "dataset_info.json").unlink()
    options = ("--device", "cpu", "--report", str(report), "--checkout", str(broken))
    assert main(["build", "--verify", *options, str(default_sif)]) == Exit.PROBLEM
    assert "DAT001" in (words := capsys.readouterr().err)
    assert "dataset_info.json" in words
    assert not list(report.glob("*"))


def test_a_checkout_of_another_version_is_named(default_sif: Path, llamafactory: Path, tmp_path: Path) -> None:
    other = copied(llamafactory, tmp_path)
    env = other / "src" / "llamafactory" / "extras" / "env.py"
    env.write_text(env.read_text().replace('VERSION = "0.9.5"', 'VERSION = "0.9.4"'))
    code, report = verify(default_sif, tmp_path / "report", "--checkout", str(other))
    assert code == Exit.PROBLEM
    assert {"0.9.4", "0.9.5"} <= set(said(report).replace(",", " ").replace(":", " ").split())


def test_a_loss_that_is_not_a_number_is_named(default_sif: Path, llamafactory: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((llamafactory / "examples" / "train_lora" / "qwen3_lora_sft.yaml").read_text())
    path = tmp_path / "diverges.yaml"
    path.write_text(yaml.safe_dump({**config, "learning_rate": 1.0e30, "warmup_ratio": 0.0}))
    code, report = verify(default_sif, tmp_path / "report", "--config", str(path))
    assert code == Exit.PROBLEM
    assert "learning_rate" in said(report)
    assert any(name.startswith("losses") for name in failures(report))


@pytest.fixture
def broken_sif(default_sif: Path, tmp_path: Path) -> Path:
    """The default image with torchaudio 2.11 in it: what pip and uv choose for torch 2.9 when they are let."""
    project = Project(default_sif.parent.parent)
    tools = Tools(project, Site(), Runner(os.environ), PlainProgress(Console(stderr=True)), dict(os.environ))
    workshop = Workshop(tools, Apptainer.find(tools.runner), tmp_path, fresh_log(project, "broken"))
    image = load_image(default_sif.stem, tools)
    layers = Layers(image, workshop.base(image, Timings()), workshop)
    with layers_held(tools) as lock:
        layers.complete(Timings(), lock)
    other = [source for source in layers.sources if not source.path.name.startswith("torchaudio-")]
    target = tmp_path / "broken.sif"
    join(image, [*other, torchaudio(image.spec.python, workshop, tmp_path / "tree")], workshop, tmp_path, target)
    return target


def torchaudio(python: str, workshop: Workshop, tree: Path) -> Source:
    """A layer of the one that does not belong there."""
    place = tree / VENV[1:] / site_packages(python)
    options = (
        "--no-deps",
        "--no-compile",
        "--only-binary",
        ":all:",
        "--python-version",
        python,
        "--target",
        str(place),
    )
    workshop.run(Command((sys.executable, "-m", "pip", "install", "-q", *options, "torchaudio==2.11.0")))
    layer = tree.with_suffix(".sqfs")
    workshop.run(squash_command(tree, layer))
    return Source(layer)


def test_torchaudio_of_another_torch_is_named(broken_sif: Path, tmp_path: Path) -> None:
    code, report = verify(broken_sif, tmp_path / "report")
    assert code == Exit.PROBLEM
    assert "torchaudio" in said(report)
    assert "libcudart.so.13" in said(report)
    assert "another torch" in said(report)
    broken_sif.unlink()  # 5 GB


def test_without_a_gpu_it_fails_at_once_in_words(default_sif: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("there is a GPU here")
    assert main(["build", "--verify", str(default_sif)]) == Exit.HOST
    assert "--device cpu" in capsys.readouterr().err


def copied(llamafactory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(llamafactory, tmp_path / "checkout"))


def said(report: dict[str, Any]) -> str:
    """All that the failed checks say."""
    return "\n".join(f"{check['message']} {check['cause']} {check['fix']}" for check in failures(report).values())
