"""Images pushed to and pulled from real registries, beside Apptainer's own push and pull; transfers that break."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sifkit import cli
from sifkit.errors import Exit, HostError, ProblemFound, SifkitError, UsageError
from sifkit.hashes import sha256_of
from sifkit.model import Site, SiteSignatures
from sifkit.plan import Recipe, reasons_to_build
from sifkit.progress import PlainProgress
from sifkit.reference import Reference
from sifkit.registry import Client, Lost, Settings
from sifkit.run import Runner
from sifkit.share import upload
from sifkit.share.artifact import SBOM_FILE, Companion, Kind, image_manifest
from sifkit.share.pull import Pulled, ask, pull
from sifkit.share.push import Pushed, push, send_companions
from sifkit.share.referrers import referrers
from sifkit.sif import GENERIC_JSON
from sifkit.sifwrite import NewObject, write_sif
from sifkit.spec import Project
from sifkit.squash import Source
from sifkit.store import Manifest
from sifkit.tools import Tools
from tests.docker.registry_server import (
    HTPASSWD,
    PASSWORD,
    USER,
    Registry,
    free_port,
    make_certificates,
    serve,
    token_service,
)

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "tools" / "data" / "tiny.sqfs"
NAME = "example"
BILL = '{"bomFormat": "CycloneDX"}'
ENVIRON = {"HOME": "/nowhere", "PATH": os.environ["PATH"]}
LOGIN = {**ENVIRON, "APPTAINER_DOCKER_USERNAME": USER, "APPTAINER_DOCKER_PASSWORD": PASSWORD}


@dataclass(frozen=True)
class Here:
    """A project, and what it does with registries."""

    tools: Tools
    settings: Settings
    waited: list[float]

    def push(self, target: str, word: str = NAME) -> Pushed:
        return push(word, Reference.parse(target), self.tools, self.settings)

    def pull(self, source: str, output: Path | None = None, *, force: bool = False) -> Pulled:
        return pull(Reference.parse(source), output, self.tools, self.settings, force=force)

    def files(self) -> list[str]:
        """What is in images/, but locks."""
        found = self.tools.project.images.iterdir() if self.tools.project.images.is_dir() else ()
        return sorted(path.name for path in found if path.suffix != ".lock")


def make_project(root: Path, environ: Mapping[str, str] = ENVIRON, policy: SiteSignatures | None = None) -> Here:
    (root / "definitions").mkdir(parents=True)
    environ = {**environ, "SIFKIT_CACHE": str(root / "cache")}
    site = Site(signatures=policy or SiteSignatures())
    progress = PlainProgress(Console(stderr=True))
    waited: list[float] = []
    tools = Tools(Project(root), site, Runner(os.environ), progress, environ)
    return Here(tools, Settings(environ, sleep=waited.append), waited)


def write_image(path: Path, payload: int = 0) -> None:
    """A SIF with a bill of materials; `payload`: bytes of an object of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = NewObject(GENERIC_JSON, "noise", os.urandom(payload))
    write_sif(path, [Source(TINY)], [NewObject(GENERIC_JSON, SBOM_FILE, BILL.encode()), noise], time=1_600_000_000)


def built(here: Here, payload: int = 0) -> Path:
    """An image as a build leaves it, and the report of its verification."""
    path = here.tools.store.sif(NAME)
    write_image(path, payload)
    publish_manifest(here, path)
    report = here.tools.project.reports / NAME
    report.mkdir(parents=True, exist_ok=True)
    told = {"sha256": sha256_of(path), "started": "2026-01-02T03:04:05+00:00"}
    (report / "report.json").write_text(json.dumps(told))
    (report / "report.html").write_text("<html></html>")
    return path


