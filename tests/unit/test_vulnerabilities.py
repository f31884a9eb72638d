"""A lock against OSV's database: the rule, findings, files, and an API with every way to answer wrongly."""

from __future__ import annotations

import gzip
import http.server
import json
import socket
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sifkit.errors import Exit, HostError, UsageError
from sifkit.lock import parse_lock
from sifkit.progress import PlainProgress
from sifkit.vulnerabilities import database, report
from sifkit.vulnerabilities.database import Answer, Wire, ask
from sifkit.vulnerabilities.locks import Locked
from sifkit.vulnerabilities.osv import Entry, Finding, Verdict, find, judge
from tests.conftest import lock_text, make_spec

PROGRESS = PlainProgress(Console(quiet=True))
WIRE = Wire(timeout=1.0, pause=0.0)
PACKAGES = {"jinja2": "3.1.2", "torch": "2.9.1+cu128"}


def row(name: str = "CVE-2024-1", package: str = "jinja2", *events: dict[str, str], **more: Any) -> dict[str, Any]:
    """An entry as a database writes it."""
    affected: dict[str, Any] = {"package": {"ecosystem": "PyPI", "name": package}}
    if events:
        affected["ranges"] = [{"type": "ECOSYSTEM", "events": list(events)}]
    affected |= {key: more.pop(key) for key in ("versions", "ranges") if key in more}
    return {"id": name, "modified": "2024-01-01T00:00:00Z", "affected": [affected], **more}


def entry(*words: Any, **more: Any) -> Entry:
    return Entry.model_validate(row(*words, **more))


def verdict(version: str, *events: dict[str, str], **more: Any) -> Verdict:
    return judge(entry("X-1", "jinja2", *events, **more), "jinja2", version)


ZERO, INTRODUCED, FIXED = {"introduced": "0"}, {"introduced": "1.0"}, {"fixed": "2.0"}


# ------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("version", "events", "affected"),
    [
        ("1.0", (INTRODUCED, FIXED), True),
        ("0.9", (INTRODUCED, FIXED), False),
        ("1.0rc1", (INTRODUCED, FIXED), False),
        ("2.0", (INTRODUCED, FIXED), False),
        ("2.0rc1", (INTRODUCED, FIXED), True),
        ("1.10", (INTRODUCED, FIXED), True),  # not as text
        ("1.5", (FIXED, INTRODUCED), True),  # not sorted
        ("9999", ({"introduced": "0"},), True),
        ("0.dev0", ({"introduced": "0"}, FIXED), True),
        ("2.0", (INTRODUCED, {"last_affected": "2.0"}), True),
        ("2.0+cu128", (INTRODUCED, {"last_affected": "2.0"}), True),
        ("2.0.1", (INTRODUCED, {"last_affected": "2.0"}), False),
        ("2.0.post1", (INTRODUCED, {"last_affected": "2.0"}), False),
        ("3.5", (INTRODUCED, FIXED, {"introduced": "3.0"}, {"fixed": "4.0"}), True),
        ("2.5", (INTRODUCED, FIXED, {"introduced": "3.0"}, {"fixed": "4.0"}), False),
        ("1.5", (INTRODUCED, {"limit": "1.2"}), False),
        ("1.1", (INTRODUCED, {"limit": "1.2"}), True),
        ("1.5", (INTRODUCED, {"limit": "*"}), True),
        ("1!0.5", (INTRODUCED, FIXED), False),
    ],
)
def test_ranges_are_evaluated_as_the_format_says(
    version: str, events: tuple[dict[str, str], ...], affected: bool
) -> None:
    assert verdict(version, *events) is (Verdict.AFFECTED if affected else Verdict.CLEAR)


@pytest.mark.parametrize("version", ["1.2", "1.2.0", "1.2+cpu", "v1.2"])
def test_a_version_that_is_listed_is_affected_however_it_is_written(version: str) -> None:
    assert verdict(version, versions=["1.1", "1.2", "odd_one"]) is Verdict.AFFECTED
    assert verdict("1.3", versions=["1.1", "1.2", "odd_one"]) is Verdict.CLEAR


