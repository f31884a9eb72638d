"""A bundle is whole, or nothing of it is taken; what it names lies in our directories; builds need no more."""

from __future__ import annotations

import dataclasses
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest
from pydantic import ValidationError
from rich.console import Console

from sifkit import kept, offline
from sifkit.apptainer import Apptainer, Privileges
from sifkit.assemble import Layers
from sifkit.bundle import archive, extras, gather, place
from sifkit.bundle.archive import Item, Manifest, Member, read_manifest
from sifkit.bundle.place import Place, Placed
from sifkit.cli import main
from sifkit.compat.tables import PACKAGED
from sifkit.errors import Exit, HostError, ProblemFound, SifkitError, UsageError
from sifkit.execute import load_image
from sifkit.hashes import sha256_of
from sifkit.model import Debootstrap, DockerBase, Image, ImageBase, Site
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.spec import Project
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop, base_path
from tests.conftest import FakeTool

DIGEST = f"sha256:{'a' * 64}"


@pytest.fixture
def tools(project: Path, tmp_path: Path) -> Tools:
    """The example project, with an empty cache, on a host whose base has to come from a registry."""
    environ = {**os.environ, "SIFKIT_CACHE": str(tmp_path / "cache")}
    source = DockerBase.model_validate({"bootstrap": "docker", "from": "registry.example/debian:trixie"})
    site = Site(bases={"debian-trixie": source})
    return Tools(Project(project), site, Runner(environ), PlainProgress(Console(stderr=True)), environ)


@pytest.fixture
def there(tmp_path: Path, runner: Runner) -> Place:
    """Another host, with nothing."""
    return Place(Project(tmp_path / "there"), tmp_path / "its cache", runner, PlainProgress(Console(stderr=True)))


@pytest.fixture
def no_apptainer(runner: Runner) -> Apptainer:
    """One that cannot be started."""
    return Apptainer(runner, "/nonexistent/apptainer", Privileges())


def make_checkout(directory: Path, version: str = "0.9.5") -> Path:
    tree = directory / version
    for name, text in {
        "src/llamafactory/extras/env.py": f'VERSION = "{version}"\n',
        "data/dataset_info.json": "{}",
        "examples/train_lora/tiny_lora_sft.yaml": "",
    }.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    return tree


def some_items(tmp_path: Path) -> list[Item]:
    """One of each kind that goes into cache and project."""
    packed = tmp_path / "packed.tar"
    gather.pack_tree(make_checkout(tmp_path / "trees"), packed)
    return [
        Item.of_bytes("base", "bases/debian-trixie-0123.json", b"{}"),
        Item.of_bytes("base", "bases/debian-trixie-0123.sif", b"base" * 1000),
        Item.of_file("checkout", "checkouts/0.9.5.tar", packed, sha256_of(packed)),
        Item.of_bytes("definition", "definitions/example.lock", b"lock\n"),
        Item.of_bytes("definition", "definitions/example.yaml", b"spec\n"),
        Item.of_bytes("layer", "layers/torch-0123.sqfs", b"torch" * 3000),
        Item.of_bytes("sifkit", "sifkit/sifkit-0.1.0-py3-none-any.whl", b"wheel"),
    ]


def write_bundle(path: Path, items: list[Item]) -> Path:
    manifest = Manifest(sifkit="1", images=("example",), members=tuple(item.member for item in items))
    with path.open("wb") as stream:
        archive.write(stream, manifest, items, lambda _: None)
    return path


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "whole.bundle", some_items(tmp_path))


def files_below(*directories: Path) -> dict[str, bytes]:
    found = [path for directory in directories for path in directory.rglob("*")]
    return {str(path): path.read_bytes() for path in found if path.is_file() and path.name != ".lock"}