def publish_manifest(here: Here, path: Path) -> None:
    status, recipe = path.stat(), Recipe("s", "l", "b", "d")
    times = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "built": "2026-01-01T00:00:00+00:00"}
    values = {"recipe": recipe, "base": "debian-trixie", "versions": {"sifkit": "1"}, "seconds": {"join": 1.0}}
    manifest = Manifest(name=path.stem, sha256=sha256_of(path), **times, **values)  # type: ignore[arg-type]
    here.tools.store.manifest_path(path.stem).write_text(manifest.to_json())


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    subprocess.run(("bash", str(ROOT / "ci/docker/install.sh")), check=True)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, installed: None) -> Iterator[Registry]:
    with serve(tmp_path_factory.mktemp("registry")) as found:
        yield found


@pytest.fixture
def ours(tmp_path: Path) -> Here:
    return make_project(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Here:
    return make_project(tmp_path / "theirs")


# ---------------------------------------------------------------------------------------------- there and back


def test_what_is_pulled_is_what_was_pushed_with_all_that_belongs_to_it(
    registry: Registry, ours: Here, theirs: Here
) -> None:
    image = built(ours)
    pushed = ours.push(f"{registry.host}/team/whole:1")
    assert [one.kind.value for one in pushed.parcel.companions] == ["manifest", "sbom", "report"]
    pulled = theirs.pull(f"{registry.host}/team/whole:1")
    store = theirs.tools.store
    assert pulled.fetched
    assert store.sif(NAME).read_bytes() == image.read_bytes()
    assert theirs.files() == [f"{NAME}.json", f"{NAME}.sif"]
    manifest, sent = store.manifest(NAME), ours.tools.store.manifest(NAME)
    assert manifest
    assert sent
    assert reasons_to_build(sent.recipe, manifest.as_built(), store.on_disk(NAME)) == ()
    assert replace(manifest, mtime_ns=0) == replace(sent, mtime_ns=0)
    beside = theirs.tools.project.reports / NAME / "pulled"
    assert sorted(path.name for path in beside.iterdir()) == ["manifest.json", "report.html", "report.json", SBOM_FILE]
    assert (beside / SBOM_FILE).read_text() == BILL
    assert not theirs.pull(f"{registry.host}/team/whole:1").fetched


def test_what_is_there_is_not_sent_again(registry: Registry, ours: Here, tmp_path: Path) -> None:
    image = built(ours)
    first = ours.push(f"{registry.host}/again:1")
    second = ours.push(f"{registry.host}/again:2")
    assert (first.sent, second.sent) == (True, False)
    assert first.digest == second.digest
    with Client(registry.host, ours.settings) as client:
        rows = referrers(client, Reference.parse(f"{registry.host}/again@{first.digest}"))
    assert len(rows) == 3
    (ours.tools.project.reports / NAME / "report.json").write_text(
        json.dumps({"sha256": sha256_of(image), "started": "2026-02-02T00:00:00+00:00"})
    )
    ours.push(f"{registry.host}/again:1")
    beside = ours.pull(f"{registry.host}/again:1", tmp_path / "x.sif").beside
    assert beside == tmp_path / "x.pulled"
    assert "2026-02-02" in (beside / "report.json").read_text()


def test_a_report_of_another_image_stays_at_home(registry: Registry, ours: Here) -> None:
    built(ours)
    (ours.tools.project.reports / NAME / "report.json").write_text('{"sha256": "other", "started": ""}')
    pushed = ours.push(f"{registry.host}/unverified:1")
    assert [one.kind.value for one in pushed.parcel.companions] == ["manifest", "sbom"]


@pytest.mark.apptainer
def test_apptainer_and_sifkit_read_each_other(registry: Registry, ours: Here, theirs: Here, tmp_path: Path) -> None:
    image = built(ours)
    target = f"oras://{registry.host}/both"
    environ = {**os.environ, "APPTAINER_CACHEDIR": str(tmp_path / "cache")}

    def apptainer(*words: str) -> None:
        subprocess.run(("apptainer", *words), env=environ, cwd=tmp_path, check=True, capture_output=True)

    ours.push(f"{target}:ours")
    apptainer("pull", "--no-https", "theirs.sif", f"{target}:ours")
    assert (tmp_path / "theirs.sif").read_bytes() == image.read_bytes()
    write_image(tmp_path / "plain.sif", 1000)
    apptainer("push", "--no-https", "--allow-unsigned", "plain.sif", f"{target}:plain")
    pulled = theirs.pull(f"{target}:plain", tmp_path / "back.sif")
    assert pulled.beside is None
    assert (tmp_path / "back.sif").read_bytes() == (tmp_path / "plain.sif").read_bytes()
    with pytest.raises(UsageError, match="comes without a manifest of sifkit's"):
        theirs.pull(f"{target}:plain")
    apptainer("push", "--no-https", "--allow-unsigned", str(image), f"{target}:same")
    with Client(registry.host, ours.settings) as client:  # the same file, the same artifact
        assert len({ask(client, Reference.parse(f"{target}:{tag}")).layer.digest for tag in ("ours", "same")}) == 1
        assert (
            ask(client, Reference.parse(f"{target}:same")).digest
            == ask(client, Reference.parse(f"{target}:ours")).digest
        )


def test_the_commands_speak_of_it(
    registry: Registry, ours: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built(ours)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SIFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SIFKIT_SITE", raising=False)
    monkeypatch.chdir(ours.tools.project.root)
    target = f"oras://{registry.host}/cli:1"
    assert cli.main(["push", NAME, target, "--json"]) == Exit.OK
    told = json.loads(capsys.readouterr().out)
    assert (told["sent"], told["with"]) == (True, ["manifest", "sbom", "report"])
    assert cli.main(["pull", target, "-o", str(tmp_path / "x.sif"), "--json"]) == Exit.OK
    assert json.loads(capsys.readouterr().out)["sha256"] == told["sha256"]
    assert cli.main(["pull", f"{target}0"]) == Exit.USAGE
    assert "take a tag that is there: 1" in capsys.readouterr().err
    assert cli.main(["push", NAME, target.removeprefix("oras://")]) == Exit.USAGE
    monkeypatch.chdir(tmp_path)  # no project: files only
    assert cli.main(["push", "x.sif", f"{target}-file"]) == Exit.OK
    assert cli.main(["pull", f"{target}-file", "-o", "y.sif"]) == Exit.OK
    assert (tmp_path / "y.sif").read_bytes() == (tmp_path / "x.sif").read_bytes()
    assert cli.main(["pull", target]) == Exit.USAGE


# ---------------------------------------------------------------------------------------------- who may


def test_passwords_and_rights(tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    auth = {"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    ours = make_project(tmp_path / "ours", LOGIN)
    built(ours)
    stranger = make_project(tmp_path / "stranger")
    wrong = make_project(tmp_path / "wrong", {**LOGIN, "APPTAINER_DOCKER_PASSWORD": "old"})
    built(wrong)
    with serve(tmp_path / "registry", auth=auth) as guarded:
        ours.push(f"{guarded.host}/a:1")
        assert ours.pull(f"{guarded.host}/a:1", tmp_path / "x.sif").fetched
        with pytest.raises(HostError, match="asks for credentials for a, or has no such repository"):
            stranger.pull(f"{guarded.host}/a:1")
        with pytest.raises(HostError, match="refuses a to the user of APPTAINER_DOCKER_USERNAME") as caught:
            wrong.push(f"{guarded.host}/a:1")
        assert "the account may write to it" in str(caught.value.fix)


def test_tokens_for_pushing(tmp_path: Path) -> None:
    ours = make_project(tmp_path / "ours", LOGIN)
    image = built(ours)
    with token_service(tmp_path / "tokens") as token, serve(tmp_path / "registry", auth={"token": token}) as guarded:
        ours.push(f"{guarded.host}/a:1")
        ours.pull(f"{guarded.host}/a:1", tmp_path / "x.sif")
    assert (tmp_path / "x.sif").read_bytes() == image.read_bytes()


def test_a_registry_that_is_read_only_says_so(tmp_path: Path, ours: Here) -> None:
    built(ours)
    data = {"filesystem": {"rootdirectory": str(tmp_path / "data")}, "maintenance": {"readonly": {"enabled": True}}}
    with (
        serve(tmp_path / "registry", storage=data) as closed,
        pytest.raises(HostError, match="takes no pushes to a: HTTP 405: it is read-only"),
    ):
        ours.push(f"{closed.host}/a:1")


def test_a_private_ca(tmp_path: Path, ours: Here) -> None:
    certificates = make_certificates(tmp_path / "ca")
    image = built(ours)
    tls = {"certificate": str(certificates.certificate), "key": str(certificates.key)}
    trusting = replace(ours, settings=replace(ours.settings, ca_bundle=certificates.ca))
    with serve(tmp_path / "registry", tls=tls) as private:
        with pytest.raises(HostError, match="is not trusted"):
            ours.push(f"{private.host}/a:1")
        trusting.push(f"{private.host}/a:1")
        trusting.pull(f"{private.host}/a:1", tmp_path / "x.sif")
    assert (tmp_path / "x.sif").read_bytes() == image.read_bytes()


# ---------------------------------------------------------------------------------------------- connections that break


LARGE = 60_000  # less than a piece of a download
MEGA = 1 << 20
Limits = list[int | None]


@dataclass
class Relay:
    """Stands before a registry, and cuts its n-th large transfer after so many bytes; what is small passes.

    None, and all after the last: lets it through. `came`: bytes that came down.
    """

    registry: Registry
    down: Limits
    up: Limits
    came: int = 0

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.registry.port))
                self._ends += [near, far]
                ways = ((near, far, self.up), (far, near, self.down))
                self._threads += [threading.Thread(target=self._pump, args=way) for way in ways]
                for thread in self._threads[-2:]:
                    thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, limits: Limits) -> None:
        with suppress(OSError):
            self._copy(source, sink, limits)
        shut(source, sink)

    def _copy(self, source: socket.socket, sink: socket.socket, limits: Limits) -> None:
        seen, limit, large = 0, None, False
        while data := source.recv(1 << 16):
            seen += len(data)
            self.came += len(data) if limits is self.down else 0
            if seen > LARGE and not large:
                large, limit = True, limits.pop(0) if limits else None
            if limit is not None and seen > limit:
                return
            sink.sendall(data)

    def close(self) -> None:
        shut(self._listener, *self._ends)  # a client may keep its connections for later
        for thread in self._threads:
            thread.join(20)
        for end in (self._listener, *self._ends):
            end.close()


def shut(*ends: socket.socket) -> None:
    for end in ends:
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relay(registry: Registry, *, down: Limits | None = None, up: Limits | None = None) -> Iterator[Relay]:
    found = Relay(registry, down if down is not None else [], up if up is not None else [])
    try:
        yield found
    finally:
        found.close()


def test_a_pull_that_is_cut_goes_on(registry: Registry, ours: Here, theirs: Here) -> None:
    image = built(ours, 8 * MEGA)
    ours.push(f"{registry.host}/cut:1")
    with relay(registry, down=[3 * MEGA, 2 * MEGA]) as between:
        theirs.pull(f"{between.host}/cut:1")
    assert theirs.tools.store.sif(NAME).read_bytes() == image.read_bytes()
    assert theirs.files() == [f"{NAME}.json", f"{NAME}.sif"]
    assert len(theirs.waited) == 2
    assert between.came < 9 * MEGA  # less than from the beginning each time


def test_a_pull_whose_registry_dies_is_taken_up_by_the_next(tmp_path: Path, ours: Here, theirs: Here) -> None:
    image = built(ours, 4 * MEGA)
    with serve(tmp_path / "registry") as registry:
        ours.push(f"{registry.host}/dies:1")
        with relay(registry, down=[2 * MEGA, *[LARGE + 1] * 50]) as between:
            with pytest.raises(Lost, match=r"[0-9.]+ MB of 4\.[0-9] MB are kept in .*\.example\.sif\.") as caught:
                theirs.pull(f"{between.host}/dies:1")
            assert "pull again: it goes on there" in str(caught.value.fix)
        [kept] = theirs.files()
        assert kept.endswith(".download")
        had = (theirs.tools.project.images / kept).stat().st_size
        assert had > MEGA
        with relay(registry) as between:
            theirs.pull(f"{between.host}/dies:1")
        assert between.came < image.stat().st_size - had + MEGA // 2
    assert theirs.tools.store.sif(NAME).read_bytes() == image.read_bytes()


def test_a_pull_that_is_killed_leaves_no_image_and_the_next_goes_on(
    registry: Registry, ours: Here, theirs: Here, tmp_path: Path
) -> None:
    image = built(ours, 4 * MEGA)
    ours.push(f"{registry.host}/killed:1")
    project = theirs.tools.project
    with relay(registry, down=[3 * MEGA, *[LARGE + 1] * 50]) as between:
        words = ("-m", "sifkit", "pull", f"oras://{between.host}/killed:1", "--project", str(project.root))
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        with subprocess.Popen((sys.executable, *words), env=environ, cwd=tmp_path, stderr=subprocess.PIPE) as process:
            assert process.stderr
            for line in process.stderr:
                if b"trying again in 2 s" in line:
                    break
            process.kill()
    [kept] = theirs.files()
    assert kept.endswith(".download")
    had = (project.images / kept).stat().st_size
    assert 2 * MEGA < had < 3 * MEGA
    with relay(registry) as between:
        theirs.pull(f"{between.host}/killed:1")
    assert between.came < image.stat().st_size - had + MEGA // 2
    assert theirs.tools.store.sif(NAME).read_bytes() == image.read_bytes()
    assert theirs.files() == [f"{NAME}.json", f"{NAME}.sif"]


def test_bytes_of_an_earlier_pull_that_are_damaged_are_fetched_again(
    registry: Registry, ours: Here, tmp_path: Path
) -> None:
    image = built(ours, MEGA)
    pushed = ours.push(f"{registry.host}/damaged:1")
    coming = tmp_path / f".x.sif.{pushed.parcel.sha256[:16]}.download"
    coming.write_bytes(b"x" * 500_000)
    (tmp_path / ".x.sif.0123456789abcdef.download").write_bytes(b"of another image")
    ours.pull(f"{registry.host}/damaged:1", tmp_path / "x.sif")
    assert (tmp_path / "x.sif").read_bytes() == image.read_bytes()
    assert not list(tmp_path.glob(".*.download"))


@pytest.mark.parametrize("cut_at", [2 * MEGA, int(2.5 * MEGA)])
def test_a_push_that_is_cut_is_taken_up_again(
    registry: Registry, ours: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut_at: int
) -> None:
    monkeypatch.setattr(upload, "PIECE", MEGA)
    image = built(ours, 5 * MEGA)
    with relay(registry, up=[cut_at]) as between:
        ours.push(f"{between.host}/cut{cut_at}:1")
    assert len(ours.waited) == 1
    ours.pull(f"{registry.host}/cut{cut_at}:1", tmp_path / "x.sif")
    assert (tmp_path / "x.sif").read_bytes() == image.read_bytes()
    assert not list((ours.tools.cache / "uploads").glob("*.json"))


def test_a_push_goes_on_in_a_later_run(
    registry: Registry, ours: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(upload, "PIECE", MEGA)
    built(ours, 5 * MEGA)
    sent: list[int] = []
    real = upload._patch

    def stopping(client: Client, repository: str, session: Any, data: bytes) -> Any:
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(session.offset)
        return real(client, repository, session, data)

    monkeypatch.setattr(upload, "_patch", stopping)
    with pytest.raises(KeyboardInterrupt):
        ours.push(f"{registry.host}/later:1")
    [memory] = (ours.tools.cache / "uploads").glob("*.json")
    assert memory.stat().st_mode & 0o077 == 0

    def counting(client: Client, repository: str, session: Any, data: bytes) -> Any:
        sent.append(session.offset)
        return real(client, repository, session, data)

    monkeypatch.setattr(upload, "_patch", counting)
    ours.push(f"{registry.host}/later:1")
    assert sent == [0, MEGA, 2 * MEGA, 3 * MEGA, 4 * MEGA, 5 * MEGA]
    assert ours.pull(f"{registry.host}/later:1", tmp_path / "x.sif").fetched


def test_a_registry_that_is_down_is_said(ours: Here) -> None:
    built(ours)
    with pytest.raises(HostError, match="cannot be reached"):
        ours.push(f"127.0.0.1:{free_port()}/a:1")


# ---------------------------------------------------------------------------------------------- at the same time


def at_once(*tasks: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result() for future in [pool.submit(task) for task in tasks]]


def test_two_pulls_at_once_fetch_once(registry: Registry, ours: Here, theirs: Here, tmp_path: Path) -> None:
    built(ours, 4 * MEGA)
    ours.push(f"{registry.host}/twice:1")
    with relay(registry) as between:
        source = f"{between.host}/twice:1"
        into_store = at_once(lambda: theirs.pull(source), lambda: theirs.pull(source))
        target = tmp_path / "x.sif"
        into_file = at_once(lambda: theirs.pull(source, target), lambda: theirs.pull(source, target))
    assert sorted(one.fetched for one in into_store) == [False, True]
    assert sorted(one.fetched for one in into_file) == [False, True]
    assert between.came < 9 * MEGA


def test_two_pushes_at_once_send_once_and_lose_nothing(registry: Registry, ours: Here) -> None:
    built(ours, MEGA)
    done = at_once(*[lambda n=n: ours.push(f"{registry.host}/both:{n}") for n in (1, 2)])
    assert sorted(one.sent for one in done) == [False, True]
    with Client(registry.host, ours.settings) as client:
        assert len(referrers(client, Reference.parse(f"{registry.host}/both@{done[0].digest}"))) == 3


# ---------------------------------------------------------------------------------------------- what is refused


def test_a_tampered_blob_is_refused_and_nothing_is_kept(tmp_path: Path, ours: Here, theirs: Here) -> None:
    image = built(ours, MEGA)
    with serve(tmp_path / "registry") as registry:
        ours.push(f"{registry.host}/a:1")
        sha256 = sha256_of(image)
        [blob] = (tmp_path / "registry/data").rglob(f"{sha256}/data")
        data = bytearray(blob.read_bytes())
        data[-1000] ^= 1
        blob.write_bytes(data)
        with pytest.raises(ProblemFound, match="what the registry sent is damaged: sha256:"):
            theirs.pull(f"{registry.host}/a:1")
        assert theirs.files() == []


def test_names_that_are_not_there_or_no_image(registry: Registry, ours: Here) -> None:
    built(ours)
    ours.push(f"{registry.host}/kinds:1")
    with pytest.raises(UsageError, match=r"has no .*/kinds:2") as caught:
        ours.pull(f"{registry.host}/kinds:2")
    assert caught.value.fix == "take a tag that is there: 1"
    with pytest.raises(UsageError, match=r"has no .*/none:1") as caught:
        ours.pull(f"{registry.host}/none:1")
    assert "push it first" in str(caught.value.fix)
    registry.push("kinds", "docker", {"etc/x": b""})
    with pytest.raises(UsageError, match=r"is a container image for Docker, not a \.sif") as caught:
        ours.pull(f"{registry.host}/kinds:docker")
    assert "apptainer pull docker://" in str(caught.value.fix)
    registry.push_index("kinds", "index", ["amd64"])
    with pytest.raises(UsageError, match="is a container image for Docker"):
        ours.pull(f"{registry.host}/kinds:index")


def test_another_image_is_not_replaced_unasked(registry: Registry, ours: Here, theirs: Here) -> None:
    built(ours)
    built(theirs, 1000)
    before = theirs.tools.store.sif(NAME).read_bytes()
    ours.push(f"{registry.host}/other:1")
    with pytest.raises(UsageError, match=r"example\.sif is another image than"):
        theirs.pull(f"{registry.host}/other:1")
    assert theirs.tools.store.sif(NAME).read_bytes() == before
    assert theirs.pull(f"{registry.host}/other:1", force=True).fetched
    assert theirs.tools.store.sif(NAME).read_bytes() == ours.tools.store.sif(NAME).read_bytes()


def test_a_file_that_is_not_what_was_built_is_not_pushed(registry: Registry, ours: Here) -> None:
    path = built(ours)
    path.write_bytes(path.read_bytes() + b"changed")
    with pytest.raises(ProblemFound, match="is not the image that was built: its sha256 differs"):
        ours.push(f"{registry.host}/changed:1")
    path.write_bytes(path.read_bytes()[:4000])
    with pytest.raises(UsageError, match="is no image: it is cut off"):
        ours.push(f"{registry.host}/changed:1")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Companion(Kind.SBOM, {SBOM_FILE: b"{}"}, "2027"), r"not of this image \(sbom\.cdx\.json\)"),
        (
            Companion(Kind.MANIFEST, {"manifest.json": b"MANIFEST"}, "2027"),
            "manifest.json that refers to it is of anot",
        ),
    ],
)
def test_what_others_attached_to_an_image_is_held_against_it(
    registry: Registry, ours: Here, theirs: Here, other: Companion, message: str
) -> None:
    built(ours)
    place = f"{registry.host}/attached-{other.kind.value}"
    pushed = ours.push(f"{place}:1")
    manifest = ours.tools.store.manifest(NAME)
    assert manifest
    lying = replace(manifest, sha256="0" * 64).to_json().encode()
    files = {name: lying if data == b"MANIFEST" else data for name, data in other.files.items()}
    parcel = replace(pushed.parcel, companions=(replace(other, files=files),))
    subject = image_manifest(f"sha256:{parcel.sha256}", parcel.size, parcel.title)
    with Client(registry.host, ours.settings) as client:
        send_companions(client, Reference.parse(f"{place}@{subject.digest}"), subject, parcel, print)
    with pytest.raises(ProblemFound, match=message):
        theirs.pull(f"{place}:1")
    assert theirs.files() == []


