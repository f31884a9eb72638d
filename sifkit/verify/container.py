"""The acting part: programs in the image, their caches and answers in one work directory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import elftools

from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.errors import CommandFailed
from sifkit.run import Result

PROBES = Path(__file__).with_name("probes")

IN_PROBES = "/sifkit/probes"
IN_WORK = "/sifkit/work"
IN_LIBRARIES = "/sifkit/libraries"
IN_MODEL = "/sifkit/model"
IN_CONFIG = "/sifkit/config"
IN_CHECKOUT = "/mnt"  # where users bind it, and where the job's working directory is

_CACHES = {
    "HF_HOME": "huggingface",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "XDG_CACHE_HOME": "cache",
    "MPLCONFIGDIR": "matplotlib",
    "TMPDIR": "tmp",
}

TIMEOUT = timedelta(minutes=30)  # of one program; a smoke run takes a minute, a real model's loading several


@dataclass(frozen=True)
class Container:
    """An image, started again for each program, with `work` as its only writable place."""

    apptainer: Apptainer
    image: Path
    work: Path
    nv: bool
    environ: Mapping[str, str] = field(default_factory=dict)
    binds: tuple[Bind, ...] = ()

    def run(
        self,
        argv: tuple[str, ...],
        *,
        log: Path,
        cwd: str = IN_WORK,
        on_line: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a program of the image to its end, whatever that is; both its streams go to `log`."""
        for name in ("home", *_CACHES.values()):
            (self.work / name).mkdir(exist_ok=True)
        command = Exec(
            self.image,
            # Apptainer does not let --env set HOME.
            ("/usr/bin/env", f"HOME={IN_WORK}/home", *argv),
            binds=(
                Bind(PROBES, IN_PROBES),
                Bind(Path(elftools.__file__).parent, f"{IN_LIBRARIES}/elftools"),
                Bind(self.work, IN_WORK, writable=True),
                *self.binds,
            ),
            cwd=cwd,
            env={**self._environment(), **(env or {})},
            nv=self.nv,
        ).command(self.apptainer)
        return self.apptainer.runner.run(command, log=log, on_line=on_line, check=False, timeout=TIMEOUT)

    def _environment(self) -> dict[str, str]:
        caches = {name: f"{IN_WORK}/{folder}" for name, folder in _CACHES.items()}
        fixed = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return {**caches, **fixed, "SIFKIT_WORK": IN_WORK, **self.environ}

    def ask(
        self,
        probe: str,
        *words: str,
        log: Path,
        on_line: Callable[[str], None] | None = None,
        env: Mapping[str, str] | None = None,
        launcher: tuple[str, ...] = ("python3",),
    ) -> Answer:
        """Run probes/PROBE.py, which writes its answer as JSON into the work directory."""
        answer = self.work / f"{probe}.json"
        answer.unlink(missing_ok=True)
        started = time.monotonic()
        argv = (*launcher, f"{IN_PROBES}/{probe}.py", f"{IN_WORK}/{probe}.json", *words)
        result = self.run(argv, log=log, on_line=on_line, env=env)
        facts = read_answer(answer.read_text(encoding="utf-8")) if answer.is_file() else None
        return Answer(facts, result, time.monotonic() - started)


@dataclass(frozen=True)
class Answer:
    """What a probe answered (None: it died before it wrote anything), and how its program ended."""

    facts: dict[str, Any] | None
    result: Result
    seconds: float

    @property
    def said(self) -> str:
        """The last lines of its output."""
        return "\n".join(self.result.tail)


def read_answer(text: str) -> dict[str, Any]:
    """A probe's answer. Raises `CommandFailed` on anything but a JSON object."""
    try:
        facts = json.loads(text)
    except ValueError:
        facts = None
    if not isinstance(facts, dict):
        raise CommandFailed(f"a probe answered no JSON object: {text[:200]!r}", returncode=0)
    return facts
