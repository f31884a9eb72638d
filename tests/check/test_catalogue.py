"""Each row of the catalogue of failures is planted, and caught by something that is there.

`test_row_N_…` beside this file: what is known before the build is asked of the rules of `sifkit lock`, what is known
before the queue of `sifkit check`, with real files where this host can have them; then the fix is applied, and the
finding is gone. What only a run shows is asked of the check of `--verify` that the row names.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sifkit.check.failures import Failure, failures
from sifkit.check.rule import Severity, all_rules
from tests.check import test_catalogue_1_to_22, test_catalogue_23_to_48

ROOT = Path(__file__).parents[2]
ROWS = {failure.row: failure for failure in failures()}


def rows_planted() -> dict[int, list[str]]:
    planted: dict[int, list[str]] = {}
    for name in (*vars(test_catalogue_1_to_22), *vars(test_catalogue_23_to_48)):
        if match := re.match(r"test_row_(\d+)_", name):
            planted.setdefault(int(match[1]), []).append(name)
    return planted


def test_every_row_is_planted_and_caught_by_something() -> None:
    rules = {row for rule in all_rules().values() for row in rule.rows}
    assert list(ROWS) == list(range(1, 49))
    assert sorted(rows_planted()) == list(ROWS)
    assert [row for row, each in ROWS.items() if not (row in rules or each.lock or each.build or each.verify)] == []


ONLY_BEFORE_THE_BUILD, ONLY_IN_A_RUN = (28,), (32,)


def test_every_row_that_can_be_known_before_the_queue_has_a_rule() -> None:
    rules = {row for rule in all_rules().values() for row in rule.rows}
    assert set(ROWS) - rules == {*ONLY_BEFORE_THE_BUILD, *ONLY_IN_A_RUN}
    assert not any(rule.severity is Severity.INFO for rule in all_rules().values() if rule.rows)


def sources(directory: str) -> str:
    return "".join(path.read_text() for path in sorted((ROOT / "sifkit" / directory).glob("*.py")))


@pytest.mark.parametrize("row", failures(), ids=lambda row: str(row.row))
def test_what_the_data_file_names_is_there(row: Failure) -> None:
    compat, verify = sources("compat"), sources("verify")
    assert [name for name in row.lock if f'"{name}"' not in compat] == []
    names = [check.partition(": ")[2] for check in row.verify]
    assert [name for name in names if f'"{name}"' not in verify and not name.startswith("import ")] == []
    assert {check.partition(": ")[0] for check in row.verify} <= {"static", "host", "kernel", "train"}


def test_every_row_of_a_rule_is_in_the_catalogue() -> None:
    assert {row for rule in all_rules().values() for row in rule.rows} <= set(ROWS)
