"""Level train: a short `llamafactory-cli train` of the user's config, as the user would call it, and a resume."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from sifkit.apptainer import Bind
from sifkit.causes import find_cause
from sifkit.progress import Progress
from sifkit.together import together
from sifkit.verify import container as places
from sifkit.verify.checks import Check, Level, any_failed, failed, failed_because, not_run, passed, timed
from sifkit.verify.container import Answer, Container
from sifkit.verify.nvml import GpuSample, GpuUse, sampled
from sifkit.verify.outputs import (
    RunOutputs,
    judge_adapter,
    judge_files,
    judge_learning,
    judge_longest,
    judge_losses,
    judge_resume,
    judge_steps,
    read_outputs,
)
from sifkit.verify.prepare import TrainSetup
from sifkit.verify.ranks import devices_in_log, judge_devices, judge_zero
from sifkit.verify.smoke import (
    HALF,
    WORST_NAME,
    TrainConfig,
    argv,
    overrides,
    worst_case,
    worst_dataset,
)
from sifkit.verify.stopwatch import Stopwatch

_LOG_LINES = 400  # of a failed run's log, in which the cause is looked for
_CORPUS = f"{places.IN_CHECKOUT}/data/alpaca_en_demo.json"  # in the source archives since 0.9.4, in git before
_MADE_MODEL = "model"
_FIRST, _SECOND = "first", "second"


@dataclass(frozen=True)
class TrainFacts:
    """What the smoke run measured."""

    config: str
    model: str
    losses: tuple[tuple[int, float], ...]
    resumed_losses: tuple[tuple[int, float], ...]
    train_loss: float | None
    eval_loss: float | None
    steps_per_second: float | None
    seconds: float  # of the first run, its start included
    device: str | None  # as LLaMA-Factory's log names it
    gpu_peak_memory_gb: float | None
    gpu_peak_utilisation: int | None  # per cent
    files: tuple[str, ...]
    method: str = "lora"  # full, lora, qlora or whatever else the config says
    gpus: int = 0  # ranks that trained on a GPU of their own
    tokens_per_second: float | None = None  # of training, over all ranks
    phases: dict[str, float] = field(default_factory=dict)  # seconds of the first run
    samples: tuple[GpuSample, ...] = ()


class TrainLevel:
    """One smoke run: its container, its places, and what is known of it so far."""

    def __init__(
        self,
        container: Container,
        setup: TrainSetup,
        report_dir: Path,
        gpus: tuple[int, ...],
        progress: Progress,
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._container = container
        self._report_dir = report_dir
        self._gpus = gpus  # indices on the host, one for each rank; none on the CPU
        self._progress = progress
        self._known: frozenset[str] = frozenset()
        self._argv: tuple[str, ...] = ()
        self._first: RunOutputs | None = None
        self._second: RunOutputs | None = None
        self._seconds = 0.0
        self._phases: dict[str, float] = {}
        self._use = GpuUse()

    def run(self, model: Answer) -> Iterator[Check]:
        """Each check as soon as it is known. What a failure makes impossible is not run."""
        made = judge_model_made(self._setup, model)
        yield made
        if model.facts is None or any_failed([made]):
            yield not_run(Level.TRAIN, "train", "there is no model to train")
            return
        packages = frozenset(model.facts["packages"])
        before = judge_packages_wanted(self._config, packages)
        yield from before
        if any_failed(before):
            yield not_run(Level.TRAIN, "train", "the image lacks what the config asks for")
            return
        self._known = frozenset(model.facts["arguments"])
        checks = list(self._train())
        yield from checks
        if any_failed(checks):
            for name in ("loads and generates", "a stopped run resumes", "longest batch"):
                yield not_run(Level.TRAIN, name, "the run failed")
            return
        yield from self._afterwards(packages)

    def _afterwards(self, packages: frozenset[str]) -> Iterator[Check]:
        """What builds on the first run alone; at the same time, unless a real model needs the memory for itself."""
        tasks = [self._load, self._resume, self._longest, lambda: self._zero(packages)]
        runner = self._container.apptainer.runner
        with self._progress.phase("train: load, resume, longest batch"):
            for checks in together(tasks, runner.stop_all, workers=1 if self._setup.model else None):
                yield from checks

    # ------------------------------------------------------------------ steps

    def _train(self) -> Iterator[Check]:
        values = overrides(
            self._config,
            model=self._model,
            output_dir=f"{places.IN_WORK}/{_FIRST}",
            device=self._setup.device,
            known=self._known,
            method=self._setup.method,
            made=self._setup.model is None,
        )
        self._argv = argv(config_in_container(self._setup), values)
        with self._progress.phase("train: train"), sampled(tuple(dict.fromkeys(self._gpus))) as self._use:
            watch = Stopwatch()
            returncode, self._seconds = self._llamafactory("train", self._argv, watch=watch)
            self._phases = watch.phases()
        self._first = read_outputs(self._container.work / _FIRST)
        if returncode != 0:
            yield timed(self._failed_run("train", returncode), self._seconds)
            return
        said = f"llamafactory-cli train {self._config.path.name}: {self._config.method}, stage {self._config.stage}; "
        said += ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in self._phases.items())
        yield timed(passed(Level.TRAIN, "train", said), self._seconds)
        yield judge_files(self._first, self._config)
        yield judge_steps(self._first)
        finite = judge_losses(self._first)
        yield finite
        if not any_failed([finite]):
            yield judge_learning(self._first, made=self._setup.model is None)
        yield judge_devices(devices_in_log(self._read_log("train")), self._gpus, self._use)

    def _load(self) -> tuple[Check, ...]:
        """Load the result into the base model: tensors, logits, a few tokens."""
        words = (
            self._model,
            f"{places.IN_WORK}/{_FIRST}",
            "lora" if self._config.lora else "full",
            "cuda" if self._setup.device == "gpu" else "cpu",
        )
        if self._config.stage == "rm":
            return (not_run(Level.TRAIN, "loads and generates", "a reward model does not generate"),)
        answer = self._container.ask("adapter", *words, log=self._log("adapter"), on_line=self._progress.line)
        if answer.facts is None:
            return (timed(_no_answer("loads and generates", answer), answer.seconds),)
        tensors, generation = judge_adapter(answer.facts, lora=self._config.lora)
        return tensors, timed(generation, answer.seconds)

    def _resume(self) -> tuple[Check, ...]:
        """The same command once more, in a directory that holds only the checkpoint at half."""
        name = "a stopped run resumes"
        if not self._config.resumes:
            return (not_run(Level.TRAIN, name, f"LLaMA-Factory does not resume stage {self._config.stage}"),)
        work = self._container.work
        checkpoint = f"checkpoint-{HALF}"
        shutil.copytree(work / _FIRST / checkpoint, work / _SECOND / checkpoint)
        other = tuple(
            word.replace(f"={places.IN_WORK}/{_FIRST}", f"={places.IN_WORK}/{_SECOND}") for word in self._argv
        )
        returncode, seconds = self._llamafactory("resume", other)
        self._second = read_outputs(work / _SECOND)
        if returncode != 0:
            return (timed(replace(self._failed_run("resume", returncode), name=name), seconds),)
        assert self._first is not None
        return (timed(judge_resume(self._first, self._second, exact=self._setup.device == "cpu"), seconds),)

    def _longest(self) -> tuple[Check, ...]:
        """`max_samples` takes the first rows and misses the longest: whole batches of cutoff_len tokens."""
        name = "longest batch"
        if self._setup.device == "cpu":
            return (not_run(Level.TRAIN, name, "asks about the GPU's memory"),)
        with sampled(tuple(dict.fromkeys(self._gpus))) as use:
            returncode, seconds = self._full_batches("longest")
        if returncode != 0:
            return (timed(replace(self._failed_run("longest", returncode), name=name), seconds),)
        found = read_outputs(self._container.work / "longest")
        peak, made = max(use.peak_gb.values(), default=0.0), self._setup.model is None
        return (timed(judge_longest(found, self._config, len(self._gpus), peak, made=made), seconds),)

    def _zero(self, packages: frozenset[str]) -> tuple[Check, ...]:
        """Several GPUs and DeepSpeed in the image: its ZeRO-3 trains, too."""
        name = "DeepSpeed ZeRO-3"
        if len(self._gpus) < 2 or self._config.distributed:
            return ()
        if "deepspeed" not in packages:
            return (not_run(Level.TRAIN, name, "the image has no deepspeed (extras: [deepspeed])"),)
        if self._config.quantized:
            return (not_run(Level.TRAIN, name, "quantized weights cannot be sharded by it"),)
        returncode, seconds = self._full_batches("zero")
        if returncode != 0:
            return (timed(replace(self._failed_run("zero", returncode), name=name), seconds),)
        found = read_outputs(self._container.work / "zero")
        return (timed(replace(judge_zero(found, self._read_log("zero"), len(self._gpus)), name=name), seconds),)

    # ------------------------------------------------------------------ one call below

    @property
    def _model(self) -> str:
        return places.IN_MODEL if self._setup.model else f"{places.IN_WORK}/{_MADE_MODEL}"

    def _full_batches(self, name: str) -> tuple[int, float]:
        """Train on rows that fill cutoff_len, in an output directory called `name`."""
        data = self._container.work / f"{name}-data"
        data.mkdir()
        info, rows = worst_dataset(self._config, len(self._gpus))
        (data / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
        (data / f"{WORST_NAME}.json").write_text(json.dumps(rows), encoding="utf-8")
        values = worst_case(
            self._config,
            model=self._model,
            output_dir=f"{places.IN_WORK}/{name}",
            dataset_dir=f"{places.IN_WORK}/{name}-data",
            known=self._known,
            method=self._setup.method,
            zero=name == "zero",
        )
        return self._llamafactory(name, argv(config_in_container(self._setup), values), zero=name == "zero")

    def _llamafactory(
        self, name: str, words: tuple[str, ...], *, zero: bool = False, watch: Stopwatch | None = None
    ) -> tuple[int, float]:
        """Run it in the checkout, as a user does; its exit code and how long it took."""
        distributed = zero or (self._config.distributed and self._setup.device == "gpu")
        env = {"FORCE_TORCHRUN": "1"} if distributed else {}  # DeepSpeed is refused without (hparams/parser.py)
        started = time.monotonic()

        def heard(line: str) -> None:
            if watch:
                watch.line(line)
            self._progress.line(line)

        result = self._container.run(words, log=self._log(name), cwd=places.IN_CHECKOUT, on_line=heard, env=env)
        return result.returncode, time.monotonic() - started

    def _failed_run(self, name: str, returncode: int) -> Check:
        text = self._read_log(name)
        last = next((line for line in reversed(text.splitlines()) if re.match(r"\S*(Error|Exception)\b", line)), "")
        message = f"exit {returncode}" + (f": {last[:300]}" if last else "")
        known = find_cause("\n".join(text.splitlines()[-_LOG_LINES:]), "run")
        if known is None:
            return failed(Level.TRAIN, name, message, "not in the catalogue of known causes", f"read {name}.log")
        return failed_because(Level.TRAIN, name, message, known)

    def _log(self, name: str) -> Path:
        return self._report_dir / f"{name}.log"

    def _read_log(self, name: str) -> str:
        path = self._log(name)
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    def facts(self) -> TrainFacts | None:
        """What was measured; None when no run came to an end."""
        if self._first is None:
            return None
        return TrainFacts(
            config=str(self._config.path),
            model=str(self._setup.model or "smoke model"),
            losses=self._first.losses,
            resumed_losses=self._second.losses if self._second else (),
            train_loss=self._first.train_loss,
            eval_loss=self._first.eval_loss,
            steps_per_second=self._first.steps_per_second,
            seconds=self._seconds,
            device=devices_in_log(self._read_log("train")).get(0),
            gpu_peak_memory_gb=self._use.peak_memory_gb if self._gpus else None,
            gpu_peak_utilisation=self._use.peak_utilisation if self._gpus else None,
            files=tuple(file.name for file in self._first.files),
            method=self._config.method,
            gpus=len(self._gpus),
            tokens_per_second=self._first.tokens_per_second,
            phases=self._phases,
            samples=tuple(self._use.samples),
        )


# ---------------------------------------------------------------------------------------------- pure


def config_in_container(setup: TrainSetup) -> str:
    """The config's path as the job sees it: relative to the checkout if it lies in it."""
    path = setup.config.path.absolute()
    if path.is_relative_to(setup.checkout):
        return str(path.relative_to(setup.checkout))
    return f"{places.IN_CONFIG}/{path.name}"