# ---------------------------------------------------------------------------------------------- the file


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for number, mode in enumerate((0o600, 0o755)):
        path = tmp_path / f"layer{number}"
        path.write_bytes(b"x" * 1000)
        path.chmod(mode)
        os.utime(path, (number, number))
        item = Item.of_file("layer", "layers/torch-0123.sqfs", path, sha256_of(path))
        texts.append(write_bundle(tmp_path / f"bundle{number}", [item]).read_bytes())
    assert texts[0] == texts[1]


def test_tar_reads_it_and_its_sha256_is_told(tmp_path: Path) -> None:
    items = some_items(tmp_path)
    manifest = Manifest(sifkit="1", images=("example",), members=tuple(item.member for item in items))
    stream = io.BytesIO()
    told: list[int] = []
    sha256 = archive.write(stream, manifest, items, told.append)
    (tmp_path / "b").write_bytes(stream.getvalue())
    assert sha256 == sha256_of(tmp_path / "b")
    assert sum(told) == len(stream.getvalue()) == manifest.length(len(manifest.to_bytes()))
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        assert tar.getnames() == ["manifest.json", *(item.member.name for item in items)]
        assert {(one.uid, one.gid, one.uname, one.mtime, one.mode) for one in tar} == {(0, 0, "", 315532800, 0o644)}


@pytest.mark.parametrize("length", [1, 80, 81, 82, 83, 84, 200, 235])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 10240])
def test_the_length_is_known_beforehand(tmp_path: Path, length: int, size: int) -> None:
    item = Item.of_bytes("sifkit", f"sifkit/{'n' * length}.whl", b"x" * size)
    path = write_bundle(tmp_path / "b", [item])
    assert [member.name for member, _ in archive.contents(path, read_manifest(path))] == [item.member.name]


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "layer"
    path.write_bytes(b"before")
    item = Item.of_file("layer", "layers/torch-0123.sqfs", path, sha256_of(path))
    for text in (b"after!", b"cut"):
        path.write_bytes(text)
        with pytest.raises(ProblemFound, match="changed while it was read"):
            write_bundle(tmp_path / "b", [item])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("layer", "layers/../../etc/passwd.sqfs"),
        ("layer", "/layers/torch.sqfs"),
        ("layer", "layers/a/torch.sqfs"),
        ("layer", "layers/.torch.sqfs"),
        ("layer", "layers/torch.sqfs\n"),
        ("layer", "layers/torch.sif"),
        ("layer", "bases/debian.sif"),
        ("definition", "definitions/compat/x.yaml"),
        ("definition", "definitions/../x.yaml"),
        ("table", "definitions/compat/..yaml"),
        ("checkout", "checkouts/...tar"),
        ("sifkit", "sifkit/-option.whl"),
        ("apptainer", f"apptainer/{'x' * 250}.deb"),
    ],
)
def test_a_name_elsewhere_is_refused(kind: archive.Kind, name: str) -> None:
    with pytest.raises(ValidationError):
        Member(name=name, kind=kind, size=0, sha256="0" * 64)


# ---------------------------------------------------------------------------------------------- refused


def damage(whole: Path, change: Callable[[bytearray], object]) -> Path:
    content = bytearray(whole.read_bytes())
    change(content)
    path = whole.with_name("damaged.bundle")
    path.write_bytes(content)
    return path


def replace_text(old: bytes, new: bytes) -> Callable[[bytearray], object]:
    def change(content: bytearray) -> None:
        at = content.rindex(old)
        content[at : at + len(old)] = new

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: content.__delitem__(slice(-10240, None)), "was cut"),
        (lambda content: content.__delitem__(slice(30000, None)), "was cut"),
        (lambda content: content.extend(b"more"), "4 bytes follow its end"),
        (replace_text(b"torchtorch", b"torchtorcH"), "torch-0123.sqfs has another sha256"),
        (replace_text(b"basebase", b"basebasE"), "debian-trixie-0123.sif has another sha256"),
        (lambda content: content.clear(), "no bundle of sifkit"),
        (lambda content: content.__setitem__(slice(0, 5), b"xxxxx"), "no bundle of sifkit"),
        (replace_text(b'"format": 1', b'"format": 2'), "is of format 2"),
        (replace_text(b'"images"', b'"imagis"'), "manifest.json cannot be read"),
        (replace_text(b'"name": "layers/torch', b'"name": "layers/../../'), "manifest.json cannot be read"),
        (replace_text(b'"bases/debian-trixie-0123.sif', b'"bases/debian-trixie-0124.sif'), "is not where"),
    ],
)  # fmt: skip
def test_what_is_damaged_or_foreign_leaves_everything_as_it_was(
    whole: Path, there: Place, change: Callable[[bytearray], object], said: str
) -> None:
    with pytest.raises(SifkitError, match=said) as caught:
        place.unbundle(damage(whole, change), there)
    assert isinstance(caught.value, ProblemFound | UsageError)
    assert caught.value.fix
    assert not there.cache.exists()
    assert not there.project.root.exists()


