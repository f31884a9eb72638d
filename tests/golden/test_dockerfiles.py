"""Dockerfiles render to the texts that were read and found good; a real Docker builds them in tests/docker."""

from __future__ import annotations

from sifkit import dockerfile
from sifkit.lock import current_lock
from sifkit.model import Image, Site
from sifkit.resolve import resolve_base
from sifkit.spec import DEFAULT_IMAGE, Project, load_spec
from tests.conftest import HOST, make_image, make_spec, wanted
from tests.golden.conftest import Golden
from tests.golden.test_goldens import BOOTSTRAPS, PROJECT


def image_of(name: str, project: Project = PROJECT) -> Image:
    spec = load_spec(project, name)
    resolution = wanted(spec)
    lock = current_lock(resolution, project.lock_path(name))
    return Image(spec, resolution, lock, f"definitions/{name}.lock", resolve_base(spec, Site(), HOST))


def test_the_default_image(golden: Golden) -> None:
    golden(f"{DEFAULT_IMAGE}.Dockerfile", dockerfile.render(image_of(DEFAULT_IMAGE), sifkit_version="VERSION"))


def test_the_default_image_with_buildkits_caches(golden: Golden) -> None:
    text = dockerfile.render(image_of(DEFAULT_IMAGE), sifkit_version="VERSION", buildkit=True)
    golden(f"{DEFAULT_IMAGE}-buildkit.Dockerfile", text)


def test_extras_with_a_toolkit(golden: Golden) -> None:
    name = "llamafactory-0.9.5-cu130-extras"
    golden(f"{name}.Dockerfile", dockerfile.render(image_of(name), sifkit_version="VERSION"))


def test_a_base_with_a_digest_and_an_environment(golden: Golden) -> None:
    image = make_image(make_spec(base=BOOTSTRAPS["docker"], env={"GREETING": "it's $HOME", "ODD": 'a "b" \\c'}))
    golden("bootstrap-docker.Dockerfile", dockerfile.render(image, sifkit_version="VERSION"))
