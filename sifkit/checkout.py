"""A checkout of LLaMA-Factory of the image's version: its `data/`, `examples/` and sources.

The wheel inside an image holds only the package; recipes and demonstration data come from a checkout
that is bound at `/mnt`. It is fetched from a wheelhouse, from the tag in the project's git repository, or
from the source archive on the package index, whichever answers first and is whole. No line of it is
imported. pip asks the archive's own build backend for its metadata, as `pip install` would.
"""

from __future__ import annotations

import ast
import errno
import fcntl
import gzip
import importlib.util
import json
import os
import re
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO

from sifkit.errors import CommandFailed, HostError, ProblemFound, SifkitError, UsageError
from sifkit.model import Site
from sifkit.progress import Progress
from sifkit.run import Command, Runner

LLAMAFACTORY_GIT = "https://github.com/hiyouga/LLaMA-Factory.git"
GIT_ANSWERS_WITHIN = timedelta(seconds=15)  # nodes whose firewall drops packets never get an answer

VERSION_FILE = Path("src/llamafactory/extras/env.py")

# Keys of an entry in dataset_info.json that take the place of file_name.
# Source: llamafactory/data/parser.py, get_dataset_list, 0.9.3 to 0.9.5.
_NOT_A_LOCAL_FILE = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True)
class Problem:
    """What is wrong with a checkout, and what to do."""

    message: str
    fix: str


@dataclass(frozen=True)
class Sources:
    """Where a checkout may come from: the wheelhouse first, then git, then the package index."""

    wheelhouse: Path | None = None  # a directory that may hold llamafactory-VERSION.tar.gz
    git_url: str = LLAMAFACTORY_GIT
    pip_env: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], *, wheelhouse: Path | None = None, index_url: str | None = None
    ) -> Sources:
        """The user's pip settings, with uv's index and the host's certificates where pip has none of its own."""
        pip_env = {name: value for name, value in environ.items() if name.startswith("PIP_")}
        index = (
            index_url or environ.get("PIP_INDEX_URL") or environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL")
        )
        if index:
            pip_env["PIP_INDEX_URL"] = index
        if environ.get("SSL_CERT_FILE") and "REQUESTS_CA_BUNDLE" not in environ:
            pip_env.setdefault("PIP_CERT", environ["SSL_CERT_FILE"])  # pip < 24.2 does not read SSL_CERT_FILE
        return cls(wheelhouse, environ.get("SIFKIT_LLAMAFACTORY_GIT", LLAMAFACTORY_GIT), pip_env)

    @classmethod
    def of_site(cls, site: Site, environ: Mapping[str, str]) -> Sources:
        """The site's wheelhouse and package index before the user's own, and git hosting."""
        index = site.python_index
        wheelhouse = Path(index.wheelhouse) if index.wheelhouse else None
        extra = {"PIP_EXTRA_INDEX_URL": " ".join(index.extra_urls)} if index.extra_urls else {}
        return cls.from_environ({**environ, **extra}, wheelhouse=wheelhouse, index_url=index.url)


# ---------------------------------------------------------------------------------------------- reading


def version_of(checkout: Path) -> str:
    """The version that the checkout's sources say they are. Raises `UsageError` if it is no checkout."""
    path = checkout / VERSION_FILE
    fix = "name the directory that holds LLaMA-Factory's src/ and data/, or fetch one: sifkit checkout VERSION DIR"
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(
            f"{checkout} is no checkout of LLaMA-Factory: {VERSION_FILE} cannot be read ({error})", fix
        ) from None
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="VERSION")], value=ast.Constant(value=str(version))):
                return version
    raise UsageError(f"{checkout} is no checkout of LLaMA-Factory: {VERSION_FILE} sets no VERSION", fix)


def problems(checkout: Path, version: str | None) -> tuple[Problem, ...]:
    """What keeps `checkout` from being a whole one of `version` (None: of any version). Empty: nothing."""
    try:
        found = version_of(checkout)
    except UsageError as error:
        return (Problem(error.message, error.fix or ""),)
    return (*_version_problems(checkout, found, version), *_data_problems(checkout), *_example_problems(checkout))


def _version_problems(checkout: Path, found: str, wanted: str | None) -> tuple[Problem, ...]:
    if wanted in (None, found):
        return ()
    message = f"{checkout} is LLaMA-Factory {found}, not {wanted}: its recipes need not fit the image's code"
    return (Problem(message, f"use a checkout of that version: sifkit checkout {wanted} DIR"),)


