"""What the container costs a training job: the same train inside an image and outside of it, alternating.

    python -m bench.gpu [IMAGE.sif] [--outside PYTHON [--outside-path DIR]] [--pairs 3] [--steps 30]

A LoRA train of a Llama with a billion random weights, in packed sequences, on one GPU; the same packages on both sides,
which is compared first. Without --outside an environment is made from the image's lock. `make bench-gpu` writes the
result into docs/benchmarks.md; --device cpu --small only shows that it works.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from bench import page
from bench.scratch import scratch
from sifkit import checkout as checkouts
from sifkit import site
from sifkit.apptainer import Apptainer, Bind
from sifkit.errors import CommandFailed, HostError, SifkitError, UsageError
from sifkit.lock import read_lock
from sifkit.progress import PlainProgress
from sifkit.run import Command, Runner
from sifkit.spec import DEFAULT_IMAGE, Project
from sifkit.verify.container import IN_CHECKOUT, IN_PROBES, IN_WORK, Container, read_answer
from sifkit.verify.nvml import GpuUse, HostFacts, read_host, sampled
from sifkit.verify.request import gpu_environment
from sifkit.verify.stopwatch import Stopwatch

ROOT = Path(__file__).parent.parent
PROBES = Path(__file__).with_name("probes")
IN_BENCH = "/sifkit/bench"
CONFIG = "examples/train_lora/qwen3_lora_sft.yaml"
TEMPLATE = "qwen3_nothink"
BUSY = 50  # per cent of utilisation from which a look counts as training
LONGEST = timedelta(minutes=20)  # of one run

# Without these on both sides nothing is compared; every other package that both have must be equal, too.
REQUIRED = ("torch", "transformers", "llamafactory", "accelerate", "peft", "datasets", "numpy", "triton")
_INSTALLERS = {"pip", "uv", "setuptools", "wheel"}


@dataclass(frozen=True)
class Load:
    """How much is trained. Sequences are packed: each is `cutoff` tokens long."""

    model: str  # of probes/big_model.py
    batch: int
    accumulation: int
    cutoff: int
    steps: int

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.accumulation * self.cutoff


WARM = 3  # steps that load kernels and fill caches, and count as start-up


@dataclass(frozen=True)
class Run:
    """One train. Speed: of the steps after the first few. Start-up: what those and all before them took beyond that."""

    steps_per_second: float
    startup_seconds: float
    utilisation: float | None  # per cent, mean while it trained; None on the CPU


@dataclass(frozen=True)
class Pair:
    """The two sides, one right after the other."""

    inside: Run
    outside: Run

    @property
    def speed(self) -> float:
        """Inside as a part of outside: 1 is no loss."""
        return self.inside.steps_per_second / self.outside.steps_per_second

    @property
    def startup(self) -> float:
        """Inside as a multiple of outside."""
        return self.inside.startup_seconds / self.outside.startup_seconds


# ------------------------------------------------------------------------------------------------ pure


def read_run(watch: Stopwatch, use: GpuUse) -> Run:
    """From the times of the steps in the log. Raises `CommandFailed` where it has too few."""
    speed = watch.steps_per_second(WARM)
    if speed is None:
        message = f"the log has {len(watch.steps)} steps, of which the first {WARM} warm up"
        raise CommandFailed(message, "more steps: --steps 20", returncode=0)
    return Run(speed, watch.steps[WARM - 1] - WARM / speed, busy_utilisation(use))


def busy_utilisation(use: GpuUse) -> float | None:
    """Mean from the first look at a busy GPU to the last, so that waiting in between counts and start-up does not."""
    looks = [sample.utilisation for sample in use.samples if sample.utilisation is not None]
    busy = [place for place, rate in enumerate(looks) if rate >= BUSY]
    return mean(looks[busy[0] : busy[-1] + 1]) if busy else (0.0 if looks else None)


def differences(inside: dict[str, Any], outside: dict[str, Any]) -> list[str]:
    """What is not the same on both sides, by probes/versions.py's answers; empty when they may be compared."""
    found = []
    mine, theirs = (".".join(side["python"].split(".")[:2]) for side in (inside, outside))
    if mine != theirs:
        found.append(f"Python {mine} inside, {theirs} outside")
    ours, others = inside["packages"], outside["packages"]
    for name in sorted({*REQUIRED, *(ours.keys() & others.keys())} - _INSTALLERS):
        if ours.get(name) != others.get(name) or name not in ours:
            found.append(f"{name} {ours.get(name, 'missing')} inside, {others.get(name, 'missing')} outside")
    return found


