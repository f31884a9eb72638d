"""The command line of `--engine docker`, without a daemon; builds with a real one are in tests/docker."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit


def build(project: Path, *words: str) -> int:
    return main(["build", "--project", str(project), *words])


def test_render_prints_a_dockerfile(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build(project, "example", "--render", "--engine", "docker") == Exit.OK
    text = capsys.readouterr().out
    assert "\nFROM debian:trixie-slim\n" in text
    assert "--mount" not in text
    assert build(project, "example", "--render", "--engine", "docker", "--buildkit", "--json") == Exit.OK
    (answer,) = json.loads(capsys.readouterr().out)
    assert "--mount=type=cache" in answer["definition"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--buildkit"], "--buildkit belongs to --render --engine docker"),
        (["--render", "--buildkit"], "--buildkit belongs to --render --engine docker"),
        (["--engine", "docker", "--buildkit"], "--buildkit belongs to --render --engine docker"),
        (["--list", "--engine", "docker"], "--list builds nothing"),
        (["--engine", "podman"], "podman"),
    ],
)
def test_options_that_say_nothing_are_refused(
    words: list[str], said: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(project, *words) == Exit.USAGE
    assert said in " ".join(capsys.readouterr().err.split())


def test_without_a_daemon_nothing_is_started_and_apptainer_is_offered(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    assert build(project, "example", "--engine", "docker") == Exit.HOST
    said = " ".join(capsys.readouterr().err.split())
    assert "no Docker daemon answers at unix://" in said
    assert "build with Apptainer: leave out --engine docker" in said
    assert not (project / "build").exists()


def test_an_address_that_is_none_is_named(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "carrier-pigeon://roof")
    assert build(project, "example", "--engine", "docker") == Exit.HOST
    assert "look at DOCKER_HOST" in capsys.readouterr().err