def container_for(container: Container, setup: TrainSetup) -> Container:
    """With the checkout, and the config and the model where they are the user's own."""
    return replace(container, binds=_binds(setup))


def make_model(container: Container, setup: TrainSetup, log: Path, on_line: Callable[[str], None]) -> Answer:
    """A tiny model for the config's template; with a real one only what this image knows is asked."""
    template = "" if setup.model else setup.config.template
    words = (template, _CORPUS, f"{places.IN_WORK}/{_MADE_MODEL}")
    return container.ask("smoke_model", *words, log=log, on_line=on_line)


def _binds(setup: TrainSetup) -> tuple[Bind, ...]:
    binds = [Bind(setup.checkout, places.IN_CHECKOUT)]
    inside = config_in_container(setup)
    if inside.startswith(places.IN_CONFIG):
        binds.append(Bind(setup.config.path.absolute(), inside))
    if setup.model:
        binds.append(Bind(setup.model, places.IN_MODEL))
    return tuple(binds)


def judge_model_made(setup: TrainSetup, answer: Answer) -> Check:
    """The model that will be trained: the user's, or the one that probes/smoke_model.py made."""
    name = "model" if setup.model else "smoke model"
    facts = answer.facts
    if facts is None or facts.get("error"):
        said = str(facts["error"]) if facts else answer.said
        last = said.strip().splitlines()[-1] if said.strip() else "no answer"
        return timed(failed_because(Level.TRAIN, name, last, find_cause(said, "run")), answer.seconds)
    if setup.model:
        return timed(passed(Level.TRAIN, name, f"{setup.model}"), answer.seconds)
    said = f"{facts['architecture']}, {facts['parameters']:,} parameters, {facts['vocabulary']} tokens"
    return timed(passed(Level.TRAIN, name, said), answer.seconds)


