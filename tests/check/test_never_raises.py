"""No rule stumbles, whatever a YAML says and whatever the image, the host, the site or the job are; `--fix` changes
what it is told to and nothing else."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sifkit.check.edits import edited
from sifkit.check.facts import Facts, ImageRecord, Place
from sifkit.check.report import RENDERERS, Checked, TextOptions, text
from sifkit.check.rule import Edit, Finding, all_rules, apply
from sifkit.gather.checkout import gather_checkout
from sifkit.gather.config import config_of
from tests.check import good
from tests.check.checkout_tree import Tree, make_tree
from tests.check.real import real_facts

IMAGE = real_facts("0.9.5")
OLD = real_facts("0.9.4")
RULES = tuple(all_rules().values())
KEYS = tuple(argument.name for argument in IMAGE.arguments)
WORDS = ("true", "no", "null", "~", "1e999", ".nan", "-.inf", "0", "-1", "0x" + "f" * 40, "1:30", "2001-01-01", "",
         "lora", "full", "pt", "dpo", "ppo", "kto", "steps", "epoch", "all", "8", "0.5", "alpaca_en_demo", ",", "/",
         "fa2", "'8'", "auto", "wandb", "{}", "[]", "[a, 1]", "{a: {b: [1]}}", "${a}", "???", "!!int 3",
         "9" * 300)  # fmt: skip
SCALARS = st.one_of(
    st.sampled_from(WORDS), st.integers().map(str), st.floats().map(str), st.text(max_size=8).map(lambda t: f'"{t}"')
)
LINES = st.tuples(st.sampled_from(KEYS), SCALARS).map(lambda pair: f"{pair[0]}: {pair[1]}\n")
TEXTS = st.one_of(
    st.lists(LINES, max_size=12, unique_by=lambda line: line.split(":")[0]).map("".join),
    st.text(max_size=60),
    st.dictionaries(
        st.one_of(st.sampled_from(KEYS), st.text(max_size=4), st.integers(), st.booleans(), st.none()),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=8,
    ).map(yaml.dump),
)
TIMED = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def judged(facts: Facts) -> tuple[Finding, ...]:
    """What all rules find; every format shows it."""
    findings, skipped = apply(RULES, facts)
    checked = [Checked("train.yaml", findings, skipped)]
    for render in RENDERERS.values():
        render(checked, RULES, "0").encode("utf-8", "surrogateescape")
    assert "\x1b" not in text(checked, TextOptions(causes=True, skipped=True))
    return findings


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return make_tree(tmp_path_factory.mktemp("tree"))


@TIMED
@given(TEXTS, st.lists(st.tuples(st.sampled_from(KEYS), SCALARS).map("=".join), max_size=2), st.booleans())
def test_no_rule_stumbles_over_what_a_yaml_says(tree: Tree, text_: str, overrides: list[str], old: bool) -> None:
    image = OLD if old else IMAGE
    config = config_of(Path("train.yaml"), text_, overrides, image)
    environ = {"HOME": str(tree.root.parent)}
    checkout = gather_checkout(tree.root, config, image, shared=False, environ=environ) if not config.problem else None
    judged(good.facts(config=config, image=image, checkout=checkout))


# ---------------------------------------------------------------------------------------------- other facts


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to everything that is no container: fields, keys, indices."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from leaves(getattr(value, field.name), (*at, field.name))
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from leaves(each, (*at, key))
    elif isinstance(value, tuple):
        for index, each in enumerate(value):
            yield from leaves(each, (*at, index))
    elif isinstance(value, (str, int, float, Path)):
        yield at


def with_leaf(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """The same with another value at the end of a way, of that value's own kind."""
    if not way:
        return new(value)
    first, *rest = way
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{first: with_leaf(getattr(value, first), tuple(rest), new)})
    if isinstance(value, Mapping):
        return {**value, first: with_leaf(value[first], tuple(rest), new)}
    return tuple(with_leaf(each, tuple(rest), new) if at == first else each for at, each in enumerate(value))


