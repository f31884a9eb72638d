"""`verify` from end to end, with a fake apptainer that answers as probes do."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from sifkit.apptainer import Apptainer
from sifkit.errors import HostError
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.verify import Level, Outcome, Report, Subject, VerifyOptions, verify
from sifkit.verify.nvml import Gpu, HostFacts
from tests.conftest import FakeTool
from tests.unit.test_verify_train import checkout

# Notes that it was started, and writes its answer into whatever directory is bound at /sifkit/work.
FAKE = """\
[ "$1" = --version ] && {{ echo "apptainer version 1.4.5"; exit 0; }}
echo "$*" >> {started}
for word in "$@"; do
    case "$word" in
        *:/sifkit/work) work="${{word%:/sifkit/work}}"; echo "$work" >> {works} ;;
        */image.json) [ -f {answer} ] && cp {answer} "$work/image.json" ;;
    esac
done
echo "{said}" >&2
exit {code}
"""

GOOD = """{"python": "3.13.5", "user_site": false, "distributions": [],
"elf": {"machine": "EM_X86_64", "objects": [], "libraries": [], "extensions": [], "seconds": 0.1,
  "torch": {"version": "2.9.1", "cuda": "12.8", "architectures": ["sm_80"], "cxx11_abi": true}},
"compiler": {"program": "gcc", "works": true, "said": ""}, "nvcc": null,
"imports": [{"module": "torch", "seconds": 1.0, "error": %s}],
"outside": []}"""


class Place:
    """A project with an image, a checkout and a fake apptainer."""

    def __init__(self, tmp_path: Path, fake_tool: FakeTool) -> None:
        self._path = tmp_path
        self._fake_tool = fake_tool
        self.image = tmp_path / "x.sif"
        self.image.write_bytes(b"sif")
        self.options = VerifyOptions(
            device="cpu",
            checkout=checkout(tmp_path / "checkout"),
            config=None,
            model=None,
            gpus=1,
            report_dir=tmp_path / "report",
            environ={},
        )

    def verify(self, options: VerifyOptions, *, answer: str | None = None, said: str = "", code: int = 0) -> Report:
        if answer is not None:
            (self._path / "answer.json").write_text(answer)
        paths = {name: self._path / name for name in ("started", "works")}
        script = FAKE.format(**paths, answer=self._path / "answer.json", said=said, code=code)
        self._fake_tool("apptainer", script)
        apptainer = Apptainer.find(Runner(os.environ))
        return verify(
            Subject(self.image, "x", "0" * 64, None), options, apptainer, PlainProgress(Console(file=StringIO()))
        )

    @property
    def containers(self) -> list[str]:
        """The command lines of all that were started."""
        path = self._path / "started"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def probes(self) -> set[str]:
        """The probes that were asked."""
        return {word.removesuffix(".py") for line in self.containers for word in re.findall(r"probes/(\w+\.py)", line)}

    @property
    def trained(self) -> bool:
        return any("llamafactory-cli" in line for line in self.containers)

    @property
    def works(self) -> set[Path]:
        return {Path(line) for line in (self._path / "works").read_text().splitlines()}


@pytest.fixture
def place(tmp_path: Path, fake_tool: FakeTool) -> Place:
    return Place(tmp_path, fake_tool)


def outcomes(report: Report) -> dict[Level, Outcome]:
    return {level: report.outcome_of(level) for level in report.levels}


def test_a_checkout_that_cannot_work_starts_no_container(place: Place) -> None:
    (place.options.checkout / "data/dataset_info.json").unlink()
    report = place.verify(place.options)
    assert place.containers == []
    assert not report.passed
    assert outcomes(report) == {
        Level.STATIC: Outcome.NOT_RUN,
        Level.HOST: Outcome.NOT_RUN,
        Level.KERNEL: Outcome.NOT_RUN,
        Level.TRAIN: Outcome.FAILED,
    }


def test_a_gpu_that_is_not_here_is_said_before_any_container(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_gpu() -> None:
        raise HostError("no NVIDIA GPU here")

    monkeypatch.setattr("sifkit.verify.levels.read_host", no_gpu)
    with pytest.raises(HostError, match="no NVIDIA GPU here"):
        place.verify(replace(place.options, device="gpu"))
    assert place.containers == []


def host_with(count: int) -> HostFacts:
    gpus = tuple(Gpu(index, f"GPU-{index}", "NVIDIA H100", (9, 0), 80.0, 79.0, 0, ()) for index in range(count))
    return HostFacts("580.1", "13.0", gpus)


@pytest.mark.parametrize(("given", "gpus"), [("", 1), ("0", 2)])
def test_gpus_that_are_hidden_are_a_failure_and_start_no_container(
    place: Place, monkeypatch: pytest.MonkeyPatch, given: str, gpus: int
) -> None:
    monkeypatch.setattr("sifkit.verify.levels.read_host", lambda: host_with(2))
    options = replace(place.options, device="gpu", gpus=gpus, environ={"CUDA_VISIBLE_DEVICES": given})
    report = place.verify(options)
    (failed,) = [check for check in report.checks if check.outcome is Outcome.FAILED]
    assert (failed.level, failed.name) == (Level.HOST, "GPUs are visible")
    assert "CUDA_VISIBLE_DEVICES" in (failed.cause or "")
    assert outcomes(report)[Level.TRAIN] is Outcome.NOT_RUN
    assert place.containers == []


def test_an_image_that_does_not_start_fails_and_nothing_else_runs(place: Place) -> None:
    report = place.verify(place.options, said="fusermount3: mount failed: Operation not permitted", code=255)
    assert place.probes == {"image", "smoke_model"}  # which build on nothing, and are asked at once
    assert not place.trained
    (failed,) = [check for check in report.checks if check.outcome is Outcome.FAILED]
    assert (failed.level, failed.name) == (Level.STATIC, "the image starts")
    assert "/dev/fuse" in (failed.fix or "")
    assert report.outcome_of(Level.KERNEL) is Outcome.NOT_RUN


def test_an_import_that_fails_keeps_the_training_from_starting(place: Place) -> None:
    options = replace(place.options, levels=(Level.STATIC, Level.TRAIN))
    report = place.verify(options, answer=GOOD % '"ImportError: boom"')
    assert not place.trained
    assert [check.message for check in report.checks if check.level is Level.TRAIN][-1] == (
        "level static failed: import torch"
    )


def test_a_good_image_passes_without_a_gpu_and_leaves_its_logs_alone(place: Place) -> None:
    report = place.verify(replace(place.options, levels=(Level.STATIC, Level.HOST)), answer=GOOD % "null", said="hello")
    assert report.passed
    assert outcomes(report) == {Level.STATIC: Outcome.PASSED, Level.HOST: Outcome.NOT_RUN}
    assert (place.options.report_dir / "static.log").read_text() == "hello\n"
    assert report.versions == {"python": "3.13.5", "cuda": "12.8"}
    assert not any(work.exists() for work in place.works)


def test_the_work_is_kept_when_that_is_asked_for(place: Place) -> None:
    place.verify(replace(place.options, levels=(Level.STATIC,), keep=True), answer=GOOD % "null")
    assert (place.options.report_dir / "work" / "image.json").is_file()


def test_an_image_without_a_lock_is_held_against_the_checkout_by_what_it_holds(place: Place) -> None:
    inside = '"distributions": [{"name": "llamafactory", "version": "0.9.4"}]'
    answer = (GOOD % "null").replace('"distributions": []', inside)
    report = place.verify(replace(place.options, levels=(Level.STATIC, Level.TRAIN)), answer=answer)
    (failed,) = [check for check in report.checks if check.outcome is Outcome.FAILED]
    assert (failed.level, failed.name) == (Level.TRAIN, "checkout")
    assert "is LLaMA-Factory 0.9.5, not 0.9.4" in (failed.cause or "")
    assert not place.trained


def test_training_that_cannot_make_its_model_fails_with_the_cause(place: Place) -> None:
    said = "RuntimeError: operator torchvision::nms does not exist"
    report = place.verify(replace(place.options, levels=(Level.TRAIN,)), said=said, code=1)
    (failed,) = [check for check in report.checks if check.outcome is Outcome.FAILED]
    assert failed.name == "smoke model"
    assert (failed.cause or "").startswith("torchvision belongs to another torch")
