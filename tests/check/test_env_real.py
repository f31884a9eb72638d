"""What Apptainer says when a host lacks something is, word for word, what the rules of the family ENV prevent."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sifkit.check.rule import all_rules

pytestmark = [
    pytest.mark.apptainer,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to take things away in a mount namespace"),
]

# $1: a directory, $2: the user to become. What is taken away, is in this namespace alone.
COPY_ETC = 'mkdir "$1/etc" && cp -a /etc/. "$1/etc/" && mount --bind "$1/etc" /etc; '
BECOME = 'user=$2; shift 2; exec setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"'
NO_FUSE = """\
mount -t tmpfs -o mode=755 none /dev
for device in null:3 zero:5 urandom:9; do mknod -m 666 "/dev/${device%:*}" c 1 "${device#*:}"; done
"""


@pytest.fixture(scope="module")
def empty_image() -> Iterator[Path]:
    """It holds nothing: whatever keeps a container from starting is said before that is noticed. Others can read it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        work, image = Path(name), Path(name, "empty.sqfs")
        work.chmod(0o755)
        (work / "root").mkdir()
        subprocess.run(["mksquashfs", work / "root", image, "-quiet", "-no-progress"], check=True, timeout=60)
        yield image


def said(take_away: str, user: str, image: Path, work: Path) -> str:
    """What `apptainer exec` says, to a user who has no more than others."""
    argv = ["unshare", "--mount", "sh", "-c", take_away + BECOME, "sh", str(work), user]
    argv += ["apptainer", "exec", str(image), "true"]
    env = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "NO_COLOR": "1"}
    done = subprocess.run(argv, cwd="/", env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    return done.stderr


@pytest.mark.parametrize(
    ("code", "take_away", "user"),
    [
        ("ENV011", COPY_ETC + "rm -f /etc/localtime; ", "65534"),
        ("ENV012", NO_FUSE, "65534"),
        ("ENV016", "", "4242"),
    ],
)
def test_apptainer_says_what_the_rule_prevents(
    code: str, take_away: str, user: str, empty_image: Path, tmp_path: Path
) -> None:
    words = said(take_away, user, empty_image, tmp_path)
    known = all_rules()[code].prevents
    assert plain(known) in plain(words)


def plain(text: str) -> str:
    """Without colours, and with one blank between words."""
    return " ".join(text.replace("\x1b[31m", "").replace("\x1b[0m", "").split())


def test_without_user_namespaces_apptainer_says_so(empty_image: Path) -> None:
    """In a namespace where no more can be made; whoever is root there is nobody in particular."""
    script = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --reuid 65534 --regid 65534 --clear-groups "
    script += f"apptainer exec {empty_image} true"
    argv = ["unshare", "--user", "--map-root-user", "--map-users=auto", "--map-groups=auto", "sh", "-c", script]
    done = subprocess.run(argv, cwd="/", capture_output=True, text=True, timeout=60, check=False)
    if "/etc/subuid" in done.stderr or "unshare:" in done.stderr:
        pytest.skip(f"no range of ids for root: {done.stderr}")
    assert plain(all_rules()["ENV002"].prevents) in plain(done.stderr.replace("\x1b[91m", ""))
