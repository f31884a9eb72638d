"""Users and passwords of hosts, in the form that netrc and apt share: `machine HOST login USER password PASSWORD`.

Sources: netrc in the GNU inetutils manual; apt_auth.conf(5), where a machine may have scheme, port and path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from sifkit.errors import HostError


@dataclass(frozen=True)
class Login:
    """Who asks at one host. Never shown."""

    machine: str
    user: str
    password: str = field(repr=False)

    def line(self) -> str:
        """As files have it."""
        return f"machine {self.machine} login {self.user} password {self.password}\n"

    def opens(self, url: str, *, plain: bool) -> bool:
        """Whether it is for this address. `plain`: also without TLS, where the machine names no scheme."""
        scheme, _, place = self.machine.rpartition("://")
        parts, (host, _, folder) = urlsplit(url), place.partition("/")
        allowed = parts.scheme == scheme if scheme else plain or parts.scheme == "https"
        names = (parts.hostname, f"{parts.hostname}:{parts.port}")
        return allowed and host.lower() in names and f"{parts.path}/".startswith(f"/{folder}")


def parse(text: str) -> tuple[Login, ...]:
    """The entries that are whole. `default` is left out: it would give a password to whoever asks."""
    without_macros = re.sub(r"^macdef .*?(\n\n|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = (line for line in without_macros.splitlines() if not line.lstrip().startswith("#"))
    found = []
    for entry in re.split(r"(?:^|\s)(?=(?:machine\s|default(?:\s|$)))", "\n".join(lines)):
        words = entry.split()
        values = dict(zip(words[::2], words[1::2], strict=False)) if words[:1] == ["machine"] else {}
        if values.keys() >= {"machine", "login", "password"}:
            found.append(Login(values["machine"], values["login"], values["password"]))
    return tuple(found)


def read(path: Path) -> tuple[Login, ...]:
    """Raises `HostError` for a file that this user cannot read."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not a text file"
        raise HostError(f"{path}: {said}", "it holds users and passwords: you need to read it, nobody else") from None


def netrc_of(environ: Mapping[str, str]) -> tuple[Login, ...]:
    """The user's own, from $NETRC or ~/.netrc; empty where there is none."""
    path = Path(environ.get("NETRC") or Path(environ.get("HOME", "/")) / ".netrc")
    return read(path) if path.is_file() else ()


def with_login(url: str, logins: Iterable[Login]) -> str:
    """The address with user and password of the first entry for it, where it has none of its own."""
    parts = urlsplit(url)
    found = next((one for one in logins if one.opens(url, plain=True)), None)
    if parts.username or found is None:
        return url
    return urlunsplit(
        parts._replace(netloc=f"{quote(found.user, safe='')}:{quote(found.password, safe='')}@{parts.netloc}")
    )


def split_url(url: str) -> tuple[str, tuple[Login, ...]]:
    """An address without user and password, and these as an entry."""
    parts = urlsplit(url)
    userinfo, _, place = parts.netloc.rpartition("@")
    if not userinfo:
        return url, ()
    user, _, password = userinfo.partition(":")
    login = Login(f"{parts.scheme}://{place}", unquote(user), unquote(password))
    return urlunsplit(parts._replace(netloc=place)), (login,)
