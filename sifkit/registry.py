"""A client of the HTTP interface that all registries share.

The interface: github.com/opencontainers/distribution-spec, spec.md; how tokens are got:
distribution.github.io/distribution/spec/auth/token. `Client.request` authenticates, waits and explains; everything else
stands on it, as uploads do (`sifkit.share.upload`). Plain http is spoken with this machine, elsewhere only where the
user allows it (`registries` in the site file, or APPTAINER_NOHTTPS, the variable that Apptainer itself asks for).
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import parse_http_list

import requests
from requests.auth import AuthBase
from urllib3.util.retry import Retry

from sifkit import credentials
from sifkit.credentials import DOCKER_HUB, Credentials, Found
from sifkit.errors import HostError, SifkitError, UsageError
from sifkit.model import Site
from sifkit.redact import redact
from sifkit.reference import Reference
from sifkit.sessions import Adapter

INDEXES = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = ("application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json")
LARGEST_MANIFEST = 4 << 20  # bytes, which registries must take and need not exceed
TIMEOUT = (10.0, 60.0)  # seconds to connect, and without a byte
PATIENCE = 60.0  # seconds that a registry may ask us to wait
TRIES = 4  # of what fails on the way, or while a registry says "too many requests"
CHUNK = 1 << 17  # bytes; what is lost at most when a connection breaks
PULL, PUSH = "pull", "pull,push"  # what credentials are asked to allow
PROXY_FIX = "correct https_proxy, http_proxy or no_proxy, or `proxy` in the site file: http://USER:PASSWORD@HOST:PORT"
CERTIFICATES = ("/etc/docker/certs.d", "/etc/containers/certs.d")


class Lost(HostError):
    """The registry does not answer, went away in the middle, or has a fault of its own: worth another try."""


class NotTaken(HostError):
    """The registry takes no manifests of this kind: some know a list of media types, and nothing else."""


def sha256_digest(data: bytes) -> str:
    """A digest as registries write it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Manifest:
    """A manifest or an index, byte for byte."""

    digest: str
    media_type: str
    data: bytes

    @property
    def content(self) -> dict[str, Any]:
        """Its JSON."""
        return dict(json.loads(self.data))


# ---------------------------------------------------------------------------------------------- the client


class _Authorized(AuthBase):
    """Sets the header that we chose. A session without one would send what ~/.netrc holds."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._value:
            request.headers["Authorization"] = self._value
        return request


def _retry(tries: int) -> Retry:
    """Tries again what failed on the way; a certificate that is not trusted will not be the next time either."""
    states = (500, 502, 503, 504)
    return Retry(
        total=tries - 1, other=0, backoff_factor=0.4, status_forcelist=states, respect_retry_after_header=False
    )


def certificates_for(registry: str, environ: Mapping[str, str]) -> tuple[Path, ...]:
    """What Docker and Podman trust for one registry besides the host's own: `certs.d/HOST:PORT/*.crt`."""
    home = environ.get("HOME")
    places = [*CERTIFICATES, *([f"{home}/.config/containers/certs.d"] if home else [])]
    return tuple(path for place in places for path in sorted(Path(place, registry).glob("*.crt")))


def plain_is_allowed(registry: str, environ: Mapping[str, str], site: Site) -> bool:
    """Whether the user lets a registry be asked without TLS."""
    known = site.registries.get(registry)
    return (known is not None and known.http) or environ.get("APPTAINER_NOHTTPS", "").lower() in ("1", "true", "yes")


@dataclass(frozen=True)
class Settings:
    """What a client needs to know of this host."""

    environ: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: Path | None = None
    say: Callable[[str], None] = lambda _: None
    sleep: Callable[[float], None] = time.sleep
    site: Site = field(default_factory=Site)


