"""Images in registries: what is written and read there, and answers that a real registry cannot be made to give."""

from __future__ import annotations

import errno
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, urlsplit

import pytest

from sifkit.commands.push import reference_of
from sifkit.errors import HostError, ProblemFound, UsageError
from sifkit.meter import Meter, size_text
from sifkit.reference import Reference
from sifkit.registry import INDEXES, MANIFESTS, Client, Lost, Manifest, Settings, sha256_digest
from sifkit.share import download, upload
from sifkit.share.artifact import (
    SIF_LAYER,
    Companion,
    Descriptor,
    Kind,
    companion_manifest,
    image_manifest,
    index_of,
    newest,
    referrer,
    rows_of,
    sif_of,
)
from sifkit.share.download import Download, fetch
from sifkit.share.patience import Patience
from sifkit.share.push import Parcel, require_pushable, send_companions
from sifkit.share.referrers import add_referrers, referrers
from sifkit.share.upload import Upload, memory_of, send

DIGEST = "sha256:" + "0" * 64
REFERENCE = Reference("r", "a", "1")


# ---------------------------------------------------------------------------------------------- artifacts


def test_an_image_is_written_as_apptainer_writes_it() -> None:
    assert json.loads(image_manifest(DIGEST, 5, "x.sif").data) == {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.sylabs.sif.config.v1+json",
            "size": 2,
            "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        },
        "layers": [
            {
                "mediaType": "application/vnd.sylabs.sif.layer.v1.sif",
                "size": 5,
                "digest": DIGEST,
                "annotations": {"org.opencontainers.image.title": "x.sif"},
            }
        ],
    }


def test_what_belongs_to_an_image_names_it_as_its_subject() -> None:
    subject = image_manifest(DIGEST, 5, "x.sif")
    companion = Companion(Kind.SBOM, {"sbom.cdx.json": b"{}"}, "2026-01-01")
    manifest = companion_manifest(companion, subject)
    content = manifest.content
    assert content["artifactType"] == "application/vnd.cyclonedx+json"
    assert content["subject"] == {"mediaType": MANIFESTS[0], "size": len(subject.data), "digest": subject.digest}
    row = referrer(companion, manifest)
    assert (row.digest, row.artifact_type, dict(row.annotations)) == (
        manifest.digest,
        content["artifactType"],
        content["annotations"],
    )
    assert rows_of(index_of([row])) == [row]


def test_the_newest_of_ours_is_taken() -> None:
    def row(kind: str, created: str, media_type: str = MANIFESTS[0]) -> Descriptor:
        notes = {"org.sifkit.kind": kind, "org.opencontainers.image.created": created}
        return Descriptor(media_type, DIGEST, 1, annotations=notes)

    rows = [row("sbom", "2026-02"), row("sbom", "2026-01"), row("other", "2027"), row("sbom", "2028", INDEXES[0])]
    assert newest([*rows, Descriptor(MANIFESTS[0], DIGEST, 1)], Kind.SBOM) == rows[0]
    assert newest(rows, Kind.REPORT) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        "x",
        {},
        {"mediaType": "a", "digest": "sha512:00", "size": 1},
        {"mediaType": "a", "digest": DIGEST, "size": -1},
        {"mediaType": "a", "digest": DIGEST, "size": "1"},
        {"mediaType": 1, "digest": DIGEST, "size": 1},
        {"mediaType": "a", "digest": DIGEST, "size": 1, "annotations": {"a": 1}},
        {"mediaType": "a", "digest": DIGEST, "size": 1, "annotations": [1]},
    ],
)
def test_what_is_no_descriptor_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="no descriptor"):
        Descriptor.from_json(value)


def manifest_of(content: dict[str, Any]) -> Manifest:
    return Manifest(DIGEST, content.get("mediaType", MANIFESTS[0]), json.dumps(content).encode())


