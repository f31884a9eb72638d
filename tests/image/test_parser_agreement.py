"""The parser foretold (sifkit/check/parser.py) and the image's own, side by side: the same verdict on every YAML.

Default: a few hundred. `SIFKIT_PARSER_CASES=5000 SIFKIT_PARSER_SEED=7 pytest tests/image/test_parser_agreement.py`
takes more, or others; `--sif images/NAME.sif` asks another image.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from sifkit import checkout as checkouts
from sifkit.apptainer import Apptainer, Bind
from sifkit.check.facts import ImageFacts, Parsed
from sifkit.check.parser import Device, covered, refusals
from sifkit.gather.config import Case, config_of, parse_all_inside, parse_inside
from sifkit.gather.image import file_identity, image_facts
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.verify.container import IN_CHECKOUT, Container
from tests.image.parser_cases import cases, seeds

pytestmark = [pytest.mark.apptainer, pytest.mark.image]
COUNT = int(os.environ.get("SIFKIT_PARSER_CASES", "600"))
SEED = int(os.environ.get("SIFKIT_PARSER_SEED", "20260"))


@pytest.fixture(scope="module")
def image(sif: Path, apptainer: Apptainer) -> ImageFacts:
    progress = PlainProgress(Console(stderr=True))
    return image_facts(sif, file_identity(sif), user_cache(os.environ), lambda: apptainer, progress)


@pytest.fixture(scope="module")
def checkout(image: ImageFacts) -> Path:
    """Of the image's own version, whose examples are mutated."""
    runner, progress = Runner(os.environ), PlainProgress(Console(stderr=True))
    return checkouts.cached(image.llamafactory, user_cache(os.environ), runner, progress)


@pytest.fixture(scope="module")
def drawn(image: ImageFacts, checkout: Path) -> tuple[Case, ...]:
    return tuple(cases(COUNT, SEED, image, checkout))


@pytest.fixture(scope="module")
def verdicts(
    apptainer: Apptainer, sif: Path, checkout: Path, drawn: tuple[Case, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Parsed, ...]:
    """What the image's own parser says."""
    work = tmp_path_factory.mktemp("parser")
    container = Container(apptainer, sif, work, nv=False, binds=(Bind(checkout, IN_CHECKOUT),))
    return parse_all_inside(container, drawn, IN_CHECKOUT)


class _Files(Mapping[str, Any]):
    """Files of the checkout, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getitem__(self, text: str) -> Any:
        try:
            content = (self._root / text).read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None
        return json.loads(content) if text.endswith(".json") else yaml.safe_load(content)

    def __iter__(self) -> Any:
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


def _refused(case: Case, image: ImageFacts, files: Mapping[str, Any]) -> str | None:
    """Why we say that it is refused."""
    config = config_of(Path("train.yaml"), case.text, case.overrides, image)
    if config.problem is not None:
        return config.problem.message
    return next((each.message for each in refusals(config.values, image, case.device, files)), None)


def test_the_verdicts_are_the_same(
    image: ImageFacts, checkout: Path, drawn: tuple[Case, ...], verdicts: tuple[Parsed, ...]
) -> None:
    assert covered(image)
    files = _Files(checkout)
    started = time.monotonic()
    ours = [_refused(case, image, files) for case in drawn]
    each = (time.monotonic() - started) / len(drawn)
    disagreements = [
        (case, said, verdict)
        for case, said, verdict in zip(drawn, ours, verdicts, strict=True)
        if (said is None) != verdict.accepts
    ]
    accepted = sum(verdict.accepts for verdict in verdicts)
    counts = f"{len(drawn)} configs (seed {SEED}), {accepted} accepted, {len(disagreements)} disagreements"
    print(f"{counts}, {each:.4f} s each")
    assert disagreements == []
    assert accepted > len(drawn) / 10  # mutants that are all refused would prove little
    assert accepted < len(drawn) * 0.9


def test_the_examples_are_among_them(checkout: Path, drawn: tuple[Case, ...]) -> None:
    examples = seeds(checkout)
    assert len(examples) > 30
    assert tuple(case.text for case in drawn[: len(examples)]) == examples


def test_what_the_parser_says_first_we_say_first_mostly(
    image: ImageFacts, checkout: Path, drawn: tuple[Case, ...], verdicts: tuple[Parsed, ...]
) -> None:
    files = _Files(checkout)
    refused = [(case, verdict) for case, verdict in zip(drawn, verdicts, strict=True) if not verdict.accepts]
    same = sum(
        (_refused(case, image, files) or "").splitlines()[0][:40] in " ".join(verdict.text.split("\n"))
        for case, verdict in refused
    )
    assert same / len(refused) > 0.75


def test_one_config_may_be_asked_about_alone(apptainer: Apptainer, sif: Path, checkout: Path, tmp_path: Path) -> None:
    container = Container(apptainer, sif, tmp_path, nv=False, binds=(Bind(checkout, IN_CHECKOUT),))
    verdict = parse_inside(container, seeds(checkout)[0], ["fp16=true", "bf16=true"], Device(gpu=True), IN_CHECKOUT)
    assert verdict == Parsed(False, "ValueError", "At most one of fp16 and bf16 can be True, but not both")
