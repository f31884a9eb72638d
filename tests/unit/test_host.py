"""Room to build in is found before starting, or its lack is said with figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit import host
from sifkit.errors import HostError, UsageError
from sifkit.host import Room, check_cache_room, check_images_room, choose_tmpdir, filesystem_type
from sifkit.model import Site
from tests.conftest import make_environment_image, make_image

MOUNTS = """\
/dev/sda / ext4 rw 0 0
tmpfs /tmp tmpfs rw 0 0
server:/home /home nfs4 rw 0 0
/dev/sdb /mnt/with\\040blank xfs rw 0 0
"""

GB = 10**9


def test_room_grows_with_the_lock() -> None:
    assert Room.for_lock(make_image().lock) == Room(tree=700_006_300, sif=233_336_782)


def test_room_for_directories_of_the_host_is_measured(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 1_000_000)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "big")
    (tmp_path / "big").write_bytes(b"x" * 5_000_000)
    copied = host.tree_bytes((str(tmp_path / "a"), str(tmp_path / "absent")))
    assert 1_000_000 <= copied < 1_100_000
    room = Room.for_host_tree(8 * GB, make_environment_image().lock)
    assert (room.tree // 10**6, room.sif // 10**6) == (8001, 5600)


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "ext4"), ("/tmp/x", "tmpfs"), ("/home/user", "nfs4"), ("/mnt/with blank/a", "xfs"), ("/homer", "ext4")],
)
def test_filesystem_type(path: str, kind: str) -> None:
    assert filesystem_type(Path(path), MOUNTS) == kind


def site(tmpdir: Path) -> Site:
    return Site(tmpdir=str(tmpdir))


def test_the_sites_tmpdir_is_used_and_must_be_there(tmp_path: Path) -> None:
    assert choose_tmpdir(site(tmp_path), {}, Room(1, 1), tmp_path) == tmp_path
    with pytest.raises(UsageError, match="is not a directory"):
        choose_tmpdir(site(tmp_path / "none"), {}, Room(1, 1), tmp_path)


def test_tmpdir_comes_before_the_systems(tmp_path: Path) -> None:
    assert choose_tmpdir(Site(), {"TMPDIR": str(tmp_path)}, Room(1, 1), tmp_path / "cache") == tmp_path


def test_too_little_room_is_said_with_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_bytes", lambda path: 5 * GB)
    with pytest.raises(HostError) as caught:
        choose_tmpdir(site(tmp_path), {}, Room(9 * GB, 5 * GB), tmp_path)
    assert caught.value.message == f"not enough space to assemble the image: 14.0 GB needed; {tmp_path}: 5.0 GB free"
    with pytest.raises(HostError, match=r"19\.0 GB needed, 5\.0 GB free"):
        check_images_room(tmp_path, tmp_path, Room(9 * GB, 5 * GB))


def test_a_first_build_needs_room_for_the_package_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "free_bytes", lambda path: 5 * GB)
    with pytest.raises(HostError, match=r"package cache .*: 9\.0 GB needed, 5\.0 GB free"):
        check_cache_room(tmp_path, Room(9 * GB, 1))
    (tmp_path / "uv" / "archive-v0").mkdir(parents=True)
    check_cache_room(tmp_path, Room(9 * GB, 1))


def test_enough_room_raises_nothing(tmp_path: Path) -> None:
    check_images_room(tmp_path / "images", tmp_path, Room(1, 1))
