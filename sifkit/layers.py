"""Layers: the parts that images are joined from, one a package. Pure: names, keys, and which files belong to whom.

A layer is a squashfs of the files of one locked package, as they are in the image. Its key holds all that they
depend on, so that any image with the same file of that package uses the same layer.
"""

from __future__ import annotations

import csv
import posixpath
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.utils import canonicalize_name

from sifkit.bytecode import site_packages
from sifkit.deffile import CUDA_HOME, VENV
from sifkit.model import Image, LockedPackage, digest_of

LAYOUT = 7  # raise it when layers or images of the same recipe would hold other bytes
TIME = 315532800  # of every file, directory and object in an image: 1980-01-01, the earliest that zip files know
# How every squashfs here is packed: parts can be joined only if they are packed alike. To read one page, a block is
# unpacked: in blocks of 128K, each small file alone, a cold import takes up to a tenth less than in 256K with small
# files together. 4 is the lowest level at which the default image is no larger than gzip's. docs/benchmarks.md.
SQUASH = ("-comp", "zstd", "-Xcompression-level", "4", "-b", "128K", "-no-fragments")
SKELETON = "venv"  # the layer of the virtual environment itself, with pip


@dataclass(frozen=True)
class Wanted:
    """A layer that an image needs: its key, and its package; None for the skeleton."""

    key: str
    package: LockedPackage | None

    @property
    def name(self) -> str:
        """For people."""
        return self.package.name if self.package else SKELETON


def wanted_layers(image: Image, base_identity: str) -> tuple[Wanted, ...]:
    """In the order in which they are joined: the skeleton, then packages by name.

    `base_identity`: of the base in whose container they are made. Its Python makes the skeleton and builds source
    archives; a wheel's files depend on the Python's minor version alone.
    """
    python = image.spec.python
    replaced = sorted({"pip", "setuptools", "wheel"} & image.lock.versions().keys())  # what `python -m venv` brings
    skeleton = Wanted(digest_of([LAYOUT, SQUASH, SKELETON, python, base_identity, replaced]), None)
    packages = sorted(image.lock.packages, key=lambda package: package.name)
    return (skeleton, *(Wanted(_key(package, image, base_identity), package) for package in packages))


def _key(package: LockedPackage, image: Image, base_identity: str) -> str:
    parts: list[object] = [LAYOUT, SQUASH, package.name, package.version, package.sha256, image.spec.python]
    if not package.file.endswith(".whl"):  # what builds it
        setuptools = next((one.sha256 for one in image.lock.packages if one.name == "setuptools"), "")
        parts += [setuptools, base_identity]
    return digest_of(parts)


def partial_lock(packages: Iterable[LockedPackage]) -> str:
    """A requirements file of some packages of a lock."""
    return "".join(f"{one.name}=={one.version} --hash=sha256:{one.sha256}\n" for one in packages)


# ---------------------------------------------------------------------------------------------- who owns what


@dataclass(frozen=True)
class Owned:
    """A file of a package, relative to the virtual environment; its hash as RECORD writes it, "" where it has none."""

    path: str
    digest: str


def package_of(dist_info: str) -> str:
    """The normalised name in `NAME-VERSION.dist-info`."""
    return canonicalize_name(dist_info.removesuffix(".dist-info").rpartition("-")[0])


def owned(record: str, python: str) -> tuple[Owned, ...]:
    """The files in a RECORD (PyPA's specification of installed projects). Raises `ValueError` for one elsewhere."""
    found = []
    for row in csv.reader(record.splitlines()):
        if not row:
            continue
        path = posixpath.normpath(posixpath.join(site_packages(python), row[0]))
        if path.startswith(("/", "..")):
            raise ValueError(f"RECORD names a file outside the environment: {row[0]}")
        found.append(Owned(path, row[1] if len(row) > 1 else ""))
    return tuple(found)


def bytecode_of(path: str, python: str) -> str | None:
    """Where the bytecode of a source file stands; None for other files."""
    if not path.endswith(".py"):
        return None
    directory, name = posixpath.split(path)
    return f"{directory}/__pycache__/{name[:-3]}.cpython-{python.replace('.', '')}.pyc"


def with_time_of_source(header: bytes, time: int) -> bytes:
    """The 16 bytes at the head of a bytecode file, valid for a source of that time (PEP 552); others as they are.

    Python so takes the bytecode, and compiles anew what somebody binds over a source in the image.
    """
    magic, flags, _, size = struct.unpack("<4sIII", header)
    return header if flags else struct.pack("<4sIII", magic, 0, time, size)


def shared(files: Mapping[str, Iterable[Owned]]) -> frozenset[str]:
    """Paths that more than one package claims: whoever was installed last has its file there."""
    seen: set[str] = set()
    twice: set[str] = set()
    for each in files.values():
        paths = {file.path for file in each}
        twice |= seen & paths
        seen |= paths
    return frozenset(twice)


# ---------------------------------------------------------------------------------------------- toolkit


def toolkit_links(paths: Iterable[str], python: str, toolkit: str) -> dict[str, str]:
    """Links of a CUDA toolkit where everybody looks for it, into the wheels: target by path, both absolute.

    `paths`: all in the image. The same as the definition's own lines.
    """
    wheels = f"{VENV}/{site_packages(python)}/{toolkit}"
    links = {f"{wheels}/lib64": "lib", **{f"{CUDA_HOME}/{part}": f"{wheels}/{part}" for part in _PARTS}}
    for path in sorted(path for path in paths if posixpath.dirname(path) == f"{wheels}/lib"):
        name = posixpath.basename(path)
        links[f"{CUDA_HOME}/lib64/{name}"] = path
        if ".so." in name:
            links[f"{CUDA_HOME}/lib64/{name.split('.so.')[0]}.so"] = path
    return links


_PARTS = ("bin", "include", "nvvm")
