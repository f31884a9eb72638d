"""How a site's mirrors are reached: what is read where, for whom it is, and what it becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from sifkit import index, logins, obtaining
from sifkit.deffile import header, render_base
from sifkit.errors import HostError, UsageError
from sifkit.lending import apt_configuration, lend, site_script, wget_configuration
from sifkit.lock import index_environment
from sifkit.logins import Login
from sifkit.model import Debootstrap, Site
from sifkit.reference import Reference, mirrored
from sifkit.run import Command
from sifkit.sessions import proxies_for
from sifkit.site import apt_mirrors, debian_logins, reach
from tests.conftest import make_image, make_spec, wanted

# ---------------------------------------------------------------------------------------------- logins

NETRC = """\
# machine commented.example login a password b
machine one.example login me password p#ss:w@rd
machine https://two.example:8443/debian
    login you
    password other
macdef init
machine macro.example login a password b

machine half.example login nobody
default login anybody password everybodys
"""


def test_entries_of_a_netrc_are_read_and_no_others() -> None:
    """Not the half ones, those in comments and macros, or the one for everybody."""
    assert logins.parse(NETRC) == (
        Login("one.example", "me", "p#ss:w@rd"),
        Login("https://two.example:8443/debian", "you", "other"),
    )
    assert logins.parse("") == ()
    assert "p#ss" not in repr(logins.parse(NETRC))


@pytest.mark.parametrize(
    ("machine", "url", "plain", "opens"),
    [
        ("m.example", "https://m.example/debian", False, True),
        ("M.example", "https://m.example:8443/debian", False, True),
        ("m.example:8443", "https://m.example:8443/debian", False, True),
        ("m.example:8443", "https://m.example/debian", False, False),
        ("m.example/debian", "https://m.example/debian/dists", False, True),
        ("m.example/debian", "https://m.example/other", False, False),
        ("m.example", "https://evil-m.example/", False, False),
        ("m.example", "https://m.example.evil.example/", False, False),
        ("m.example", "http://m.example/debian", False, False),  # apt sends nothing without TLS either
        ("m.example", "http://m.example/debian", True, True),
        ("http://m.example", "http://m.example/debian", False, True),
        ("https://m.example", "http://m.example/debian", True, False),
    ],
)
def test_a_login_is_for_its_host_alone(machine: str, url: str, plain: bool, opens: bool) -> None:
    assert Login(machine, "u", "p").opens(url, plain=plain) == opens


def test_user_and_password_go_into_an_address_and_out_again() -> None:
    login = Login("https://m.example:81", "me", "a/b:c@d")
    url = logins.with_login("https://m.example:81/simple", [login])
    assert url == "https://me:a%2Fb%3Ac%40d@m.example:81/simple"
    assert logins.split_url(url) == ("https://m.example:81/simple", (login,))
    assert logins.with_login("https://own:word@m.example:81/simple", [login]) == "https://own:word@m.example:81/simple"
    assert logins.split_url("http://m.example/d") == ("http://m.example/d", ())


def test_a_file_of_logins_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes(b"\xff\xfe")
    with pytest.raises(HostError, match="not a text file"):
        logins.netrc_of({"HOME": str(tmp_path)})
    assert logins.netrc_of({"HOME": str(tmp_path / "nobody")}) == ()


# ---------------------------------------------------------------------------------------------- indexes


def completed(environ: dict[str, str], home: Path, **settings: object) -> tuple[str | None, tuple[str, ...]]:
    site = Site.model_validate({"python_index": settings})
    found = index.complete(site, {"HOME": str(home), **environ}).python_index
    return found.url, found.extra_urls


def test_indexes_come_from_the_first_that_names_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_PIP_FILES", ("{config}/pip/pip.conf",))
    conf = tmp_path / ".config/pip/pip.conf"
    conf.parent.mkdir(parents=True)
    conf.write_text(
        "[global]\nindex-url = https://conf.example/\nextra-index-url =\n  https://x.example/\n  file:///d\n"
    )
    pip, uv, old = (
        {"PIP_INDEX_URL": "https://pi.example/"},
        {"UV_DEFAULT_INDEX": "https://uv.example/"},
        {"UV_INDEX_URL": "https://uv.example/"},
    )
    extra = ("https://x.example/",)
    assert completed({}, tmp_path) == ("https://conf.example/", extra)
    assert completed({"PIP_CONFIG_FILE": "/dev/null"}, tmp_path) == (None, ())
    assert completed(pip, tmp_path) == ("https://pi.example/", extra)
    assert completed({**pip, **old}, tmp_path) == ("https://uv.example/", extra)
    assert completed({**pip, **uv}, tmp_path, url="https://site.example/") == ("https://site.example/", extra)
    many = {"UV_INDEX": "https://a.example/ named=https://b.example/", "PIP_EXTRA_INDEX_URL": "https://c.example/"}
    assert completed(many, tmp_path)[1] == ("https://a.example/", "https://b.example/")
    assert completed(many, tmp_path, extra_urls=("https://s.example/",))[1] == ("https://s.example/",)
    assert completed({**pip, **many}, tmp_path, wheelhouse="/wheels") == (None, ())
    conf.write_text("index-url = x\n")
    with pytest.raises(UsageError, match=r"pip\.conf: pip cannot read it either"):
        completed({}, tmp_path)


def test_a_netrc_opens_an_index_and_only_that(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine i.example login me password word-of-i\n")
    environ = {"PIP_CONFIG_FILE": "/dev/null", "PIP_EXTRA_INDEX_URL": "https://other.example/"}
    found = completed(environ, tmp_path, url="https://i.example/simple")
    assert found == ("https://me:word-of-i@i.example/simple", ("https://other.example/",))


def test_further_indexes_are_handed_to_uv_and_pip() -> None:
    urls = ("https://u:pw@a.example/", "http://b.example:81/")
    site = Site.model_validate({"python_index": {"extra_urls": urls, "torch_url": "https://t.example/{cuda}"}})
    other = wanted(torch={"version": "2.9.1", "cuda": "12.6"})
    assert index_environment(other, site) == {"UV_INDEX": f"{' '.join(urls)} https://t.example/cu126"}
    script = site_script(site, {}, has_bundle=False)
    assert f"export PIP_EXTRA_INDEX_URL='{' '.join(urls)}'\n" in script
    assert f"export UV_INDEX='{' '.join(urls)}'\n" in script
    assert "export PIP_TRUSTED_HOST=b.example:81\n" in script


# ---------------------------------------------------------------------------------------------- proxies, certificates


def test_proxies_stand_in_both_cases_and_the_sites_before_the_environments() -> None:
    site = Site.model_validate({"proxy": {"https": "http://u:pw@site.example:1"}, "python_index": {"ca_bundle": None}})
    found = reach({"HTTP_PROXY": "http://a:1", "https_proxy": "http://b:1", "no_proxy": "c", "X": "y"}, site)
    assert found == {
        "HTTP_PROXY": "http://a:1",
        "http_proxy": "http://a:1",
        "HTTPS_PROXY": "http://u:pw@site.example:1",
        "https_proxy": "http://u:pw@site.example:1",
        "no_proxy": "c",
        "NO_PROXY": "c",
        "X": "y",
    }


def test_certificates_are_told_to_every_program(tmp_path: Path) -> None:
    mine, theirs = tmp_path / "mine.pem", tmp_path / "theirs.pem"
    for path in (mine, theirs):
        path.write_text("certificates")
    named = Site.model_validate({"python_index": {"ca_bundle": str(mine)}})
    names = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO")
    assert reach({"SSL_CERT_FILE": str(theirs)}, named) == dict.fromkeys(names, str(mine))
    assert reach({"REQUESTS_CA_BUNDLE": str(theirs)}, Site()) == dict.fromkeys(names, str(theirs))
    none = Site.model_validate({"python_index": {"ca_bundle": None}})
    assert reach({"PIP_CERT": str(theirs)}, none) == {"PIP_CERT": str(theirs)}


@pytest.mark.parametrize(
    ("url", "proxies"),
    [
        ("https://there.example/x", {"http": "http://h", "https": "http://s"}),
        ("https://near.site.example/x", {}),
        ("http://10.1.2.3/x", {}),
    ],
)
def test_no_proxy_names_hosts_domains_and_networks(url: str, proxies: dict[str, str]) -> None:
    environ = {"HTTP_PROXY": "http://h", "https_proxy": "http://s", "no_proxy": ".site.example,10.0.0.0/8"}
    assert proxies_for(url, environ) == proxies


def test_a_secret_variable_is_not_shown_with_a_command() -> None:
    shown = Command(("apptainer", "build"), env={"APPTAINER_DOCKER_PASSWORD": "word", "TMPDIR": "/t m"}).shown()
    assert shown == "APPTAINER_DOCKER_PASSWORD=**** TMPDIR='/t m' apptainer build"


# ---------------------------------------------------------------------------------------------- Debian


@pytest.mark.parametrize("mirror", ["https://u:pw@m.example/debian", "https://token@m.example/debian"])
def test_a_mirrors_address_holds_no_password(mirror: str) -> None:
    with pytest.raises(ValidationError, match=r"stands in the image.*machine HOST login USER.*debian\.auth"):
        Debootstrap(bootstrap="debootstrap", suite="trixie", mirror=mirror)


def test_a_password_in_apts_sources_is_lent_and_in_no_definition(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text("deb https://me:w%40rd@m.example/debian/ trixie main\n")
    (tmp_path / "auth.conf.d").mkdir()
    (tmp_path / "auth.conf.d" / "a.conf").write_text("machine other.example login o password p\n")
    (tmp_path / "auth.conf.d" / "a.conf.bak").write_text("machine old.example login o password p\n")
    assert apt_mirrors(tmp_path) == {"trixie": "https://m.example/debian"}
    assert debian_logins(Site(), tmp_path) == (
        Login("other.example", "o", "p"),
        Login("https://m.example", "me", "w@rd"),
    )


def site_with_auth(tmp_path: Path) -> Site:
    auth = tmp_path / "auth.conf"
    auth.write_text("machine else.example login e password e\nmachine m.example/debian login me password w@rd\n")
    return Site.model_validate({"debian": {"auth": str(auth)}})


def test_only_the_login_of_the_bases_mirror_is_lent(tmp_path: Path) -> None:
    site = site_with_auth(tmp_path)
    source = Debootstrap(bootstrap="debootstrap", suite="trixie", mirror="https://m.example/debian")
    login = Login("m.example/debian", "me", "w@rd")
    assert obtaining.logins_for(header(source), site) == (login,)
    elsewhere = source.model_copy(update={"mirror": "https://unknown.example/debian"})
    assert obtaining.logins_for(header(elsewhere), site) == ()
    plain = source.model_copy(update={"mirror": "http://m.example/debian"})
    assert obtaining.logins_for(header(plain), site) == ()
    image = "Bootstrap: docker\nFrom: debian:trixie\n"  # its own sources say which mirror
    assert obtaining.logins_for(image, site) == (Login("else.example", "e", "e"), login)
    with pytest.raises(UsageError, match=r"debian\.auth /nowhere is not a file"):
        debian_logins(Site.model_validate({"debian": {"auth": "/nowhere"}}))


def test_wget_gets_login_and_certificates_in_a_file_of_its_users_alone(tmp_path: Path) -> None:
    site, bundle = site_with_auth(tmp_path), tmp_path / "ca.pem"
    bundle.write_text("certificates")
    (tmp_path / ".wgetrc").write_text("tries = 2")
    source = Debootstrap(bootstrap="debootstrap", suite="trixie", mirror="https://m.example/debian")
    environ = {"HOME": str(tmp_path), "SSL_CERT_FILE": str(bundle)}
    found = obtaining.environment_for(header(source), site, environ, tmp_path)
    assert found == {"WGETRC": str(tmp_path / "wgetrc")}
    wgetrc = tmp_path / "wgetrc"
    assert wgetrc.read_text() == (
        f"tries = 2\nca_certificate = {bundle}\nhttp_user = me\nhttp_password = w@rd\n"
    )  # fmt: skip
    assert wgetrc.stat().st_mode & 0o077 == 0
    assert wget_configuration("", None, None) == ""
    assert obtaining.environment_for("Bootstrap: scratch\n", site, environ, tmp_path) == {}


def test_apt_is_told_where_certificates_and_logins_lie_while_it_runs(tmp_path: Path) -> None:
    assert apt_configuration(has_bundle=True, has_logins=True) == (
        'Acquire::https::CAInfo "/var/cache/sifkit/ca-bundle.crt";\nDir::Etc::netrc "/var/cache/sifkit/auth.conf";\n'
    )
    assert apt_configuration(has_bundle=False, has_logins=False) == ""
    lend(tmp_path / "lent", Site(), {}, tmp_path / "cache", [Login("m.example", "me", "word")])
    auth = tmp_path / "lent" / "auth.conf"
    assert auth.read_text() == "machine m.example login me password word\n"
    assert auth.stat().st_mode & 0o077 == 0
    assert "export APT_CONFIG=/var/cache/sifkit/apt.conf\n" in (tmp_path / "lent" / "site.sh").read_text()


# ---------------------------------------------------------------------------------------------- registries


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("debian:trixie", "m.example:5000/hub/library/debian:trixie"),
        ("docker.io/someone/x:1", "m.example:5000/hub/someone/x:1"),
        ("quay.io/a/b:1", "q.example/a/b:1"),
        ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
    ],
)
def test_a_mirror_stands_in_for_a_registry(name: str, taken: str) -> None:
    registries = {
        "docker.io": {"mirror": "m.example:5000/hub"},
        "quay.io": {"mirror": "q.example"},
        "ghcr.io": {"http": True},
    }
    site = Site.model_validate({"registries": registries})
    assert str(mirrored(Reference.parse(name), site)) == taken
    definition = f"# From: here\nBootstrap: docker\nFrom: {name}\n\n%post\n    Bootstrap: docker\n"
    assert obtaining.through_mirror(definition, site) == definition.replace(f"From: {name}", f"From: {taken}")


@pytest.mark.parametrize("mirror", ["https://m.example", "u:pw@m.example", "m.example/", "m.example/A"])
def test_a_mirror_is_named_as_images_are(mirror: str) -> None:
    with pytest.raises(ValidationError, match=r"docker\.io.*mirror"):
        Site.model_validate({"registries": {"docker.io": {"mirror": mirror}}})


def test_a_mirror_changes_neither_the_base_nor_what_is_rendered() -> None:
    """So that an image is not built anew, and says the same, wherever it is built."""
    spec = make_spec(base={"bootstrap": "docker", "from": f"debian@sha256:{'1' * 64}"})
    site = Site.model_validate({"registries": {"docker.io": {"mirror": "m.example"}}})
    plain, through = make_image(spec), make_image(spec, site)
    assert plain == through
    assert "m.example" not in render_base(through)
    assert "From: m.example/library/debian@sha256:1" in obtaining.through_mirror(render_base(through), site)
