"""The testinfra backend against a real Apptainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import testinfra

from sifkit.testing import hostspec

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.apptainer


def test_command_runs_inside_the_image(small_sif: Path) -> None:
    host = testinfra.get_host(hostspec(str(small_sif)))
    assert host.file("/etc/sifkit-small").content_string == "small\n"
    assert host.environment()["SMALL"] == "yes"
    assert host.exists("sha256sum")
    assert not host.file("/nowhere").exists


def test_streams_and_exit_code_are_kept_apart(small_sif: Path) -> None:
    host = testinfra.get_host(hostspec(str(small_sif)))
    done = host.run("echo %s; echo wrong >&2; exit 3", "it's über")
    assert (done.rc, done.stdout, done.stderr) == (3, "it's über\n", "wrong\n")


def test_nothing_of_the_caller_is_inside(small_sif: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/host")
    monkeypatch.setenv("APPTAINERENV_LEAK", "1")
    monkeypatch.setenv("APPTAINER_BIND", f"{tmp_path}:/mnt")
    (tmp_path / "file").touch()
    host = testinfra.get_host(f"{hostspec(str(small_sif))}?pwd=/mnt")
    names = set(host.environment())
    assert names.isdisjoint({"PYTHONPATH", "LEAK"})
    assert host.check_output("ls; pwd") == "/mnt"


def test_bind_is_read_only_unless_it_says_rw(small_sif: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("bound")
    url = hostspec(str(small_sif))
    assert testinfra.get_host(f"{url}?bind={tmp_path}:/mnt").run("touch /mnt/new").failed
    host = testinfra.get_host(f"{url}?bind={tmp_path}:/mnt:rw&pwd=/mnt")
    assert host.check_output("cat file; touch new") == "bound"
    assert (tmp_path / "new").exists()


def test_missing_image_is_an_error_not_an_absent_file(tmp_path: Path) -> None:
    host = testinfra.get_host(hostspec(str(tmp_path / "missing.sif")))
    with pytest.raises(AssertionError, match="255"):
        assert host.file("/etc/passwd").exists


TESTS_OF_A_USER = """
def test_own_fixture(sif_host):
    assert sif_host.file("/etc/sifkit-small").exists

def test_testinfra_fixture(host):
    assert host.file("/etc/sifkit-small").exists
"""


def test_option_sif_runs_each_test_once_for_each_image(small_sif: Path, pytester: pytest.Pytester) -> None:
    other = pytester.path / "other image, 2.sif"
    other.symlink_to(small_sif)
    pytester.makepyfile(TESTS_OF_A_USER)
    result = pytester.runpytest_subprocess("--sif", str(small_sif), "--sif", str(other), "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4)
