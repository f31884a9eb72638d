"""An output directory, read whole: files, checkpoints, log, state, results, and how far the run came."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

from sifkit.errors import HostError, UsageError
from sifkit.rundir.checkpoints import (
    Checkpoint,
    Status,
    has_weights,
    judge_checkpoint,
    missing_weights,
    newest,
    step_of,
)
from sifkit.rundir.files import MAX_FILES, FoundFile, Kind, look_at, walk
from sifkit.rundir.trainlog import Log, State, lines_of, number, read_log, read_state
from sifkit.rundir.whole import json_object

LOG, STATE = "trainer_log.jsonl", "trainer_state.json"
PRUNED = ".sifkit-pruned-"  # what prune calls a checkpoint before it removes it; no trainer takes it for one
_MARKS = {LOG, STATE, "training_args.bin", "all_results.json", "adapter_config.json"}
_WRITTEN_LATER = 60.0  # seconds between a state and a log that were written by two different runs


class End(str, Enum):
    """How a run ended, as far as its directory tells."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"  # stopped, or still running
    NO_TRAINING = "no training"  # evaluation or prediction alone


@dataclass(frozen=True)
class Run:
    """A training run's output directory."""

    directory: Path
    files: tuple[FoundFile, ...]
    checkpoints: tuple[Checkpoint, ...]  # by step
    log: Log
    state: State | None  # of the end; while the run is unfinished there is none, or an older run's
    end: End
    method: str  # lora, oft, full or freeze, as far as the files tell
    stage: str  # sft, dpo, …, likewise
    missing: tuple[str, ...]  # what the final model lacks
    results: dict[str, float] = field(default_factory=dict)

    @property
    def damaged(self) -> tuple[FoundFile, ...]:
        """Files with something wrong."""
        return tuple(file for file in self.files if file.fault)

    @property
    def whole(self) -> bool:
        """Nothing is damaged, cut off or missing."""
        incomplete = any(each.status is Status.INCOMPLETE for each in self.checkpoints)
        return not (self.damaged or self.missing or incomplete)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files if file.kind is Kind.FILE)

    @property
    def resumable(self) -> Checkpoint | None:
        """The newest complete checkpoint."""
        return newest(self.checkpoints, Status.COMPLETE)

    @property
    def ended_early(self) -> bool:
        """Whether training ended before its last step: by early stopping, or saved and stopped as it was told.

        Both end well, and leave the same files.
        """
        if self.end is not End.FINISHED or self.state is None:
            return False
        step, most = self.state.global_step, self.state.max_steps
        return step is not None and most is not None and step < most

    @property
    def has_steps_left(self) -> bool:
        """Whether the same command, given again, may have something to do."""
        return self.end is End.UNFINISHED or self.ended_early

    @property
    def best(self) -> str | None:
        """The name of the best checkpoint, where the run looked for one; from the newest state that there is."""
        states = [self.state, *(each.state for each in reversed(self.checkpoints))]
        return next((state.best_checkpoint for state in states if state and state.best_checkpoint), None)


def read_run(directory: Path) -> Run:
    """Read it all, checking the content of every file.

    Raises `UsageError` when `directory` is no directory of a run, `HostError` when it cannot be read.
    """
    files = _files(directory)
    if not any(_is_mark(file) for file in files):
        raise UsageError(f"{directory}: no training run left anything here", _nearest_run(directory))
    checkpoints = _checkpoints(directory, files)
    log = read_log(lines_of(directory / LOG))
    files = tuple(_with_log(file, log) if file.name == LOG else file for file in files)
    state = read_state(directory / STATE)
    results = {name: value for name, value in _results(directory).items() if value is not None}
    tops = {file.top for file in files}
    end = judge_end(log, state, results, _log_is_younger(directory), any(each.state for each in checkpoints))
    return Run(
        directory=directory,
        files=files,
        checkpoints=checkpoints,
        log=log,
        state=state,
        end=end,
        method=_method(directory, tops, checkpoints, files),
        stage=judge_stage(log, state, results, {file.base for file in files}, checkpoints),
        missing=tuple(missing_weights(tops, _shards(directory, ""))) if end is End.FINISHED else (),
        results=results,
    )


def _is_mark(file: FoundFile) -> bool:
    """Whether only a run of LLaMA-Factory or transformers leaves such a thing at the top of its directory."""
    if "/" in file.name:
        return False
    return (
        file.name in _MARKS or step_of(file.name) is not None or file.name.startswith(PRUNED) or "_results" in file.name
    )


def _files(directory: Path) -> tuple[FoundFile, ...]:
    try:
        _require_output_dir(directory)
        entries = islice(walk(directory), MAX_FILES + 1)
        # The log's rows are judged where they are read, once.
        found = [each for name, entry in entries for each in look_at(directory, name, entry, check=name != LOG)]
    except PermissionError:
        raise HostError(f"{directory} cannot be read: permission denied", "ask its owner: chmod -R u+rX,g+rX") from None
    if len(found) > MAX_FILES:
        raise UsageError(f"{directory} holds more than {MAX_FILES:,} files", "name the output_dir of one run")
    return tuple(found)


def _with_log(file: FoundFile, log: Log) -> FoundFile:
    """trainer_log.jsonl with what its rows say of it."""
    if log.torn == 0:
        return file
    return replace(file, fault=f"has {log.torn:,} lines that are no rows of a log, beside {log.rows:,} that are")


