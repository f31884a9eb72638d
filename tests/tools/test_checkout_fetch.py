"""Fetching checkouts with real git and real pip, from a repository and an index made here."""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from rich.console import Console

from sifkit.checkout import Sources, cached, fetch, problems, version_of
from sifkit.errors import CommandFailed, ProblemFound, UsageError
from sifkit.progress import PlainProgress
from sifkit.run import Runner

VERSION = "0.9.9"

# A build backend inside the archive: pip asks it for the metadata, and needs nothing from any index.
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
BACKEND = f"""
from pathlib import Path
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    info = Path(directory, "llamafactory-{VERSION}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: llamafactory\\nVersion: {VERSION}\\n")
    return info.name
"""


def write_checkout(root: Path, version: str = VERSION) -> Path:
    for name, text in {
        "pyproject.toml": PYPROJECT,
        "backend.py": BACKEND,
        "src/llamafactory/extras/env.py": f'VERSION = "{version}"\n',
        "data/dataset_info.json": json.dumps({"identity": {"file_name": "identity.json"}}),
        "data/identity.json": "[]",
        "examples/train_lora/qwen3_lora_sft.yaml": "stage: sft\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def git(*words: str, cwd: Path) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "init.defaultBranch=main")
    subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True)


def repository(tmp_path: Path, *, without: str | None = None) -> str:
    """URL of a bare repository with tag v0.9.9."""
    work = write_checkout(tmp_path / "work")
    if without:
        (work / without).unlink()
    git("init", "-q", cwd=work)
    git("add", ".", cwd=work)
    git("commit", "-qm", "release", cwd=work)
    git("tag", f"v{VERSION}", cwd=work)
    git("clone", "-q", "--bare", str(work), str(tmp_path / "bare.git"), cwd=tmp_path)
    return (tmp_path / "bare.git").as_uri()


def sdist(tmp_path: Path, directory: Path) -> Path:
    """llamafactory-0.9.9.tar.gz in `directory`."""
    tree = write_checkout(tmp_path / "sdist")
    (tree / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: llamafactory\nVersion: {VERSION}\n")
    directory.mkdir(parents=True)
    path = directory / f"llamafactory-{VERSION}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tree, arcname=f"llamafactory-{VERSION}")
    return path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Requests are not logged."""


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A simple index on loopback that holds the source archive and its hash."""
    folder = tmp_path / "index" / "llamafactory"
    path = sdist(tmp_path, folder)
    link = f'<a href="{path.name}#sha256={sha256(path.read_bytes()).hexdigest()}">{path.name}</a>'
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{link}</body></html>")
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "index"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    home = tmp_path / "home"
    home.mkdir()
    return Runner({**os.environ, "HOME": str(home), "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"})


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(said: io.StringIO) -> PlainProgress:
    return PlainProgress(Console(file=said, width=400))


NO_GIT = "file:///nowhere/LLaMA-Factory.git"
NO_INDEX = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}


def pip_from(index: str) -> dict[str, str]:
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index}


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_git_tag_is_cloned(tmp_path: Path, runner: Runner, progress: PlainProgress) -> None:
    sources = Sources(git_url=repository(tmp_path), pip_env=NO_INDEX)
    found = fetch(VERSION, tmp_path / "to" / "LF", runner, progress, sources=sources)
    assert found == tmp_path / "to" / "LF"
    assert problems(found, VERSION) == ()
    assert (found / ".git").is_dir()
    assert entries(tmp_path / "to") == ["LF"]


def test_index_is_used_where_git_does_not_answer(
    tmp_path: Path, runner: Runner, progress: PlainProgress, said: io.StringIO, index: str
) -> None:
    sources = Sources(git_url=NO_GIT, pip_env=pip_from(index))
    found = fetch(VERSION, tmp_path / "to" / "LF", runner, progress, sources=sources)
    assert problems(found, VERSION) == ()
    assert entries(tmp_path / "to") == ["LF"]
    assert f"LLaMA-Factory {VERSION} not taken from git: git failed" in said.getvalue()
    assert f"LLaMA-Factory {VERSION} from the package index: done" in said.getvalue()