def test_a_flipped_bit_in_a_header_is_refused(whole: Path, there: Place) -> None:
    with tarfile.open(whole) as tar:
        offsets = [member.offset for member in tar]
    for at in (
        at + byte for at in offsets for byte in (0, 100, 125, 150, 156, 257)
    ):  # name, mode, size, sum, kind, magic
        changed = damage(whole, lambda content, at=at: content.__setitem__(at, content[at] ^ 1))  # type: ignore[misc]
        with pytest.raises((ProblemFound, UsageError)):
            place.unbundle(changed, there)
        assert not there.cache.exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, there: Place, kind: bytes) -> None:
    member = Member(name="layers/torch-0123.sqfs", kind="layer", size=0, sha256=sha256_of(Path(os.devnull)))
    text = Manifest(sifkit="1", images=("example",), members=(member,)).to_bytes()
    path = tmp_path / "crafted.bundle"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        head = tarfile.TarInfo("manifest.json")
        head.size = len(text)
        tar.addfile(head, io.BytesIO(text))
        link = tarfile.TarInfo(member.name)
        link.type, link.linkname = kind, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ProblemFound, match="not where its manifest says"):
        place.unbundle(path, there)
    assert not there.cache.exists()


def test_a_checkout_that_leaves_its_directory_is_refused(tmp_path: Path, there: Place) -> None:
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as tar:
        tar.addfile(tarfile.TarInfo("../../escaped"))
    item = Item.of_file("checkout", "checkouts/0.9.5.tar", evil, sha256_of(evil))
    layer = Item.of_bytes("layer", "layers/a.sqfs", b"a")
    with pytest.raises(ProblemFound):
        place.unbundle(write_bundle(tmp_path / "b", [item, layer]), there)
    assert files_below(there.cache) == {}
    assert not list(tmp_path.rglob("escaped"))


def test_a_bundle_that_is_cut_between_check_and_copy_leaves_no_part(
    whole: Path, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = damage(whole, replace_text(b"torchtorch", b"torchtorcH"))
    monkeypatch.setattr(place, "check", lambda *_: None)
    with pytest.raises(ProblemFound, match="torch-0123"):
        place.unbundle(damaged, there)
    assert files_below(there.cache, there.project.root) == {}


def test_room_is_looked_at_before_anything_is_written(
    whole: Path, there: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "free_bytes", lambda _: 1000)
    with pytest.raises(HostError, match="not enough space"):
        place.unbundle(whole, there)
    assert files_below(there.cache, there.project.root) == {}


# ---------------------------------------------------------------------------------------------- taken


def test_everything_gets_to_its_place_once(whole: Path, there: Place) -> None:
    first: Placed = place.unbundle(whole, there)
    assert [member.name for member in first.written] == [
        "bases/debian-trixie-0123.json",
        "bases/debian-trixie-0123.sif",
        "checkouts/0.9.5.tar",
        "definitions/example.lock",
        "definitions/example.yaml",
        "layers/torch-0123.sqfs",
    ]
    assert (there.project.definitions / "example.yaml").read_text() == "spec\n"
    assert kept.is_whole(there.cache / "layers" / "torch-0123.sqfs")
    assert kept.is_whole(there.cache / "bases" / "debian-trixie-0123.sif")
    assert (there.cache / "checkouts" / "0.9.5" / "data" / "dataset_info.json").read_text() == "{}"
    before = files_below(there.cache, there.project.root)
    assert place.unbundle(whole, there).written == ()
    assert files_below(there.cache, there.project.root) == before


def test_what_is_damaged_in_the_cache_is_mended(whole: Path, there: Place) -> None:
    place.unbundle(whole, there)
    layer = there.cache / "layers" / "torch-0123.sqfs"
    layer.write_bytes(b"damaged")
    assert [member.file for member in place.unbundle(whole, there).written] == [layer.name]
    assert kept.is_whole(layer)


def test_a_spec_that_is_another_is_not_replaced(whole: Path, there: Place) -> None:
    mine = there.project.definitions / "example.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine\n")
    with pytest.raises(UsageError, match=r"has another definitions/example\.yaml than the bundle"):
        place.unbundle(whole, there)
    assert mine.read_text() == "mine\n"
    assert not there.cache.exists()