def test_listed_versions_and_ranges_add_up() -> None:
    assert verdict("0.5", INTRODUCED, FIXED, versions=["0.5"]) is Verdict.AFFECTED


def test_a_name_is_compared_as_python_compares_names() -> None:
    about = entry("X-1", "Ruamel_Yaml", INTRODUCED)
    assert judge(about, "ruamel-yaml", "1.0") is Verdict.AFFECTED


def test_another_ecosystems_package_of_that_name_is_another_package() -> None:
    npm = row("X-1", "jinja2", INTRODUCED)
    npm["affected"][0]["package"]["ecosystem"] = "npm"
    assert judge(Entry.model_validate(npm), "jinja2", "1.0") is Verdict.CLEAR


def test_a_withdrawn_entry_affects_nothing() -> None:
    assert verdict("1.0", INTRODUCED, withdrawn="2024-02-01T00:00:00Z") is Verdict.CLEAR


@pytest.mark.parametrize(
    ("version", "more"),
    [
        ("1.0", {"ranges": [{"type": "GIT", "repo": "https://example.org/r", "events": [{"introduced": "0"}]}]}),
        ("1.0", {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "next"}]}]}),
        ("2023c-odd", {"ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}]}),
        ("1.0", {"schema_version": "2.0.0", "versions": ["0.1"]}),
    ],
)
def test_what_cannot_be_compared_is_not_called_safe(version: str, more: dict[str, Any]) -> None:
    assert verdict(version, **more) is Verdict.UNKNOWN


def test_null_lists_are_empty_lists() -> None:
    bare = {"id": "X-1", "aliases": None, "affected": None, "severity": None, "database_specific": None}
    assert Entry.model_validate(bare).packages() == frozenset()


# ------------------------------------------------------------------ findings


def test_aliases_are_one_finding_under_the_best_known_name() -> None:
    found = find(
        {"jinja2": "3.1.2"},
        [
            entry("PYSEC-2024-7", "jinja2", {"introduced": "0"}, {"fixed": "3.1.3"}, aliases=["CVE-2024-1"]),
            entry("GHSA-aaaa", "jinja2", ZERO, {"fixed": "3.1.4"}, aliases=["CVE-2024-1"], summary="XSS"),
            entry("GHSA-bbbb", "jinja2", {"introduced": "0"}, {"fixed": "3.1.6"}, aliases=["CVE-2024-2"]),
        ],
    )  # fmt: skip
    assert [finding.ids for finding in found] == [
        ("CVE-2024-1", "GHSA-aaaa", "PYSEC-2024-7"),
        ("CVE-2024-2", "GHSA-bbbb"),
    ]
    assert [(finding.fixed, finding.clean, finding.summary) for finding in found] == [
        ("3.1.4", "3.1.6", "XSS"),
        ("3.1.6", "3.1.6", ""),
    ]
    assert found[0].url == "https://osv.dev/vulnerability/GHSA-aaaa"


def test_a_chain_of_aliases_joins_entries_that_do_not_name_each_other() -> None:
    affects = {"introduced": "0"}
    chain = [
        entry("A-1", "jinja2", affects, aliases=["B-1"]),
        entry("C-1", "jinja2", affects, aliases=["D-1"]),
        entry("E-1", "jinja2", affects, aliases=["B-1", "D-1"]),
    ]
    (finding,) = find({"jinja2": "3.1.2"}, chain)
    assert finding.ids == ("A-1", "B-1", "C-1", "D-1", "E-1")


def test_the_nearest_fix_is_a_later_release_that_nothing_in_the_group_affects() -> None:
    events = (
        {"introduced": "0"},
        {"fixed": "2.11.3"},
        {"introduced": "3.0"},
        {"fixed": "3.1.5rc1"},
        {"fixed": "3.1.5"},
    )
    (finding,) = find({"jinja2": "3.1.2"}, [entry("X-1", "jinja2", *events)])
    assert finding.fixed == "3.1.5"
    again = ({"introduced": "3.0"}, {"fixed": "3.1.3"}, {"introduced": "3.1.3"}, {"fixed": "3.2"})
    (finding,) = find({"jinja2": "3.1.2"}, [entry("X-1", "jinja2", *again)])
    assert finding.fixed == "3.2"


