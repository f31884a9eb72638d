"""What wheels on a package index say of themselves, read with range requests: a megabyte of a wheel of 900.

Names, dependencies and versions come from METADATA; CUDA, architectures and C++ ABI from the files inside.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import requests
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version
from pypi_simple import DistributionPackage, NoSuchProjectError, PyPISimple
from remotezip import RemoteIOError, RemoteZip, RemoteZipError
from urllib3.util.retry import Retry

from sifkit.errors import HostError
from sifkit.progress import Progress
from sifkit.sessions import Adapter

DEFAULT_INDEX = "https://pypi.org/simple/"
TAIL_BYTES = 1 << 20  # holds the table of contents of torch's wheel: 13,000 files
TIMEOUT = 60.0  # seconds without an answer
AT_ONCE = 8  # releases read side by side
PYTHONS = tuple(f"3.{minor}" for minor in range(9, 16))  # that tables tell apart

ROW = TypeVar("ROW")
KEY = TypeVar("KEY")


@dataclass(frozen=True)
class WheelName:
    """What a wheel's file name says."""

    version: Version
    pythons: tuple[str, ...]  # "3.13", of wheels for one Python
    oldest: str | None  # of wheels for all later ones, too
    linux: bool  # runs on Linux on x86-64

    @classmethod
    def parse(cls, filename: str) -> WheelName | None:
        """None for what is no wheel, or one with a name that no installer takes."""
        try:
            _, version, _, tags = parse_wheel_filename(filename)
        except (InvalidWheelFilename, InvalidVersion):
            return None
        pythons = {tag.interpreter for tag in tags if tag.abi == tag.interpreter}  # not free-threaded, which end in t
        found = sorted((match for tag in pythons if (match := re.fullmatch(r"cp3(\d+)", tag))), key=lambda m: int(m[1]))
        linux = any(re.fullmatch(r"any|(many)?linux\w*_x86_64", tag.platform) for tag in tags)
        return cls(version, tuple(f"3.{match[1]}" for match in found), _oldest_of(tags), linux)

    def runs_on(self, python: str) -> bool:
        """Whether a CPython of this minor version installs it."""
        return python in self.pythons or (self.oldest is not None and Version(self.oldest) <= Version(python))


def _oldest_of(tags: frozenset[Tag]) -> str | None:
    """The oldest Python of a wheel for all later ones: pure Python, or the stable C interface."""
    if any(re.fullmatch(r"(py\d\.)?py3", tag.interpreter) and tag.abi == "none" for tag in tags):
        return "3.0"
    minors = [
        int(match[1]) for tag in tags if tag.abi == "abi3" and (match := re.fullmatch(r"cp3(\d+)", tag.interpreter))
    ]
    return f"3.{min(minors)}" if minors else None