def test_a_checkout_that_was_edited_is_not_replaced(whole: Path, there: Place) -> None:
    mine = make_checkout(there.cache / "checkouts") / "data" / "dataset_info.json"
    mine.write_text("edited")
    with pytest.raises(UsageError, match="stays as it is"):
        place.unbundle(whole, there)
    assert mine.read_text() == "edited"


# ---------------------------------------------------------------------------------------------- gathered


def test_a_tree_is_packed_without_git_and_links_outwards(tmp_path: Path) -> None:
    tree = make_checkout(tmp_path / "a")
    (tree / ".git").mkdir()
    (tree / ".git" / "config").write_text("url = https://user:secret@git.example")
    (tree / "AGENTS.md").symlink_to("data/dataset_info.json")
    (tree / "secret").symlink_to("/etc/passwd")
    gather.pack_tree(tree, tmp_path / "one.tar")
    with tarfile.open(tmp_path / "one.tar") as tar:
        assert {member.name for member in tar if member.isreg()} == {
            "0.9.5/AGENTS.md",
            "0.9.5/data/dataset_info.json",
            "0.9.5/examples/train_lora/tiny_lora_sft.yaml",
            "0.9.5/src/llamafactory/extras/env.py",
        }
        assert all(member.isreg() for member in tar)
    os.utime(tree / "data" / "dataset_info.json", (1, 1))
    gather.pack_tree(tree, tmp_path / "two.tar")
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


def test_tables_go_along_where_they_are_the_projects_own(tools: Tools) -> None:
    compat = tools.project.compat
    compat.mkdir()
    (compat / "pairs.yaml").write_bytes((PACKAGED / "pairs.yaml").read_bytes())
    (compat / "torch.yaml").write_bytes((PACKAGED / "torch.yaml").read_bytes() + b"# ours\n")
    image = load_image("example", tools)
    names = [item.member.name for item in gather.definitions([image], tools)]
    assert names == ["definitions/example.yaml", "definitions/example.lock", "definitions/compat/torch.yaml"]


def test_apt_is_asked_for_a_system_that_has_nothing(tools: Tools, tmp_path: Path, fake_tool: FakeTool) -> None:
    calls = tmp_path / "calls"
    fake_tool(
        "apt-get",
        f'echo "$@" >> {calls}; case "$*" in *"-t sid"*) ;; *) exit 100;; esac\n'
        f"touch {tmp_path}/apptainer/apptainer_1.4.5-2_amd64.deb {tmp_path}/apptainer/libc6_1%3a2~3_amd64.deb",
    )
    runner = Runner(os.environ)
    items = extras.apptainer_packages(tmp_path, dataclasses.replace(tools, runner=runner))
    assert [item.member.file for item in items] == ["apptainer_1.4.5-2_amd64.deb", "libc6_1%3a2~3_amd64.deb"]
    plain, unstable = calls.read_text().splitlines()
    assert f"Dir::State::status={tmp_path}/status" in plain
    assert "-t sid apptainer" in unstable


