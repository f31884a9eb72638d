"""Bases through a mirror of their registry: TLS by a private CA, passwords, a proxy; real Apptainer and Docker."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sifkit import cli, digests
from sifkit.apptainer import Apptainer
from sifkit.docker_engine import _Build
from sifkit.dockerfile import parts_of
from sifkit.errors import CommandFailed, Exit, HostError
from sifkit.lock import base_of
from sifkit.model import Site
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.site import reach
from sifkit.spec import Project
from sifkit.tools import Tools
from sifkit.workshop import Workshop
from tests.conftest import lock_text, make_image, make_spec
from tests.docker.conftest import Daemon
from tests.docker.registry_server import HTPASSWD, PASSWORD, USER, Registry, serve
from tests.integration import mirror_servers
from tests.integration.mirror_servers import Authority

pytestmark = [pytest.mark.docker, pytest.mark.apptainer]

ROOT = Path(__file__).parents[2]
NAME = "registry.example"  # known to the proxy alone
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
PUBLIC = "docker.io/library/tiny:1"


@dataclasses.dataclass(frozen=True)
class Mirror:
    """A registry with TLS and a password, which has an image in the folder where a mirror of Docker Hub has it."""

    registry: Registry
    authority: Authority
    digest: str


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    subprocess.run(("bash", str(ROOT / "ci/docker/install.sh")), check=True)
    root = tmp_path_factory.mktemp("mirror")
    authority = mirror_servers.make_authority(root / "ca", "localhost", NAME)
    (root / "htpasswd").write_text(HTPASSWD)
    tls = {"certificate": str(authority.chain), "key": str(authority.chain)}
    auth = {"htpasswd": {"realm": "test", "path": str(root / "htpasswd")}}
    with serve(root / "registry", tls=tls, auth=auth) as found:
        yield Mirror(found, authority, push(found, authority))


def push(registry: Registry, authority: Authority | None = None) -> str:
    verify = str(authority.ca) if authority else True
    writer = dataclasses.replace(registry, verify=verify, headers={"Authorization": f"Basic {BASIC}"})
    return writer.push("hub/library/tiny", "1", {"etc/version": b"1", "bin/sh": b"#!"})


def login(directory: Path, host: str, password: str = PASSWORD) -> Path:
    """What `docker login` writes."""
    directory.mkdir(parents=True, exist_ok=True)
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    return directory


def site_of(host: str, authority: Authority | None, **more: object) -> Site:
    """Docker Hub is taken from a folder of `host`."""
    bundle = {"python_index": {"ca_bundle": str(authority.ca)}} if authority else {}
    return Site.model_validate({"registries": {"docker.io": {"mirror": f"{host}/hub"}}, **bundle, **more})


def workshop(root: Path, site: Site, **environment: str) -> Workshop:
    """For a user without any settings but these."""
    for name in ("home", "definitions", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    environ = reach({"PATH": os.environ["PATH"], "HOME": str(root / "home"), **environment}, site)
    runner = Runner(environ, lambda text: print(text))
    tools = Tools(Project(root), site, runner, PlainProgress(Console(stderr=True)), environ)
    return Workshop(tools, Apptainer.find(runner), root / "tmp", root / "log")


def build(found: Workshop, digest: str, root: Path) -> Path:
    """A definition that knows of no mirror."""
    target = root / "tree"
    found.apptainer_build(f"# a comment\nBootstrap: docker\nFrom: tiny@{digest}\n", target, sandbox=True)
    return target


def version_in(tree: Path) -> str:
    found = (tree / "etc" / "version").read_text()
    shutil.rmtree(tree)
    return found


@pytest.mark.parametrize("way", ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "APPTAINER_DOCKER_PASSWORD", "~/.docker"])
def test_apptainer_takes_a_base_from_the_mirror_with_the_users_own_login(
    way: str, mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    host = mirror.registry.host
    ways = {
        "DOCKER_CONFIG": {"DOCKER_CONFIG": str(login(tmp_path / "docker", host))},
        "REGISTRY_AUTH_FILE": {"REGISTRY_AUTH_FILE": str(login(tmp_path / "auth", host) / "config.json")},
        "APPTAINER_DOCKER_PASSWORD": {"APPTAINER_DOCKER_USERNAME": USER, "APPTAINER_DOCKER_PASSWORD": PASSWORD},
        "~/.docker": {},
    }
    if way == "~/.docker":
        login(tmp_path / "home" / ".docker", host)
    found = workshop(tmp_path, site_of(host, mirror.authority), **ways[way])
    assert version_in(build(found, mirror.digest, tmp_path)) == "1"
    said = capsys.readouterr()
    assert "apptainer build" in said.out
    assert [text for text in (said.out, said.err, (tmp_path / "log").read_text()) if PASSWORD in text] == []


def test_a_ca_where_docker_keeps_it_is_apptainers_too(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, docker = mirror.registry.host, str(login(tmp_path / "docker", mirror.registry.host))
    found = workshop(tmp_path, site_of(host, None), DOCKER_CONFIG=docker)
    with pytest.raises(CommandFailed, match="certificate signed by unknown authority"):
        build(found, mirror.digest, tmp_path)
    own = tmp_path / "certs.d" / host
    own.mkdir(parents=True)
    shutil.copy(mirror.authority.ca, own / "ca.crt")
    monkeypatch.setattr("sifkit.registry.CERTIFICATES", (str(tmp_path / "certs.d"),))
    assert version_in(build(found, mirror.digest, tmp_path)) == "1"


def test_without_a_login_the_registry_refuses(mirror: Mirror, tmp_path: Path) -> None:
    found = workshop(tmp_path, site_of(mirror.registry.host, mirror.authority))
    with pytest.raises(CommandFailed, match="UNAUTHORIZED"):
        build(found, mirror.digest, tmp_path)


def test_a_proxy_with_a_password_leads_apptainer_and_us_to_the_registry(mirror: Mirror, tmp_path: Path) -> None:
    host = f"{NAME}:443"
    with mirror_servers.proxy("traveller", "proxy-Pa55word", {NAME: mirror.registry.port}) as proxy:
        site = site_of(host, mirror.authority, proxy={"https": proxy.url})
        found = workshop(tmp_path, site, DOCKER_CONFIG=str(login(tmp_path / "docker", host)))
        assert version_in(build(found, mirror.digest, tmp_path)) == "1"
        by_apptainer = len(proxy.passed)
        assert digest_of(found) == mirror.digest
        assert len(proxy.passed) > by_apptainer > 0
        assert set(proxy.passed) == {f"CONNECT {host}"}
        refused = site_of(host, mirror.authority, proxy={"https": proxy.url.replace("proxy-Pa55", "wrong-Pa55")})
        with pytest.raises(HostError, match=r"cannot be reached through the proxy.*407") as e:
            digest_of(workshop(tmp_path, refused))
        assert "wrong-Pa55" not in str(e.value)


def digest_of(found: Workshop) -> str:
    from sifkit.reference import Reference
    from sifkit.registry import Settings
    from sifkit.site import ca_bundle

    tools = found.tools
    settings = Settings(tools.environ, ca_bundle(tools.site, tools.environ), site=tools.site)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "SOCKET", "/nowhere/docker.sock")
        return digests.resolve(Reference.parse(PUBLIC), settings, architecture="amd64")


def test_a_registry_without_tls_is_asked_where_the_site_says_so(tmp_path: Path) -> None:
    """Under a name that is not this machine's, and through a proxy, so that nothing allows it but the site file."""
    host = "plain.example:5000"
    with (
        serve(tmp_path / "registry") as plain,
        mirror_servers.proxy("traveller", "proxy-Pa55word", {"plain.example": plain.port}) as proxy,
    ):
        digest = push(plain)
        through = {"http": proxy.url, "https": proxy.url}
        closed = workshop(tmp_path, site_of(host, None, proxy=through))
        with pytest.raises(CommandFailed):
            build(closed, digest, tmp_path)
        with pytest.raises(HostError, match="plain"):
            digest_of(closed)
        registries = {"docker.io": {"mirror": f"{host}/hub"}, host: {"http": True}}
        opened = workshop(tmp_path, Site.model_validate({"registries": registries, "proxy": through}))
        assert digest_of(opened) == digest
        assert version_in(build(opened, digest, tmp_path)) == "1"


