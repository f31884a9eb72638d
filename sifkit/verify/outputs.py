"""What a training run left behind: read from its output directory, then judged by content.

Nothing in it is unpickled: `training_args.bin` and `optimizer.pt` are pickles of whoever made the image.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sifkit.rundir.whole import fault_of, json_fault, json_object
from sifkit.verify.checks import Check, Level, failed, passed, warned
from sifkit.verify.smoke import HALF, STEPS, WORST_STEPS, TrainConfig


@dataclass(frozen=True)
class OutputFile:
    """A file of the output directory; `fault` is what is wrong with its content."""

    name: str
    size: int
    fault: str | None


@dataclass(frozen=True)
class LogRow:
    """One row of a loss log. None: the row does not say."""

    step: int
    loss: float | None
    eval_loss: float | None
    grad_norm: float | None


@dataclass(frozen=True)
class RunOutputs:
    """An output directory, read."""

    files: tuple[OutputFile, ...]
    log: tuple[LogRow, ...]  # trainer_log.jsonl: what this run did
    history: tuple[LogRow, ...]  # trainer_state.json: since step 0, with gradient norms
    global_step: int | None
    train_loss: float | None
    eval_loss: float | None
    steps_per_second: float | None
    tokens: int | None = None  # that were trained on, padding included
    tokens_per_second: float | None = None

    @property
    def losses(self) -> tuple[tuple[int, float], ...]:
        """Step and training loss."""
        return tuple((row.step, row.loss) for row in self.log if row.loss is not None)


# ---------------------------------------------------------------------------------------------- reading


def read_outputs(directory: Path) -> RunOutputs:
    """Read everything below `directory`. What is missing or malformed is noted, never raised."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file()) if directory.is_dir() else []
    files = tuple(OutputFile(str(path.relative_to(directory)), path.stat().st_size, fault_of(path)) for path in paths)
    state = json_object(directory / "trainer_state.json")
    results = json_object(directory / "all_results.json")
    rows = _json_lines(directory / "trainer_log.jsonl")
    counted = [row for row in rows if isinstance(row, dict) and _number(row.get("throughput"))]
    return RunOutputs(
        files=files,
        log=_rows(rows, "current_steps"),
        history=_rows(state.get("log_history", []), "step"),
        global_step=state.get("global_step"),
        train_loss=_number(results.get("train_loss")),
        eval_loss=_number(results.get("eval_loss")),
        steps_per_second=_number(results.get("train_steps_per_second")),
        tokens=int(counted[-1].get("total_tokens") or 0) if counted else None,
        tokens_per_second=_number(counted[-1]["throughput"]) if counted else None,
    )


def _json_lines(path: Path) -> list[Any]:
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [json.loads(line) for line in lines if json_fault(line) is None]


def _rows(values: object, step: str) -> tuple[LogRow, ...]:
    rows = (
        [row for row in values if isinstance(row, dict) and isinstance(row.get(step), int)]
        if isinstance(values, list)
        else []
    )
    return tuple(
        LogRow(row[step], _number(row.get("loss")), _number(row.get("eval_loss")), _number(row.get("grad_norm")))
        for row in rows
    )


