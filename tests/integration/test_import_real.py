"""`sifkit import` beside real tools: images, spython's own conversion, and locks of what was imported."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console
from spython.main.parse.parsers import DockerParser
from spython.main.parse.writers import SingularityWriter

from sifkit import cli
from sifkit.apptainer import Apptainer
from sifkit.errors import CommandFailed
from sifkit.importing.dockerfile import read_dockerfile
from sifkit.importing.image import read_image
from sifkit.model import ImageSpec
from sifkit.progress import PlainProgress
from sifkit.yamlfile import load
from tests.golden.test_imports import CASES


def build(apptainer: Apptainer, definition: str, directory: Path) -> Path:
    """With plain Apptainer. Raises `CommandFailed`."""
    image, file, tmpdir = directory / "x.sif", directory / "x.def", directory / "tmp"
    file.write_text(definition)
    tmpdir.mkdir(exist_ok=True)
    apptainer.runner.run(apptainer.build_command(image, file, root=directory, tmpdir=tmpdir))
    return image


# ---------------------------------------------------------------------------------------------- images

HELD = {"packages": {"torch": "2.9.1+cu128", "llamafactory": "0.9.5", "deepspeed": "0.18.4", "wandb": "0.19.0"}}
ANSWER = json.dumps({"python": "3.13", "cuda": "12.8", "spec": "", **HELD})
SHELL = f"""#!/bin/sh
echo noise
printf '%s\\n' 'SIFKIT{ANSWER}'
"""


@pytest.mark.apptainer
def test_an_image_tells_its_definition_and_its_packages(
    apptainer: Apptainer, small_sif: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "python").write_text(SHELL)
    (tmp_path / "python").chmod(0o755)
    definition = (
        f"Bootstrap: localimage\nFrom: {small_sif}\n\n%files\n    python /bin/python\n\n%post\n    true\n\n"
        "%environment\n    export GREETING=hello\n\n%labels\n    org.example.team nlp\n"
    )
    image = build(apptainer, definition, tmp_path)
    recipe, spec = read_image(image, {}, apptainer, PlainProgress(Console(stderr=True)))
    assert (recipe.python, recipe.cuda, spec) == ("3.13", "12.8", "")
    assert recipe.packages == HELD["packages"]
    (tmp_path / "definitions").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(image), "-o", "definitions/mine.yaml", "--python", "3.13"]) == 0
    found = load(tmp_path / "definitions/mine.yaml", ImageSpec)
    assert (found.torch.version, found.torch.cuda, found.llamafactory.version) == ("2.9.1", "12.8", "0.9.5")
    assert found.env == {"GREETING": "hello"}
    assert found.sections["labels"] == "org.example.team nlp"


@pytest.mark.apptainer
def test_an_image_without_python_has_its_definition_alone(apptainer: Apptainer, small_sif: Path) -> None:
    recipe, spec = read_image(small_sif, {}, apptainer, PlainProgress(Console(stderr=True)))
    assert (dict(recipe.packages), recipe.python, spec) == ({}, "", "")
    assert getattr(recipe.base, "bootstrap", "") == "scratch"


# ---------------------------------------------------------------------------------------------- spython

# Each with what goes wrong in the definition that spython writes: it does not build, or it builds without the file.
CONVERTED_WRONGLY = {
    "COPY --from=0 /etc/sifkit-small /etc/copied": "built",
    "ONBUILD RUN touch /etc/onbuild": "ONBUILD.*not found",
    "ADD https://example.org/x /opt/x/": "curl.*not found",
    "RUN --mount=type=secret,id=token cat /run/secrets/token": "not found",
    "ADD files.tar.gz /opt": "No such file|no such file|not found",
}


@pytest.mark.apptainer
@pytest.mark.parametrize("line", CONVERTED_WRONGLY)
def test_what_spython_converts_into_what_does_not_build_is_refused(
    line: str, apptainer: Apptainer, small_sif: Path, tmp_path: Path
) -> None:
    text = f"FROM small AS first\nRUN true\nFROM small\n{line}\n"
    (tmp_path / "Dockerfile").write_text(text)
    definition = SingularityWriter(DockerParser(str(tmp_path / "Dockerfile")).recipe).convert()
    definition = re.sub(r"Bootstrap: docker\nFrom: small.*", f"Bootstrap: localimage\nFrom: {small_sif}", definition)
    expected = CONVERTED_WRONGLY[line]
    if expected == "built":
        assert "copied" not in definition
    else:
        with pytest.raises(CommandFailed, match=expected):
            build(apptainer, definition, tmp_path)
    recipe = read_dockerfile(tmp_path / "Dockerfile", text.replace("small", "debian:13"), tmp_path, {})
    if line.startswith("ADD https"):
        assert recipe.faults == ()  # curl is among its packages then
    else:
        assert [fault.line for fault in recipe.faults] == [4]


# ---------------------------------------------------------------------------------------------- locks


@pytest.mark.index
@pytest.mark.parametrize("case", ["llamafactory", "apps"])
def test_an_imported_spec_locks(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(path for path in (CASES / case).iterdir() if path.name == "Dockerfile" or path.suffix == ".def")
    (tmp_path / "definitions").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(source), "-o", f"definitions/{case}.yaml"]) == 0
    assert cli.main(["lock", case]) == 0
    assert (tmp_path / f"definitions/{case}.lock").is_file()


def test_faults_are_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "definitions").mkdir()
    (tmp_path / "Dockerfile").write_text("FROM debian:13\nONBUILD RUN x\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", "Dockerfile", "-o", "definitions/x.yaml"]) == 2
    assert list((tmp_path / "definitions").iterdir()) == []
