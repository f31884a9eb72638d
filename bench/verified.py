"""Where a verification's time goes, from the reports that it left.

    python -m bench.verified reports/NAME/report.json …

Writes the table between its marks in docs/benchmarks.md. A run with DeepSpeed tries that, too.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from bench import page
from sifkit.errors import SifkitError, UsageError

LEVELS = ("static", "host", "kernel", "train")
AT_ONCE = ("loads and generates", "a stopped run resumes", "longest batch", "DeepSpeed ZeRO-3")


def table(reports: list[dict[str, Any]]) -> str:
    """Markdown: a row for each report; under it where the first train's time went."""
    lines = [
        "| day | on | image's torch | trained | static | host | kernel | train | together |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [_row(report) for report in reports]
    lines += ["", *(line for report in reports if (line := _phases(report)))]
    return "\n".join(lines) + "\n"


def _row(report: dict[str, Any]) -> str:
    train, spent = report["train"], report["level_seconds"]
    seconds = " | ".join(f"{spent[level]:.0f} s" if spent.get(level) is not None else "" for level in LEVELS)
    torch = f"{report['versions']['torch']}, CUDA {report['versions']['cuda']}"
    day = report["started"][:10]
    return f"| {day} | {where(report)} | {torch} | {train['method']} | {seconds} | {report['seconds']:.0f} s |"


def _phases(report: dict[str, Any]) -> str:
    """The first train by phases, then what ran at the same time after it."""
    phases = report["train"].get("phases")
    if not phases:
        return ""
    first = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in phases.items())
    after = [check for check in report["checks"] if check["name"] in AT_ONCE and check["seconds"]]
    then = ", ".join(f"{check['name']} {check['seconds']:.0f} s" for check in after)
    took = f"the first train took {report['train']['seconds']:.0f} s ({first})"
    return f"- {where(report)}: {took}; then, at the same time: {then}."


def where(report: dict[str, Any]) -> str:
    """The GPUs that were used, and how many; or the CPU."""
    gpus = report["gpus"]
    return f"{len(gpus)} × {gpus[0]}, driver {report['host']['driver']}" if gpus else "CPU"


def read(path: Path) -> dict[str, Any]:
    """Raises `UsageError` for a file that is no report of a train that came to its end."""
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}", "name a report.json of build.py --verify") from None
    if not isinstance(report, dict) or not report.get("passed") or not report.get("train"):
        raise UsageError(f"{path}: no report of a verification that passed", "verify first: python build.py --verify")
    return report


def main() -> int:
    """Read the reports, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, metavar="report.json")
    try:
        page.record("benchmarks.md", "verification", table([read(path) for path in parser.parse_args().reports]))
    except SifkitError as error:
        return page.say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