def _number(value: object) -> float | None:
    """A number of JSON as Python writes it, NaN and Infinity included; None for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# ---------------------------------------------------------------------------------------------- judging


def expected_files(config: TrainConfig) -> tuple[tuple[str, ...], ...]:
    """The files that every run writes; of each group one is enough."""
    weights = (
        [("adapter_config.json",), ("adapter_model.safetensors",)]
        if config.lora
        else [("config.json",), ("model.safetensors", "model.safetensors.index.json")]
    )
    return (
        ("README.md",),
        *weights,
        ("all_results.json",),
        ("eval_results.json",),
        ("special_tokens_map.json", "chat_template.jinja"),  # transformers before 5; from 5 on
        ("tokenizer.json", "tokenizer.model", "vocab.json"),
        ("tokenizer_config.json",),
        ("train_results.json",),
        ("trainer_log.jsonl",),
        ("trainer_state.json",),
        ("training_args.bin",),
        ("training_loss.png",),
        *checkpoint_files(config, HALF),
        *checkpoint_files(config, STEPS),
    )


def checkpoint_files(config: TrainConfig, step: int) -> tuple[tuple[str, ...], ...]:
    """What a checkpoint needs so that a run can go on from it."""
    folder = f"checkpoint-{step}"
    weights = ("adapter_model.safetensors",) if config.lora else ("model.safetensors", "model.safetensors.index.json")
    groups: list[tuple[str, ...]] = [("trainer_state.json",), ("training_args.bin",), ("scheduler.pt",)]
    if not config.distributed:  # DeepSpeed and FSDP keep weights and optimizer in directories of their own
        groups += [weights, ("optimizer.pt",), ("rng_state.pth", "rng_state_0.pth")]
    return tuple(tuple(f"{folder}/{name}" for name in group) for group in groups)


def judge_files(found: RunOutputs, config: TrainConfig) -> Check:
    """Every expected file is there and whole."""
    name = "expected files"
    have = {file.name for file in found.files}
    missing = [" or ".join(group) for group in expected_files(config) if not have & set(group)]
    faults = [f"{file.name} {file.fault}" for file in found.files if file.fault]
    if missing:
        return failed(
            Level.TRAIN, name, f"missing: {', '.join(missing)}", "the run ended before it wrote them", "read train.log"
        )
    if faults:
        return failed(
            Level.TRAIN, name, "; ".join(faults), "a file is damaged", "check the disk and its quota; read train.log"
        )
    size = sum(file.size for file in found.files)
    return passed(Level.TRAIN, name, f"{len(found.files)} files, {size / 1e6:.1f} MB, each whole")


def judge_steps(found: RunOutputs) -> Check:
    """The run did as many steps as it was asked for, and logged each."""
    name = "all steps done"
    logged = [step for step, _ in found.losses]
    if found.global_step != STEPS:
        return failed(
            Level.TRAIN,
            name,
            f"ended at step {found.global_step}, not {STEPS}",
            "training stopped early",
            "read train.log",
        )
    if logged != list(range(1, STEPS + 1)):
        return failed(
            Level.TRAIN,
            name,
            f"trainer_log.jsonl has losses of steps {logged}",
            "the log is incomplete",
            "read train.log",
        )
    return passed(Level.TRAIN, name, f"{STEPS} steps, each logged")


def judge_losses(found: RunOutputs) -> Check:
    """Losses and gradient norms are numbers. A loss of exactly 0 beside a NaN gradient is NaN, hidden."""
    name = "losses are finite"
    rows = sorted({*found.log, *found.history}, key=lambda row: row.step)
    if not found.losses or found.train_loss is None:
        return failed(Level.TRAIN, name, "no loss was logged", "training did not get that far", "read train.log")
    bad = next((row for row in rows if _not_finite(row)), None)
    if bad:
        said = f"step {bad.step}: {_shown(bad)}"
        return failed(Level.TRAIN, name, said, *NOT_FINITE)
    if not math.isfinite(found.train_loss) or not math.isfinite(found.eval_loss or 0.0):
        return failed(Level.TRAIN, name, f"train_loss {found.train_loss}, eval_loss {found.eval_loss}", *NOT_FINITE)
    first, last = found.losses[0][1], found.losses[-1][1]
    if last > _EXPLODED * max(first, 1.0):
        return failed(Level.TRAIN, name, f"the loss grows from {first:.3g} to {last:.3g}", *_DIVERGES)
    if all(loss == 0 for _, loss in found.losses):
        cause = "no token of the data counts for the loss: template, cutoff_len or the dataset's columns do not fit"
        return failed(Level.TRAIN, name, "every loss is 0", cause, "correct template, cutoff_len or dataset_info.json")
    listed = " ".join(f"{loss:.3f}" for _, loss in found.losses)
    return passed(Level.TRAIN, name, f"{listed}; eval {found.eval_loss:.3f}" if found.eval_loss is not None else listed)


def judge_learning(found: RunOutputs, *, made: bool) -> Check:
    """Each step saw all rows of a small set, so the loss must fall. `made`: a model of random weights was trained.

    Of a real model it is only said: its learning rate is the user's, and may be too low to show in a few steps.
    """
    name = "the loss falls"
    losses = [loss for _, loss in found.losses]
    if len(losses) < 2:
        return failed(Level.TRAIN, name, f"{len(losses)} steps were logged", "training stopped early", "read train.log")
    said = f"from {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps over the same few rows"
    if losses[-1] < losses[0]:
        return passed(Level.TRAIN, name, said)
    cause = "no gradient reaches the trained weights, they are not updated, or the learning rate is wrong"
    judge = failed if made else warned
    return judge(Level.TRAIN, name, said, cause, "check learning_rate, the dataset's columns and the template")


# The loss of a model that knows nothing is the logarithm of its vocabulary, 7 to 12; a few steps do not multiply it.
_EXPLODED = 10
# Weights of models are of the order of 1; Adam moves each by about the learning rate in each step. Measured: under
# a learning rate of 1e6 a smoke model keeps a finite loss (a uniform guess) and ends with weights of millions.
_LARGEST_WEIGHT = 1e4
_DIVERGES = (
    "training diverges: the learning rate is too high",
    "lower learning_rate in the config (the examples have 1.0e-4)",
)

NOT_FINITE = (
    "the loss is NaN or infinite: the learning rate is too high, fp16 overflows, or the model's weights are damaged",
    "lower learning_rate in the config (the examples have 1.0e-4); bf16 in place of fp16 where the GPU has it",
)


def _not_finite(row: LogRow) -> bool:
    return any(value is not None and not math.isfinite(value) for value in (row.loss, row.eval_loss, row.grad_norm))


def _shown(row: LogRow) -> str:
    values = {"loss": row.loss, "eval_loss": row.eval_loss, "grad_norm": row.grad_norm}
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def judge_resume(first: RunOutputs, second: RunOutputs, *, exact: bool) -> Check:
    """The second run, given only the checkpoint at half, went on from there and came to the same end.

    `exact` for a CPU, where the same numbers come again; a GPU's sums depend on the order of its threads.
    """
    name = "a stopped run resumes"
    steps = [step for step, _ in second.losses]
    cause = "the checkpoint was not taken up: it is incomplete, or output_dir is overwritten"
    fix = "overwrite_output_dir: false, save_only_model: false, resume_from_checkpoint: null"
    if not steps or second.global_step is None:
        return failed(Level.TRAIN, name, "the second run logged no step", "it failed", "read resume.log")
    if steps[0] <= HALF:
        return failed(Level.TRAIN, name, f"started at step {steps[0]}, not {HALF + 1}", cause, fix)
    if second.global_step != first.global_step:
        return failed(
            Level.TRAIN, name, f"ended at step {second.global_step}, not {first.global_step}", cause, "read resume.log"
        )
    theirs, ours = dict(first.losses), dict(second.losses)
    apart = max(
        (abs(theirs[step] - loss) / max(abs(theirs[step]), 1e-3) for step, loss in ours.items() if step in theirs),
        default=math.inf,
    )
    said = f"went on at step {steps[0]} to {steps[-1]}; losses within {apart:.2%} of the unbroken run"
    tolerance = 0.002 if exact else 0.05
    if not apart <= tolerance:
        return failed(
            Level.TRAIN, name, said, "optimizer, scheduler or random state were not restored", "read resume.log"
        )
    return passed(Level.TRAIN, name, said)


def judge_longest(found: RunOutputs, config: TrainConfig, ranks: int, peak_gb: float, *, made: bool) -> Check:
    """Batches of the longest rows went through: as many tokens as batches of whole rows hold."""
    name = "longest batch"
    if found.global_step != WORST_STEPS:
        said = f"ended at step {found.global_step}, not {WORST_STEPS}"
        return failed(Level.TRAIN, name, said, "training stopped early", "read longest.log")
    wanted = config.batch * ranks * config.cutoff_len * WORST_STEPS
    if found.tokens is not None and config.stage == "sft" and found.tokens < 0.95 * wanted:
        cause = "rows were cut below cutoff_len"
        return failed(Level.TRAIN, name, f"{found.tokens} tokens instead of {wanted}", cause, "read longest.log")
    memory = (
        "the smoke model went through; how much memory your own takes: --model DIR" if made else f"{peak_gb:.1f} GB"
    )
    return passed(Level.TRAIN, name, f"{config.batch} × {config.cutoff_len} tokens on each GPU: {memory}")


def judge_adapter(answer: dict[str, Any], *, lora: bool) -> tuple[Check, Check]:
    """probes/adapter.py's answer: the saved tensors are finite and trained, and the result generates."""
    return _judge_tensors(answer["tensors"], lora=lora), _judge_generation(answer, lora=lora)