def judge_packages_wanted(config: TrainConfig, packages: frozenset[str]) -> tuple[Check, ...]:
    """Packages without which LLaMA-Factory refuses the config, or warns and trains otherwise.

    Source: model/model_utils/attention.py (fa2 falls back with a warning), hparams/parser.py, 0.9.3 to 0.9.5.
    """
    wanted = {
        "flash-attn": ("flash_attn: fa2", config.flash_attn == "fa2", "flash_attn: sdpa, or packages: [flash-attn]"),
        "bitsandbytes": ("qlora", config.method == "qlora", "extras: [bitsandbytes]"),
        "deepspeed": ("deepspeed", config.deepspeed, "extras: [deepspeed]"),
    }
    return tuple(
        failed(Level.TRAIN, what, f"{package} is not in this image", _WITHOUT[package], f"{fix} in the spec")
        for package, (what, asked, fix) in wanted.items()
        if asked and package not in packages
    )


_WITHOUT = {
    "flash-attn": "LLaMA-Factory only warns (FlashAttention-2 is not installed) and trains with slower attention",
    "bitsandbytes": "it quantizes the weights of QLoRA",
    "deepspeed": "the config names a DeepSpeed file",
}


def _no_answer(name: str, answer: Answer) -> Check:
    said = answer.said.strip()
    return failed_because(Level.TRAIN, name, said.splitlines()[-1] if said else "no answer", find_cause(said, "run"))