# ---------------------------------------------------------------------------------------------- offline


def keep(path: Path, content: bytes = b"content") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name("partial")
    partial.write_bytes(content)
    kept.keep(partial, path)


def fill(image: Image, tools: Tools, apptainer: Apptainer) -> Path:
    """A cache that holds all of an image, in name."""
    base = base_path(image, tools.cache)
    layers = Layers(image, base, Workshop(tools, apptainer, tools.cache, Path(os.devnull)))
    for path in (base, *(layers.path(layer) for layer in layers.wanted)):
        keep(path)
    return base


def elsewhere(image: Image, mirror: str = "http://mirror.elsewhere.example/debian") -> Image:
    """The image as another site builds it, with debootstrap."""
    source = Debootstrap(bootstrap="debootstrap", suite="trixie", mirror=mirror)
    return dataclasses.replace(image, base=ImageBase(image.base.name, source, "another"))


def write_record(image: Image, base: Path) -> None:
    keep(offline.record_path(base), offline.record_of(image).model_dump_json(by_alias=True).encode())


def test_a_base_is_looked_for_where_builds_keep_it(tools: Tools, no_apptainer: Apptainer) -> None:
    image = load_image("example", tools)
    path = base_path(image, tools.cache)
    keep(path)
    assert Workshop(tools, no_apptainer, tools.cache, Path(os.devnull)).base(image, Timings()) == path


def test_everything_that_is_missing_is_named(tools: Tools, no_apptainer: Apptainer) -> None:
    held = offline.find("example", tools, no_apptainer)
    base = base_path(held.image, tools.cache).stem
    assert held.lacking == (f"the base {base}", "venv", "torch", "transformers", "uv")
    with pytest.raises(HostError, match=f"example cannot be built offline: the cache lacks the base {base}") as caught:
        offline.require_held([held])
    assert caught.value.fix is not None
    assert "sifkit bundle example -o FILE" in caught.value.fix


def test_the_base_of_another_site_serves_and_the_image_is_the_same_one(tools: Tools, no_apptainer: Apptainer) -> None:
    here = load_image("example", tools)
    theirs = elsewhere(here)
    write_record(theirs, fill(theirs, tools, no_apptainer))
    held = offline.find("example", tools, no_apptainer)
    assert held.lacking == ()
    assert held.image.base.source == theirs.base.source
    assert held.image.base.identity == here.base.identity  # what this host compares when it looks for what is stale


def test_the_base_that_is_there_whole_is_taken(tools: Tools, no_apptainer: Apptainer) -> None:
    here = load_image("example", tools)
    fill(here, tools, no_apptainer)
    write_record(elsewhere(here), base_path(elsewhere(here), tools.cache))  # its base was deleted
    assert offline.find("example", tools, no_apptainer).image.base == here.base


def test_a_base_by_another_digest_than_the_locks_is_not_taken(tools: Tools, no_apptainer: Apptainer) -> None:
    lock = tools.project.lock_path("example")
    head, rest = lock.read_text().split("\n# inputs", 1)
    inputs, rest = rest.split("\n", 1)
    lock.write_text(f"{head}\n# inputs{inputs}\n# base: registry.example/debian:trixie@{DIGEST}\n{rest}")
    here = load_image("example", tools)
    source = DockerBase.model_validate({"bootstrap": "docker", "from": f"registry.example/debian@sha256:{'b' * 64}"})
    old = dataclasses.replace(here, base=dataclasses.replace(here.base, source=source))
    write_record(old, fill(old, tools, no_apptainer))
    assert offline.find("example", tools, no_apptainer).image.base == here.base


def test_raw_sections_are_refused(tools: Tools, no_apptainer: Apptainer) -> None:
    spec = load_image("example", tools).spec
    raw = spec.model_copy(update={"sections": {"post": "curl http://files.example"}})
    with pytest.raises(UsageError, match="built in one step"):
        offline.require_layers(dataclasses.replace(load_image("example", tools), spec=raw))


