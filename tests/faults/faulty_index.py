"""A package index on this machine that answers as real ones do on a bad day."""

from __future__ import annotations

import hashlib
import http.server
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Literal

from packaging.utils import parse_sdist_filename, parse_wheel_filename

Fault = Literal["500", "503", "reset", "half", "wrong"]


@dataclass
class Index:
    """What the server gives, and how it fails. `faults`: by the beginning of a path, how often (-1: always)."""

    wheelhouse: Path
    url: str = ""
    faults: dict[str, tuple[Fault, int]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def next_fault(self, path: str) -> Fault | None:
        """The fault that this request meets."""
        for start, (fault, left) in self.faults.items():
            if path.startswith(start) and left:
                self.faults[start] = (fault, left - 1 if left > 0 else left)
                return fault
        return None

    def link(self, path: Path) -> str:
        """Where a file is, with its hash as indexes give it."""
        return f"{self.url}/files/{path.name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"

    def files_of(self, project: str) -> list[Path]:
        """Wheels and source archives of a project."""
        return [path for path in self.wheelhouse.iterdir() if _project(path) == project]


def _project(path: Path) -> str | None:
    if path.suffix == ".whl":
        return parse_wheel_filename(path.name)[0]
    return parse_sdist_filename(path.name)[0] if path.name.endswith(".tar.gz") else None


class _Handler(http.server.BaseHTTPRequestHandler):
    """PEP 503: /simple/PROJECT/ lists files, /files/NAME is one."""

    protocol_version = "HTTP/1.1"
    index: Index

    def do_GET(self) -> None:
        self.index.asked.append(self.path)
        fault = self.index.next_fault(self.path)
        if fault == "reset":
            self._reset()
        elif fault in ("500", "503"):
            self._answer(HTTPStatus(int(fault)), b"", {"Retry-After": "1"} if fault == "503" else {})
        else:
            self._file(fault)

    def _file(self, fault: Fault | None) -> None:
        _, kind, name, *_ = [*self.path.split("/"), "", ""]
        path = self.index.wheelhouse / name
        if kind == "simple":
            links = [f'<a href="{self.index.link(one)}">{one.name}</a>' for one in self.index.files_of(name)]
            body = ("<!DOCTYPE html><html><body>" + "<br>".join(links) + "</body></html>").encode()
            self._answer(HTTPStatus.OK, body, {"Content-Type": "text/html", "Cache-Control": "max-age=600"}, fault)
        elif kind == "files" and path.is_file():
            kept = {"Content-Type": "application/octet-stream", "Cache-Control": "max-age=365000000, immutable"}
            self._answer(HTTPStatus.OK, path.read_bytes(), kept, fault)
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"", {})

    def _answer(self, status: HTTPStatus, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        if fault == "wrong":  # a good archive, but another: with a comment at its end
            body = body[:-2] + b"\x05\x00other"
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "half":
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)

    def _reset(self) -> None:
        """RST instead of FIN: what a failing proxy or load balancer does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())  # now: the server would shut it down first, in an orderly way

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def served(wheelhouse: Path) -> Iterator[Index]:
    """The index while it is served, whole at first."""
    index = Index(wheelhouse)
    handler = type("Handler", (_Handler,), {"index": index})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    index.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield index
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
