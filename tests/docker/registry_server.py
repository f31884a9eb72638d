"""Real registries (Debian's docker-registry) for tests, each on a free port of this machine, with its own directory."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests
import yaml

USER, PASSWORD = "user", "s3cret"
# htpasswd -nbB user s3cret
HTPASSWD = f"{USER}:$2b$04$W2tLGpTjqVu2iauT9xnz9.oXaoCb.KP1htVVbGYuLVK9UDGIVAoqO\n"
OCI = "application/vnd.oci.image"


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Registry:
    """One that runs. `push` writes as a client would."""

    port: int
    scheme: str = "http"
    verify: str | bool = True
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        """As image names have it."""
        return f"localhost:{self.port}" if self.scheme == "https" else f"127.0.0.1:{self.port}"

    def _request(self, method: str, url: str, **options: Any) -> requests.Response:
        where = url if url.startswith("http") else f"{self.scheme}://{self.host}/v2/{url}"
        headers = {**self.headers, **options.pop("headers", {})}
        answer = requests.request(method, where, headers=headers, verify=self.verify, timeout=20, **options)
        answer.raise_for_status()
        return answer

    def push_blob(self, repository: str, data: bytes) -> str:
        """Its digest."""
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        started = self._request("POST", f"{repository}/blobs/uploads/")
        self._request("PUT", f"{started.headers['Location']}&digest={digest}", data=data)
        return digest

    def push_manifest(self, repository: str, by: str, content: Mapping[str, Any]) -> str:
        """Its digest."""
        data = json.dumps(content).encode()
        headers = {"Content-Type": str(content["mediaType"])}
        answer = self._request("PUT", f"{repository}/manifests/{by}", data=data, headers=headers)
        return str(answer.headers["Docker-Content-Digest"])

    def push(self, repository: str, tag: str, files: Mapping[str, bytes], architecture: str = "amd64") -> str:
        """An image of one layer; its digest."""
        layer = _tar(files)
        config = {
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        }
        packed, configured = gzip.compress(layer, mtime=0), json.dumps(config).encode()
        content = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": self._descriptor(repository, f"{OCI}.config.v1+json", configured),
            "layers": [self._descriptor(repository, f"{OCI}.layer.v1.tar+gzip", packed)],
        }
        return self.push_manifest(repository, tag, content)

    def push_index(self, repository: str, tag: str, architectures: Sequence[str]) -> str:
        """An image for several platforms; its digest."""
        rows = []
        for architecture in architectures:
            digest = self.push(repository, f"{tag}-{architecture}", {"etc/arch": architecture.encode()}, architecture)
            size = len(self._request("GET", f"{repository}/manifests/{digest}", headers=_ACCEPT).content)
            rows.append(
                {
                    "mediaType": f"{OCI}.manifest.v1+json",
                    "digest": digest,
                    "size": size,
                    "platform": {"os": "linux", "architecture": architecture},
                }
            )
        content = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": rows}
        return self.push_manifest(repository, tag, content)

    def _descriptor(self, repository: str, kind: str, data: bytes) -> dict[str, Any]:
        return {"mediaType": kind, "digest": self.push_blob(repository, data), "size": len(data)}


_ACCEPT = {"Accept": f"{OCI}.manifest.v1+json"}


def _tar(files: Mapping[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            tar.addfile(member, io.BytesIO(data))
    return stream.getvalue()


@contextmanager
def serve(directory: Path, **settings: Any) -> Iterator[Registry]:
    """A registry until the end of the block. `settings`: `auth`, and `tls` for `http.tls`."""
    directory.mkdir(parents=True, exist_ok=True)
    port, tls = free_port(), settings.pop("tls", None)
    http = {"addr": f"127.0.0.1:{port}", "secret": "of-a-test", **({"tls": tls} if tls else {})}
    storage = {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}}
    config = directory / "config.yml"
    config.write_text(yaml.safe_dump({"version": 0.1, "storage": storage, "http": http, **settings}))
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(("docker-registry", "serve", str(config)), stdout=log, stderr=log)
    try:
        wait_for_port(port, process, directory / "log")
        yield Registry(port, "https" if tls else "http")
    finally:
        process.terminate()
        process.wait(20)


def wait_for_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll with a deadline. Raises `AssertionError` with the log of a process that ended."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"nothing listens on port {port}: {log.read_text()}")


@dataclass(frozen=True)
class Certificates:
    """A private CA, and the certificate of localhost that it signed."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """By openssl."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(("openssl", *words), cwd=directory, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=Test CA")
    openssl("req", *key, "-keyout", "host.key", "-out", "host.csr", "-subj", "/CN=localhost")
    (directory / "san").write_text("subjectAltName=DNS:localhost\n")
    signing = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
    openssl("x509", "-req", "-in", "host.csr", *signing, "-out", "host.crt")
    return Certificates(directory / "ca.crt", directory / "host.crt", directory / "host.key")


# ---------------------------------------------------------------------------------------------- tokens


@contextmanager
def token_service(directory: Path) -> Iterator[dict[str, Any]]:
    """A token service as Docker Hub has one; gives the registry's `auth.token`. It signs with openssl.

    The format: distribution.github.io/distribution/spec/auth/jwt.
    """
    directory.mkdir(parents=True, exist_ok=True)
    key, certificate = directory / "token.key", directory / "token.crt"
    made = ("-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens")
    subprocess.run(
        ("openssl", "req", "-x509", *made, "-keyout", str(key), "-out", str(certificate)),
        check=True,
        capture_output=True,
    )
    expected = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            known = self.headers.get("Authorization") == expected
            self.send_response(200 if known else 401)
            token = _token(query, key, certificate) if known else ""
            data = json.dumps({"token": token} if known else {"errors": [{"code": "UNAUTHORIZED"}]}).encode()
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield {
            "realm": f"http://127.0.0.1:{server.server_port}/token",
            "service": "test-registry",
            "issuer": "test-issuer",
            "rootcertbundle": str(certificate),
        }
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _token(query: Mapping[str, list[str]], key: Path, certificate: Path) -> str:
    kind, name, actions = query["scope"][0].split(":")
    lines = certificate.read_text().splitlines()
    now = int(time.time())
    header = {"typ": "JWT", "alg": "RS256", "x5c": ["".join(line for line in lines if not line.startswith("-"))]}
    claims = {
        "iss": "test-issuer",
        "sub": USER,
        "aud": query["service"][0],
        "exp": now + 300,
        "nbf": now - 60,
        "iat": now,
        "jti": str(now),
        "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
    }
    text = ".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    signed = subprocess.run(
        ("openssl", "dgst", "-sha256", "-sign", str(key)), input=text.encode(), check=True, capture_output=True
    )
    return f"{text}.{_base64url(signed.stdout)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