def _data_problems(checkout: Path) -> tuple[Problem, ...]:
    path = checkout / "data" / "dataset_info.json"
    try:
        if path.exists() and not path.is_file():  # a pipe would keep us waiting
            raise ValueError("it is no file")
        names = _local_files(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        message = f"{checkout} has no data/dataset_info.json: no dataset is registered"
        return (Problem(message, "releases 0.9.1 to 0.9.3 were published without it; copy data/ of another release"),)
    except (OSError, ValueError) as error:
        return (Problem(f"{path} cannot be read: {error}", "correct it, or take it from a fresh checkout"),)
    except RecursionError:
        return (Problem(f"{path} is nested too deeply", "correct it, or take it from a fresh checkout"),)
    missing = [name for name in names if not os.path.exists(path.parent / name)]  # noqa: PTH110 never raises
    if not missing:
        return ()
    message = f"data/dataset_info.json of {checkout} names files that are not in data/: {', '.join(missing)}"
    return (Problem(message, "copy them from a whole release, or take their entries out of dataset_info.json"),)


def _local_files(info: object) -> list[str]:
    """Relative `file_name`s. Absolute ones are the user's own, at the place they have inside the container."""
    if not isinstance(info, dict):
        raise ValueError("it holds no mapping of dataset names")
    entries = [entry for entry in info.values() if isinstance(entry, dict)]
    local = [
        entry["file_name"] for entry in entries if "file_name" in entry and not entry.keys() & {*_NOT_A_LOCAL_FILE}
    ]
    return [name for name in local if isinstance(name, str) and not name.startswith("/")]


def _example_problems(checkout: Path) -> tuple[Problem, ...]:
    if any((checkout / "examples" / "train_lora").glob("*_lora_sft.yaml")):
        return ()
    message = f"{checkout} has no examples/train_lora/*_lora_sft.yaml"
    return (Problem(message, "source archives before 0.9.4 hold no examples: clone the git tag instead"),)


# ---------------------------------------------------------------------------------------------- fetching


def cached(
    version: str, cache_dir: Path, runner: Runner, progress: Progress, *, sources: Sources | None = None
) -> Path:
    """The whole checkout of `version` in the cache, fetched if it is not there. Not to be written to."""
    _require_version(version)  # it becomes a directory's name
    return fetch(version, cache_dir / "checkouts" / version, runner, progress, sources=sources)


def fetch(version: str, directory: Path, runner: Runner, progress: Progress, *, sources: Sources | None = None) -> Path:
    """Bring a whole checkout of `version` to `directory`, and return it.

    One that is there already is kept as it is; anything else that is there is refused with `UsageError`.
    `directory` appears complete or not at all, and a second process that asks for it waits. Raises
    `ProblemFound` when the published sources are not whole, `CommandFailed` when no source answers.
    `sources`: those of this process's environment unless given.
    """
    _require_version(version)
    sources = sources or Sources.from_environ(os.environ)
    directory = directory.absolute()
    if _is_here(version, directory):
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(directory.with_name(f".{directory.name}.lock"), progress):
        if not _is_here(version, directory):  # the process that we waited for may have brought it
            _fetch_into(version, directory, runner, progress, sources)
    return directory


def _require_version(version: str) -> None:
    if not re.fullmatch(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)?", version):
        raise UsageError(f"{version!r} is no version of LLaMA-Factory", "write it as 0.9.5")


def _is_here(version: str, directory: Path) -> bool:
    """Whether a whole checkout of `version` is there. Raises `UsageError` if the place is taken by anything else."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    found = problems(directory, version)
    if found:
        message = f"{directory} exists and stays as it is: " + "; ".join(problem.message for problem in found)
        raise UsageError(message, f"name another directory, or move {directory} out of the way")
    return True


def _fetch_into(version: str, directory: Path, runner: Runner, progress: Progress, sources: Sources) -> None:
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: we hold the lock
    try:
        partial.mkdir()
        _first_whole(version, partial, runner, progress, sources).rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _first_whole(version: str, partial: Path, runner: Runner, progress: Progress, sources: Sources) -> Path:
    """The first source's tree that is whole; otherwise an error that says of each source why not."""
    ways: list[tuple[str, Callable[[], Path]]] = [
        ("git", lambda: _from_git(version, partial / "git", runner, progress, sources.git_url)),
        ("the package index", lambda: _from_index(version, partial / "index", runner, progress, sources.pip_env)),
    ]
    archive = sources.wheelhouse / f"llamafactory-{version}.tar.gz" if sources.wheelhouse else None
    if archive and archive.is_file():
        ways.insert(0, (str(archive), lambda: unpack(archive, partial / "wheelhouse")))
    refused: list[SifkitError] = []
    for name, bring in ways:
        try:
            with progress.phase(f"LLaMA-Factory {version} from {name}"):
                return _whole(version, bring())
        except (CommandFailed, HostError, ProblemFound) as error:
            refused.append(error)
            progress.note(f"LLaMA-Factory {version} not taken from {name}: {error.message}")
    raise _no_source(version, refused)


def _whole(version: str, tree: Path) -> Path:
    found = problems(tree, version)
    if found:
        said = "; ".join(problem.message for problem in found).replace(str(tree), "it")
        raise ProblemFound(f"these sources are not whole: {said}")
    return tree


def _no_source(version: str, refused: list[SifkitError]) -> SifkitError:
    reasons = "\n".join(f"- {error.message}" for error in refused)
    if any(isinstance(error, ProblemFound) for error in refused):
        fix = (
            "use LLaMA-Factory 0.9.4 or newer; or clone this version yourself, complete its data/ from another "
            f"release, and name that directory: --checkout DIR ({LLAMAFACTORY_GIT})"
        )
        return ProblemFound(f"no published source of LLaMA-Factory {version} is whole:\n{reasons}", fix)
    fix = (
        f"put llamafactory-{version}.tar.gz into the site's wheelhouse (python_index.wheelhouse), name a mirror of the "
        "git repository in SIFKIT_LLAMAFACTORY_GIT, or bring a checkout by hand and name it: --checkout DIR"
    )
    return CommandFailed(f"LLaMA-Factory {version} cannot be fetched:\n{reasons}", fix, returncode=1)


def _from_git(version: str, tree: Path, runner: Runner, progress: Progress, url: str) -> Path:
    tag = f"v{version}"
    env = {"GIT_TERMINAL_PROMPT": "0"}
    ask = Command(("git", "ls-remote", "--exit-code", "--tags", url, f"refs/tags/{tag}"), env=env)
    runner.run(ask, on_line=progress.line, timeout=GIT_ANSWERS_WITHIN)
    argv = ["git", "-c", "advice.detachedHead=false", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=30"]
    argv += ["clone", "--quiet", "--depth", "1", "--branch", tag, url, str(tree)]
    runner.run(Command(tuple(argv), env=env), on_line=progress.line)
    return tree


def _from_index(version: str, into: Path, runner: Runner, progress: Progress, pip_env: Mapping[str, str]) -> Path:
    """pip honours every setting that the user has for an index, and compares the hash that the index names."""
    argv = [*_pip(), "download", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    argv += ["--no-deps", "--no-binary", "llamafactory", "--ignore-requires-python", "--dest", str(into)]
    runner.run(Command((*argv, f"llamafactory=={version}"), env=pip_env), on_line=progress.line)
    archives = sorted(into.glob("*.tar.gz"))
    if len(archives) != 1:
        raise CommandFailed(f"pip brought {len(archives)} archives of LLaMA-Factory, not one", returncode=0)
    return unpack(archives[0], into / "unpacked")


def _pip() -> tuple[str, ...]:
    """pip beside this Python; in an environment that uv made, where there is none, the one that uv brings."""
    if importlib.util.find_spec("pip"):
        return (sys.executable, "-m", "pip")
    from uv import find_uv_bin  # here: nodes that only verify have no uv

    return (find_uv_bin(), "tool", "run", "pip")


# ---------------------------------------------------------------------------------------------- unpacking


def unpack(archive: Path, into: Path) -> Path:
    """Unpack a source archive; its one top directory is returned. Nothing is written outside `into`."""
    into.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            _extract(tar, into)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ProblemFound(f"{archive.name} is damaged: {error}", "fetch it again") from error
    except OSError as error:
        raise HostError(f"{archive.name} cannot be unpacked into {into}: {error}", "make room there") from error
    tops = list(into.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise ProblemFound(f"{archive.name} is no source archive: it has {len(tops)} top entries")
    return tops[0]


def _extract(tar: tarfile.TarFile, into: Path) -> None:
    if hasattr(tarfile, "data_filter"):
        tar.extractall(into, filter="data")
        return
    extract_plain(tar, into)


def extract_plain(tar: tarfile.TarFile, into: Path) -> None:
    """For Pythons without extraction filters (3.10.0 to 3.10.11, 3.11.0 to 3.11.3): files and directories only.

    Links, devices and names that leave `into` are left out or refused, owners and special mode bits dropped.
    """
    root = into.resolve()
    for member in tar.getmembers():
        target = (root / member.name).resolve()
        if not target.is_relative_to(root):
            raise tarfile.ExtractError(f"{member.name!r} lies outside the archive")
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
        elif member.isreg() and (source := tar.extractfile(member)) is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with source, target.open("wb") as file:
                shutil.copyfileobj(source, file)
            target.chmod(0o755 if member.mode & 0o100 else 0o644)


# ---------------------------------------------------------------------------------------------- locking


@contextmanager
def _one_at_a_time(path: Path, progress: Progress) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which is there only while somebody holds or awaits it."""
    while True:
        with path.open("a") as file:
            _lock(file, progress)
            if not _still_at(path, file):
                continue  # its last holder removed it while we waited
            try:
                yield
            finally:
                path.unlink()
            return


def _lock(file: IO[str], progress: Progress) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress.note("another sifkit is fetching the same checkout: waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        message = f"the filesystem of {file.name} has no file locks"
        raise HostError(message, "use a directory on another filesystem") from error


def _still_at(path: Path, file: IO[str]) -> bool:
    try:
        return path.stat().st_ino == os.fstat(file.fileno()).st_ino
    except FileNotFoundError:
        return False