def test_archive_with_another_hash_than_the_index_says_is_refused(
    tmp_path: Path, runner: Runner, progress: PlainProgress, index: str
) -> None:
    archive = tmp_path / "index" / "llamafactory" / f"llamafactory-{VERSION}.tar.gz"
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(CommandFailed, match="HASHES"):
        fetch(
            VERSION, tmp_path / "to" / "LF", runner, progress, sources=Sources(git_url=NO_GIT, pip_env=pip_from(index))
        )
    assert entries(tmp_path / "to") == []


def test_wheelhouse_needs_neither_git_nor_index(tmp_path: Path, runner: Runner, progress: PlainProgress) -> None:
    wheelhouse = sdist(tmp_path, tmp_path / "wheels").parent
    sources = Sources(wheelhouse=wheelhouse, git_url=NO_GIT, pip_env=NO_INDEX)
    assert problems(fetch(VERSION, tmp_path / "LF", runner, progress, sources=sources), VERSION) == ()


def test_tag_that_lost_its_data_gives_way_to_a_whole_archive(
    tmp_path: Path, runner: Runner, progress: PlainProgress, said: io.StringIO, index: str
) -> None:
    url = repository(tmp_path, without="data/identity.json")
    found = fetch(VERSION, tmp_path / "LF", runner, progress, sources=Sources(git_url=url, pip_env=pip_from(index)))
    assert problems(found, VERSION) == ()
    assert "these sources are not whole" in said.getvalue()


def test_release_that_is_whole_nowhere_is_refused_with_what_is_missing(
    tmp_path: Path, runner: Runner, progress: PlainProgress
) -> None:
    url = repository(tmp_path, without="data/dataset_info.json")
    with pytest.raises(ProblemFound, match=r"has no data/dataset_info\.json") as caught:
        fetch(VERSION, tmp_path / "to" / "LF", runner, progress, sources=Sources(git_url=url, pip_env=NO_INDEX))
    assert "use LLaMA-Factory 0.9.4 or newer" in (caught.value.fix or "")
    assert entries(tmp_path / "to") == []


def test_where_nothing_answers_the_error_names_both_and_the_way_by_hand(
    tmp_path: Path, runner: Runner, progress: PlainProgress
) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)cannot be fetched.*git failed.*failed") as caught:
        fetch(VERSION, tmp_path / "to" / "LF", runner, progress, sources=Sources(git_url=NO_GIT, pip_env=NO_INDEX))
    assert "SIFKIT_LLAMAFACTORY_GIT" in (caught.value.fix or "")
    assert entries(tmp_path / "to") == []


def test_tag_whose_sources_say_another_version_is_refused(
    tmp_path: Path, runner: Runner, progress: PlainProgress
) -> None:
    url = repository(tmp_path)
    git("tag", "v0.9.8", "v0.9.9", cwd=tmp_path / "bare.git")
    with pytest.raises(ProblemFound, match=r"is LLaMA-Factory 0\.9\.9, not 0\.9\.8"):
        fetch("0.9.8", tmp_path / "LF", runner, progress, sources=Sources(git_url=url, pip_env=NO_INDEX))


def test_whole_checkout_is_kept_with_the_users_changes(tmp_path: Path, runner: Runner, progress: PlainProgress) -> None:
    here = write_checkout(tmp_path / "LF")
    (here / "mine.yaml").write_text("stage: sft\n")
    assert fetch(VERSION, here, runner, progress, sources=Sources(git_url=NO_GIT, pip_env=NO_INDEX)) == here
    assert (here / "mine.yaml").exists()


