"""Locks from the real uv and the real package index."""

from __future__ import annotations

from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.lock import read_lock
from tests.conftest import SPEC

pytestmark = pytest.mark.index


def write(project: Path, text: str) -> Path:
    (project / "definitions" / "example.yaml").write_text(text)
    (project / "definitions" / "example.lock").unlink(missing_ok=True)
    return project / "definitions" / "example.lock"


def test_a_lock_is_for_the_images_python_and_platform_and_holds_one_torch_set(project: Path) -> None:
    path = write(project, SPEC + "extras: [metrics]\n")
    assert main(["lock", "--project", str(project)]) == Exit.OK
    lock = read_lock(path)
    files = {package.name: package.file for package in lock.packages}
    assert "-cp313-" in files["torch"]
    versions = {name: lock.version_of(name) for name in ("torch", "torchvision", "torchaudio", "llamafactory")}
    assert versions == {"torch": "2.9.1", "torchvision": "0.24.1", "torchaudio": "2.9.1", "llamafactory": "0.9.5"}
    assert [name for name, file in files.items() if not file.endswith(".whl")] == ["jieba"]
    assert lock.download_bytes() > 4e9
    assert main(["lock", "--check", "--project", str(project)]) == Exit.OK


@pytest.mark.parametrize(
    ("package", "words", "key"),
    [
        ("transformers==5.7.0", "transformers", "packages: transformers==5.7.0"),
        ("torchaudio==2.11.0", "torchaudio==2.11.0", "packages: torchaudio==2.11.0"),
        ("no-such-package-of-anybody==1", "no-such-package-of-anybody", "packages: no-such-package-of-anybody==1"),
    ],
)
def test_a_refusal_is_the_resolvers_with_what_to_change(
    project: Path, capsys: pytest.CaptureFixture[str], package: str, words: str, key: str
) -> None:
    path = write(project, SPEC + f"packages: ['{package}']\n")
    assert main(["lock", "--no-check", "--project", str(project)]) == Exit.USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert "Because" in said
    assert words in said
    assert key in said
    assert not path.exists()


def test_an_index_that_is_not_there_says_where_to_set_it(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(project, SPEC)
    site = tmp_path / "site.yaml"
    site.write_text('python_index: {url: "http://127.0.0.1:9/simple"}\n')
    assert main(["lock", "--project", str(project), "--site", str(site)]) == Exit.PROGRAM
    assert "python_index.url" in capsys.readouterr().err
