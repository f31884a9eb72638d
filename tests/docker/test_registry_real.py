"""Digests of bases, asked of real registries and of a real daemon on this machine."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sifkit import cli, digests
from sifkit.apptainer import Apptainer
from sifkit.errors import CommandFailed, HostError, UsageError
from sifkit.lock import base_of
from sifkit.reference import Reference
from sifkit.registry import Settings
from sifkit.run import Runner
from tests.conftest import lock_text, make_spec
from tests.docker.registry_server import (
    HTPASSWD,
    PASSWORD,
    USER,
    Certificates,
    Registry,
    make_certificates,
    serve,
    token_service,
)

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
ENVIRON = {"HOME": "/nowhere"}
LOGIN = {**ENVIRON, "APPTAINER_DOCKER_USERNAME": USER, "APPTAINER_DOCKER_PASSWORD": PASSWORD}


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """What Debian's packages bring; a host without them fails, because these tests were asked for."""
    subprocess.run(("bash", str(ROOT / "ci/docker/install.sh")), check=True)


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SOCKET", "/nowhere/docker.sock")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Iterator[Registry]:
    with serve(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("ca"))


def resolve(registry: Registry, name: str, settings: Settings | None = None) -> str:
    reference = Reference.parse(f"{registry.host}/{name}")
    return digests.resolve(reference, settings or Settings(ENVIRON), architecture="amd64")


def test_a_tag_is_resolved_and_follows_what_is_pushed(registry: Registry) -> None:
    first = registry.push("base", "1", {"etc/version": b"1"})
    assert resolve(registry, "base:1") == first
    second = registry.push("base", "1", {"etc/version": b"2"})
    assert second != first
    assert resolve(registry, "base:1") == second
    assert resolve(registry, f"base@{first}") == first


def test_of_several_platforms_the_index_is_named_if_ours_is_among_them(registry: Registry) -> None:
    digest = registry.push_index("many", "1", ["amd64", "arm64"])
    assert resolve(registry, "many:1") == digest
    registry.push_index("many", "2", ["arm64", "ppc64le"])
    with pytest.raises(UsageError, match="no image for linux/amd64; it has linux/arm64, linux/ppc64le"):
        resolve(registry, "many:2")
    registry.push("one", "arm", {"etc/x": b""}, architecture="arm64")
    with pytest.raises(UsageError, match="it has linux/arm64"):
        resolve(registry, "one:arm")


def test_what_is_not_there_is_said(registry: Registry) -> None:
    registry.push("base", "1", {"etc/version": b"1"})
    with pytest.raises(UsageError, match="has no base:nonesuch"):
        resolve(registry, "base:nonesuch")
    with pytest.raises(UsageError, match="has no nonesuch:1"):
        resolve(registry, "nonesuch:1")
    with pytest.raises(UsageError, match="mistyped, or deleted"):
        resolve(registry, f"base@sha256:{'0' * 64}")


