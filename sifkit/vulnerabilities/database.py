"""Where OSV entries come from: the HTTP API, or a file or directory that was fetched before.

Sources: https://google.github.io/osv.dev/api/ (querybatch, its pages, vulns), https://google.github.io/osv.dev/data/
(the dump of each ecosystem). What cannot be read is an error, never an empty answer.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import requests
from pydantic import BaseModel, ValidationError
from urllib3.util.retry import Retry

from sifkit.compat.wheels import read_each, shown
from sifkit.errors import HostError, UsageError
from sifkit.progress import Progress
from sifkit.sessions import Adapter
from sifkit.vulnerabilities.osv import ECOSYSTEM, Entry

API = "https://api.osv.dev"
DUMP = "https://osv-vulnerabilities.storage.googleapis.com/PyPI/all.zip"
GET_ONE = (
    f"where there is network: curl -fLO {DUMP}; then give that file: --database all.zip (see docs/vulnerabilities.md)"
)
NOT_CHECKED = "not checked for vulnerabilities"

QUERIES_AT_ONCE = 1000  # the API's own limit
MOST_ROUNDS = 100  # of pages: an answer of that many is none
LARGEST_ENTRY = 1 << 25  # bytes; the largest of the index's database are below one MiB
LARGEST_ANSWER = 1 << 26
LARGEST_FILE = 1 << 31
LARGEST_UNPACKED = 1 << 33

MODEL = TypeVar("MODEL", bound=BaseModel)


@dataclass(frozen=True)
class Answer:
    """What a database holds about the packages that were asked for."""

    source: str
    entries: tuple[Entry, ...]
    total: int | None = None  # entries of a file on Python packages
    newest: str | None = None  # the last change in a file: how old the knowledge is


@dataclass(frozen=True)
class Wire:
    """How servers are spoken to."""

    ca_bundle: Path | None = None
    environ: Mapping[str, str] | None = None  # whose proxies; None: this process's
    timeout: float = 30.0  # seconds without an answer
    pause: float = 1.0  # seconds before the second try, doubled for each further one
    tries: int = 4

    def session(self) -> requests.Session:
        """Asks again where a server is overloaded or broken for a moment."""
        session = requests.Session()
        retry = Retry(
            total=self.tries - 1,
            backoff_factor=self.pause,
            status_forcelist=(429, 500, 502, 503, 504),
            allowed_methods=None,  # the API's POST changes nothing
            respect_retry_after_header=False,  # it may say hours
            raise_on_status=False,
        )
        for scheme in ("https://", "http://"):
            session.mount(scheme, Adapter(self.environ, self.ca_bundle, retry))
        return session


class _Hit(BaseModel):
    id: str


class _Result(BaseModel):
    vulns: tuple[_Hit, ...] = ()
    next_page_token: str | None = None


class _Results(BaseModel):
    results: tuple[_Result, ...] = ()


def ask(database: str | None, packages: Mapping[str, str], wire: Wire, progress: Progress) -> Answer:
    """The entries about these packages, from OSV's own API unless a file, directory or URL is given.

    Raises `HostError` when no database is reached, `UsageError` for a file that is none.
    """
    if database is None:
        return ask_api(API, packages, wire, progress)
    if not database.startswith(("http://", "https://")):
        return read_files(Path(database), packages, progress)
    suffix = Path(urlsplit(database).path).suffix
    if suffix not in (".zip", ".json"):
        return ask_api(database, packages, wire, progress)
    with tempfile.TemporaryDirectory(prefix="sifkit-osv-") as scratch:
        file = Path(scratch, f"database{suffix}")
        with progress.phase(f"fetch {shown(database)}"), wire.session() as session:
            _download(session, database, wire, file, progress)
        return read_files(file, packages, progress, name=shown(database))


# ---------------------------------------------------------------------------------------------- the API


def ask_api(base: str, packages: Mapping[str, str], wire: Wire, progress: Progress) -> Answer:
    """Ask which entries affect these versions, then read each."""
    base = base.rstrip("/").removesuffix("/v1")
    with wire.session() as session:
        with progress.phase(f"ask {shown(base)} about {len(packages)} packages"):
            ids = _ids(session, f"{base}/v1/querybatch", packages, wire)

        def read(name: str) -> Entry:
            url = f"{base}/v1/vulns/{quote(name, safe='')}"
            return _validated(Entry, _fetch(session, url, wire), url)

        entries = read_each("vulnerabilities", sorted(ids), read, progress) if ids else []
    return Answer(shown(base), tuple(entries))


def _ids(session: requests.Session, url: str, packages: Mapping[str, str], wire: Wire) -> set[str]:
    """Of every entry that the API names, over all pages."""
    questions: list[dict[str, Any]] = [
        {"package": {"name": name, "ecosystem": ECOSYSTEM}, "version": version.partition("+")[0]}
        for name, version in sorted(packages.items())
    ]
    found: set[str] = set()
    for _ in range(MOST_ROUNDS):
        if not questions:
            return found
        batch, questions = questions[:QUERIES_AT_ONCE], questions[QUERIES_AT_ONCE:]
        results = _validated(_Results, _fetch(session, url, wire, {"queries": batch}), url).results
        if len(results) != len(batch):
            raise _bad_answer(url, f"{len(results)} results to {len(batch)} questions")
        for question, result in zip(batch, results, strict=True):
            found |= {hit.id for hit in result.vulns}
            if result.next_page_token:
                questions.append({**question, "page_token": result.next_page_token})
    raise _bad_answer(url, "pages without end")


def _validated(model: type[MODEL], body: bytes, url: str) -> MODEL:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _bad_answer(url, _first_fault(error)) from None


def _first_fault(error: ValidationError) -> str:
    fault = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in fault["loc"])
    return f"{where}: {fault['msg']}" if where else fault["msg"]


def _bad_answer(url: str, why: str) -> HostError:
    return HostError(f"{NOT_CHECKED}: {shown(url)} does not answer as OSV's API does ({why})", GET_ONE)


def _fetch(session: requests.Session, url: str, wire: Wire, question: object = None) -> bytes:
    """A whole answer's body."""
    body = bytearray()
    for chunk in _chunks(session, url, wire, question):
        body += chunk
        if len(body) > LARGEST_ANSWER:
            raise _bad_answer(url, f"more than {LARGEST_ANSWER >> 20} MiB")
    return bytes(body)


