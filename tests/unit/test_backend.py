"""testinfra's view of an image: URLs, options, command lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import testinfra
import testinfra.backend

from sifkit.apptainer import Bind
from sifkit.errors import UsageError
from sifkit.testing import hostspec, parse_hostspec, register
from sifkit.testing.backend import ApptainerBackend, parse_bind

pytest_plugins = ["pytester"]


def test_url_gives_path_and_options() -> None:
    url = "apptainer:///images/x.sif?nv=true&home=false&pwd=/mnt&bind=/a:/b&bind=/c:/d:rw"
    options = {"connection": "apptainer", "nv": True, "home": False, "pwd": "/mnt", "bind": ("/a:/b", "/c:/d:rw")}
    assert parse_hostspec(url) == ("/images/x.sif", options)


@pytest.mark.parametrize("path", ["/images/x.sif", "/with blank, comma/x?.sif", "/100%/ü.sif", "relative/x.sif"])
def test_every_path_survives_the_url(path: str) -> None:
    assert parse_hostspec(hostspec(path)) == (path, {"connection": "apptainer"})


@pytest.mark.parametrize("query", ["nvv=true", "nv=yes", "nonsense"])
def test_unknown_option_is_an_error(query: str) -> None:
    with pytest.raises(ValueError, match=r"nvv|nv=yes|nonsense"):
        parse_hostspec(f"apptainer:///x.sif?{query}")


@pytest.mark.parametrize("url", ["docker://name?sudo=true", "ssh://user@host", "local://", "name", None])
def test_other_schemes_stay_testinfras(url: str) -> None:
    register()
    theirs = parse_hostspec(url)
    assert testinfra.backend.parse_hostspec is parse_hostspec
    assert theirs[1].get("connection") == (url.split("://")[0] if url and "://" in url else None)


def test_registering_twice_changes_nothing() -> None:
    register()
    register()
    assert testinfra.get_host("local://").backend.NAME == "local"
    assert isinstance(testinfra.get_host("apptainer:///x.sif").backend, ApptainerBackend)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("/a", Bind(Path("/a"), "/a")),
        ("/a:/b", Bind(Path("/a"), "/b")),
        ("/a:/b:ro", Bind(Path("/a"), "/b")),
        ("/a:/b:rw", Bind(Path("/a"), "/b", writable=True)),
    ],
)
def test_bind_is_read_only_unless_it_says_rw(text: str, bind: Bind) -> None:
    assert parse_bind(text) == bind


@pytest.mark.parametrize("text", ["", ":/b", "/a:", "/a:/b:rx", "/a:/b:rw:c"])
def test_bind_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read the bind"):
        parse_bind(text)


@pytest.fixture
def echoing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An `apptainer` that prints its arguments, one a line."""
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && { echo apptainer version 1.4.5; exit; }\nprintf "%s\\n" "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")


@pytest.mark.usefixtures("echoing")
def test_command_line_holds_every_option() -> None:
    backend = ApptainerBackend("/x.sif", nv=True, pwd="/mnt", bind=("/a:/b",))
    words = backend.run("echo %s", "it's").stdout.splitlines()
    wanted = ["exec", "--cleanenv", "--pwd", "/mnt", "--nv", "--no-home", "--bind", "/a:/b:ro"]
    assert words == [*wanted, "/x.sif", "/bin/sh", "-c", """echo 'it'"'"'s'"""]


def test_importing_the_plugin_does_not_load_the_rest_of_sifkit() -> None:
    code = "import sys, sifkit.testing.plugin; print([m for m in sys.modules if m in ('pydantic', 'spython', 'rich')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_image_fails_and_says_how_to_build_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(sif_host): ...")
    result = pytester.runpytest_subprocess("--sif", "missing.sif", "-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*missing.sif is not there: build it with make sif*"])


def test_no_image_named_fails(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(sif_host): ...")
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*name one with --sif PATH*"])
