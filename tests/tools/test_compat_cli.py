"""What the compatibility tables stop and say, through the command line: nothing is resolved or built meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from tests.conftest import SPEC, FakeTool, lock_text, make_spec

SITE = "gpu: {driver: '%s', models: [%s]}\n"


@pytest.fixture
def no_programs(fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> None:
    """uv and Apptainer leave a trace when they are started."""
    tool = fake_tool("apptainer", 'echo "started" >&2; exit 9')
    monkeypatch.setattr("uv.find_uv_bin", lambda: str(tool))


def spec_file(project: Path, name: str, text: str) -> Path:
    path = project / "definitions" / f"{name}.yaml"
    path.write_text(text)
    return path


def site_file(tmp_path: Path, driver: str, models: str) -> str:
    path = tmp_path / "site.yaml"
    path.write_text(SITE % (driver, models))
    return str(path)


@pytest.mark.usefixtures("no_programs")
def test_lock_refuses_before_it_resolves_and_leaves_no_lock(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SPEC.replace("name: example", "name: wrong") + "packages: [torchaudio==2.11.0, transformers==5.7.0]\n"
    spec_file(project, "wrong", text)
    assert main(["lock", "wrong", "--project", str(project)]) == Exit.PROBLEM
    said = capsys.readouterr().err
    assert "torchaudio 2.11.0 (packages: torchaudio==2.11.0) belongs to another torch" in said
    assert "takes transformers!=4.52.0,!=4.57.0,<=5.6.0,>=4.55.0 (metadata)" in said
    assert "fix: take torchaudio out of packages" in said
    assert "--no-check" in said
    assert "started" not in said
    assert not (project / "definitions" / "wrong.lock").exists()


@pytest.mark.usefixtures("no_programs")
def test_no_check_goes_on_all_the_same(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec_file(project, "wrong", SPEC.replace("name: example", "name: wrong") + "packages: [torchaudio==2.11.0]\n")
    assert main(["lock", "wrong", "--no-check", "--project", str(project)]) == Exit.PROGRAM
    assert "started" in capsys.readouterr().err


@pytest.mark.usefixtures("no_programs")
def test_build_refuses_what_this_site_cannot_run(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build", "example", "--project", str(project), "--site"]
    assert main([*argv, site_file(tmp_path, "470.57.02", "A100")]) == Exit.PROBLEM
    assert "CUDA 12.8 needs driver 525.60.13 or newer, not 470.57.02" in capsys.readouterr().err
    assert main([*argv, site_file(tmp_path, "580.65.06", "P100")]) == Exit.PROBLEM
    said = capsys.readouterr().err
    assert "has no kernels for P100 (sm_60)" in said
    assert "torch 2.7.1 (CUDA 12.6)" in said
    assert main([*argv, site_file(tmp_path, "470.57.02", "A100"), "--no-check"]) == Exit.PROGRAM


@pytest.mark.usefixtures("no_programs")
def test_a_lock_that_cannot_work_is_refused_at_build(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packages = ("torch==2.9.1", "torchaudio==2.11.0", "transformers==5.6.0", "uv==0.13.9")
    (project / "definitions" / "example.lock").write_text(lock_text(make_spec(), *packages))
    assert main(["build", "example", "--project", str(project)]) == Exit.PROBLEM
    assert "torchaudio 2.11.0 (the lock) belongs to another torch" in capsys.readouterr().err


@pytest.mark.usefixtures("no_programs")
def test_warnings_and_unknowns_are_said_and_stop_nothing(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["build", "example", "--project", str(project), "--site", site_file(tmp_path, "580.65.06", "Z900")]
    assert main(argv) == Exit.PROGRAM  # Apptainer was started
    said = capsys.readouterr().err
    assert "example: unknown: GPU 'Z900' is in no row" in said
    assert "example: warning: apt lacks libc6-dev, python3-dev" in said


def test_resolve_completes_a_spec_and_keeps_what_stands_there(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "# ours\nname: mine\nllamafactory: 0.9.5\ngpu: [V100, H100]\ndriver: '535.104'\n"
    path = spec_file(project, "mine", text)
    assert main(["lock", "mine", "--project", str(project)]) == Exit.USAGE
    assert "let sifkit choose what is missing: sifkit resolve mine" in capsys.readouterr().err
    assert main(["resolve", "mine", "--project", str(project)]) == Exit.OK
    out = capsys.readouterr().out
    assert "has no kernels for V100" in out
    assert "torch 2.10.0, CUDA 12.8" in out
    assert path.read_text().startswith(text)
    assert 'torch: {version: 2.10.0, cuda: "12.8"}' in path.read_text()
    assert main(["build", "--render", "mine", "--project", str(project)]) == Exit.USAGE  # no lock yet, but a whole spec
    assert "sifkit lock mine" in capsys.readouterr().err


def test_resolve_upgrade_chooses_anew_and_dry_run_writes_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project / "definitions" / "example.yaml"
    assert main(["resolve", "example", "--project", str(project), "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["chosen"]["torch"] == {"version": "2.9.1", "cuda": "12.8"}
    assert path.read_text() == SPEC
    argv = ["resolve", "example", "--upgrade", "--cuda", "12.8", "--project", str(project)]
    assert main([*argv, "--dry-run"]) == Exit.OK
    assert "version: 2.10.0" in capsys.readouterr().out
    assert path.read_text() == SPEC
    assert main(argv) == Exit.OK
    assert path.read_text() == SPEC.replace("2.9.1", "2.10.0")


def test_resolve_writes_the_users_words_and_not_the_sites(project: Path, tmp_path: Path) -> None:
    path = spec_file(project, "mine", "name: mine\nllamafactory: 0.9.5\n")
    path.chmod(0o640)
    site = site_file(tmp_path, "580.65.06", "A100")
    argv = ["resolve", "mine", "--gpu", "H100,B200", "--extra", "metrics", "--project", str(project), "--site", site]
    assert main(argv) == Exit.OK
    text = path.read_text()
    assert "gpu: [H100, B200]\n" in text
    assert "extras: [metrics]\n" in text
    assert "580.65.06" not in text
    assert path.stat().st_mode & 0o777 == 0o640
    path.rename(project / "real.yaml")
    path.symlink_to(project / "real.yaml")
    assert main(["resolve", "mine", "--upgrade", "--cuda", "12.8", "--project", str(project)]) == Exit.OK
    assert path.is_symlink()
    assert "2.10.0" in path.read_text()


@pytest.mark.parametrize("word", ["/etc/passwd", "../x", "a b", "x/y"])
def test_resolve_writes_into_definitions_alone(word: str, project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", word, "--project", str(project)]) == Exit.USAGE
    assert "no image's name" in capsys.readouterr().err


def test_resolve_without_an_image_prints_a_spec(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resolve", "--gpu", "RTX5090", "--driver", "570.26", "--project", str(project)]) == Exit.OK
    printed = capsys.readouterr()
    assert printed.out.startswith("# yaml-language-server")
    assert 'torch: {version: 2.10.0, cuda: "12.8"}' in printed.out
    assert "because of" in printed.err


def test_resolve_begins_a_spec(project: Path) -> None:
    argv = ["resolve", "new", "--llamafactory", "0.9.3", "--cuda", "12.4", "--extra", "metrics"]
    assert main([*argv, "--project", str(project)]) == Exit.OK
    text = (project / "definitions" / "new.yaml").read_text()
    assert "base: debian-bookworm\n" in text
    assert "extras: [metrics]\n" in text


def test_resolve_says_what_would_make_it_possible(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["resolve", "--gpu", "V100", "--cuda", "13.0", "--project", str(project)]
    assert main(argv) == Exit.PROBLEM
    assert "CUDA 12.8 instead of 13.0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["resolve", "--cuda", "cu128"], "--cuda: 'cu128' cannot be read"),
        (["resolve", "--driver", "new"], "driver"),
        (["resolve", "--llamafactory", "newest"], "llamafactory"),
        (["resolve", "--extra", "metric"], "did you mean metrics?"),
        (["compat", "update", "--cuda", "12.6"], "the site file names none"),
    ],
)
def test_wrong_words_are_usage_errors(
    argv: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--project", str(project)]) == Exit.USAGE
    assert said in capsys.readouterr().err
