"""A site's index, Debian mirror and proxy, each with a password and a private CA, reached with the usual settings.

What a whole build does with them, and that it leaves no password: test_secrets_real.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from packaging.version import Version

from sifkit.compat.wheels import Index
from sifkit.errors import Exit, HostError
from sifkit.model import Site
from sifkit.sessions import Adapter
from sifkit.site import ca_bundle, reach
from sifkit.vulnerabilities.database import Wire
from tests.integration import mirror_servers, toy
from tests.integration.mirror_servers import Authority, Proxy, Served

INDEX, PLAIN, DEBIAN = "packages.example", "plain.example", "debian.example"  # known to the proxy alone
READER, PASSWORD, PROXY_PASSWORD = "reader", "index-Pa55word-5711", "proxy-Pa55word:5/7@12"
QUOTED = "proxy-Pa55word%3A5%2F7%4012"
DEBIAN_PASSWORD = "debian-Pa55word-5713"
LOGIN = f"{READER}:{PASSWORD}"


@dataclass(frozen=True)
class Mirrors:
    authority: Authority
    index: Served
    plain: Served
    debian: Served
    proxy: Proxy

    @property
    def through(self) -> str:
        """As http_proxy has it."""
        return f"http://{self.proxy.user}:{QUOTED}@127.0.0.1:{self.proxy.port}"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mirror_servers.make_index(
        toy.make_wheelhouse(tmp_path_factory.mktemp("wheels")), tmp_path_factory.mktemp("index")
    )


@pytest.fixture
def mirrors(wheels: Path, tmp_path: Path) -> Iterator[Mirrors]:
    authority = mirror_servers.make_authority(tmp_path / "ca", INDEX, DEBIAN)
    empty = tmp_path / "empty"
    empty.mkdir()
    with ExitStack() as open_:
        index = open_.enter_context(mirror_servers.files(wheels, READER, PASSWORD, authority=authority))
        plain = open_.enter_context(mirror_servers.files(wheels, READER, PASSWORD))
        debian = open_.enter_context(mirror_servers.files(empty, "builder", DEBIAN_PASSWORD, authority=authority))
        places = {INDEX: index.port, PLAIN: plain.port, DEBIAN: debian.port}
        proxy = open_.enter_context(mirror_servers.proxy("traveller", PROXY_PASSWORD, places))
        yield Mirrors(authority, index, plain, debian, proxy)


@dataclass(frozen=True)
class Place:
    """A project, and a user without any settings."""

    root: Path

    def sifkit(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        unset = ("PROXY", "CERT", "_CA_", "CAINFO", "PIP_", "UV_", "INDEX", "NETRC", "XDG_CONFIG")
        plain = {name: value for name, value in os.environ.items() if not any(word in name.upper() for word in unset)}
        home = {"HOME": str(self.root / "home"), "SIFKIT_CACHE": str(self.root / "cache"), "TMPDIR": str(self.root)}
        argv = [sys.executable, "-m", "sifkit", *words, "--project", str(self.root), "--verbose"]
        argv += ["--site", str(self.root / "site.yaml")]
        return subprocess.run(
            argv, env={**plain, **home, **environment}, cwd=self.root, capture_output=True, text=True, check=False
        )

    def write(self, name: str, text: str) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
        return path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    found = Place(tmp_path / "place")
    found.write("definitions/toy.yaml", toy.SPEC)
    found.write("site.yaml", "{}\n")
    found.write("home/.keep", "")
    return found


# ---------------------------------------------------------------------------------------------- the index

URL = f"https://{LOGIN}@{INDEX}/simple/"
BARE = f"https://{INDEX}/simple/"
NETRC = f"machine {INDEX} login {READER} password {PASSWORD}\n"

# {ca}: the private CA's file; {proxy}: the proxy with its password
WAYS: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "pip's variables, SSL_CERT_FILE, proxy in lower case": (
        {"PIP_INDEX_URL": URL, "SSL_CERT_FILE": "{ca}", "https_proxy": "{proxy}"},
        {},
    ),
    "uv's old variable, REQUESTS_CA_BUNDLE, proxy in upper case": (
        {"UV_INDEX_URL": URL, "REQUESTS_CA_BUNDLE": "{ca}", "HTTPS_PROXY": "{proxy}"},
        {},
    ),
    "pip.conf, netrc, PIP_CERT": (
        {"PIP_CERT": "{ca}", "https_proxy": "{proxy}"},
        {"home/.config/pip/pip.conf": f"[global]\nindex-url = {BARE}\n", "home/.netrc": NETRC},
    ),
    "the site file alone": (
        {},
        {"site.yaml": f"python_index: {{url: '{URL}', ca_bundle: '{{ca}}'}}\nproxy: {{https: '{{proxy}}'}}\n"},
    ),
    "the site file, netrc elsewhere": (
        {"NETRC": "{root}/netrc"},
        {
            "site.yaml": f"python_index: {{url: '{BARE}', ca_bundle: '{{ca}}'}}\nproxy: {{https: '{{proxy}}'}}\n",
            "netrc": NETRC,
        },
    ),
    "plain http": ({"UV_DEFAULT_INDEX": f"http://{LOGIN}@{PLAIN}/simple/", "http_proxy": "{proxy}"}, {}),
    "an extra index beside one that has nothing": (
        {
            "PIP_INDEX_URL": f"https://{LOGIN}@{INDEX}/nothing/",
            "PIP_EXTRA_INDEX_URL": URL,
            "SSL_CERT_FILE": "{ca}",
            "ALL_PROXY": "{proxy}",
        },
        {},
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_lock_is_made_with_the_usual_settings(way: str, mirrors: Mirrors, place: Place) -> None:
    environment, files = WAYS[way]
    values = {"{ca}": str(mirrors.authority.ca), "{proxy}": mirrors.through, "{root}": str(place.root)}

    def filled(text: str) -> str:
        for name, value in values.items():
            text = text.replace(name, value)
        return text

    for name, text in files.items():
        place.write(name, filled(text))
    done = place.sifkit("lock", "toy", **{name: filled(value) for name, value in environment.items()})
    said = done.stdout + done.stderr
    assert done.returncode == Exit.OK, said
    lock = (place.root / "definitions" / "toy.lock").read_text()
    assert "\ntorch==2.9.1 " in lock
    assert [secret for secret in (PASSWORD, PROXY_PASSWORD, QUOTED) if secret in said + lock] == []
    assert mirrors.proxy.passed


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"https_proxy": "http://traveller:wrong-Pa55@127.0.0.1:{port}"}, "proxy"),
        ({"SSL_CERT_FILE": "/etc/ssl/certs/ca-certificates.crt"}, "certificate is not trusted"),
        ({"PIP_INDEX_URL": f"https://{READER}:wrong-Pa55@{INDEX}/simple/"}, "the index refuses"),
    ],
)
def test_what_refuses_is_named_without_its_password(
    change: Mapping[str, str], named: str, mirrors: Mirrors, place: Place
) -> None:
    right = {"PIP_INDEX_URL": URL, "SSL_CERT_FILE": str(mirrors.authority.ca), "https_proxy": mirrors.through}
    changed = {name: value.replace("{port}", str(mirrors.proxy.port)) for name, value in change.items()}
    done = place.sifkit("lock", "toy", **{**right, **changed})
    assert done.returncode == Exit.PROGRAM, done.stderr
    assert named in done.stderr
    assert [secret for secret in (PASSWORD, "wrong-Pa55", QUOTED) if secret in done.stdout + done.stderr] == []


# ---------------------------------------------------------------------------------------------- our own requests


def test_tables_are_read_through_the_proxy_with_the_sites_certificates(
    mirrors: Mirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Range requests among them. What this process's own environment says does not count."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    index_settings = {"url": URL, "ca_bundle": str(mirrors.authority.ca)}
    site = Site.model_validate({"python_index": index_settings, "proxy": {"https": mirrors.through}})
    environ = reach({}, site)
    with Index(URL, ca_bundle(site, environ), environ) as index:
        wheel = index.wheels("torch")[Version("2.9.1")][0]
        with index.open(wheel) as opened:
            assert opened.metadata.name == "torch"
    assert set(mirrors.proxy.passed) == {f"CONNECT {INDEX}:443"}
    with Index(URL, None, environ) as index, pytest.raises(HostError, match=r"certificate of .* is not trusted"):
        index.wheels("torch")


def test_the_vulnerability_database_is_reached_the_same_way(mirrors: Mirrors) -> None:
    with Wire(mirrors.authority.ca, {"https_proxy": mirrors.through}).session() as session:
        assert session.get(f"{URL}torch/", timeout=20).ok
    assert mirrors.proxy.passed == [f"CONNECT {INDEX}:443"]


def test_no_proxy_leads_around_the_proxy(mirrors: Mirrors) -> None:
    session = requests.Session()
    session.mount("http://", Adapter({"http_proxy": mirrors.through, "NO_PROXY": "127.0.0.1"}, None))
    assert session.get(f"http://{LOGIN}@127.0.0.1:{mirrors.plain.port}/simple/torch/", timeout=20).ok
    assert mirrors.proxy.passed == []
    session.close()


# ---------------------------------------------------------------------------------------------- Debian


@pytest.mark.apptainer
@pytest.mark.parametrize(
    ("password", "ca", "let_in", "refused"),
    [
        (DEBIAN_PASSWORD, True, True, True),  # wget asks without a password first
        ("wrong-Pa55word", True, False, True),
        (DEBIAN_PASSWORD, False, False, False),
    ],
    ids=["right", "wrong password", "unknown CA"],
)
def test_debootstrap_uses_login_and_certificates_and_it_is_said_what_may_be_wrong(
    password: str, ca: bool, let_in: bool, refused: bool, mirrors: Mirrors, place: Place
) -> None:
    """The mirror is empty: those that it lets in fail, too."""
    auth = place.write("auth.conf", f"machine {DEBIAN}/debian login builder password {password}\n")
    bundle = mirrors.authority.ca if ca else "/etc/ssl/certs/ca-certificates.crt"
    place.write(
        "site.yaml",
        f"bases: {{debian-trixie: {{bootstrap: debootstrap, suite: trixie, mirror: 'https://{DEBIAN}/debian'}}}}\n"
        f"debian: {{auth: '{auth}'}}\nproxy: {{https: '{mirrors.through}'}}\n"
        f"python_index: {{url: '{URL}', ca_bundle: '{mirrors.authority.ca}'}}\n",
    )
    assert place.sifkit("lock", "toy").returncode == Exit.OK
    site = place.root / "site.yaml"
    site.write_text(site.read_text().replace(str(mirrors.authority.ca), str(bundle)))
    done = place.sifkit("build", "toy")
    said, log = done.stdout + done.stderr, (place.root / "build" / "toy.log").read_text()
    assert done.returncode == Exit.PROGRAM, said
    assert f"CONNECT {DEBIAN}:443" in mirrors.proxy.passed
    assert (mirrors.debian.let_in > 0, mirrors.debian.refused > 0) == (let_in, refused)
    assert f"debootstrap does not get https://{DEBIAN}/debian/dists/trixie/Release" in done.stderr
    assert [secret for secret in (password, PASSWORD, QUOTED) if secret in said + log] == []


def test_a_password_in_a_mirrors_address_is_refused_with_the_place_for_it(place: Place) -> None:
    place.write(
        "site.yaml", "bases: {x: {bootstrap: debootstrap, suite: trixie, mirror: 'https://u:pw@m.example/d'}}\n"
    )
    done = place.sifkit("lock", "toy")
    assert done.returncode == Exit.USAGE
    assert "machine HOST login USER password PASSWORD" in done.stderr
    assert "debian.auth" in done.stderr