def _judge_tensors(counts: dict[str, Any], *, lora: bool) -> Check:
    name = "trained weights"
    if counts["all"] == 0:
        return failed(Level.TRAIN, name, "no tensors were saved", "training saved nothing", "read train.log")
    if counts["not_finite"]:
        return failed(Level.TRAIN, name, f"{len(counts['not_finite'])} tensors are not finite", *NOT_FINITE)
    if counts["largest"] > _LARGEST_WEIGHT:
        return failed(Level.TRAIN, name, f"the largest weight is {counts['largest']:.3g}", *_DIVERGES)
    if lora and counts["lora_b"] and counts["lora_b_zero"] == counts["lora_b"]:
        cause = "lora_B starts at zero and stayed there: no gradient reached the adapter, or the learning rate is 0"
        return failed(Level.TRAIN, name, "every lora_B is zero", cause, "check learning_rate and the data's labels")
    return passed(Level.TRAIN, name, f"{counts['all']} tensors, finite" + (", lora_B moved" if lora else ""))


def _judge_generation(answer: dict[str, Any], *, lora: bool) -> Check:
    name = "loads and generates"
    if not answer["finite"]:
        return failed(Level.TRAIN, name, "logits are not finite", *NOT_FINITE)
    if answer["new_tokens"] < 1:
        return failed(
            Level.TRAIN, name, "nothing was generated", "the tokenizer or the model is damaged", "read adapter.log"
        )
    if lora and answer["changed"] == 0:
        return failed(
            Level.TRAIN, name, "the adapter changes nothing", "its weights are not applied", "read adapter.log"
        )
    return passed(Level.TRAIN, name, f"{answer['new_tokens']} tokens on {answer['device']}, logits finite")
