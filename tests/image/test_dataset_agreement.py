"""The checks of datasets, stages and rows give the verdict of the image's own LLaMA-Factory, on every case."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.check.rule import Severity
from sifkit.gather.checkout import gather_checkout
from tests.check import good
from tests.image.dataset_cases import CASES

pytestmark = pytest.mark.image

STAGES = ("pt", "sft", "dpo", "kto", "ppo")
CODES = ("DAT001", "DAT002", "DAT003", "DAT004", "DAT005", "DAT010", "DAT015", "DAT025", "DAT026")
SCRIPT = Path(__file__).with_name("load_datasets.py")


def registered(folder: Path) -> list[str]:
    """The cases, written as a dataset_dir; their names."""
    info = {}
    for number, (content, entry) in enumerate(CASES.values()):
        file = folder / f"{number}.json"
        info[str(number)] = {"file_name": file.name, **entry}
        if content is not None:
            file.write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return list(info)


def local_names(checkout: Path) -> list[str]:
    info = json.loads((checkout / "data/dataset_info.json").read_text())
    return [name for name, entry in info.items() if not {"hf_hub_url", "ms_hub_url", "om_hub_url"} & entry.keys()]


def verdict(checkout: Path, case: Mapping[str, Any]) -> list[str]:
    """The errors that the rules find."""
    config = good.config(**case)
    facts = good.facts(config=config, checkout=gather_checkout(checkout, config, None, shared=False, environ={}))
    return [f"{each.code} {each.message}" for each in good.found(facts, *CODES) if each.severity is Severity.ERROR]


def test_every_verdict_is_that_of_the_image(
    default_sif: Path, apptainer: Apptainer, llamafactory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    named = [("data", name) for name in local_names(llamafactory)] + [
        (str(folder), name) for name in registered(folder)
    ]
    cases = [{"dataset_dir": place, "dataset": name, "stage": stage} for place, name in named for stage in STAGES]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    binds = (
        Bind(llamafactory, "/mnt"),
        Bind(folder, str(folder)),
        Bind(SCRIPT, "/sifkit/load_datasets.py"),
        Bind(tmp_path, "/out", writable=True),
    )
    argv = ("python3", "/sifkit/load_datasets.py", "/out/cases.json", "/out/answer.json")
    apptainer.runner.run(Exec(default_sif, argv, binds, cwd="/mnt").command(apptainer))
    said = json.loads((tmp_path / "answer.json").read_text())
    judged = [verdict(llamafactory, case) for case in cases]
    kinds = list(CASES)
    differ = [
        (case["stage"], kinds[int(case["dataset"])] if case["dataset"].isdigit() else case["dataset"], error, found)
        for case, error, found in zip(cases, said, judged, strict=True)
        if bool(error) != bool(found)
    ]
    assert differ == []
    assert sum(error is None for error in said) > len(cases) / 4