@pytest.mark.parametrize("name", ["notes.txt", "src/llamafactory/extras/env.py"])
def test_other_directory_is_refused_and_left_alone(
    tmp_path: Path, runner: Runner, progress: PlainProgress, name: str
) -> None:
    mine = tmp_path / "LF" / name
    mine.parent.mkdir(parents=True)
    mine.write_text('VERSION = "0.9.4"\n')
    with pytest.raises(UsageError, match="exists and stays as it is"):
        fetch(VERSION, tmp_path / "LF", runner, progress, sources=Sources(git_url=repository(tmp_path)))
    assert mine.read_text() == 'VERSION = "0.9.4"\n'


def test_empty_directory_and_leftovers_of_a_killed_fetch_are_replaced(
    tmp_path: Path, runner: Runner, progress: PlainProgress
) -> None:
    (tmp_path / "to" / "LF").mkdir(parents=True)
    (tmp_path / "to" / ".LF.partial" / "git").mkdir(parents=True)
    found = fetch(VERSION, tmp_path / "to" / "LF", runner, progress, sources=Sources(git_url=repository(tmp_path)))
    assert version_of(found) == VERSION
    assert entries(tmp_path / "to") == ["LF"]


@pytest.mark.parametrize("version", ["../../etc", "v0.9.5", "--upload-pack=x", ""])
def test_what_is_no_version_never_becomes_a_path_or_an_option(
    tmp_path: Path, runner: Runner, progress: PlainProgress, version: str
) -> None:
    with pytest.raises(UsageError, match="is no version of LLaMA-Factory"):
        cached(version, tmp_path / "cache", runner, progress)
    assert not (tmp_path / "cache").exists()


FETCH = """
import os, sys
from pathlib import Path
from rich.console import Console
from sifkit.checkout import Sources, cached
from sifkit.progress import PlainProgress
from sifkit.run import Runner
sources = Sources(git_url=sys.argv[2], pip_env={"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull})
print(cached("0.9.9", Path(sys.argv[1]), Runner(os.environ), PlainProgress(Console(stderr=True)), sources=sources))
"""


def test_two_at_once_fetch_once(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", FETCH, str(tmp_path / "cache"), repository(tmp_path)]
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60) for process in running]
    assert {out.strip() for out, _ in answers} == {str(tmp_path / "cache" / "checkouts" / VERSION)}
    assert sum("from git: done" in err for _, err in answers) == 1
    assert entries(tmp_path / "cache" / "checkouts") == [VERSION]


SLOW_GIT = """#!/bin/sh
[ "$1" = ls-remote ] && exit 0
for last; do :; done
mkdir -p "$last"
echo cloning >&2
sleep 60
"""


def test_interrupted_fetch_leaves_nothing(tmp_path: Path, progress: PlainProgress) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").write_text(SLOW_GIT)
    (programs / "git").chmod(0o755)

    class Stopping(PlainProgress):
        def line(self, text: str) -> None:
            os.kill(os.getpid(), 2)

    runner = Runner({"PATH": f"{programs}:{os.environ['PATH']}"})
    with pytest.raises(KeyboardInterrupt):
        fetch(VERSION, tmp_path / "to" / "LF", runner, Stopping(Console(file=io.StringIO())), sources=Sources())
    assert entries(tmp_path / "to") == []


@pytest.mark.image
def test_published_release_is_whole(tmp_path: Path, progress: PlainProgress) -> None:
    found = fetch("0.9.5", tmp_path / "LF", Runner(os.environ), progress)
    assert problems(found, "0.9.5") == ()
    assert (found / "examples" / "train_lora" / "qwen3_lora_sft.yaml").is_file()


@pytest.mark.image
def test_release_published_without_data_is_refused(tmp_path: Path, progress: PlainProgress) -> None:
    with pytest.raises(ProblemFound, match=r"no published source of LLaMA-Factory 0\.9\.3 is whole"):
        fetch("0.9.3", tmp_path / "LF", Runner(os.environ), progress)
