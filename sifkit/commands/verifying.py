"""`sifkit build --verify`: images are checked before they run, verified, and reported. Imported for it alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import typer

from sifkit import checking, stamp
from sifkit import verify as verification
from sifkit.commands.options import out_console, print_json
from sifkit.errors import Exit, UsageError
from sifkit.spec import load_spec
from sifkit.stamp import Wishes
from sifkit.tools import Tools
from sifkit.verify.report import as_json as as_json_report
from sifkit.verify.smoke import default_config

__all__ = ["Wishes", "verify"]


def verify(
    names: list[str],
    tools: Tools,
    wishes: Wishes,
    build: Callable[[list[str]], object],
    *,
    checked: bool,
    as_json: bool,
) -> None:
    """Build what is stale of the project's own images, then verify all. Raises `typer.Exit` where one does not pass."""
    if wishes.report and len(names) > 1:
        raise UsageError("--report names one directory, but several images are verified", "verify them one by one")
    ours = [name for name in names if not name.endswith(".sif")]
    for name in ours:
        load_spec(tools.project, name)  # a name that nobody knows is said before a GPU that is missing
    stamp.require(wishes)
    build(ours)
    reports = [_verify_one(name, tools, wishes, checked=checked, as_json=as_json) for name in names]
    if as_json:
        print_json([as_json_report(report) for report in reports])
    if not all(report.passed for report in reports):
        raise typer.Exit(Exit.PROBLEM)


def _verify_one(name: str, tools: Tools, wishes: Wishes, *, checked: bool, as_json: bool) -> verification.Report:
    before = partial(_require_sound, tools) if checked else None
    if name.endswith(".sif"):
        done = stamp.verify_file(Path(name), tools, wishes, before)
    else:
        done = stamp.verify_image(name, tools, wishes, before)
    if not as_json:
        out_console().print(verification.render_table(done.report))
    files = (str(done.directory / name) for name in ("report.html", "report.json", "junit.xml"))
    tools.progress.note(f"report: {', '.join(files)}")
    return done.report


def _require_sound(tools: Tools, subject: verification.Subject, options: verification.VerifyOptions) -> None:
    """What `sifkit check` finds in the config, as far as a verification runs it. Raises `ProblemFound`."""
    try:
        config = options.config or default_config(options.checkout)
    except UsageError:
        return  # a checkout without recipes: the verification itself says what it lacks
    asked = checking.Asked(image=str(subject.image), checkout=options.checkout)
    job = checking.verification_job(options.device, options.gpus)
    around = checking.surroundings(asked, checking.Workplace.of(tools), config, job)
    overrides = ("report_to=none", *(("use_cpu=true", "bf16=false", "fp16=false") if options.device == "cpu" else ()))
    checking.require_sound([config], overrides, around, tools.progress, checking.NOT_OF_A_VERIFICATION)
