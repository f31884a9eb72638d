"""What an image tells of its making: put into its file, read back, and compared with a project."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from sifkit.errors import ProblemFound
from sifkit.provenance import (
    Carried,
    DebianPackage,
    differences,
    inspect_metadata,
    objects_of,
    parse_debian_packages,
    read_carried,
    tell,
)
from sifkit.sif import DESCRIPTOR, HEADER, MAGIC, Header, NotSif
from sifkit.sifwrite import NewObject, append_object
from tests.conftest import SPEC, lock_text, make_environment_image, make_image, make_spec

PACKAGES = f"gcc 4:14.2.0-1 amd64 {'b' * 64}\nlibc6 2.41-12 amd64\n"
TIME = 315532800


def write_empty_sif(path: Path, objects: Sequence[NewObject] = ()) -> Path:
    """A SIF without a file system, with these objects."""
    table = 48 * DESCRIPTOR.size
    numbers = (TIME, TIME, 48, 48, HEADER.size, table, HEADER.size + table, 0)
    header = Header(b"#!/usr/bin/env run-singularity\n", MAGIC, b"01", b"02", bytes(16), *numbers)
    path.write_bytes(HEADER.pack(*header) + bytes(table))
    for new in objects:
        append_object(path, new, time=TIME)
    return path


def labels_of(spec_digest: str, lock_digest: str) -> NewObject:
    labels = {
        "org.opencontainers.image.title": "example",
        "org.opencontainers.image.base.name": "debian-trixie",
        "org.sifkit.version": "1.2.3",
        "org.sifkit.spec-digest": f"sha256:{spec_digest}",
        "org.sifkit.lock-digest": f"sha256:{lock_digest}",
        "org.sifkit.torch": "2.9.1",
        "org.sifkit.llamafactory": "0.9.5",
    }
    return inspect_metadata({"/.singularity.d/labels.json": json.dumps(labels)})


def write_image(path: Path, spec_text: str = SPEC) -> Path:
    """A SIF with all that an image of sifkit carries, but no file system."""
    image = make_image()
    objects = objects_of(image, definition="Bootstrap: x\n", debian_packages=PACKAGES, spec_text=spec_text, time=TIME)
    return write_empty_sif(path, (*objects, labels_of(image.spec.digest(), image.lock.digest())))


# ---------------------------------------------------------------------------------------------- writing


def test_the_objects_are_definition_spec_lock_packages_and_bill_in_this_order() -> None:
    image = make_image()
    objects = objects_of(image, definition="the definition", debian_packages=PACKAGES, spec_text=SPEC, time=TIME)
    assert [(new.kind, new.name) for new in objects] == [
        (0x4001, ""),
        (0x4007, "spec.yaml"),
        (0x4007, "requirements.lock"),
        (0x4007, "debian-packages"),
        (0x4006, "sbom.cdx.json"),
    ]
    expected = ["the definition", SPEC, image.lock.text, PACKAGES]
    assert [new.data.decode() for new in objects[:4]] == expected
    names = {component["name"] for component in json.loads(objects[4].data)["components"]}
    assert names == {"torch", "transformers", "uv", "gcc", "libc6"}


def test_packages_other_than_the_locks_can_be_given() -> None:
    image = make_environment_image()
    given = image.lock.packages
    objects = objects_of(image, definition="", debian_packages="", spec_text="", time=TIME, python_packages=given)
    assert [component["name"] for component in json.loads(objects[4].data)["components"]] == ["llamafactory"]


def test_debian_packages_are_read_with_and_without_hash() -> None:
    assert parse_debian_packages(PACKAGES) == (
        DebianPackage("gcc", "4:14.2.0-1", "amd64", "b" * 64),
        DebianPackage("libc6", "2.41-12", "amd64", None),
    )


@pytest.mark.parametrize("line", ["", "gcc", "gcc 4:14", "gcc 4:14 amd64 x y"])
def test_a_line_that_is_no_debian_package_is_said(line: str) -> None:
    with pytest.raises(ProblemFound, match="debian-packages:2: ") as error:
        parse_debian_packages(f"gcc 4:14 amd64\n{line}\n")
    assert error.value.fix


def test_what_apptainer_inspect_reads_is_made_of_the_images_own_files() -> None:
    files = {
        "/.singularity.d/labels.json": '{"a": "b"}',
        "/.singularity.d/runscript": "#!/bin/sh\nexec x",
        "/.singularity.d/env/90-environment.sh": "export A=b",
        "/.singularity.d/actions/run": "not told",
    }
    answer = json.loads(inspect_metadata(files).data)
    assert answer["type"] == "container"
    assert answer["data"]["attributes"] == {
        "environment": {"/.singularity.d/env/90-environment.sh": "export A=b"},
        "labels": {"a": "b"},
        "runscript": "#!/bin/sh\nexec x",
    }


# ---------------------------------------------------------------------------------------------- reading


def test_what_was_put_in_is_read_back(tmp_path: Path) -> None:
    carried = read_carried(write_image(tmp_path / "example.sif"))
    assert (carried.definition, carried.spec, carried.packages) == ("Bootstrap: x\n", SPEC, PACKAGES)
    assert carried.lock == make_image().lock.text
    assert json.loads(carried.sbom or "")["specVersion"] == "1.6"
    assert carried.labels is not None
    assert carried.labels["org.sifkit.torch"] == "2.9.1"
    assert not carried.facts
    assert not carried.nothing


def test_an_image_that_carries_nothing_is_no_error(tmp_path: Path) -> None:
    carried = read_carried(write_empty_sif(tmp_path / "foreign.sif"))
    assert carried == Carried()
    assert carried.nothing


@pytest.mark.parametrize("data", [b"[]", b"{", b'{"data": {"attributes": {"labels": [1]}}}', b"[" * 100_000, b"\xff"])
def test_labels_that_are_none_are_not_told(tmp_path: Path, data: bytes) -> None:
    sif = write_empty_sif(tmp_path / "odd.sif", [NewObject(0x4006, "inspect-metadata.json", data)])
    assert read_carried(sif).labels is None


def test_what_is_no_sif_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.sif").write_text("text")
    with pytest.raises(NotSif):
        read_carried(tmp_path / "text.sif")


def test_facts_are_seen(tmp_path: Path) -> None:
    assert read_carried(write_empty_sif(tmp_path / "f.sif", [NewObject(0x4006, "sifkit-facts.json", b"{}")])).facts


# ---------------------------------------------------------------------------------------------- telling


def test_an_image_tells_its_versions_packages_and_digests(tmp_path: Path) -> None:
    sif, image = write_image(tmp_path / "renamed.sif"), make_image()
    told = tell(read_carried(sif), sif)
    assert (told.name, told.sifkit, told.base) == ("example", "1.2.3", "debian-trixie")
    assert told.versions == {"llamafactory": "0.9.5", "torch": "2.9.1"}
    assert (told.python_packages, told.debian_packages) == (3, 2)
    assert (told.spec_digest, told.lock_digest) == (image.spec.digest(), image.lock.digest())
    assert told.doubts == ()


def test_a_spec_that_the_labels_do_not_know_is_a_doubt(tmp_path: Path) -> None:
    sif = write_image(tmp_path / "a.sif", SPEC.replace("2.9.1", "2.9.0"))
    assert tell(read_carried(sif), sif).doubts == ("the spec that it carries is not the one that its labels name",)


@pytest.mark.parametrize("text", ["nmae: x\n", "[", "", "\x00", "name: !!python/object:os.system {}\n"])
def test_a_spec_or_lock_that_cannot_be_read_is_a_doubt_and_no_error(text: str) -> None:
    told = tell(Carried(spec=text, lock=text), Path("a.sif"))
    assert (told.spec, told.lock, len(told.doubts)) == (None, None, 2)


def test_a_title_that_is_no_image_name_names_nothing() -> None:
    labels = {"org.opencontainers.image.title": "../../etc/passwd"}
    assert tell(Carried(labels=labels), Path("dir/real.sif")).name == "real"


def test_the_same_spec_and_lock_differ_in_nothing(tmp_path: Path) -> None:
    sif, image = write_image(tmp_path / "a.sif"), make_image()
    assert differences(tell(read_carried(sif), sif), image.spec, image.lock) == ()


def test_what_differs_is_said_key_by_key_and_package_by_package(tmp_path: Path) -> None:
    from sifkit.lock import parse_lock

    sif = write_image(tmp_path / "a.sif")
    spec = make_spec(torch={"version": "2.9.2", "cuda": "12.8"}, env={"A": "b"}, gpu=("H100",))
    lock = parse_lock(lock_text(spec, "torch==2.9.2", "uv==0.13.9", "peft==1.0"), "example.lock")
    assert differences(tell(read_carried(sif), sif), spec, lock) == (
        "spec: torch.version: 2.9.1 -> 2.9.2",
        "spec: env.A: nothing -> b",
        "lock: peft: nothing -> 1.0",
        "lock: torch: 2.9.1 -> 2.9.2",
        "lock: transformers: 5.6.0 -> nothing",
    )


def test_other_files_of_the_same_versions_are_a_difference(tmp_path: Path) -> None:
    from sifkit.lock import parse_lock

    sif, image = write_image(tmp_path / "a.sif"), make_image()
    lock = parse_lock(image.lock.text.replace("0" * 64, "1" * 64), "example.lock")
    found = differences(tell(read_carried(sif), sif), image.spec, lock)
    assert found == ("lock: the same versions, but other files or inputs",)
