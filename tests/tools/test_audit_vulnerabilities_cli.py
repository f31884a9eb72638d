"""`sifkit audit --vulnerabilities` as a person calls it: what it reads, says, and ends with."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.sif import DESCRIPTOR, HEADER
from tests.unit.test_vulnerabilities import api, row, server, write_zip

OLD = row("CVE-2024-1", "transformers", {"introduced": "0"}, {"fixed": "5.6.1"}, summary="a hole", aliases=["GHSA-x"])
OTHER = row("CVE-2024-2", "transformers", {"introduced": "0"}, {"fixed": "5.6.0"})


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "all.zip", OLD, OTHER)


def run(project: Path, *words: str) -> int:
    return main(["audit", "--vulnerabilities", "--project", str(project), *words])


def test_a_vulnerable_lock_is_a_problem_with_its_fix(
    project: Path, dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project, "example", "--database", str(dump)) == Exit.PROBLEM
    said = capsys.readouterr().out
    assert "example.lock: 3 packages, 1 known vulnerability" in said
    assert "transformers  5.6.0    5.6.1     CVE-2024-1 GHSA-x  not rated  a hole" in said
    assert 'fix: in definitions/example.yaml: packages: ["transformers>=5.6.1"]; then sifkit lock example' in said
    assert "CVE-2024-2" not in said


def test_json_has_the_lock_the_database_and_what_was_ignored(
    project: Path, dump: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(project, "example", "--database", str(dump), "--json", "--ignore", "GHSA-X") == Exit.OK
    result = json.loads(capsys.readouterr().out)
    assert result["packages"] == 3
    assert result["database"] == {"source": str(dump), "entries": 2, "newest": "2024-01-01T00:00:00Z"}
    assert result["vulnerabilities"] == []
    assert result["ignored"] == [
        {
            "package": "transformers",
            "version": "5.6.0",
            "ids": ["CVE-2024-1", "GHSA-x"],
            "certain": True,
            "summary": "a hole",
            "severity": "",
            "vectors": [],
            "fixed": "5.6.1",
            "clean": "5.6.1",
            "url": "https://osv.dev/vulnerability/CVE-2024-1",
        }
    ]


def test_nothing_known_is_said_with_how_old_the_knowledge_is(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = write_zip(tmp_path / "all.zip", OTHER)
    assert run(project, "example", "--database", str(dump), "--ignore", "CVE-1999-1") == Exit.OK
    said = capsys.readouterr()
    assert f"3 packages, nothing known ({dump}, 1 entries, the newest of 2024-01-01T00:00:00Z)" in said.out
    assert "--ignore CVE-1999-1: nothing of that name was found" in said.err


def test_an_api_is_asked_where_one_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server(api(OLD)) as (url, _):
        assert run(project, "example", "--database", url) == Exit.PROBLEM
    assert "CVE-2024-1" in capsys.readouterr().out


def test_no_database_is_not_checked_and_says_how_to_get_one(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sifkit.vulnerabilities.database.API", "http://127.0.0.1:9")
    monkeypatch.setattr("sifkit.vulnerabilities.database.Wire.pause", 0.0)
    assert run(project, "example", "--json") == Exit.HOST
    said = capsys.readouterr()
    assert said.out == ""
    assert "not checked for vulnerabilities" in said.err
    assert "--database all.zip" in said.err


@pytest.mark.parametrize("words", [["--database", "x.zip"], ["--ignore", "CVE-1"]])
def test_its_options_alone_are_refused(project: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "example", "--project", str(project), *words]) == Exit.USAGE
    assert "add --vulnerabilities" in capsys.readouterr().err


def test_the_other_audits_option_is_refused(project: Path) -> None:
    assert run(project, "example", "--gpu", "H100") == Exit.USAGE


def test_a_damaged_database_is_a_wrong_command_line(project: Path, dump: Path) -> None:
    dump.write_bytes(dump.read_bytes()[:-30])
    assert run(project, "example", "--database", str(dump)) == Exit.USAGE


# ------------------------------------------------------------------ which lock


def test_a_lock_file_may_be_named(project: Path, dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = project / "definitions" / "example.lock"
    assert run(project, str(lock), "--database", str(dump)) == Exit.PROBLEM
    assert "definitions/example.yaml: packages" in capsys.readouterr().out
    elsewhere = project / "other.lock"
    elsewhere.write_text(lock.read_text())
    assert run(project, str(elsewhere), "--database", str(dump)) == Exit.PROBLEM
    assert "definitions/IMAGE.yaml: packages" in capsys.readouterr().out


@pytest.mark.parametrize("subject", ["nobody", "missing.sif", "missing.lock", "."])
def test_what_has_no_lock_is_refused(project: Path, dump: Path, subject: str) -> None:
    assert run(project, subject, "--database", str(dump)) == Exit.USAGE


def sif_with(path: Path, name: str, data: bytes) -> Path:
    """A SIF of one object, as far as its header is read."""
    offset = HEADER.size + DESCRIPTOR.size
    header = HEADER.pack(b"", b"SIF_MAGIC\0", b"01\0", b"02\0", b"", 0, 0, 0, 1, HEADER.size, DESCRIPTOR.size, 0, 0)
    row = DESCRIPTOR.pack(0x4007, True, 1, 0, 0, offset, len(data), len(data), 0, 0, 0, 0, name.encode(), b"")
    path.write_bytes(header + row + data)
    return path


def test_an_image_file_is_judged_by_the_lock_that_it_carries(
    project: Path, dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = (project / "definitions" / "example.lock").read_bytes()
    image = sif_with(tmp_path / "foreign.sif", "requirements.lock", lock)
    assert run(project, str(image), "--database", str(dump)) == Exit.PROBLEM
    assert f"{image}: requirements.lock: 3 packages" in capsys.readouterr().out


def test_an_image_without_a_lock_is_not_called_fine(
    project: Path, dump: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = sif_with(tmp_path / "theirs.sif", "something", b"x")
    assert run(project, str(image), "--database", str(dump)) == Exit.USAGE
    assert "carries no lock" in capsys.readouterr().err


@pytest.mark.parametrize("data", [b"", b"not an image", struct.pack("<200x")])
def test_a_broken_image_is_said_to_be_broken(
    project: Path, dump: Path, tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "broken.sif"
    image.write_bytes(data)
    assert run(project, str(image), "--database", str(dump)) == Exit.USAGE
    assert "no whole image" in capsys.readouterr().err
