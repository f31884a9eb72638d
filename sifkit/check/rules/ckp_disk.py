"""CKP: how often checkpoints are written, and the room that they take."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sifkit.check.facts import Facts, Kind
from sifkit.check.needs import disk_of, gib, length_of
from sifkit.check.rule import Found, NotChecked, Severity, rule
from sifkit.check.rules.ckp import saves_on_signal, trains
from sifkit.estimate.disk import Disk, Saves, read_saves
from sifkit.estimate.run import RunLength
from sifkit.estimate.settings import Unknown

_DOCS = "docs/estimates.md: what a checkpoint holds"
_MANY = 5  # checkpoints that are kept without anybody having said so
_SHORT = timedelta(hours=1)  # a time limit that many a run outlasts


def _steps(facts: Facts) -> int | None:
    length = length_of(facts)
    return length.steps if isinstance(length, RunLength) else None


def _saves(facts: Facts) -> Saves | None:
    return read_saves(facts.value, _steps(facts))


@rule(
    "CKP003",
    "disk-too-small",
    Severity.WARNING,
    needs=(Kind.CHECKOUT, Kind.HOST),
    prevents="OSError: [Errno 28] No space left on device",
    why="a checkpoint holds what is trained and two numbers of the optimizer for each; while one is saved, the "
    "oldest is still there",
    fix="save_total_limit, save_only_model, or an output_dir with more room",
    source=_DOCS,
    rows=(18,),
)
def disk_too_small(facts: Facts) -> Iterator[Found | NotChecked]:
    """The checkpoints of the run need more room than output_dir's filesystem has."""
    place = facts.host.place("output_dir") if facts.host else None
    if not trains(facts):
        return
    if place is None or not place.answers:
        yield NotChecked("the room in output_dir is not known")
        return
    estimate = disk_of(facts)
    if isinstance(estimate, Unknown):
        yield NotChecked(estimate.reason)
        return
    need = estimate.peak if estimate.peak is not None else 2 * estimate.checkpoint + estimate.final
    if need > place.free:
        yield _too_small(facts, estimate, need, place.free)
    elif estimate.peak is None:
        yield NotChecked("how many checkpoints there will be is not known")


def _too_small(facts: Facts, estimate: Disk, need: int, free: int) -> Found:
    saves = _saves(facts)
    count = "its checkpoints"
    if saves and saves.kept:
        count = f"{saves.kept} checkpoint{'s' if saves.kept > 1 else ''} of {gib(estimate.checkpoint)}"
    message = f"{count} and the model need about {gib(need)}, and output_dir has {gib(free)} left"
    key = "save_total_limit" if facts.config.line("save_total_limit") else "output_dir"
    return Found(message, _room_fix(facts, estimate, free), key)


def _room_fix(facts: Facts, estimate: Disk, free: int) -> str:
    """The largest save_total_limit with which all fits, else without the optimizer, else another place."""
    limit = (free - estimate.final) // estimate.checkpoint - 1
    if limit >= 1:
        return f"save_total_limit: {min(limit, 2)}"
    small = disk_of(facts, {"save_only_model": True, "save_total_limit": 1})
    resumes = facts.job is not None and facts.job.requeue
    if isinstance(small, Disk) and not resumes and (small.peak or free) < free:
        return "save_only_model: true and save_total_limit: 1 (such a run cannot be resumed)"
    return f"an output_dir with {gib(2 * estimate.checkpoint + estimate.final)} free, and save_total_limit: 1"


@rule(
    "CKP006",
    "saves-too-rarely",
    Severity.WARNING,
    needs=(Kind.CHECKOUT, Kind.JOB),
    prevents="killed at its time limit, the run has left nothing to go on from",
    why="a checkpoint is written every save_steps steps and at the end; a run with fewer steps writes none before it",
    fix="a smaller save_steps",
    source="transformers 5.6.0 trainer_callback.py, DefaultFlowCallback.on_step_end",
)
def saves_too_rarely(facts: Facts) -> Iterator[Found | NotChecked]:
    """A run with fewer steps than save_steps, in a job that is to go on after its time limit or has a short one."""
    job, steps, saves = facts.job, _steps(facts), _saves(facts)
    if job is None or not (job.time or job.requeue) or not trains(facts) or saves is None or saves.every is None:
        return
    if steps is None:
        yield NotChecked("the number of steps is not known: rows of a dataset could not be counted")
    elif saves.every >= steps > 1:
        message = f"save_steps: {saves.every}, and the run has about {steps} steps: nothing is saved before its end"
        urgent = _saves_when_stopped(facts) is False or (job.time is not None and job.time <= _SHORT)
        severity = Severity.WARNING if urgent else Severity.INFO
        yield Found(message, f"save_steps: {max(1, steps // 5)}", "save_steps", severity=severity)


def _saves_when_stopped(facts: Facts) -> bool | None:
    """Whether a job that goes on saves at its time limit; None for one that does not go on."""
    job = facts.job
    return None if job is None or not job.requeue else job.ours and saves_on_signal(facts)


@rule(
    "CKP008",
    "many-checkpoints",
    Severity.WARNING,
    needs=(Kind.CHECKOUT,),
    prevents="OSError: [Errno 122] Disk quota exceeded",
    why="without save_total_limit every checkpoint stays, each with its optimizer",
    fix="save_total_limit: 2",
    source="transformers 5.6.0 trainer_utils.py, rotate_checkpoints",
    rows=(18,),
)
def many_checkpoints(facts: Facts) -> Iterator[Found | NotChecked]:
    """No save_total_limit, and more than five checkpoints."""
    saves = _saves(facts)
    if not trains(facts) or facts.value("save_total_limit") or saves is None:
        return
    if saves.count is None:
        yield NotChecked("the number of steps is not known: rows of a dataset could not be counted")
    elif saves.count > _MANY:
        estimate = disk_of(facts)
        size = f", about {gib(saves.count * estimate.checkpoint)}" if isinstance(estimate, Disk) else ""
        message = f"no save_total_limit: all {saves.count} checkpoints of the run stay{size}"
        yield Found(message, "save_total_limit: 2", "save_steps" if facts.config.line("save_steps") else None)


@rule(
    "CKP009",
    "run-estimate",
    Severity.INFO,
    needs=(Kind.CHECKOUT, Kind.JOB),
    prevents="a run that is ten times as long as was meant, or a disk that fills",
    why="steps follow from rows, batch, accumulation, GPUs and epochs; the disk from what is trained and what is kept",
    fix="nothing needs to be done",
    source=_DOCS,
)
def run_estimate(facts: Facts) -> Iterator[Found | NotChecked]:
    """Steps, tokens and disk of the run."""
    length, estimate = length_of(facts), disk_of(facts)
    if not trains(facts) or not isinstance(length, RunLength) or length.steps is None:
        return
    parts = [f"{length.steps:,} steps of {length.batch.size} rows"]
    parts += [f"about {_short(length.tokens)} tokens"] if length.tokens else []
    if isinstance(estimate, Disk):
        parts.append(f"{gib(estimate.checkpoint)} a checkpoint")
        parts += [f"at most {gib(estimate.peak)} on the disk"] if estimate.peak else []
    yield Found(", ".join(parts), "nothing needs to be done")


def _short(count: int) -> str:
    """1.2 million."""
    for size, word in ((10**9, " billion"), (10**6, " million")):
        if count >= size:
            return f"{count / size:.3g}{word}"
    return f"{count:,}"
