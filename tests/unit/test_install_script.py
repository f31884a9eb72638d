"""The shell scripts that set a machine up, asked what they would do or run with fake programs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

CI = Path(__file__).parents[2] / "ci"

DEBIAN_12 = 'ID=debian\nVERSION_ID="12"\n'
DEBIAN_13 = 'ID=debian\nVERSION_ID="13"\n'
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'
MINT = 'ID=linuxmint\nID_LIKE="ubuntu debian"\n'
ROCKY = 'ID="rocky"\nID_LIKE="rhel centos fedora"\nVERSION_ID="9.4"\n'
RHEL = 'ID="rhel"\nID_LIKE="fedora"\nVERSION_ID="9.4"\n'
FEDORA = "ID=fedora\nVERSION_ID=41\n"

FROM_SID = """\
cat > /etc/apt/sources.list.d/sifkit-sid.list <<'END'
deb {mirror} sid main
END
cat > /etc/apt/preferences.d/sifkit-sid <<'END'
Package: *
Pin: release n=sid
Pin-Priority: 90
END
apt-get update -q
apt-get install -qy --no-install-recommends -t sid apptainer
apt-get install -qy --no-install-recommends debootstrap squashfs-tools squashfuse fuse2fs fuse3 uidmap
"""

FROM_PPA = """\
apt-get update -q
apt-get install -qy --no-install-recommends software-properties-common
add-apt-repository -y ppa:apptainer/ppa
apt-get update -q
apt-get install -qy --no-install-recommends apptainer debootstrap squashfs-tools squashfuse fuse2fs fuse3 uidmap
"""

FROM_DNF = "dnf install -y apptainer debootstrap squashfs-tools squashfuse fuse3 e2fsprogs shadow-utils\n"
EPEL = "dnf install -y epel-release\n"
EPEL_OF_RHEL = "dnf install -y https://dl.fedoraproject.org/pub/epel/epel-release-latest-9.noarch.rpm\n"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory of fake programs, first on PATH; apt-get knows one Debian mirror."""
    directory = tmp_path / "bin"
    directory.mkdir()
    write_program(directory / "apt-get", "printf '%s\\n' http://security/debian-security http://mirror.site/debian")
    return directory


def write_program(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def ask(programs: Path, os_release: str, *words: str) -> subprocess.CompletedProcess[str]:
    """`install-apptainer.sh WORDS` on a machine whose /etc/os-release says `os_release`."""
    file = programs.parent / "os-release"
    file.write_text(os_release)
    env = {"PATH": f"{programs}:/usr/bin:/bin", "SIFKIT_OS_RELEASE": str(file)}
    argv = ["bash", str(CI / "install-apptainer.sh"), *words]
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)


def install_commands(done: subprocess.CompletedProcess[str]) -> str:
    """What is printed, without what this machine itself may lack (subuid entries, the mode of /dev/fuse)."""
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("echo root:", "chmod 666 /dev/fuse")))


@pytest.mark.parametrize(
    ("os_release", "commands"),
    [
        pytest.param(DEBIAN_12, FROM_SID.format(mirror="http://mirror.site/debian"), id="Debian 12"),
        pytest.param(DEBIAN_13, FROM_SID.format(mirror="http://mirror.site/debian"), id="Debian 13"),
        pytest.param(UBUNTU, FROM_PPA, id="Ubuntu 24.04"),
        pytest.param(MINT, FROM_PPA, id="Mint"),
        pytest.param(ROCKY, EPEL + FROM_DNF, id="Rocky 9"),
        pytest.param(RHEL, EPEL_OF_RHEL + FROM_DNF, id="RHEL 9"),
        pytest.param(FEDORA, FROM_DNF, id="Fedora"),
    ],
)
def test_each_distribution_has_its_commands(programs: Path, os_release: str, commands: str) -> None:
    assert install_commands(ask(programs, os_release, "--print")) == commands


def test_debian_whose_apt_names_a_list_of_mirrors_takes_the_first(programs: Path, tmp_path: Path) -> None:
    mirrors = tmp_path / "debian.list"
    mirrors.write_text("# mirrors\nhttp://first.example/debian\tpriority:1\nhttp://second.example/debian\n")
    write_program(programs / "apt-get", f"echo mirror+file:{mirrors}")
    done = ask(programs, DEBIAN_12, "--print")
    assert install_commands(done) == FROM_SID.format(mirror="http://first.example/debian")


def test_debian_whose_apt_names_no_mirror_says_how_to_name_one(programs: Path) -> None:
    write_program(programs / "apt-get", "exit 1")
    done = ask(programs, DEBIAN_12, "--print")
    assert install_commands(done) == FROM_SID.format(mirror="http://YOUR-MIRROR/debian")
    assert "SIFKIT_DEBIAN_MIRROR=" in done.stderr


@pytest.mark.parametrize("os_release", ["ID=plan9\nPRETTY_NAME='Plan 9'\n", ""])
def test_unknown_system_is_sent_to_apptainers_own_page(programs: Path, os_release: str) -> None:
    done = ask(programs, os_release, "--print")
    assert (done.returncode, done.stdout) == (3, "")
    assert "https://apptainer.org/docs/admin/latest/installation.html" in done.stderr


def test_mistyped_argument_installs_nothing(programs: Path) -> None:
    done = ask(programs, DEBIAN_12, "--pritn")
    assert (done.returncode, done.stdout) == (2, "")
    assert "unknown argument: --pritn" in done.stderr


def test_ordinary_user_is_told_what_to_do(programs: Path) -> None:
    write_program(programs / "id", "echo 1000")
    done = ask(programs, DEBIAN_12)
    assert done.returncode == 3
    assert "install-unprivileged" in done.stderr


# ---------------------------------------------------------------------------------------------- make-venv.sh

# A Python that knows `-c` (versions, ensurepip) and `-m venv --clear DIRECTORY`, and logs what is asked.
FAKE_PYTHON = """\
echo "$*" >> {log}
[ "$1 $2" = "-m venv" ] || exit 0
mkdir -p "$4/bin"
printf '#!/bin/sh\\necho "venv: $*" >> {log}\\n' > "$4/bin/python"
chmod +x "$4/bin/python"
"""


def make_venv(python: Path, venv: Path) -> subprocess.CompletedProcess[str]:
    argv = ["bash", str(CI / "make-venv.sh"), str(python), str(venv)]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_environment_is_made_once_and_made_again_when_it_is_broken(tmp_path: Path) -> None:
    python, venv, log = tmp_path / "python", tmp_path / "venv", tmp_path / "log"
    write_program(python, FAKE_PYTHON.format(log=log))
    made = f"-m venv --clear {venv}"
    assert make_venv(python, venv).returncode == 0
    assert log.read_text().count(made) == 1
    assert "--require-hashes -r requirements-dev.lock" in log.read_text()
    assert make_venv(python, venv).returncode == 0
    assert log.read_text().count(made) == 1
    write_program(venv / "bin" / "python", "exit 1")  # interrupted before pip was in it
    assert make_venv(python, venv).returncode == 0
    assert log.read_text().count(made) == 2


def test_python_that_is_too_old_is_named_with_the_way_to_give_another(tmp_path: Path) -> None:
    write_program(tmp_path / "python", '[ "$1" = --version ] && echo Python 3.9.2\nexit 1')
    done = make_venv(tmp_path / "python", tmp_path / "venv")
    assert done.returncode == 3
    assert "is Python 3.9.2. Say which: make PYTHON=python3.12 venv" in done.stderr
