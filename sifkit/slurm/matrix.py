"""Images verified on the cluster's nodes: a job array with a task for each. Pure.

Unlike a training's, this job file needs sifkit on the nodes: the project, with its Python, on a shared filesystem.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from sifkit import __version__
from sifkit.errors import UsageError
from sifkit.slurm.jobfile import directives, load_modules
from sifkit.slurm.request import Resources, require_plain

NAME = "verify"


@dataclass(frozen=True)
class Matrix:
    """Which images are verified, by which project and Python."""

    images: tuple[str, ...]  # names, or files of others
    project: Path
    python: Path
    resources: Resources
    options: tuple[str, ...] = ()  # further words for `build --verify`
    logs: str = "logs"
    modules: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_plain("--logs", self.logs)
        for word in (*self.images, *self.options, str(self.project), str(self.python)):
            if "\n" in word or "\r" in word:
                raise UsageError(f"{word!r} holds a line break", "use a name without it")

    def log(self, job: str, task: int) -> str:
        """Of one task, without its ending."""
        return f"{self.logs}/{NAME}-{job}_{task}"


def render(matrix: Matrix) -> str:
    """The job file."""
    on = ("--gpus", str(matrix.resources.gpus)) if matrix.resources.gpus else ("--device", "cpu")
    words = (str(matrix.python), "-m", "sifkit", "build", "--project", str(matrix.project), "--verify", *on)
    images = "".join(f"    {shlex.quote(image)}\n" for image in matrix.images)
    parts = [
        f"#!/bin/bash\n# Verifies images, one in each task. Written by sifkit {__version__}.\n",
        directives(NAME, f"{matrix.logs}/%x-%A_%a", matrix.resources, len(matrix.images)) + "#SBATCH --no-requeue\n",
        "set -euo pipefail\n",
        *([load_modules(matrix.modules)] if matrix.modules else []),
        f"images=(\n{images})\n",
        f'exec {shlex.join((*words, *matrix.options))} "${{images[$SLURM_ARRAY_TASK_ID]}}"\n',
    ]
    return "\n".join(parts)