def test_without_a_fixed_version_none_is_invented() -> None:
    (finding,) = find({"jinja2": "3.1.2"}, [entry("X-1", "jinja2", {"introduced": "0"}, {"last_affected": "3.1.2"})])
    assert (finding.fixed, finding.clean, finding.certain) == (None, None, True)


def test_of_two_entries_with_one_id_the_later_counts() -> None:
    old = entry("X-1", "jinja2", {"introduced": "0"}, modified="2023-01-01T00:00:00Z")
    new = entry("X-1", "jinja2", {"introduced": "0"}, {"fixed": "3.1.0"}, modified="2024-01-01T00:00:00Z")
    assert find({"jinja2": "3.1.2"}, [old, new]) == find({"jinja2": "3.1.2"}, [new, old]) == ()


def test_severity_is_shown_as_the_database_gives_it() -> None:
    vector = "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"
    severity = [{"type": "CVSS_V3", "score": vector}, {"type": "Ubuntu", "score": "low"}]
    rated = entry("X-1", "jinja2", INTRODUCED, severity=severity, database_specific={"severity": "CRITICAL"})
    (finding,) = find({"jinja2": "3.1.2"}, [rated])
    assert (finding.severity, finding.vectors) == ("CRITICAL", (vector,))


def test_an_entry_that_cannot_be_compared_is_a_finding_that_says_so() -> None:
    git = [{"type": "GIT", "events": [{"introduced": "0"}]}]
    (finding,) = find({"jinja2": "3.1.2"}, [entry("X-1", "jinja2", ranges=git)])
    assert not finding.certain


# ------------------------------------------------------------------ said


def judged(found: tuple[Finding, ...], *ignore: str, inherited: str = "") -> report.Judged:
    text = lock_text(make_spec(), "jinja2==3.1.2", "torch==2.9.1")
    if inherited:
        head, _, rest = text.partition("\n# inputs")
        inputs, _, rest = rest.partition("\n")
        head = head.replace("2 packages, invented", "2 packages, 1 inherited; invented")
        text = f"{head}\n# inputs{inputs}\n# inherited: {inherited}\n{rest}"
    locked = Locked(parse_lock(text, "example.lock"), "definitions/example.lock", "example")
    return report.sort_out(locked, Answer("all.zip", (), 7, "2024-01-01T00:00:00Z"), found, ignore)


ALL = [
    entry("CVE-2024-1", "jinja2", ZERO, {"fixed": "3.1.6"}, summary="a [red]\x1b[31m name", aliases=["GHSA-1"]),
    entry("CVE-2024-2", "torch", {"introduced": "0"}, {"fixed": "2.10.0"}),
    entry("CVE-2024-3", "numpy", {"introduced": "0"}, {"fixed": "2.0"}),
]  # fmt: skip


def test_advice_names_the_key_of_the_spec_that_a_user_changes() -> None:
    found = find({"jinja2": "3.1.2", "torch": "2.9.1", "numpy": "1.0", "uv": "1"}, ALL)
    assert report.advice(judged(found, inherited="numpy==1.0")) == [
        "numpy >= 2.0: in the environment that the image starts from; then sifkit lock",
        "torch >= 2.10.0: by torch.version in the spec; then sifkit lock",
        'in definitions/example.yaml: packages: ["jinja2>=3.1.6"]; then sifkit lock example, and build it again',
    ]


def test_any_of_its_names_ignores_a_finding_and_an_unknown_name_is_said() -> None:
    found = find(PACKAGES, ALL)
    result = judged(found, "ghsa-1", "CVE-1999-1")
    assert [finding.ids[0] for finding in result.ignored] == ["CVE-2024-1"]
    assert [finding.ids[0] for finding in result.findings] == ["CVE-2024-2"]
    assert result.unused == ("CVE-1999-1",)
    assert "1 known vulnerability; ignored: CVE-2024-1 (all.zip, 7 entries" in report.headline(result)


