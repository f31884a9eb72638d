"""A package index on this machine: PEP 503 pages, wheels made here, and answers to range requests."""

from __future__ import annotations

import functools
import http.server
import subprocess
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path


class _Handler(http.server.SimpleHTTPRequestHandler):
    """The standard library's, with ranges where the server has them."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers.get("Range", "")
        if not asked or not path.is_file() or not getattr(self.server, "ranges", True):
            super().do_GET()
            return
        data = path.read_bytes()
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last), len(data) - 1) if first and last else len(data) - 1
        self.send_response(HTTPStatus.PARTIAL_CONTENT)
        self.send_header("Content-Range", f"bytes {start}-{end}/{len(data)}")
        self.send_header("Content-Length", str(end - start + 1))
        self.end_headers()
        self.wfile.write(data[start : end + 1])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def served(directory: Path, *, ranges: bool = True) -> Iterator[str]:
    """The URL of `directory` while it is served."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(directory)))
    server.ranges = ranges  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def add_wheel(index: Path, name: str, tags: str, requires: tuple[str, ...] = (), **more: object) -> Path:
    """Put NAME-VERSION-TAGS.whl on the index; `files`: its members besides METADATA. `name` is NAME==VERSION."""
    project, _, version = name.partition("==")
    folder = index / project.replace("_", "-")
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{project.replace('-', '_')}-{version}-{tags}.whl"
    lines = ["Metadata-Version: 2.1", f"Name: {project}", f"Version: {version}"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    files = more.get("files")
    assert files is None or isinstance(files, Mapping)
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in (files or {}).items():
            archive.writestr(path, content)
        archive.writestr(f"{project.replace('-', '_')}-{version}.dist-info/METADATA", "\n".join(lines) + "\n")
    links = "".join(f'<a href="{path.name}">{path.name}</a><br>\n' for path in sorted(folder.glob("*.whl")))
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    return wheel


def shared_object(directory: Path, source: str, *options: str) -> bytes:
    """A real shared object, compiled here."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "source.c").write_text(source)
    target = directory / "library.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", str(target), str(directory / "source.c"), *options], check=True)
    return target.read_bytes()
