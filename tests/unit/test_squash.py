"""Squashfs images are joined without compressing again: what wins, what stays, what is refused."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sifkit.squash import Entry, NotJoinable, Source, fingerprint, join, listing, read_file
from sifkit.squash.layout import (
    BASIC_DIRECTORY,
    DIRECTORY,
    GZIP,
    INODE,
    LONG_DIRECTORY,
    LONG_FILE,
    SUPERBLOCK,
    ZSTD,
    Attributes,
    File,
    Superblock,
)
from sifkit.squash.read import Place, opened
from sifkit.squash.write import tables_of
from tests.unit.squash_files import TIME, Content, Device, Form, Maker, Same, changed, squashfs

BLOCK = 4096
ROOT = Attributes(0o700, 0, 0, 7)
NOISE = bytes(os.urandom(3 * BLOCK + 100))


def source(directory: Path, contents: Mapping[str, Content], form: Form | None = None) -> Source:
    """An image in a file of its own."""
    path = directory / f"{len(list(directory.iterdir()))}.sqfs"
    path.write_bytes(squashfs(contents, form))
    return Source(path)


def joined(directory: Path, *sources: Source, time: int = TIME) -> Source:
    path = directory / f"joined-{len(list(directory.iterdir()))}.sqfs"
    with path.open("wb") as file:
        size = join(sources, file, time=time)
    assert path.stat().st_size == size
    return Source(path)


def superblock(image: Source) -> Superblock:
    return Superblock._make(SUPERBLOCK.unpack_from(image.path.read_bytes()))


def test_files_of_every_size_survive_with_their_bytes(tmp_path: Path) -> None:
    contents = {
        "/empty": b"",
        "/short": b"x",
        "/one-block": NOISE[:BLOCK],
        "/block-and-a-byte": NOISE[: BLOCK + 1],
        "/blocks": NOISE,
        "/compressible": b"ab" * 5000,
        "/hole": bytes(5 * BLOCK) + b"end",
        "/all-hole": bytes(3 * BLOCK),
        "/d/e/f": b"deep",
    }
    below = source(tmp_path, {"/other": NOISE[::-1], "/tail": b"before"})
    above = source(tmp_path, contents)
    image = joined(tmp_path, below, above)
    for path, content in contents.items():
        assert read_file(image, path) == content, path
    assert read_file(image, "/other") == NOISE[::-1]
    assert read_file(image, "/tail") == b"before"


@pytest.mark.parametrize("compressor", [GZIP, ZSTD])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("tails", [False, True])
def test_both_compressions_and_stored_tables_are_read(
    tmp_path: Path, compressor: int, packed: bool, tails: bool
) -> None:
    form = Form(compressor=compressor, packed=packed, tails=tails)
    one = source(tmp_path, {f"/d/file-{number}": b"same words " * number for number in range(60)}, form)
    two = source(tmp_path, {"/d/file-7": NOISE}, form)
    image = joined(tmp_path, one, two)
    assert read_file(image, "/d/file-59") == b"same words " * 59
    assert read_file(image, "/d/file-7") == NOISE
    assert superblock(image).compressor == compressor


def test_a_later_source_wins_and_directories_keep_their_first_attributes(tmp_path: Path) -> None:
    one = source(tmp_path, {"/d/same": b"old", "/d/kept": b"kept", "/x": b"file", "/y/in": b"", "/l": "to"})
    other = Form(attributes=ROOT)
    two = source(tmp_path, {"/d/same": b"newer", "/x/now": b"directory", "/y": "link", "/l/in": b"real"}, other)
    found = listing(joined(tmp_path, one, two))
    assert set(found) == {"/", "/d", "/d/same", "/d/kept", "/x", "/x/now", "/y", "/l", "/l/in"}
    assert found["/d"] == Entry("dir", 0o755, 1000, 1000, 0, TIME, None)
    assert found["/d/same"] == Entry("file", 0o700, 0, 0, 5, 7, None)
    assert found["/x"] == Entry("dir", 0o700, 0, 0, 0, 7, None)
    assert found["/y"] == Entry("symlink", 0o700, 0, 0, 4, 7, "link")
    assert found["/l"].kind == "dir"


def test_hard_links_stay_and_count_what_is_left_of_them(tmp_path: Path) -> None:
    one = source(tmp_path, {"/a": NOISE, "/b": Same("/a"), "/c": Same("/a")})
    two = source(tmp_path, {"/b": b"another"})
    with opened(joined(tmp_path, one, two)) as image:
        tree = image.tree()
        inodes = image.table(image.superblock.inode_table, image.superblock.directory_table).data
    assert tree.children[b"a"] is tree.children[b"c"]
    assert tree.children[b"a"] is not tree.children[b"b"]
    kind, *_ = INODE.unpack_from(inodes)
    assert (kind, LONG_FILE.unpack_from(inodes, INODE.size)[3]) == (9, 2)


def test_owners_and_times_can_be_replaced(tmp_path: Path) -> None:
    image = source(tmp_path, {"/d/f": b"", "/l": "f"}, Form(attributes=Attributes(0o4711, 1000, 1001, TIME)))
    plain = joined(tmp_path, replace(image, all_root=True, time=5))
    assert {(one.uid, one.gid, one.mtime, one.mode) for one in listing(plain).values()} == {(0, 0, 5, 0o4711)}
    assert {(one.uid, one.gid, one.mtime) for one in listing(image).values()} == {(1000, 1001, TIME)}
    assert listing(replace(image, time=5))["/d/f"] == Entry("file", 0o4711, 1000, 1001, 0, 5, None)


def test_odd_names_and_devices_survive(tmp_path: Path) -> None:
    contents: dict[str, Content] = {"/\udcff\n": b"1", "/ä b": b"2", "/" + "n" * 255: b"3", "/null": Device(259)}
    found = listing(joined(tmp_path, source(tmp_path, contents)))
    assert set(found) == {"/", *contents}
    assert found["/null"].kind == "char"


def test_a_directory_of_thousands_is_in_order_and_has_indexes(tmp_path: Path) -> None:
    one = source(tmp_path, {f"/d/a-rather-long-name-{number}": b"" for number in range(0, 6000, 2)})
    two = source(tmp_path, {f"/d/a-rather-long-name-{number}": b"" for number in range(1, 6000, 2)})
    found = listing(joined(tmp_path, one, two))
    names = [path.removeprefix("/d/") for path in found if path.startswith("/d/")]
    assert len(names) == 6000
    assert names == sorted(names, key=str.encode)


def test_indexes_point_at_headers_with_the_name_they_hold() -> None:
    """As fs/squashfs/namei.c looks up a name: the last index that is not behind it, then the entries from there."""
    maker = Maker(Form())
    for number in range(5000):
        maker.add(f"/name-{number:05}", b"")
    tables = tables_of(maker.root)
    at = (tables.root >> 16) // 8194 * 8192 + (tables.root & 0xFFFF)
    _, size, block, _, indexes, offset, _ = LONG_DIRECTORY.unpack_from(tables.inodes, at + INODE.size)
    start, at = block // 8194 * 8192 + offset, at + INODE.size + LONG_DIRECTORY.size
    assert size // 8192 <= indexes <= size // 8192 + 1
    for _ in range(indexes):
        into, on_disk, length = struct.unpack_from("<III", tables.inodes, at)
        name = tables.inodes[at + 12 : at + 13 + length]
        at += 13 + length
        assert on_disk == (start + into) // 8192 * 8194
        entry = start + into + 12
        assert tables.listings[entry + 8 : entry + 9 + length] == name


def test_the_same_sources_give_the_same_bytes_wherever_they_go(tmp_path: Path) -> None:
    sources = [source(tmp_path, {f"/d{number}/f": NOISE[number:]}) for number in range(16)]
    once, again = io.BytesIO(), io.BytesIO(b"before")
    again.seek(6)
    size = join(sources, once, time=TIME)
    assert size == join(sources, again, time=TIME)
    assert again.getvalue() == b"before" + once.getvalue()
    assert size % 4096 == 0
    path = joined(tmp_path, *sources).path
    assert path.read_bytes() == once.getvalue()
    with path.open("r+b", buffering=0) as file:
        file.seek(4096)
        join(sources, file, time=TIME)
        assert file.tell() == 4096 + size
    assert path.read_bytes()[4096:] == once.getvalue()


def test_a_target_that_the_kernel_does_not_copy_to_gets_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [source(tmp_path, {"/a": NOISE}), source(tmp_path, {"/b": NOISE})]
    expected = joined(tmp_path, *sources).path.read_bytes()

    def refuse(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert joined(tmp_path, *sources).path.read_bytes() == expected
    with (tmp_path / "appended").open("ab") as file:
        join(sources, file, time=TIME)
    assert (tmp_path / "appended").read_bytes() == expected


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(OSError, match="No space left"):
        joined(tmp_path, source(tmp_path, {"/a": NOISE}))


def test_what_is_joined_can_be_joined_again(tmp_path: Path) -> None:
    parts = [source(tmp_path, {f"/{name}": NOISE + name.encode()}) for name in "abc"]
    twice = joined(tmp_path, joined(tmp_path, *parts[:2]), parts[2])
    assert listing(twice) == listing(joined(tmp_path, *parts))
    assert read_file(twice, "/b") == NOISE + b"b"


def test_a_source_may_lie_within_a_file(tmp_path: Path) -> None:
    inner = source(tmp_path, {"/a": NOISE})
    outer = tmp_path / "outer"
    outer.write_bytes(b"#" * 12345 + inner.path.read_bytes())
    assert read_file(joined(tmp_path, Source(outer, 12345)), "/a") == NOISE


def test_data_beyond_4_gib_gets_long_inodes(tmp_path: Path) -> None:
    image = source(tmp_path, {"/a": NOISE, "/b": b"only a tail"})
    with opened(image) as found:
        here, there = found.tree(), found.tree(Place(5 << 30, 7))
    a, moved, tail = here.children[b"a"], there.children[b"a"], there.children[b"b"]
    assert isinstance(a, File)
    assert isinstance(moved, File)
    assert isinstance(tail, File)
    assert (moved.start, moved.fragment) == (a.start + (5 << 30), a.fragment + 7)
    assert (tail.start, tail.blocks) == (0, b"")
    inodes = tables_of(there).inodes
    assert INODE.unpack_from(inodes)[0] == 9
    assert LONG_FILE.unpack_from(inodes, INODE.size)[0] == moved.start


def test_what_is_read_is_a_regular_file(tmp_path: Path) -> None:
    image = source(tmp_path, {"/d/f": b"x", "/l": "d/f"})
    for path in ("/d", "/l", "/d/f/g", "/nothing", "/"):
        with pytest.raises(FileNotFoundError):
            read_file(image, path)
    with pytest.raises(FileNotFoundError):
        listing(Source(tmp_path / "nothing"))


def test_sources_that_differ_are_refused_in_words(tmp_path: Path) -> None:
    plain = source(tmp_path, {"/a": b"x"})
    other = source(tmp_path, {"/a": b"x"}, Form(compressor=GZIP))
    with pytest.raises(NotJoinable, match=r"0\.sqfs and .*1\.sqfs differ in compression: zstd, gzip"):
        join([plain, other], io.BytesIO(), time=0)
    larger = source(tmp_path, {"/a": b"x"}, Form(block_log=17))
    with pytest.raises(NotJoinable, match="differ in block size: 4096, 131072"):
        join([plain, larger], io.BytesIO(), time=0)
    with pytest.raises(NotJoinable, match="nothing to join"):
        join([], io.BytesIO(), time=0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"compressor": 4}, "compressed with xz; only zstd and gzip"),
        ({"compressor": 99}, "compressed with number 99"),
        ({"magic": 1}, "does not begin as a squashfs does"),
        ({"major": 3}, r"squashfs 3\.0, not 4\.0"),
        ({"block_size": 5}, "block size is 5"),
        ({"used": 1 << 40}, "cut off: 4096 bytes of 1099511627776"),
        ({"used": 0}, "superblock is damaged"),
        ({"inode_table": 1 << 63}, "superblock is damaged"),
        ({"root": 1 << 40}, "tables are damaged"),
        ({"root": 0}, "root is no directory"),
        ({"root": 1}, "no known type"),
        ({"fragments": 0xFFFFFFFF}, "a table is too large"),
        ({"fragments": 3}, "not as long as its superblock says"),
        ({"id_table": 1 << 62}, "cut off"),
        ({"flags": 0x400}, "cut off|superblock is damaged|outside"),
    ],
)
def test_damage_is_named_with_the_file(tmp_path: Path, values: dict[str, int], words: str) -> None:
    path = tmp_path / "odd.sqfs"
    path.write_bytes(changed(squashfs({"/a": b"x"}), **values))
    with pytest.raises(NotJoinable, match=rf"odd\.sqfs: .*({words})"):
        join([Source(path)], io.BytesIO(), time=0)


def test_a_directory_within_itself_is_refused(tmp_path: Path) -> None:
    image = bytearray(squashfs({"/d/e": None}))
    block = Superblock._make(SUPERBLOCK.unpack_from(image))
    listings = block.directory_table + 2
    struct.pack_into("<H", image, listings + 12, block.root & 0xFFFF)  # the entry of /d/e is now the root
    path = tmp_path / "loop.sqfs"
    path.write_bytes(image)
    with pytest.raises(NotJoinable, match="a directory is in two places"):
        listing(Source(path))


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path: Path) -> None:
    one = source(tmp_path, {"/a": NOISE})

    class Cutting(io.BytesIO):
        def write(self, data: object, /) -> int:
            os.truncate(one.path, 100)
            return super().write(data)  # type: ignore[arg-type]

    target: IO[bytes] = Cutting()
    with pytest.raises(NotJoinable, match=r"0\.sqfs: it became shorter"):
        join([one], target, time=0)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotJoinable, match="cut off within its superblock"):
        listing(Source(tmp_path / "fifo"))


def test_fingerprints_tell_images_apart(tmp_path: Path) -> None:
    one = source(tmp_path, {"/a": b"x"})
    other = source(tmp_path, {"/a": b"y"})
    assert fingerprint(one) == fingerprint(Source(one.path))
    assert len({fingerprint(each) for each in (one, other, replace(one, all_root=True), replace(one, time=1))}) == 4


def test_every_inode_is_where_the_export_table_says_and_knows_its_parent(tmp_path: Path) -> None:
    contents: dict[str, Content] = {f"/d{number}/{'x' * number}": b"" for number in range(1, 40)}
    with opened(joined(tmp_path, source(tmp_path, contents))) as image:
        block = image.superblock
        exports = image.lookup(block.export_table, block.inodes, 8)
        inodes = image.table(block.inode_table, block.directory_table)
    parents = []
    for number, (reference,) in enumerate(struct.iter_unpack("<Q", exports), 1):
        at = inodes.blocks[reference >> 16] + (reference & 0xFFFF)
        kind, *_, found = INODE.unpack_from(inodes.data, at)
        assert found == number
        if kind == DIRECTORY:
            parents.append(BASIC_DIRECTORY.unpack_from(inodes.data, at + INODE.size)[4])
    assert reference == block.root
    assert parents == [block.inodes] * 39 + [block.inodes + 1]  # as mksquashfs writes the root's


def test_directories_deeper_than_any_path_are_refused(tmp_path: Path) -> None:
    deep = source(tmp_path, {"/d" * 3000: None})
    with pytest.raises(NotJoinable, match="lie within each other"):
        listing(deep)
    assert len(listing(source(tmp_path, {"/d" * 2000: b""}))) == 2001


SEEDS = [
    squashfs({"/d/a": NOISE, "/d/b": b"ab" * 3000, "/l": "d/a", "/h": Same("/d/a"), "/n": Device(1)}, form)
    for form in (Form(), Form(packed=True), Form(compressor=GZIP, packed=True), Form(tails=False))
]


@settings(max_examples=200, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    image=st.sampled_from(SEEDS),
    flips=st.lists(st.tuples(st.integers(0, 4095), st.integers(0, 255)), max_size=4),
    in_front=st.booleans(),
    cut=st.none() | st.integers(0, 40000),
)
def test_damaged_images_are_refused_or_read_but_nothing_else(
    tmp_path: Path, image: bytes, flips: list[tuple[int, int]], in_front: bool, cut: int | None
) -> None:
    data = bytearray(image)
    used = Superblock._make(SUPERBLOCK.unpack_from(image)).used
    for at, value in flips:
        data[at % SUPERBLOCK.size if in_front else used - 1 - at % 700] = value
    path = tmp_path / "fuzzed.sqfs"
    path.write_bytes(data[:cut])
    try:
        found = listing(Source(path))
        for name, entry in found.items():
            if entry.kind == "file":
                read_file(Source(path), name)
        join([Source(path)], io.BytesIO(), time=0)
    except NotJoinable:
        return
    assert found["/"].kind == "dir"
