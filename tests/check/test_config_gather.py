"""Reading a config from disk: whatever lies there becomes facts, or a problem that says what to do."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sifkit.check.facts import Problem
from sifkit.gather.config import config_of, read_config
from tests.check.real import real_facts


def problem(path: Path) -> Problem:
    config = read_config(path)
    assert config.problem is not None
    assert config.values == {}
    return config.problem


def test_a_config_is_read_with_its_overrides(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("learning_rate: 1e-4\nbf16: true\n")
    config = read_config(path, ["bf16=false", "max_steps=3"], real_facts("0.9.5"))
    assert config.problem is None
    assert config.values == {"learning_rate": 1e-4, "bf16": False, "max_steps": 3}
    assert config.line("bf16") == 2
    assert config.line("max_steps") is None
    assert config.overrides == ("bf16=false", "max_steps=3")


def test_the_image_decides_how_numbers_are_read(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("learning_rate: 1e-4\n")
    old = replace(real_facts("0.9.4"), llamafactory="0.9.3")
    assert read_config(path, (), old).values == {"learning_rate": "1e-4"}
    assert read_config(path).values == {"learning_rate": 1e-4}


@pytest.mark.parametrize(
    ("content", "message", "line"),
    [
        (b"a: \xff\n", "not UTF-8", 1),
        (b"\x7fELF\0\0", "binary, no text", None),
        (b"a" * 1_000_001, "1,000,001 bytes are no training config", None),
        (b"a: 1\n b: 2\n", "not YAML: mapping values are not allowed here", 2),
        (b"- a\n", "expected keys and values, found a list", 1),
    ],
)
def test_content_that_is_no_config_is_a_problem(tmp_path: Path, content: bytes, message: str, line: int | None) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(content)
    found = problem(path)
    assert found.message == message
    assert found.line == line


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "qwen3_lora_sft.yaml").write_text("a: 1\n")
    assert problem(tmp_path / "qwen3_lora_stf.yaml") == Problem("no such file", "did you mean qwen3_lora_sft.yaml?")
    assert problem(tmp_path / "nowhere" / "a.yaml") == Problem("no such file", "correct the path")


def test_a_directory_a_fifo_and_a_device_are_no_configs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    started = time.monotonic()
    assert problem(tmp_path).message == "a directory, no file"
    assert problem(tmp_path / "fifo.yaml").message == "no regular file"
    assert problem(Path("/dev/zero")).message == "no regular file"
    assert time.monotonic() - started < 1


def test_a_file_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("a: 1\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        child = os.fork()
        if child == 0:  # root may read anything, so somebody else has to try
            tmp_path.chmod(0o755)
            os.setuid(65534)
            message = read_config(path).problem
            os._exit(0 if message and "you may not read it" in message.message else 1)
        for directory in tmp_path.parents[:2]:
            directory.chmod(0o755)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    else:
        assert "you may not read it" in problem(path).message


def test_odd_paths_are_problems_and_no_tracebacks(tmp_path: Path) -> None:
    assert problem(Path("a\0b.yaml")).message
    assert problem(tmp_path / ("x" * 300 + ".yaml")).message == "File name too long"
    loop = tmp_path / "loop.yaml"
    loop.symlink_to(loop)
    assert problem(loop).message == "Too many levels of symbolic links"


def test_llamafactory_takes_other_names_for_options() -> None:
    config = config_of(Path("train.txt"), "a: 1\n")
    assert config.problem == Problem(
        "LLaMA-Factory reads no config from a file named train.txt: it takes the name for an option",
        "name it train.yaml",
    )
    assert config_of(Path("train.json"), "{}", (), real_facts("0.9.4")).problem is None
    assert config_of(Path("train.json"), "{}", (), real_facts("0.9.5")).problem is not None
