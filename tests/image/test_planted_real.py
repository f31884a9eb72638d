"""Two of the failures that tests/gpu plants on GPU nodes, on the CPU: the planting itself works wherever images run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sifkit.errors import Exit
from tests.gpu import plant
from tests.gpu.plant import Subject

pytestmark = pytest.mark.image


@pytest.fixture
def subject(default_sif: Path, llamafactory: Path, tmp_path: Path) -> Subject:
    return plant.subject(default_sif, tmp_path, llamafactory, "cpu")


def test_no_c_compiler(subject: Subject, tmp_path: Path) -> None:
    done = subject.verify(tmp_path, env=plant.without_compiler(subject, tmp_path))
    assert done.code == Exit.PROBLEM
    assert "Triton" in done.failure("C compiler and Python headers")


def test_flash_attention_asked_for_and_not_there(subject: Subject, tmp_path: Path) -> None:
    recipe = yaml.safe_load((subject.checkout / "examples" / "train_lora" / "qwen3_lora_sft.yaml").read_text())
    path = tmp_path / "fa2.yaml"
    path.write_text(yaml.safe_dump({**recipe, "flash_attn": "fa2"}))
    done = subject.verify(tmp_path, "--config", str(path))
    assert done.code == Exit.PROBLEM
    assert "flash-attn" in done.failure("flash_attn: fa2")
