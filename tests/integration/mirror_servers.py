"""A site's mirrors on this machine: servers with a private CA and passwords, behind a proxy that asks for another.

The proxy alone knows the servers' names, as on a cluster: whoever is served has used proxy, certificates and password.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import select
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


def basic(user: str, password: str) -> str:
    """What a header has of a user and a password."""
    return base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass(frozen=True)
class Authority:
    """A private CA, and a certificate for some names that it signed."""

    ca: Path
    chain: Path  # certificate and key


def make_authority(directory: Path, *names: str) -> Authority:
    """By openssl."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(("openssl", *words), cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=Site CA")
    openssl("req", *key, "-keyout", "host.key", "-out", "host.csr", "-subj", f"/CN={names[0]}")
    (directory / "san").write_text("subjectAltName=" + ",".join(f"DNS:{name}" for name in names) + "\n")
    signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
    openssl("x509", "-req", "-in", "host.csr", *signing, "-out", "host.crt")
    chain = directory / "host.pem"
    chain.write_text((directory / "host.crt").read_text() + (directory / "host.key").read_text())
    return Authority(directory / "ca.crt", chain)


@dataclass
class Served:
    """A server, and the paths that it gave to those who knew the password."""

    port: int
    paths: list[str] = field(default_factory=list)
    let_in: int = 0
    refused: int = 0


class _Files(http.server.BaseHTTPRequestHandler):
    """Files for those who know the password, in pieces where asked; of `upstream` what the directory lacks.

    Below broken/ it is out of order.
    """

    protocol_version = "HTTP/1.1"
    directory: Path
    expected: str
    upstream: str
    served: Served

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != f"Basic {self.expected}":
            self.served.refused += 1
            self._answer(401, b"who are you?", {"WWW-Authenticate": 'Basic realm="here"'})
            return
        self.served.let_in += 1
        path = urlsplit(self.path).path
        if path.startswith("/broken/"):
            self._answer(500, b"out of order", {})
            return
        file = self.directory / path.strip("/")
        file = file / "index.html" if file.is_dir() else file
        if not file.is_file() and self.upstream:
            fetch(self.upstream + path.removeprefix("/debian"), file)
        if not file.is_file():
            self._answer(404, b"no such thing", {})
            return
        self.served.paths.append(path)
        self._send(file)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, file: Path) -> None:
        kind = {"Content-Type": "text/html" if file.suffix == ".html" else "x/y", "Accept-Ranges": "bytes"}
        asked, data = self.headers.get("Range", ""), file.read_bytes()
        if not asked:
            self._answer(200, data, kind)
            return
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last), len(data) - 1) if first and last else len(data) - 1
        self._answer(206, data[start : end + 1], {**kind, "Content-Range": f"bytes {start}-{end}/{len(data)}"})

    def _answer(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


def fetch(url: str, target: Path) -> None:
    """A file of the host's own mirror, kept; nothing where that has none."""
    import requests

    answer = requests.get(url, timeout=60)
    if answer.ok:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.{threading.get_ident()}.partial")
        partial.write_bytes(answer.content)
        partial.rename(target)


@contextmanager
def files(
    directory: Path, user: str, password: str, *, authority: Authority | None = None, upstream: str = ""
) -> Iterator[Served]:
    """A server of `directory`, with TLS where there is an authority."""
    served = Served(0)
    values = {
        "directory": directory,
        "expected": basic(user, password),
        "upstream": upstream,
        "served": served,
    }
    with _running(type("OurFiles", (_Files,), values), authority) as port:
        served.port = port
        yield served


class _Server(http.server.ThreadingHTTPServer):
    """Clients that do not trust a certificate hang up in the middle: nothing to tell."""

    daemon_threads = True
    block_on_close = False
    context: ssl.SSLContext | None = None

    def finish_request(self, request: object, client_address: object) -> None:
        assert isinstance(request, socket.socket)
        if self.context:
            request = self.context.wrap_socket(request, server_side=True)
        self.RequestHandlerClass(request, client_address, self)  # type: ignore[arg-type]
        if self.context:
            request.close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet."""


@contextmanager
def _running(handler: type, authority: Authority | None = None) -> Iterator[int]:
    server = _Server(("127.0.0.1", 0), handler)
    if authority:
        server.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.context.load_cert_chain(authority.chain)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


# ---------------------------------------------------------------------------------------------- the proxy


@dataclass
class Proxy:
    """A proxy with a password: whom it let through, to where, and how many it refused."""

    port: int
    user: str
    password: str
    places: Mapping[str, int]
    passed: list[str] = field(default_factory=list)
    refused: int = 0

    @property
    def url(self) -> str:
        """As http_proxy has it."""
        return f"http://{self.user}:{self.password}@127.0.0.1:{self.port}"


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Absolute addresses, and CONNECT."""

    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if not self._allowed() or (there := self._reach(host, int(port))) is None:
            return
        with there:
            self.send_response(200)
            self.end_headers()
            self._pass_on(there)
        self.close_connection = True

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if not self._allowed() or (there := self._reach(str(parts.hostname), parts.port or 80)) is None:
            return
        there.close()
        address = ("127.0.0.1", self.proxy.places[str(parts.hostname)])
        connection = http.client.HTTPConnection(*address, timeout=60)
        mine = ("proxy-authorization", "proxy-connection", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in mine}
        connection.request(self.command, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=headers)
        answer = connection.getresponse()
        self._answer(answer.status, answer.read(), dict(answer.getheaders()))
        connection.close()

    def do_HEAD(self) -> None:
        self.do_GET()

    def _allowed(self) -> bool:
        expected = basic(self.proxy.user, self.proxy.password)
        if self.headers.get("Proxy-Authorization") == f"Basic {expected}":
            return True
        self.proxy.refused += 1
        self._answer(407, b"who are you?", {"Proxy-Authenticate": 'Basic realm="proxy"'})
        return False

    def _reach(self, host: str, port: int) -> socket.socket | None:
        """Only where it knows the way to."""
        if host not in self.proxy.places:
            self._answer(502, b"no way there", {})
            return None
        self.proxy.passed.append(f"{self.command} {host}:{port}")
        return socket.create_connection(("127.0.0.1", self.proxy.places[host]), timeout=60)

    def _pass_on(self, there: socket.socket) -> None:
        ends = {self.connection: there, there: self.connection}
        while ready := select.select(list(ends), [], [], 60)[0]:
            for end in ready:
                data = end.recv(1 << 16)
                if not data:
                    return
                ends[end].sendall(data)

    def _answer(self, code: int, body: bytes, headers: Mapping[str, str]) -> None:
        own = ("content-length", "connection", "transfer-encoding", "date", "server")
        self.send_response(code)
        for name, value in headers.items():
            if name.lower() not in own:
                self.send_header(name, value)
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", size)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def proxy(user: str, password: str, places: Mapping[str, int]) -> Iterator[Proxy]:
    """A proxy that knows the way to `places`, ports of this machine by host name, and to nothing else."""
    found = Proxy(0, user, password, places)
    with _running(type("OurProxy", (_Proxy,), {"proxy": found})) as port:
        found.port = port
        yield found


# ---------------------------------------------------------------------------------------------- an index


def make_index(wheelhouse: Path, directory: Path) -> Path:
    """A folder a package (PEP 503) below simple/, with hashes, which locks need."""
    for wheel in wheelhouse.glob("*.whl"):
        folder = directory / "simple" / wheel.name.split("-")[0].replace("_", "-").lower()
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(wheel, folder)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    return directory
