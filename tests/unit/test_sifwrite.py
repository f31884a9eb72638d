"""SIF files are written as Apptainer writes them, the same bytes for the same input."""

from __future__ import annotations

import os
import platform
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sifkit.hashes import sha256_of
from sifkit.sif import (
    DEFINITION,
    DESCRIPTOR,
    GENERIC_JSON,
    HEADER,
    Descriptor,
    Header,
    NotSif,
    SifObject,
    read_object,
    read_objects,
    read_table,
)
from sifkit.sifwrite import HashAhead, NewObject, append_object, partition, write_sif
from sifkit.squash import NotJoinable, Source, listing, read_file
from tests.unit.squash_files import TIME, squashfs

OBJECTS = (NewObject(DEFINITION, "", b"Bootstrap: scratch\n"), NewObject(GENERIC_JSON, "inspect-metadata.json", b"{}"))
FACTS = NewObject(GENERIC_JSON, "sifkit-facts.json", b'{"a": 1}')


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Source, ...]:
    paths = tmp_path / "base.sqfs", tmp_path / "layer.sqfs"
    paths[0].write_bytes(squashfs({"/etc/os-release": b"Debian\n", "/bin/sh": b"#!"}))
    paths[1].write_bytes(squashfs({"/opt/venv/pyvenv.cfg": b"home = /usr/bin\n", "/etc/os-release": b"ours\n"}))
    return Source(paths[0]), Source(paths[1])


@pytest.fixture
def image(tmp_path: Path, sources: tuple[Source, ...]) -> Path:
    path = tmp_path / "image.sif"
    write_sif(path, sources, OBJECTS, time=TIME)
    return path


def table(path: Path) -> tuple[Header, list[Descriptor]]:
    with path.open("rb") as file:
        return read_table(file)


def test_an_image_holds_its_objects_and_the_sources_joined(image: Path) -> None:
    kinds = [(one.kind, one.name) for one in read_objects(image)]
    assert kinds == [(DEFINITION, ""), (GENERIC_JSON, "inspect-metadata.json"), (0x4004, "")]
    assert read_object(image, "inspect-metadata.json") == b"{}"
    inside = partition(image)
    assert set(listing(inside)) == {
        "/", "/bin", "/bin/sh", "/etc", "/etc/os-release", "/opt", "/opt/venv", "/opt/venv/pyvenv.cfg",
    }  # fmt: skip
    assert read_file(inside, "/etc/os-release") == b"ours\n"
    assert os.access(image, os.X_OK)


