"""Joined images read by the real tools: unsquashfs, the kernel, squashfuse, Apptainer."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import struct
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import pytest

from sifkit.apptainer import Apptainer, Privileges
from sifkit.errors import CommandFailed
from sifkit.run import Command, Runner
from sifkit.sif import DEFINITION, GENERIC_JSON, OBJECT_NAME, read_object
from sifkit.sifwrite import NewObject, append_object, partition, write_sif
from sifkit.squash import NotJoinable, Source, join, listing, read_file
from sifkit.squash.layout import COMPRESSORS, SUPERBLOCK, Superblock
from sifkit.squash.read import opened
from tests.faults import disks
from tests.unit.squash_files import squashfs

pytestmark = pytest.mark.apptainer

TIME = 1_700_000_000
BLOCK = 131072
METADATA = "inspect-metadata.json"  # where Apptainer looks for labels, so that `inspect` starts nothing
ZSTD = ("-comp", "zstd", "-Xcompression-level", "3")


def noise(size: int, seed: str = "") -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


@dataclass(frozen=True)
class Node:
    """What a path is, as far as an image keeps it; `same` names the first of its hard links."""

    mode: int
    owner: tuple[int, int]
    mtime: int
    content: str | int
    same: str


def tree_of(root: Path) -> dict[str, Node]:
    """All that is below a directory, and itself."""
    found, first = dict[str, Node](), dict[tuple[int, int], str]()
    for path in sorted([root, *root.rglob("*")]):
        status, name = path.lstat(), str(path.relative_to(root))
        same = name if path.is_dir() else first.setdefault((status.st_dev, status.st_ino), name)
        owner, mtime = (status.st_uid, status.st_gid), int(status.st_mtime)
        found[name] = Node(status.st_mode, owner, mtime, content_of(path, status), same)
    return found


def content_of(path: Path, status: os.stat_result) -> str | int:
    if stat.S_ISREG(status.st_mode):
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return str(path.readlink()) if path.is_symlink() else status.st_rdev


def overlay(trees: Sequence[dict[str, Node]]) -> dict[str, Node]:
    """What joining is to give: computed from the trees, by other means than joining."""
    result = dict[str, Node]()
    for number, tree in enumerate(trees):
        for name, node in tree.items():
            there = result.get(name)
            if there and stat.S_ISDIR(there.mode) and stat.S_ISDIR(node.mode):
                continue
            if there and stat.S_ISDIR(there.mode):
                result = {other: found for other, found in result.items() if not other.startswith(f"{name}/")}
            result[name] = replace(node, same=f"{number}:{node.same}")
    return named_by_what_is_left(result)


def named_by_what_is_left(tree: dict[str, Node]) -> dict[str, Node]:
    first = dict[str, str]()
    return {name: replace(tree[name], same=first.setdefault(tree[name].same, name)) for name in sorted(tree)}


def ordered(tree: dict[str, Node]) -> dict[str, Node]:
    return named_by_what_is_left({name: replace(node, same=f"0:{node.same}") for name, node in tree.items()})


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Three trees with all that a squashfs can hold, which contradict each other."""
    one, two, three = (tmp_path_factory.mktemp("trees") / name for name in ("one", "two", "three"))
    files = {
        one / "usr/bin/tool": noise(50_000),
        one / "usr/exact": noise(BLOCK),
        one / "usr/blocks": noise(5 * BLOCK + 7),
        one / "usr/words": b"words and more words " * 100_000,
        one / "etc/over": b"old",
        one / "etc/file-then-directory": b"x",
        one / "etc/directory-then-file/within": b"x",
        one / "empty": b"",
        one / "ä \n b": b"odd name",
        two / "etc/over": b"newer",
        two / "etc/file-then-directory/within": b"y",
        two / "etc/directory-then-file": b"y",
        two / "usr/lib/more": noise(BLOCK - 1, "more"),
        three / "usr/lib/tail": b"tail",
        three / "usr/blocks": noise(2 * BLOCK, "other"),
    }
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (one / "usr/bin/linked").hardlink_to(one / "usr/bin/tool")
    (one / "usr/bin/linked-and-lost").hardlink_to(one / "usr/bin/tool")
    (two / "usr/bin").mkdir()
    (two / "usr/bin/linked-and-lost").symlink_to("tool")
    (one / "bin").symlink_to("usr/bin")
    (one / "private").mkdir(mode=0o700)
    (two / "private").mkdir(mode=0o755)
    (one / "usr/bin/tool").chmod(0o4755)
    os.mkfifo(two / "fifo")
    if os.geteuid() == 0:
        os.mknod(two / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        os.chown(three / "usr/lib/tail", 1234, 5678)
    with (two / "sparse").open("wb") as file:
        file.write(noise(10))
        file.seek(20 * BLOCK + 5)
        file.write(b"end")
    many = three / "many"
    many.mkdir()
    for number in range(5100):
        (many / f"a-file-with-a-rather-long-name-{number:06}").write_text(f"{number}")
    return one, two, three


@pytest.fixture
def squashed(runner: Runner, trees: tuple[Path, ...], tmp_path: Path) -> Callable[..., list[Source]]:
    """The trees as mksquashfs writes them, with its options."""

    def make(*options: str) -> list[Source]:
        sources = []
        for tree in trees:
            target = tmp_path / f"{tree.name}.sqfs"
            runner.run(Command(("mksquashfs", str(tree), str(target), "-noappend", "-quiet", "-no-progress", *options)))
            sources.append(Source(target))
        return sources

    return make


def joined(sources: Sequence[Source], path: Path) -> Path:
    with path.open("wb") as file:
        join(sources, file, time=TIME)
    return path


@contextmanager
def mounted(argv: tuple[str, ...], place: Path) -> Iterator[Path]:
    place.mkdir()
    tried = subprocess.run((*argv, str(place)), capture_output=True, text=True, check=False)  # it stays behind
    if tried.returncode:
        pytest.skip(f"this host cannot mount: {tried.stderr}")
    try:
        yield place
    finally:
        subprocess.run(("umount", place) if os.geteuid() == 0 else ("fusermount3", "-u", place), check=True)


@pytest.mark.parametrize(
    "options",
    [
        ZSTD,
        (*ZSTD, "-no-xattrs", "-no-exports", "-b", "4096"),
        ("-comp", "gzip"),
        ("-comp", "gzip", "-Xwindow-size", "12", "-b", "1M"),
        (*ZSTD, "-noI", "-noD", "-noF", "-noX"),
        (*ZSTD, "-no-fragments", "-no-duplicates"),
        (*ZSTD, "-always-use-fragments", "-no-sparse"),
    ],
    ids=" ".join,
)
def test_joined_trees_unpack_as_the_trees_laid_over_each_other(
    runner: Runner, trees: tuple[Path, ...], squashed: Callable[..., list[Source]], tmp_path: Path, options: tuple[str]
) -> None:
    image = joined(squashed(*options), tmp_path / "joined.sqfs")
    runner.run(Command(("unsquashfs", "-quiet", "-no-progress", "-d", str(tmp_path / "out"), str(image))))
    expected = overlay([tree_of(tree) for tree in trees])
    assert ordered(tree_of(tmp_path / "out")) == expected
    for name, node in expected.items():
        if stat.S_ISREG(node.mode) and not name.startswith("many/"):
            assert hashlib.sha256(read_file(Source(image), f"/{name}")).hexdigest() == node.content
    assert len(listing(Source(image))) == len(expected)


@pytest.mark.parametrize(
    "command",
    [
        ("mount", "-t", "squashfs", "-o", "loop,ro"),
        ("squashfuse",),
        ("squashfuse_ll",),
    ],
    ids=lambda command: command[0],
)
def test_joined_trees_mount_as_the_trees_laid_over_each_other(
    trees: tuple[Path, ...],
    squashed: Callable[..., list[Source]],
    tmp_path: Path,
    command: tuple[str, ...],
) -> None:
    if command[0] == "mount" and os.geteuid() != 0:
        pytest.skip("only root mounts with the kernel")
    image = joined(squashed(*ZSTD), tmp_path / "joined.sqfs")
    with mounted((*command, str(image)), tmp_path / "mounted") as place:
        found = tree_of(place)
        names = {name for name in found if name.startswith("many/")}
        assert all((place / name).lstat().st_size == len(str(int(name[-6:]))) for name in names)
        assert not (place / "many/not-there").exists()
        links = (place / "usr/bin/tool").stat().st_nlink, (place / "usr").stat().st_nlink
    expected = overlay([tree_of(tree) for tree in trees])
    if command[0] == "squashfuse":  # it gives each path an inode number of its own
        found, expected = ({name: replace(node, same="") for name, node in tree.items()} for tree in (found, expected))
    else:
        found = ordered(found)
    assert found == expected
    assert links == (2, 4)


def test_extended_attributes_are_dropped(runner: Runner, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_text("x")
    try:
        os.setxattr(tree / "file", "user.note", b"kept nowhere")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    source = tmp_path / "one.sqfs"
    runner.run(Command(("mksquashfs", str(tree), str(source), "-quiet", "-no-progress", "-xattrs")))
    image = joined([Source(source)], tmp_path / "joined.sqfs")
    runner.run(Command(("unsquashfs", "-xattrs", "-quiet", "-no-progress", "-d", str(tmp_path / "out"), str(image))))
    assert (tmp_path / "out/file").read_text() == "x"
    assert os.listxattr(tmp_path / "out/file") == []


@pytest.mark.parametrize("compressor", ["xz", "lz4", "lzo"])
def test_other_compressions_are_refused(squashed: Callable[..., list[Source]], tmp_path: Path, compressor: str) -> None:
    try:
        sources = squashed("-comp", compressor)
    except CommandFailed:
        pytest.skip(f"this mksquashfs knows no {compressor}")
    with pytest.raises(NotJoinable, match=rf"one\.sqfs: it is compressed with {compressor}"):
        join(sources, io.BytesIO(), time=TIME)


ZEROS = bytes(1 << 22)


class Holes(io.RawIOBase):
    """A target that leaves out zeros, and that no kernel copies to."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file = file

    def write(self, data: Any, /) -> int:
        if bytes(data) == ZEROS[: len(data)]:
            self.file.seek(len(data), os.SEEK_CUR)
        else:
            self.file.write(data)
        return len(data)


def hole(path: Path, size: int) -> Source:
    """An image of nothing but `size` bytes that no file uses."""
    image = bytearray(squashfs({"/hole": None}))
    block = Superblock._make(SUPERBLOCK.unpack_from(image))._replace(block_size=BLOCK, block_log=17)
    for at in (block.export_table, block.id_table):
        struct.pack_into("<Q", image, at, struct.unpack_from("<Q", image, at)[0] + size)
    tables = ("used", "id_table", "inode_table", "directory_table", "fragment_table", "export_table")
    moved = block._replace(**{name: getattr(block, name) + size for name in tables})
    with path.open("wb") as file:
        file.write(SUPERBLOCK.pack(*moved))
        file.seek(SUPERBLOCK.size + size)
        file.write(image[SUPERBLOCK.size :])
    return Source(path)


def test_files_that_lie_beyond_4_gib_are_read(
    runner: Runner, trees: tuple[Path, ...], squashed: Callable[..., list[Source]], tmp_path: Path
) -> None:
    image = tmp_path / "large.sqfs"
    with image.open("wb") as file:
        target: Any = Holes(file)
        size = join([hole(tmp_path / "hole", 1 << 32), *squashed(*ZSTD)], target, time=TIME)
        file.truncate()
    assert image.stat().st_size == size > 1 << 32
    runner.run(Command(("unsquashfs", "-quiet", "-no-progress", "-d", str(tmp_path / "out"), str(image))))
    found = ordered(tree_of(tmp_path / "out"))
    expected = overlay([tree_of(tree) for tree in trees])
    assert {name: found[name] for name in expected if name != "."} == {
        name: node for name, node in expected.items() if name != "."
    }
    with mounted(("squashfuse", str(image)), tmp_path / "mounted") as place:
        assert (place / "usr/words").read_bytes() == (trees[0] / "usr/words").read_bytes()
        assert (place / "usr/exact").read_bytes() == (trees[0] / "usr/exact").read_bytes()


@pytest.fixture
def sif(small_sif: Path, runner: Runner, tmp_path: Path) -> Path:
    """The small image with a layer of our own."""
    layer = tmp_path / "layer"
    (layer / "opt/layer").mkdir(parents=True)
    (layer / "opt/layer/hello").write_text("hello from a layer\n")
    base = partition(small_sif)
    with small_sif.open("rb") as file:
        file.seek(base.offset)
        block = Superblock._make(SUPERBLOCK.unpack(file.read(SUPERBLOCK.size)))
    form = ("-comp", COMPRESSORS[block.compressor], "-b", str(block.block_size), "-no-xattrs")
    runner.run(Command(("mksquashfs", str(layer), str(tmp_path / "l.sqfs"), "-quiet", "-no-progress", *form)))
    definition, metadata = read_file(base, "/.singularity.d/Singularity"), read_object(small_sif, METADATA)
    assert metadata
    objects = (
        NewObject(DEFINITION, "", definition),
        NewObject(GENERIC_JSON, METADATA, metadata),
        NewObject(0x4007, "spec.yaml", b"name: small\n"),
    )
    path = tmp_path / "image.sif"
    write_sif(path, [base, Source(tmp_path / "l.sqfs", all_root=True, time=TIME)], objects, time=TIME)
    return path


def words(apptainer: Apptainer, *argv: str, **env: str) -> str:
    command = Command((apptainer.program, *argv), env={**apptainer.privileges.run_env, **env})
    return apptainer.runner.run(command).output


def test_apptainer_runs_and_describes_what_we_wrote(sif: Path, apptainer: Apptainer) -> None:
    assert words(apptainer, "exec", str(sif), "cat", "/opt/layer/hello", "/etc/sifkit-small").splitlines()[:2] == [
        "hello from a layer",
        "small",
    ]
    rows = words(apptainer, "sif", "list", str(sif))
    for kind in ("Def.FILE", "Generic/Raw", "FS (Squashfs/*System/"):
        assert kind in rows
    assert "export SMALL=yes" in words(apptainer, "inspect", "--deffile", str(sif))
    header = words(apptainer, "sif", "header", str(sif))
    assert "2023-11-14 22:13:20 +0000 UTC" in header
    assert apptainer.labels(sif)["org.opencontainers.image.title"] == "small"


def test_apptainer_packs_as_it_is_told_also_when_it_starts_itself_again(
    small_sif: Path, apptainer: Apptainer, tmp_path: Path
) -> None:
    again = Apptainer(apptainer.runner, apptainer.program, Privileges(("--fakeroot",), apptainer.privileges.run_env))
    definition, image = tmp_path / "again.def", tmp_path / "again.sif"
    definition.write_text(f"Bootstrap: localimage\nFrom: {small_sif}\n")
    (tmp_path / "tmp").mkdir()
    apptainer.runner.run(again.build_command(image, definition, root=tmp_path, tmpdir=tmp_path / "tmp"))
    with opened(partition(image)) as packed:
        block = packed.superblock
    assert (COMPRESSORS[block.compressor], block.block_size, block.fragments) == ("zstd", 128 * 1024, 0)


def test_apptainer_reads_what_we_append_and_we_what_it_appends(sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    facts = json.dumps({"packages": {}}).encode()
    append_object(sif, NewObject(GENERIC_JSON, OBJECT_NAME, facts), time=TIME)
    assert words(apptainer, "sif", "dump", "5", str(sif)).strip() == facts.decode()
    (tmp_path / "more.json").write_text("[1]")
    words(
        apptainer,
        *("sif", "add", "--datatype", "6", "--filename", "more.json", "--groupid", "1"),
        *(str(sif), str(tmp_path / "more.json")),
    )
    append_object(sif, NewObject(GENERIC_JSON, "last.json", b"{}"), time=TIME)
    assert [read_object(sif, name) for name in (OBJECT_NAME, "more.json", "last.json")] == [facts, b"[1]", b"{}"]
    assert words(apptainer, "sif", "dump", "7", str(sif)).strip() == "{}"
    assert "hello" in words(apptainer, "exec", str(sif), "cat", "/opt/layer/hello")


def test_an_image_of_ours_is_signed_and_a_change_is_noticed(sif: Path, apptainer: Apptainer, tmp_path: Path) -> None:
    append_object(sif, NewObject(GENERIC_JSON, OBJECT_NAME, b"{}"), time=TIME)
    keys = {"APPTAINER_KEYSDIR": str(tmp_path / "keys")}
    pair = ("--name", "t", "--email", "t@example.org", "--comment", "test", "--password", "", "--push=false")
    words(apptainer, "key", "newpair", *pair, **keys)
    words(apptainer, "sign", str(sif), **keys)
    words(apptainer, "verify", "--local", str(sif), **keys)
    changed = sif.read_bytes().replace(b"name: small\n", b"name: other\n")
    sif.write_bytes(changed)
    with pytest.raises(CommandFailed):
        words(apptainer, "verify", "--local", str(sif), **keys)


def test_unsquashfs_lists_the_partition_in_its_image(sif: Path, runner: Runner) -> None:
    offset = str(partition(sif).offset)
    assert "squashfs-root/opt/layer/hello" in runner.output("unsquashfs", "-o", offset, "-l", str(sif))


def test_where_files_share_extents_an_image_takes_no_room_of_its_own(tmp_path: Path) -> None:
    if why := disks.why_no_disks(tmp_path, "xfs"):
        pytest.skip(why)
    parts = {name: squashfs({f"/{name}": noise(40_000_000, name)}) for name in ("base", "layer")}

    def write(place: Path) -> Path:
        for name, data in parts.items():
            (place / name).write_bytes(data)
        os.sync()
        before = os.statvfs(place)
        write_sif(place / "image.sif", [Source(place / name) for name in parts], (), time=TIME)
        os.sync()
        after = os.statvfs(place)
        taken[place] = (before.f_bfree - after.f_bfree) * before.f_bsize
        return place / "image.sif"

    taken = dict[Path, int]()
    whole = write(tmp_path).read_bytes()
    assert len(whole) > 80_000_000
    with disks.disk(tmp_path, "shares", disks.SMALLEST["xfs"], "xfs") as place:
        assert write(place).read_bytes() == whole
        assert taken[place] < 2_000_000
