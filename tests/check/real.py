"""The facts of real images, as their own probe answered; without help texts."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sifkit.check.facts import ImageFacts
from sifkit.gather.image import parse_facts

DATA = Path(__file__).with_name("data")


@cache
def real_facts(version: str) -> ImageFacts:
    """Of the image of this LLaMA-Factory: "0.9.5" or "0.9.4"."""
    facts = parse_facts((DATA / f"facts-{version}.json").read_text(), Path(f"/images/llamafactory-{version}.sif"))
    assert facts is not None
    return facts
