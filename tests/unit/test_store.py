"""images/: nothing gets a final name before it is whole."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

from sifkit.hashes import sha256_of
from sifkit.plan import Recipe
from sifkit.store import Manifest, Store, exclusive


def make_manifest(store: Store, content: bytes) -> Manifest:
    partial = store.partial("x")
    partial.write_bytes(content)
    status = partial.stat()
    recipe = Recipe("s", "l", "b", "d")
    return Manifest("x", sha256_of(partial), status.st_size, status.st_mtime_ns, "2026-01-01", recipe, "base", {}, {})


def test_publishing_gives_image_and_manifest_their_names(tmp_path: Path) -> None:
    store = Store(tmp_path)
    manifest = make_manifest(store, b"image")
    store.publish(manifest)
    assert store.manifest("x") == manifest
    assert store.on_disk("x") == (manifest.size, manifest.mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.json", "x.sif"]


def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.manifest("x") is None
    for text in ("", "[]", '{"name": "x"}', '{"recipe": 3}'):
        store.manifest_path("x").write_text(text)
        assert store.manifest("x") is None


def test_the_second_waits_and_says_so(tmp_path: Path) -> None:
    path, said = tmp_path / "dir" / ".lock", []
    holder_done = threading.Event()
    path.parent.mkdir()
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def release() -> None:
            said.append("waiting")
            holder_done.set()
            fcntl.flock(held, fcntl.LOCK_UN)

        with exclusive(path, release):
            assert said == ["waiting"]
    assert holder_done.is_set()