def require_same(inside: dict[str, Any], outside: dict[str, Any]) -> None:
    """Raises `UsageError` when the two sides hold other packages."""
    found = differences(inside, outside)
    if found:
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        message = f"other packages inside and outside, so nothing is measured: {'; '.join(found[:8])}{more}"
        raise UsageError(message, "install the image's lock outside: pip install --require-hashes -r NAME.lock")


def arguments(load: Load, *, model: str, output: str, device: str) -> tuple[str, ...]:
    """llamafactory-cli's, after the recipe's name; the same on both sides but for the places."""
    values = {
        "model_name_or_path": model,
        "output_dir": output,
        "template": TEMPLATE,
        "packing": "true",
        "cutoff_len": str(load.cutoff),
        "per_device_train_batch_size": str(load.batch),
        "gradient_accumulation_steps": str(load.accumulation),
        "max_steps": str(load.steps),
        "preprocessing_num_workers": "4",
        "dataloader_num_workers": "2",
        "logging_steps": "1",
        "save_strategy": "'no'",  # unquoted, YAML reads it as false
        "plot_loss": "false",
        "report_to": "none",
        **({"use_cpu": "true", "bf16": "false"} if device == "cpu" else {}),
    }
    return tuple(f"{name}={value}" for name, value in values.items())


