"""What is gathered of a host is what is there; nothing is left behind, and what does not answer is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from sifkit.check.hosts import bind_sources
from sifkit.child import ask
from sifkit.filesystems import NETWORK, mounted_type
from sifkit.gather import namespaces
from sifkit.gather.host import gather_host, usual_places
from sifkit.gather.installed import build_settings, parse_config, read_installed
from sifkit.places import fault_of, try_places
from sifkit.run import Runner
from tests.conftest import FakeTool

NAMESPACE_PROBE = Path(namespaces.__file__).with_name("namespace_probe.py")


def unshares() -> bool:
    return namespaces.read_namespaces(os.geteuid(), tried=True).fault is None


needs_namespaces = pytest.mark.skipif(not unshares(), reason="this machine makes no user namespaces")


def in_namespace(script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python where this user is root of a namespace of its own, with the probe's functions as `n`."""
    # Not at /tmp, where this checkout may lie: a child could not find its script any more.
    head = "import sys\nfrom sifkit.gather import namespace_probe as n\nn._user()\nn.TMPFS_AT = '/mnt'\n"
    argv = [sys.executable, "-c", head + script, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)


# ---------------------------------------------------------------------------------------------- places


def test_a_directory_is_written_locked_and_measured_and_nothing_stays(tmp_path: Path) -> None:
    at = try_places([tmp_path])[tmp_path]
    assert (at.exists, at.writable, at.locks, at.fault, at.answers) == (True, True, True, None, True)
    assert at.free > 0
    assert at.filesystem
    assert list(tmp_path.iterdir()) == []


