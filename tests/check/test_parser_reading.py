"""A training YAML read as LLaMA-Factory reads it: by OmegaConf's rules, before 0.9.4 by PyYAML's."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from sifkit.check.facts import Entry
from sifkit.check.parser_reading import Unreadable, read


def values(text: str, *overrides: str, version: str | None = "0.9.5") -> dict[str, Any]:
    return read(text, overrides, version).values


@pytest.mark.parametrize(
    ("written", "omegaconf", "pyyaml"),
    [
        ("1e-4", 1e-4, "1e-4"),
        ("1.0e-4", 1e-4, 1e-4),
        ("1e5", 1e5, "1e5"),
        (".5e4", ".5e4", ".5e4"),
        ("1_000", 1000, 1000),
        ("no", False, False),
        ("'no'", "no", "no"),
        ("${HOME}", "${HOME}", "${HOME}"),
        ("???", "???", "???"),
        ("", None, None),
    ],
)
def test_values_are_what_each_release_reads(written: str, omegaconf: object, pyyaml: object) -> None:
    assert values(f"a: {written}\n") == {"a": omegaconf}
    assert values(f"a: {written}\n", version="0.9.3") == {"a": pyyaml}


def test_overrides_are_read_by_omegaconfs_rules_in_every_release() -> None:
    assert values("a: 1\nb: 2\n", "a=1e-4", "c=[1, x]", "d", "e=", version="0.9.3") == {
        "a": 1e-4,
        "b": 2,
        "c": [1, "x"],
        "d": None,
        "e": None,
    }


def test_an_override_may_reach_into_a_value() -> None:
    assert values("a: {b: 1, c: 2}\n", "a.b=3") == {"a": {"b": 3, "c": 2}}


def test_an_override_still_to_be_given_changes_nothing() -> None:
    assert values("a: 1\n", "a=???") == {"a": 1}


def test_merges_and_anchors_work_as_in_omegaconf() -> None:
    assert values("a: &x {b: 1}\nc: {<<: *x, d: 2}\n") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}


def test_entries_say_where_and_how_a_value_is_written() -> None:
    reading = read("# first\nlearning_rate: 1e-4\nfsdp_config:\n  version: 2\n", (), "0.9.5")
    assert reading.entries == (
        Entry("learning_rate", 2, "1e-4", "1e-4"),
        Entry("fsdp_config", 3, {"version": 2}, None),
    )


@pytest.mark.parametrize(
    ("text", "overrides", "message", "line"),
    [
        ("a: [1\n", (), "not YAML", 2),
        ("a: 1\n  b: 2\n", (), "not YAML", 2),
        ("\ta: 1\n", (), "not YAML", 1),
        ("a: 1\nb: 2\na: 3\n", (), "a stands twice (first on line 1)", 3),
        ("- a\n", (), "expected keys and values, found a list", 1),
        ("hello\n", (), "expected keys and values, found plain text", 1),
        ("? [a]\n: b\n", (), "a key must be plain text", 1),
        ("a: !!python/object:os.system x\n", (), "could not determine a constructor", 1),
        ("null: 1\n", (), "Incompatible key type", None),
        ("a: '${b'\n", (), "a: no viable alternative at input", None),
        ("a: !!set {x}\n", (), "not a supported primitive type", None),
        ("a: 0b_\n", (), "not YAML", 1),
        ("a: [1]\n", ("a.b=1",), "", None),
        ("a: &x [*x]\n", (), "more than 10000 values", None),
        ("a: 1\n---\nb: 2\n", (), "expected a single document", 2),
        ("[" * 3000, (), "nested too deeply", None),
    ],
)
def test_what_llamafactory_cannot_read_is_said_with_its_line(
    text: str, overrides: tuple[str, ...], message: str, line: int | None
) -> None:
    with pytest.raises(Unreadable) as caught:
        read(text, overrides, "0.9.5")
    assert message in caught.value.problem.message
    assert caught.value.problem.line == line


def test_billion_laughs_take_no_time() -> None:
    names = "abcdefghijklmnop"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in itertools.pairwise(names)]
    with pytest.raises(Unreadable, match="more than 10000 values"):
        read("\n".join(lines), (), "0.9.5")


_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**6), 10**6),
    st.floats(allow_nan=False),
    st.sampled_from(["1e-4", ".5e4", "a b", "no", "2020-01-01", "1:30", "0x1f", "???", "é", "'", "~", "a: b", "# x"]),
    st.text(st.characters(exclude_categories=["C", "Z"]), max_size=6).filter(lambda text: "${" not in text),
)
_MAPPINGS = st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), _SCALARS | st.lists(_SCALARS, max_size=3))


@settings(max_examples=200, deadline=None)
@given(_MAPPINGS, st.lists(st.tuples(st.from_regex(r"[a-z_]{1,3}", fullmatch=True), _SCALARS), max_size=2))
def test_plain_text_is_read_as_omegaconf_itself_reads_it(
    mapping: dict[str, Any], given_values: list[tuple[str, Any]]
) -> None:
    text = yaml.safe_dump(mapping)
    overrides = [f"{key}={_written(value)}" for key, value in given_values]
    assert _shown(values(text, *overrides)) == _shown(_by_omegaconf(text, overrides))


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("...\n").strip()


def _by_omegaconf(text: str, overrides: list[str]) -> Any:
    return OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(io.StringIO(text)), OmegaConf.from_cli(overrides)))


def _shown(found: Any) -> str:
    return repr(found if not isinstance(found, float) or not math.isnan(found) else "nan")