def test_texts_of_a_database_cannot_write_on_the_terminal() -> None:
    console = Console(width=300)
    with console.capture() as capture:
        console.print(report.as_table(find(PACKAGES, ALL)))
    said = capture.get()
    assert "a [red]\\x1b[31m name" in said


# ------------------------------------------------------------------ files


def write_zip(path: Path, *rows: dict[str, Any]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in rows:
            archive.writestr(f"{one['id']}.json", json.dumps(one))
    return path


ROWS = (
    row("CVE-2024-1", "jinja2", {"introduced": "0"}, {"fixed": "3.1.6"}),
    row("CVE-2024-9", "other", {"introduced": "0"}, modified="2025-05-05T00:00:00Z"),
)


def test_zip_directory_and_files_hold_the_same(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "all.zip", *ROWS)
    directory = tmp_path / "entries" / "deep"
    directory.mkdir(parents=True)
    for number, one in enumerate(ROWS):
        (directory / f"{number}.json").write_text(json.dumps(one))
    (tmp_path / "list.json").write_text(json.dumps(ROWS))
    (tmp_path / "answer.json").write_text(json.dumps({"vulns": ROWS}))
    renamed = tmp_path / "dump"
    renamed.write_bytes(archive.read_bytes())
    for path in (archive, directory.parent, tmp_path / "list.json", tmp_path / "answer.json", renamed):
        answer = ask(str(path), PACKAGES, WIRE, PROGRESS)
        assert [found.id for found in answer.entries] == ["CVE-2024-1"], path
        assert (answer.total, answer.newest, answer.source) == (2, "2025-05-05T00:00:00Z", str(path))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[60] ^= 0xFF
    path.write_bytes(bytes(data))


def lie_about_size(path: Path) -> None:
    """A member that says it unpacks to 4 GiB."""
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = struct.pack("<I", 0xFFFFFFF0)
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, flip, lie_about_size, lambda path: path.write_bytes(b"")])
def test_a_damaged_zip_is_refused_with_the_way_to_get_another(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    damage(write_zip(tmp_path / "all.zip", *ROWS))
    with pytest.raises(UsageError, match=r"not checked for vulnerabilities: .*all\.zip") as caught:
        ask(str(tmp_path / "all.zip"), PACKAGES, WIRE, PROGRESS)
    assert database.DUMP in str(caught.value.fix)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
        ("17", "not JSON"),
        ('"text"', "not JSON"),
        ('{"vulns": null}', "not JSON"),
        ("[17]", "not an entry"),
        ('{"name": "jinja2"}', "id: Field required"),
        ('{"id": "X", "affected": "jinja2"}', "affected"),
        ("[]", "no entry on Python packages"),
        ('{"id": "X", "affected": [{"package": {"ecosystem": "npm", "name": "x"}}]}', "no entry on Python packages"),
    ],
)
def test_a_file_that_is_no_database_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "one.json").write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=said):
        ask(str(tmp_path / "one.json"), PACKAGES, WIRE, PROGRESS)


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UsageError, match="larger than 64 MiB, and no zip"):
        ask(str(tmp_path / "huge"), PACKAGES, WIRE, PROGRESS)


