"""The table of combinations: each wrong one is refused at its stage with its reason, each right one raises nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from sifkit import yamlfile
from sifkit.compat.check import check
from sifkit.compat.findings import Finding, Severity, Target
from sifkit.lock import current_lock
from sifkit.model import ImageSpec, Lock, LockedPackage, Site, SiteGpu, Strict
from sifkit.spec import Project, load_spec
from tests.conftest import TABLES, make_spec, wanted

COMPILER = ("gcc", "libc6-dev", "python3-dev", "git")


class Combination(Strict):
    """One row."""

    name: str
    spec: dict[str, object] = Field(default_factory=dict)
    site: dict[str, object] = Field(default_factory=dict)
    lock: dict[str, str] = Field(default_factory=dict)
    stage: str = "spec"
    rule: str = ""
    severity: str = "error"

    def image(self) -> ImageSpec:
        return make_spec(**{"apt": COMPILER, **self.spec})

    def locked(self) -> Lock | None:
        packages = tuple(_locked(name, value) for name, value in self.lock.items())
        return Lock("", "", packages) if packages else None

    def target(self) -> Target:
        return Target.of(self.image(), Site(gpu=SiteGpu.model_validate(self.site)))


class Combinations(Strict):
    """combinations.yaml."""

    wrong: tuple[Combination, ...]
    right: tuple[Combination, ...]
    unknown: tuple[Combination, ...]


def _locked(name: str, value: str) -> LockedPackage:
    version = value.split("-")[1] if value.endswith(".whl") else value
    return LockedPackage(name, version, value if value.endswith(".whl") else f"{name}-{value}.whl", 1, "0" * 64)


TABLE = yamlfile.load(Path(__file__).with_name("combinations.yaml"), Combinations)


def found(row: Combination, *, lock: bool) -> tuple[Finding, ...]:
    return check(row.image(), row.target(), TABLES, row.locked() if lock else None)


def test_the_table_is_large_enough() -> None:
    assert len(TABLE.wrong) >= 30
    assert len(TABLE.right) >= 30
    assert len({row.name for row in (*TABLE.wrong, *TABLE.right)}) == len(TABLE.wrong) + len(TABLE.right)


@pytest.mark.parametrize("row", TABLE.wrong, ids=lambda row: row.name)
def test_a_wrong_combination_is_refused_at_its_stage_with_the_reason(row: Combination) -> None:
    before = {finding.rule for finding in found(row, lock=False)}
    assert (row.rule in before) is (row.stage == "spec")
    findings = [finding for finding in found(row, lock=row.stage == "lock") if finding.rule == row.rule]
    assert {finding.severity.value for finding in findings} == {row.severity}
    assert all(finding.fix and finding.source and finding.message for finding in findings)
    others = {finding.rule for finding in found(row, lock=row.stage == "lock") if finding.severity is Severity.ERROR}
    assert others <= {row.rule, "torch-unknown"}


@pytest.mark.parametrize("row", TABLE.right, ids=lambda row: row.name)
def test_a_right_combination_raises_nothing(row: Combination) -> None:
    assert found(row, lock=False) == ()
    assert found(row, lock=True) == ()


@pytest.mark.parametrize("row", TABLE.unknown, ids=lambda row: row.name)
def test_what_no_row_knows_is_said_and_not_refused(row: Combination) -> None:
    findings = found(row, lock=False)
    assert row.rule in {finding.rule for finding in findings}
    assert {finding.severity for finding in findings} == {Severity.UNKNOWN}


PROJECT = Project(Path(__file__).parents[2])


@pytest.mark.parametrize("name", PROJECT.names())
def test_every_image_of_ours_fits_with_its_lock(name: str) -> None:
    spec = load_spec(PROJECT, name)
    lock = current_lock(wanted(spec), PROJECT.lock_path(name))
    assert check(spec, Target.of(spec, Site()), TABLES, lock) == ()


@pytest.mark.parametrize(
    ("gpu", "driver", "refused"),
    [
        ("V100", "590.44.01", True),
        ("V100", "580.95.05", False),
        ("RTX 5090", "535.104", True),
        ("RTX 5090", "570.26", False),
        ("H100", "590.44.01", False),
    ],
)
def test_a_driver_runs_the_generations_of_its_branch(gpu: str, driver: str, refused: bool) -> None:
    findings = check(make_spec(apt=COMPILER), Target((gpu,), driver), TABLES)
    assert ("gpu-driver" in {finding.rule for finding in findings}) is refused


@pytest.mark.parametrize(
    "package",
    [
        "transformers @ git+https://example.org/me/my-transformers-fork",
        "trl @ https://example.org/heads/fix-bug-1.tar.gz",
        "torch @ https://example.org/torch-main-cp313-cp313-linux_x86_64.whl",
    ],
)
def test_an_address_says_no_version_unless_it_is_a_wheels(package: str) -> None:
    assert check(make_spec(apt=COMPILER, packages=(package,)), Target(), TABLES) == ()


@pytest.mark.parametrize(("version", "asks"), [("==0.19.4", True), ("", True), ("==0.19.8", False)])
def test_deepspeed_asks_for_nvcc_at_import_up_to_a_release(version: str, asks: bool) -> None:
    findings = check(make_spec(apt=COMPILER, packages=(f"deepspeed{version}",)), Target(), TABLES)
    assert ("nvcc-missing" in {finding.rule for finding in findings}) is asks
