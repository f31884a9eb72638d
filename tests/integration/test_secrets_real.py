"""No secret in anything that a build leaves: every byte is looked at, file systems of images and layers included.

The package index and the Debian mirror have certificates of a private CA and demand a password each, and are reached
through a proxy that demands another, so that all are really used, by debootstrap and apt, uv and pip. Tokens and a
netrc are planted beside them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sifkit.errors import Exit
from sifkit.sifwrite import partition
from sifkit.site import apt_mirrors
from sifkit.squash import Source, listing
from tests.integration import mirror_servers, toy
from tests.integration.mirror_servers import Authority, Proxy, Served, basic

pytestmark = pytest.mark.apptainer

INDEX, DEBIAN = "packages.example", "debian.example"  # known to the proxy alone
READER, DEBIAN_USER, PROXY_USER = "reader", "builder", "traveller"
SECRETS = {
    "index": "index-Pa55word-4711",
    "wrong": "wrong-Pa55word-4712",
    "proxy": "proxy-Pa55word-4713",
    "debian": "debian-Pa55word-4720",
    "netrc": "netrc-Pa55word-4714",
    "pip": "pip-Pa55word-4715",
    "uv": "uv-Pa55word-4716",
    "hf": "hf_Pa55wordPa55wordPa55word4717",
    "hub": "hf_Pa55wordPa55wordPa55word4718",
    "wandb": "Pa55wordPa55wordPa55wordPa55word4719",
}


# What must be nowhere: each secret, and the three that travel in headers as they do so.
NOWHERE = {
    **{name: value.encode() for name, value in SECRETS.items()},
    "index, in a header": basic(READER, SECRETS["index"]).encode(),
    "debian, in a header": basic(DEBIAN_USER, SECRETS["debian"]).encode(),
    "proxy, in a header": basic(PROXY_USER, SECRETS["proxy"]).encode(),
}


# ------------------------------------------------------------------ the site's mirrors


@dataclass(frozen=True)
class Mirrors:
    """Of which each shows that it was used."""

    authority: Authority
    index: Served
    debian: Served
    proxy: Proxy


@pytest.fixture(scope="module")
def mirrors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirrors]:
    """An index of the toys, and what the host's own Debian mirror has."""
    wheelhouse = toy.make_wheelhouse(tmp_path_factory.mktemp("wheels"))
    index = mirror_servers.make_index(wheelhouse, tmp_path_factory.mktemp("index"))
    authority = mirror_servers.make_authority(tmp_path_factory.mktemp("ca"), INDEX, DEBIAN)
    upstream = next(iter(apt_mirrors().values()), "http://deb.debian.org/debian")
    files, packages = mirror_servers.files, tmp_path_factory.mktemp("debian")
    with ExitStack() as open_:
        of_index = open_.enter_context(files(index, READER, SECRETS["index"], authority=authority))
        of_debian = open_.enter_context(
            files(packages, DEBIAN_USER, SECRETS["debian"], authority=authority, upstream=upstream)
        )
        places = {INDEX: of_index.port, DEBIAN: of_debian.port}
        proxy = open_.enter_context(mirror_servers.proxy(PROXY_USER, SECRETS["proxy"], places))
        yield Mirrors(authority, of_index, of_debian, proxy)


# ------------------------------------------------------------------ one build, with everything planted


@dataclass(frozen=True)
class Ground:
    """Everything that a build may leave something in lies below `root`."""

    root: Path
    mirrors: Mirrors

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
            "http_proxy": self.mirrors.proxy.url,
            "HTTPS_PROXY": self.mirrors.proxy.url,
            "HF_TOKEN": SECRETS["hf"],
            "HUGGING_FACE_HUB_TOKEN": SECRETS["hub"],
            "WANDB_API_KEY": SECRETS["wandb"],
            "PIP_INDEX_URL": f"http://{READER}:{SECRETS['pip']}@elsewhere.example/simple/",
            "UV_DEFAULT_INDEX": f"http://{READER}:{SECRETS['uv']}@elsewhere.example/simple/",
        }

    def site(self, path: str, password: str) -> str:
        """A site file whose index is at `path`."""
        file, auth = self.root / "site.yaml", self.root / "auth.conf"
        auth.write_text(f"machine {DEBIAN}/debian login {DEBIAN_USER} password {SECRETS['debian']}\n")
        file.write_text(
            f"bases: {{debian-trixie: {{bootstrap: debootstrap, suite: trixie, mirror: 'https://{DEBIAN}/debian'}}}}\n"
            f"debian: {{auth: '{auth}'}}\n"
            f"python_index:\n  url: 'https://{READER}:{password}@{INDEX}/{path}/'\n"
            f"  ca_bundle: '{self.mirrors.authority.ca}'\n"
        )
        return str(file)

    def sifkit(self, *words: str, site: str, cache: str = "cache") -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "sifkit", *words, "--project", str(self.project), "--site", site, "--verbose"]
        return subprocess.run(argv, env=self.environ(cache), capture_output=True, text=True, check=False)

    def left(self) -> list[Path]:
        """What is there besides what was planted."""
        planted = {self.root / "site.yaml", self.root / "auth.conf", self.root / "home" / ".netrc"}
        return [path for path in self.root.rglob("*") if path.is_file() and path not in planted]


@pytest.fixture(scope="module")
def ground(mirrors: Mirrors, tmp_path_factory: pytest.TempPathFactory) -> Ground:
    root = tmp_path_factory.mktemp("ground")
    for name in ("home", "tmp", "project/definitions"):
        (root / name).mkdir(parents=True)
    netrc = root / "home" / ".netrc"
    netrc.write_text(f"machine {INDEX} login {READER} password {SECRETS['netrc']}\n")
    netrc.chmod(0o600)
    (root / "project" / "definitions" / "toy.yaml").write_text(toy.SPEC)
    return Ground(root, mirrors)


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
    mirrors = built.ground.mirrors
    wheels = {path.rpartition("/")[2].split("-")[0] for path in mirrors.index.paths if path.endswith(".whl")}
    assert wheels >= {*toy.TOYS, "uv"}
    packages = {path.rpartition("/")[2].split("_")[0] for path in mirrors.debian.paths if path.endswith(".deb")}
    assert packages >= {"dash", "python3-venv"}  # by debootstrap, and by apt in the container
    assert set(mirrors.proxy.passed) == {f"CONNECT {INDEX}:443", f"CONNECT {DEBIAN}:443"}


def test_the_image_says_which_mirror_it_has_and_not_how_it_is_reached(built: Built, tmp_path: Path) -> None:
    """Neither a login nor a certificate: nothing of what was lent."""
    found = partition(built.ground.project / "images" / "toy.sif")
    there = listing(found)
    unsquash(found.path, found.offset, tmp_path / "tree")
    sources = [(tmp_path / "tree" / name[1:]).read_text() for name in there if name == "/etc/apt/sources.list"]
    assert sources == [f"deb https://{DEBIAN}/debian trixie main\n"]
    lent = ("auth.conf", "ca-bundle.crt", "apt.conf", "site.sh", "wgetrc", "registry.crt")
    own = (name for name in there if not name.startswith("/usr/share/doc/"))
    assert [name for name in own if name.rpartition("/")[2] in lent] == []
    line = built.ground.mirrors.authority.ca.read_text().splitlines()[1].encode()
    holders = [path for path in (tmp_path / "tree").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path for path in holders if line in path.read_bytes()] == []


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
