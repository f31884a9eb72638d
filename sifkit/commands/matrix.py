"""`sifkit submit --verify`: images verified on the cluster's nodes, a task of a job array for each."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from sifkit import execute, files
from sifkit.commands.joboptions import JobWishes, make_resources
from sifkit.commands.options import image_name, out_console, print_json
from sifkit.errors import Exit, UsageError
from sifkit.slurm import jobs as queue
from sifkit.slurm import matrix, submit
from sifkit.tools import Tools
from sifkit.verify.record import read_records


@dataclass(frozen=True)
class Verdict:
    """What became of one image. `passed` None: its task left no report."""

    image: str
    passed: bool | None
    said: str


def submit_verification(
    words: Sequence[str], wishes: JobWishes, tools: Tools, *, site: Path | None, wait: bool, as_json: bool
) -> None:
    """Submit the array; with `wait`, gather what it found, and end with exit code 1 unless every image passed."""
    wanted = matrix.Matrix(
        images=images_to_verify(words, tools),
        project=tools.project.root,
        python=Path(sys.executable),
        resources=make_resources(wishes, tools),
        options=("--site", str(site.absolute())) if site else (),
        logs=wishes.logs,
        modules=tools.site.slurm.modules,
    )
    began = datetime.datetime.now(datetime.timezone.utc)
    number = _submit(wanted, tools)
    if not wait:
        _tell(number, wanted, tools, as_json=as_json)
        return
    tools.progress.note(f"job {number}: {', '.join(wanted.images)}")
    with queue.goes_on(number):
        queue.wait_for(tools.runner, number, lambda state: tools.progress.note(f"job {number}: {state}"))
    verdicts = [verdict(image, wanted.log(number, task), began, tools) for task, image in enumerate(wanted.images)]
    _show(number, verdicts, as_json=as_json)
    if not all(found.passed for found in verdicts):
        raise typer.Exit(Exit.PROBLEM)


def images_to_verify(words: Sequence[str], tools: Tools) -> tuple[str, ...]:
    """Those named, else all that are built. Raises `UsageError` for one that is missing or stale."""
    names = tuple(dict.fromkeys(image_name(word, tools) for word in words)) or _built(tools)
    for name in names:
        step = execute.make_step(execute.load_image(name, tools), tools)
        if step.reasons:
            raise UsageError(f"{name}: {' and '.join(step.reasons)}", f"build it first: python build.py {name}")
    return names


def _built(tools: Tools) -> tuple[str, ...]:
    found = tuple(name for name in tools.project.names() if tools.store.on_disk(name))
    if not found:
        raise UsageError("no image is built yet", "build one: python build.py")
    return found


def _submit(wanted: matrix.Matrix, tools: Tools) -> str:
    token, directory = submit.new_token(), Path(wanted.logs)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{matrix.NAME}-{token[:8]}.sbatch"
    files.write_whole(file, matrix.render(wanted))
    environ = submit.job_environment(tools.environ)
    kept = {name: tools.environ[name] for name in ("SIFKIT_SITE", "SIFKIT_CACHE") if name in tools.environ}
    return submit.submit(tools.runner, file, token, environ={**environ, **kept})


def _tell(number: str, wanted: matrix.Matrix, tools: Tools, *, as_json: bool) -> None:
    logs = [f"{wanted.log(number, task)}.out" for task in range(len(wanted.images))]
    if as_json:
        print_json({"job": number, "images": list(wanted.images), "logs": logs})
    else:
        sys.stdout.write(f"{number}\n")
    tools.progress.note(f"follow it: squeue --job {number}; tail -F {' '.join(logs)}")
    tools.progress.note(f"what it found: python build.py --list; {tools.project.reports}/IMAGE/report.html")


def verdict(image: str, log: str, began: datetime.datetime, tools: Tools) -> Verdict:
    """The last record of the image since the array was submitted."""
    since = began.isoformat(timespec="seconds")
    found = [record for record in read_records(tools.project.reports / image) if record.started >= since]
    if not found:
        return Verdict(image, None, f"left no report: see {log}.err")
    last = found[-1]
    levels = ", ".join(f"{level} {outcome}" for level, outcome in last.outcome.items())
    return Verdict(image, last.passed, f"on {last.kind}: {levels} in {last.seconds:.0f} s")


def _show(number: str, verdicts: Sequence[Verdict], *, as_json: bool) -> None:
    if as_json:
        print_json({"job": number, "images": [found.__dict__ for found in verdicts]})
        return
    table = Table(box=None)
    words = {True: ("verified", "green"), False: ("NOT verified", "red"), None: ("unknown", "red")}
    for found in verdicts:
        word, colour = words[found.passed]
        table.add_row(Text(found.image), Text(word, style=colour), Text(found.said))
    out_console().print(table)
