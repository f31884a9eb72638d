"""Package indexes that the site file leaves open: from the variables of uv and pip, and from pip.conf; logins of netrc.

What is found stands in the `Site` as if it were written there, so that locks, builds and tables use the same.
Sources: docs.astral.sh/uv/reference/environment, pip.pypa.io/en/stable/topics/configuration.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sifkit import logins
from sifkit.errors import UsageError
from sifkit.model import PythonIndex, Site

_URL = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL")
_EXTRA = ("UV_INDEX", "UV_EXTRA_INDEX_URL", "PIP_EXTRA_INDEX_URL")
_PIP_SECTIONS = ("install", "global")
_PIP_FILES = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf", "{home}/.pip/pip.conf", "{config}/pip/pip.conf")


def complete(site: Site, environ: Mapping[str, str]) -> Site:
    """The site with its indexes named, each with its user and password."""
    index = site.python_index
    if index.wheelhouse:
        return site
    found = pip_settings(environ)
    url = index.url or _first(environ, _URL) or found.get("index-url")
    extra = index.extra_urls or _words(_first(environ, _EXTRA) or found.get("extra-index-url"))
    known = logins.netrc_of(environ)
    named = {
        "url": logins.with_login(url, known) if url else None,
        "extra_urls": tuple(logins.with_login(one, known) for one in extra),
        "torch_url": logins.with_login(index.torch_url, known) if index.torch_url else None,
    }
    return site.model_copy(update={"python_index": PythonIndex(**{**index.model_dump(), **named})})


def _first(environ: Mapping[str, str], names: Sequence[str]) -> str | None:
    return next((environ[name] for name in names if environ.get(name)), None)


def _words(value: str | None) -> tuple[str, ...]:
    """Indexes on the network: directories of this host are none for a build. uv may write NAME=URL."""
    urls = (word if "=http" not in word else word.partition("=")[2] for word in (value or "").split())
    return tuple(url for url in urls if url.startswith(("http://", "https://")))


def pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """Of pip's files, the later before the earlier. Raises `UsageError` for one that is none."""
    found: dict[str, str] = {}
    for path in _pip_files(environ):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: pip cannot read it either: {error}", "correct it") from None
        for section in reversed(_PIP_SECTIONS):
            found |= dict(parser.items(section)) if parser.has_section(section) else {}
    return found


def _pip_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """In the order in which pip reads them; PIP_CONFIG_FILE comes last, and /dev/null in it means none at all."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == os.devnull:
        return ()
    home = environ.get("HOME") or "/"
    config = environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    paths = [Path(place.format(home=home, config=config)) for place in _PIP_FILES]
    return (*paths, *([Path(named)] if named else []))
