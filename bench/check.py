"""`sifkit check` against the way of today: the image's own parser, asked in a container. Same YAML, one run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.errors import CommandFailed
from sifkit.launch import IN_CHECKOUT
from sifkit.run import Runner

ROOT = Path(__file__).parent.parent
MANY = 100
_PARSE = "import sys; from llamafactory.hparams import get_train_args; get_train_args()"


@dataclass(frozen=True)
class CheckRow:
    """One way to look at YAMLs. `memory`: the most that the process had, in bytes; None: not measured."""

    what: str
    files: int
    seconds: float
    memory: int | None = None


def measure(image: Path, checkout: Path, work: Path) -> tuple[CheckRow, ...]:
    """One YAML, and a hundred, the image's facts being known; then the same YAML by the image's own parser.

    Raises `CommandFailed` if a check ends otherwise than with a verdict.
    """
    config = next(iter(sorted(checkout.glob("examples/train_lora/*_lora_sft.yaml"))))
    many = work / "many"
    many.mkdir()
    for number in range(MANY):
        shutil.copy(config, many / f"{number:03}.yaml")
    options = ("--image", str(image), "--checkout", str(checkout))
    _check(config, *options)  # asks the image what it holds, once for ever
    one = [_check(config, *options) for _ in range(3)]
    best = min(one, key=lambda row: row.seconds)
    hundred = _check(many, *options)
    parser = _parse(image, checkout, config)
    return (
        CheckRow("`sifkit check` of one YAML", 1, best.seconds, best.memory),
        CheckRow(f"`sifkit check` of {MANY} YAMLs", MANY, hundred.seconds, hundred.memory),
        CheckRow("the image's own parser on one YAML, container start included", 1, parser),
    )


def _check(target: Path, *options: str) -> CheckRow:
    """Wall time and the largest resident set of one command."""
    argv = [sys.executable, "-m", "sifkit", "check", str(target), *options, "--format", "json"]
    started = time.monotonic()
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = process.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(process.pid, 0)
    seconds, code = time.monotonic() - started, os.waitstatus_to_exitcode(status)
    if code not in (0, 1):
        raise CommandFailed(f"sifkit check ended with {code}: {said}", returncode=code)
    return CheckRow(str(target), 1, seconds, used.ru_maxrss * 1024)


def _parse(image: Path, checkout: Path, config: Path) -> float:
    apptainer = Apptainer.find(Runner(os.environ))
    overrides = ("use_cpu=true", "bf16=false", "report_to=none", "output_dir=/tmp/none")
    place = str(config.relative_to(checkout))
    argv, binds = ("python3", "-c", _PARSE, place, *overrides), (Bind(checkout, IN_CHECKOUT),)
    run = Exec(image, argv, binds=binds, cwd=IN_CHECKOUT, env={"HF_HUB_OFFLINE": "1"})
    started = time.monotonic()
    apptainer.runner.run(run.command(apptainer))
    return time.monotonic() - started


def table(rows: tuple[CheckRow, ...]) -> str:
    """Markdown, for docs/benchmarks.md; the goals beside what was measured."""
    goals = {1: "1 s, 150 MB", MANY: "3 s"}
    lines = ["| checking the default image's LoRA recipe | wall | memory | goal | times as fast as the parser |"]
    lines += ["|---|---:|---:|---:|---:|"]
    parser = rows[-1].seconds
    for row in rows:
        memory = f"{row.memory / 1e6:.0f} MB" if row.memory else ""
        goal = goals.get(row.files, "") if row is not rows[-1] else ""
        ratio = f"{parser * row.files / row.seconds:.0f}"
        lines.append(f"| {row.what} | {row.seconds:.2f} s | {memory} | {goal} | {ratio} |")
    return "\n".join(lines) + "\n"
