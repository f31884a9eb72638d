"""The catalogue of causes: each row recognises its own example, and is the row that answers for it."""

from __future__ import annotations

import re

import pytest

from sifkit.causes import CauseRow, catalogue, find_cause

ROWS = [pytest.param(row, id=row.id) for row in catalogue()]


@pytest.mark.parametrize("row", ROWS)
def test_each_row_answers_for_its_example(row: CauseRow) -> None:
    for phase in row.phase:
        found = find_cause(f"some line before\n{row.example}\nsome line after\n", phase)
        assert found is not None
        assert found.id == row.id


@pytest.mark.parametrize("row", ROWS)
def test_no_placeholder_is_left_unfilled(row: CauseRow) -> None:
    found = find_cause(row.example, row.phase[0])
    assert found is not None
    assert not re.search(r"[{}]", found.cause + found.fix)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_says_where_it_was_learnt(row: CauseRow) -> None:
    assert row.source.strip()


def test_ids_are_unique() -> None:
    ids = [row.id for row in catalogue()]
    assert len(ids) == len(set(ids))


def test_ordinary_log_has_no_cause() -> None:
    text = "{'loss': 6.95, 'grad_norm': 0.39}\n***** train metrics *****\n  train_loss = 6.9\n"
    assert find_cause(text, "run") is None


def test_words_of_the_log_reach_the_cause() -> None:
    found = find_cause("ValueError: Undefined dataset alpaca_eng in dataset_info.json.", "run")
    assert found is not None
    assert "alpaca_eng" in found.cause


def test_a_failure_of_training_does_not_explain_a_build() -> None:
    assert find_cause("torch.OutOfMemoryError: CUDA out of memory.", "build") is None


def test_torchaudio_of_another_torch_is_told_from_a_missing_library() -> None:
    alone = find_cause("ImportError: libcudart.so.13: cannot open shared object file: No such file or directory", "run")
    torchaudio = find_cause(
        "OSError: libcudart.so.13: cannot open shared object file: No such file or directory\n"
        'The above exception was the direct cause\n  File "/x/site-packages/torchaudio/__init__.py", line 7\n',
        "run",
    )
    assert alone is not None
    assert torchaudio is not None
    assert (alone.id, torchaudio.id) == ("library-missing", "torchaudio-of-another-torch")
