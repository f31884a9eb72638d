"""When the facts of an image stand for its own test."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from sifkit.check.facts import ImageFacts
from sifkit.execute import answers_test
from tests.check.good import IMAGE
from tests.conftest import make_image, make_spec

TUNER = "llamafactory.train.tuner"
GOOD = replace(
    IMAGE,
    llamafactory="0.9.5",
    packages={"torch": "2.9.1+cu128"},
    torch_cuda="12.8",
    imports=dict.fromkeys(("torchaudio", "torchvision", TUNER), ""),
)


def without(name: str) -> Mapping[str, str]:
    return {module: "" for module in GOOD.imports if module != name}


def test_facts_that_show_all_that_the_test_looks_at_stand_for_it() -> None:
    assert answers_test(make_image(), GOOD)


@pytest.mark.parametrize(
    "facts",
    [
        None,
        replace(GOOD, llamafactory="0.9.4"),
        replace(GOOD, packages={"torch": "2.8.0"}),
        replace(GOOD, packages={}),
        replace(GOOD, torch_cuda=None),
        replace(GOOD, imports={**GOOD.imports, TUNER: "ImportError: no"}),
        replace(GOOD, imports=without("torchaudio")),
    ],
)
def test_others_do_not(facts: ImageFacts | None) -> None:
    assert not answers_test(make_image(), facts)


def test_nor_for_a_test_of_the_specs_own() -> None:
    spec = make_spec(sections={"test": "true"})
    assert not answers_test(make_image(spec), GOOD)
