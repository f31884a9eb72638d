"""Graded verification of an image: static, host, kernel, train.

What was asked first, then what it needs: a checkout that does not fit and a missing GPU are said before
any container starts. A level that could not run is reported as not run, with the reason.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from sifkit.apptainer import Apptainer
from sifkit.causes import find_cause
from sifkit.progress import Progress
from sifkit.tables import modules_of_extras
from sifkit.together import Ahead, pool
from sifkit.verify.checks import Check, Level, Outcome, failed, failed_because, not_run, timed
from sifkit.verify.container import IN_LIBRARIES, Answer, Container
from sifkit.verify.host import judge_host, judge_visible
from sifkit.verify.kernel import judge_all_reduce, judge_kernels
from sifkit.verify.nvml import HostFacts, read_host, visible_devices
from sifkit.verify.prepare import TrainSetup, judge_checkout, prepare
from sifkit.verify.report import Report
from sifkit.verify.request import Subject, VerifyOptions
from sifkit.verify.static import MODULES, ImageFacts, judge_static, parse_facts
from sifkit.verify.train import TrainFacts, TrainLevel, container_for, make_model

_LOGS = ("static", "host", "kernel", "allreduce", "model", "train", "adapter", "resume", "longest", "zero")
_REPORTED = (
    "llamafactory",
    "torch",
    "torchvision",
    "torchaudio",
    "transformers",
    "peft",
    "trl",
    "accelerate",
    "datasets",
)


def verify(subject: Subject, options: VerifyOptions, apptainer: Apptainer, progress: Progress) -> Report:
    """Verify `subject` level by level; the logs of all programs are left in `options.report_dir`.

    Raises `HostError` at once when a GPU is asked for and there is none.
    """
    started, clock = datetime.now(timezone.utc), time.monotonic()
    host = read_host() if options.device == "gpu" else None
    run = _Verification(subject, options, apptainer, progress, host)
    checks = tuple(run.checks())
    return Report(
        name=subject.name,
        sha256=subject.sha256,
        size=subject.image.stat().st_size,
        versions=run.versions(),
        device=options.device,
        started=started.isoformat(timespec="seconds"),
        seconds=time.monotonic() - clock,
        levels=options.levels,
        checks=checks,
        host=host,
        train=run.train_facts,
        gpus=run.gpu_models(),
        level_seconds=run.level_seconds,
        own=any((options.config, options.model, options.method)),
    )


class _Verification:
    """One run through the levels: where its programs run, and what it learnt on the way."""

    def __init__(
        self,
        subject: Subject,
        options: VerifyOptions,
        apptainer: Apptainer,
        progress: Progress,
        host: HostFacts | None,
    ) -> None:
        self._subject = subject
        self._options = options
        self._apptainer = apptainer
        self._progress = progress
        self._host = host
        self._visible = visible_devices(host, options.environ) if host else ()
        self._gpus = self._visible[: options.gpus]
        self._facts: ImageFacts | None = None
        self.train_facts: TrainFacts | None = None
        self.level_seconds: dict[str, float] = {}

    def checks(self) -> Iterator[Check]:
        """All checks in order. What cannot work whatever the image holds ends it before the first container."""
        setup, before = self._prepare()
        hidden = self._hidden()
        wrong = [check for check in (hidden, *before) if check and check.outcome is Outcome.FAILED]
        if wrong:
            for level in self._options.levels:
                if all(level is not check.level for check in wrong):
                    yield not_run(level, level.value, f"not started: {wrong[0].name} has to be mended first")
            yield from ((hidden,) if hidden else ())
            yield from before
            return
        self._options.report_dir.mkdir(parents=True, exist_ok=True)
        for name in _LOGS:
            (self._options.report_dir / f"{name}.log").unlink(missing_ok=True)
        runner = self._apptainer.runner
        with self._container() as container, pool(runner.stop_all) as threads:
            ahead = self._start(container, setup, Ahead[Answer](threads))
            yield from self._levels(container, ahead, setup, before)

    def _prepare(self) -> tuple[TrainSetup | None, tuple[Check, ...]]:
        if Level.TRAIN not in self._options.levels:
            return None, ()
        version = self._subject.lock.version_of("llamafactory") if self._subject.lock else None
        return prepare(self._options, version)

    def _hidden(self) -> Check | None:
        """GPUs that are here and that a job could not use."""
        if self._host is None:
            return None
        return judge_visible(self._host, self._visible, self._options.gpus, self._options.environ)

    def _start(self, container: Container, setup: TrainSetup | None, ahead: Ahead[Answer]) -> Ahead[Answer]:
        """Ask at once what builds on nothing else, dearest first; it is judged in the order of the levels."""
        gpu = self._options.device == "gpu"
        asked = self._options.levels
        if Level.STATIC in asked:
            words = (*MODULES, *self._extra_modules())
            ahead.ask("static", lambda: self._ask(container, "image", *words, env={"PYTHONPATH": IN_LIBRARIES}))
        if setup and Level.TRAIN in asked:
            log, line = self._log("model"), self._progress.line
            ahead.ask("model", lambda: make_model(container_for(container, setup), setup, log, line))
        if gpu and Level.KERNEL in asked:
            ahead.ask("kernel", lambda: self._ask(container, "kernel"))
        if gpu and Level.HOST in asked:
            ahead.ask("host", lambda: self._ask(container, "host"))
        return ahead

    def _ask(self, container: Container, probe: str, *words: str, env: dict[str, str] | None = None) -> Answer:
        log = self._log("static" if probe == "image" else probe)
        return container.ask(probe, *words, log=log, on_line=self._progress.line, env=env)

    def _log(self, name: str) -> Path:
        return self._options.report_dir / f"{name}.log"

    @contextmanager
    def _container(self) -> Iterator[Container]:
        """The image with a work directory that is gone afterwards, or kept beside the report."""
        parent = self._apptainer.runner.environ.get("TMPDIR")
        work = Path(tempfile.mkdtemp(prefix="sifkit-verify-", dir=parent))
        environ = {**self._options.environ}
        if self._gpus:
            environ["CUDA_VISIBLE_DEVICES"] = ",".join(device.word for device in self._gpus)
        try:
            yield Container(
                self._apptainer, self._subject.image, work, nv=self._options.device == "gpu", environ=environ
            )
        finally:
            if self._options.keep:
                _move(work, self._options.report_dir / "work")
            else:
                shutil.rmtree(work, ignore_errors=True)

    def _levels(
        self, container: Container, ahead: Ahead[Answer], setup: TrainSetup | None, before: tuple[Check, ...]
    ) -> Iterator[Check]:
        """Each level that was asked for; after a failure, those that build on it are not run."""
        blocked: str | None = None
        for level in (level for level in Level if level in self._options.levels):
            if level is Level.TRAIN:
                yield from before
            if blocked:
                yield not_run(level, level.value, blocked)
                continue
            started = time.monotonic()
            found = list(self._level(level, container, ahead, setup))
            self.level_seconds[level.value] = round(time.monotonic() - started, 1)
            yield from found
            blocked = _blocks(level, found)

    def _level(
        self, level: Level, container: Container, ahead: Ahead[Answer], setup: TrainSetup | None
    ) -> Iterator[Check]:
        match level:
            case Level.STATIC:
                return self._static(ahead)
            case Level.HOST | Level.KERNEL if self._options.device == "cpu":
                return iter([not_run(level, level.value, "needs a GPU (--device cpu was asked for)")])
            case Level.HOST:
                return self._host_level(ahead)
            case Level.KERNEL:
                return self._kernel(container, ahead)
            case Level.TRAIN:
                return self._train(container, ahead, setup)

    def _static(self, ahead: Ahead[Answer]) -> Iterator[Check]:
        with self._progress.phase("static"):
            answer = ahead.answer("static")
        if answer.facts is None:
            yield timed(_dead(Level.STATIC, "the image starts", answer.said), answer.seconds)
            return
        self._facts = parse_facts(answer.facts)
        yield from judge_static(self._facts, self._subject.lock, self._options.gpu_models, self._options.tables)

    def _extra_modules(self) -> tuple[str, ...]:
        """Of the extras in the lock; an image without one says nothing of its extras."""
        lock = self._subject.lock
        return modules_of_extras({package.name for package in lock.packages}) if lock else ()

    def _host_level(self, ahead: Ahead[Answer]) -> Iterator[Check]:
        assert self._host is not None
        with self._progress.phase("host"):
            answer = ahead.answer("host")
        if answer.facts is None:
            yield timed(_dead(Level.HOST, "NVIDIA libraries in the container", answer.said), answer.seconds)
            return
        yield from judge_host(self._host, self._gpus, len(self._gpus), answer.facts, self._options.tables)

    def _kernel(self, container: Container, ahead: Ahead[Answer]) -> Iterator[Check]:
        with self._progress.phase("kernel"):
            answer = ahead.answer("kernel")
        if answer.facts is None:
            yield timed(_dead(Level.KERNEL, "kernels", answer.said), answer.seconds)
            return
        yield from judge_kernels(answer.facts)
        yield self._all_reduce(container)

    def _all_reduce(self, container: Container) -> Check:
        count = len(self._gpus)
        if count < 2:
            return judge_all_reduce(None, "", count)
        launcher = ("torchrun", "--standalone", "--nproc-per-node", str(count))
        with self._progress.phase("kernel: all-reduce"):
            log = self._log("allreduce")
            answer = container.ask("allreduce", log=log, on_line=self._progress.line, launcher=launcher)
        return timed(judge_all_reduce(answer.facts, answer.said, count), answer.seconds)

    def _train(self, container: Container, ahead: Ahead[Answer], setup: TrainSetup | None) -> Iterator[Check]:
        if setup is None:
            return  # `prepare` has said why
        mismatch = self._other_version(setup)
        if mismatch:
            yield mismatch
            return
        indices = tuple(device.gpu.index for device in self._gpus)
        inside = container_for(container, setup)
        level = TrainLevel(inside, setup, self._options.report_dir, indices, self._progress)
        with self._progress.phase("train: model"):
            model = ahead.answer("model")
        yield from level.run(model)
        self.train_facts = level.facts()

    def _other_version(self, setup: TrainSetup) -> Check | None:
        """The checkout against what is really in the image, for images without a lock."""
        inside = self._facts.version_of("llamafactory") if self._facts else None
        checks = judge_checkout(setup.checkout, inside)
        return next((check for check in checks if check.outcome is Outcome.FAILED), None)

    def gpu_models(self) -> tuple[str, ...]:
        """Of each GPU that was used."""
        return tuple(device.gpu.name for device in self._gpus)

    def versions(self) -> dict[str, str]:
        """What the image was found to hold, or what its lock says where that was not looked at."""
        if self._facts:
            found = {name: self._facts.version_of(name) for name in _REPORTED}
            found |= {"python": self._facts.python, "cuda": self._facts.torch_cuda}
        else:
            found = {name: self._subject.lock.version_of(name) if self._subject.lock else None for name in _REPORTED}
        return {name: version for name, version in found.items() if version}


def _dead(level: Level, name: str, said: str) -> Check:
    """A program that ended without an answer."""
    last = said.strip().splitlines()[-1] if said.strip() else "no output"
    known = find_cause(said, "run")
    if known:
        return failed_because(level, name, last, known)
    return failed(level, name, last, "the program in the container died", f"read {level.value}.log")


def _blocks(level: Level, found: list[Check]) -> str | None:
    """Why what follows `level` cannot run. Another package version than locked does not keep an image from running."""
    fatal = [check for check in found if check.outcome is Outcome.FAILED]
    if level is Level.STATIC:
        fatal = [check for check in fatal if check.name.startswith("import ") or check.name == "the image starts"]
    return f"level {level.value} failed: {fatal[0].name}" if fatal else None


def _move(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.move(source, target)
