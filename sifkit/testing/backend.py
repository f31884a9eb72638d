"""The testinfra connection: each command runs in a container of its own, started from the image as it is."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from testinfra.backend import base

from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.errors import UsageError
from sifkit.run import Runner


class ApptainerBackend(base.BaseBackend):  # type: ignore[misc]  # testinfra's own annotations are not complete
    """`apptainer exec` with nothing of the caller's environment, home or directory, unless asked for."""

    NAME = "apptainer"

    def __init__(
        self,
        image: str,
        *args: Any,
        nv: bool = False,
        home: bool = False,
        pwd: str = "/",
        bind: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(image, *args, **kwargs)
        self._image = Path(image).absolute()
        self._nv, self._home, self._pwd = nv, home, pwd
        self._binds = tuple(parse_bind(text) for text in bind)
        self._found: Apptainer | None = None

    @property
    def apptainer(self) -> Apptainer:
        """Looked for when the first command runs: collecting tests needs no Apptainer."""
        if self._found is None:
            self._found = Apptainer.find(Runner(os.environ))
        return self._found

    def run(self, command: str, *args: str, **_kwargs: Any) -> base.CommandResult:
        """Run a shell command in the image.

        Not through `Runner`: testinfra wants standard output and standard error apart, as bytes.
        """
        shell = self.get_command(command, *args)
        call = Exec(
            self._image, ("/bin/sh", "-c", shell), binds=self._binds, cwd=self._pwd, nv=self._nv, home=self._home
        ).command(self.apptainer)
        env = {**self.apptainer.runner.environ, **call.env}
        done = subprocess.run(call.argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        return self.result(done.returncode, self.encode(shell), done.stdout, done.stderr)

    def get_encoding(self) -> str:
        """testinfra would start Python twice to ask."""
        return "utf-8"


def parse_bind(text: str) -> Bind:
    """`SOURCE[:TARGET[:ro|rw]]`, read-only unless it says rw. Raises `UsageError` for anything else."""
    match text.split(":"):
        case [source] if source:
            return Bind(Path(source), source)
        case [source, target] if source and target:
            return Bind(Path(source), target)
        case [source, target, ("ro" | "rw") as mode] if source and target:
            return Bind(Path(source), target, writable=mode == "rw")
        case _:
            raise UsageError(f"cannot read the bind {text!r}", "write it as SOURCE:TARGET, SOURCE:TARGET:ro or …:rw")
