"""Images compared file by file, and what an image carries read for its second build."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from sifkit import deffile
from sifkit.commands.reproduce import as_json, show
from sifkit.difference import Comparison, Difference, compare, compare_files
from sifkit.errors import HostError, ProblemFound, UsageError
from sifkit.hashes import sha256_of
from sifkit.model import Debootstrap
from sifkit.reproduce import Made, Reproduction, base_of, first_difference, image_of, package_changes, read_made
from sifkit.sif import DEFINITION, SIGNATURE
from sifkit.sifwrite import NewObject, append_object, write_sif
from sifkit.squash import Source
from tests.conftest import make_image, make_spec

pytestmark = pytest.mark.skipif(shutil.which("mksquashfs") is None, reason="mksquashfs is not installed")

TIME = 315532800
LARGE = bytes(range(256)) * 2000  # four blocks, the last a tail

MakeTree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path) -> MakeTree:
    """A small tree as a squashfs; keywords replace files of it, None leaves one out."""

    def make(name: str, change: Callable[[Path], object] = lambda root: None, *options: str) -> Path:
        root, target = tmp_path / f"{name}.d", tmp_path / f"{name}.sqfs"
        (root / "usr/bin").mkdir(parents=True)
        for path, data in {"usr/bin/large": LARGE, "usr/bin/small": b"small", "etc": b"other"}.items():
            (root / path).write_bytes(data)
            (root / path).chmod(0o644)
        (root / "link").symlink_to("usr/bin/small")
        change(root)
        packing = ("-comp", "zstd", "-b", "128K", "-mkfs-time", str(TIME), "-all-time", str(TIME))
        argv = ["mksquashfs", str(root), str(target), *packing, "-all-root", "-noappend", "-quiet", "-no-progress"]
        subprocess.run([*argv, *options], check=True, capture_output=True)
        return target

    return make


def differences(one: Path, other: Path) -> list[tuple[str, str]]:
    found, _ = compare_files(Source(one), Source(other))
    return [(each.path, each.how) for each in found]


def replace(path: str, data: bytes) -> Callable[[Path], object]:
    return lambda root: (root / path).write_bytes(data)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (replace("usr/bin/small", b"small!"), ("/usr/bin/small", "contents: 5 bytes, 6 bytes")),
        (replace("usr/bin/small", b"smale"), ("/usr/bin/small", "contents")),
        (replace("usr/bin/large", LARGE[:200_000] + b"x" + LARGE[200_001:]), ("/usr/bin/large", "contents")),
        (replace("usr/bin/large", LARGE[:-1] + b"x"), ("/usr/bin/large", "contents")),
        (lambda root: (root / "usr/bin/small").chmod(0o755), ("/usr/bin/small", "mode: 0644, 0755")),
        (lambda root: (root / "usr/bin/small").unlink(), ("/usr/bin/small", "only in the first")),
        (replace("usr/new", b""), ("/usr/new", "only in the second")),
        (
            lambda root: ((root / "link").unlink(), (root / "link").symlink_to("etc")),
            ("/link", "link to: usr/bin/small, etc"),
        ),
        (lambda root: ((root / "etc").unlink(), (root / "etc").mkdir()), ("/etc", "kind: file, dir")),
    ],
)
def test_what_differs_is_named(tree: MakeTree, change: Callable[[Path], object], expected: tuple[str, str]) -> None:
    found = differences(tree("one"), tree("other", change))
    assert expected in found
    assert {path for path, _ in found} == {expected[0]}


def test_the_same_files_stored_otherwise_are_the_same(tree: MakeTree) -> None:
    packed = tree("one")
    assert differences(packed, tree("other", lambda root: None, "-no-fragments", "-noD")) == []


def test_a_file_too_large_to_unpack_is_not_said_to_differ_in_contents(
    tree: MakeTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sifkit.difference._LARGEST", 1000)
    found = differences(tree("one"), tree("other", lambda root: None, "-no-fragments", "-noD"))
    assert found == [("/usr/bin/large", "stored otherwise, and too large to be unpacked and compared")]


def test_times_and_owners_count(tree: MakeTree) -> None:
    one = tree("one")
    found, compared = compare_files(Source(one), Source(one, time=5))
    assert [each.how for each in found] == [f"time: {TIME}, 5"] * compared
    assert [each.path for each in found][:3] == ["/", "/etc", "/link"]


def sif(path: Path, squashfs: Path, *objects: NewObject) -> Path:
    given = objects or (NewObject(DEFINITION, "", b"Bootstrap: scratch\n"),)
    write_sif(path, [Source(squashfs)], given, time=TIME)
    return path


def test_two_files_of_one_sha256_are_identical(tree: MakeTree, tmp_path: Path) -> None:
    squashfs = tree("one")
    one, other = sif(tmp_path / "one.sif", squashfs), sif(tmp_path / "other.sif", squashfs)
    sha256 = sha256_of(one)
    assert compare(one, other) == Comparison((sha256, sha256), False, (), (), 0)


def test_a_signature_does_not_count(tree: MakeTree, tmp_path: Path) -> None:
    squashfs = tree("one")
    one, other = sif(tmp_path / "one.sif", squashfs), sif(tmp_path / "other.sif", squashfs)
    append_object(one, NewObject(SIGNATURE, "part-0001", b"signed"), time=TIME)
    found = compare(one, other)
    assert found.sha256[0] != found.sha256[1]
    assert (found.identical, found.signed) == (True, True)


def test_a_signed_image_with_another_file_is_not_identical(tree: MakeTree, tmp_path: Path) -> None:
    one = sif(tmp_path / "one.sif", tree("one"))
    other = sif(tmp_path / "other.sif", tree("other", replace("etc", b"0ther")))
    append_object(one, NewObject(SIGNATURE, "part-0001", b"signed"), time=TIME)
    found = compare(one, other)
    assert not found.identical
    assert found.first == Difference("/etc", "contents")
    assert found.objects == (Difference("file system", "contents"),)


def test_objects_beside_the_file_system_are_named(tree: MakeTree, tmp_path: Path) -> None:
    squashfs = tree("one")
    definition = NewObject(DEFINITION, "", b"Bootstrap: scratch\n")
    one = sif(tmp_path / "one.sif", squashfs, definition, NewObject(0x4007, "spec.yaml", b"a"))
    other = sif(tmp_path / "other.sif", squashfs, definition, NewObject(0x4007, "spec.yaml", b"b"))
    found = compare(one, other)
    assert found.objects == (Difference("spec.yaml", "contents"),)
    assert (found.identical, found.files, found.first) == (False, (), Difference("spec.yaml", "contents"))


# ---------------------------------------------------------------------------------------------- what is carried


@pytest.mark.parametrize(
    "base",
    [
        {"bootstrap": "debootstrap", "suite": "trixie", "mirror": "http://mirror.example/debian"},
        {"bootstrap": "docker", "from": "debian:trixie-slim@sha256:" + "0" * 64},
        {"bootstrap": "localimage", "from": "/shared/images/debian trixie.sif"},
    ],
)
def test_the_base_is_read_back_from_the_definition(base: dict[str, str]) -> None:
    image = make_image(make_spec(base=base, env={"From": "x"}))
    assert base_of(deffile.render(image, sifkit_version="1"), "example") == image.base.source


def test_a_definition_of_somebody_else_names_no_base() -> None:
    with pytest.raises(ProblemFound, match="does not say on what it was built"):
        base_of("Bootstrap: yum\nOSVersion: 9\n\n%post\n    Bootstrap: docker\n", "foreign")


def made(definition: str) -> Made:
    image = make_image()
    return Made(image.spec, "", image.lock, definition, "")


def tools_of(tmp_path: Path) -> object:
    from sifkit.compat.tables import load_tables
    from sifkit.model import Site

    class Around:
        tables, site = load_tables(tmp_path / "none"), Site()

    return Around()


def test_the_second_build_takes_the_base_of_the_first_wherever_the_site_would(tmp_path: Path) -> None:
    header = "Bootstrap: debootstrap\nOSVersion: trixie\nMirrorURL: http://elsewhere.example/debian\n"
    image = image_of(made(header), tools_of(tmp_path))  # type: ignore[arg-type]
    assert image.base.name == "debian-trixie"
    assert image.base.source == Debootstrap(
        bootstrap="debootstrap", suite="trixie", mirror="http://elsewhere.example/debian", snapshot=None
    )


def test_an_image_of_the_hosts_own_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProblemFound, match="made of files of the host"):
        image_of(made("Bootstrap: scratch\n"), tools_of(tmp_path))  # type: ignore[arg-type]


def test_a_base_that_is_not_here_is_said_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"built on /no/base\.sif, which is not on this host"):
        image_of(made("Bootstrap: localimage\nFrom: /no/base.sif\n"), tools_of(tmp_path))  # type: ignore[arg-type]


def test_an_image_that_carries_nothing_is_refused(tree: MakeTree, tmp_path: Path) -> None:
    image = sif(tmp_path / "one.sif", tree("one"))
    with pytest.raises(ProblemFound, match="no spec, no lock, no list of Debian packages"):
        read_made(image)


# ---------------------------------------------------------------------------------------------- what is told

A, B = "a" * 64, "b" * 64


def test_debian_packages_that_moved_are_named() -> None:
    before = f"gcc 14.2-1 amd64 {A}\ngit 2.47 amd64 {A}\ngone 1 all {A}\nsame 1 amd64 -\n"
    after = f"gcc 14.2-2 amd64 {B}\ngit 2.47 amd64 {B}\nnew 1 amd64 {A}\nsame 1 amd64 -\n"
    assert package_changes(before, after) == (
        "gcc:amd64 14.2-1 -> 14.2-2",
        f"git:amd64 2.47: another file, sha256 {A} -> {B}",
        "gone 1 -> none",
        "new:amd64 none -> 1",
    )


def test_the_first_other_line_is_found() -> None:
    assert first_difference("a\n  b\nc\n", "a\n  x\n") == ("b", "x")
    assert first_difference("a\n", "a\nb\n") == ("", "b")
    assert first_difference("a\n", "a\n") is None


def said(found: Reproduction) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_person_reads_the_first_difference_and_the_count() -> None:
    files = tuple(Difference(f"/usr/bin/{number:02}", "contents") for number in range(12))
    comparison = Comparison((A, B), False, (Difference("file system", "contents"),), files, 500)
    text = said(Reproduction("toy", comparison, None, ("gcc:amd64 1 -> 2",)))
    assert text.startswith("toy: not the same: first /usr/bin/00 (contents)\n12 of 500 files differ\n")
    assert "and 2 more: --json" in text
    assert "1 Debian packages differ; the mirror gives other Debian packages by now: `snapshot:`" in text


def test_identical_images_are_said_so() -> None:
    assert said(Reproduction("toy", Comparison((A, A), False, (), (), 0), None, ())) == f"toy: identical, sha256 {A}\n"
    signed = Reproduction("toy", Comparison((A, B), True, (), (), 5), None, ())
    assert said(signed) == f"toy: identical but for its signatures, sha256 {A}\n"
    assert as_json(Path("toy.sif"), signed)["identical"] is True


# ---------------------------------------------------------------------------------------------- snapshots


def source_of(**base: str) -> Debootstrap:
    source = make_image(make_spec(base={"bootstrap": "debootstrap", "suite": "trixie", **base})).base.source
    assert isinstance(source, Debootstrap)
    return source


def test_a_snapshot_means_the_public_archive_or_the_sites() -> None:
    moment = "20261120T000000Z"
    assert source_of(snapshot=moment).mirror == f"http://snapshot.debian.org/archive/debian/{moment}"
    own = source_of(snapshot=moment, mirror="http://mirror.example/{snapshot}/debian")
    assert own.mirror == f"http://mirror.example/{moment}/debian"


@pytest.mark.parametrize(
    ("base", "words"),
    [
        ({"snapshot": "20261120T000000Z", "mirror": "http://mirror.example/debian"}, "{snapshot} where the moment"),
        ({"mirror": "http://mirror.example/{snapshot}/debian"}, "no snapshot is given"),
        ({"snapshot": "2026-11-20"}, "snapshot"),
    ],
)
def test_half_a_snapshot_is_refused(base: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        source_of(**base)


def test_a_snapshot_of_an_unknown_release_needs_a_mirror() -> None:
    with pytest.raises(UsageError, match="no archive of snapshots is known for sid"):
        source_of(snapshot="20261120T000000Z", suite="sid")


def test_apt_takes_the_old_index_of_a_snapshot_alone() -> None:
    option = "Acquire::Check-Valid-Until=false"
    base = {"bootstrap": "debootstrap", "suite": "trixie", "snapshot": "20261120T000000Z"}
    assert option in deffile.render_base(make_image(make_spec(base=base)))
    assert option not in deffile.render_base(make_image())
