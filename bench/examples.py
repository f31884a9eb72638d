"""What `sifkit check` says of LLaMA-Factory's own examples: each YAML against the image of its version.

    python -m bench.examples [IMAGE…]

An error here is either true (a package that the image lacks, a dataset that the release lost) or a defect of ours.
Writes the table into docs/check.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import page
from sifkit import checkout, site
from sifkit.errors import SifkitError, UsageError
from sifkit.progress import PlainProgress
from sifkit.run import Runner
from sifkit.spec import Project, load_spec

ROOT = Path(__file__).parent.parent
IMAGES = ("llamafactory-0.9.4-cu124", "llamafactory-0.9.5-cu128")
# One H100; nothing of this host's GPUs or home comes in.
OPTIONS = ("--gpu", "H100", "--driver", "580.65", "--gpus", "1", "--ignore", "ENV,IMG012", "--format", "json")


def check_examples(image: Path, tree: Path) -> list[dict[str, Any]]:
    """Every training YAML of a checkout, as `sifkit check --format json` answers.

    Raises `UsageError` when the check does not come to a verdict.
    """
    argv = [sys.executable, "-m", "sifkit", "check", "examples", "--image", str(image), *OPTIONS]
    environ = {**os.environ, "HF_HOME": "/nonexistent/huggingface"}
    answer = subprocess.run(argv, cwd=tree, env=environ, capture_output=True, text=True, check=False)
    if answer.returncode not in (0, 1):
        raise UsageError(f"sifkit check ended with {answer.returncode}: {answer.stderr}")
    found: list[dict[str, Any]] = json.loads(answer.stdout.replace(f"{tree}/", ""))
    return found


def table(version: str, checked: list[dict[str, Any]]) -> str:
    """Markdown: a row for each YAML; an error with its words, of warnings their codes."""
    rows = [_row(one) for one in checked]
    errors = sum(bool(_of(one, "error")) for one in checked)
    head = f"LLaMA-Factory {version}: {len(checked)} training YAMLs, {errors} with errors.\n"
    return "\n".join([head, "| YAML | errors | warnings |", "|---|---|---|", *rows]) + "\n"


def _row(one: dict[str, Any]) -> str:
    errors = "; ".join(f"{each['code']}: {each['message']}" for each in _of(one, "error"))
    warnings = ", ".join(dict.fromkeys(each["code"] for each in _of(one, "warning")))
    return f"| {one['file'].removeprefix('examples/')} | {errors} | {warnings} |"


def _of(one: dict[str, Any], severity: str) -> list[dict[str, Any]]:
    return [each for each in one["findings"] if each["severity"] == severity]


def main(names: list[str]) -> int:
    """All versions whose images are there, or those that are named."""
    environ, project = dict(os.environ), Project(ROOT)
    try:
        parts = []
        for name in names or IMAGES:
            image = project.images / f"{name}.sif"
            if not image.is_file():
                raise UsageError(f"{image} is not there", f"build it: python build.py {name}")
            version = load_spec(project, name).llamafactory.version
            progress = PlainProgress(Console(stderr=True))
            tree = checkout.cached(version, site.user_cache(environ), Runner(environ), progress)
            parts.append(table(version, check_examples(image, tree)))
        page.record("check.md", "examples", "\n".join(parts))
    except SifkitError as error:
        return page.say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
