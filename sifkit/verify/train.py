"""Level train: a short `llamafactory-cli train` of the user's config, as the user would call it, and a resume."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sifkit.apptainer import Bind
from sifkit.causes import find_cause
from sifkit.progress import Progress
from sifkit.verify import container as places
from sifkit.verify.checks import Check, Level, any_failed, failed, failed_because, not_run, passed, timed
from sifkit.verify.container import Answer, Container
from sifkit.verify.nvml import GpuSample, GpuUse, sampled
from sifkit.verify.outputs import (
    RunOutputs,
    judge_adapter,
    judge_files,
    judge_losses,
    judge_resume,
    judge_steps,
    read_outputs,
)
from sifkit.verify.prepare import TrainSetup
from sifkit.verify.smoke import HALF, argv, overrides

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
    samples: tuple[GpuSample, ...] = ()


class TrainLevel:
    """One smoke run: its container, its places, and what is known of it so far."""

    def __init__(
        self,
        container: Container,
        setup: TrainSetup,
        report_dir: Path,
        gpu_indices: tuple[int, ...],
        progress: Progress,
    ) -> None:
        self._setup = setup
        self._config = setup.config
        self._container = replace(container, binds=_binds(setup))
        self._report_dir = report_dir
        self._gpu_indices = gpu_indices
        self._progress = progress
        self._argv: tuple[str, ...] = ()
        self._first: RunOutputs | None = None
        self._second: RunOutputs | None = None
        self._seconds = 0.0
        self._use = GpuUse()

    def run(self) -> Iterator[Check]:
        """Each check as soon as it is known. What a failure makes impossible is not run."""
        made = self._make_model()
        yield made[0]
        if made[1] is None:
            yield not_run(Level.TRAIN, "train", "there is no model to train")
            return
        known = frozenset(made[1]["arguments"])
        checks = list(self._train(known))
        yield from checks
        if any_failed(checks):
            yield not_run(Level.TRAIN, "loads and generates", "the run failed")
            yield not_run(Level.TRAIN, "a stopped run resumes", "the run failed")
            return
        yield from self._load()
        yield self._resume()

    # ------------------------------------------------------------------ steps

    def _make_model(self) -> tuple[Check, dict[str, Any] | None]:
        """A tiny model for the config's template; with a real model only the arguments of this version are asked."""
        template = "" if self._setup.model else self._config.template
        name = "model" if self._setup.model else "smoke model"
        with self._progress.phase(f"train: {name}"):
            words = (template, _CORPUS, f"{places.IN_WORK}/{_MADE_MODEL}")
            answer = self._container.ask("smoke_model", *words, log=self._log("model"), on_line=self._progress.line)
        if answer.facts is None or answer.facts.get("error"):
            said = str(answer.facts["error"]) if answer.facts else answer.said
            last = said.strip().splitlines()[-1] if said.strip() else "no answer"
            return timed(failed_because(Level.TRAIN, name, last, find_cause(said, "run")), answer.seconds), None
        return timed(_model_check(name, self._setup.model, answer.facts), answer.seconds), answer.facts

    def _train(self, known: frozenset[str]) -> Iterator[Check]:
        values = overrides(
            self._config,
            model=places.IN_MODEL if self._setup.model else f"{places.IN_WORK}/{_MADE_MODEL}",
            output_dir=f"{places.IN_WORK}/{_FIRST}",
            device=self._setup.device,
            known=known,
        )
        self._argv = argv(config_in_container(self._setup), values)
        with sampled(self._gpu_indices) as self._use:
            returncode, self._seconds = self._llamafactory("train", self._argv)
        self._first = read_outputs(self._container.work / _FIRST)
        if returncode != 0:
            yield timed(self._failed_run("train", returncode), self._seconds)
            return
        yield timed(passed(Level.TRAIN, "train", f"llamafactory-cli train {self._config.path.name}"), self._seconds)
        yield judge_files(self._first, self._config)
        yield judge_steps(self._first)
        yield judge_losses(self._first)
        yield judge_device(device_in_log(self._read_log("train")), self._setup.device, self._use)

    def _load(self) -> Iterator[Check]:
        """Load the result into the base model: tensors, logits, a few tokens."""
        words = (
            places.IN_MODEL if self._setup.model else f"{places.IN_WORK}/{_MADE_MODEL}",
            f"{places.IN_WORK}/{_FIRST}",
            "lora" if self._config.lora else "full",
            "cuda" if self._setup.device == "gpu" else "cpu",
        )
        if self._config.stage == "rm":
            yield not_run(Level.TRAIN, "loads and generates", "a reward model does not generate")
            return
        with self._progress.phase("train: load and generate"):
            answer = self._container.ask("adapter", *words, log=self._log("adapter"), on_line=self._progress.line)
        if answer.facts is None:
            yield timed(_no_answer("loads and generates", answer), answer.seconds)
            return
        tensors, generation = judge_adapter(answer.facts, lora=self._config.lora)
        yield tensors
        yield timed(generation, answer.seconds)

    def _resume(self) -> Check:
        """The same command once more, in a directory that holds only the checkpoint at half."""
        name = "a stopped run resumes"
        if not self._config.resumes:
            return not_run(Level.TRAIN, name, f"LLaMA-Factory does not resume stage {self._config.stage}")
        work = self._container.work
        checkpoint = f"checkpoint-{HALF}"
        shutil.copytree(work / _FIRST / checkpoint, work / _SECOND / checkpoint)
        other = tuple(
            word.replace(f"={places.IN_WORK}/{_FIRST}", f"={places.IN_WORK}/{_SECOND}") for word in self._argv
        )
        returncode, seconds = self._llamafactory("resume", other)
        self._second = read_outputs(work / _SECOND)
        if returncode != 0:
            return timed(replace(self._failed_run("resume", returncode), name=name), seconds)
        assert self._first is not None
        return timed(judge_resume(self._first, self._second, exact=self._setup.device == "cpu"), seconds)

    # ------------------------------------------------------------------ one call below

    def _llamafactory(self, name: str, words: tuple[str, ...]) -> tuple[int, float]:
        """Run it in the checkout, as a user does; its exit code and how long it took."""
        distributed = self._config.distributed and self._setup.device == "gpu"
        env = {"FORCE_TORCHRUN": "1"} if distributed else {}  # DeepSpeed is refused without (hparams/parser.py)
        started = time.monotonic()
        with self._progress.phase(f"train: {name}"):
            result = self._container.run(
                words, log=self._log(name), cwd=places.IN_CHECKOUT, on_line=self._progress.line, env=env
            )
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
        gpu = bool(self._gpu_indices)
        return TrainFacts(
            config=str(self._config.path),
            model=str(self._setup.model or "smoke model"),
            losses=self._first.losses,
            resumed_losses=self._second.losses if self._second else (),
            train_loss=self._first.train_loss,
            eval_loss=self._first.eval_loss,
            steps_per_second=self._first.steps_per_second,
            seconds=self._seconds,
            device=device_in_log(self._read_log("train")),
            gpu_peak_memory_gb=self._use.peak_memory_gb if gpu else None,
            gpu_peak_utilisation=self._use.peak_utilisation if gpu else None,
            files=tuple(file.name for file in self._first.files),
        )


