"""No secret in anything that a build leaves: every byte is looked at, file systems of images and layers included.

The package index demands a password and is reached through a proxy that demands another, so that both are really used,
by debootstrap and apt, uv and pip. Tokens and a netrc are planted beside them.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from sifkit.errors import Exit
from sifkit.sifwrite import partition
from sifkit.squash import Source, listing
from tests.integration import toy

pytestmark = pytest.mark.apptainer

INDEX = "packages.example"  # known to the proxy alone
READER, PROXY_USER = "reader", "traveller"
SECRETS = {
    "index": "index-Pa55word-4711",
    "wrong": "wrong-Pa55word-4712",
    "proxy": "proxy-Pa55word-4713",
    "netrc": "netrc-Pa55word-4714",
    "pip": "pip-Pa55word-4715",
    "uv": "uv-Pa55word-4716",
    "hf": "hf_Pa55wordPa55wordPa55word4717",
    "hub": "hf_Pa55wordPa55wordPa55word4718",
    "wandb": "Pa55wordPa55wordPa55wordPa55word4719",
}


def basic(user: str, password: str) -> str:
    return base64.b64encode(f"{user}:{password}".encode()).decode()


# What must be nowhere: each secret, and the two that travel in headers as they do so.
NOWHERE = {
    **{name: value.encode() for name, value in SECRETS.items()},
    "index, in a header": basic(READER, SECRETS["index"]).encode(),
    "proxy, in a header": basic(PROXY_USER, SECRETS["proxy"]).encode(),
}


# ------------------------------------------------------------------ a proxy, with an index behind it


class Handler(http.server.BaseHTTPRequestHandler):
    """A proxy as http.server makes it easy: absolute addresses and CONNECT, each with a password."""

    protocol_version = "HTTP/1.1"
    directory: Path
    served: list[str]

    def do_GET(self) -> None:
        if not self._allowed("Proxy-Authorization", PROXY_USER, SECRETS["proxy"], 407, "Proxy-Authenticate"):
            return
        parts = urlsplit(self.path)
        if parts.hostname == INDEX:
            self._index(parts.path)
        else:
            self._forward(parts.netloc, parts.path + (f"?{parts.query}" if parts.query else ""))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_CONNECT(self) -> None:
        if not self._allowed("Proxy-Authorization", PROXY_USER, SECRETS["proxy"], 407, "Proxy-Authenticate"):
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while ready := select.select(list(ends), [], [], 60)[0]:
                for end in ready:
                    data = end.recv(1 << 16)
                    if not data:
                        self.close_connection = True
                        return
                    ends[end].sendall(data)

    def _allowed(self, header: str, user: str, password: str, code: int, challenge: str) -> bool:
        if self.headers.get(header) == f"Basic {basic(user, password)}":
            return True
        self._answer(code, b"who are you?", **{challenge: 'Basic realm="here"'})
        return False

    def _index(self, path: str) -> None:
        if not self._allowed("Authorization", READER, SECRETS["index"], 401, "WWW-Authenticate"):
            return
        if path.startswith("/broken/"):
            self._answer(500, b"out of order")
            return
        file = self.directory / path.strip("/").removeprefix("simple/")
        file = file / "index.html" if file.is_dir() else file
        if file.is_file():
            self.served.append(path)
            self._answer(200, file.read_bytes(), **{"Content-Type": "text/html" if file.suffix == ".html" else "x/y"})
        else:
            self._answer(404, b"no such thing")

    def _answer(self, code: int, body: bytes, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _forward(self, host: str, path: str) -> None:
        mine = ("proxy-authorization", "proxy-connection", "connection", "accept-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in mine}
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request(self.command, path, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
            passed_on = ("Content-Type", "Last-Modified", "Location")
            kept = {name: value for name, value in answer.getheaders() if name in passed_on}
            self._answer(answer.status, body, **kept)
        finally:
            connection.close()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@dataclass(frozen=True)
class Proxy:
    url: str
    served: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy that knows the way to an index of the toys."""
    directory = make_index(toy.make_wheelhouse(tmp_path_factory.mktemp("wheels")), tmp_path_factory.mktemp("index"))
    served: list[str] = []
    handler = type("OurHandler", (Handler,), {"directory": directory, "served": served})
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.daemon_threads = True
    web.block_on_close = False
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        yield Proxy(f"http://{PROXY_USER}:{SECRETS['proxy']}@127.0.0.1:{web.server_address[1]}", served)
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def make_index(wheelhouse: Path, index: Path) -> Path:
    """A folder a package (PEP 503), with hashes, which locks need."""
    for wheel in wheelhouse.glob("*.whl"):
        folder = index / wheel.name.split("-")[0].replace("_", "-").lower()
        folder.mkdir(exist_ok=True)
        shutil.copy(wheel, folder)
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        link = f'<a href="{wheel.name}#sha256={digest}">{wheel.name}</a>'
        (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    return index


# ------------------------------------------------------------------ one build, with everything planted


@dataclass(frozen=True)
class Ground:
    """Everything that a build may leave something in lies below `root`."""

    root: Path
    proxy: Proxy

    @property
    def project(self) -> Path:
        return self.root / "project"

    def environ(self, cache: str = "cache") -> dict[str, str]:
        """This process's, with secrets in it, and nothing that leads around the proxy."""
        loud = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return {
            **loud,
            "HOME": str(self.root / "home"),
            "SIFKIT_CACHE": str(self.root / cache),
            "TMPDIR": str(self.root / "tmp"),
            "http_proxy": self.proxy.url,
            "https_proxy": self.proxy.url,
            "HF_TOKEN": SECRETS["hf"],
            "HUGGING_FACE_HUB_TOKEN": SECRETS["hub"],
            "WANDB_API_KEY": SECRETS["wandb"],
            "PIP_INDEX_URL": f"http://{READER}:{SECRETS['pip']}@elsewhere.example/simple/",
            "UV_DEFAULT_INDEX": f"http://{READER}:{SECRETS['uv']}@elsewhere.example/simple/",
        }

    def site(self, path: str, password: str) -> str:
        """A site file whose index is at `path`."""
        file = self.root / "site.yaml"
        file.write_text(f"python_index: {{url: 'http://{READER}:{password}@{INDEX}/{path}/'}}\n")
        return str(file)

    def sifkit(self, *words: str, site: str, cache: str = "cache") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sifkit", *words, "--project", str(self.project), "--site", site, "--verbose"]
        return subprocess.run(argv, env=self.environ(cache), capture_output=True, text=True, check=False)

    def left(self) -> list[Path]:
        """What is there besides what was planted."""
        planted = {self.root / "site.yaml", self.root / "home" / ".netrc"}
        return [path for path in self.root.rglob("*") if path.is_file() and path not in planted]


@pytest.fixture(scope="module")
def ground(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    root = tmp_path_factory.mktemp("ground")
    for name in ("home", "tmp", "project/definitions"):
        (root / name).mkdir(parents=True)
    netrc = root / "home" / ".netrc"
    netrc.write_text(f"machine {INDEX} login {READER} password {SECRETS['netrc']}\n")
    netrc.chmod(0o600)
    (root / "project" / "definitions" / "toy.yaml").write_text(toy.SPEC)
    return Ground(root, proxy)


@dataclass(frozen=True)
class Built:
    ground: Ground
    said: str  # of all commands, verbose


@pytest.fixture(scope="module")
def built(ground: Ground) -> Built:
    """A lock, an image on a base of its own, the definition, and a report, from an empty cache."""
    site = ground.site("simple", SECRETS["index"])
    verify = [
        "build",
        "--verify",
        "toy",
        "--no-check",
        "--device",
        "cpu",
        "--checkout",
        str(make_checkout(ground.root / "checkout")),
    ]
    commands = (["lock"], ["build", "toy"], ["build", "--render", "toy"], verify)
    done = [ground.sifkit(*words, site=site) for words in commands]
    codes = [Exit.OK, Exit.OK, Exit.OK, Exit.PROBLEM]  # a toy cannot train; its report says so
    assert [one.returncode for one in done] == codes, "\n".join(one.stderr[-3000:] for one in done)
    return Built(ground, "".join(one.stdout + one.stderr for one in done))


def make_checkout(root: Path) -> Path:
    """As much of LLaMA-Factory's sources as a verification looks at before it starts containers."""
    config = "stage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: rows\ntemplate: llama3\noutput_dir: saves\n"
    files = {
        "src/llamafactory/extras/env.py": 'VERSION = "0.9.5"\n',
        "data/dataset_info.json": '{"rows": {"file_name": "rows.json"}}',
        "data/rows.json": '[{"instruction": "a", "input": "", "output": "b"}]',
        "examples/train_lora/llama3_lora_sft.yaml": f"model_name_or_path: x\n{config}",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def found_in(data: bytes) -> list[str]:
    return [name for name, secret in NOWHERE.items() if secret in data]


def found_in_files(paths: list[Path]) -> list[tuple[Path, str]]:
    return [(path, name) for path in paths for name in found_in(path.read_bytes())]


def test_the_secrets_were_really_used(built: Built) -> None:
    wheels = {path.rpartition("/")[2].split("-")[0] for path in built.ground.proxy.served if path.endswith(".whl")}
    assert wheels >= {*toy.TOYS, "uv"}
    assert list((built.ground.root / "cache" / "bases").glob("*.sif"))


def test_a_search_finds_what_is_there(built: Built) -> None:
    """The other tests of this file mean nothing unless planted bytes are found."""
    files = {path.name for path in built.ground.left()}
    assert {"toy.sif", "toy.json", "toy.lock", "toy.log", "report.json", "report.html", "static.log"} <= files
    assert found_in((built.ground.root / "home" / ".netrc").read_bytes()) == ["netrc"]
    assert found_in_files([built.ground.root / "site.yaml"]) == [(built.ground.root / "site.yaml", "index")]


def test_nothing_is_said_even_verbosely(built: Built) -> None:
    assert found_in(built.said.encode()) == []


def test_no_file_that_is_left_holds_a_secret(built: Built) -> None:
    assert found_in_files(built.ground.left()) == []


def test_no_file_within_an_image_a_base_or_a_layer_holds_a_secret(built: Built, tmp_path: Path) -> None:
    systems = [path for path in built.ground.left() if path.suffix in (".sif", ".sqfs")]
    assert {"toy.sif"} < {path.name for path in systems}
    for number, path in enumerate(systems):
        source = partition(path) if path.suffix == ".sif" else Source(path)
        there = listing(source)
        target = tmp_path / str(number)
        unsquash(path, source.offset, target)
        inside = [file for file in target.rglob("*") if file.is_file() and not file.is_symlink()]
        assert len(inside) == sum(entry.kind == "file" for entry in there.values()) > 0, path
        assert found_in_files(inside) == [], path
        assert found_in("\n".join(f"{name} {entry.link}" for name, entry in there.items()).encode()) == [], path
        shutil.rmtree(target)


def unsquash(path: Path, offset: int, target: Path) -> None:
    """Devices need rights that not everybody has; they hold nothing."""
    argv = ["unsquashfs", "-no-xattrs", "-ignore-errors", "-quiet", "-no-progress", "-offset", str(offset)]
    subprocess.run([*argv, "-dest", str(target), str(path)], check=False, capture_output=True)


# ------------------------------------------------------------------ when it goes wrong

Refused = Callable[[str, str], tuple[subprocess.CompletedProcess[str], Path]]


@pytest.fixture
def refused(built: Built) -> Iterator[Refused]:
    """A command on a cache that holds the base and no packages; what it left is looked at, too."""
    ground = built.ground
    cache = ground.root / "other-cache"

    def run(command: str, site: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        cache.mkdir()
        (cache / "bases").symlink_to(ground.root / "cache" / "bases")
        words = ["build", "--force", "toy"] if command == "build" else ["lock", "--upgrade", "toy"]
        return ground.sifkit(*words, site=site, cache=cache.name), ground.project / "build" / "toy.log"

    yield run
    shutil.rmtree(cache)


@pytest.mark.parametrize(
    ("command", "path", "password", "named"),
    [
        ("lock", "simple", "wrong", "401 Unauthorized"),
        ("lock", "broken", "index", "500 Internal Server Error"),
        ("build", "simple", "wrong", "the package index refuses user and password"),
        ("build", "broken", "index", "No matching distribution found"),  # all that a quiet pip tells
    ],
)
def test_an_index_that_refuses_is_said_to_and_its_password_is_not(
    built: Built, refused: Refused, command: str, path: str, password: str, named: str
) -> None:
    done, log = refused(command, built.ground.site(path, SECRETS[password]))
    said = done.stdout + done.stderr
    assert done.returncode == Exit.PROGRAM, said[-3000:]
    assert named in said
    assert found_in(said.encode()) == []
    assert log.stat().st_size > 0
    assert found_in_files(built.ground.left()) == []
