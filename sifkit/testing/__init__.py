"""testinfra for images: `testinfra.get_host("apptainer:///path/to/image.sif?nv=true&bind=/data:/mnt")`.

In pytest the plugin calls `register`; elsewhere call it once before `get_host`.
"""

from __future__ import annotations

import urllib.parse
from typing import Any

import testinfra.backend

SCHEME = "apptainer"

_testinfra_parse = testinfra.backend.parse_hostspec


def register() -> None:
    """Make testinfra know `apptainer://`. Safe to call again.

    testinfra's own parser keeps nothing of a URL but its host name and a fixed set of options
    (testinfra 10.2, backend/__init__.py), and has no hook: for this one scheme ours takes its place.
    """
    testinfra.backend.BACKENDS[SCHEME] = "sifkit.testing.backend.ApptainerBackend"
    testinfra.backend.parse_hostspec = parse_hostspec


def parse_hostspec(hostspec: str) -> tuple[str, dict[str, Any]]:
    """Path and options of `apptainer://PATH?nv=true&home=true&pwd=DIR&bind=SOURCE:TARGET[:rw]&bind=…`.

    Every other scheme is testinfra's. Raises `ValueError` for an option that is not one of these.
    """
    if hostspec is None or not hostspec.startswith(f"{SCHEME}://"):
        host, theirs = _testinfra_parse(hostspec)
        return host, theirs
    path, _, query = hostspec.removeprefix(f"{SCHEME}://").partition("?")
    options: dict[str, Any] = {"connection": SCHEME}
    for name, values in urllib.parse.parse_qs(query, strict_parsing=bool(query)).items():
        options[name] = _option(name, values)
    return urllib.parse.unquote(path), options


def _option(name: str, values: list[str]) -> bool | str | tuple[str, ...]:
    """Hashable: testinfra keeps hosts in a dictionary, by their options."""
    match name:
        case "nv" | "home" if values[-1].lower() in ("true", "false"):
            return values[-1].lower() == "true"
        case "pwd":
            return values[-1]
        case "bind":
            return tuple(values)
        case _:
            raise ValueError(f"{SCHEME}://: cannot use {name}={values[-1]}; known: nv, home (true or false), pwd, bind")


def hostspec(path: str) -> str:
    """The URL of an image, whatever characters its path holds."""
    return f"{SCHEME}://{urllib.parse.quote(path)}"