def test_passwords_asked_for_plainly(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    with serve(tmp_path / "registry", auth=auth) as plain:
        digest = dataclasses.replace(plain, headers={"Authorization": BASIC}).push("base", "1", {"etc/x": b""})
        assert resolve(plain, "base:1", Settings(LOGIN)) == digest
        with pytest.raises(HostError, match="asks for credentials for base"):
            resolve(plain, "base:1")
        with pytest.raises(HostError, match="refuses base to the user of APPTAINER_DOCKER_USERNAME: HTTP 401"):
            resolve(plain, "base:1", Settings({**LOGIN, "APPTAINER_DOCKER_PASSWORD": "wrong"}))


def test_tokens_as_docker_hub_asks_for_them(tmp_path: Path) -> None:
    with token_service(tmp_path / "tokens") as token, serve(tmp_path / "registry", auth={"token": token}) as guarded:
        config = {"auths": {guarded.host: {"auth": BASIC.partition(" ")[2]}}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UsageError, match="has no base:1"):  # the token was taken
            resolve(guarded, "base:1", Settings({**ENVIRON, "DOCKER_CONFIG": str(tmp_path)}))
        with pytest.raises(HostError, match="asks for credentials"):
            resolve(guarded, "base:1")


def test_a_private_ca_is_trusted_where_docker_keeps_it(
    certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = {"certificate": str(certificates.certificate), "key": str(certificates.key)}
    with serve(tmp_path / "registry", tls=tls) as private:
        digest = dataclasses.replace(private, verify=str(certificates.ca)).push("base", "1", {"etc/x": b""})
        with pytest.raises(
            HostError, match=r"certificate of localhost:[0-9]+ is not trusted: unable to get local"
        ) as e:
            resolve(private, "base:1")
        assert f"/etc/docker/certs.d/{private.host}/ca.crt" in str(e.value.fix)
        assert resolve(private, "base:1", Settings(ENVIRON, certificates.ca)) == digest
        trusted = tmp_path / "certs.d" / private.host
        trusted.mkdir(parents=True)
        shutil.copy(certificates.ca, trusted / "ca.crt")
        monkeypatch.setattr("sifkit.registry.CERTIFICATES", (str(tmp_path / "certs.d"),))
        assert resolve(private, "base:1") == digest


# ---------------------------------------------------------------------------------------------- the daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Iterator[str]:
    """The address of a real dockerd that touches no network of this machine."""
    directory = Path(tmp_path_factory.mktemp("dockerd"))
    address = f"unix://{directory}/d.sock"
    places = ("--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"))
    network = ("--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            ("dockerd", "-H", address, *places, "--pidfile", str(directory / "pid"), *network), stdout=log, stderr=log
        )
    until = time.monotonic() + 60
    while not (directory / "d.sock").exists():
        assert process.poll() is None, (directory / "log").read_text()
        assert time.monotonic() < until, (directory / "log").read_text()
        time.sleep(0.05)
    yield address
    process.terminate()
    process.wait(60)


def test_the_daemon_names_the_same_digest(registry: Registry, daemon: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, many = registry.push("both", "1", {"etc/x": b""}), registry.push_index("both", "2", ["amd64", "arm64"])
    other = registry.push_index("both", "3", ["arm64"])
    assert [resolve(registry, f"both:{tag}") for tag in (1, 2)] == [one, many]
    monkeypatch.delattr(digests, "Client")  # so that only the daemon can have been asked
    settings = Settings({**ENVIRON, "DOCKER_HOST": daemon})
    assert [resolve(registry, f"both:{tag}", settings) for tag in (1, 2)] == [one, many]
    with pytest.raises(UsageError, match="no image for linux/amd64"):
        resolve(registry, "both:3", settings)
    assert other.startswith("sha256:")


def test_where_the_daemon_cannot_the_registry_is_asked_and_both_are_heard(registry: Registry, daemon: str) -> None:
    settings = Settings({**ENVIRON, "DOCKER_HOST": daemon})
    with pytest.raises(UsageError, match=r"has no base:nonesuch\n  \(the Docker daemon, asked first: "):
        resolve(registry, "base:nonesuch", settings)
    gone = Settings({**ENVIRON, "DOCKER_HOST": "unix:///nowhere/d.sock"})
    pushed = registry.push("base", "1", {"etc/version": b"2"})
    assert resolve(registry, "base:1", gone) == pushed


# ---------------------------------------------------------------------------------------------- locks and builds


@pytest.fixture
def project(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec on a base of the registry, and its lock without a digest."""
    base = {"bootstrap": "docker", "from": f"{registry.host}/locked:1"}
    spec = make_spec(name="x", base=base)
    (tmp_path / "definitions").mkdir()
    written = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    (tmp_path / "definitions/x.yaml").write_text(json.dumps(written))
    (tmp_path / "definitions/x.lock").write_text(lock_text(spec, "torch==2.9.1"))
    for name in ("DOCKER_HOST", "DOCKER_CONFIG", "APPTAINER_DOCKER_USERNAME", "SIFKIT_SITE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_lock_gets_the_digest_that_it_lacks(
    project: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    first = registry.push("locked", "1", {"etc/version": b"1"})
    path = project / "definitions/x.lock"
    old = path.read_text()
    assert cli.main(["lock", "x", "--no-check", "--no-digest"]) == 0
    assert path.read_text() == old
    assert cli.main(["lock", "x", "--no-check", "--json"]) == 0
    locked = base_of(path.read_text())
    assert locked
    assert (locked.name, locked.digest) == (f"{registry.host}/locked:1", first)
    assert json.loads(capsys.readouterr().out)[0]["digest"] == first
    registry.push("locked", "1", {"etc/version": b"2"})
    assert cli.main(["lock", "x", "--no-check"]) == 0
    assert base_of(path.read_text()) == locked  # until --upgrade
    assert cli.main(["lock", "x", "--no-check", "--check"]) == 0


def test_a_registry_that_fails_leaves_the_lock_as_it_was(
    project: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    spec, path = project / "definitions/x.yaml", project / "definitions/x.lock"
    spec.write_text(spec.read_text().replace(registry.host, "127.0.0.1:9"))
    old = path.read_text()
    assert cli.main(["lock", "x", "--no-check"]) == 3
    said = capsys.readouterr().err
    assert "127.0.0.1:9 cannot be reached" in said
    assert "or leave the base by its tag: --no-digest" in said
    assert path.read_text() == old


@pytest.mark.apptainer
def test_apptainer_builds_by_the_locked_digest_and_refuses_a_wrong_one(registry: Registry, tmp_path: Path) -> None:
    first = registry.push("sif", "1", {"etc/version": b"1", "bin/sh": b"#!"})
    registry.push("sif", "1", {"etc/version": b"2", "bin/sh": b"#!"})
    apptainer = Apptainer.find(Runner(os.environ))
    for digest in (first, f"sha256:{'0' * 64}"):
        definition, image = tmp_path / "x.def", tmp_path / "x.sif"
        definition.write_text(f"Bootstrap: docker\nFrom: {registry.host}/sif@{digest}\n")
        image.unlink(missing_ok=True)
        (tmp_path / "tmp").mkdir(exist_ok=True)
        command = apptainer.build_command(image, definition, root=tmp_path, tmpdir=tmp_path / "tmp")
        if digest == first:
            apptainer.runner.run(command)
            assert image.is_file()
        else:
            with pytest.raises(CommandFailed, match=r"MANIFEST_UNKNOWN|manifest unknown"):
                apptainer.runner.run(command)
