"""What a site lends to a build: certificates, caches, index settings; bound for its time, and in no image."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from sifkit.apptainer import Bind
from sifkit.deffile import HOST_DIR
from sifkit.model import Site
from sifkit.site import ca_bundle


def lend(directory: Path, site: Site, environ: Mapping[str, str], cache: Path) -> tuple[Bind, ...]:
    """Certificates, index settings and package caches: `directory`, made here, and what else is bound at HOST_DIR."""
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
        shutil.copy(bundle, directory / "ca-bundle.crt")
    script = directory / "site.sh"
    script.touch(mode=0o600)
    script.write_text(site_script(site, environ, has_bundle=bundle is not None))
    return tuple(binds)


_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "all_proxy")


def site_script(site: Site, environ: Mapping[str, str], *, has_bundle: bool) -> str:
    """Shell lines that %post reads from the bound directory: how this site reaches its mirrors."""
    index, exports = site.python_index, {name: environ[name] for name in _PROXIES if environ.get(name)}
    if has_bundle:
        bundle = f"{HOST_DIR}/ca-bundle.crt"
        names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
        exports |= dict.fromkeys(names, bundle)
    if index.wheelhouse:
        wheels = f"{HOST_DIR}/wheels"
        # uv has no variable that turns the index off, only a setting
        exports |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_CONFIG_FILE": f"{HOST_DIR}/uv.toml"}
    elif index.url:
        exports |= {"UV_DEFAULT_INDEX": index.url, "PIP_INDEX_URL": index.url}
        exports |= _plain_http(index.url)
    if index.torch_url:
        exports["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())


def _plain_http(url: str) -> dict[str, str]:
    """pip refuses an index without TLS unless it is told that this one is meant."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return {}
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return {"PIP_TRUSTED_HOST": host, "UV_INSECURE_HOST": host}