class Client:
    """One registry. Use as a context manager."""

    def __init__(self, registry: str, settings: Settings) -> None:
        self.registry = registry
        self._settings = settings
        self._context = ssl.create_default_context()
        self._trust(self._context)
        self._session = self._new_session(TRIES)
        self._base = ""
        self._found: Found | None = None
        self._authorization: dict[str, str] = {}  # by scope

    def _new_session(self, tries: int) -> requests.Session:
        session = requests.Session()
        session.headers["User-Agent"] = "sifkit"
        for scheme in ("https://", "http://"):
            session.mount(scheme, Adapter(self._settings.environ, self._context, _retry(tries)))
        return session

    def _trust(self, context: ssl.SSLContext) -> None:
        bundle = (self._settings.ca_bundle,) if self._settings.ca_bundle else ()
        for path in (*bundle, *certificates_for(self.registry, self._settings.environ)):
            try:
                context.load_verify_locations(path)
            except (OSError, ssl.SSLError) as error:
                raise HostError(f"{path}: no certificate that can be read: {error}", "correct or remove it") from None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()

    # ------------------------------------------------------------------------------------------ what is asked

    def manifest(self, reference: Reference) -> Manifest:
        """The manifest or index of a name, its bytes checked against the digest. Raises with the fix."""
        return self.find_manifest(reference) or _raise_unknown(reference)

    def find_manifest(self, reference: Reference, *, actions: str = PULL) -> Manifest | None:
        """The same; None where the registry has no such name."""
        by = reference.digest or reference.tag
        path = f"{reference.repository}/manifests/{by}"
        headers = {"Accept": ", ".join((*INDEXES, *MANIFESTS))}
        with self.request("GET", path, reference.repository, actions=actions, headers=headers, stream=True) as answer:
            if answer.status_code == 404:
                return None
            self.require_ok(answer, reference.repository)
            data = self.read(answer, LARGEST_MANIFEST + 1)
            media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip()
            said = answer.headers.get("Docker-Content-Digest", "")
        if len(data) > LARGEST_MANIFEST:
            raise HostError(f"{self.registry}: the manifest of {reference} is too large", "is this a registry?")
        digest = sha256_digest(data)
        wanted = reference.digest or (said if said.startswith("sha256:") else digest)
        if digest != wanted:
            raise HostError(
                f"{self.registry} answered for {reference} with {digest}, not {wanted}: damaged on the way or replaced",
                "try again; a proxy or mirror between here and the registry may answer wrongly",
            )
        return Manifest(digest, _checked_type(media_type, data, reference), data)

    def put_manifest(self, reference: Reference, manifest: Manifest) -> bool:
        """Write a manifest or an index under the reference's tag, else its digest, when all that it names is there.

        True where the registry took note of its `subject` by itself: it says so in a header. Raises `NotTaken`.
        """
        path = f"{reference.repository}/manifests/{reference.tag or manifest.digest}"
        headers = {"Content-Type": manifest.media_type}
        with self.request(
            "PUT", path, reference.repository, actions=PUSH, headers=headers, data=manifest.data
        ) as answer:
            if answer.status_code in (400, 415, 422) and "BLOB_UNKNOWN" not in _said(answer):
                words = f"{self.registry} takes no {manifest.media_type} in {reference.repository}: {_said(answer)}"
                raise NotTaken(words, "push to another registry, or ask whoever runs this one to allow its media types")
            self.require_ok(answer, reference.repository)
            return "OCI-Subject" in answer.headers

    def has_blob(self, repository: str, digest: str) -> bool:
        """Whether a repository has a blob; asked by those who push."""
        path = f"{repository}/blobs/{digest}"
        with self.request("HEAD", path, repository, actions=PUSH) as answer:
            return answer.ok

    def blob(self, reference: Reference, digest: str, *, offset: int = 0) -> Iterator[bytes]:
        """The bytes of a blob from `offset` on, in pieces. The caller checks the digest of the whole.

        Raises `Lost` where it ends before its end.
        """
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={offset}-"} if offset else {})}
        path = f"{reference.repository}/blobs/{digest}"
        with self.request("GET", path, reference.repository, headers=headers, stream=True) as answer:
            self.require_ok(answer, reference.repository)
            skip = offset if offset and answer.status_code != 206 else 0  # it may send everything again
            for piece in self._pieces(answer):
                if skip < len(piece):
                    yield piece[skip:]
                skip = max(0, skip - len(piece))

    def read(self, answer: requests.Response, most: int) -> bytes:
        """The content of a streamed answer, as far as `most` bytes. Raises `Lost` where it ends before its end."""
        data = b""
        for piece in self._pieces(answer):
            data += piece
            if len(data) >= most:
                break
        return data[:most]

    def _pieces(self, answer: requests.Response) -> Iterator[bytes]:
        try:
            yield from answer.iter_content(CHUNK)
        except requests.RequestException as error:
            broke = f"the connection to {self.registry} broke ({type(error).__name__})"
            raise Lost(broke, "check the network, and try again") from error

    def request(
        self, method: str, path: str, repository: str, *, actions: str = PULL, **options: Any
    ) -> requests.Response:
        """One request below /v2/, with credentials where they are asked for. A 404 is the caller's to explain.

        `data` that is a file is sent from its beginning, each time that it is sent.

        Raises `HostError` where the registry cannot be reached, asks for other credentials, or limits requests.
        """
        url = urljoin(f"{self._reach()}/v2/", path)  # an upload's location may be a whole URL
        scope = f"repository:{repository}:{actions}"
        answer = self._patiently(method, url, scope, options)
        if answer.status_code == 407:
            raise HostError(f"the proxy before {self.registry} asks for a password, or for another", PROXY_FIX)
        if answer.status_code == 401:
            answer.close()
            self._authorization[scope] = self._authorize(answer, scope)
            answer = self._patiently(method, url, scope, options)
        if answer.status_code in (401, 403):
            self._raise_refused(answer, scope)
        return answer

    def require_ok(self, answer: requests.Response, repository: str) -> None:
        """Raises `HostError` with the registry's own words for any answer that is not a success."""
        if not answer.ok:
            kind = Lost if answer.status_code >= 500 else HostError
            raise kind(
                f"{self.registry}: {repository}: HTTP {answer.status_code} {_said(answer)}".rstrip(),
                "the registry has a fault of its own: try again later",
            )

    # ------------------------------------------------------------------------------------------ reaching it

    def _reach(self) -> str:
        """The base URL: https, or http where that is allowed and nothing else is spoken."""
        if not self._base:
            host = "registry-1.docker.io" if self.registry == DOCKER_HUB else self.registry
            self._base = f"https://{host}"
            if self._may_be_plain() and not self._speaks_tls():
                self._base = f"http://{host}"
        return self._base

    def _may_be_plain(self) -> bool:
        host = (urlsplit(f"//{self.registry}").hostname or "").lower()
        allowed = plain_is_allowed(self.registry, self._settings.environ, self._settings.site)
        return allowed or host == "localhost" or _is_loopback(host)

    def _speaks_tls(self) -> bool:
        try:
            with self._new_session(1) as session:
                session.get(f"{self._base}/v2/", auth=_Authorized(""), timeout=TIMEOUT, stream=True).close()
        except requests.exceptions.SSLError as error:
            return not _is_plain_http(error)  # a certificate that is not trusted is TLS
        except requests.RequestException:
            return False
        return True

    def _patiently(self, method: str, url: str, scope: str, options: Mapping[str, Any]) -> requests.Response:
        """Wait as long as a registry asks for, within reason."""
        for left in reversed(range(TRIES)):
            own = urlsplit(url).netloc == urlsplit(self._base).netloc  # an upload may go on at another host
            answer = self._send(method, url, _Authorized(self._authorization.get(scope, "") if own else ""), options)
            if answer.status_code != 429:
                return answer
            seconds = _retry_after(answer)
            if not left or seconds > PATIENCE:
                self._raise_limited(answer, seconds)
            answer.close()
            self._settings.say(f"{self.registry}: too many requests; waiting {seconds:.0f} s")
            self._settings.sleep(seconds)
        raise AssertionError("the loop returns or raises")

    def _send(self, method: str, url: str, auth: AuthBase, options: Mapping[str, Any]) -> requests.Response:
        if hasattr(options.get("data"), "seek"):
            options["data"].seek(0)
        try:
            return self._session.request(method, url, auth=auth, timeout=TIMEOUT, **options)
        except requests.RequestException as error:
            raise unreachable(self.registry, error) from error

    # ------------------------------------------------------------------------------------------ credentials

    def _credentials(self) -> Credentials | None:
        if self._found is None:
            self._found = credentials.find(self.registry, self._settings.environ)
        return self._found.credentials

    def _authorize(self, refused: requests.Response, scope: str) -> str:
        """What to answer a challenge with. Raises `HostError` where there is nothing."""
        challenges = challenges_in(refused.headers.get("WWW-Authenticate", ""))
        if "bearer" in challenges:
            return f"Bearer {self._token(challenges['bearer'], scope)}"
        known = self._credentials()
        if "basic" in challenges and known and known.user:
            self._require_private(refused.url)
            return known.basic()
        return self._raise_refused(refused, scope)

    def _token(self, challenge: Mapping[str, str], scope: str) -> str:
        realm, known = challenge.get("realm", ""), self._credentials()
        query = {"service": challenge["service"]} if challenge.get("service") else {}
        if known:
            self._require_private(realm)
        if known and known.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": known.identity_token, "client_id": "sifkit"}
            options = {"data": {**form, **query, "scope": scope}}
            answer = self._send("POST", realm, _Authorized(""), options)
        else:
            url = f"{realm}{'&' if '?' in realm else '?'}{urlencode({**query, 'scope': scope})}"
            answer = self._patiently_for_token(url, known)
        if not answer.ok:
            self._raise_refused(answer, scope)
        try:
            told = answer.json()
            return str(told.get("token") or told["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise HostError(
                f"{self.registry}: {urlsplit(realm).netloc} gives no token", "is this a registry?"
            ) from None

    def _patiently_for_token(self, url: str, known: Credentials | None) -> requests.Response:
        answer = self._send("GET", url, _Authorized(known.basic() if known else ""), {})
        if answer.status_code == 429:
            self._raise_limited(answer, _retry_after(answer))
        return answer

    def _require_private(self, url: str) -> None:
        """Credentials go through TLS, or stay on this machine, unless the user allowed plain http."""
        parts = urlsplit(url)
        if parts.scheme == "https" or _is_loopback(parts.hostname or "") or self._base.startswith("http:"):
            return
        raise HostError(
            f"{self.registry} asks for credentials to be sent to {parts.netloc} without TLS: they were not sent",
            "ask whoever runs the registry to give its token service a certificate",
        )

    # ------------------------------------------------------------------------------------------ errors

    def _raise_refused(self, answer: requests.Response, scope: str) -> NoReturn:
        self._credentials()
        _, repository, actions = scope.split(":")
        may = "write to" if actions == PUSH else "read"
        found = self._found or Found(None, ())
        login = f"docker login {self.registry}, or apptainer registry login --username NAME docker://{self.registry}"
        words = _said(answer)
        if found.credentials:
            raise HostError(
                f"{self.registry} refuses {repository} to the user of {found.credentials.source}: "
                f"HTTP {answer.status_code} {words}".rstrip(),
                f"check that the account may {may} it and that the password is current: {login}",
            )
        looked = "".join(f"\n  {fault}" for fault in found.faults) + f"\n  looked in {', '.join(found.looked)}"
        raise HostError(
            f"{self.registry} asks for credentials for {repository}, or has no such repository; none found:{looked}",
            login,
        )

    def _raise_limited(self, answer: requests.Response, seconds: float) -> NoReturn:
        wait = f"; it asks to wait {seconds / 60:.0f} minutes" if seconds > PATIENCE else ""
        known = self._credentials()
        own = "" if known else f"log in, which raises the limit (docker login {self.registry}); or "
        raise HostError(
            f"{self.registry} limits requests{wait}: {_said(answer) or 'HTTP 429'}",
            f"{own}wait; or name a mirror of it in the site file: registries",
        )


def _raise_unknown(reference: Reference) -> NoReturn:
    if reference.digest:
        name = reference.at("").short
        raise UsageError(
            f"{reference.registry} has no {reference.digest} in {reference.repository}: mistyped, or deleted there",
            f"give the tag alone ({name}:TAG), and have its digest locked: sifkit lock",
        )
    raise UsageError(
        f"{reference.registry} has no {reference.repository}:{reference.tag}",
        "correct the name or the tag (`from:`); tags of Docker Hub: https://hub.docker.com/_/NAME/tags",
    )


def unreachable(registry: str, error: requests.RequestException) -> SifkitError:
    """What a failure below HTTP means."""
    host = urlsplit(f"//{registry}").hostname or registry
    text = str(error)
    if isinstance(error, requests.exceptions.SSLError) and _is_plain_http(error):
        return HostError(
            f"{registry} speaks plain http, which anybody on the way can change",
            "give it a certificate; or, on a network that you trust, say so in the site file: "
            f"registries: {{'{registry}': {{http: true}}}}, or for all of them: APPTAINER_NOHTTPS=1",
        )
    if isinstance(error, requests.exceptions.SSLError):
        why = re.search(r"certificate verify failed: ([^(]+)", text)
        return HostError(
            f"the certificate of {registry} is not trusted: {why[1].strip() if why else text}",
            f"put your site's CA into {CERTIFICATES[0]}/{registry}/ca.crt, as for Docker, "
            "or name the bundle: python_index.ca_bundle in the site file, or SSL_CERT_FILE",
        )
    if isinstance(error, requests.exceptions.ProxyError):
        return HostError(f"{registry} cannot be reached through the proxy: {redact(text)}", PROXY_FIX)
    fault = "no such host" if re.search(r"[Nn]ame or service|resolve|getaddrinfo", text) else "does not answer"
    return Lost(
        f"{registry} cannot be reached: {host} {fault} ({type(error).__name__})",
        "check name, port and network; "
        "behind a firewall set https_proxy, or name a mirror in the site file: registries",
    )


def challenges_in(header: str) -> dict[str, dict[str, str]]:
    """The challenges of a WWW-Authenticate header: parameters by scheme, both in lower case."""
    found: dict[str, dict[str, str]] = {}
    current: dict[str, str] = {}
    for item in parse_http_list(header):
        if start := re.match(r"([A-Za-z][A-Za-z0-9-]*)(?:\s+|$)(?!=)", item):
            current = found.setdefault(start[1].lower(), {})
            item = item[start.end() :]
        if pair := re.fullmatch(r'\s*([A-Za-z0-9_-]+)\s*=\s*("?)(.*)\2\s*', item):
            current[pair[1].lower()] = pair[3]
    return found


def _said(answer: requests.Response) -> str:
    """The registry's own words, on one line."""
    try:
        faults = answer.json()["errors"]
        said = "; ".join(f"{fault.get('code', '')} {fault.get('message', '')}".strip() for fault in faults)
    except (ValueError, KeyError, TypeError, AttributeError):
        said = answer.reason or ""
    return " ".join(said.split())[:300]


def _retry_after(answer: requests.Response) -> float:
    """Seconds, from either form of the header; a few where it is missing."""
    value = answer.headers.get("Retry-After", "")
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds())
    except (ValueError, TypeError):
        return 5.0


def _checked_type(media_type: str, data: bytes, reference: Reference) -> str:
    """The media type, from the content where the header is general. Raises `UsageError` for what is no image."""
    try:
        content = json.loads(data)
        own = content.get("mediaType") or (INDEXES[0] if "manifests" in content else MANIFESTS[0])
        version = content.get("schemaVersion")
    except (ValueError, AttributeError):
        raise HostError(
            f"{reference.registry}: the answer for {reference} is no manifest", "is this a registry?"
        ) from None
    known = media_type if media_type in (*INDEXES, *MANIFESTS) else own
    if version != 2 or known not in (*INDEXES, *MANIFESTS):
        raise UsageError(
            f"{reference} has the manifest format {media_type or 'unknown'}, which is no longer read",
            "push the image again with a current Docker or Podman",
        )
    return str(known)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_plain_http(error: Exception) -> bool:
    return bool(re.search(r"WRONG_VERSION_NUMBER|wrong version number|HTTP_REQUEST|record layer failure", str(error)))
