"""The site file: found, read, and completed with what this host shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from sifkit import logins, yamlfile
from sifkit.errors import HostError, UsageError
from sifkit.logins import Login
from sifkit.model import Site

# Where distributions keep the bundle. Source: Go's crypto/x509/root_linux.go, the list that Apptainer itself uses.
CA_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL 6 and newer
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # RHEL
    "/etc/ssl/cert.pem",  # Alpine
)

_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
PROXIES = (*_PROXIES, *(name.upper() for name in _PROXIES))  # some programs read the one case, some the other

# Variables that name a bundle, each read by some program: the first by uv, Apptainer and curl.
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT", "GIT_SSL_CAINFO")


def load_site(given: Path | None, environ: Mapping[str, str], cwd: Path) -> Site:
    """The first of --site, $SIFKIT_SITE, ./site.yaml, the user's configuration directory; else all defaults."""
    if given is not None:
        return yamlfile.load(given, Site)
    if named := environ.get("SIFKIT_SITE"):
        return yamlfile.load(Path(named), Site)
    for path in (cwd / "site.yaml", user_config(environ) / "site.yaml"):
        if path.is_file():
            return yamlfile.load(path, Site)
    return Site()


def user_config(environ: Mapping[str, str]) -> Path:
    """$XDG_CONFIG_HOME/sifkit."""
    return Path(environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME", "/")) / ".config") / "sifkit"


def user_cache(environ: Mapping[str, str]) -> Path:
    """$SIFKIT_CACHE, else $XDG_CACHE_HOME/sifkit: bases, packages and checkouts, each of which may be deleted."""
    if named := environ.get("SIFKIT_CACHE"):
        return Path(named).absolute()
    return Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/")) / ".cache") / "sifkit"


def ca_bundle(site: Site, environ: Mapping[str, str]) -> Path | None:
    """The certificates that the build may use. Raises `UsageError` if the site names a file that is not there."""
    wanted = site.python_index.ca_bundle
    if wanted is None:
        return None
    if wanted != "auto":
        if not Path(wanted).is_file():
            raise UsageError(f"the site's python_index.ca_bundle {wanted} is not a file", "correct the site file")
        return Path(wanted)
    candidates = (*(environ.get(name) for name in CA_VARIABLES), *CA_BUNDLES)
    return next((Path(path) for path in candidates if path and Path(path).is_file()), None)


def reach(environ: Mapping[str, str], site: Site) -> dict[str, str]:
    """The environment as programs need it to reach the network: the site's proxies and certificates among it.

    Some programs read proxies in lower case alone, others in upper case; each variable stands there in both.
    """
    proxy = site.proxy
    given = {"http_proxy": proxy.http, "https_proxy": proxy.https, "no_proxy": proxy.no_proxy}
    found = {name: value for name, value in given.items() if value}
    for name in _PROXIES:
        value = found.get(name) or environ.get(name) or environ.get(name.upper())
        found |= {name: value} if value else {}
    cases = {case: value for name, value in found.items() for case in (name, name.upper())}
    named = {name for name, value in given.items() if value}
    theirs = {name: value for name, value in environ.items() if name.lower() not in named}
    return {**cases, **_certificates(environ, site), **theirs, **_named_certificates(site)}


def _certificates(environ: Mapping[str, str], site: Site) -> dict[str, str]:
    bundle = ca_bundle(site, environ)
    return dict.fromkeys(CA_VARIABLES, str(bundle)) if bundle else {}


def _named_certificates(site: Site) -> dict[str, str]:
    """A path in the site file counts more than the environment does."""
    return _certificates({}, site) if site.python_index.ca_bundle != "auto" else {}


APT = Path("/etc/apt")


def debian_logins(site: Site, etc: Path = APT) -> tuple[Login, ...]:
    """Users and passwords of Debian mirrors: the site's file, else what the host's apt has for itself."""
    if site.debian.auth:
        path = Path(site.debian.auth).expanduser()
        if not path.is_file():
            raise UsageError(f"the site's debian.auth {path} is not a file", "correct the site file")
        return logins.read(path)
    files = (etc / "auth.conf", *sorted((etc / "auth.conf.d").glob("*.conf")))
    own = [login for path in files if os.access(path, os.R_OK) for login in logins.read(path)]
    return (*own, *(login for _, url in _apt_entries(etc) for login in logins.split_url(url)[1]))


def passwords_of_mirrors(site: Site) -> tuple[str, ...]:
    """To be hidden, longest first; of a file that the site names, since others are lent only by their host."""
    found = {login.password for login in debian_logins(site)} if site.debian.auth else set()
    return tuple(sorted(found, key=lambda password: -len(password)))


def apt_mirrors(etc: Path = APT) -> dict[str, str]:
    """Debian or Ubuntu suites in the host's apt sources, and the mirror of each, without user and password.

    Empty on other systems.
    """
    found: dict[str, str] = {}
    for suite, mirror in _apt_entries(etc):
        found.setdefault(suite, logins.split_url(mirror)[0])
    return found


def _apt_entries(etc: Path) -> Iterator[tuple[str, str]]:
    """Each suite of the sources with its address."""
    for path in (etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))):
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        try:
            text = path.read_text(errors="replace")
        except PermissionError as error:
            raise HostError(
                f"{path}: {error.strerror}", "name the mirror in the site file: bases.NAME.mirror"
            ) from None
        for mirror, suite in _deb822(text) if path.suffix == ".sources" else _one_line(text):
            yield suite, mirror


def _one_line(text: str) -> list[tuple[str, str]]:
    """`deb [options] mirror suite component…`"""
    entries = []
    for line in text.splitlines():
        words = line.split("#")[0].split()
        if words[:1] != ["deb"]:
            continue
        while len(words) > 1 and words[1].startswith("["):  # options may hold blanks: drop up to the bracket
            while len(words) > 1 and not words[1].endswith("]"):
                del words[1]
            del words[1]
        if len(words) >= 3 and words[1].startswith(("http://", "https://")):
            entries.append((words[1].rstrip("/"), words[2]))
    return entries


def _deb822(text: str) -> list[tuple[str, str]]:
    """Stanzas of `Types:`, `URIs:`, `Suites:`, as sources.list(5) describes them."""
    entries = []
    for stanza in text.split("\n\n"):
        fields: dict[str, str] = {}
        for line in stanza.splitlines():
            if ":" in line and not line.startswith(("#", " ")):
                key, _, value = line.partition(":")
                fields[key.strip().lower()] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        mirrors = [uri for uri in fields.get("uris", "").split() if uri.startswith(("http://", "https://"))]
        entries += [(uri.rstrip("/"), suite) for uri in mirrors for suite in fields.get("suites", "").split()]
    return entries
