"""`sifkit doctor` says what a host can do, with a fix for each fault, wherever it is started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import HostFacts, Place
from sifkit.doctor import State, diagnose, ways
from tests.check.good import GIB, HOST

ROOT = Path(__file__).parent.parent.parent
CACHES = tuple(Place(name, Path(f"/c/{name}"), True, True, True, "ext4", 200 * GIB) for name in ("sifkit", "HF_HOME"))
WELL = replace(HOST, places=(*HOST.places, *CACHES), open_files=(1024, 4096), home="/home/mika", slurm="")


def row(host: HostFacts, name: str) -> tuple[str, State]:
    (found,) = (each for each in diagnose(host).rows if each.name == name)
    return found.found, found.state


def doctor(*words: str, env: dict[str, str], prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, sys.executable, "-m", "sifkit", "doctor", *words]
    env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=False)


# ---------------------------------------------------------------------------------------------- what is said


def test_a_host_that_is_well() -> None:
    found = diagnose(WELL)
    assert (found.run, found.build, found.findings) == (True, True, ())
    assert {each.state for each in found.rows} == {State.OK, State.NOTE}
    assert [way.name for way in found.ways if way.taken] == ["a range of ids (subuid, newuidmap)"]


@pytest.mark.parametrize(
    ("changes", "can_run", "name"),
    [
        ({"apptainer": None}, False, "Apptainer"),
        ({"user_namespaces": False, "user_namespaces_fault": "max is 0"}, False, "user namespaces"),
        ({"fuse": False, "fuse_fault": "/dev/fuse: No such file or directory"}, False, "mounting images"),
        ({"files": frozenset()}, False, "files for containers"),
        ({"known_user": False}, False, "user"),
        ({"subuid": False, "subuid_fault": "/etc/subuid: no line for mika"}, True, "ids for builds"),
        ({"newuidmap": False}, True, "ids for builds"),
    ],
)
def test_what_is_missing_is_a_fault_in_its_row(changes: dict[str, Any], can_run: bool, name: str) -> None:
    host = replace(WELL, **changes)
    found = diagnose(host)
    assert (found.run, found.build) == (can_run, False)
    assert row(host, name)[1] is State.FAULT


def test_without_room_nothing_can_be_built() -> None:
    host = replace(WELL, places=(Place("/tmp", Path("/tmp"), True, True, True, "tmpfs", GIB),))
    assert (diagnose(host).run, diagnose(host).build) == (True, False)
    assert row(host, "/tmp") == ("/tmp (tmpfs, memory): 1.1 GB free, flock works", State.WARNING)


def test_a_cache_of_sifkits_own_that_is_shut_stops_builds_and_the_others_do_not() -> None:
    for name, builds in (("sifkit", False), ("HF_HOME", True)):
        shut = Place(name, Path("/ro/x"), True, False, None, "nfs4", GIB, "Read-only file system")
        host = replace(WELL, places=(*HOST.places, shut))
        assert (diagnose(host).run, diagnose(host).build) == (True, builds)
        assert row(host, name) == ("/ro/x: Read-only file system", State.FAULT)


def test_what_slows_down_is_a_warning_and_stops_nothing() -> None:
    network = Place("TRITON_CACHE_DIR", Path("/home/mika/.triton"), True, True, True, "nfs4", 200 * GIB)
    host = replace(WELL, places=(*WELL.places, network), programs={"unsquashfs": "/usr/bin/unsquashfs"})
    assert (diagnose(host).run, diagnose(host).build) == (True, True)
    assert row(host, "TRITON_CACHE_DIR")[1] is State.WARNING
    assert row(host, "mounting images")[1] is State.WARNING


def test_ways_to_build_name_the_one_that_sifkit_takes() -> None:
    root = replace(WELL, uid=0, user="root")
    taken = {
        "ordinary": [way.name for way in ways(WELL) if way.taken],
        "root with everything": [way.name for way in ways(replace(root, full_root=True)) if way.taken],
        "root with less": [way.name for way in ways(root) if way.taken],
        "no range": [way.name for way in ways(replace(WELL, subuid=False)) if way.taken],
    }
    assert taken == {
        "ordinary": ["a range of ids (subuid, newuidmap)"],
        "root with everything": ["as root"],
        "root with less": ["a range of ids (subuid, newuidmap)"],
        "no range": [],
    }


# ---------------------------------------------------------------------------------------------- the command


def test_a_bare_host_is_told_what_is_missing_in_time_and_without_a_traceback(tmp_path: Path) -> None:
    env = {"PATH": str(tmp_path), "HOME": "/proc/none", "TMPDIR": "/nowhere", "LC_ALL": "C", "PYTHONUTF8": "0"}
    start = time.monotonic()
    done = doctor(env={**env, "PYTHONIOENCODING": "ascii"})
    took = time.monotonic() - start
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)  # system directories are looked into whatever PATH says
    assert "TMPDIR=/nowhere is not there" in done.stdout
    assert "sifkit's cache /proc/none/.cache/sifkit" in done.stdout
    assert "cannot be written" in done.stdout
    assert done.stdout.isascii()
    assert took < 5  # measured 0.9 s on two cores; the rest is for machines that are shared


def test_the_exit_code_and_the_verdict_say_the_same(tmp_path: Path) -> None:
    done = doctor("--json", env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})
    found = json.loads(done.stdout)
    assert done.returncode == (0 if found["run"] and found["build"] else 1)
    assert {"system", "user", "Apptainer", "user namespaces", "ids for builds", "/tmp", "GPU", "Slurm"} <= {
        each["name"] for each in found["rows"]
    }
    assert list(tmp_path.iterdir()) == []


def test_secrets_of_the_environment_are_not_printed() -> None:
    done = doctor("--json", env={**os.environ, "APPTAINERENV_HF_TOKEN": "hf_secret", "HF_TOKEN": "hf_secret"})
    assert "APPTAINERENV_HF_TOKEN" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr


# As another user, where this Python may lie in root's home: mounted alone in its place, in a mount namespace.
AS_OTHER = """
if [ -n "$2" ]; then
    mount --bind "$1" /mnt && mount -t tmpfs -o mode=755 none "$2" && mkdir -p "$1" && mount --bind /mnt "$1"
    umount /mnt
fi
uid=$3; shift 3
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups --bounding-set=-all --inh-caps=-all -- "$@"
"""


def as_other(uid: str) -> tuple[str, ...]:
    shut = [str(path) for path in Path(sys.base_prefix).parents if not path.stat().st_mode & 0o001]
    return ("unshare", "--mount", "sh", "-c", AS_OTHER, "sh", sys.base_prefix, shut[-1] if shut else "", uid)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("uid", ["65534", "424242"])
def test_another_user_is_told_what_he_can_do(uid: str) -> None:
    """One without a home, and one that no user database knows."""
    probe = subprocess.run([*as_other(uid), sys.executable, "-c", ""], cwd="/", capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"other users cannot start this Python: {probe.stderr.decode()}")
    done = doctor(env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, prefix=as_other(uid))
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    assert ("is in no user database" in done.stdout) is (uid == "424242")
    assert "HF_HOME=/nonexistent/.cache/huggingface" in done.stdout
