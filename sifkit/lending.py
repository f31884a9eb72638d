"""What a site lends to a build: certificates, caches, indexes, logins; bound for its time, and in no image."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sifkit.apptainer import Bind
from sifkit.deffile import HOST_DIR
from sifkit.logins import Login
from sifkit.model import PythonIndex, Site
from sifkit.site import CA_VARIABLES, PROXIES, ca_bundle

BUNDLE, APT_CONF, APT_AUTH, WGETRC = "ca-bundle.crt", "apt.conf", "auth.conf", "wgetrc"


def lend(
    directory: Path, site: Site, environ: Mapping[str, str], cache: Path, debian: Iterable[Login] = ()
) -> tuple[Bind, ...]:
    """Certificates, index settings and package caches: `directory`, made here, and what else is bound at HOST_DIR.

    `debian`: users and passwords of Debian mirrors, for apt.
    """
    binds = [Bind(directory, HOST_DIR, writable=True)]
    for name in ("uv", "pip", "wheels"):
        (directory / name).mkdir(parents=True)
    for name in ("uv", "pip"):
        kept = cache / name
        kept.mkdir(parents=True, exist_ok=True)
        binds.append(Bind(kept, f"{HOST_DIR}/{name}", writable=True))
    wheelhouse = site.python_index.wheelhouse
    if wheelhouse:
        binds.append(Bind(Path(wheelhouse).absolute(), f"{HOST_DIR}/wheels"))
        (directory / "uv.toml").write_text(f'no-index = true\nfind-links = ["{HOST_DIR}/wheels"]\n')
    bundle = ca_bundle(site, environ)
    if bundle:
        shutil.copy(bundle, directory / BUNDLE)
    logins = "".join(login.line() for login in debian)
    write_secret(directory / APT_AUTH, logins)
    (directory / APT_CONF).write_text(apt_configuration(has_bundle=bundle is not None, has_logins=bool(logins)))
    write_secret(directory / "site.sh", site_script(site, environ, has_bundle=bundle is not None))
    return tuple(binds)


def write_secret(path: Path, text: str) -> None:
    """For this user alone, from the first byte on."""
    path.touch(mode=0o600)
    path.write_text(text, encoding="utf-8")


def site_script(site: Site, environ: Mapping[str, str], *, has_bundle: bool) -> str:
    """Shell lines that %post reads from the bound directory: how this site reaches its mirrors."""
    index, exports = site.python_index, {name: environ[name] for name in PROXIES if environ.get(name)}
    exports["APT_CONFIG"] = f"{HOST_DIR}/{APT_CONF}"
    if has_bundle:
        exports |= dict.fromkeys(CA_VARIABLES, f"{HOST_DIR}/{BUNDLE}")
    if index.wheelhouse:
        wheels = f"{HOST_DIR}/wheels"
        # uv has no variable that turns the index off, only a setting
        exports |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_CONFIG_FILE": f"{HOST_DIR}/uv.toml"}
    else:
        exports |= indexes(index)
    if index.torch_url:
        exports["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())


def indexes(index: PythonIndex) -> dict[str, str]:
    """Variables for uv and pip. pip refuses an index without TLS unless it is told that this one is meant."""
    url, extra = index.url, index.extra_urls
    urls = (*([url] if url else []), *extra)
    plain = [urlsplit(one).netloc.rpartition("@")[2] for one in urls if one.startswith("http:")]
    return {
        **(dict.fromkeys(("UV_DEFAULT_INDEX", "PIP_INDEX_URL"), url) if url else {}),
        **(dict.fromkeys(("UV_INDEX", "PIP_EXTRA_INDEX_URL"), " ".join(extra)) if extra else {}),
        **(dict.fromkeys(("PIP_TRUSTED_HOST", "UV_INSECURE_HOST"), " ".join(plain)) if plain else {}),
    }


def apt_configuration(*, has_bundle: bool, has_logins: bool) -> str:
    """What apt reads besides the image's own configuration: apt.conf(5)."""
    certificates = f'Acquire::https::CAInfo "{HOST_DIR}/{BUNDLE}";\n' if has_bundle else ""
    return certificates + (f'Dir::Etc::netrc "{HOST_DIR}/{APT_AUTH}";\n' if has_logins else "")


def wget_configuration(own: str, bundle: Path | None, login: Login | None) -> str:
    """What debootstrap's wget reads: the user's own settings, and how the mirror is reached."""
    lines = [own.rstrip("\n")] if own.strip() else []
    lines += [f"ca_certificate = {bundle}"] if bundle else []
    lines += [f"http_user = {login.user}", f"http_password = {login.password}"] if login else []
    return "".join(f"{line}\n" for line in lines)
