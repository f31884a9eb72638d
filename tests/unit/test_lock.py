"""Locks: written, read, found stale; refusals in the resolver's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sifkit import lock
from sifkit.errors import CommandFailed, UsageError
from sifkit.model import LockedPackage, Site
from tests.conftest import lock_text, make_spec, wanted

PACKAGE = LockedPackage("torch", "2.9.1", "torch-2.9.1-cp313-cp313-manylinux_2_28_x86_64.whl", 900, "a" * 64)

CONFLICT = """\
  × No solution found when resolving dependencies:
  ╰─▶ Because llamafactory==0.9.5 depends on transformers<=5.6.0 and you require
      transformers==5.7.0, we can conclude that your requirements are
      unsatisfiable.

hint: something long"""


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("soundfile-0.14.0-py2.py3-none-manylinux_2_28_x86_64.whl", "soundfile-0.14.0-py2.py3-none-any.whl"),
        ("x-1-cp313-cp313-manylinux2014_x86_64.whl", "x-1-cp38-abi3-manylinux_2_28_x86_64.whl"),
        ("x-1-cp313-cp313-manylinux_2_40_x86_64.whl", "x-1-cp313-cp313-manylinux1_x86_64.whl"),
        ("x-1-py312-none-any.whl", "x-1-py310-none-any.whl"),
        ("x-1-py3-none-any.whl", "x-1-pp310-pypy310_pp73-manylinux_2_28_x86_64.whl"),
    ],
)
def test_of_several_wheels_the_one_is_locked_that_an_installer_would_take(
    better: str, worse: str, turned: bool
) -> None:
    names = (worse, better) if turned else (better, worse)
    wheels = [{"name": name, "url": f"x/{name}", "hashes": {"sha256": "0" * 64}} for name in names]
    (package,) = lock.locked_packages({"packages": [{"name": "x", "version": "1", "wheels": wheels}]}, wanted())
    assert package.file == better


def test_what_is_written_is_read_back() -> None:
    spec = make_spec()
    text = lock.render_lock(spec, wanted(spec), [PACKAGE])
    read = lock.parse_lock(text, "example.lock")
    assert read.packages == (PACKAGE,)
    assert read.inputs_digest == wanted(spec).digest()
    assert read.download_bytes() == 900


GOOD = lock_text(make_spec(), "torch==2.9.1", "numpy==2.0.0")


@pytest.mark.parametrize(
    "edited",
    [
        GOOD + "scipy==1.0\n",
        GOOD + "\tscipy==1.0\n",
        GOOD + "    --index-url http://other.example\n",
        GOOD + GOOD.split("\n", 3)[3],
        GOOD.replace("numpy==2.0.0 \\\n    --hash=sha256:" + "0" * 64 + "  # numpy-2.0.0.whl 1000\n", ""),
        GOOD.replace("\n", "\r\n"),
        GOOD.replace(" 1000", " " + "9" * 5000),
        "",
    ],
)
def test_a_lock_that_was_edited_is_refused_and_can_be_written_again(edited: str, tmp_path: Path) -> None:
    assert edited != GOOD
    with pytest.raises(UsageError) as caught:
        lock.parse_lock(edited, "definitions/example.lock")
    assert caught.value.fix == "write it again: sifkit lock example"
    path = tmp_path / "example.lock"
    path.write_bytes(edited.encode())
    assert lock.state(wanted(), path) == "damaged"


def test_a_lock_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "example.lock"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not a text file"):
        lock.read_lock(path)


def test_states(tmp_path: Path) -> None:
    path = tmp_path / "example.lock"
    assert lock.state(wanted(), path) == "missing"
    path.write_text(lock_text(make_spec(), "torch==2.9.1"))
    assert lock.state(wanted(), path) == "current"
    assert lock.state(wanted(apt=("nano",)), path) == "current"
    assert lock.state(wanted(packages=("scipy",)), path) == "stale"
    with pytest.raises(UsageError, match="is stale"):
        lock.current_lock(wanted(packages=("scipy",)), path)


def test_the_one_file_of_each_package_is_taken() -> None:
    hashes = {"sha256": "b" * 64}
    torch = {"url": "x/torch-2.9.1%2Bcu126-cp313-cp313-linux_x86_64.whl", "size": 5, "hashes": hashes}
    jieba = {"url": "x/jieba-0.42.1.tar.gz", "size": 7, "hashes": hashes}
    pylock: dict[str, Any] = {
        "packages": [
            {"name": "Torch", "version": "2.9.1+cu126", "wheels": [torch]},
            {"name": "jieba", "version": "0.42.1", "sdist": jieba},
        ]
    }
    assert lock.locked_packages(pylock, wanted()) == [
        LockedPackage("jieba", "0.42.1", "jieba-0.42.1.tar.gz", 7, "b" * 64),
        LockedPackage("torch", "2.9.1+cu126", "torch-2.9.1+cu126-cp313-cp313-linux_x86_64.whl", 5, "b" * 64),
    ]


def test_an_index_without_hashes_is_refused() -> None:
    pylock: dict[str, Any] = {
        "packages": [{"name": "torch", "version": "1", "wheels": [{"url": "x/torch-1-py3-none-any.whl"}]}]
    }
    with pytest.raises(UsageError, match="no sha256"):
        lock.locked_packages(pylock, wanted())


def test_a_refusal_is_shortened_to_the_conflict_with_what_to_change() -> None:
    error = lock.refusal(make_spec(packages=("transformers==5.7.0",)), CONFLICT, 1)
    assert isinstance(error, UsageError)
    assert error.message == (
        "example cannot be resolved:\n  Because llamafactory==0.9.5 depends on transformers<=5.6.0 and you require "
        "transformers==5.7.0, we can conclude that your requirements are unsatisfiable."
    )
    assert error.fix == "change one of: llamafactory.version (now 0.9.5); packages: transformers==5.7.0"


def test_an_unreachable_index_is_not_a_conflict() -> None:
    error = lock.refusal(make_spec(), "error: Request failed\n  Caused by: dns error", 2)
    assert isinstance(error, CommandFailed)
    assert "python_index.url" in (error.fix or "")


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({}, ["--only-binary", ":all:"]),
        ({"wheelhouse": "/wheels"}, ["--no-index", "--find-links", "/wheels"]),
    ],
)
def test_the_sites_index_is_asked(index: dict[str, str], words: list[str]) -> None:
    site = Site.model_validate({"python_index": index})
    argv = lock.uv_command(wanted(), site, Path("in"), Path("out"))
    start = argv.index(words[0])
    assert argv[start : start + len(words)] == words


def test_an_indexs_password_stands_in_no_command_line() -> None:
    url = "https://reader:word@index.example/simple"
    site = Site.model_validate({"python_index": {"url": url}})
    assert url not in lock.uv_command(wanted(), site, Path("in"), Path("out"))
    assert lock.index_environment(wanted(), site) == {"UV_DEFAULT_INDEX": url}


def test_an_index_that_refuses_is_no_lack_of_packages() -> None:
    said = """  × No solution found when resolving dependencies:
  ╰─▶ Because torch was not found in the package registry and you require torch==2.9.1, we can conclude that your
      requirements are unsatisfiable.
