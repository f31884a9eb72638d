"""The memory of training runs, measured, against sifkit's estimate of it.

    python -m bench.memory IMAGE.sif --out FILE.json [--cases one|two|tiny] [--deadline 420] [--jobs 4] [--device cpu]
    python -m bench.memory --table FILE.json [FILE.json …]      writes the section of docs/estimates.md

Each run is `llamafactory-cli train` in the image, three steps on packed rows, and tells its own peak (RECORD_VRAM).
Runs share the GPU where their estimates leave room, but for those whose used memory is asked of the driver. What the
deadline leaves out is listed; what failed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import yaml

from bench import page
from bench.gpu import PROBES, TEMPLATE, _checkout, _require, device_name
from bench.memory_cases import SETS, SIZES, Case
from bench.scratch import scratch
from sifkit.apptainer import Apptainer, Bind
from sifkit.errors import SifkitError, UsageError
from sifkit.estimate.memory import Estimate, memory
from sifkit.estimate.model import read_shape
from sifkit.run import Runner
from sifkit.verify.container import IN_CHECKOUT, IN_PROBES, IN_WORK, Container, read_answer
from sifkit.verify.nvml import HostFacts, read_host, sampled
from sifkit.verify.request import gpu_environment

IN_BENCH = "/sifkit/bench"
GIB = 1024**3
STEPS = 3
ROOM = 0.8  # of the GPU's memory that runs side by side may be estimated at

# ------------------------------------------------------------------------------------------------ pure


def estimate_of(case: Case, processes: int, deepspeed: Mapping[str, Any] | None) -> Estimate:
    """sifkit's. Raises `UsageError` where it has none."""
    config = {"model_type": "llama", **SIZES[case.size]}
    shape = read_shape(config)
    found = memory(shape, case.values().get, processes=processes, stored=2, deepspeed=deepspeed) if shape else None
    if not isinstance(found, Estimate):
        raise UsageError(f"{case.name}: no estimate: {found}", "correct the case")
    return found


def groups(cases: Iterable[Case], size_of: Mapping[str, int], room: float, jobs: int) -> Iterator[list[Case]]:
    """Cases that run side by side: those alone first, the others as they come while there is room."""
    shared = []
    for case in cases:
        if case.alone:
            yield [case]
        else:
            shared.append(case)
    group: list[Case] = []
    for case in sorted(shared, key=lambda case: -size_of[case.name]):
        full = len(group) == jobs or sum(size_of[each.name] for each in (*group, case)) > room
        if group and full:
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def train_yaml(case: Case, device: str) -> str:
    """The training YAML of one run; everything that lies on disk is below the work directory."""
    fixed = {
        "model_name_or_path": f"{IN_WORK}/models/{case.size}",
        "do_train": True,
        "dataset": "alpaca_en_demo",
        "template": TEMPLATE,
        "packing": True,
        "max_steps": STEPS,
        "learning_rate": 1.0e-5,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "plot_loss": False,
        "preprocessing_num_workers": 2,
        "dataloader_num_workers": 0,
        "output_dir": f"{IN_WORK}/{_folder(case)}/out",
    }
    values = {**fixed, **case.values()}
    if values["stage"] != "sft":  # pairs are not packed; their rows are longer than cutoff_len
        values.pop("packing")
    if device == "cpu":
        values |= {"use_cpu": True, "bf16": False, "pure_bf16": False}
    return yaml.safe_dump(values, sort_keys=False)


def read_peak(log: str) -> tuple[float, float]:
    """GiB allocated and reserved, from trainer_log.jsonl. Raises `ValueError` where it says none."""
    rows = [json.loads(line) for line in log.splitlines() if line.strip()]
    told = [(row["vram_allocated"], row["vram_reserved"]) for row in rows if "vram_allocated" in row]
    if not told:
        raise ValueError("trainer_log.jsonl names no vram_allocated")
    return max(a for a, _ in told), max(b for _, b in told)


def _folder(case: Case) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in case.name)


# ------------------------------------------------------------------------------------------------ acting