def test_the_header_is_as_apptainer_writes_it(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, rows = table(image)
    size = image.stat().st_size
    assert header._replace(identity=b"", architecture=b"") == Header(
        launch=b"#!/usr/bin/env run-singularity\n\0",
        magic=b"SIF_MAGIC\0",
        version=b"01\0",
        architecture=b"",
        identity=b"",
        created=TIME,
        modified=TIME,
        free=45,
        total=48,
        table=4096,
        table_size=28080,
        data=32176,
        data_size=size - 32176,
    )
    assert uuid.UUID(bytes=header.identity).version == 5
    assert (DESCRIPTOR.size, HEADER.size) == (585, 128)
    definition, _, squash = rows[:3]
    assert definition[:12] == (0x4001, True, 1, 0xF0000001, 0, 32176, 19, 19, TIME, TIME, 0, 0)
    assert (squash.offset, squash.size, squash.padded) == (32768, size - 32768, size - 32768 + 32768 - 32197)
    assert squash.extra.rstrip(b"\0") == b"\x01\0\0\0\x02\0\0\0" + header.architecture.rstrip(b"\0")


@pytest.mark.parametrize(("machine", "code"), [("x86_64", b"02\0"), ("aarch64", b"04\0"), ("vax", b"00\0")])
def test_the_architecture_is_this_machine_s(
    tmp_path: Path, sources: tuple[Source, ...], monkeypatch: pytest.MonkeyPatch, machine: str, code: bytes
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    write_sif(tmp_path / "a.sif", sources, (), time=TIME)
    header, rows = table(tmp_path / "a.sif")
    assert (header.architecture, rows[0].extra[8:11]) == (code, code)


def test_the_same_input_gives_the_same_bytes_and_another_another_identity(
    tmp_path: Path, sources: tuple[Source, ...], image: Path
) -> None:
    again = tmp_path / "again.sif"
    write_sif(again, sources, OBJECTS, time=TIME)
    assert again.read_bytes() == image.read_bytes()
    other = NewObject(DEFINITION, "", b"Bootstrap: Scratch\n")
    identities = {table(image)[0].identity}
    for number, (parts, objects, time) in enumerate(
        [
            (sources, (other, OBJECTS[1]), TIME),
            (sources[::-1], OBJECTS, TIME),
            ((replace(sources[0], all_root=True), sources[1]), OBJECTS, TIME),
            (sources, OBJECTS, TIME + 1),
        ]
    ):
        write_sif(again, parts, objects, time=time)
        identities.add(table(again)[0].identity)
        assert len(identities) == number + 2


def test_an_object_is_appended_the_same_each_time(tmp_path: Path, image: Path) -> None:
    before = image.read_bytes()
    append_object(image, FACTS, time=TIME + 5)
    once = image.read_bytes()
    assert once[32176:] == before[32176:] + FACTS.data
    assert read_objects(image)[-1] == SifObject(GENERIC_JSON, "sifkit-facts.json", len(before), len(FACTS.data))
    assert read_object(image, "sifkit-facts.json") == FACTS.data
    header, rows = table(image)
    assert (header.modified, header.free, header.data_size) == (TIME + 5, 44, len(once) - 32176)
    assert rows[3][:12] == (0x4006, True, 4, 0xF0000001, 0, len(before), 8, 8, TIME + 5, TIME + 5, 0, 0)
    image.write_bytes(before + b"what a killed attempt has left behind")
    append_object(image, FACTS, time=TIME + 5)
    assert image.read_bytes() == once


def test_a_hash_is_read_ahead_of_the_last_object(image: Path) -> None:
    name, size = FACTS.name, len(FACTS.data)
    image.write_bytes(image.read_bytes() + b"what a killed attempt has left behind")
    ahead = HashAhead.read(image, FACTS.kind, name, size, time=TIME + 5)
    longer = HashAhead.read(image, FACTS.kind, name, size + 1, time=TIME + 5)
    later = HashAhead.read(image, FACTS.kind, name, size, time=TIME + 6)
    append_object(image, FACTS, time=TIME + 5)
    assert ahead.of(image) == ahead.of(image) == sha256_of(image)
    assert longer.of(image) is None
    assert later.of(image) is None
    append_object(image, FACTS, time=TIME + 5)
    assert ahead.of(image) is None


def test_a_table_that_is_full_is_said(tmp_path: Path, sources: tuple[Source, ...]) -> None:
    path = tmp_path / "full.sif"
    write_sif(path, sources, [FACTS] * 47, time=TIME)
    before = path.read_bytes()
    with pytest.raises(NotSif, match="no room for another object"):
        append_object(path, FACTS, time=TIME)
    assert path.read_bytes() == before
    with pytest.raises(NotSif, match="no room for 48 objects beside the partition, only for 47"):
        write_sif(path, sources, [FACTS] * 48, time=TIME)
    with pytest.raises(NotSif, match="name of an object is too long"):
        write_sif(path, sources, [NewObject(GENERIC_JSON, "ä" * 64, b"")], time=TIME)


def test_sources_that_cannot_be_joined_leave_no_file(tmp_path: Path, sources: tuple[Source, ...]) -> None:
    sources[1].path.write_bytes(b"no squashfs")
    with pytest.raises(NotJoinable, match=r"layer\.sqfs: it is cut off"):
        write_sif(tmp_path / "none.sif", sources, OBJECTS, time=TIME)
    assert not (tmp_path / "none.sif").exists()


def test_a_partition_that_is_no_squashfs_is_refused(image: Path) -> None:
    data = bytearray(image.read_bytes())
    extra = 4096 + 2 * DESCRIPTOR.size + DESCRIPTOR.size - 384
    data[extra] = 2  # ext3
    image.write_bytes(data)
    with pytest.raises(NotSif, match="its primary partition is no squashfs"):
        partition(image)
    data[extra + 4] = 4  # an overlay
    image.write_bytes(data)
    with pytest.raises(NotSif, match="it has no primary partition"):
        partition(image)


def test_what_is_no_sif_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"hello" * 100)
    for act in (
        partition,
        lambda path: append_object(path, FACTS, time=1),
        lambda path: HashAhead.read(path, FACTS.kind, FACTS.name, 1, time=1),
    ):
        with pytest.raises(NotSif, match="does not begin as a SIF file does"):
            act(path)
    assert path.read_bytes() == b"hello" * 100


@settings(max_examples=150, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(st.sampled_from([(0, 128), (4096, 4 * 585)]), st.integers(0, 2339), st.integers(0, 255))),
    cut=st.none() | st.integers(0, 50000),
)
def test_damaged_files_are_refused_or_read_but_nothing_else(
    tmp_path: Path, sources: tuple[Source, ...], flips: list[tuple[tuple[int, int], int, int]], cut: int | None
) -> None:
    whole = tmp_path / "whole.sif"
    if not whole.exists():
        write_sif(whole, sources, OBJECTS, time=TIME)
    data = bytearray(whole.read_bytes())
    for (start, size), at, value in flips:
        data[start + at % size] = value
    path = tmp_path / "fuzzed.sif"
    path.write_bytes(data[:cut])
    try:
        append_object(path, FACTS, time=TIME)
        read_objects(path)
        listing(partition(path))
    except (NotSif, NotJoinable):
        return
    assert read_object(path, FACTS.name) == FACTS.data
