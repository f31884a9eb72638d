"""Every image and every bootstrap renders to the text that was read and found good."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit import deffile
from sifkit.lock import current_lock
from sifkit.model import Image, Site
from sifkit.resolve import resolve_base
from sifkit.spec import Project, load_spec
from tests.conftest import HOST, make_environment_image, make_image, make_spec, wanted
from tests.golden.conftest import Golden

PROJECT = Project(Path(__file__).parents[2])

BOOTSTRAPS = {
    "debootstrap": {"bootstrap": "debootstrap", "suite": "trixie", "mirror": "http://mirror.example/debian"},
    "docker": {"bootstrap": "docker", "from": "debian:trixie-slim@sha256:" + "0" * 64},
    "localimage": {"bootstrap": "localimage", "from": "/shared/images/debian trixie.sif"},
    "oci-archive": {"bootstrap": "oci-archive", "from": "/shared/images/debian.oci.tar"},
    "docker-archive": {"bootstrap": "docker-archive", "from": "/shared/images/debian.docker.tar"},
    "scratch": {"bootstrap": "scratch"},
}


@pytest.mark.parametrize("name", PROJECT.names())
def test_image(name: str, golden: Golden) -> None:
    spec = load_spec(PROJECT, name)
    resolution = wanted(spec)
    lock = current_lock(resolution, PROJECT.lock_path(name))
    image = Image(spec, resolution, lock, f"definitions/{name}.lock", resolve_base(spec, Site(), HOST))
    golden(f"{name}.def", deffile.render(image, sifkit_version="VERSION"))


@pytest.mark.parametrize("bootstrap", BOOTSTRAPS)
def test_bootstrap(bootstrap: str, golden: Golden) -> None:
    image = make_image(make_spec(base=BOOTSTRAPS[bootstrap], env={"GREETING": "it's $HOME"}))
    golden(f"bootstrap-{bootstrap}.def", deffile.render(image, sifkit_version="VERSION"))


def test_the_steps_of_a_build(golden: Golden) -> None:
    image = make_image()
    golden("step-1-base.def", deffile.render_base(image))
    golden("step-2-install.sh", deffile.install_script(image))
    golden("step-2-install-with-uv.sh", deffile.install_script(image, uv_is_there=True))
    golden("step-3-top.def", deffile.render_top(image, sifkit_version="VERSION"))


def test_an_image_of_the_hosts_environment(golden: Golden) -> None:
    golden("environment.def", deffile.render(make_environment_image(), sifkit_version="VERSION"))


def test_torch_for_another_cuda(golden: Golden) -> None:
    golden(
        "other-cuda.def",
        deffile.render(make_image(make_spec(torch={"version": "2.9.1", "cuda": "12.6"})), sifkit_version="VERSION"),
    )
