"""The command line: exit codes, what goes where, machine-readable answers."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.listing import Row
from tests.conftest import SPEC

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIFKIT_CACHE", str(tmp_path / "cache"))


def test_list_says_every_image_and_one_broken_spec_hides_none(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "definitions" / "bad.yaml").write_text("nmae: bad\n")
    (project / "definitions" / "unlocked.yaml").write_text(SPEC.replace("name: example", "name: unlocked"))
    assert main(["build", "--list", "--json", "--project", str(project)]) == Exit.OK
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    pins = ("0.9.5", "2.9.1", "12.8", "3.13", "debian-trixie")
    example = rows["example"]
    assert {"V100", "H100", "RTX 5090"} <= set(example["gpus"])
    assert "P100" not in example["gpus"]
    expected = Row("example", "missing", "", *pins, None, tuple(example["gpus"]), "525.60.13")
    assert {**example, "gpus": tuple(example["gpus"]), "verifications": ()} == dataclasses.asdict(expected)
    assert example["verifications"] == []
    assert rows["bad"]["state"] == "broken"
    assert "did you mean 'name'?" in rows["bad"]["why"]
    assert "sifkit lock unlocked" in rows["unlocked"]["why"]


def test_list_is_a_table_for_people(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--list", "--project", str(project)]) == Exit.OK
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:7] == ["example", "missing", "0.9.5", "2.9.1", "12.8", "3.13", "debian-trixie"]
    assert line[7:] == ["≥", "525.60.13", "V100", "T4", "A100", "A40", "L40S", "H100", "B200", "RTX", "5090"]


def test_render_writes_the_definition_and_nothing_else(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--render", "--project", str(project), "example"]) == Exit.OK
    out = capsys.readouterr().out
    assert out.startswith("# example: LLaMA-Factory 0.9.5")
    assert "\nBootstrap: " in out
    assert main(["build", "--render", "--json", "--project", str(project), "definitions/example.yaml"]) == Exit.OK
    assert json.loads(capsys.readouterr().out) == [{"name": "example", "definition": out}]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["build", "exmaple"], "did you mean example?"),
        (["build", "--gpus", "0"], "'--gpus'"),
        (["build", "--no-such-option"], "--no-such-option"),
        (["build", "--list", "--verify"], "give one of them"),
        (["build", "--verify", "example", "--device", "tpu"], "'tpu'"),
        (["build", "--verify", "example", "--device", "cpu", "--config", "/none.yaml"], "--config /none.yaml"),
        (["build", "--verify", "/none/other.sif", "--device", "cpu"], "/none/other.sif: no such file"),
        (["build", "example", "--site", "/none/site.yaml"], "/none/site.yaml: no such file"),
        (["build", "--verify", "example", "--device", "cpu", "--model", "/etc/passwd"], "--model /etc/passwd"),
        (["build", "--render", "/tmp/nowhere/example.yaml"], "is not in this project"),
        (["checkout", "../../etc"], "../../etc"),
        (["lock", "exmaple"], "did you mean example?"),
    ],
)
def test_wrong_words_exit_2_and_name_the_word(
    project: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str
) -> None:
    command, *options = argv
    assert main([command, "--project", str(project), *options]) == Exit.USAGE
    assert said in " ".join(capsys.readouterr().err.split())


def test_outside_a_project_it_says_how_to_name_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--project", str(tmp_path)]) == Exit.USAGE
    assert "--project" in capsys.readouterr().err


def test_lock_check_exits_1_when_stale(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lock", "--check", "--project", str(project)]) == Exit.OK
    spec = project / "definitions" / "example.yaml"
    spec.write_text(spec.read_text() + "packages: [scipy]\n")
    assert main(["lock", "--check", "--json", "--project", str(project)]) == Exit.PROBLEM
    assert json.loads(capsys.readouterr().out) == [{"name": "example", "state": "stale"}]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == Exit.OK
    assert capsys.readouterr().out.startswith("sifkit ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small filesystem")
def test_too_small_a_tmpdir_is_said_before_anything_starts(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    site = tmp_path / "site.yaml"
    site.write_text(f"tmpdir: {small}\n")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(small)], check=True)
    try:
        assert main(["build", "--project", str(project), "--site", str(site), "example"]) == Exit.HOST
    finally:
        subprocess.run(["umount", str(small)], check=True)
    said = " ".join(capsys.readouterr().err.split())
    assert "not enough space to assemble the image: 0.9 GB needed" in said
    assert "0.0 GB free" in said


def test_build_py_on_a_bare_node_says_the_one_command(tmp_path: Path) -> None:
    shutil.copy(ROOT / "build.py", tmp_path)
    run = subprocess.run(
        [sys.executable, "-S", str(tmp_path / "build.py")], capture_output=True, text=True, check=False
    )
    assert run.returncode == Exit.HOST
    assert f"make -C {tmp_path} venv" in run.stderr


def test_build_py_goes_on_in_the_projects_own_environment(tmp_path: Path) -> None:
    shutil.copy(ROOT / "build.py", tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "went on: $*"\n')
    python.chmod(0o755)
    run = subprocess.run(
        [sys.executable, str(tmp_path / "build.py"), "--list"], capture_output=True, text=True, check=True
    )
    assert run.stdout == f"went on: {tmp_path / 'build.py'} --list\n"


@pytest.mark.parametrize("content", ["[]", "null", '"x"', "[" * 100_000, '{"sha256": 3, "device": []}', "\xff"])
def test_a_report_that_is_damaged_does_not_hide_the_list(
    project: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    report = project / "reports" / "example" / "report.json"
    report.parent.mkdir(parents=True)
    report.write_text(content, encoding="latin-1")
    assert main(["build", "--list", "--project", str(project)]) == Exit.OK
    assert "example" in capsys.readouterr().out


def test_something_else_in_the_way_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "images").write_text("not a directory")
    assert main(["build", "--list", "--project", str(project)]) == Exit.HOST
    assert str(project / "images") in "".join(capsys.readouterr().err.split())


def test_a_closed_pipe_is_quiet(project: Path) -> None:
    script = f"{sys.executable} -m sifkit build --render --project {project} example | true"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert "Traceback" not in run.stderr


def test_messages_with_brackets_are_shown_whole(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "definitions" / "bad.yaml").write_text("name: '[red]'\n")
    assert main(["build", "--list", "--project", str(project)]) == Exit.OK
    assert "[a-z0-9]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build", "--method", "lora"], "add --verify"),
        (["build", "--list", "--gpus", "5"], "add --verify"),
        (["build", "--list", "nosuch"], "leave the names out"),
        (["build", "--verify", "--device", "cpu", "--gpus", "3", "example"], "leave out one of them"),
        (["build", "--verify", "nosuch"], "nosuch"),
        (["build", "--verify", "--report", ""], "empty word"),
    ],
)
def test_options_that_say_nothing_together_are_refused(
    project: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(words) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_a_path_with_colons_is_shown_as_it_is(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["build", "--verify", "--device", "cpu", "--config", "d:b:x", "example"]) == Exit.USAGE
    assert "d:b:x" in capsys.readouterr().err


def test_a_check_loads_nothing_of_builds_and_registries() -> None:
    """It may take a second (docs/benchmarks.md), of which these would take a third."""
    script = "import sys; import sifkit.commands.check; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"requests", "docker", "cyclonedx", "sifkit.assemble", "sifkit.execute", "sifkit.registry", "sifkit.sign"}
    assert heavy & set(loaded) == set()
