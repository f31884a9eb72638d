"""tests/gpu/gather.py's pure parts: what a GPU node without network is brought, and what it has."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import parse_wheel_filename

from sifkit.errors import UsageError
from tests.gpu.gather import (
    LEFT_OUT,
    NODE,
    Pin,
    glibc_of,
    keep_only,
    leave_out,
    newest_allowed,
    node_packages,
    on_the_node,
)

REQUIRED = [Requirement(text) for text in ("gradio<=5.50.0,>=4.38.0", "modelscope", "hf_transfer", "av<=16.0.0,>=10")]


def test_what_the_node_has_is_read_with_and_without_versions() -> None:
    assert node_packages("# said\nHuggingface_Hub==1.33.0\nscipy  # seen\n\n") == {
        "huggingface-hub": "1.33.0",
        "scipy": None,
    }


def test_only_another_version_than_the_nodes_is_carried() -> None:
    there = {"tokenizers": "0.23.2", "scipy": None}
    assert not on_the_node(Pin("tokenizers", "0.22.2"), there)
    assert on_the_node(Pin("tokenizers", "0.23.2"), there)
    assert on_the_node(Pin("scipy", "1.18.1"), there)
    assert on_the_node(Pin("nvidia-cublas", "13.1.0.3"), there)
    assert not on_the_node(Pin("nvidia-ml-py", "13.615.71"), there)


def test_the_nodes_own_torch_is_never_carried() -> None:
    there = node_packages(NODE.read_text())
    assert on_the_node(Pin("torch", "2.11.0"), there)
    assert not set(LEFT_OUT) & there.keys()


def test_the_upper_bound_is_what_stands_for_a_package() -> None:
    assert [newest_allowed(REQUIRED, name) for name in LEFT_OUT] == ["5.50.0", "16.0.0", "999", "999"]
    with pytest.raises(UsageError, match="does not require flask"):
        newest_allowed(REQUIRED, "flask")


def test_a_wheel_without_files_says_so_and_pip_would_take_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "llamafactory-0.9.5-py3-none-any.whl", "w") as wheel:
        wheel.writestr("llamafactory-0.9.5.dist-info/METADATA", "Name: llamafactory\nRequires-Dist: gradio<=5.50.0\n")
    path = leave_out("gradio", tmp_path)
    name, version, _, _ = parse_wheel_filename(path.name)
    assert (name, str(version)) == ("gradio", "5.50.0+left.out")
    assert REQUIRED[0].specifier.contains(version)
    before = path.read_bytes()
    assert leave_out("gradio", tmp_path).read_bytes() == before
    with zipfile.ZipFile(path) as wheel:
        assert all(".dist-info/" in file for file in wheel.namelist())
        assert "no files" in wheel.read("gradio-5.50.0+left.out.dist-info/METADATA").decode()


def test_the_newest_glibc_of_a_program_counts() -> None:
    assert glibc_of(b"\x7fELF\0GLIBC_2.4\0GLIBC_2.38\0GLIBC_2.9\0") == (2, 38)
    assert glibc_of(b"#!/bin/sh\n\0GLIBC_2.99\0") == (0, 0)


def test_what_an_earlier_run_brought_and_nobody_wants_goes(tmp_path: Path) -> None:
    for name in ("old.whl", "new.whl"):
        (tmp_path / name).touch()
    keep_only(tmp_path, [tmp_path / "new.whl"])
    assert [path.name for path in tmp_path.iterdir()] == ["new.whl"]