def test_nothing_there_and_an_empty_directory_are_no_databases(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        ask(str(tmp_path / "absent.zip"), PACKAGES, WIRE, PROGRESS)
    with pytest.raises(UsageError, match="no entry on Python packages"):
        ask(str(tmp_path), PACKAGES, WIRE, PROGRESS)


# ------------------------------------------------------------------ the API

Respond = Callable[["Handler"], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers as the test says; what was asked is kept."""

    respond: Respond
    asked: list[tuple[str, Any]]

    def do_GET(self) -> None:
        self.asked.append((self.path, None))
        type(self).respond(self)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body))
        type(self).respond(self)

    def send(self, body: bytes, code: int = 200, *, length: int | None = None, **headers: str) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Quiet."""


@contextmanager
def server(respond: Respond) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    asked: list[tuple[str, Any]] = []
    handler = type("OneTest", (Handler,), {"respond": staticmethod(respond), "asked": asked})
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.daemon_threads = True
    web.block_on_close = False
    thread = threading.Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_address[1]}", asked
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def api(*rows: dict[str, Any], pages: int = 1) -> Respond:
    """As OSV's: ids by package over some pages, entries by id."""

    def respond(self: Handler) -> None:
        if self.path.startswith("/v1/vulns/"):
            found = [one for one in rows if one["id"] == self.path.rpartition("/")[2]]
            self.send(json.dumps(found[:1]).encode()[1:-1], 200 if found else 404)
            return
        results = [of_query(query) for query in self.asked[-1][1]["queries"]]
        self.send(gzip.compress(json.dumps({"results": results}).encode()), Content_Encoding="gzip")

    def of_query(query: dict[str, Any]) -> dict[str, Any]:
        mine = [{"id": one["id"]} for one in rows if one["affected"][0]["package"]["name"] == query["package"]["name"]]
        page = int(query.get("page_token", 0))
        more = {"next_page_token": str(page + 1)} if page + 1 < pages and mine else {}
        return {**({"vulns": mine[page::pages]} if mine[page::pages] else {}), **more}

    return respond


def test_the_api_is_asked_by_public_version_and_each_entry_is_read() -> None:
    with server(api(*ROWS, row("CVE-2024-2", "torch", {"introduced": "0"}, {"fixed": "2.10"}))) as (url, asked):
        answer = ask(f"{url}/v1/", PACKAGES, WIRE, PROGRESS)
    assert {found.id for found in answer.entries} == {"CVE-2024-1", "CVE-2024-2"}
    assert (answer.source, answer.total) == (url, None)
    assert asked[0] == (
        "/v1/querybatch",
        {
            "queries": [
                {"package": {"name": "jinja2", "ecosystem": "PyPI"}, "version": "3.1.2"},
                {"package": {"name": "torch", "ecosystem": "PyPI"}, "version": "2.9.1"},
            ]
        },
    )


def test_every_page_is_read_even_after_an_empty_one() -> None:
    many = [row(f"CVE-2024-{number}", "jinja2", {"introduced": "0"}) for number in range(3)]
    with server(api(*many, pages=5)) as (url, asked):
        answer = ask(url, PACKAGES, WIRE, PROGRESS)
    assert len(answer.entries) == 3
    assert [len(body["queries"]) for path, body in asked if path == "/v1/querybatch"] == [2, 1, 1, 1, 1]


def test_more_packages_than_one_request_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "QUERIES_AT_ONCE", 1)
    with server(api(*ROWS)) as (url, asked):
        assert len(ask(url, PACKAGES, WIRE, PROGRESS).entries) == 1
    assert [path for path, _ in asked] == ["/v1/querybatch", "/v1/querybatch", "/v1/vulns/CVE-2024-1"]


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again_and_then_nothing_counts_as_checked(code: int) -> None:
    with server(lambda handler: handler.send(b"busy", code, Retry_After="3600")) as (url, asked):
        with pytest.raises(HostError, match=rf"not checked for vulnerabilities: .*querybatch answers {code}") as caught:
            ask(url, PACKAGES, WIRE, PROGRESS)
        assert len(asked) == WIRE.tries
    assert caught.value.exit is Exit.HOST
    assert "curl -fLO" in str(caught.value.fix)


def test_one_failure_is_nothing_to_speak_of() -> None:
    good = api(*ROWS)

    def respond(handler: Handler) -> None:
        handler.send(b"", 503) if len(handler.asked) == 1 else good(handler)

    with server(respond) as (url, _):
        assert len(ask(url, PACKAGES, WIRE, PROGRESS).entries) == 1


def half(handler: Handler) -> None:
    handler.send(b'{"results": [', length=1000)
    handler.close_connection = True


def hang(handler: Handler) -> None:
    threading.Event().wait(3)
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