@dataclass(frozen=True)
class Bench:
    """One image and its GPUs."""

    container: Container
    host: HostFacts | None
    indices: tuple[int, ...]
    checkout: Path

    def make_models(self, sizes: Iterable[str]) -> dict[str, int]:
        """Parameters by name."""
        work = self.container.work
        wanted = {name: SIZES[name] for name in sorted(set(sizes))}
        (work / "sizes.json").write_text(json.dumps(wanted))
        words = (TEMPLATE, f"{IN_CHECKOUT}/data/alpaca_en_demo.json", f"{IN_WORK}/models", f"{IN_WORK}/sizes.json")
        return {name: int(count) for name, count in self.ask("sized_models.py", *words).items()}

    def ask(self, probe: str, *words: str) -> dict[str, Any]:
        """A probe of bench/probes."""
        log, answer = self.container.work / f"{probe}.log", self.container.work / f"{probe}.json"
        argv = ("python3", f"{IN_BENCH}/{probe}", f"{IN_WORK}/{probe}.json", *words)
        _require(
            self.container.run(argv, log=log, env={"PYTHONPATH": IN_PROBES, **self._gpus()}).returncode, probe, log
        )
        return read_answer(answer.read_text())

    def run(self, case: Case) -> dict[str, Any]:
        """What one run took; an `error` where it failed."""
        place, started = self.container.work / _folder(case), time.monotonic()
        place.mkdir()
        (place / "train.yaml").write_text(train_yaml(case, "gpu" if self.host else "cpu"))
        env = {"RECORD_VRAM": "1", "HF_HOME": f"{IN_WORK}/{place.name}/hf", **self._gpus()}
        env |= {"FORCE_TORCHRUN": "1"} if case.zero is not None else {}
        argv = ("llamafactory-cli", "train", f"{IN_WORK}/{place.name}/train.yaml")
        with sampled(self.indices if case.alone else ()) as use:
            done = self.container.run(argv, log=place / "log", cwd=IN_CHECKOUT, env=env)
        seconds = round(time.monotonic() - started, 1)
        found: dict[str, Any] = {"name": case.name, "gpus": max(1, len(self.indices)), "seconds": seconds}
        log = place / "out" / "trainer_log.jsonl"
        if done.returncode or not log.is_file():
            found["error"] = "\n".join((place / "log").read_text(errors="replace").splitlines()[-12:])
        else:
            found["allocated_gib"], found["reserved_gib"] = read_peak(log.read_text())
            found["used_gib"] = max(use.grown_gb().values()) * 1e9 / GIB if use.samples else None
            found["checkpoint_bytes"] = _checkpoint_bytes(place / "out")
        shutil.rmtree(place)
        sys.stderr.write(f"{found}\n")
        return found

    def _gpus(self) -> dict[str, str]:
        chosen = {"CUDA_VISIBLE_DEVICES": ",".join(map(str, self.indices))} if self.indices else {}
        return {**gpu_environment(os.environ), **chosen}


