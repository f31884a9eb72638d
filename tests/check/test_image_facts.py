"""What an image holds: how the answer is read, kept in a cache and in the image's own file; what is no image."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from packaging.version import Version
from rich.console import Console

from sifkit.apptainer import Apptainer
from sifkit.check.facts import Argument, ImageFacts
from sifkit.errors import CommandFailed, UsageError
from sifkit.gather.image import cache_key, cached_facts, file_identity, image_facts, parse_facts, require_parser
from sifkit.gather.image_host import needed_glibc, user_packages
from sifkit.gather.image_record import identity_of, read_record
from sifkit.hashes import sha256_of
from sifkit.plan import Recipe
from sifkit.progress import PlainProgress
from sifkit.sif import OBJECT_NAME, fault_of, read_object
from sifkit.spec import Project
from sifkit.store import Manifest, Store
from tests.check.real import DATA, real_facts

BF16 = {
    "name": "bf16",
    "group": "TrainingArguments",
    "declared": "transformers.training_args.TrainingArguments",
    "type": "bool",
    "help": "BF16",
    "required": False,
    "default": False,
    "choices": [],
}
ANSWER = {
    "format": 1,
    "packages": {"llamafactory": "0.9.5", "transformers": "5.6.0"},
    "python": "3.13.5",
    "glibc": "2.41",
    "programs": {"gcc": "/usr/bin/gcc"},
    "environment": {"PATH": "/usr/bin"},
    "python_headers": True,
    "libraries": [],
    "cuda_compat": [],
    "imports": {"llamafactory.hparams.parser": ""},
    "arguments": [BF16],
    "derived": ["compute_dtype"],
    "templates": ["llama3"],
    "models": {"a/b": "llama3"},
    "model_types": ["llama"],
    "torch_cuda": "12.8",
    "torch_architectures": ["sm_90"],
    "unresolved": [],
}
SHA = "ab" * 32


def sif_bytes(**objects: bytes) -> bytes:
    """A SIF file of JSON objects by name, as pkg/sif writes it."""
    header = b"#!/usr/bin/env run-singularity\n\0" + b"SIF_MAGIC\0" + b"01\0" + b"02\0" + bytes(16)
    header += struct.pack("<8q", 0, 0, 0, 48, 4096, 48 * 585, 32176, sum(map(len, objects.values())))
    table, body, at = b"", b"", 32176
    for number, (name, content) in enumerate(objects.items(), 1):
        sizes = (at, len(content), len(content), 0, 0, 0, 0)
        table += struct.pack("<i?III7q128s384s", 0x4006, True, number, 1, 0, *sizes, name.encode(), b"")
        body, at = body + content, at + len(content)
    return header.ljust(4096, b"\0") + table.ljust(48 * 585, b"\0") + body


@pytest.fixture
def sif(tmp_path: Path) -> Path:
    path = tmp_path / "x.sif"
    path.write_bytes(sif_bytes(other=b"{}"))
    return path


def progress() -> PlainProgress:
    return PlainProgress(Console(stderr=True))


def never() -> Apptainer:
    raise AssertionError("the image was asked")


# ------------------------------------------------------------------ reading


def test_an_answer_becomes_facts() -> None:
    facts = parse_facts(json.dumps(ANSWER), Path("x.sif"), SHA)
    assert facts == ImageFacts(
        path=Path("x.sif"),
        llamafactory="0.9.5",
        transformers="5.6.0",
        python="3.13.5",
        arguments=(
            Argument(
                "bf16",
                "TrainingArguments",
                "transformers.training_args.TrainingArguments",
                "bool",
                "BF16",
                False,
                False,
                (),
            ),
        ),
        derived=frozenset({"compute_dtype"}),
        packages={"llamafactory": "0.9.5", "transformers": "5.6.0"},
        templates=frozenset({"llama3"}),
        models={"a/b": "llama3"},
        torch_cuda="12.8",
        torch_architectures=("sm_90",),
        glibc="2.41",
        programs={"gcc": "/usr/bin/gcc"},
        environment={"PATH": "/usr/bin"},
        python_headers=True,
        imports={"llamafactory.hparams.parser": ""},
        unresolved=(),
        libraries=frozenset(),
        sha256=SHA,
        model_types=frozenset({"llama"}),
    )


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "null", "[" * 100_000, '{"format": 1}', '{"format": 2}', '{"format": 1, "packages": 3}']
)
def test_anything_else_is_no_answer(text: str) -> None:
    assert parse_facts(text, Path("x.sif")) is None


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"packages": {"torch": 2}},
        {"templates": "llama3"},
        {"imports": {"torch": None}},
        {"programs": [["gcc", "/x"]]},
        {"arguments": [{**BF16, "name": 7}]},
        {"arguments": [{**BF16, "more": 7}]},
        {"arguments": [BF16["name"]]},
        {"python": None},
    ],
)
def test_an_answer_that_is_not_as_it_should_be_is_none(changed: dict[str, object]) -> None:
    assert parse_facts(json.dumps(ANSWER), Path("x.sif")) is not None
    assert parse_facts(json.dumps({**ANSWER, **changed}), Path("x.sif")) is None


def test_only_a_sha256_counts_as_one() -> None:
    facts = parse_facts(json.dumps(ANSWER), Path("x.sif"), "/images/x.sif 4096 1 2")
    assert facts is not None
    assert facts.sha256 is None


@pytest.mark.parametrize(("version", "arguments"), [("0.9.4", 354), ("0.9.5", 346)])
def test_the_facts_of_real_images_are_whole(version: str, arguments: int) -> None:
    facts = real_facts(version)
    assert (facts.llamafactory, len(facts.arguments), len(facts.imports)) == (version, arguments, 4)
    assert facts.models["meta-llama/Meta-Llama-3-8B-Instruct"] == "llama3"
    assert {"llama3", "qwen3"} <= facts.templates
    assert {"llama", "qwen3"} <= facts.model_types
    assert "sm_90" in facts.torch_architectures
    assert facts.argument("learning_rate") is not None
    require_parser(facts)


# ------------------------------------------------------------------ the cache and the file


def put(cache: Path, identity: str, content: bytes) -> None:
    path = cache / "facts" / cache_key(identity)
    path.parent.mkdir()
    path.write_bytes(content)


def test_an_image_is_asked_once(sif: Path, tmp_path: Path) -> None:
    put(tmp_path, "sha", json.dumps(ANSWER).encode())
    assert image_facts(sif, "sha", tmp_path, never, progress()).llamafactory == "0.9.5"
    with pytest.raises(AssertionError, match="the image was asked"):
        image_facts(sif, "another", tmp_path, never, progress())
    assert cached_facts(sif, "another", tmp_path) is None


def test_a_cache_that_is_damaged_is_asked_again(sif: Path, tmp_path: Path) -> None:
    put(tmp_path, "sha", b"\xff{")
    with pytest.raises(AssertionError, match="the image was asked"):
        image_facts(sif, "sha", tmp_path, never, progress())


def test_facts_in_the_images_file_need_neither_cache_nor_container(tmp_path: Path) -> None:
    path = tmp_path / "x.sif"
    path.write_bytes(sif_bytes(**{"first": b"[]", OBJECT_NAME: json.dumps(ANSWER).encode()}))
    assert image_facts(path, SHA, tmp_path / "no-cache", never, progress()).sha256 == SHA
    assert not (tmp_path / "no-cache").exists()


def test_of_facts_written_twice_the_last_count(tmp_path: Path) -> None:
    path = tmp_path / "x.sif"
    path.write_bytes(sif_bytes(**{OBJECT_NAME: b"older", "sifkit-facts.jsoo": b"newer"}).replace(b"jsoo", b"json"))
    assert read_object(path, OBJECT_NAME) == b"newer"


def test_an_image_that_changed_is_another(sif: Path) -> None:
    before = file_identity(sif)
    os.utime(sif, (1, 1))
    assert file_identity(sif) != before


def test_loading_takes_little_memory_and_no_heavy_module() -> None:
    code = (
        "import sys; from pathlib import Path; from sifkit.gather.image import parse_facts\n"
        f"assert parse_facts(Path({str(DATA / 'facts-0.9.5.json')!r}).read_text(), Path('x'))\n"
        "print(sorted({'pydantic', 'elftools', 'spython', 'jinja2', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------ what is no image


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"an image\n", "it does not begin as a SIF file does"),
        (b"\0" * 5000, "it does not begin as a SIF file does"),
        (sif_bytes(a=b"x")[:5000], "it is cut off within its header"),
        (sif_bytes(a=b"x" * 100)[:-1], "it is cut off: 32275 bytes of 32276"),
        (sif_bytes(a=b"x")[:88] + b"\xff" * 40 + bytes(5000), "its header is damaged"),
    ],
)
def test_a_file_that_is_no_image_is_said(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.sif"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"x.sif is no image: {said}"):
        image_facts(path, "sha", tmp_path, never, progress())
    assert fault_of(path) == said


def test_places_that_are_no_file_are_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, said in (
        (tmp_path, "is a directory"),
        (tmp_path / "no.sif", "no such image"),
        (tmp_path / "fifo", "no such image"),
        (Path("/dev/zero"), "no such image"),
    ):
        with pytest.raises(UsageError, match=said):
            image_facts(path, "sha", tmp_path, never, progress())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_image_without_permission_is_said(sif: Path, tmp_path: Path) -> None:
    sif.chmod(0)
    with pytest.raises(UsageError, match="cannot be read: Permission denied"):
        image_facts(sif, "sha", tmp_path, never, progress())


def test_an_image_whose_parser_fails_says_why() -> None:
    said = "Traceback …\nImportError: trl>=0.18.0,<=0.24.0 is required for a normal functioning of this module"
    broken = replace(real_facts("0.9.5"), arguments=(), imports={"llamafactory.hparams.parser": said})
    with pytest.raises(CommandFailed, match=r"does not tell its arguments: ImportError: trl>=0\.18\.0"):
        require_parser(broken)


# ------------------------------------------------------------------ the project's record


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    store = Store(project.images)
    project.images.mkdir()
    store.sif("x").write_bytes(b"an image")
    manifest = Manifest(
        name="x",
        sha256=sha256_of(store.sif("x")),
        size=8,
        mtime_ns=store.sif("x").stat().st_mtime_ns,
        built="2026-01-01T00:00:00+00:00",
        recipe=Recipe("", "", "", ""),
        base="debian-trixie",
        versions={},
        seconds={},
    )
    store.manifest_path("x").write_text(manifest.to_json())
    return project


def verified(project: Project, sha256: str, *, passed: bool = True) -> None:
    outcome = {"static": "passed" if passed else "failed"}
    record = {"sha256": sha256, "device": "cpu", "started": "2026-01-01", "passed": passed, "outcome": outcome}
    path = project.reports / "x" / "verified.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**record, "seconds": 1.0, "gpus": []}) + "\n")


def test_an_image_as_it_was_built_has_its_verifications(project: Project) -> None:
    store = Store(project.images)
    sha256 = sha256_of(store.sif("x"))
    record = read_record(project, "x")
    assert record is not None
    assert (record.change, record.verified) == (None, ())
    verified(project, "0" * 64)
    verified(project, sha256)
    again = read_record(project, "x", hash_=True)
    assert again is not None
    assert (again.change, again.verified) == (None, ("CPU",))
    assert identity_of(store, "x") == sha256


def test_a_verification_that_failed_is_none(project: Project) -> None:
    verified(project, sha256_of(Store(project.images).sif("x")), passed=False)
    record = read_record(project, "x")
    assert record is not None
    assert record.verified == ()


def test_an_image_that_was_written_to_is_seen(project: Project) -> None:
    store, path = Store(project.images), project.images / "x.sif"
    verified(project, sha256_of(path))
    os.utime(path, (1, 1))
    touched = read_record(project, "x")
    assert touched is not None
    assert (touched.change, touched.verified) == ("it was written to after it was built", ())
    assert read_record(project, "x", hash_=True) == replace(touched, change=None, verified=("CPU",))
    assert identity_of(store, "x") == file_identity(path)
    path.write_bytes(b"an imagE")
    damaged = read_record(project, "x", hash_=True)
    assert damaged is not None
    assert (damaged.change or "").startswith("its sha256 is ")
    path.write_bytes(b"an image cut off")
    cut = read_record(project, "x")
    assert cut is not None
    assert cut.change == "it has 16 bytes, the image that was built 8"


def test_an_image_that_was_not_built_here_has_no_record(project: Project) -> None:
    (project.images / "y.sif").write_bytes(b"another")
    assert read_record(project, "y") is None
    assert read_record(project, "z") is None


# ------------------------------------------------------------------ what of the host meets it


def test_packages_in_the_home_are_found_by_python(tmp_path: Path) -> None:
    (tmp_path / ".local/lib/python3.12/site-packages/torch").mkdir(parents=True)
    (tmp_path / ".local/lib/python3.13/site-packages").mkdir(parents=True)
    assert user_packages(tmp_path) == ("3.12",)
    assert user_packages(tmp_path / "no") == ()


def test_the_newest_glibc_that_libraries_need_is_read_from_them() -> None:
    needed = needed_glibc([Path(sys.executable).resolve(), Path("/etc/passwd"), Path("/no/such")])
    assert needed is not None
    ours = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()[-1]
    assert Version("2.2") < Version(needed) <= Version(ours)
    assert needed_glibc([Path("/etc/passwd")]) is None
