"""Apptainer: what is installed, how it must be called by this user, and the command lines.

spython answers what it answers well (version, inspect). Builds and runs go through our own `Runner`,
because spython's has no log, no environment of its own and no way to stop: docs/adr/0001-spython-and-our-runner.md.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import Version
from spython.main import get_client

from sifkit.errors import CommandFailed, HostError, UsageError
from sifkit.layers import SQUASH
from sifkit.run import Command, Runner

OLDEST = Version("1.2.0")  # the first with unprivileged builds without setuid that need no configuration


@dataclass(frozen=True)
class Privileges:
    """How this user may build and run: see docs/privileges.md."""

    build_flags: tuple[str, ...] = ()
    run_env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bind:
    """A directory or file of the host at a place in the container."""

    source: Path
    target: str
    writable: bool = False

    def option(self) -> str:
        """The value for `--bind`; Apptainer splits at commas and colons and knows no escape for them."""
        if re.search(r"[:,]", f"{self.source}{self.target}"):
            raise UsageError(
                f"Apptainer cannot bind {self.source}: its path holds ':' or ','", "use a path without them"
            )
        return f"{self.source}:{self.target}" + ("" if self.writable else ":ro")


@dataclass(frozen=True)
class Exec:
    """A program to run inside an image, in an environment of which nothing is inherited."""

    image: Path
    argv: tuple[str, ...]
    binds: tuple[Bind, ...] = ()
    cwd: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    nv: bool = False
    home: bool = False  # mount the user's home, as a plain `apptainer exec` does

    def command(self, apptainer: Apptainer) -> Command:
        """The command line and the environment that Apptainer itself needs."""
        argv = [apptainer.program, "exec", "--cleanenv", "--pwd", self.cwd]
        argv += ["--nv"] if self.nv else []
        argv += [] if self.home else ["--no-home"]
        for bind in self.binds:
            argv += ["--bind", bind.option()]
        for name, value in self.env.items():
            argv += ["--env", f"{name}={value}"]
        return Command((*argv, str(self.image), *self.argv), env=apptainer.privileges.run_env)


class Apptainer:
    """The installed Apptainer, as this user can use it."""

    def __init__(self, runner: Runner, program: str, privileges: Privileges) -> None:
        self.runner = runner
        self.program = program
        self.privileges = privileges

    @classmethod
    def find(cls, runner: Runner) -> Apptainer:
        """Raises `HostError` with this distribution's install command when there is none, or an old one."""
        program = runner.which("apptainer")
        if program is None:
            raise HostError("Apptainer is not installed", install_advice())
        found = Apptainer(runner, program, privileges_of_this_process())
        if found.version() < OLDEST:
            raise HostError(f"Apptainer {found.version()} is older than {OLDEST}", install_advice())
        return found

    def version(self) -> Version:
        """The installed version. A distribution's suffix (`1.4.5-2.el9`) is left out."""
        said = self.runner.output(self.program, "--version")
        match = re.search(r"(\d+\.\d+\.\d+)", said)
        if match is None:
            raise CommandFailed(f"apptainer --version answered {said!r}", returncode=0)
        return Version(match[1])

    def build_command(
        self,
        target: Path,
        definition: Path,
        *,
        binds: tuple[Bind, ...] = (),
        root: Path,
        tmpdir: Path,
        sandbox: bool = False,
    ) -> Command:
        """Build `target` from `definition`, relative paths in `%files` meaning `root`.

        A SIF with zstd squashfs, all cores; or, as a `sandbox`, a directory.
        """
        argv = [self.program, "build", "--force", "--notest", *self.privileges.build_flags]
        argv += ["--sandbox"] if sandbox else []
        # In one word: with --fakeroot, Apptainer 1.4 starts itself again without its -f, and takes the first f of a
        # word that begins with one dash for that.
        argv += [f"--mksquashfs-args={' '.join(SQUASH)} -processors {len(os.sched_getaffinity(0))}"]
        for bind in binds:
            argv += ["--bind", bind.option()]
        env = {"APPTAINER_TMPDIR": str(tmpdir), "TMPDIR": str(tmpdir)}
        return Command(
            (*argv, str(target), str(definition)),
            cwd=root,
            env=env,
            remove_after=(tmpdir,),
            remove_on_failure=(target,),
        )

    def test_command(self, image: Path) -> Command:
        """Run the image's own %test as a user would."""
        argv = (self.program, "test", "--cleanenv", "--no-home", str(image))
        return Command(argv, env=self.privileges.run_env)

    def labels(self, image: Path) -> dict[str, str]:
        """The labels in the image, read without running anything in it."""
        client = get_client(quiet=True)
        # spython calls a program named singularity, which an Apptainer without its compatibility link has not
        client._init_command = lambda action, _options=None: [self.program, action]
        answer: Any = client.inspect(str(image), quiet=True)
        if not isinstance(answer, dict):
            answer = json.loads(answer or "{}")
        try:
            return dict(answer["attributes"]["labels"])
        except (KeyError, TypeError):
            raise HostError(f"{image} is not an image that Apptainer can read", "build it again") from None


def privileges_of_this_process() -> Privileges:
    """An ordinary user, or root with every capability, needs nothing special.

    Root without some capability (containers, CI) makes Apptainer fail with "Requesting capability set …
    while permitted …"; a user namespace of its own for builds, and no privileges for runs, mend it
    [measured with 1.4.5: docs/privileges.md].
    """
    if os.geteuid() != 0:
        return Privileges()
    status = Path("/proc/self/status").read_text()
    effective = int(re.search(r"^CapEff:\s*(\w+)$", status, re.MULTILINE)[1], 16)  # type: ignore[index]
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    if effective == (1 << (last + 1)) - 1:
        return Privileges()
    return Privileges(build_flags=("--fakeroot",), run_env={"APPTAINER_NO_PRIVS": "1"})


def install_advice() -> str:
    """The command that installs Apptainer on this distribution."""
    script = Path(__file__).parent.parent / "ci" / "install-apptainer.sh"
    if script.exists():
        prefix = "" if os.geteuid() == 0 else "sudo "
        return f"install it with: {prefix}bash {script}" + ("" if not prefix else " (or ask your administrator)")
    return "install it: https://apptainer.org/docs/admin/latest/installation.html"