def _require_output_dir(directory: Path) -> None:
    """Raises `UsageError` for what cannot be one."""
    if not directory.exists():
        raise UsageError(f"{directory}: no such directory", "name the output_dir of a run")
    if not directory.is_dir():
        raise UsageError(f"{directory} is a file, not a directory", "name the output_dir of a run")
    whole = directory.absolute()
    if step_of(whole.name) is not None and (whole.parent / LOG).exists():
        raise UsageError(f"{directory} is a checkpoint, not a run's directory", f"name the run's: {whole.parent}")


def _nearest_run(directory: Path) -> str:
    """Directories below that a run did leave something in: output_dir is often one level deeper."""
    logs = (path for pattern in ("*", "*/*", "*/*/*") for path in directory.glob(f"{pattern}/{LOG}"))
    try:
        below = [str(path.parent) for path in islice(logs, 5)]
    except OSError:  # something vanished or may not be read: a hint is not worth an error of its own
        below = []
    if not below:
        return "name the output_dir of a run: it holds trainer_log.jsonl or checkpoint-N/"
    return f"below it there are: {', '.join(sorted(below))}"


def _checkpoints(directory: Path, files: tuple[FoundFile, ...]) -> tuple[Checkpoint, ...]:
    """Links that are called checkpoint-N are none of ours: they lie elsewhere."""
    names = [file.name for file in files if file.kind is Kind.DIRECTORY and step_of(file.name) is not None]
    found = []
    for name in names:
        prefix = f"{name}/"
        own = tuple(
            replace(file, name=file.name.removeprefix(prefix)) for file in files if file.name.startswith(prefix)
        )
        latest, state = _latest(directory / name), read_state(directory / name / STATE)
        found.append(judge_checkpoint(name, own, _shards(directory, name), latest, state))
    return tuple(sorted(found, key=lambda each: (each.step, each.name)))


def _latest(checkpoint: Path) -> str | None:
    try:
        with (checkpoint / "latest").open("rb") as file:
            return file.read(200).decode("utf-8", errors="replace").strip()
    except OSError:
        return None


def _shards(directory: Path, name: str) -> dict[str, frozenset[str]]:
    """For each index file, the names of the files that it spreads the tensors over."""
    found = {}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        weight_map = json_object(directory / name / index).get("weight_map")
        if isinstance(weight_map, dict):
            found[index] = frozenset(str(value) for value in weight_map.values())
    return found


def _results(directory: Path) -> dict[str, float | None]:
    """The final figures; all_results.json holds those of every part of the run that came to its end."""
    values: dict[str, Any] = {}
    for name in ("train_results.json", "eval_results.json", "predict_results.json", "all_results.json"):
        values |= json_object(directory / name)
    return {name: number(value) for name, value in values.items()}


def _log_is_younger(directory: Path) -> bool:
    """Whether the log was written to well after the state of the end: by a later run in the same directory."""
    try:
        return (directory / LOG).stat().st_mtime > (directory / STATE).stat().st_mtime + _WRITTEN_LATER
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------- judging


def judge_end(log: Log, state: State | None, results: dict[str, float], log_is_younger: bool, trained: bool) -> End:
    """How the run ended.

    transformers writes trainer_state.json beside the checkpoints once, at the end of training; a checkpoint's own lies
    in it. A log that goes on past that step, or begins again after it, is of a later run that has not come so far.
    """
    if state is None or state.global_step is None:
        evaluated = any(name.startswith(("eval_", "predict_")) for name in results)
        without = evaluated and not trained and log.loss.count == 0 and "train_loss" not in results
        return End.NO_TRAINING if without else End.UNFINISHED
    if log.current_steps is None or log.current_steps == state.global_step:
        return End.FINISHED
    went_on = log.current_steps > state.global_step
    return End.UNFINISHED if went_on or log_is_younger else End.FINISHED


def judge_stage(
    log: Log, state: State | None, results: dict[str, float], names: set[str], checkpoints: tuple[Checkpoint, ...]
) -> str:
    """The stage that leaves such traces (llamafactory/train/*/trainer.py, workflow.py)."""
    states = [each for each in (state, *(checkpoint.state for checkpoint in checkpoints)) if each]
    quantities = frozenset().union(*(each.quantities for each in states))
    if log.reward.count:
        return "ppo"
    if names & {"value_head.safetensors", "value_head.bin"}:
        return "rm"
    if "kl" in quantities:
        return "kto"
    if "rewards/accuracies" in quantities:
        return "dpo"
    if "eval_perplexity" in results:
        return "pt"
    return "predict" if "generated_predictions.jsonl" in names and not log.loss.count else "sft or pt"


def _method(directory: Path, tops: set[str], checkpoints: tuple[Checkpoint, ...], files: tuple[FoundFile, ...]) -> str:
    """From the adapter's own words, or the tag that LLaMA-Factory puts into the model card."""
    places = [directory, *(directory / each.name for each in reversed(checkpoints))]
    for place in places:
        kind = json_object(place / "adapter_config.json").get("peft_type")
        if isinstance(kind, str) and kind:
            return kind.lower()
    tags = _card_tags(directory / "README.md")
    whole = has_weights(tops) or any(each.weights for each in checkpoints)
    return next((tag for tag in ("freeze", "full") if tag in tags), "full or freeze" if whole and files else "")


def _card_tags(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            head = file.read(4096).decode("utf-8", errors="replace")
    except OSError:
        return set()
    return {line.removeprefix("- ").strip() for line in head.splitlines() if line.startswith("- ")}