def _download(session: requests.Session, url: str, wire: Wire, target: Path, progress: Progress) -> None:
    with target.open("wb") as file:
        for chunk in _chunks(session, url, wire):
            file.write(chunk)
            progress.line(f"{file.tell() / 1e6:.0f} MB")
            if file.tell() > LARGEST_FILE:
                raise HostError(f"{NOT_CHECKED}: {shown(url)} is larger than {LARGEST_FILE >> 30} GiB", GET_ONE)


def _chunks(session: requests.Session, url: str, wire: Wire, question: object = None) -> Iterator[bytes]:
    with _answers(url):
        method = "GET" if question is None else "POST"
        with session.request(method, url, json=question, timeout=wire.timeout, stream=True) as answer:
            answer.raise_for_status()
            yield from answer.iter_content(1 << 20)


@contextmanager
def _answers(url: str) -> Iterator[None]:
    """Raises `HostError`: nothing was checked, why, and how to get a database that needs no network."""
    where = shown(url)
    try:
        yield
    except requests.exceptions.SSLError as error:
        message = f"{NOT_CHECKED}: the certificate of {where} is not trusted: {shown(str(error))}"
        raise HostError(message, "name your site's bundle: python_index.ca_bundle in the site file") from None
    except requests.HTTPError as error:
        code, reason = error.response.status_code, error.response.reason
        raise HostError(f"{NOT_CHECKED}: {where} answers {code} {reason}", f"try again later; or {GET_ONE}") from None
    except requests.RequestException as error:
        raise HostError(f"{NOT_CHECKED}: {where} cannot be read: {shown(str(error))}", GET_ONE) from None


# ---------------------------------------------------------------------------------------------- files


def read_files(path: Path, packages: Iterable[str], progress: Progress, *, name: str | None = None) -> Answer:
    """OSV's dump of an ecosystem (all.zip), a directory of entries, or a file with one or several.

    Raises `UsageError` for what is damaged, or holds nothing about Python packages.
    """
    wanted, found, total, newest = frozenset(packages), [], 0, ""
    source = name or str(path)
    with progress.phase(f"read {source}"):
        for member, data in _members(path, source):
            for entry in _entries(member, data):
                about = entry.packages()
                total += bool(about)
                newest = max(newest, entry.modified if about else "")
                if about & wanted:
                    found.append(entry)
            progress.line(member)
    if not total:
        raise _no_database(source, "it holds no entry on Python packages")
    return Answer(source, tuple(found), total, newest or None)


def _members(path: Path, source: str) -> Iterator[tuple[str, bytes]]:
    """Every JSON file, with a name for messages."""
    if path.is_dir():
        for file in sorted(path.rglob("*.json")):
            yield str(file), _read(file)
    elif not path.is_file():
        raise UsageError(f"--database {source}: no such file or directory", GET_ONE)
    elif path.suffix == ".zip" or zipfile.is_zipfile(path):
        yield from _unzipped(path, source)
    else:
        yield source, _read(path)


def _read(file: Path) -> bytes:
    if file.stat().st_size > LARGEST_ANSWER:
        raise _no_database(str(file), f"it is larger than {LARGEST_ANSWER >> 20} MiB, and no zip")
    return file.read_bytes()


def _unzipped(path: Path, source: str) -> Iterator[tuple[str, bytes]]:
    member = ""
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".json")]
            if any(one.file_size > LARGEST_ENTRY for one in infos) or _size(infos) > LARGEST_UNPACKED:
                raise _no_database(source, "its entries are larger than any of OSV's")
            for info in infos:
                member = f"{source}: {info.filename}"
                yield member, archive.read(info)  # never more than the size that was compared above
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _no_database(member or source, f"the archive is damaged: {error}") from None


def _size(infos: Iterable[zipfile.ZipInfo]) -> int:
    return sum(info.file_size for info in infos)


def _entries(name: str, data: bytes) -> list[Entry]:
    """One entry, a list of them, or an answer of the API that holds some."""
    try:
        value = json.loads(data)
        values = value if isinstance(value, list) else value.get("vulns", [value])
        return [Entry.model_validate(one) for one in values]
    except ValidationError as error:
        raise _no_database(name, f"not an entry in OSV's format: {_first_fault(error)}") from None
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _no_database(name, f"not JSON in OSV's format: {error}") from None


def _no_database(name: str, why: str) -> UsageError:
    return UsageError(f"{NOT_CHECKED}: {name} is no database in OSV's format, or damaged: {why}", GET_ONE)
