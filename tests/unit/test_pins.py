"""Pins written into a file that somebody wrote: comments, order and everything else stay."""

from __future__ import annotations

import pytest
import yaml

from sifkit import yamlfile
from sifkit.compat.pins import new_text, with_pins
from sifkit.errors import UsageError
from sifkit.model import ImageSpec
from tests.conftest import make_spec

SPEC = make_spec()


def test_what_is_missing_is_appended() -> None:
    text = '# mine\nname: example\nllamafactory: 0.9.5 # the newest\ngpu: [V100]\ndriver: "535.104"\n'
    spec = SPEC.model_copy(update={"gpu": ("V100",), "driver": "535.104"})
    assert with_pins(text, spec) == text + (
        'base: debian-trixie\npython: "3.13"\ntorch: {version: 2.9.1, cuda: "12.8"}\napt: [gcc, git]\n'
    )


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ('torch: {cuda: "12.8"}  # for V100', 'torch: {cuda: "12.8", version: 2.9.1}  # for V100'),
        ("torch: {}", 'torch: {version: 2.9.1, cuda: "12.8"}'),
        ('torch:\n  # ours\n  cuda: "12.8" # yes', 'torch:\n  # ours\n  cuda: "12.8" # yes\n  version: 2.9.1'),
        ('torch: {version: 2.6.0, cuda: "12.4"}', 'torch: {version: 2.9.1, cuda: "12.8"}'),
        ("torch: {version: 2.9.1, cuda: '12.8'}", "torch: {version: 2.9.1, cuda: '12.8'}"),
    ],
)
def test_a_mapping_is_completed_or_corrected_in_place(given: str, written: str) -> None:
    text = f"name: example\n{given}\nllamafactory: {{version: 0.9.5}}\n"
    assert (
        with_pins(text, SPEC).splitlines()[1:-3]
        == [*written.splitlines(), "llamafactory: {version: 0.9.5}"][: len(written.splitlines()) + 1]
    )


def test_a_version_alone_stays_a_version_alone() -> None:
    text = with_pins("name: example\nllamafactory: 0.9.3\n", SPEC)
    assert "llamafactory: 0.9.5\n" in text


def test_a_base_written_out_is_the_users_own() -> None:
    base = {"bootstrap": "docker", "from": "debian:trixie-slim"}
    text = with_pins("name: example\nbase: {bootstrap: docker, from: 'debian:trixie-slim'}\n", make_spec(base=base))
    assert "base: {bootstrap: docker, from: 'debian:trixie-slim'}\n" in text


def test_a_new_file_says_what_it_was_made_from_and_loads() -> None:
    spec = make_spec(gpu=("V100",), driver="535.104", extras=("metrics",), packages=("scipy>=1.14",))
    text = new_text(spec)
    assert yamlfile.parse(text, ImageSpec, "example.yaml") == spec
    assert list(yaml.safe_load(text))[:4] == ["name", "llamafactory", "gpu", "driver"]


def test_no_mapping_no_pins() -> None:
    with pytest.raises(UsageError, match="cannot be completed in place"):
        with_pins("- a\n", SPEC)


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ("torch: {version: 2.9.1, cuda: }", 'torch: {version: 2.9.1, cuda: "12.8" }'),
        ('torch: {version:, cuda: "12.8"}', 'torch: {version: 2.9.1, cuda: "12.8"}'),
        ("torch:", 'torch: {version: 2.9.1, cuda: "12.8"}'),
        ("base:", "base: debian-trixie"),
        ("apt:\n  - nano\n# and so on", "apt:\n  [gcc, git]\n# and so on"),
    ],
)
def test_a_key_without_a_value_gets_one(given: str, written: str) -> None:
    assert f"\n{written}\n" in with_pins(f"name: example\n{given}\nllamafactory: 0.9.5\n", SPEC)


@pytest.mark.parametrize(
    "text",
    [
        "{name: example, llamafactory: 0.9.5}\n",
        "name: example\nllamafactory: 0.9.5\n...\n",
        "  name: example\n  llamafactory: 0.9.5\n",
        "name: example\ntorch: {\n  version: 2.9.1  # keep\n}\n",
        "name: example\nenv: &e {}\ntorch: *e\n",
        "name: example\ngpu: [V100]\n",  # says more than the spec
    ],
)
def test_what_cannot_be_completed_safely_is_not_touched_and_the_lines_are_said(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        with_pins(text, SPEC)
    assert 'torch: {version: 2.9.1, cuda: "12.8"}' in (caught.value.fix or "")


def test_line_ends_stay() -> None:
    text = "name: example\r\nllamafactory: 0.9.5\r\n"
    assert with_pins(text, SPEC).startswith(text.rstrip())
