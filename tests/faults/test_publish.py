"""Publishing that is killed at any step, or meets a full disk: a whole image with its own manifest stays."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from sifkit.hashes import sha256_of
from sifkit.plan import Recipe
from sifkit.store import Manifest, Store

STEPS = 7  # calls of `publish` that change or flush something


def publish(store: Store, content: bytes) -> None:
    """Make an image of these bytes and publish it."""
    partial = store.partial("x")
    partial.write_bytes(content)
    status = partial.stat()
    recipe = Recipe("s", "l", "b", "d")
    store.publish(
        Manifest("x", sha256_of(partial), status.st_size, status.st_mtime_ns, "2026-01-01", recipe, "base", {}, {})
    )


DYING = """\
import itertools, os, sys
from pathlib import Path
from sifkit.store import Store
from tests.faults.test_publish import publish

calls = itertools.count()

def dying(real):
    def call(*words, **options):
        if next(calls) == int(sys.argv[2]):
            os._exit(9)
        return real(*words, **options)
    return call

os.fsync, Path.replace, Path.write_text = dying(os.fsync), dying(Path.replace), dying(Path.write_text)
publish(Store(Path(sys.argv[1])), b"the new image")
"""


@pytest.mark.parametrize("step", range(STEPS + 1))
def test_publishing_killed_at_any_step_leaves_a_whole_image_with_its_manifest(step: int, tmp_path: Path) -> None:
    store = Store(tmp_path)
    publish(store, b"old image")
    root = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), str(step)], cwd=root, check=False)
    assert ended.returncode == (9 if step < STEPS else 0)

    manifest = store.manifest("x")
    assert manifest is not None
    assert sha256_of(store.sif("x")) == manifest.sha256
    assert store.on_disk("x") == (manifest.size, manifest.mtime_ns)
    store.remove_partials("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.sif"]
    assert store.manifest_path("x").read_text() == manifest.to_json()


def test_a_disk_without_room_for_the_manifest_keeps_the_old_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    publish(store, b"old image")
    before = store.manifest("x")

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        publish(store, b"the new image")
    assert store.manifest("x") == before
    assert store.sif("x").read_bytes() == b"old image"


def test_partials_of_a_name_are_its_own(tmp_path: Path) -> None:
    """An image may be called after another with a dot and more."""
    store = Store(tmp_path)
    names = [".x.sif.12.partial", ".x.json.12.partial", ".x.sif.y.sif.12.partial", ".x.json.y.json.12.partial"]
    for name in names:
        (tmp_path / name).write_text("")
    store.remove_partials("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])
