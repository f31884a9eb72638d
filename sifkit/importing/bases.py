"""The base of a source: one of ours where its name is known, else as it is."""

from __future__ import annotations

from sifkit.importing.facts import known_image
from sifkit.importing.recipe import Recipe
from sifkit.importing.wishes import Wishes
from sifkit.model import Base, DockerBase
from sifkit.reference import Reference


def take_base(recipe: Recipe, wishes: Wishes, *, keep: bool) -> tuple[str | Base | None, frozenset[str]]:
    """The base that the spec asks for (None: any), and which pins are the base's alone and may give way."""
    line = recipe.base_line
    if not isinstance(recipe.base, str):
        wishes.note(line, f"base: {recipe.base.bootstrap}", "pin", "base")
        return recipe.base, frozenset()
    reference = Reference.parse(recipe.base)
    known = known_image(reference)
    if known is None or keep:
        wishes.note(line, recipe.base, "pin", "base")
        return DockerBase.model_validate({"bootstrap": "docker", "from": reference.short}), frozenset()
    weak = set()
    for key in ("torch", "cuda", "python"):
        value = getattr(known, key)
        if value and not getattr(wishes, key):
            wishes.pin(key, value, line, recipe.base)
            weak.add(key)
        elif value and getattr(wishes, key) != value:
            wishes.note(
                line, f"{key} {value} of {recipe.base}", "changed", f"{getattr(wishes, key)}, asked for later on"
            )
    if known.base:
        wishes.note(line, recipe.base, "pin", f"base: {known.base}")
    else:
        why = "replaced by a base of ours: torch's wheels bring CUDA; or --keep-base"
        wishes.note(line, recipe.base, "changed", why)
    return known.base or None, frozenset(weak)
