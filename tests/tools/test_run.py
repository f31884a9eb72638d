"""The one door through which programs start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from sifkit.errors import CommandFailed, HostError
from sifkit.redact import redact
from sifkit.run import Command, Runner
from tests.conftest import FakeTool


def test_standard_output_comes_back_alone_and_the_log_holds_both(runner: Runner, tmp_path: Path) -> None:
    log = tmp_path / "log"
    result = runner.run(Command(("sh", "-c", "echo out; echo err >&2")), log=log)
    assert result.output == "out\n"
    assert sorted(log.read_text().split()) == ["err", "out"]


def test_a_failure_carries_the_last_lines(runner: Runner) -> None:
    with pytest.raises(CommandFailed, match=r"sh failed \(exit 3\):\nwhy") as caught:
        runner.run(Command(("sh", "-c", "echo why >&2; exit 3")))
    assert (caught.value.returncode, caught.value.tail) == (3, ("why",))


def test_a_program_that_is_not_there_is_said(runner: Runner) -> None:
    with pytest.raises(HostError, match="no-such-program is not installed"):
        runner.run(Command(("no-such-program",)))


def test_a_progress_bar_is_one_line_in_its_last_state(runner: Runner) -> None:
    lines: list[str] = []
    runner.run(Command(("printf", "10%%\\r50%%\\r100%%\\ndone\\n")), on_line=lines.append)
    assert lines == ["100%", "done"]


def test_a_reader_that_goes_away_does_not_stop_the_program(runner: Runner, tmp_path: Path) -> None:
    def gone(_: str) -> None:
        raise BrokenPipeError

    result = runner.run(Command(("sh", "-c", "seq 20000; touch done"), cwd=tmp_path), on_line=gone)
    assert (result.returncode, len(result.output.split())) == (0, 20000)
    assert (tmp_path / "done").exists()


def test_the_callers_environment_stays_outside(tmp_path: Path) -> None:
    environ = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": "/x",
        "APPTAINER_BIND": "/y",
        "https_proxy": "http://proxy.example",
    }
    said = Runner(environ).output("env")
    assert "https_proxy=http://proxy.example" in said
    assert "PYTHONPATH" not in said
    assert "APPTAINER_BIND" not in said


def test_a_timeout_ends_the_program_and_says_so(runner: Runner) -> None:
    with pytest.raises(CommandFailed, match=r"no end after 0:00:00\.300000"):
        runner.run(Command(("sleep", "60")), timeout=timedelta(milliseconds=300))


def test_what_must_not_outlive_the_program_is_removed(runner: Runner, tmp_path: Path) -> None:
    always, on_failure = tmp_path / "always", tmp_path / "on-failure"

    def run(script: str) -> tuple[bool, bool]:
        always.mkdir(exist_ok=True)
        on_failure.write_text("")
        command = Command(("sh", "-c", script), remove_after=(always,), remove_on_failure=(on_failure,))
        runner.run(command, check=False)
        return always.exists(), on_failure.exists()

    assert run("true") == (False, True)
    assert run("false") == (False, False)


KILLED = """
import os, pathlib, signal, sys
from sifkit.run import Runner

def mkdir(path, *options, make=pathlib.Path.mkdir, **more):
    make(path, *options, **more)
    os.kill(os.getpid(), signal.SIGKILL)

pathlib.Path.mkdir = mkdir
with Runner(os.environ).scratch("scratch-", pathlib.Path(sys.argv[1])):
    pass
"""


def test_a_scratch_directory_is_gone_even_when_we_are_killed_right_after_it_was_made(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    deadline = time.monotonic() + 30
    while any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_directory_is_the_users_alone_and_gone_afterwards(runner: Runner, tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), runner.scratch("scratch-", tmp_path) as directory:
        (directory / "file").write_text("x")
        assert directory.stat().st_mode & 0o777 == 0o700
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_the_shown_command_can_be_pasted() -> None:
    command = Command(("echo", "it's", "a b"), env={"X": "$HOME"})
    assert command.shown() == "X='$HOME' echo 'it'\"'\"'s' 'a b'"


def test_secrets_are_hidden_from_people_and_not_from_programs(
    monkeypatch: pytest.MonkeyPatch, fake_tool: FakeTool, tmp_path: Path
) -> None:
    fake_tool("talks", 'echo "token hf_abcdefgh"; echo "http://u:word@host" >&2; exit 3')
    shown: list[str] = []
    runner = Runner(os.environ, shown.append, lambda text: redact(text, ["hf_abcdefgh"]))
    log = tmp_path / "log"
    result = runner.run(Command(("talks", "http://u:pw@host")), log=log, on_line=shown.append, check=False)
    assert result.output == "token hf_abcdefgh\n"
    assert set(result.tail) == set(log.read_text().splitlines()) == {"token ****", "http://u:****@host"}
    assert shown[0] == "$ talks http://u:****@host"
    assert set(shown[1:]) == set(result.tail)
