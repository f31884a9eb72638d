from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sarif_pydantic import Sarif

from sifkit.check.report import RENDERERS, Checked, TextOptions, github, junit, sarif, summary, text
from sifkit.check.rule import Finding, Rule, Severity, Skipped, all_rules

UNKNOWN = Finding(
    "CFG002",
    "unknown-key",
    Severity.ERROR,
    "lerning_rate: no such key",
    "the parser stops at keys that it does not know",
    "did you mean learning_rate?",
    Path("recipes/train.yaml"),
    7,
    "lerning_rate",
    None,
)
SLOW = replace(UNKNOWN, code="CKP008", name="many", severity=Severity.WARNING, line=None, file=None, message="50% kept")
BATCH = replace(SLOW, code="DST003", severity=Severity.INFO, message="effective batch: 8", fix="")
CHECKED = Checked(
    "recipes/train.yaml",
    (UNKNOWN, SLOW, BATCH),
    (Skipped("GPU001", "driver-too-old", "no facts of the site"), Skipped("GPU002", "x", "no facts of the site")),
    asked=("CFG002", "CKP008", "DST003", "DAT001"),
)


def test_text_says_where_which_rule_what_and_the_fix() -> None:
    assert text([CHECKED], TextOptions()).splitlines() == [
        "recipes/train.yaml:7: error CFG002 lerning_rate: no such key",
        "  fix: did you mean learning_rate?",
        "recipes/train.yaml: warning CKP008 50% kept",
        "  fix: did you mean learning_rate?",
        "recipes/train.yaml: info DST003 effective batch: 8",
        "not checked: GPU001, GPU002: no facts of the site",
        "1 error, 1 warning; 4 rules checked",
    ]


def test_text_may_say_why() -> None:
    assert "  why: the parser stops at keys" in text([CHECKED], TextOptions(causes=True))


def test_text_shows_no_control_characters_of_a_file() -> None:
    evil = replace(UNKNOWN, message="a\x1b[2Jb\nsecond")
    shown = text([replace(CHECKED, findings=(evil,))], TextOptions())
    assert "\x1b" not in shown
    assert "    second" in shown


def test_colour_is_only_there_when_asked_for() -> None:
    assert "\x1b" not in text([CHECKED], TextOptions())
    assert "\x1b[1;31merror\x1b[0m" in text([CHECKED], TextOptions(color=True))


def test_the_summary_counts_over_files_and_says_what_comments_ignored() -> None:
    clean = Checked("b.yaml", (), (), ignored=(UNKNOWN,), asked=("CFG002",))
    assert summary([clean]) == "no errors, no warnings; 1 rule checked; 1 ignored by comments"
    assert summary([CHECKED, clean]).startswith("2 files: 1 error, 1 warning; 4 rules checked")


def test_json_holds_every_part_of_a_finding() -> None:
    (one,) = json.loads(RENDERERS["json"]([CHECKED], (), "1.0"))
    assert one["findings"][0] == {
        "code": "CFG002",
        "rule": "unknown-key",
        "severity": "error",
        "message": "lerning_rate: no such key",
        "cause": "the parser stops at keys that it does not know",
        "fix": "did you mean learning_rate?",
        "file": "recipes/train.yaml",
        "line": 7,
        "key": "lerning_rate",
        "fixable": False,
    }
    assert one["not_checked"][0] == {"code": "GPU001", "name": "driver-too-old", "reason": "no facts of the site"}


def test_github_escapes_what_its_commands_would_read() -> None:
    lines = github([CHECKED]).splitlines()
    assert lines[0] == (
        "::error title=CFG002 unknown-key,file=recipes/train.yaml,line=7"
        "::lerning_rate: no such key Fix: did you mean learning_rate?"
    )
    assert lines[1].startswith("::warning title=CKP008 many,file=recipes/train.yaml::50%25 kept")
    odd = replace(CHECKED, findings=(replace(UNKNOWN, file=Path("a,b:c.yaml"), message="one\ntwo"),))
    assert "file=a%2Cb%3Ac.yaml" in github([odd])
    assert "one%0Atwo" in github([odd])


def test_sarif_is_what_its_readers_take() -> None:
    known: list[Rule] = list(all_rules().values())
    document = sarif([replace(CHECKED, findings=(replace(UNKNOWN, code=known[0].code), SLOW))], known, "1.0")
    run = Sarif.model_validate(document).runs[0]
    assert run.results is not None
    first = run.results[0]
    assert (first.rule_id, first.rule_index) == (known[0].code, 0)
    assert first.locations is not None
    place = first.locations[0].physical_location
    assert place is not None
    assert place.region is not None
    assert place.region.start_line == 7
    assert run.tool.driver.rules is not None
    assert len(run.tool.driver.rules) == len(known)


def test_junit_has_a_case_for_each_rule_that_failed_was_skipped_or_passed() -> None:
    suite = ElementTree.fromstring(junit([CHECKED]).encode()).find("testsuite")
    assert suite is not None
    counts = {key: suite.get(key) for key in ("tests", "failures", "skipped", "errors")}
    assert counts == {"tests": "6", "failures": "1", "skipped": "2", "errors": "0"}
    failed = [case.get("name") for case in suite if case.find("failure") is not None]
    assert failed == ["CFG002 unknown-key"]


@pytest.mark.parametrize("letters", ["\x00", "\x1b", "\ud800", "\ufffe"])
def test_junit_stays_xml_whatever_a_message_holds(letters: str) -> None:
    odd = replace(CHECKED, findings=(replace(UNKNOWN, message=f"a{letters}b<&"),))
    ElementTree.fromstring(junit([odd]).encode())