def another(value: Any, words: str, number: int) -> Any:
    """Something of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return number
        case Path():
            return Path(words.replace("\0", "") or "/")
        case _:
            return words


RICH = dataclasses.replace(
    good.facts(),
    image=dataclasses.replace(
        good.IMAGE,
        environment={"LD_LIBRARY_PATH": "/compat:/.singularity.d/libs", "HF_HOME": "/x"},
        cuda_compat=("/compat",),
        unresolved=("a/b.so needs libc.so",),
        imports={"deepspeed": "ImportError: x", "torchaudio": "OSError: libcudart.so.13"},
        packages={**good.IMAGE.packages, "deepspeed": "0.18.4", "wandb": "0.22.0", "bitsandbytes": "0.49.2"},
        record=ImageRecord("x", "it has 7 bytes", ("CPU",)),
        model_types=frozenset({"llama"}),
    ),
    host=dataclasses.replace(
        good.HOST,
        places=(*good.HOST.places, Place("HF_HOME", Path("/x"), True, False, False, "nfs", 1, "no", 5)),
        driver="570.86",
        nv_libraries=("libcuda.so.1",),
        nv_glibc="2.38",
        open_files=(256, -1),
        environment={"TMPDIR": "/local", "NCCL_IB_DISABLE": "1", "PYTHONPATH": "/x", "HF_HOME": "/x"},
    ),
    site=dataclasses.replace(good.SITE, gpus=(good.H100, good.V100), binds=("/a:/b:ro",), hf_home="/hf"),
    job=dataclasses.replace(good.JOB, nodes=2, gpus=2, torchrun=True, requeue=True),
    config=good.config(deepspeed="ds.json", quantization_bit=4, flash_attn="fa2", overwrite_output_dir=True),
)
WAYS = [way for way in leaves(RICH) if way[0] != "config"]
ODD = st.one_of(
    st.sampled_from(
        ["", "x", "1.", "1.x", "v2.6", "2.9.1+cu128", "99999", "5.6.0.dev0", "sm_", "compute_x", "/", "~", ":", "-1"]
    ),
    st.text(max_size=12),
)
NUMBERS = st.one_of(st.sampled_from([0, -1, 1, 10**18]), st.integers(min_value=-(10**20), max_value=10**20))


@settings(TIMED, max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(WAYS), ODD, NUMBERS), min_size=1, max_size=3))
def test_no_rule_stumbles_over_odd_facts(changes: list[tuple[tuple[Any, ...], str, int]]) -> None:
    facts: Facts = RICH
    for way, words, number in changes:
        facts = with_leaf(facts, way, lambda value, words=words, number=number: another(value, words, number))
    judged(facts)


@settings(TIMED, max_examples=60)
@given(st.sets(st.sampled_from(["image", "checkout", "host", "site", "job"])))
def test_no_rule_misses_facts_that_it_does_not_ask_for(parts: set[str]) -> None:
    without: Any = dict.fromkeys(parts)
    skipped = apply(RULES, dataclasses.replace(RICH, **without))[1]
    assert {each.code for each in skipped} >= {
        rule.code for rule in RULES if parts & {kind.value for kind in rule.needs}
    }


# ---------------------------------------------------------------------------------------------- --fix

VALUES = ("8", "true", "1e-4", '"x"', "'a b'", "[a, b]", "{a: 1}", "\n  - a\n  - b", "a b", ">-\n  long\n  text", "")
COMMENTS = ("", "  # why", " #")
ENTRIES = st.tuples(st.sampled_from(KEYS[:40]), st.sampled_from(VALUES), st.sampled_from(COMMENTS))
BETWEEN = st.sampled_from(["", "\n", "# about the next\n", "### part\n\n"])


def written(entries: list[tuple[tuple[str, str, str], str]], newline: str) -> str:
    lines = [
        f"{before}{key}: {value if chr(10) in value else value + comment}\n"
        for (key, value, comment), before in entries
    ]
    return "".join(lines).replace("\n", newline)


@settings(TIMED, max_examples=300)
@given(
    st.lists(st.tuples(ENTRIES, BETWEEN), min_size=1, max_size=8, unique_by=lambda entry: entry[0][0]),
    st.data(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_an_edit_changes_its_key_alone(
    entries: list[tuple[tuple[str, str, str], str]], data: st.DataObject, newline: str
) -> None:
    before = written(entries, newline)
    key = data.draw(st.sampled_from([entry[0][0] for entry in entries] + ["seed_of_none"]))
    edit = data.draw(
        st.sampled_from([Edit(key, value="17"), Edit(key, rename="renamed"), Edit(key, "17", "renamed"), Edit(key)])
    )
    values = yaml.safe_load(before)
    after = edited(before, [edit])
    wanted = dict(values)
    if key in wanted:
        old = wanted.pop(key)
        if edit.value or edit.rename:
            wanted[edit.rename or key] = 17 if edit.value else old
    elif edit.value and not edit.rename:
        wanted[key] = 17
    assert (yaml.safe_load(after) or {}) == wanted
    comments = [line for line in before.splitlines() if line.lstrip().startswith("#")]
    assert [line for line in after.splitlines() if line.lstrip().startswith("#")] == comments
    assert ("\r\n" in after) == ("\r\n" in before) or not after


@TIMED
@given(st.lists(LINES, max_size=12, unique_by=lambda line: line.split(":")[0]).map("".join))
def test_what_is_mended_is_still_read_and_differs_only_where_a_finding_says_so(lines: str) -> None:
    config = config_of(Path("train.yaml"), lines, (), IMAGE)
    if config.problem is not None:
        return
    edits = [found.edit for found in apply(RULES, good.facts(config=config, image=IMAGE))[0] if found.edit]
    after = config_of(Path("train.yaml"), edited(lines, edits), (), IMAGE)
    touched = {edit.key for edit in edits} | {edit.rename for edit in edits if edit.rename}
    assert after.problem is None
    kept = {key: repr(value) for key, value in config.values.items() if key not in touched}
    assert {key: repr(value) for key, value in after.values.items() if key not in touched} == kept