def layer(kind: str = SIF_LAYER) -> dict[str, Any]:
    return {"mediaType": kind, "digest": DIGEST, "size": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"mediaType": INDEXES[0], "manifests": []}, "is a container image for Docker"),
        (
            {"config": {"mediaType": "application/vnd.docker.container.image.v1+json"}, "layers": []},
            "is a container image for Docker",
        ),
        ({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}, "layers": []}, "is no image but .*helm"),
        ({"artifactType": "text/x", "layers": [layer("text/x")]}, "is no image but text/x"),
        ({"config": 5, "layers": [layer(), layer()]}, "is no image but"),
        ({"layers": "x"}, "is no image but"),
        ({"layers": [{"mediaType": SIF_LAYER}]}, "is no image but"),
    ],
)
def test_other_artifacts_are_no_images(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sif_of(REFERENCE, manifest_of(content))


def test_images_of_the_first_releases_are_read() -> None:
    assert sif_of(REFERENCE, manifest_of({"layers": [layer("appliciation/vnd.sylabs.sif.layer.tar")]})).size == 1


def test_addresses() -> None:
    assert reference_of("oras://r:1/a/b:c") == Reference("r:1", "a/b", "c")
    with pytest.raises(UsageError, match=r"write oras://|is no address"):
        reference_of("docker://r:1/a")
    with pytest.raises(UsageError, match="names a digest"):
        require_pushable(reference_of(f"oras://r/a@{DIGEST}"))


def test_progress_is_told_in_bytes_once_a_second() -> None:
    now, said = [0.0], list[str]()
    meter = Meter(4_000_000_000, said.append, lambda: now[0])
    meter.start_at(1_000_000_000)
    for now[0] in (0.5, 1.0, 1.5, 10.0):
        meter.add(500_000_000)
    assert said == ["2.00 of 4.00 GB, 1000 MB/s, 2 s left", "3.00 of 4.00 GB, 200 MB/s, 5 s left"]
    assert [size_text(size) for size in (5, 500_000, 4_505_431_519)] == ["5 bytes", "0.5 MB", "4.51 GB"]


def test_patience_ends_when_nothing_comes_any_more() -> None:
    waited: list[float] = []
    patience = Patience(lambda _: None, waited.append, (1.0, 2.0, 3.0))
    lost = Lost("gone", "look")
    for progressed in (False, True, False, False):
        patience.after(lost, progressed=progressed, kept="5 bytes are kept", again="again")
    with pytest.raises(Lost, match="gone; 5 bytes are kept") as caught:
        patience.after(lost, progressed=False, kept="5 bytes are kept", again="again")
    assert caught.value.fix == "again; look"
    assert waited == [2.0, 1.0, 2.0, 3.0]


# ---------------------------------------------------------------------------------------------- a registry as told


@dataclass
class Fake:
    """A registry in memory, with the habits that a test wants."""

    pieces: bool = True  # takes PATCH
    ranges: bool = True  # answers Range
    forgets: int = 0  # uploads, when their end comes
    lists: bool = False  # what refers to what
    plain: bool = False  # takes no artifacts
    missing: int = 0  # bytes of each answer
    smallest: int = 0
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"


class Handler(BaseHTTPRequestHandler):
    fake: Fake

    def answer(self, status: int, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data) + self.fake.missing), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        self.close_connection = bool(self.fake.missing)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_POST(self) -> None:
        self.fake.seen.append("POST")
        number = str(len(self.fake.uploads))
        self.fake.uploads[number] = b""
        more = {"OCI-Chunk-Min-Length": str(self.fake.smallest)} if self.fake.smallest else {}
        self.answer(202, headers={"Location": f"/v2/a/blobs/uploads/{number}", **more})

    def do_PATCH(self) -> None:
        data, number = self.body(), self.path.rpartition("/")[2]
        self.fake.seen.append(f"PATCH {self.headers['Content-Range']}")
        if not self.fake.pieces:
            self.answer(405)
            return
        self.fake.uploads[number] += data
        self.answer(202, headers={"Location": self.path, "Range": f"0-{len(self.fake.uploads[number]) - 1}"})

    def do_PUT(self) -> None:
        path, data = urlsplit(self.path), self.body()
        self.fake.seen.append(f"PUT {len(data)}")
        if "/manifests/" in path.path and self.fake.plain and b"artifactType" in data:
            self.answer(400, b'{"errors": [{"code": "MANIFEST_INVALID", "message": "unknown media type"}]}')
            return
        if "/manifests/" in path.path:
            self.fake.manifests[path.path.rpartition("/")[2]] = data
            self.answer(201, headers={"OCI-Subject": DIGEST} if self.fake.lists else {})
            return
        whole = self.fake.uploads.pop(path.path.rpartition("/")[2]) + data
        [digest] = parse_qs(path.query)["digest"]
        if self.fake.forgets or sha256_digest(whole) != digest:
            self.fake.forgets -= 1
            self.answer(404)
            return
        self.fake.blobs[digest] = whole
        self.answer(201)

    def do_GET(self) -> None:
        kind, name = self.path.split("/")[-2:]
        if kind == "blobs" and name in self.fake.blobs:
            self.blob(self.fake.blobs[name])
        elif kind == "manifests" and name in self.fake.manifests:
            data = self.fake.manifests[name]
            self.answer(200, data, {"Content-Type": json.loads(data)["mediaType"]})
        elif kind == "referrers" and self.fake.lists:
            self.listed("2" if name.endswith("?p=2") else "1", name)
        else:
            self.answer(404)

    do_HEAD = do_GET  # noqa: N815

    def blob(self, data: bytes) -> None:
        asked = self.headers.get("Range")
        self.fake.seen.append(f"{self.command} {asked}")
        if asked and self.fake.ranges:
            self.answer(206, data[int(asked.removeprefix("bytes=").removesuffix("-")) :])
        else:
            self.answer(200, data)

    def listed(self, page: str, name: str) -> None:
        """Two pages, a row each."""
        more = {"Link": f'</v2/a/referrers/{name}?p=2>; rel="next"'} if page == "1" else {}
        rows = [Descriptor(MANIFESTS[0], DIGEST, int(page))]
        self.answer(200, index_of(rows).data, {"Content-Type": INDEXES[0], **more})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[Fake]:
    found = Fake()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"fake": found}))
    found.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(fake: Fake) -> Iterator[Client]:
    with Client(fake.host, Settings({"HOME": "/nowhere"}, sleep=lambda _: None)) as found:
        yield found