@pytest.mark.apptainer
def test_signatures_are_checked_before_the_image_gets_its_name(
    registry: Registry, ours: Here, theirs: Here, tmp_path: Path
) -> None:
    image = built(ours)
    ours.push(f"{registry.host}/signed:no")
    strict = replace(theirs, tools=replace(theirs.tools, site=Site(signatures=SiteSignatures(required=True))))
    with pytest.raises(ProblemFound, match=r"signed:no is not signed, and the site file asks .*; it is not kept"):
        strict.pull(f"{registry.host}/signed:no")
    assert theirs.files() == []
    assert not (theirs.tools.project.reports / NAME / "pulled").exists()
    keys = tmp_path / "keys"
    keys.mkdir(mode=0o700)
    environ = {**os.environ, "APPTAINER_KEYSDIR": str(keys)}
    words = ("key", "newpair", "-N", "test", "-E", "test@example.org", "-C", "", "-P", "", "-U=false", "-b", "2048")
    for argv in (words, ("sign", str(image))):
        subprocess.run(("apptainer", *argv), env=environ, check=True, capture_output=True)
    publish_manifest(ours, image)
    ours.push(f"{registry.host}/signed:yes")
    with pytest.raises(ProblemFound, match=r"not a key that the site file lets sign|public key is not in the keyring"):
        strict.pull(f"{registry.host}/signed:yes")
    knowing = replace(strict, tools=replace(strict.tools, environ={**ENVIRON, "APPTAINER_KEYSDIR": str(keys)}))
    assert knowing.pull(f"{registry.host}/signed:yes").fetched
    data = bytearray(image.read_bytes())
    data[data.index(BILL.encode())] ^= 1
    image.write_bytes(data)
    publish_manifest(ours, image)
    ours.push(f"{registry.host}/signed:changed")
    shutil.rmtree(theirs.tools.project.images)
    with pytest.raises(SifkitError, match=r"signed:changed is signed by .* but it was changed since then"):
        replace(theirs, tools=knowing.tools).pull(f"{registry.host}/signed:changed")
    assert theirs.files() == []