def spread(values: Iterable[float]) -> str:
    """Mean, lowest and highest."""
    found = list(values)
    return f"{mean(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def table(pairs: list[Pair]) -> str:
    """Markdown: each pair, then what they say together."""
    lines = [
        "| pair | steps/s inside | outside | ratio | start-up inside | outside | ratio | GPU busy inside | outside |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for number, pair in enumerate(pairs, start=1):
        speeds = f"{pair.inside.steps_per_second:.3f} | {pair.outside.steps_per_second:.3f} | {pair.speed:.3f}"
        starts = f"{pair.inside.startup_seconds:.1f} s | {pair.outside.startup_seconds:.1f} s | {pair.startup:.2f}"
        lines.append(f"| {number} | {speeds} | {starts} | {_rate(pair.inside)} | {_rate(pair.outside)} |")
    lines += [
        "",
        f"Inside ÷ outside over {len(pairs)} pairs: steps per second {spread(pair.speed for pair in pairs)}, "
        f"start-up {spread(pair.startup for pair in pairs)}.",
    ]
    return "\n".join(lines) + "\n"


def _rate(run: Run) -> str:
    return "" if run.utilisation is None else f"{run.utilisation:.0f} %"


def head(device: str, versions: dict[str, Any], parameters: int, load: Load) -> str:
    """When, on what, with what."""
    packages = versions["packages"]
    names = ("llamafactory", "torch", "transformers", "peft")
    said = ", ".join(f"{name} {packages[name]}" for name in names if name in packages)
    trained = f"LoRA, {parameters / 1e9:.2f} B parameters" if parameters > 1e8 else f"LoRA, {parameters:,} parameters"
    return (
        f"{time.strftime('%Y-%m-%d')}, {device}; Python {versions['python']}, {said}. {trained}; {load.steps} steps of "
        f"{load.tokens:,} tokens ({load.accumulation} × {load.batch} sequences of {load.cutoff}); a short warm-up "
        "of each side before, not counted; each run with empty caches:\n\n"
    )


def device_name(host: HostFacts | None) -> str:
    """The GPU and its driver, or the processors."""
    if host is None:
        return f"CPU, {os.cpu_count()} processors"
    return f"{host.gpus[0].name}, driver {host.driver}, {os.cpu_count()} processors"


# ------------------------------------------------------------------------------------------------ acting


@dataclass(frozen=True)
class Outside:
    """A Python of the host, with a directory that goes before its own packages."""

    python: Path
    path: Path | None

    def environment(self, run: Path, gpu: dict[str, str]) -> dict[str, str]:
        """As clean as the container's, with caches of its own."""
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        fixed = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1", **gpu}
        over = {"PYTHONPATH": str(self.path)} if self.path else {}
        return {**kept, **fixed, **over, **_caches(run)}


def _caches(run: Path | str) -> dict[str, str]:
    names = {"HOME": "home", "HF_HOME": "hf", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
    names |= {"XDG_CACHE_HOME": "cache", "TMPDIR": "tmp", "MPLCONFIGDIR": "matplotlib"}
    return {name: f"{run}/{folder}" for name, folder in names.items()}


class Bench:
    """Both sides of one image, in one work directory."""

    def __init__(self, container: Container, outside: Outside, checkout: Path, load: Load, host: HostFacts | None):
        self._container = container
        self._outside = outside
        self._checkout = checkout
        self._load = load
        self._host = host
        self._device = "gpu" if host else "cpu"
        self._gpu = {**gpu_environment(os.environ), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        if host:  # with several, LLaMA-Factory would train on all of them
            self._gpu["CUDA_VISIBLE_DEVICES"] = str(host.gpus[0].index)

    def versions(self) -> dict[str, Any]:
        """Those inside, which are those outside. Raises `UsageError` where they differ."""
        inside = self._ask("versions.py")
        answer = self._container.work / "outside.json"
        argv = (str(self._outside.python), str(PROBES / "versions.py"), str(answer))
        self._run_outside(argv, self._fresh("versions"), Stopwatch())
        require_same(inside, read_answer(answer.read_text()))
        return inside

    def make_model(self) -> int:
        """The number of its parameters."""
        corpus = f"{IN_CHECKOUT}/data/alpaca_en_demo.json"
        return int(self._ask("big_model.py", TEMPLATE, corpus, f"{IN_WORK}/model", self._load.model)["parameters"])

    def pairs(self, count: int) -> Iterable[Pair]:
        """After a warm-up; which side begins changes from pair to pair."""
        for side in ("inside", "outside"):
            self._train(side, "warm-up", replace(self._load, steps=min(WARM + 2, self._load.steps)))
        for number in range(count):
            order = ("inside", "outside") if number % 2 == 0 else ("outside", "inside")
            runs = {side: self._train(side, str(number), self._load) for side in order}
            yield Pair(**runs)

    def _train(self, side: str, name: str, load: Load) -> Run:
        run = self._fresh(f"{side}-{name}")
        indices = (self._host.gpus[0].index,) if self._host else ()
        with sampled(indices) as use:
            watch = Stopwatch()
            (self._train_inside if side == "inside" else self._train_outside)(run, load, watch)
        done = read_run(watch, use)
        said = f"{done.steps_per_second:.3f} steps/s, start-up {done.startup_seconds:.1f} s {_rate(done)}"
        sys.stderr.write(f"{side} {name}: {said}\n")
        shutil.rmtree(run)
        return done

    def _train_inside(self, run: Path, load: Load, watch: Stopwatch) -> None:
        place = f"{IN_WORK}/{run.name}"
        words = arguments(load, model=f"{IN_WORK}/model", output=f"{place}/out", device=self._device)
        caches = _caches(place)
        home = ("/usr/bin/env", f"HOME={caches.pop('HOME')}")
        log = run / "train.log"
        argv, env = (*home, "llamafactory-cli", "train", CONFIG, *words), {**caches, **self._gpu}
        result = self._container.run(argv, log=log, cwd=IN_CHECKOUT, env=env, on_line=watch.line)
        _require(result.returncode, "inside", log)

    def _train_outside(self, run: Path, load: Load, watch: Stopwatch) -> None:
        model = self._container.work / "model"
        words = arguments(load, model=str(model), output=f"{run}/out", device=self._device)
        start = "from llamafactory.cli import main; main()"  # what llamafactory-cli does
        self._run_outside((str(self._outside.python), "-c", start, "train", CONFIG, *words), run, watch)

    def _run_outside(self, argv: tuple[str, ...], run: Path, watch: Stopwatch) -> None:
        log, runner = run / "train.log", self._container.apptainer.runner
        command = Command(argv, cwd=self._checkout, env=self._outside.environment(run, self._gpu))
        result = runner.run(command, log=log, on_line=watch.line, check=False, timeout=LONGEST)
        _require(result.returncode, "outside", log)

    def _ask(self, probe: str, *words: str) -> dict[str, Any]:
        log, answer = self._container.work / f"{probe}.log", self._container.work / f"{probe}.json"
        argv = ("python3", f"{IN_BENCH}/{probe}", f"{IN_WORK}/{probe}.json", *words)
        result = self._container.run(argv, log=log, env={"PYTHONPATH": IN_PROBES, **self._gpu})
        _require(result.returncode, probe, log)
        return read_answer(answer.read_text())

    def _fresh(self, name: str) -> Path:
        run = self._container.work / name
        for folder in _caches(run).values():
            Path(folder).mkdir(parents=True)
        return run


def _require(code: int, what: str, log: Path) -> None:
    """Raises `CommandFailed` with the log's last lines."""
    if code != 0:
        tail = tuple(log.read_text(errors="replace").splitlines()[-20:])
        raise CommandFailed(f"{what} ended with exit code {code}:\n" + "\n".join(tail), returncode=code, tail=tail)


def outside_of(image: Path, work: Path, runner: Runner) -> Outside:
    """An environment made from the image's lock. Raises `HostError` where the lock cannot bring all of it."""
    lock = read_lock(Project(image.parent.parent).lock_path(image.stem))
    if lock.inherited:
        raise HostError(
            f"{image.stem} inherits {len(lock.inherited)} packages of a host's environment: its lock cannot bring them",
            "name that environment: --outside /PATH/bin/python [--outside-path DIR]",
        )
    from uv import find_uv_bin  # here: nodes that are given --outside have no uv

    python = lock.text.partition("Python ")[2].partition(",")[0]  # of the lock's first line
    venv, requirements = work / "outside", work / "requirements.txt"
    requirements.write_text(lock.text)
    uv = (find_uv_bin(), "--no-config", "--quiet")
    install = ("pip", "install", "--require-hashes", "--no-deps", "--compile-bytecode", "-r", str(requirements))
    try:
        runner.run(Command((*uv, "venv", "--no-python-downloads", "--python", python, str(venv))))
        runner.run(Command((*uv, *install, "--python", f"{venv}/bin/python")))
    except CommandFailed as error:
        message = f"no environment could be made from the lock of {image.stem}:\n{error.message}"
        raise HostError(message, f"name a Python {python} that has its packages: --outside PYTHON") from None
    return Outside(venv / "bin" / "python", None)


def measure(options: argparse.Namespace, work: Path) -> str:
    """The section of docs/benchmarks.md."""
    host = read_host() if options.device == "gpu" else None
    image: Path = options.image.absolute()
    if not image.is_file():
        raise UsageError(f"{image} is not there", "build it first: make sif")
    runner = Runner(os.environ)
    outside = given_outside(options) or outside_of(image, work, runner)
    checkout = options.checkout.absolute() if options.checkout else _checkout(image, runner)
    binds = (Bind(PROBES, IN_BENCH), Bind(checkout, IN_CHECKOUT))
    container = Container(Apptainer.find(runner), image, work, nv=host is not None, binds=binds)
    bench = Bench(container, outside, checkout, load_of(options), host)
    versions, parameters = bench.versions(), bench.make_model()
    pairs = list(bench.pairs(options.pairs))
    return head(device_name(host), versions, parameters, load_of(options)) + table(pairs)


def given_outside(options: argparse.Namespace) -> Outside | None:
    """What the command line names. Raises `UsageError` where that is not there."""
    if options.outside is None:
        return None
    if shutil.which(options.outside) is None:
        raise UsageError(f"--outside {options.outside}: no such program", "name a Python: /PATH/bin/python")
    if options.outside_path and not options.outside_path.is_dir():
        raise UsageError(f"--outside-path {options.outside_path}: no such directory", "pip install --target makes one")
    path = options.outside_path.absolute() if options.outside_path else None
    return Outside(Path(str(shutil.which(options.outside))).absolute(), path)


def load_of(options: argparse.Namespace) -> Load:
    """What keeps an H100 busy; or as little as shows that it works."""
    if options.small:
        return Load("small", batch=2, accumulation=1, cutoff=128, steps=options.steps)
    return Load("billion", batch=8, accumulation=4, cutoff=2048, steps=options.steps)


def _checkout(image: Path, runner: Runner) -> Path:
    """Of the image's version, from the site's wheelhouse if it has one."""
    version = Apptainer.find(runner).labels(image).get("org.sifkit.llamafactory")
    if version is None:
        raise UsageError(f"{image} does not say which LLaMA-Factory it holds", "give a checkout: --checkout DIR")
    wheelhouse = site.load_site(None, os.environ, ROOT).python_index.wheelhouse
    sources = checkouts.Sources.from_environ(os.environ, wheelhouse=Path(wheelhouse) if wheelhouse else None)
    progress = PlainProgress(Console(stderr=True))
    return checkouts.cached(version, site.user_cache(os.environ), runner, progress, sources=sources)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path, default=Project(ROOT).images / f"{DEFAULT_IMAGE}.sif")
    parser.add_argument("--outside", metavar="PYTHON", help="a Python with the same packages")
    parser.add_argument("--outside-path", type=Path, metavar="DIR", help="packages that go before its own")
    parser.add_argument("--checkout", type=Path, help="LLaMA-Factory checkout; else fetched and cached")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--small", action="store_true", help="a tiny model; nothing is recorded")
    options = parser.parse_args(argv)
    if options.pairs < 1 or options.steps < 1:
        parser.error("--pairs and --steps are at least 1")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and record what was measured on a GPU."""
    options = parse(argv)
    try:
        with scratch() as work:
            section = measure(options, work)
        if options.device == "gpu" and not options.small:
            page.record("benchmarks.md", "make bench-gpu", section)
        else:
            sys.stdout.write(section)
    except SifkitError as error:
        return page.say(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
