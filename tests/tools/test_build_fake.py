"""Building with a fake Apptainer: argv, failures, interruption. The real one is in tests/integration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.hashes import sha256_of
from sifkit.sifwrite import write_sif
from sifkit.squash import Source
from tests.conftest import FakeTool

# Holds a list of Debian packages and a uv, packed as sifkit packs.
TINY = Path(__file__).parent / "data" / "tiny.sqfs"

# Answers like Apptainer: writes the target of a build (a base, or a directory), installs what a lock names, logs calls.
FAKE_APPTAINER = """\
echo "$*" >> "$HOME/calls"
case "$1" in
--version) echo "apptainer version 1.4.5-fake" ;;
build)
    for last; do previous="$target"; target="$last"; done
    cp "$last" "$HOME/$(basename "$previous").def"
    case "$*" in
    *--sandbox*)
        mkdir -p "$previous/.singularity.d" "$previous/opt/sifkit"
        touch "$previous/opt/sifkit/requirements.lock" "$previous/opt/sifkit/spec.yaml"
        echo '{}' > "$previous/.singularity.d/labels.json"
        touch "$previous/environment" "$previous/singularity"
        ;;
    *) cp "$HOME/base.sif" "$previous" ;;
    esac
    ;;
exec)
    for word; do
        case "$word" in
        *:/opt) venv="${word%:/opt}/venv" ;;
        *:/var/cache/sifkit) lent="${word%:/var/cache/sifkit}" ;;
        esac
    done
    case "$*" in
    *script.sh)
        echo home > "$venv/pyvenv.cfg"
        sed -n 's/^\\([^=]*\\)==\\([^ ]*\\) .*/\\1-\\2.dist-info/p' "$lent/missing.lock" | while read -r info; do
            mkdir -p "$venv/lib/python3.13/site-packages/$info"
            echo "$info/RECORD,," > "$venv/lib/python3.13/site-packages/$info/RECORD"
        done
        ;;
    *) exit 1 ;;
    esac
    ;;
test) true ;;
esac
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, so that the test's caches and calls are its own."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SIFKIT_CACHE", str(home / "cache"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    write_sif(home / "base.sif", [Source(TINY)], (), time=0)
    mksquashfs = tmp_path / "programs" / "mksquashfs"  # packs nothing
    mksquashfs.parent.mkdir()
    mksquashfs.write_text(f'#!/bin/sh\ncp "{TINY}" "$2"\n')
    mksquashfs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{mksquashfs.parent}:{os.environ['PATH']}")
    return home


def build(project: Path, *options: str) -> int:
    return main(["build", "--project", str(project), "example", *options])


def calls(home: Path) -> list[str]:
    return [line.split()[0] for line in (home / "calls").read_text().splitlines()]


def test_a_build_leaves_image_and_manifest_and_nothing_else(project: Path, home: Path, fake_tool: FakeTool) -> None:
    fake_tool("apptainer", FAKE_APPTAINER)
    assert build(project) == Exit.OK
    assert sorted(path.name for path in (project / "images").iterdir()) == [
        ".example.lock",
        "example.json",
        "example.sif",
    ]
    manifest = json.loads((project / "images" / "example.json").read_text())
    assert manifest["versions"]["transformers"] == "5.6.0"
    assert manifest["sha256"] == sha256_of(project / "images" / "example.sif")
    assert calls(home).count("build") == 2  # the base, and what is this image's own
    assert sorted(path.name.rsplit("-", 1)[0] for path in (home / "cache" / "layers").glob("*.sqfs")) == [
        "torch",
        "transformers",
        "uv",
        "venv",
    ]
    assert not list((home.parent / "tmp").iterdir())