@pytest.mark.parametrize(
    ("respond", "said"),
    [
        (half, "cannot be read"),
        (hang, "timed out"),
        (hang_up, "cannot be read"),
        (lambda handler: handler.send(b"<html>proxy"), "does not answer as OSV's API does"),
        (lambda handler: handler.send(b"{}"), "0 results to 2 questions"),
        (lambda handler: handler.send(b'{"results": [{}]}'), "1 results to 2 questions"),
        (lambda handler: handler.send(b'{"results": {}}'), "results: Input should be"),
        (lambda handler: handler.send(b"\x1f\x8bnonsense", Content_Encoding="gzip"), "cannot be read"),
        (lambda handler: handler.send(b'{"results": [{"next_page_token": "1"}, {}]}'), "to 1 questions"),
        (lambda handler: handler.send(b"", 404), "answers 404"),
    ],
)
def test_an_answer_that_is_none_is_never_taken_for_fine(respond: Respond, said: str) -> None:
    with server(respond) as (url, _), pytest.raises(HostError, match=said) as caught:
        ask(url, PACKAGES, Wire(timeout=0.3, pause=0.0, tries=2), PROGRESS)
    assert caught.value.message.startswith("not checked for vulnerabilities: ")


def test_pages_without_end_are_an_error() -> None:
    endless = b'{"results": [{"next_page_token": "again"}]}'
    with server(lambda handler: handler.send(endless)) as (url, _), pytest.raises(HostError, match="without end"):
        ask(url, {"jinja2": "3.1.2"}, WIRE, PROGRESS)


def test_an_entry_that_the_api_names_and_does_not_have_is_an_error() -> None:
    def respond(handler: Handler) -> None:
        named = b'{"results": [{"vulns": [{"id": "a/../b"}]}]}'
        handler.send(named) if handler.path == "/v1/querybatch" else handler.send(b"", 404)

    with server(respond) as (url, asked), pytest.raises(HostError, match="answers 404"):
        ask(url, {"jinja2": "3.1.2"}, WIRE, PROGRESS)
    assert asked[-1][0] == "/v1/vulns/a%2F..%2Fb"


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LARGEST_ANSWER", 1 << 20)
    with (
        server(lambda handler: handler.send(b" " * (3 << 20))) as (url, _),
        pytest.raises(HostError, match="more than 1 MiB"),
    ):
        ask(url, PACKAGES, WIRE, PROGRESS)


def test_nobody_there_is_said_with_the_way_for_a_site_without_network() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://someone:geheim@127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(HostError, match="cannot be read") as caught:
            ask(url, PACKAGES, WIRE, PROGRESS)
    assert "geheim" not in caught.value.message
    assert "--database all.zip" in str(caught.value.fix)


def test_a_dump_at_an_address_is_fetched_first(tmp_path: Path) -> None:
    dump = write_zip(tmp_path / "all.zip", *ROWS).read_bytes()
    with server(lambda handler: handler.send(dump)) as (url, asked):
        answer = ask(f"{url}/PyPI/all.zip", PACKAGES, WIRE, PROGRESS)
    assert (len(answer.entries), answer.total, answer.source) == (1, 2, f"{url}/PyPI/all.zip")
    assert asked == [("/PyPI/all.zip", None)]


def test_half_a_dump_is_no_dump(tmp_path: Path) -> None:
    dump = write_zip(tmp_path / "all.zip", *ROWS).read_bytes()

    def respond(handler: Handler) -> None:
        handler.send(dump[:100], length=len(dump))
        handler.close_connection = True

    with server(respond) as (url, _), pytest.raises(HostError, match="cannot be read"):
        ask(f"{url}/all.zip", PACKAGES, WIRE, PROGRESS)


def test_the_sites_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with server(api(*ROWS)) as (proxy, asked):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # the environment that is handed over counts
        with pytest.raises(HostError):  # this server serves no proxy's paths; that it was asked is what counts
            ask("http://osv.example", PACKAGES, Wire(None, {"http_proxy": proxy}, pause=0.0, tries=1), PROGRESS)
    assert asked[0][0] == "http://osv.example/v1/querybatch"