DATA = bytes(range(256)) * 40


def upload_of(tmp_path: Path, data: bytes = DATA) -> Upload:
    source = tmp_path / "image.sif"
    source.write_bytes(data)
    return Upload("a", Descriptor(SIF_LAYER, sha256_digest(DATA), len(DATA)), source, tmp_path / "memory.json")


def sent(client: Client, wanted: Upload) -> bool:
    return send(client, wanted, Meter(1, lambda _: None), Patience(lambda _: None, lambda _: None))


def test_a_file_goes_in_pieces(client: Client, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "PIECE", 4096)
    wanted = upload_of(tmp_path)
    assert sent(client, wanted)
    assert fake.seen == ["POST", "PATCH 0-4095", "PATCH 4096-8191", "PATCH 8192-10239", "PUT 0"]
    assert not sent(client, wanted)
    assert not wanted.memory.exists()


def test_a_registry_that_wants_larger_pieces_gets_them(
    client: Client, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "PIECE", 4096)
    fake.smallest = 10_000
    assert sent(client, upload_of(tmp_path))
    assert fake.seen == ["POST", "PATCH 0-9999", "PATCH 10000-10239", "PUT 0"]


def test_a_registry_that_takes_no_pieces_gets_the_whole(client: Client, fake: Fake, tmp_path: Path) -> None:
    fake.pieces = False
    assert sent(client, upload_of(tmp_path))
    assert fake.seen == ["POST", "PATCH 0-10239", "POST", "PUT 10240"]
    assert fake.blobs == {sha256_digest(DATA): DATA}


