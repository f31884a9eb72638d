"""What is stale, and why. Pure: digests in, reasons out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sifkit.deffile import render
from sifkit.layers import LAYOUT
from sifkit.model import DockerBase, Image, Scratch, digest_of


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
    text = render(_on_any_base(image), sifkit_version="VERSION")
    return Recipe(image.spec.digest(), image.lock.digest(), image.base.identity, digest_of([LAYOUT, text]))


def _on_any_base(image: Image) -> Image:
    """How a base is obtained is the site's: its identity counts in place of it. A tree of the host's is its own."""
    if isinstance(image.base.source, Scratch):
        return image
    source = DockerBase.model_validate({"bootstrap": "docker", "from": "any"})
    return replace(image, base=replace(image.base, source=source))


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
