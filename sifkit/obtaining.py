"""How Apptainer obtains what a definition starts from on this site: mirrors, certificates, users and passwords.

Apptainer asks registries itself, and knows no mirrors of them; debootstrap asks with wget. Both take what they need
from their environment. Measured with Apptainer 1.4.5: of the files with credentials it reads its own and ~/.docker
alone, not DOCKER_CONFIG or REGISTRY_AUTH_FILE; %post sees nothing of APPTAINER_DOCKER_PASSWORD.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sifkit import credentials
from sifkit.lending import WGETRC, wget_configuration, write_secret
from sifkit.logins import Login
from sifkit.model import Site
from sifkit.reference import Reference, mirrored
from sifkit.site import ca_bundle, debian_logins

_DOCKER = re.compile(r"^(Bootstrap: docker\nFrom: )(\S+)$", re.MULTILINE)
_DEBOOTSTRAP = re.compile(r"^Bootstrap: debootstrap\n(?:.+\n)*?MirrorURL: (\S+)$", re.MULTILINE)


def through_mirror(definition: str, site: Site) -> str:
    """The definition with the registry's mirror in the place of the registry."""
    return _DOCKER.sub(lambda found: found[1] + str(mirrored(Reference.parse(found[2]), site)), definition, count=1)


def logins_for(definition: str, site: Site) -> tuple[Login, ...]:
    """Users and passwords that apt may need: the mirror's; for an image with sources of its own, the site's file."""
    mirror = _DEBOOTSTRAP.search(definition)
    if mirror is None:
        return debian_logins(site) if site.debian.auth else ()
    return tuple(login for login in debian_logins(site) if login.opens(mirror[1], plain=False))[:1]


def environment_for(definition: str, site: Site, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Variables for Apptainer; files that they name are written into `scratch`."""
    image = _DOCKER.search(definition)
    if image:
        return _for_registry(Reference.parse(image[2]).registry, site, environ, scratch)
    if _DEBOOTSTRAP.search(definition):
        return _for_wget(next(iter(logins_for(definition, site)), None), site, environ, scratch)
    return {}


def _for_registry(registry: str, site: Site, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    from sifkit.registry import plain_is_allowed  # here: most builds ask no registry, and it takes a tenth of a second

    known = credentials.find(registry, environ).credentials
    user = known.user if known and not known.identity_token else ""
    login = {"APPTAINER_DOCKER_USERNAME": user, "APPTAINER_DOCKER_PASSWORD": known.password} if known and user else {}
    plain = {"APPTAINER_NOHTTPS": "1"} if plain_is_allowed(registry, environ, site) else {}
    return {**login, **plain, **_certificates(registry, site, environ, scratch)}


def _certificates(registry: str, site: Site, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """Apptainer does not look where Docker keeps a registry's own certificates."""
    from sifkit.registry import certificates_for

    bundle, own = ca_bundle(site, environ), certificates_for(registry, environ)
    if own:
        whole = scratch / "registry.crt"
        whole.write_bytes(b"\n".join(path.read_bytes() for path in (*([bundle] if bundle else []), *own)))
        return {"SSL_CERT_FILE": str(whole)}
    return {"SSL_CERT_FILE": str(bundle)} if bundle else {}


def _for_wget(login: Login | None, site: Site, environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    own = Path(environ.get("WGETRC") or Path(environ.get("HOME", "/")) / ".wgetrc")
    settings = own.read_text(encoding="utf-8") if own.is_file() else ""
    write_secret(scratch / WGETRC, wget_configuration(settings, ca_bundle(site, environ), login))
    return {"WGETRC": str(scratch / WGETRC)}
