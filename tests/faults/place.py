"""A toy project with directories of its own, builds in it as a user starts them, and what must hold afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sifkit.hashes import sha256_of
from sifkit.store import Manifest, Store
from tests.faults import watched
from tests.integration import toy

ROOT = Path(__file__).parents[2]
NAME = "toy"
PROXIES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")


@dataclass(frozen=True)
class Ended:
    """A build that has ended, with everything it started."""

    code: int
    said: str


@dataclass(frozen=True)
class Running:
    """A build that was started."""

    watcher: subprocess.Popen[bytes]
    pidfile: Path
    said_in: Path

    def signal(self, number: signal.Signals) -> bool:
        """To sifkit alone, SIGINT to its process group as a terminal sends it. False: it had ended before."""
        wait_for(lambda: self.pidfile.exists() or self.watcher.poll() is not None)
        pid = int(self.pidfile.read_text())
        try:
            (os.killpg if number == signal.SIGINT else os.kill)(pid, number)
        except ProcessLookupError:
            return False
        return True

    def ended(self, timeout: float = 600) -> Ended:
        """Wait for the end of all of it. Fails when a process outlives it."""
        code = self.watcher.wait(timeout)
        said = self.said_in.read_text(errors="replace")
        assert code != watched.OUTLIVED, said
        return Ended(code, said)


@dataclass(frozen=True)
class Place:
    """Where a test builds."""

    root: Path
    site: Path
    cache: Path
    images: Path
    tmpdir: Path
    started: list[Running] = field(default_factory=list)

    @classmethod
    def make(cls, root: Path, wheelhouse: Path, cache: Path, **directories: Path) -> Place:
        """A toy project at `root`. `directories`: images or tmpdir elsewhere, on a disk of their own."""
        project = toy.make_project(root / "project", wheelhouse)
        images = project / "images"
        if "images" in directories:
            images.symlink_to(directories["images"])
        tmpdir = directories.get("tmpdir", root / "tmp")
        tmpdir.mkdir(parents=True, exist_ok=True)
        place = cls(root, project / "site.yaml", cache, images, tmpdir)
        # On a TMPDIR that is in memory sifkit looks for another, so it is the site that names it.
        place.site.write_text(f"tmpdir: {tmpdir}\n" + place.site.read_text())
        return place

    @property
    def project(self) -> Path:
        return self.root / "project"

    @property
    def spec(self) -> Path:
        return self.project / "definitions" / f"{NAME}.yaml"

    @property
    def log(self) -> Path:
        return self.project / "build" / f"{NAME}.log"

    def lock(self) -> None:
        """`sifkit lock`."""
        ended = self.start("lock", NAME).ended()
        assert ended.code == 0, ended.said

    def change(self, greeting: str) -> None:
        """Make the image stale by what it says in its environment, which no lock depends on."""
        self.spec.write_text(toy.SPEC.replace("it's $HOME", greeting))

    def environment(self) -> dict[str, str]:
        """Of this process, with the test's own places; what comes from this machine is not asked through a proxy."""
        mine = {"SIFKIT_CACHE": str(self.cache), "SIFKIT_SITE": str(self.site), "TMPDIR": str(self.tmpdir)}
        local = ",".join(filter(None, (os.environ.get("no_proxy"), "127.0.0.1")))
        return {**os.environ, **mine, "no_proxy": local, "NO_PROXY": local, "PYTHONPATH": str(ROOT)}

    def start(self, command: str, *words: str, env: Mapping[str, str] | None = None) -> Running:
        """A command of sifkit in a process of its own. `env`: for sifkit alone, not for its watcher."""
        number = len(self.started)
        self.log.unlink(missing_ok=True)  # what stands there is then of this build
        pidfile, said_in = self.root / f"{number}.pid", self.root / f"{number}.said"
        assignments = [f"{name}={value}" for name, value in (env or {}).items()]
        ours = ["env", *assignments, sys.executable, "-m", "sifkit", command, "--project", str(self.project), *words]
        argv = [sys.executable, watched.__file__, str(pidfile), *ours]
        with said_in.open("wb") as said:
            watcher = subprocess.Popen(argv, env=self.environment(), stdout=said, stderr=said, cwd=self.root)
        self.started.append(Running(watcher, pidfile, said_in))
        return self.started[-1]

    def stop(self) -> None:
        """What a failed test left running."""
        for running in self.started:
            if running.watcher.poll() is None:
                running.signal(signal.SIGTERM)
                running.watcher.wait(120)

    def build(self, *options: str, env: Mapping[str, str] | None = None) -> Ended:
        """`sifkit build toy`, to its end."""
        return self.start("build", NAME, *options, env=env).ended()

    def log_has(self, text: str) -> bool:
        """Whether the log of the build that runs now says `text`."""
        return self.log.is_file() and text in self.log.read_text(errors="replace")

    def forget_packages(self, *but: str) -> None:
        """Everything in the cache except bases and `but`."""
        for path in self.cache.iterdir():
            if path.name not in ("bases", *but):
                shutil.rmtree(path)

    def clear(self) -> None:
        """No image, no manifest."""
        shutil.rmtree(self.images, ignore_errors=True)

    # ------------------------------------------------------------------------------------------ what must hold

    def whole(self) -> Manifest | None:
        """The manifest of the image under the final name; None without one. Fails unless the two are of one build."""
        store = Store(self.images)
        if not store.sif(NAME).exists():
            return None
        manifest = store.manifest(NAME)
        assert manifest is not None, "there is an image without a manifest"
        assert sha256_of(store.sif(NAME)) == manifest.sha256, "the image is not the one of its manifest"
        return manifest

    def runs(self) -> None:
        """The image passes its own test, and says what the spec says now."""
        sif = str(Store(self.images).sif(NAME))
        env = {**self.environment(), "APPTAINER_NO_PRIVS": "1"} if os.geteuid() == 0 else self.environment()
        for words in (["test", "--no-home", sif], ["exec", "--no-home", sif, "sh", "-c", 'echo "$GREETING"']):
            ended = subprocess.run(["apptainer", *words], env=env, capture_output=True, text=True, check=False)
            assert ended.returncode == 0, ended.stderr
        assert f'env: {{GREETING: "{ended.stdout.strip()}"}}' in self.spec.read_text()

    def nothing_left(self) -> None:
        """No partial files, scratch directories or mounts; that no process is left is asked by `Running.ended`."""
        assert {path.name for path in self.images.glob("*")} <= {f".{NAME}.lock", f"{NAME}.sif", f"{NAME}.json"}
        assert sorted(str(path.relative_to(self.tmpdir)) for path in self.tmpdir.rglob("*")) == []
        kept = [path for part in ("bases", "layers") for path in (self.cache / part).glob("**/*")]
        assert [path.name for path in kept if "partial" in path.name] == []
        assert [
            path for name in ("venv", "farms") for path in self.cache.glob(f"**/{name}") if "uv/" not in str(path)
        ] == []
        mounts = [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"{self.root}/" in line]
        own = {str(path.resolve()) for path in (self.tmpdir, self.cache, self.images)}
        assert [line for line in mounts if line.split()[1] not in own] == []

    def recovers(self) -> Manifest:
        """The next build, with nothing done between, makes a whole image that runs, and tidies up."""
        ended = self.build()
        assert ended.code == 0, ended.said
        assert "up to date" in self.build().said
        return self.is_well()

    def is_well(self) -> Manifest:
        """A whole image that runs, and nothing else."""
        manifest = self.whole()
        assert manifest is not None
        self.runs()
        self.nothing_left()
        return manifest


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    """Poll, with a deadline."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def says(running: Running, text: str) -> bool:
    """Whether a build that runs has said `text` to its user. Fails when it has ended without."""
    ended = running.watcher.poll() is not None
    said = text in " ".join(running.said_in.read_text(errors="replace").split())
    assert said or not ended, running.said_in.read_text(errors="replace")
    return said
