"""Which layers an image needs, and whose a file is."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.util
import struct
from pathlib import Path

import pytest

from sifkit.assemble import final_labels
from sifkit.deffile import render
from sifkit.layers import (
    TIME,
    bytecode_of,
    owned,
    package_of,
    partial_lock,
    shared,
    toolkit_links,
    wanted_layers,
    with_time_of_source,
)
from sifkit.lock import parse_lock
from sifkit.model import Image, LockedPackage
from sifkit.venvtree import Tree
from tests.conftest import make_image, make_spec

SITE = "lib/python3.13/site-packages"


def with_packages(*packages: LockedPackage) -> Image:
    image = make_image()
    return dataclasses.replace(image, lock=dataclasses.replace(image.lock, packages=packages))


def package(name: str, file: str = "", sha256: str = "0" * 64) -> LockedPackage:
    return LockedPackage(name, "1.0", file or f"{name}-1.0-py3-none-any.whl", 1000, sha256)


def keys(image: Image, base: str = "base") -> dict[str, str]:
    return {layer.name: layer.key for layer in wanted_layers(image, base)}


def test_images_with_the_same_wheel_share_its_layer() -> None:
    one = keys(with_packages(package("torch"), package("numpy")))
    two = keys(with_packages(package("torch"), package("numpy", sha256="1" * 64)), "another base")
    assert one["torch"] == two["torch"]
    assert one["numpy"] != two["numpy"]
    assert one["venv"] != two["venv"]


def test_another_python_is_another_layer() -> None:
    older = dataclasses.replace(make_image(), spec=make_spec(python="3.11"))
    assert keys(make_image())["torch"] != keys(older)["torch"]


def test_what_is_built_from_source_depends_on_what_builds_it() -> None:
    source = package("jieba", "jieba-1.0.tar.gz")
    before = keys(with_packages(source, package("setuptools")))
    assert before["jieba"] != keys(with_packages(source, package("setuptools", sha256="1" * 64)))["jieba"]
    assert before["jieba"] != keys(with_packages(source, package("setuptools")), "another base")["jieba"]


def test_what_the_environment_brings_and_the_lock_replaces_is_no_part_of_the_skeleton() -> None:
    assert keys(with_packages(package("torch")))["venv"] != keys(with_packages(package("setuptools")))["venv"]


def test_the_skeleton_comes_first_and_packages_by_name() -> None:
    names = [layer.name for layer in wanted_layers(with_packages(package("torch"), package("av")), "base")]
    assert names == ["venv", "av", "torch"]


def test_a_part_of_a_lock_keeps_the_hashes() -> None:
    assert partial_lock([package("torch")]) == f"torch==1.0 --hash=sha256:{'0' * 64}\n"
    assert parse_lock(make_image().lock.text, "example.lock").packages == make_image().lock.packages


def test_records_name_files_below_the_environment() -> None:
    record = '../../../bin/tool,sha256=abc,10\n"odd, name.py",,\nx/__init__.py,sha256=def,0\n'
    assert [file.path for file in owned(record, "3.13")] == [
        "bin/tool",
        f"{SITE}/odd, name.py",
        f"{SITE}/x/__init__.py",
    ]
    for outside in ("../../../../etc/passwd", "/etc/passwd"):
        with pytest.raises(ValueError, match="outside the environment"):
            owned(f"{outside},,\n", "3.13")


def test_names() -> None:
    assert package_of("ruamel.yaml_clib-0.2.8.dist-info") == "ruamel-yaml-clib"
    assert bytecode_of("x/y.py", "3.13") == "x/__pycache__/y.cpython-313.pyc"
    assert bytecode_of("x/y.so", "3.13") is None
    assert shared({"a": owned("p.py,,\n", "3.13"), "b": owned("p.py,,\nq.py,,\n", "3.13")}) == {f"{SITE}/p.py"}


def test_bytecode_is_valid_for_the_time_of_sources_in_an_image() -> None:
    header = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, 1_700_000_000, 42)
    assert with_time_of_source(header, TIME) == importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, TIME, 42)
    unchecked = importlib.util.MAGIC_NUMBER + struct.pack("<IQ", 1, 7)
    assert with_time_of_source(unchecked, TIME) == unchecked


def digest(text: str) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """Two packages that both bring shared.py; `two` was installed last."""
    files = {
        "pyvenv.cfg": "home = /usr/bin\n",
        "bin/one": "#!/opt/venv/bin/python\n",
        f"{SITE}/one.py": "1",
        f"{SITE}/__pycache__/one.cpython-313.pyc": "bytecode",
        f"{SITE}/shared.py": "of two",
        f"{SITE}/pip/__init__.py": "",
        f"{SITE}/one-1.0.dist-info/RECORD": (
            f"one.py,{digest('1')},1\n../../../bin/one,,\nshared.py,{digest('of one')},6\n"
        ),
        f"{SITE}/two-1.0.dist-info/RECORD": f"shared.py,{digest('of two')},6\n",
        f"{SITE}/pip-25.dist-info/RECORD": "pip/__init__.py,,\n",
    }
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "lib64").symlink_to("lib")
    return tmp_path


def test_what_another_package_overwrote_is_no_layer(venv: Path) -> None:
    tree = Tree(venv, "3.13")
    assert tree.package("one") is None
    assert tree.package("two") == (f"{SITE}/shared.py",)
    assert tree.package("absent") is None
    (venv / SITE / "shared.py").write_text("of one")
    tree = Tree(venv, "3.13")
    assert tree.package("one") == (
        "bin/one",
        f"{SITE}/__pycache__/one.cpython-313.pyc",
        f"{SITE}/one.py",
        f"{SITE}/shared.py",
    )
    assert tree.package("two") is None


def test_the_skeleton_is_what_no_locked_package_owns(venv: Path) -> None:
    skeleton = set(Tree(venv, "3.13").skeleton(frozenset({"one", "two"})))
    assert {"lib64", "pyvenv.cfg", f"{SITE}/pip/__init__.py"} <= skeleton
    assert not {"bin/one", f"{SITE}/one.py", f"{SITE}/shared.py", f"{SITE}/__pycache__/one.cpython-313.pyc"} & skeleton
    assert f"{SITE}/pip/__init__.py" not in Tree(venv, "3.13").skeleton(frozenset({"one", "two", "pip"}))


def test_a_farm_holds_the_same_files_in_the_places_of_the_image(venv: Path, tmp_path: Path) -> None:
    farm = Tree(venv, "3.13").farm(["lib64", "bin/one"], tmp_path / "farm")
    assert (farm / "opt/venv/bin/one").stat().st_ino == (venv / "bin/one").stat().st_ino
    assert (farm / "opt/venv/lib64").is_symlink()
    assert (farm / "opt/venv/bin").stat().st_mode & 0o777 == 0o755


def test_toolkit_links_are_those_of_the_definition() -> None:
    wheels = f"/opt/venv/{SITE}/nvidia/cu13"
    paths = [f"{wheels}/lib/libcudart.so.13", f"{wheels}/lib/libdevice.a", f"{wheels}/include/cuda.h"]
    assert toolkit_links(paths, "3.13", "nvidia/cu13") == {
        f"{wheels}/lib64": "lib",
        "/usr/local/cuda/bin": f"{wheels}/bin",
        "/usr/local/cuda/include": f"{wheels}/include",
        "/usr/local/cuda/nvvm": f"{wheels}/nvvm",
        "/usr/local/cuda/lib64/libcudart.so.13": f"{wheels}/lib/libcudart.so.13",
        "/usr/local/cuda/lib64/libcudart.so": f"{wheels}/lib/libcudart.so.13",
        "/usr/local/cuda/lib64/libdevice.a": f"{wheels}/lib/libdevice.a",
    }


def test_labels_hold_no_time_and_no_mirror() -> None:
    image = make_image()
    found = final_labels({"org.label-schema.build-date": "today", "a": "b"}, image)
    assert found["a"] == "b"
    assert found["org.label-schema.usage.singularity.deffile.bootstrap"] == "debootstrap"
    assert "org.label-schema.build-date" not in found
    assert "mirror.example" in render(image, sifkit_version="1")
    assert not [value for value in found.values() if "mirror.example" in value]
