"""Bases made twice with the real debootstrap and apt: the same files, whoever makes them, and an image built again."""

from __future__ import annotations

import json
import os
import pwd
import re
import subprocess
from pathlib import Path

import pytest

from sifkit import deffile
from sifkit.apptainer import Apptainer, Privileges
from sifkit.cli import main
from sifkit.difference import compare_files
from sifkit.errors import Exit
from sifkit.layers import TIME
from sifkit.provenance import parse_debian_packages
from sifkit.run import Command
from sifkit.sifwrite import partition
from sifkit.site import user_cache
from sifkit.squash import Source, listing, read_file
from tests.conftest import make_image, make_spec
from tests.integration import toy
from tests.integration.test_build_real import AsUser, host_mirror

pytestmark = pytest.mark.apptainer

# An ordinary user's habits that a base must not show: umask, time zone, language.
HABITS = 'umask 077; export TZ=Asia/Tokyo LANG=C.UTF-8; exec "$@"'


class WithHabits(AsUser):
    """An ordinary user who is careful, and far away."""

    def run(self, command: Command, **options: object) -> object:  # type: ignore[override]
        argv = ("sh", "-c", HABITS, "sh", *command.argv)
        return super().run(Command(argv, command.cwd, command.env), **options)


def base_definition() -> str:
    base = {"bootstrap": "debootstrap", "suite": "trixie", "mirror": host_mirror()}
    return deffile.render_base(make_image(make_spec(base=base, apt=())))


def build(apptainer: Apptainer, directory: Path) -> Path:
    definition, image, tmpdir = directory / "base.def", directory / "base.sif", directory / "tmp"
    definition.write_text(base_definition())
    tmpdir.mkdir(exist_ok=True)
    apptainer.runner.run(apptainer.build_command(image, definition, root=directory, tmpdir=tmpdir))
    return image


def as_joined(image: Path) -> Source:
    """As a base goes into an image: times and owners are the same for all files."""
    found = partition(image)
    return Source(found.path, found.offset, all_root=True, time=TIME)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can build as another user, too")
def test_root_and_an_ordinary_user_make_the_same_base(ordinary_user: str, apptainer: Apptainer, tmp_path: Path) -> None:
    home = Path(pwd.getpwnam(ordinary_user).pw_dir)
    ours = as_joined(build(apptainer, tmp_path))
    (home / "tmp").mkdir()
    (home / "base.def").touch()
    subprocess.run(["chown", "-R", ordinary_user, str(home)], check=True)
    theirs = as_joined(build(Apptainer(WithHabits(ordinary_user, str(home)), "apptainer", Privileges()), home))

    found, compared = compare_files(ours, theirs)
    # What Apptainer itself writes holds the time of the build; an image's top layer replaces it.
    assert [one for one in found if not one.path.startswith("/.singularity.d/")] == []
    assert compared > 5000

    packages = parse_debian_packages(read_file(ours, deffile.DEBIAN_PACKAGES).decode())
    assert [one.name for one in packages] == sorted(one.name for one in packages)
    assert {"base-files", "dpkg", "python3-venv", "ca-certificates"} <= {one.name for one in packages}
    assert [one for one in packages if one.sha256 is None] == []
    installed = re.findall(r"^Package: (.+)$", read_file(ours, "/var/lib/dpkg/status").decode(), re.MULTILINE)
    assert [one.name for one in packages] == sorted(installed)

    bytecode = [path for path in listing(ours) if path.startswith("/usr/lib/python3") and path.endswith(".pyc")]
    assert len(bytecode) > 400
    flags = {read_file(ours, path)[4:8] for path in bytecode[::40]}
    assert flags == {b"\1\0\0\0"}  # PEP 552: valid without a look at the source's time


def test_an_image_built_again_without_any_cache_is_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    bases = user_cache(os.environ) / "bases"
    bases.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bases").symlink_to(bases.absolute())
    # without layers that other tests made from an index: uv's files differ from those made from a directory of wheels
    monkeypatch.setenv("SIFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SIFKIT_SITE", str(tmp_path / "project" / "site.yaml"))
    project = toy.make_project(tmp_path / "project", toy.make_wheelhouse(tmp_path / "wheels"))
    assert main(["lock", "--project", str(project)]) == Exit.OK
    assert main(["build", "--project", str(project), "toy"]) == Exit.OK
    capsys.readouterr()
    code = main(["reproduce", "--project", str(project), "toy", "--fresh", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["files"], told["objects"]) == ([], [])
    assert (code, told["identical"]) == (Exit.OK, True)
    assert told["sha256"] == told["rebuilt_sha256"]
    assert list((tmp_path / "tmp").iterdir()) == []
