"""Images: the definition that a SIF keeps, and what its own Python says is installed.

An image of sifkit's holds its spec, which then is the answer. Of one that came from a registry the definition says only
from where; its packages are all that tells.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sifkit.apptainer import Apptainer, Exec
from sifkit.errors import CommandFailed
from sifkit.gather.image import require_image
from sifkit.importing.definition import read_definition
from sifkit.importing.recipe import Recipe
from sifkit.progress import Progress
from sifkit.sif import DEFINITION, read_objects

_LARGEST = 1 << 20
_SPEC = "/opt/sifkit/spec.yaml"
# Runs in the image, by whatever Python is first there; torch is not imported, which takes seconds.
_PROBE = f"""
import importlib.metadata as m, json, os, re, sys
found = {{d.metadata["Name"]: d.version for d in m.distributions() if d.metadata["Name"]}}
cuda = ""
for place in sys.path:
    path = os.path.join(place, "torch", "version.py")
    if os.path.isfile(path):
        match = re.search(r"^cuda\\b[^=]*=\\s*['\\"]([0-9.]+)", open(path).read(), re.M)
        cuda = match.group(1) if match else ""
        break
spec = open("{_SPEC}").read() if os.path.isfile("{_SPEC}") else ""
python = "%d.%d" % sys.version_info[:2]
print("SIFKIT" + json.dumps({{"python": python, "cuda": cuda, "packages": found, "spec": spec}}))
"""
_PYTHONS = ("/opt/venv/bin/python", "python", "python3", "/opt/conda/bin/python")


@dataclass(frozen=True)
class Told:
    """What an image's Python says."""

    python: str = ""
    cuda: str = ""
    packages: Mapping[str, str] | None = None
    spec: str = ""


def read_image(
    path: Path, arguments: Mapping[str, str], apptainer: Apptainer, progress: Progress
) -> tuple[Recipe, str]:
    """The recipe of an image, and the spec's text if it is sifkit's. Raises `UsageError` for what is no image."""
    require_image(path)
    with progress.phase(f"{path.name}: ask what it holds"):
        told = ask(path, apptainer)
    text = definition_of(path)
    recipe = read_definition(str(path), text, path.parent, arguments) if text else _nothing(path)
    packages = told.packages or {}
    return replace(recipe, packages=packages, python=told.python, cuda=told.cuda), told.spec


def _nothing(path: Path) -> Recipe:
    return Recipe(str(path), path.parent, "debian:trixie-slim", 1)


def definition_of(path: Path) -> str:
    """The definition that the file keeps; empty where it keeps none."""
    for one in read_objects(path):
        if one.kind == DEFINITION and 0 < one.size <= _LARGEST:
            with path.open("rb") as file:
                file.seek(one.offset)
                return file.read(one.size).decode("utf-8", "replace").rstrip("\0")
    return ""


def ask(path: Path, apptainer: Apptainer) -> Told:
    """By the first Python that answers; nothing where there is none."""
    for python in _PYTHONS:
        command = Exec(path, (python, "-c", _PROBE)).command(apptainer)
        result = apptainer.runner.run(command, check=False)
        line = next((row for row in result.output.splitlines() if row.startswith("SIFKIT")), "")
        if line:
            return _told(line.removeprefix("SIFKIT"), path)
    return Told()


def _told(text: str, path: Path) -> Told:
    try:
        content = json.loads(text)
        packages = {str(name): str(version) for name, version in content["packages"].items()}
        return Told(
            str(content["python"]), ".".join(str(content["cuda"]).split(".")[:2]), packages, str(content["spec"])
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CommandFailed(f"{path}: its Python gives no answer that can be read", returncode=0) from None
