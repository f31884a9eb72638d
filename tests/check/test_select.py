from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sifkit.check.facts import Facts
from sifkit.check.ignores import read_ignores, without_ignored
from sifkit.check.rule import Finding, Found, Rule, Severity
from sifkit.check.select import Selection, parse_codes
from sifkit.errors import UsageError


def nothing(facts: Facts) -> Iterator[Found]:
    """Nothing."""
    yield from ()


def a_rule(code: str, name: str) -> Rule:
    return Rule(code, name, Severity.ERROR, frozenset(), "", "", "", "", (), nothing)


KNOWN = {code: a_rule(code, f"rule-{code.lower()}") for code in ("CFG001", "CFG002", "DAT001", "ENV001")}


def codes(selection: Selection, file: Path | None = None) -> list[str]:
    return [rule.code for rule in selection.rules(KNOWN, file)]


def test_without_a_selection_every_rule_is_asked() -> None:
    assert codes(Selection()) == list(KNOWN)


@pytest.mark.parametrize(
    ("select", "ignore", "asked"),
    [
        (("CFG",), (), ["CFG001", "CFG002"]),
        (("CFG",), ("CFG002",), ["CFG001"]),
        (("CFG002",), ("CFG",), ["CFG002"]),
        (("ALL",), ("ENV", "DAT"), ["CFG001", "CFG002"]),
        (("CFG",), ("CFG",), []),
    ],
)
def test_the_longest_prefix_decides_and_ignoring_wins(
    select: tuple[str, ...], ignore: tuple[str, ...], asked: list[str]
) -> None:
    assert codes(Selection(select, ignore)) == asked


def test_a_file_may_be_spared_by_its_name_or_its_path() -> None:
    selection = Selection(per_file_ignores={"draft_*.yaml": ("CFG",), "old/*": ("ENV",)})
    assert codes(selection, Path("a/draft_1.yaml")) == ["DAT001", "ENV001"]
    assert codes(selection, Path("old/x.yaml")) == ["CFG001", "CFG002", "DAT001"]
    assert codes(selection, Path("x.yaml")) == list(KNOWN)


def test_codes_are_written_with_commas_in_any_case_and_by_name() -> None:
    assert parse_codes(["cfg, DAT001", "rule-env001"], KNOWN, "--select") == ("CFG", "DAT001", "ENV001")


def test_a_code_that_no_rule_has_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="--ignore: there is no rule CFG009") as error:
        parse_codes(["CFG009"], KNOWN, "--ignore")
    assert error.value.fix is not None
    assert error.value.fix.startswith("did you mean CFG00")


# ---------------------------------------------------------------------------------------------- comments


def finding(code: str, line: int | None) -> Finding:
    return Finding(code, "unknown-key", Severity.ERROR, "", "", "", Path("x.yaml"), line, None, None)


def kept(text: str, *findings: Finding) -> list[str]:
    return [each.code for each in without_ignored(findings, read_ignores(text))[0]]


def test_a_comment_behind_a_key_counts_for_its_line() -> None:
    text = "stage: sft\nseed: 1  # sifkit: ignore[CFG002]\n"
    assert kept(text, finding("CFG002", 1), finding("CFG002", 2), finding("CFG003", 2)) == ["CFG002", "CFG003"]


def test_without_codes_it_counts_for_all_of_its_line() -> None:
    assert kept("seed: 1  # sifkit: ignore\n", finding("CFG002", 1), finding("DAT001", 1)) == []


def test_on_a_line_of_its_own_it_counts_for_the_file_and_for_findings_without_a_line() -> None:
    text = "# sifkit: ignore[DAT, unknown-key]\nstage: sft\n"
    assert kept(text, finding("DAT001", None), finding("CFG002", 7)) == []


def test_a_whole_file_is_not_ignored_without_codes() -> None:
    assert kept("# sifkit: ignore\nstage: sft\n", finding("DAT001", 2)) == ["DAT001"]


def test_what_is_no_comment_ignores_nothing() -> None:
    assert kept("note: see#sifkit: ignore[DAT001]\n", finding("DAT001", 1)) == ["DAT001"]