def test_what_is_current_is_not_built_again(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("apptainer", FAKE_APPTAINER)
    build(project)
    before = calls(home)
    assert build(project) == Exit.OK
    assert calls(home) == before
    assert "up to date" in capsys.readouterr().err


def test_a_second_image_reuses_base_and_layers(project: Path, home: Path, fake_tool: FakeTool) -> None:
    fake_tool("apptainer", FAKE_APPTAINER)
    build(project)
    first = sha256_of(project / "images" / "example.sif")
    assert installs(home) == 1
    assert build(project, "--force") == Exit.OK
    assert calls(home).count("build") == 3
    assert installs(home) == 1
    assert sha256_of(project / "images" / "example.sif") == first


@pytest.mark.parametrize("where", ["layers/torch-*.sqfs", "layers/venv-*.sqfs.sha256"])
def test_a_damaged_layer_is_made_again(project: Path, home: Path, fake_tool: FakeTool, where: str) -> None:
    fake_tool("apptainer", FAKE_APPTAINER)
    build(project)
    first = sha256_of(project / "images" / "example.sif")
    (damaged,) = (home / "cache").glob(where)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    assert build(project, "--force") == Exit.OK
    assert installs(home) == 2
    assert sha256_of(project / "images" / "example.sif") == first


def installs(home: Path) -> int:
    """How often a container of the base installed packages."""
    return sum(line.endswith("script.sh") for line in (home / "calls").read_text().splitlines())


def test_a_package_that_was_not_installed_is_named(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("apptainer", FAKE_APPTAINER.replace("while read", "grep -v torch | while read"))
    assert build(project) == Exit.PROGRAM
    assert "uv did not install what the lock names: torch" in " ".join(capsys.readouterr().err.split())
    assert not (project / "images" / "example.sif").exists()


def test_a_failure_leaves_nothing_and_names_log_and_last_lines(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    full = 'echo "FATAL: write: no space left on device" >&2; exit 255'
    script = f'case "$1" in --version) echo 1.4.5 ;; build) {full} ;; esac'
    fake_tool("apptainer", script)
    assert build(project) == Exit.PROGRAM
    said = " ".join(capsys.readouterr().err.split())
    assert "no space left on device" in said
    assert "likely cause:" in said
    assert str(project / "build" / "example.log").replace(" ", "") in said.replace(" ", "")
    assert not [path for path in (project / "images").iterdir() if path.suffix != ".lock"]
    assert not list((home.parent / "tmp").iterdir())


def test_an_image_that_fails_its_test_is_not_published_and_the_old_one_stays(
    project: Path, home: Path, fake_tool: FakeTool
) -> None:
    fake_tool("apptainer", FAKE_APPTAINER)
    build(project)
    before = sha256_of(project / "images" / "example.sif")
    fake_tool("apptainer", FAKE_APPTAINER.replace("test) true", "test) false"))
    assert build(project, "--force") == Exit.PROGRAM
    assert sha256_of(project / "images" / "example.sif") == before
    assert build(project) == Exit.OK


def test_without_apptainer_the_install_command_is_said(
    project: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = home / "bin"
    empty.mkdir()
    monkeypatch.setattr("sifkit.run.shutil.which", lambda program, path: None)
    assert build(project) == Exit.HOST
    assert "ci/install-apptainer.sh" in "".join(capsys.readouterr().err.split())


def test_an_old_apptainer_is_refused(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("apptainer", 'echo "singularity-ce version 1.1.9-1.el8"')
    assert build(project) == Exit.HOST
    assert "1.1.9 is older than 1.2.0" in capsys.readouterr().err


def test_a_stale_lock_is_said_before_anything_starts(
    project: Path, home: Path, fake_tool: FakeTool, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_tool("apptainer", FAKE_APPTAINER)
    spec = project / "definitions" / "example.yaml"
    spec.write_text(spec.read_text() + "packages: [scipy]\n")
    assert build(project) == Exit.USAGE
    assert "sifkit lock example" in capsys.readouterr().err
    assert not (home / "calls").exists()


SLOW_BUILD = """\
case "$1" in
--version) echo 1.4.5 ;;
build)
    for last; do previous="$target"; target="$last"; done
    echo half > "$previous"
    setsid sleep 300 &
    echo $! > "$HOME/stray"
    echo started > "$HOME/started"
    sleep 300
    ;;
esac
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_a_build_is_stopped_nothing_is_left(
    project: Path, home: Path, fake_tool: FakeTool, number: signal.Signals
) -> None:
    fake_tool("apptainer", SLOW_BUILD)
    argv = [sys.executable, "-m", "sifkit", "build", "--project", str(project), "example"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    wait_for(lambda: (home / "started").exists())
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == (-number if number == signal.SIGKILL else Exit.INTERRUPTED), said
    stray = int((home / "stray").read_text())
    wait_for(lambda: not Path(f"/proc/{stray}").exists())
    wait_for(lambda: not list((home.parent / "tmp").iterdir()))
    wait_for(lambda: not list((home / "cache" / "bases").glob(".*.partial")))
    assert not (project / "images" / "example.sif").exists()


def test_a_build_started_while_a_killed_one_is_dying_keeps_its_image(
    project: Path, home: Path, fake_tool: FakeTool
) -> None:
    """SIGKILL frees the lock at once; the killed build's supervisor removes its partial image some seconds later."""
    stubborn = SLOW_BUILD.replace("sleep 300\n", "trap 'sleep 2; exit 1' TERM\n    while :; do sleep 0.1; done\n")
    fake_tool("apptainer", stubborn)
    argv = [sys.executable, "-m", "sifkit", "build", "--project", str(project), "example"]
    killed = subprocess.Popen(argv, stderr=subprocess.PIPE)
    wait_for(lambda: (home / "started").exists())
    killed.kill()
    killed.communicate()
    fake_tool("apptainer", FAKE_APPTAINER.replace("test) true", "test) sleep 3"))
    assert build(project) == Exit.OK
    manifest = json.loads((project / "images" / "example.json").read_text())
    assert sha256_of(project / "images" / "example.sif") == manifest["sha256"]


def test_nohup_is_respected(project: Path, home: Path, fake_tool: FakeTool) -> None:
    fake_tool("apptainer", FAKE_APPTAINER.replace("build)", 'build)\n    echo started > "$HOME/started"; sleep 0.5'))
    argv = ["nohup", sys.executable, "-m", "sifkit", "build", "--project", str(project), "example"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (home / "started").exists())
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == Exit.OK


def test_two_builds_at_once_make_one_image(project: Path, home: Path, fake_tool: FakeTool) -> None:
    fake_tool("apptainer", FAKE_APPTAINER.replace("build)", "build)\n    sleep 0.5"))
    argv = [sys.executable, "-m", "sifkit", "build", "--project", str(project), "example"]
    both = [subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert any("another build of it is running; waiting" in text for text in said)
    assert calls(home).count("build") == 2


def wait_for(happened: object, seconds: float = 20.0) -> None:
    assert callable(happened)
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