class Index:
    """A package index (PEP 503 or 691) whose files answer range requests."""

    def __init__(
        self, url: str = DEFAULT_INDEX, ca_bundle: Path | None = None, environ: Mapping[str, str] | None = None
    ) -> None:
        self.url, self._ca_bundle, self._environ = url, ca_bundle, environ
        self.session = requests.Session()
        retry = Retry(total=4, other=0, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
        for scheme in ("https://", "http://"):
            self.session.mount(scheme, Adapter(environ, ca_bundle, retry))
        self._client = PyPISimple(url, session=self.session)
        self._files: dict[str, list[DistributionPackage]] = {}

    def files(self, project: str) -> list[DistributionPackage]:
        """Every file of a project that was not withdrawn, asked for once; none when there is no such project."""
        if project not in self._files:
            self._files[project] = self._ask(project)
        return self._files[project]

    def _ask(self, project: str) -> list[DistributionPackage]:
        with _answers(self.url):
            try:
                page = self._client.get_project_page(project, timeout=TIMEOUT)
            except NoSuchProjectError:
                return []
        return [file for file in page.packages if not file.is_yanked]

    def wheels(self, project: str) -> dict[Version, list[DistributionPackage]]:
        """The wheels that run on Linux on x86-64, by version; those for free-threaded Pythons are left out."""
        found: dict[Version, list[DistributionPackage]] = {}
        for file in self.files(project):
            name = WheelName.parse(file.filename)
            if name and name.linux and not re.search(r"-cp3\d+t-", file.filename):
                found.setdefault(name.version, []).append(file)
        return found

    def archives(self, project: str) -> dict[Version, DistributionPackage]:
        """The source archives, by version."""
        found = {}
        for file in self.files(project):
            if file.package_type == "sdist" and file.version and file.filename.endswith(".tar.gz"):
                found[Version(file.version)] = file
        return found

    @contextmanager
    def open(self, file: DistributionPackage) -> Iterator[Wheel]:
        """A wheel to read from, without fetching all of it."""
        with _answers(file.url):
            archive = RemoteZip(file.url, initial_buffer_size=TAIL_BYTES, session=self.session, timeout=TIMEOUT)
        with archive:
            yield Wheel(file, archive)

    def beside(self, url: str) -> Index:
        """Another index, read with the same certificates and proxies."""
        return Index(url, self._ca_bundle, self._environ)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    def archive_members(self, file: DistributionPackage, pattern: str) -> dict[str, str]:
        """Text files of a source archive whose path below its top directory matches `pattern`."""
        with _answers(file.url):
            answer = self.session.get(file.url, timeout=TIMEOUT)
            answer.raise_for_status()
        found = {}
        with tarfile.open(fileobj=io.BytesIO(answer.content)) as tar:
            for member in tar.getmembers():
                path = member.name.partition("/")[2]
                if re.fullmatch(pattern, path) and (stream := tar.extractfile(member)):
                    found[path] = stream.read().decode()
        return found


class Wheel:
    """One wheel on an index."""

    def __init__(self, file: DistributionPackage, archive: RemoteZip) -> None:
        self.filename = file.filename
        self._url = file.url
        self._zip = archive
        self.names = frozenset(self._zip.namelist())

    def read(self, name: str) -> bytes:
        """A member's bytes."""
        with _answers(self._url):
            return bytes(self._zip.read(name))

    @cached_property
    def metadata(self) -> Metadata:
        """METADATA, parsed without judging fields that do not matter here."""
        name = next(name for name in self.names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return Metadata.from_email(self.read(name), validate=False)

    @property
    def python(self) -> str:
        """Requires-Python."""
        return str(self.metadata.requires_python or "")

    def requires(self, *, extra: str = "") -> list[Requirement]:
        """What it requires on Linux on x86-64, without its extras; or what one of its extras adds."""
        environment = {
            "sys_platform": "linux",
            "platform_system": "Linux",
            "platform_machine": "x86_64",
            "python_version": "3.12",
            "python_full_version": "3.12.0",
        }
        without = [r for r in self._requires() if _applies(r, {**environment, "extra": ""})]
        if not extra:
            return without
        return [r for r in self._requires() if r not in without and _applies(r, {**environment, "extra": extra})]

    def _requires(self) -> list[Requirement]:
        return list(self.metadata.requires_dist or ())

    def requirement(self, package: str) -> Requirement | None:
        """What it requires of one package."""
        return next((found for found in self.requires() if canonicalize_name(found.name) == package), None)

    def extract(self, names: Iterable[str], folder: str) -> None:
        """Put those members that it has below `folder`."""
        for name in self.names.intersection(names):
            target = Path(folder, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.read(name))


def _applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def shown(url: str) -> str:
    """A URL without the user name and password that it may hold."""
    return re.sub(r"//[^/@]*@", "//", url)


@contextmanager
def _answers(url: str) -> Iterator[None]:
    """Raises `HostError` that names the host, without user names and passwords that its URL may hold."""
    where = shown(url)
    try:
        yield
    except requests.exceptions.SSLError as error:
        message = f"the certificate of {where} is not trusted: {shown(str(error))}"
        raise HostError(message, "name your site's bundle: python_index.ca_bundle in the site file") from error
    except (requests.RequestException, RemoteZipError, RemoteIOError) as error:
        message = f"{where} cannot be read: {type(error).__name__}: {shown(str(error))}"
        fix = "set python_index.url in the site file; a mirror must answer range requests"
        raise HostError(message, fix) from error


def plain(requirements: Iterable[Requirement]) -> list[Requirement]:
    """Without their markers, which were evaluated."""
    return [Requirement(str(found).partition(";")[0].strip()) for found in requirements]


def read_each(title: str, keys: Sequence[KEY], read: Callable[[KEY], ROW], progress: Progress) -> list[ROW]:
    """Read rows side by side, in order."""
    rows: list[ROW] = []
    with progress.phase(f"read {title}"), ThreadPoolExecutor(AT_ONCE) as pool:
        for key, row in zip(keys, pool.map(read, keys), strict=True):
            progress.line(f"{title} {key}")
            rows.append(row)
    return rows