def _checkpoint_bytes(output: Path) -> int | None:
    found = next(output.glob("checkpoint-*"), None)
    return sum(path.stat().st_size for path in found.rglob("*") if path.is_file()) if found else None


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Everything that --table needs, written after each group: a run cut off loses little."""
    deadline = time.monotonic() + options.deadline
    bench = _bench(options, work)
    versions = bench.ask("versions.py")
    cases = [case for case in SETS[options.cases] if case.needs in (None, *versions["packages"])]
    parameters = bench.make_models(case.size for case in cases)
    sizes = {case.name: _estimated(case, bench).shown for case in cases}
    room = ROOM * (bench.host.gpus[0].memory_total_gb * 1e9 if bench.host else GIB)
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(bench.host),
        "versions": {key: versions["packages"].get(key) for key in ("llamafactory", "torch", "transformers", "peft")},
        "parameters": parameters,
        "cases": [],
        "left_out": [case.name for case in SETS[options.cases] if case not in cases],
    }
    for group in groups(cases, sizes, room, options.jobs):
        if time.monotonic() > deadline:
            found["left_out"] += [case.name for case in group]
            continue
        with ThreadPoolExecutor(len(group)) as pool:
            found["cases"] += pool.map(bench.run, group)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def _bench(options: argparse.Namespace, work: Path) -> Bench:
    host = read_host() if options.device == "gpu" else None
    image: Path = options.image.absolute()
    runner = Runner(os.environ)
    checkout = options.checkout.absolute() if options.checkout else _checkout(image, runner)
    binds = (Bind(PROBES, IN_BENCH), Bind(checkout, IN_CHECKOUT))
    container = Container(Apptainer.find(runner), image, work, nv=host is not None, binds=binds)
    wanted = 2 if options.cases == "two" else 1
    indices = tuple(gpu.index for gpu in host.gpus)[:wanted] if host else ()
    if host and len(indices) < wanted:
        raise UsageError(f"{len(indices)} GPU here", "--cases one")
    return Bench(container, host, indices, checkout)


def _estimated(case: Case, bench: Bench) -> Estimate:
    given = case.values().get("deepspeed")
    read = json.loads((bench.checkout / given).read_text()) if given else None
    return estimate_of(case, max(1, len(bench.indices)), read)


# ------------------------------------------------------------------------------------------------ the table


def table(measured: Mapping[str, Any], deepspeed: Path) -> str:
    """Markdown: measured and estimated, run by run, then what the errors are together."""
    cases = {case.name: case for each in SETS.values() for case in each}
    versions = ", ".join(f"{name} {version}" for name, version in measured["versions"].items())
    lines = [
        f"{measured['date']}, {measured['device']}; {versions}. GiB:",
        "",
        "| run | GPUs | allocated | estimate | error | reserved | estimate | error |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    errors: dict[str, list[float]] = {"allocated": [], "reserved": [], "used": []}
    for found in measured["cases"]:
        case = cases.get(found["name"])
        if case is None or "error" in found or not found["allocated_gib"]:
            continue
        given = case.values().get("deepspeed")
        read = json.loads((deepspeed / Path(given).name).read_text()) if given else None
        estimate = estimate_of(case, found["gpus"], read)
        sizes = {"allocated": estimate.allocated, "reserved": estimate.reserved, "used": estimate.shown}
        line = f"| {case.name} | {found['gpus']} |"
        for what, size in sizes.items():
            real = found[f"{what}_gib"]
            if real:
                errors[what].append(size / GIB / real - 1)
            if what != "used":
                line += f" {real:.2f} | {size / GIB:.2f} | {errors[what][-1]:+.1%} |"
        lines.append(line)
    return "\n".join([*lines, "", *(_together(what, each) for what, each in errors.items())]).rstrip() + "\n"


def _together(what: str, errors: list[float]) -> str:
    if not errors:
        return ""
    sizes = sorted(abs(error) for error in errors)
    most = f", 9 of 10 below {sizes[int(0.9 * (len(sizes) - 1))]:.1%}" if len(sizes) >= 10 else ""
    said = f"mean {mean(sizes):.1%}{most}"
    return f"Error of {what} over {len(errors)} runs: {said}, from {min(errors):+.1%} to {max(errors):+.1%}.\n"


# ------------------------------------------------------------------------------------------------ the command


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--out", type=Path, help="where the measurements go, as JSON")
    parser.add_argument("--cases", choices=sorted(SETS), default="one")
    parser.add_argument("--deadline", type=float, default=420, help="seconds after which no further run starts")
    parser.add_argument("--jobs", type=int, default=4, help="runs side by side")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--checkout", type=Path, help="LLaMA-Factory checkout; else fetched and cached")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE.json", help="write docs/estimates.md")
    options = parser.parse_args(argv)
    if not options.table and not (options.image and options.out):
        parser.error("name an image and --out, or --table")
    return options


def main(argv: list[str] | None = None) -> int:
    """Measure into a JSON file, or write the table of such files into docs/estimates.md."""
    options = parse(argv)
    try:
        if options.table:
            checkout = options.checkout or _checkout(options.image.absolute(), Runner(os.environ))
            texts = [table(json.loads(path.read_text()), checkout / "examples/deepspeed") for path in options.table]
            page.record("estimates.md", "bench.memory", "\n".join(texts))
            return 0
        with scratch() as work:
            found = measure(options, work)
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        return 1 if any("error" in each for each in found["cases"]) else 0
    except SifkitError as error:
        return page.say(error)


if __name__ == "__main__":
    sys.exit(main())