def test_a_forgotten_upload_starts_over_and_not_for_ever(client: Client, fake: Fake, tmp_path: Path) -> None:
    fake.forgets = 2
    assert sent(client, upload_of(tmp_path))
    fake.blobs.clear()
    with pytest.raises(HostError, match="forgets each upload to a before its end, or says that other bytes came"):
        sent(client, upload_of(tmp_path, DATA[::-1]))


def test_a_file_that_gets_shorter_is_said(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ProblemFound, match="became shorter while it was sent"):
        sent(client, upload_of(tmp_path, DATA[:100]))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"location": "http://127.0.0.1/"}', '{"location": "x", "piece": null}']
)
def test_a_damaged_memory_is_as_none(client: Client, tmp_path: Path, text: str) -> None:
    wanted = upload_of(tmp_path)
    wanted.memory.write_text(text)
    assert sent(client, wanted)


def test_uploads_are_told_apart() -> None:
    places = {memory_of(Path("/x"), *words) for words in (("r", "a", "1"), ("r", "a", "2"), ("r", "b", "1"))}
    assert len(places) == 3


# ---------------------------------------------------------------------------------------------- downloads


def download_of(fake: Fake, tmp_path: Path, there: bytes = b"") -> Download:
    digest = sha256_digest(DATA)
    fake.blobs.setdefault(digest, DATA)
    target = tmp_path / ".x.download"
    if there:
        target.write_bytes(there)
    return Download(Reference(fake.host, "a", "1"), Descriptor(SIF_LAYER, digest, len(DATA)), target)


def fetched(client: Client, wanted: Download) -> None:
    fetch(client, wanted, Meter(1, lambda _: None), Patience(lambda _: None, lambda _: None))


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("there", [b"", DATA[:5000], DATA, DATA + b"more", b"other"])
def test_a_download_goes_on_with_whatever_is_there(
    client: Client, fake: Fake, tmp_path: Path, there: bytes, ranges: bool
) -> None:
    fake.ranges = ranges
    wanted = download_of(fake, tmp_path, there)
    fetched(client, wanted)
    assert wanted.target.read_bytes() == DATA
    if there == DATA[:5000]:
        assert fake.seen == ["GET bytes=5000-"]
    if there == DATA:
        assert fake.seen == []


def test_damaged_data_is_not_kept(client: Client, fake: Fake, tmp_path: Path) -> None:
    wanted = download_of(fake, tmp_path)
    for wrong in (DATA[::-1], DATA[::-1] + b"longer"):
        fake.blobs[wanted.blob.digest] = wrong
        with pytest.raises(ProblemFound, match="what the registry sent is damaged"):
            fetched(client, wanted)
        assert not wanted.target.exists()


def test_a_blob_that_is_shorter_than_it_says_is_no_image(client: Client, fake: Fake, tmp_path: Path) -> None:
    wanted = download_of(fake, tmp_path)
    fake.blobs[wanted.blob.digest] = DATA[:5000]
    fake.ranges = False
    with pytest.raises(Lost, match="ended the transfer before its end; 5000 bytes of 10240 bytes are kept in"):
        fetched(client, wanted)


def test_a_disk_without_room_is_said_before_with_figures(
    client: Client, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda _: 10_000)
    wanted = download_of(fake, tmp_path)
    wanted = replace(wanted, blob=replace(wanted.blob, size=4_500_000_000))
    with pytest.raises(HostError, match=r"not enough space in .*: 4\.6 GB needed, 0\.0 GB free"):
        fetched(client, wanted)
    assert fake.seen == []


