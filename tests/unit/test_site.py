"""The site file is found in order; what it leaves out comes from the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit.errors import UsageError
from sifkit.model import Site
from sifkit.site import apt_mirrors, ca_bundle, load_site, user_cache

ONE_LINE = """\
# deb http://commented.example/debian trixie main
deb [signed-by=/a.gpg arch=amd64] http://mirror.example/debian/ trixie main contrib
deb http://mirror.example/debian trixie-updates main
deb-src http://sources.example/debian trixie main
deb cdrom:[Debian] trixie main
"""

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main

Types: deb
URIs: http://disabled.example/debian
Suites: sid
Enabled: no
"""


def test_apt_sources_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(ONE_LINE)
    (tmp_path / "sources.list.d" / "debian.sources").write_text(DEB822)
    (tmp_path / "sources.list.d" / "old.list.save").write_text("deb http://old.example/debian sid main")
    mirror = "http://mirror.example/debian"
    assert apt_mirrors(tmp_path) == {
        "trixie": mirror,
        "trixie-updates": mirror,
        "bookworm": mirror,
        "bookworm-updates": mirror,
    }


def test_a_host_without_apt_has_no_mirrors(tmp_path: Path) -> None:
    assert apt_mirrors(tmp_path / "nothing") == {}


def test_the_site_file_is_searched_in_order(tmp_path: Path) -> None:
    def write(path: Path, tmpdir: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"tmpdir: {tmpdir}\n")
        return path

    environ = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert load_site(None, environ, tmp_path) == Site()
    write(tmp_path / "config" / "sifkit" / "site.yaml", "/user")
    assert load_site(None, environ, tmp_path).tmpdir == "/user"
    write(tmp_path / "site.yaml", "/cwd")
    assert load_site(None, environ, tmp_path).tmpdir == "/cwd"
    named = write(tmp_path / "named.yaml", "/named")
    assert load_site(None, {**environ, "SIFKIT_SITE": str(named)}, tmp_path).tmpdir == "/named"
    given = write(tmp_path / "given.yaml", "/given")
    assert load_site(given, {**environ, "SIFKIT_SITE": str(named)}, tmp_path).tmpdir == "/given"


def test_a_named_site_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_site(None, {"SIFKIT_SITE": str(tmp_path / "none.yaml")}, tmp_path)


def test_ca_bundle_is_the_hosts_the_sites_or_none(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("certificates")

    def site(value: str | None) -> Site:
        return Site.model_validate({"python_index": {"ca_bundle": value}})

    assert ca_bundle(Site(), {"SSL_CERT_FILE": str(bundle)}) == bundle
    assert ca_bundle(site(str(bundle)), {}) == bundle
    assert ca_bundle(site(None), {"SSL_CERT_FILE": str(bundle)}) is None
    with pytest.raises(UsageError, match="is not a file"):
        ca_bundle(site(str(tmp_path / "gone.pem")), {})


def test_caches_go_where_the_user_says(tmp_path: Path) -> None:
    assert user_cache({"SIFKIT_CACHE": str(tmp_path)}) == tmp_path
    assert user_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/sifkit")
    assert user_cache({"HOME": "/home/u"}) == Path("/home/u/.cache/sifkit")
