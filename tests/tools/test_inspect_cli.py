"""`sifkit inspect` on files of every kind, without any Apptainer unless there is a signature to check."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.hashes import sha256_of
from sifkit.plan import Recipe
from sifkit.provenance import inspect_metadata
from sifkit.sif import DESCRIPTOR, HEADER, Descriptor, read_table
from sifkit.sifwrite import NewObject
from sifkit.store import Manifest
from tests.conftest import SPEC, FakeTool, make_image
from tests.unit.test_provenance import PACKAGES, write_empty_sif, write_image

FINGERPRINT = "8883491F4268F173C6E5DC49EDECE4F3F38D871E"


def inspect(subject: Path | str, *options: str, project: Path | None = None) -> int:
    where = ("--project", str(project)) if project else ()
    return main(["inspect", str(subject), *where, *options])


def answer(subject: Path | str, capsys: pytest.CaptureFixture[str], project: Path | None = None) -> dict[str, Any]:
    assert inspect(subject, "--json", project=project) == Exit.OK
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def sign_by_hand(sif: Path, fingerprint: str) -> None:
    """A signature object of group 1, as far as its descriptor tells."""
    with sif.open("r+b") as file:
        header, rows = read_table(file)
        index = next(at for at, row in enumerate(rows) if not row.used)
        extra = bytes(4) + bytes.fromhex(fingerprint)
        row = Descriptor(0x4005, True, index + 1, 0xF0000000, 0xF0000001, HEADER.size, 0, 0, 0, 0, 0, 0, b"", extra)
        file.seek(header.table + index * DESCRIPTOR.size)
        file.write(DESCRIPTOR.pack(*row))


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In no project."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


@pytest.fixture
def no_apptainer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sifkit.run.shutil.which", lambda program, path: None)


# ---------------------------------------------------------------------------------------------- whole images


def test_an_image_is_told_from_its_file_alone(
    tmp_path: Path, no_apptainer: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sif, image = write_image(tmp_path / "example.sif"), make_image()
    found = answer(sif, capsys)
    assert found["labels"].pop("org.sifkit.version") == "1.2.3"
    del found["labels"]
    assert found == {
        "image": str(sif),
        "name": "example",
        "sha256": sha256_of(sif),
        "size": sif.stat().st_size,
        "sifkit": "1.2.3",
        "versions": {"llamafactory": "0.9.5", "torch": "2.9.1"},
        "base": "debian-trixie",
        "python_packages": 3,
        "debian_packages": 2,
        "spec_digest": image.spec.digest(),
        "lock_digest": image.lock.digest(),
        "carries": ["spec", "lock", "definition", "packages", "sbom"],
        "facts": False,
        "signature": {"state": "unsigned", "keys": [], "said": ""},
        "doubts": [],
        "built_here": None,
        "differences": None,
    }


def test_a_person_reads_it_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(write_image(tmp_path / "example.sif")) == Exit.OK
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "built by sifkit 1.2.3" in lines
    assert "holds llamafactory 0.9.5, torch 2.9.1" in lines
    assert "packages 3 of Python, 2 of Debian" in lines
    assert "carries spec, lock, definition, list of Debian packages, bill of materials" in lines
    assert "signature none" in lines


@pytest.mark.parametrize(
    ("part", "text"),
    [("spec", SPEC), ("lock", make_image().lock.text), ("definition", "Bootstrap: x\n"), ("packages", PACKAGES)],
)
def test_a_part_is_printed_as_it_is(part: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(write_image(tmp_path / "example.sif"), "--show", part) == Exit.OK
    assert capsys.readouterr().out == text


def test_the_bill_of_materials_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(write_image(tmp_path / "example.sif"), "--show", "sbom") == Exit.OK
    assert json.loads(capsys.readouterr().out)["bomFormat"] == "CycloneDX"


# ---------------------------------------------------------------------------------------------- in a project


def test_an_image_of_the_project_is_named_and_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "images").mkdir()
    sif = write_image(project / "images" / "example.sif")
    status = sif.stat()
    recipe = Recipe("a", "b", "c", "d")
    manifest = Manifest("example", sha256_of(sif), status.st_size, status.st_mtime_ns, "2026", recipe, "x", {}, {})
    (project / "images" / "example.json").write_text(manifest.to_json())
    for word in ("example", "definitions/example.yaml", str(sif)):
        found = answer(word, capsys, project)
        assert (found["image"], found["built_here"], found["differences"]) == (str(sif), True, [])
    assert inspect("example", project=project) == Exit.OK
    assert "as in this project" in capsys.readouterr().out

    copied = Path(shutil.copy(sif, project / "copy.sif"))
    with copied.open("ab") as file:
        file.write(b"more")
    assert answer(copied, capsys, project)["built_here"] is False


def test_what_changed_in_the_project_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sif = write_image(project / "example.sif")
    path = project / "definitions" / "example.yaml"
    path.write_text(SPEC.replace("apt: [gcc, git]", "apt: [gcc]"))
    lock = project / "definitions" / "example.lock"
    lock.write_text(lock.read_text().replace("transformers==5.6.0", "transformers==5.7.0"))
    assert answer(sif, capsys, project)["differences"] == [
        "spec: apt: ['gcc', 'git'] -> ['gcc']",
        "lock: transformers: 5.6.0 -> 5.7.0",
    ]
    assert inspect(sif, project=project) == Exit.OK
    assert "  lock: transformers: 5.6.0 -> 5.7.0\n" in capsys.readouterr().out


def test_a_project_without_such_a_spec_or_with_a_broken_one_is_no_error(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sif = write_image(project / "example.sif")
    (project / "definitions" / "example.yaml").write_text("nmae: x\n")
    (said,) = answer(sif, capsys, project)["differences"]
    assert "this project's own spec or lock cannot be read" in said
    (project / "definitions" / "example.yaml").unlink()
    assert answer(sif, capsys, project)["differences"] is None


# ---------------------------------------------------------------------------------------------- images of others


def test_an_image_built_elsewhere_is_said_to_be_with_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"maintainer": "somebody", "org.label-schema.usage.singularity.deffile.from": "ubuntu:24.04"}
    metadata = inspect_metadata({"/.singularity.d/labels.json": json.dumps(labels)})
    sif = write_empty_sif(tmp_path / "other.sif", [NewObject(0x4001, "", b"Bootstrap: docker\n"), metadata])
    assert inspect(sif) == Exit.OK
    out = capsys.readouterr().out
    assert "This image carries nothing of its making: it was not built by sifkit. Its labels:" in out
    assert "  maintainer: somebody\n" in out
    assert inspect(sif, "--show", "definition") == Exit.OK
    assert capsys.readouterr().out == "Bootstrap: docker\n"
    assert inspect(sif, "--show", "lock") == Exit.PROBLEM
    assert "carries no lock" in capsys.readouterr().err
    assert answer(sif, capsys)["base"] == "ubuntu:24.04"


def test_labels_that_the_file_does_not_tell_are_asked_of_apptainer(
    tmp_path: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.dumps({"data": {"attributes": {"labels": {"asked": "yes"}}}})
    fake_tool("apptainer", f"case $1 in --version) echo 1.4.5 ;; inspect) echo '{told}' ;; esac")
    assert answer(write_empty_sif(tmp_path / "old.sif"), capsys)["labels"] == {"asked": "yes"}


def test_an_image_that_nobody_can_ask_is_told_as_far_as_it_goes(
    tmp_path: Path, no_apptainer: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(write_empty_sif(tmp_path / "old.sif")) == Exit.OK
    assert capsys.readouterr().out.endswith("Its labels:\n  none\n")


def test_what_a_terminal_would_obey_is_shown_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"evil\x1b[2J": "[bold]\x1b]0;title\x07", "org.opencontainers.image.base.name": "a\u202eb"}
    metadata = inspect_metadata({"/.singularity.d/labels.json": json.dumps(labels)})
    assert inspect(write_empty_sif(tmp_path / "evil.sif", [metadata])) == Exit.OK
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e"} & set(out)
    assert "evil\\x1b[2J: [bold]\\x1b]0;title\\x07" in out


# ---------------------------------------------------------------------------------------------- signatures


def verifying(fake_tool: FakeTool, answer: str) -> None:
    fake_tool("apptainer", f"case $1 in --version) echo 1.4.5 ;; verify) {answer} ;; esac")


def test_a_signature_is_checked(tmp_path: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]) -> None:
    sif = write_image(tmp_path / "example.sif")
    sign_by_hand(sif, FINGERPRINT)
    verifying(fake_tool, "true")
    assert answer(sif, capsys)["signature"] == {"state": "valid", "keys": [FINGERPRINT], "said": ""}


def test_a_changed_file_is_said_with_exit_code_1(
    tmp_path: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    sif = write_image(tmp_path / "example.sif")
    sign_by_hand(sif, FINGERPRINT)
    words = "FATAL:   Failed to verify container: integrity: data object integrity compromised: 3"
    verifying(fake_tool, f"echo '{words}' >&2; exit 255")
    assert inspect(sif) == Exit.PROBLEM
    said = " ".join(capsys.readouterr().out.split())
    expected = f"by {FINGERPRINT}, but it was changed since then (integrity: data object integrity compromised: 3)"
    assert expected in said


def test_a_key_that_is_not_known_here_is_said(
    tmp_path: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    sif = write_image(tmp_path / "example.sif")
    sign_by_hand(sif, FINGERPRINT)
    words = "FATAL: Failed to verify container: signature object 9 not valid: openpgp: signature made by unknown entity"
    verifying(fake_tool, f"echo '{words}' >&2; exit 255")
    assert inspect(sif) == Exit.OK
    assert "the public key is not in the keyring here" in " ".join(capsys.readouterr().out.split())


def test_without_apptainer_a_signature_is_said_to_be_unchecked(
    tmp_path: Path, no_apptainer: None, capsys: pytest.CaptureFixture[str]
) -> None:
    sif = write_image(tmp_path / "example.sif")
    sign_by_hand(sif, FINGERPRINT)
    assert answer(sif, capsys)["signature"] == {"state": "unchecked", "keys": [FINGERPRINT], "said": ""}


# ---------------------------------------------------------------------------------------------- what is no image


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"no sif at all\n" * 100, "it does not begin as a SIF file does"),
        (b"cut", "it does not begin as a SIF file does"),
    ],
)
def test_a_file_that_is_no_image_is_said_without_traceback(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.sif").write_bytes(content)
    assert inspect(tmp_path / "bad.sif") == Exit.USAGE
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("bytes_kept", [60, 200, 5000, 29000])
def test_an_image_that_was_cut_off_is_said_without_traceback(
    bytes_kept: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sif = write_image(tmp_path / "cut.sif")
    os.truncate(sif, bytes_kept)
    assert inspect(sif) == Exit.USAGE
    assert "is no image" in capsys.readouterr().err


def test_no_file_a_directory_and_a_name_outside_a_project_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(tmp_path / "none.sif") == Exit.USAGE
    assert inspect(tmp_path) == Exit.USAGE
    assert inspect("example") == Exit.USAGE
    assert capsys.readouterr().err.count("fix:") == 3


def test_carried_texts_that_are_none_are_said_and_the_rest_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = [NewObject(0x4007, "spec.yaml", b"\xff\xfe"), NewObject(0x4007, "requirements.lock", b"x")]
    found = answer(write_empty_sif(tmp_path / "odd.sif", objects), capsys)
    assert (found["spec_digest"], found["lock_digest"], len(found["doubts"])) == (None, None, 2)


@pytest.mark.parametrize("options", [["--show", "nothing"], ["--show", "spec", "--json"]])
def test_wrong_options_are_said(options: list[str], tmp_path: Path) -> None:
    assert inspect(write_image(tmp_path / "example.sif"), *options) == Exit.USAGE


# ---------------------------------------------------------------------------------------------- build --sign


@pytest.mark.parametrize("options", [["--key", FINGERPRINT], ["--sign", "--list"], ["--sign", "--render"]])
def test_options_of_a_signature_that_mean_nothing_are_refused(options: list[str], project: Path) -> None:
    assert main(["build", "--project", str(project), *options]) == Exit.USAGE


def test_without_a_key_nothing_is_built(project: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]) -> None:
    fake_tool("apptainer", 'case $1 in --version) echo 1.4.5 ;; key) ;; *) echo "unexpected: $*" >&2; exit 9 ;; esac')
    assert main(["build", "example", "--sign", "--project", str(project)]) == Exit.USAGE
    assert "there is no key to sign with" in capsys.readouterr().err
    assert not (project / "images").exists()
