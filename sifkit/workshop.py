"""Where one image is made: scratch space, the log, and the programs that need the site's settings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sifkit import kept, obtaining
from sifkit.apptainer import Apptainer, Bind, Exec
from sifkit.deffile import HOST_DIR, render_base
from sifkit.layers import SQUASH
from sifkit.lending import lend
from sifkit.logins import Login
from sifkit.model import Image, digest_of
from sifkit.progress import Progress
from sifkit.run import Command
from sifkit.spec import Project
from sifkit.store import exclusive
from sifkit.tools import Timings, Tools


@dataclass(frozen=True)
class Workshop:
    """Scratch space, the log, and what the site lends to a build."""

    tools: Tools
    apptainer: Apptainer
    tmpdir: Path
    log: Path
    engine: dict[str, str] = field(default_factory=dict)  # what else made the image, with its version

    def run(self, command: Command) -> None:
        """Run a program, its output in the log and its last line before the person."""
        self.tools.runner.run(command, log=self.log, on_line=self.tools.progress.line)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory for big things, gone afterwards."""
        self.tmpdir.mkdir(parents=True, exist_ok=True)
        with self.tools.runner.scratch("sifkit-", self.tmpdir) as directory:
            yield directory

    def lend(self, directory: Path, debian: Iterable[Login] = ()) -> tuple[Bind, ...]:
        """The site's certificates, settings and caches, `directory` among them, at HOST_DIR; and logins for apt."""
        return lend(directory, self.tools.site, self.tools.environ, self.tools.cache, debian)

    def apptainer_build(self, definition: str, target: Path, *, sandbox: bool = False) -> None:
        """Run Apptainer with what the site lends bound for the time of the build."""
        site, root = self.tools.site, self.tools.project.root
        definition = obtaining.through_mirror(definition, site)
        with self.scratch() as scratch:
            deffile = scratch / "image.def"
            deffile.write_text(definition, encoding="utf-8")
            binds = self.lend(scratch / "lent", obtaining.logins_for(definition, site))
            env = obtaining.environment_for(definition, site, self.tools.environ, scratch)
            command = self.apptainer.build_command
            built = command(target, deffile, binds=binds, root=root, tmpdir=scratch, sandbox=sandbox)
            self.run(replace(built, env={**built.env, **env}))

    def run_in(self, image: Path, script: str, scratch: Path, files: dict[str, str], *binds: Bind) -> None:
        """Run a shell script in a container of `image` with what the site lends and some files at HOST_DIR."""
        lent = scratch / "lent"
        shutil.rmtree(lent, ignore_errors=True)
        ours = self.lend(lent)
        for name, text in {**files, "script.sh": script}.items():
            (lent / name).write_text(text, encoding="utf-8")
        command = Exec(image, ("sh", f"{HOST_DIR}/script.sh"), (*ours, *binds)).command(self.apptainer)
        self.run(command)

    def base(self, image: Image, timings: Timings) -> Path:
        """The operating system with the Debian packages, made once for all images that ask for the same."""
        definition = render_base(image)
        target = base_path(image, self.tools.parts)
        bases, name = target.parent, target.name
        with exclusive(bases / f".{name}.lock", lambda: say_waiting(name, self.tools.progress)):
            if kept.is_whole(target):
                return target
            if kept.drop(target):
                self.tools.progress.note(f"{name} in the cache was changed or damaged: it is made again")
            for leftover in bases.glob(f".{name}.*.partial"):
                leftover.unlink(missing_ok=True)
            partial = bases / f".{name}.{os.getpid()}.partial"
            with timings.phase("base", self.tools.progress, f"base {name.removesuffix('.sif')}"):
                self.apptainer_build(definition, partial)
                kept.keep(partial, target)
        return target


def base_path(image: Image, parts: Path) -> Path:
    """Where the base of an image is kept: its name holds all that it depends on."""
    name = image.base.name or image.base.source.bootstrap
    return parts / "bases" / f"{name}-{digest_of([render_base(image), SQUASH])[:16]}.sif"


def fresh_log(project: Project, name: str) -> Path:
    """An empty log for one build."""
    log = project.root / "build" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    return log


def say_waiting(name: str, progress: Progress) -> None:
    """Once, to the person."""
    progress.note(f"{name}: another build of it is running; waiting for it to end")
