"""Credentials of registries, from where Docker, Podman and Apptainer keep them. Reads; writes nothing.

Looked for in the order in which Apptainer and then the others do: the environment, then the files of `files_of`. Helper
programs (`credsStore`, `credHelpers`) are asked through the Docker SDK, which speaks their protocol.
Sources: docs.docker.com/reference/cli/docker/login, apptainer.org/docs/user/latest/docker_and_oci.html,
containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sifkit.errors import UsageError

DOCKER_HUB = "docker.io"


@dataclass(frozen=True)
class Credentials:
    """A user's name and password, or a token to trade for others (`identity_token`). Never shown."""

    source: str  # where they were found, for messages
    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """The value of an Authorization header."""
        pair = f"{self.user}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode()}"


@dataclass(frozen=True)
class Found:
    """What a search brought: credentials or none, where it looked, and what went wrong on the way."""

    credentials: Credentials | None
    looked: tuple[str, ...]
    faults: tuple[str, ...] = ()


def find(registry: str, environ: Mapping[str, str]) -> Found:
    """Credentials for a registry, by its host name and port. Raises `UsageError` for a file that cannot be read."""
    looked: list[str] = []
    faults: list[str] = []
    for program in ("APPTAINER", "SINGULARITY"):
        user, password = (environ.get(f"{program}_DOCKER_{what}") for what in ("USERNAME", "PASSWORD"))
        if user and password:
            return Found(Credentials(f"{program}_DOCKER_USERNAME", user, password), ())
    for path in files_of(environ):
        looked.append(str(path))
        if path.is_file():
            try:
                known = _in_file(registry, path, environ)
            except _HelperFault as fault:
                faults.append(f"{path}: {fault}")
                continue
            if known:
                return Found(known, tuple(looked), tuple(faults))
    return Found(None, tuple(looked), tuple(faults))


def files_of(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """The files in which credentials may be, each once, present or not."""
    home = Path(environ.get("HOME") or "/")
    named = [Path(environ["REGISTRY_AUTH_FILE"])] if environ.get("REGISTRY_AUTH_FILE") else []
    apptainer = Path(environ.get("APPTAINER_CONFIGDIR") or home / ".apptainer") / "docker-config.json"
    docker = Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    runtime = environ.get("XDG_RUNTIME_DIR")
    podman = [Path(runtime, "containers/auth.json")] if runtime else []
    return tuple(dict.fromkeys((*named, apptainer, docker, *podman)))


class _HelperFault(Exception):
    """A helper program that is named and does not answer."""


def _in_file(registry: str, path: Path, environ: Mapping[str, str]) -> Credentials | None:
    from docker.auth import load_config  # here: only commands that ask registries need Docker's SDK
    from docker.errors import DockerException

    content = _read(path)
    if not any(content.get(key) for key in ("auths", "credHelpers", "credsStore")):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a helper that is not there, which the exception says, too
        try:
            entry = load_config(config_dict=content, credstore_env=dict(environ)).resolve_authconfig(registry)
        except DockerException as error:
            raise _HelperFault(str(error)) from None
    return _credentials(entry or {}, path)


def _credentials(entry: Mapping[str, Any], path: Path) -> Credentials | None:
    lower = {str(key).lower(): value for key, value in entry.items() if isinstance(value, str)}
    token, user, password = (lower.get(key, "") for key in ("identitytoken", "username", "password"))
    return Credentials(str(path), user, password, token) if token or (user and password) else None


def _read(path: Path) -> dict[str, Any]:
    """The JSON of a file of credentials, each entry in a form that can be decoded."""
    fix = "correct the file, or write it anew: docker login REGISTRY, or apptainer registry login docker://REGISTRY"
    try:
        content = json.loads(path.read_bytes())
        auths = content.get("auths") or {}
        for entry in auths.values():
            user, _, password = base64.b64decode(entry.get("auth", ""), validate=True).partition(b":")
            (user + password).decode("utf-8")
            if entry.get("auth") == "" or (not user and "auth" in entry):  # written by `logout`
                entry.pop("auth")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "it holds your credentials: only you need to read it") from None
    except (ValueError, AttributeError, TypeError, binascii.Error) as error:
        raise UsageError(f"{path}: not credentials as Docker keeps them: {type(error).__name__}", fix) from None
    return dict(content)