def test_a_disk_that_fills_on_the_way_keeps_what_came(
    client: Client, fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    file: IO[bytes] = Full()  # type: ignore[assignment]
    with pytest.raises(HostError, match=r"is full \(No space left on device; .* GB free\); what came is kept in"):
        download._write(file, b"x", tmp_path / "x")


# ---------------------------------------------------------------------------------------------- referrers


def test_the_registrys_own_list_is_read_to_its_last_page(client: Client, fake: Fake) -> None:
    fake.lists = True
    assert [row.size for row in referrers(client, Reference(fake.host, "a", "", DIGEST))] == [1, 2]


def test_else_the_tag_stands_for_it_and_rows_of_others_stay(client: Client, fake: Fake) -> None:
    subject = Reference(fake.host, "a", "", DIGEST)
    assert referrers(client, subject) == []
    rows = [Descriptor(MANIFESTS[0], f"sha256:{hashlib.sha256(word).hexdigest()}", 1) for word in (b"1", b"2")]
    add_referrers(client, subject, rows[:1])
    add_referrers(client, subject, rows)
    assert list(fake.manifests) == [DIGEST.replace(":", "-")]
    assert referrers(client, subject) == rows


def test_a_tag_that_holds_something_else_is_not_overwritten(client: Client, fake: Fake) -> None:
    other = image_manifest(DIGEST, 1, "x.sif")
    fake.manifests[DIGEST.replace(":", "-")] = other.data
    subject = Reference(fake.host, "a", "", DIGEST)
    assert referrers(client, subject) == []
    with pytest.raises(HostError, match="holds no list of referrers"):
        add_referrers(client, subject, [Descriptor(MANIFESTS[0], DIGEST, 1)])
    assert fake.manifests[DIGEST.replace(":", "-")] == other.data


def test_a_list_that_others_overwrite_all_the_time_is_given_up(client: Client, fake: Fake) -> None:
    fake.manifests = type("Forgetful", (dict,), {"__setitem__": lambda *_: None})()
    with pytest.raises(HostError, match="others keep changing the list"):
        add_referrers(client, Reference(fake.host, "a", "", DIGEST), [Descriptor(MANIFESTS[0], DIGEST, 1)])


def test_a_registry_that_takes_images_alone_gets_the_image_alone(client: Client, fake: Fake, tmp_path: Path) -> None:
    subject, said = image_manifest(DIGEST, 1, "x.sif"), list[str]()
    companions = (Companion(Kind.SBOM, {"sbom.cdx.json": b"{}"}),)
    found = Parcel(tmp_path / "x.sif", None, "0" * 64, 1, companions)
    fake.plain = True
    send_companions(client, Reference(fake.host, "a", "", subject.digest), subject, found, said.append)
    assert "x.sif: pushed alone, so it can be pulled into a file only (-o FILE)" in said[0]
    assert said[0].endswith("MANIFEST_INVALID unknown media type")
    fake.plain = False
    send_companions(client, Reference(fake.host, "a", "", subject.digest), subject, found, said.append)
    assert len(said) == 1
    assert [
        row.annotations["org.sifkit.kind"] for row in referrers(client, Reference(fake.host, "a", "", subject.digest))
    ] == ["sbom"]


def test_an_answer_that_is_cut_is_said(client: Client, fake: Fake) -> None:
    fake.manifests["1"] = image_manifest(DIGEST, 1, "x.sif").data
    fake.lists = True
    fake.missing = 5
    with pytest.raises(Lost, match=r"the connection to .* broke"):
        client.find_manifest(Reference(fake.host, "a", "1"))
    with pytest.raises(Lost, match=r"the connection to .* broke"):
        referrers(client, Reference(fake.host, "a", "", DIGEST))


# ---------------------------------------------------------------------------------------------- credentials


def test_credentials_do_not_follow_an_upload_to_another_host(client: Client, fake: Fake, tmp_path: Path) -> None:
    seen: list[str | None] = []

    class Other(BaseHTTPRequestHandler):
        def do_PATCH(self) -> None:
            seen.append(self.headers.get("Authorization"))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    client._authorization["repository:a:pull,push"] = "Bearer secret"
    client.request("PATCH", f"http://127.0.0.1:{server.server_port}/up", "a", actions="pull,push", data=b"x").close()
    server.shutdown()
    thread.join()
    server.server_close()
    assert seen == [None]