def test_damage_ends_the_build_before_anything_is_started(tools: Tools, no_apptainer: Apptainer) -> None:
    image = load_image("example", tools)
    base = fill(image, tools, no_apptainer)
    next(base.parents[1].glob("layers/torch-*.sqfs")).write_bytes(b"damaged")
    workshop = Workshop(tools, no_apptainer, tools.cache, Path(os.devnull))
    with pytest.raises(HostError, match=r"the cache lacks torch$"):
        offline.assemble(image, workshop, tools.cache / "image.sif", Timings())


def test_a_verification_needs_a_checkout(tools: Tools) -> None:
    image = load_image("example", tools)
    with pytest.raises(HostError, match=r"the cache has no checkout of LLaMA-Factory 0\.9\.5"):
        offline.require_checkouts([image], tools)
    make_checkout(tools.cache / "checkouts")
    offline.require_checkouts([image], tools)


# ---------------------------------------------------------------------------------------------- from here to there


@pytest.fixture
def filled(tools: Tools, fake_tool: FakeTool, no_apptainer: Apptainer) -> Tools:
    """Everything of the example is in the cache, in name; an Apptainer that builds nothing."""
    fake_tool("apptainer", '[ "$*" = --version ] && echo "apptainer version 1.4.5"')
    fill(load_image("example", tools), tools, no_apptainer)
    make_checkout(tools.cache / "checkouts")
    return dataclasses.replace(tools, runner=Runner(os.environ))


def test_what_is_bundled_here_is_all_that_a_build_needs_there(
    filled: Tools, there: Place, tmp_path: Path, no_apptainer: Apptainer
) -> None:
    made = gather.bundle(["example"], tmp_path / "b", filled, gather.Wishes(python=None))
    assert (made.sha256, made.size) == (sha256_of(tmp_path / "b"), (tmp_path / "b").stat().st_size)
    place.unbundle(tmp_path / "b", there)
    environ = {**os.environ, "SIFKIT_CACHE": str(there.cache)}
    other = dataclasses.replace(filled, project=there.project, site=Site(), environ=environ)
    held = offline.find("example", other, no_apptainer)
    assert held.lacking == ()
    assert held.image.base.source == load_image("example", filled).base.source
    offline.require_checkouts([held.image], other)


def test_a_bundle_that_does_not_fit_is_not_begun(
    filled: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(gather, "free_bytes", lambda _: 1000)
    with pytest.raises(HostError, match="not enough space"):
        gather.bundle(["example"], tmp_path / "out" / "b", filled, gather.Wishes(python=None))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_bundle_whose_writing_fails_leaves_the_one_that_was_there(
    filled: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "b").write_text("the one before")

    def fail(stream: IO[bytes], *_: object) -> str:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gather, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        gather.bundle(["example"], out / "b", filled, gather.Wishes(python=None))
    assert {path.name: path.read_text() for path in out.iterdir()} == {"b": "the one before"}


@pytest.mark.parametrize("words", [["--list"], ["--render"], ["--engine", "docker"]])
def test_offline_is_a_way_of_building(project: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--project", str(project), "--offline", *words]) == Exit.USAGE
    assert "--offline" in capsys.readouterr().err


@pytest.mark.parametrize("python", ["3", "three", "2.7", "3.11; rm"])
def test_a_python_is_a_minor_version(project: Path, python: str) -> None:
    words = ["bundle", "example", "-o", "x", "--project", str(project), "--python", python]
    assert main(words) == Exit.USAGE


def test_a_directory_is_no_bundle(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "example", "-o", str(tmp_path), "--project", str(project)]) == Exit.USAGE
    assert main(["bundle", "example", "-o", str(tmp_path / "no" / "x"), "--project", str(project)]) == Exit.USAGE
    assert "no such directory" in capsys.readouterr().err
