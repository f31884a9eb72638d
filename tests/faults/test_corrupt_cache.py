"""Caches whose files were cut, emptied or changed: noticed, and made again."""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sifkit.errors import Exit
from tests.faults.conftest import First, MakePlace
from tests.faults.faulty_index import served
from tests.faults.place import Place, says, wait_for
from tests.faults.test_index import use

pytestmark = pytest.mark.apptainer


def replace(path: Path, content: bytes) -> None:
    """Other bytes under the name, with the old times: the file itself may be another cache's, too."""
    times = path.stat()
    path.unlink()
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    replace(path, b"")


def flip(path: Path) -> None:
    """One bit, in the middle: file data in a squashfs, whose tables stand at the end."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    replace(path, bytes(content))


DAMAGES: tuple[Callable[[Path], None], ...] = (cut, flip, empty)


def test_a_damaged_base_is_noticed_and_made_again(make_place: MakePlace, first: First) -> None:
    """The base is a copy of another, so that it takes seconds. Each damage is met by a build that is then killed."""
    place = make_place(packages=True)
    source = f"{{bootstrap: localimage, from: {place.cache / 'bases' / first.base.name}}}"
    place.spec.write_text(place.spec.read_text().replace("debian-trixie", source))
    place.lock()
    makes = place.start("build", "toy")
    wait_for(lambda: len(sums(place)) == 1, 200)
    makes.signal(signal.SIGKILL)
    makes.ended()
    (base,) = (path.with_suffix("") for path in sums(place))
    good, digest = base.read_bytes(), sums(place)[0].read_bytes()

    for damage in DAMAGES:
        base.write_bytes(good)
        base.with_name(f"{base.name}.sha256").write_bytes(digest)
        damage(base)
        meets = place.start("build", "toy")
        wait_for(functools.partial(says, meets, "made again"))
        meets.signal(signal.SIGKILL)
        meets.ended()
        assert not base.exists(), damage.__name__
    place.recovers()


def sums(place: Place) -> list[Path]:
    """Of bases that are copies of others: written when such a base is finished."""
    return sorted((place.cache / "bases").glob("localimage-*.sif.sha256"))


def test_damaged_layers_are_noticed_and_made_again(make_place: MakePlace) -> None:
    place = make_place(packages=True)
    layers = sorted((place.cache / "layers").glob("*.sqfs"))
    damaged = {path.name.split("-")[0]: damage for path, damage in zip(layers, DAMAGES, strict=False)}
    for path in layers:
        if path.name.split("-")[0] in damaged:
            damaged[path.name.split("-")[0]](path)
    (layers[-1].with_name(f"{layers[-1].name}.sha256")).unlink()
    place.change("damaged layers")
    ended = place.build()
    assert ended.code == Exit.OK, ended.said
    assert [name for name in damaged if f"cached layer of {name} is damaged" not in " ".join(ended.said.split())] == []
    place.recovers()


def test_a_damaged_uv_does_not_install(make_place: MakePlace) -> None:
    place = make_place(packages=True)
    (uv,), (other,) = ((place.cache / "layers").glob(f"{name}-*.sqfs") for name in ("uv", "llamafactory"))
    cut(uv)
    other.unlink()
    place.change("uv is damaged")
    ended = place.build()
    assert ended.code == Exit.OK, ended.said
    assert "cached layer of uv is damaged" in " ".join(ended.said.split())
    place.recovers()


@pytest.mark.parametrize(("in_uv", "in_pip"), [(flip, cut), (cut, flip)])
def test_damaged_packages_in_the_caches_of_uv_and_pip_do_not_reach_an_image(
    in_uv: Callable[[Path], None], in_pip: Callable[[Path], None], wheelhouse: Path, make_place: MakePlace
) -> None:
    place = make_place()
    with served(wheelhouse) as index:
        use(place, index)
        assert place.build().code == Exit.OK
        place.forget_packages("uv", "pip")
        # uv's own notes are cut, too; where a bit of a package is another, they say that all is well
        for part, damage in (("uv/archive-v*" if in_uv is flip else "uv", in_uv), ("pip", in_pip)):
            for path in place.cache.glob(f"{part}/**/*"):
                if path.is_file() and not path.is_symlink() and path.stat().st_size and path.name not in OF_UV_ITSELF:
                    damage(path)
        place.change("after damage")
        place.recovers()
    assert inside(place, *FILES) == in_wheel(wheelhouse, *FILES)


OF_UV_ITSELF = ("CACHEDIR.TAG", ".gitignore", ".lock")
FILES = ("llamafactory/cli.py", "llamafactory/extras/env.py")


def in_wheel(wheelhouse: Path, *names: str) -> list[str]:
    (wheel,) = wheelhouse.glob("llamafactory-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return [hashlib.sha256(archive.read(name)).hexdigest() for name in names]


def inside(place: Place, *names: str) -> list[str]:
    argv = ["apptainer", "exec", "--no-home", "--pwd", "/opt/venv/lib/python3.13/site-packages"]
    sums = subprocess.run(
        [*argv, str(place.images / "toy.sif"), "sha256sum", *names],
        env={**place.environment(), "APPTAINER_NO_PRIVS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split()[0] for line in sums.stdout.splitlines()]
