"""What is stale, and why."""

from __future__ import annotations

import dataclasses

import pytest

from sifkit.plan import Built, Recipe, reasons_to_build, recipe_of
from sifkit.resolve import HostBases
from tests.conftest import make_image, make_spec

RECIPE = Recipe(spec="s", lock="l", base="b", definition="d")
BUILT = Built(RECIPE, size=10, mtime_ns=20)


def test_how_the_site_obtains_a_base_makes_no_image_stale() -> None:
    assert recipe_of(make_image()) == recipe_of(make_image(host=HostBases()))


def test_an_image_that_is_current_needs_nothing() -> None:
    assert reasons_to_build(RECIPE, BUILT, (10, 20)) == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"spec": "x"}, "the spec changed"),
        ({"lock": "x"}, "the lock changed"),
        ({"base": "x"}, "the base changed"),
        ({"definition": "x"}, "sifkit's way of building changed"),
    ],
)
def test_each_change_is_named(change: dict[str, str], reason: str) -> None:
    assert reasons_to_build(dataclasses.replace(RECIPE, **change), BUILT, (10, 20)) == (reason,)


def test_what_is_on_disk_counts_first() -> None:
    assert reasons_to_build(RECIPE, BUILT, None) == ("there is no image",)
    assert reasons_to_build(RECIPE, None, (10, 20)) == ("the image has no manifest",)
    assert reasons_to_build(RECIPE, BUILT, (11, 20)) == ("the image was changed since it was built",)


def test_a_recipe_follows_spec_and_environment_but_not_order_of_keys() -> None:
    one, two = make_spec(env={"A": "1", "B": "2"}), make_spec(env={"B": "2", "A": "1"})
    assert recipe_of(make_image(one)) == recipe_of(make_image(two))
    assert recipe_of(make_image(one)) != recipe_of(make_image(make_spec()))
