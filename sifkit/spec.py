"""Image specs: where they are, and how they are read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from sifkit import yamlfile
from sifkit.errors import UsageError
from sifkit.model import ImageSpec, ImageWish

DEFAULT_IMAGE = "llamafactory-0.9.5-cu128"


class NoProject(UsageError):
    """There is no definitions/ here."""


@dataclass(frozen=True)
class Project:
    """The directory that holds definitions/, and where build products go."""

    root: Path

    @property
    def definitions(self) -> Path:
        """The specs and their locks."""
        return self.root / "definitions"

    @property
    def compat(self) -> Path:
        """Compatibility tables of this project, where it has its own."""
        return self.definitions / "compat"

    @property
    def images(self) -> Path:
        """Built images and their manifests."""
        return self.root / "images"

    @property
    def reports(self) -> Path:
        """Verification reports, a directory for each image."""
        return self.root / "reports"

    def spec_path(self, name: str) -> Path:
        """The file of a spec."""
        return self.definitions / f"{name}.yaml"

    def lock_path(self, name: str) -> Path:
        """The lock beside it."""
        return self.definitions / f"{name}.lock"

    def names(self) -> list[str]:
        """All specs, the default first, then newest LLaMA-Factory first."""
        found = sorted((path.stem for path in self.definitions.glob("*.yaml")), reverse=True)
        return sorted(found, key=lambda name: name != DEFAULT_IMAGE)


def find_project(start: Path) -> Project:
    """The nearest directory upwards that holds definitions/. Raises `NoProject` if there is none."""
    for directory in (start, *start.parents):
        if (directory / "definitions").is_dir():
            return Project(directory)
    raise NoProject(
        f"no definitions/ in {start} or above it", "run this in a sifkit project, or give --project DIRECTORY"
    )


def load_spec(project: Project, name: str) -> ImageSpec:
    """Read a spec by name. Raises `UsageError` naming file, line and key, or the nearest known image."""
    path = project.spec_path(name)
    if not path.is_file():
        near = difflib.get_close_matches(name, project.names(), n=1)
        known = ", ".join(project.names()) or "none"
        raise UsageError(f"{path}: no such file", f"did you mean {near[0]}?" if near else f"images here: {known}")
    spec = _load_pinned(path)
    if spec.name != name:
        raise UsageError(f"{path}:1: name is {spec.name!r}, the file says {name!r}", "make them the same")
    return spec


def _load_pinned(path: Path) -> ImageSpec:
    """A spec whose only fault is that pins are left out has them chosen, not written by hand."""
    try:
        return yamlfile.load(path, ImageSpec)
    except UsageError as error:
        try:
            yamlfile.load(path, ImageWish)
        except UsageError:
            raise error from None
        raise UsageError(error.message, f"let sifkit choose what is missing: sifkit resolve {path.stem}") from None