def test_one_that_is_not_there_is_tried_at_its_nearest_parent(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    at = try_places([path])[path]
    assert (at.exists, at.writable, at.real) == (False, True, tmp_path.resolve())


def test_what_cannot_be_written_says_why(tmp_path: Path) -> None:
    file, dangling = tmp_path / "file", tmp_path / "dangling"
    file.touch()
    dangling.symlink_to(tmp_path / "none")
    assert fault_of(file / "x") == "not a directory"
    assert fault_of(dangling) == "a link that leads nowhere"
    assert fault_of(Path("/proc/sifkit")) is not None
    assert fault_of(tmp_path) is None


def test_links_are_followed_to_the_filesystem_that_holds_them(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/dev/shm")
    assert try_places([link])[link].filesystem == mounted_type(Path("/dev/shm"), Path("/proc/mounts").read_text())


@needs_namespaces
def test_a_read_only_mount_and_a_full_one() -> None:
    script = """
from pathlib import Path
from sifkit.places import fault_of
n._mounts()
n._mount("tmpfs", "/var/tmp", "tmpfs", 1, "")  # MS_RDONLY
print(fault_of(Path("/var/tmp")))
n._mount("tmpfs", "/var/tmp", "tmpfs", 0, "nr_inodes=1")
print(fault_of(Path("/var/tmp")))
"""
    assert in_namespace(script).stdout.splitlines() == ["Read-only file system", "No space left on device"]


@needs_namespaces
def test_a_mount_whose_server_is_dead_is_not_waited_for() -> None:
    script = """
import os, time
from pathlib import Path
from sifkit.places import try_places
n._mounts()
fd = os.open("/dev/fuse", os.O_RDWR)
n._mount("dead", "/mnt/fuse", "fuse", 0, f"fd={fd},rootmode=40000,user_id=0,group_id=0")
start = time.monotonic()
found = try_places([Path("/mnt/fuse/x"), Path("/dev/shm")])
print(time.monotonic() - start < 3, [each.answers for each in found.values()], found[Path("/mnt/fuse/x")].filesystem)
"""
    if not os.access("/dev/fuse", os.W_OK):
        pytest.skip("/dev/fuse does not open")
    assert in_namespace(script).stdout == "True [False, True] fuse\n"


def test_a_child_that_says_half_a_line_is_left_in_time(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text("import os, time\nos.write(1, b'one\\ntw')\ntime.sleep(60)\n")
    start = time.monotonic()
    assert ask(script, (), timedelta(milliseconds=500)) == ("one",)
    assert time.monotonic() - start < 10


def test_kinds_of_filesystems_by_the_mount_table() -> None:
    mounts = "a / ext4 rw 0 0\nserver:/x /home/mika nfs4 rw 0 0\n"
    assert mounted_type(Path("/home/mika/.cache"), mounts) in NETWORK
    assert mounted_type(Path("/home/mikael"), mounts) == "ext4"


# ---------------------------------------------------------------------------------------------- rights


RANGE = "# comment\n\nmika:100000:65536\n1001:200000:65536\nfew:1:1000\n!shut:300000:65536\nbroken:x:y\n"


@pytest.mark.parametrize(
    ("user", "uid", "fault"),
    [
        ("mika", 1000, None),
        ("other", 1001, None),
        ("nobody", 65534, "no line for nobody"),
        ("few", 1002, "few has 1000 ids, 65536 are needed"),
        ("shut", 1003, "shut is disabled in it (!)"),
        ("broken", 1004, "no line for broken"),
    ],
)
def test_ranges_as_apptainer_reads_them(user: str, uid: int, fault: str | None) -> None:
    assert namespaces.range_fault(RANGE, user, uid) == fault


def test_both_files_need_a_line(tmp_path: Path, runner: Runner) -> None:
    (tmp_path / "subuid").write_text("mika:100000:65536\n")
    assert namespaces.subuid_fault("mika", 1000, runner, tmp_path) == f"{tmp_path}/subgid: no line for mika"
    (tmp_path / "subgid").write_text("mika:100000:65536\n")
    assert namespaces.subuid_fault("mika", 1000, runner, tmp_path) is None


def test_ranges_that_sssd_gives_are_asked_for(tmp_path: Path, fake_tool: FakeTool) -> None:
    fake_tool("getsubids", 'test "$1" = mika && echo "0: mika 100000 65536"')
    (tmp_path / "nsswitch.conf").write_text("passwd: files sss\nsubid: sss\n")
    runner = Runner(os.environ)
    assert namespaces.subuid_fault("mika", 1000, runner, tmp_path) is None
    assert namespaces.subuid_fault("nobody", 65534, runner, tmp_path) == "getsubids nobody answers nothing"


def test_a_newuidmap_without_rights_is_of_no_use(fake_tool: FakeTool) -> None:
    program = fake_tool("newuidmap", "exit 0")
    fault = namespaces.newuidmap_fault(Runner(os.environ))
    assert fault == f"{program} is neither setuid root nor has file capabilities"


@needs_namespaces
def test_user_namespaces_that_are_forbidden_are_noticed_by_trying() -> None:
    script = """
n._write("/proc/sys/user/max_user_namespaces", "0")
from sifkit.gather.namespaces import _judged
from sifkit.child import ask
from datetime import timedelta
from pathlib import Path
print(_judged(ask(Path(n.__file__), (), timedelta(seconds=5))).fault)
from sifkit.gather.namespaces import read_namespaces
print(read_namespaces(1000, tried=False).fault)
"""
    said = in_namespace(script).stdout.splitlines()
    assert said == [
        "the kernel refuses: ENOSPC: No space left on device",
        "/proc/sys/user/max_user_namespaces is 0",
    ]


@needs_namespaces
def test_what_is_tried_in_a_namespace_leaves_this_one_alone() -> None:
    before = Path("/proc/self/mounts").read_text()
    assert namespaces.read_namespaces(os.geteuid(), tried=True).overlay in (True, False)
    assert Path("/proc/self/mounts").read_text() == before


# ---------------------------------------------------------------------------------------------- Apptainer


CONF = """\
# BIND PATH: comment = no
mount home = yes
bind path = /etc/localtime
bind  path= /opt/site:/opt/site:ro
mount tmp =no
image driver =
"""


def test_apptainer_conf_is_read_line_by_line() -> None:
    config = parse_config(CONF)
    assert config == {
        "mount home": "yes",
        "bind path": "/etc/localtime\n/opt/site:/opt/site:ro",
        "mount tmp": "no",
        "image driver": "",
    }
    assert bind_sources(config) == ("/etc/localtime", "/opt/site")
    assert bind_sources({}) == ("/etc/localtime", "/etc/hosts")


def test_build_settings_of_apptainer() -> None:
    assert build_settings("A=/x\nB=\nodd\nC=a=b\n") == {"A": "/x", "B": "", "C": "a=b"}


def test_a_singularity_that_is_not_apptainer_is_named(fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = fake_tool("singularity", "echo singularity-ce version 4.1.0")
    monkeypatch.setenv("PATH", str(tool.parent))
    runner = Runner(os.environ)
    if runner.which("apptainer"):  # in one of the system's own directories, which are always looked into
        fake_tool("apptainer", "exit 1")
    found = read_installed(runner)
    assert (found.version, found.singularity) == (None, "singularity-ce version 4.1.0")


@pytest.mark.apptainer
def test_the_installed_apptainer_tells_where_its_configuration_is(runner: Runner) -> None:
    found = read_installed(runner)
    assert found.version == runner.output("apptainer", "--version").split()[-1].split("-")[0]
    assert found.config_file is not None
    assert found.config_file.is_file()
    assert found.config["mount home"] in ("yes", "no")


# ---------------------------------------------------------------------------------------------- all of it


def test_the_host_is_gathered_where_nothing_is_installed(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path / "none"), "TMPDIR": "/nowhere"}
    facts = gather_host(Runner(environ), environ)
    assert facts.environment == environ
    tmpdir, hub = facts.place("TMPDIR"), facts.place("HF_HOME")
    assert tmpdir is not None
    assert hub is not None
    assert (tmpdir.exists, hub.path) == (False, tmp_path / "none/.cache/huggingface")
    assert facts.kernel
    assert facts.cpus >= 1
    assert facts.memory > 2**28


def test_untried_nothing_is_touched(runner: Runner, tmp_path: Path) -> None:
    facts = gather_host(runner, {"HOME": str(tmp_path)}, {"output_dir": tmp_path}, tried=False)
    assert facts.places == ()
    assert (facts.fuse_mounts, facts.overlay) == (None, None)


def test_places_of_the_run_are_looked_at_too(runner: Runner, tmp_path: Path) -> None:
    output = gather_host(runner, {"HOME": str(tmp_path)}, {"output_dir": tmp_path / "saves"}).place("output_dir")
    assert output is not None
    assert (output.exists, output.writable) == (False, True)


def test_variables_move_caches() -> None:
    environ = {
        "HOME": "/home/mika",
        "XDG_CACHE_HOME": "/c",
        "HF_HOME": "/hf",
        "TRITON_HOME": "/t",
        "TMPDIR": "/scratch",
    }
    places = usual_places(environ)
    assert places["HF_HOME"] == Path("/hf")
    assert places["TRITON_CACHE_DIR"] == Path("/t/.triton/cache")
    assert places["TORCH_EXTENSIONS_DIR"] == Path("/c/torch_extensions")
    assert places["TMPDIR"] == Path("/scratch")
    assert places["sifkit"] == Path("/c/sifkit")
    assert "TORCHINDUCTOR_CACHE_DIR" not in places


@pytest.mark.apptainer
def test_gathering_is_quick(runner: Runner) -> None:
    gather_host(runner, os.environ)  # the first reads files that nobody has read
    took = []
    for _ in range(5):
        start = time.monotonic()
        gather_host(runner, os.environ)
        took.append(time.monotonic() - start)
    assert min(took) < 0.5  # measured 0.15 s on two cores; the rest is for machines that are shared