# ---------------------------------------------------------------------------------------------- pure


def config_in_container(setup: TrainSetup) -> str:
    """The config's path as the job sees it: relative to the checkout if it lies in it."""
    path = setup.config.path.absolute()
    if path.is_relative_to(setup.checkout):
        return str(path.relative_to(setup.checkout))
    return f"{places.IN_CONFIG}/{path.name}"


def _binds(setup: TrainSetup) -> tuple[Bind, ...]:
    binds = [Bind(setup.checkout, places.IN_CHECKOUT)]
    inside = config_in_container(setup)
    if inside.startswith(places.IN_CONFIG):
        binds.append(Bind(setup.config.path.absolute(), inside))
    if setup.model:
        binds.append(Bind(setup.model, places.IN_MODEL))
    return tuple(binds)


def _model_check(name: str, model: Path | None, facts: dict[str, Any]) -> Check:
    if model:
        return passed(Level.TRAIN, name, f"{model}")
    said = f"{facts['architecture']}, {facts['parameters']:,} parameters, {facts['vocabulary']} tokens"
    return passed(Level.TRAIN, name, said)


def _no_answer(name: str, answer: Answer) -> Check:
    said = answer.said.strip()
    return failed_because(Level.TRAIN, name, said.splitlines()[-1] if said else "no answer", find_cause(said, "run"))


def device_in_log(text: str) -> str | None:
    """Where LLaMA-Factory says that rank 0 computes. Source: hparams/parser.py, get_train_args, 0.9.1 to 0.9.5."""
    match = re.search(r"[Pp]rocess rank: 0,.*?\bdevice: ([\w:]+)", text)
    return match[1] if match else None


def judge_device(device: str | None, wanted: str, use: GpuUse) -> Check:
    """The work was done where it was asked for. On a GPU its memory must have grown by CUDA's own use at least."""
    name = f"trained on the {wanted.upper()}"
    if device is None:
        return failed(
            Level.TRAIN, name, "the log names no device", "this LLaMA-Factory logs otherwise", "read train.log"
        )
    if not device.startswith("cuda" if wanted == "gpu" else "cpu"):
        cause = "the GPU did not reach the container: --nv or the allocation is missing"
        return failed(
            Level.TRAIN, name, f"trained on {device}", cause, "check the job's --gres and CUDA_VISIBLE_DEVICES"
        )
    if wanted == "cpu":
        return passed(Level.TRAIN, name, device)
    grown = use.peak_memory_gb - use.start_memory_gb
    said = f"{device}, {grown:.1f} GB more memory used, utilisation up to {use.peak_utilisation} %"
    if grown < 0.1:
        cause = "the GPU's memory did not grow while the log speaks of cuda: another GPU was used"
        return failed(Level.TRAIN, name, said, cause, "check CUDA_VISIBLE_DEVICES and MIG")
    return passed(Level.TRAIN, name, said)
