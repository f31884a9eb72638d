"""The bill of materials: valid by its own library, complete, and the same for the same image."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sifkit.model import Image, Inherited, LockedPackage
from sifkit.provenance import DebianPackage
from sifkit.sbom import sbom_of
from tests.conftest import make_environment_image, make_image, make_spec

DEBIAN = (
    DebianPackage("libc6", "2.41-12+deb13u1", "amd64", "a" * 64),
    DebianPackage("login", "1:4.16.0-2+really2.41-5", "amd64", None),
)


def bill(image: Image, debian: tuple[DebianPackage, ...] = DEBIAN, time: int = 315532800) -> str:
    python: tuple[LockedPackage | Inherited, ...] = (*image.lock.packages, *image.lock.inherited)
    return sbom_of(image, debian, python, time=time, sifkit_version="1.2.3")


def components(text: str) -> dict[str, dict[str, Any]]:
    return {component["purl"]: component for component in json.loads(text)["components"]}


@pytest.mark.parametrize("image", [make_image(), make_environment_image()], ids=["locked", "inherited"])
def test_it_is_valid_by_the_schema_of_cyclonedx_1_6(image: Image) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(bill(image)) is None
    assert validator.validate_str(bill(image).replace('"type": "library"', '"type": "book"')) is not None


def test_every_python_package_is_in_it_with_the_hash_of_its_file() -> None:
    image = make_image()
    found = components(bill(image, ()))
    assert set(found) == {f"pkg:pypi/{package.name}@{package.version}" for package in image.lock.packages}
    assert found["pkg:pypi/torch@2.9.1"]["hashes"] == [{"alg": "SHA-256", "content": "0" * 64}]
    assert found["pkg:pypi/torch@2.9.1"]["properties"] == [{"name": "sifkit:file", "value": "torch-2.9.1.whl"}]


def test_inherited_packages_are_in_it_and_said_to_be() -> None:
    found = components(bill(make_environment_image(), ()))
    torch = found["pkg:pypi/torch@2.11.0%2Bcu130"]
    assert "hashes" not in torch
    assert torch["properties"] == [{"name": "sifkit:inherited", "value": "from the base's environment"}]
    assert found["pkg:pypi/llamafactory@0.9.5"]["hashes"]


def test_debian_packages_are_in_it_with_architecture_and_hash() -> None:
    found = components(bill(make_image()))
    libc = found["pkg:deb/debian/libc6@2.41-12%2Bdeb13u1?arch=amd64"]
    assert (libc["name"], libc["version"]) == ("libc6", "2.41-12+deb13u1")
    assert libc["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    login = next(component for purl, component in found.items() if "login" in purl)
    assert login["version"] == "1:4.16.0-2+really2.41-5"
    assert "hashes" not in login


@pytest.mark.parametrize(
    ("base", "vendor"),
    [
        ("ubuntu-noble", "ubuntu"),
        ("debian-trixie", "debian"),
        ({"bootstrap": "docker", "from": "nvidia/cuda:12.8.1-devel-ubuntu24.04"}, "ubuntu"),
        ({"bootstrap": "docker", "from": "debian:trixie-slim"}, "debian"),
        ({"bootstrap": "scratch"}, "debian"),
    ],
)
def test_debian_packages_are_those_of_the_bases_distribution(base: object, vendor: str) -> None:
    python = "3.12" if base == "ubuntu-noble" else "3.13"
    text = bill(make_image(make_spec(base=base, python=python)))
    assert f"pkg:deb/{vendor}/libc6@" in text


def test_the_image_is_the_root_and_depends_on_everything() -> None:
    image = make_image()
    answer = json.loads(bill(image))
    root = answer["metadata"]["component"]
    assert (root["type"], root["name"], root["version"]) == ("container", "example", "0.9.5")
    assert {"name": "sifkit:lock-digest", "value": f"sha256:{image.lock.digest()}"} in root["properties"]
    depends = {entry["ref"]: entry.get("dependsOn", []) for entry in answer["dependencies"]}
    assert sorted(depends["image"]) == sorted(component["bom-ref"] for component in answer["components"])
    assert answer["metadata"]["timestamp"] == "1980-01-01T00:00:00+00:00"


def test_one_image_has_one_bill_whatever_the_order_of_its_packages() -> None:
    image = make_image()
    turned = dataclasses.replace(image.lock, packages=image.lock.packages[::-1])
    assert bill(image) == bill(dataclasses.replace(image, lock=turned), DEBIAN[::-1])


def test_other_contents_are_another_number() -> None:
    numbers = {json.loads(text)["serialNumber"] for text in (bill(make_image()), bill(make_image(), DEBIAN[:1]))}
    assert len(numbers) == 2
    assert all(number.startswith("urn:uuid:") for number in numbers)


def test_commands_that_make_no_bill_do_not_load_the_library() -> None:
    modules = "sifkit.commands.check, sifkit.commands.build, sifkit.commands.inspect"
    code = f"import sys, {modules}; sys.exit('cyclonedx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
