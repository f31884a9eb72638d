"""What every part that acts is handed: the project, the site, the door to programs, and what a person sees."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sifkit.compat.tables import Tables, load_tables
from sifkit.model import Site
from sifkit.progress import Progress
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.spec import Project
from sifkit.store import Store


@dataclass(frozen=True)
class Tools:
    """Everything that acts, handed down from the command line."""

    project: Project
    site: Site
    runner: Runner
    progress: Progress
    environ: Mapping[str, str]
    fresh_parts: Path | None = None  # where bases and layers are kept in place of the cache

    @property
    def store(self) -> Store:
        """images/."""
        return Store(self.project.images)

    @property
    def cache(self) -> Path:
        """Packages, checkouts, bases and layers."""
        return user_cache(self.environ)

    @property
    def parts(self) -> Path:
        """Bases and layers, which images are joined from."""
        return self.fresh_parts or self.cache

    @property
    def tables(self) -> Tables:
        """What fits what: the project's own tables, else those of this release."""
        return load_tables(self.project.compat)


@dataclass
class Timings:
    """Wall seconds of the phases of one build."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, progress: Progress, title: str) -> Iterator[None]:
        """Time what happens inside, and show it."""
        started = time.monotonic()
        with progress.phase(title):
            yield
        self.seconds[name] = round(time.monotonic() - started, 1)