hint: An index URL (http://packages.example/simple/) could not be queried due to a lack of valid authentication
credentials (401 Unauthorized)."""
    error = lock.refusal(make_spec(), said, 1)
    assert isinstance(error, CommandFailed)
    assert "python_index.url" in str(error.fix)


def test_torch_for_another_cuda_comes_from_the_sites_torch_index_or_uvs() -> None:
    resolution = wanted(torch={"version": "2.9.1", "cuda": "12.6"})
    site = Site.model_validate({"python_index": {"torch_url": "https://torch.example/{cuda}"}})
    assert "--torch-backend" not in lock.uv_command(resolution, site, Path("in"), Path("out"))
    assert lock.index_environment(resolution, site) == {"UV_INDEX": "https://torch.example/cu126"}
    plain = lock.uv_command(resolution, Site(), Path("in"), Path("out"))
    assert plain[-2:] == ["--torch-backend", "cu126"]


def test_constraints_are_handed_to_the_resolver() -> None:
    old = wanted(base="debian-bookworm", python="3.11", llamafactory={"version": "0.9.3"})
    argv = lock.uv_command(old, Site(), Path("work/in"), Path("out"))
    assert argv[argv.index("--constraints") + 1] == "work/constraints.txt"
    assert "--constraints" not in lock.uv_command(wanted(), Site(), Path("work/in"), Path("out"))
