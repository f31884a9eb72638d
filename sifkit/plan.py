"""What is stale, and why. Pure: digests in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass

from sifkit.deffile import render
from sifkit.layers import LAYOUT
from sifkit.model import Image, digest_of


@dataclass(frozen=True)
class Recipe:
    """The identity of an image: two equal recipes make equivalent images."""

    spec: str
    lock: str
    base: str
    definition: str  # of the rendered text, so that a changed template counts, but not sifkit's version number


@dataclass(frozen=True)
class Built:
    """What is known of the image that is there."""

    recipe: Recipe
    size: int  # bytes
    mtime_ns: int


def recipe_of(image: Image) -> Recipe:
    """What an image of this spec, lock and base would be."""
    text = "\n".join(line for line in render(image, sifkit_version="VERSION").split("\n") if not _of_site(line))
    return Recipe(image.spec.digest(), image.lock.digest(), image.base.identity, digest_of([LAYOUT, text]))


def _of_site(line: str) -> bool:
    """How a base is obtained is the site's: its identity counts in place of it."""
    return line.startswith(("Bootstrap:", "OSVersion:", "MirrorURL:", "From:"))


def reasons_to_build(wanted: Recipe, built: Built | None, on_disk: tuple[int, int] | None) -> tuple[str, ...]:
    """Why an image must be built; nothing when it is current. `on_disk`: its size and mtime_ns, if it is there."""
    if on_disk is None:
        return ("there is no image",)
    if built is None:
        return ("the image has no manifest",)
    if on_disk != (built.size, built.mtime_ns):
        return ("the image was changed since it was built",)
    changes = {
        "the spec changed": wanted.spec != built.recipe.spec,
        "the lock changed": wanted.lock != built.recipe.lock,
        "the base changed": wanted.base != built.recipe.base,
    }
    reasons = tuple(reason for reason, changed in changes.items() if changed)
    if not reasons and wanted.definition != built.recipe.definition:
        return ("sifkit's way of building changed",)
    return reasons