def test_a_lock_keeps_the_public_name_with_the_mirrors_digest(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(name="x", base={"bootstrap": "docker", "from": "tiny:1"})
    (tmp_path / "definitions").mkdir()
    (tmp_path / "definitions/x.yaml").write_text(
        json.dumps(spec.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    )
    (tmp_path / "definitions/x.lock").write_text(lock_text(spec, "torch==2.9.1"))
    host = mirror.registry.host
    (tmp_path / "site.yaml").write_text(
        f"registries: {{docker.io: {{mirror: '{host}/hub'}}}}\npython_index: {{ca_bundle: '{mirror.authority.ca}'}}\n"
    )
    for name in ("DOCKER_HOST", "APPTAINER_DOCKER_USERNAME", "SIFKIT_SITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(login(tmp_path / "docker", host)))
    monkeypatch.setattr(digests, "SOCKET", "/nowhere/docker.sock")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["lock", "x", "--no-check"]) == Exit.OK
    found = base_of((tmp_path / "definitions/x.lock").read_text())
    assert found
    assert (found.name, found.digest) == (PUBLIC, mirror.digest)


def test_the_docker_engine_takes_it_from_the_mirror_with_a_login_of_any_kind(daemon: Daemon, tmp_path: Path) -> None:
    """One of this machine: the daemon has no certificates of ours."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with serve(tmp_path / "registry", auth=auth) as guarded:
        digest, host = push(guarded), guarded.host
        image = make_image(make_spec(base={"bootstrap": "docker", "from": f"tiny@{digest}"}))
        parts = parts_of(image, sifkit_version="1")
        refused = workshop(tmp_path, site_of(host, None))
        with pytest.raises(HostError, match=f"cannot get {host}/hub/library/tiny@{digest}"):
            _Build(daemon.client, image, parts, refused)._base()
        file = login(tmp_path / "auth", host) / "config.json"
        allowed = workshop(tmp_path, site_of(host, None), REGISTRY_AUTH_FILE=str(file))
        taken = _Build(daemon.client, image, parts, allowed)._base()
        assert daemon.client.images.get(taken).attrs["RepoDigests"] == [f"{host}/hub/library/tiny@{digest}"]
