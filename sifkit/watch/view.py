"""What is shown of a watched run: on a terminal, as plain lines, as JSON. Pure."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from sifkit.rundir.curve import draw
from sifkit.rundir.trainlog import Series
from sifkit.watch.ends import Verdict
from sifkit.watch.follow import Progress
from sifkit.watch.queue import JobFacts

CURVE_WIDTH = 100
_BAR = 20


@dataclass(frozen=True)
class Watched:
    """One run, and the job that it is in."""

    name: str  # job 12, or the directory
    facts: JobFacts | None = None
    directory: Path | None = None
    progress: Progress = field(default_factory=Progress)
    stderr: tuple[str, ...] = ()  # the last lines
    verdict: Verdict | None = None  # once it has ended
    note: str = ""  # what else to know now

    @property
    def state(self) -> str:
        """Slurm's word; of a directory whether it goes on."""
        if self.verdict:
            return self.verdict.state
        return self.facts.state if self.facts else "RUNNING"


@dataclass(frozen=True)
class View:
    """All that is watched. `silent_for`: how long Slurm has not answered."""

    runs: tuple[Watched, ...]
    silent_for: timedelta | None = None
    silent_words: str = ""

    @property
    def ended(self) -> bool:
        """Every run has ended."""
        return bool(self.runs) and all(run.verdict for run in self.runs)

    @property
    def ok(self) -> bool:
        """Every run ended well."""
        return all(run.verdict and run.verdict.ok for run in self.runs)


# ---------------------------------------------------------------------------------------------- words


def state_words(run: Watched) -> str:
    """State, why it waits, where it runs, since when, how often it was started again."""
    facts = run.facts
    if facts is None:
        return run.state
    said = run.state
    if facts.state == "PENDING":
        said += f" ({facts.reason})" if facts.reason not in ("None", "") else ""
        said += f", may start {facts.starts.replace('T', ' ')}" if facts.starts else ""
    else:
        said += f" on {facts.nodes}" if facts.nodes else ""
        said += f", {facts.ran} of {facts.limit}" if facts.ran and facts.limit else ""
    return said + (f", restarted {facts.restarts} times" if facts.restarts > 1 else _once(facts.restarts))


def _once(restarts: int) -> str:
    return ", restarted once" if restarts == 1 else ""


def step_words(run: Watched) -> str:
    """`step 120 of 800 (15 %)`; empty before the first."""
    log = run.progress.log
    if log.current_steps is None:
        return ""
    if not log.total_steps:
        return f"step {log.current_steps:,}"
    return f"step {log.current_steps:,} of {log.total_steps:,} ({log.current_steps / log.total_steps:.0%})"


def pace_words(run: Watched) -> list[str]:
    """Speed and what it means."""
    pace, said = run.progress.pace, []
    if pace.steps_per_second is not None:
        said.append(_speed(pace.steps_per_second))
    if pace.remaining and not run.verdict:
        said.append(f"{span(pace.remaining)} left")
    if pace.tokens_per_second is not None:
        said.append(f"{pace.tokens_per_second:,.0f} tokens/s")
    return said


def _speed(speed: float) -> str:
    return f"{speed:.3g} steps/s" if speed >= 1 else f"{1 / speed:.3g} s a step"


def span(time: timedelta) -> str:
    """`12 s`, `26 min`, `3 h 05 min`, `2 d 4 h`."""
    seconds = round(time.total_seconds())
    if seconds < 120:
        return f"{seconds} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def loss_words(run: Watched, arrow: str) -> list[str]:
    """Losses from first to last, and what is logged beside them."""
    log, pace, said = run.progress.log, run.progress.pace, []
    for name, series in (("loss", log.loss), ("eval loss", log.eval_loss), ("reward", log.reward)):
        if series.first and series.last:
            said.append(f"{name} {series.first.value:.4g} {arrow} {series.last.value:.4g}" + _not_finite(series))
    if pace.learning_rate is not None:
        said.append(f"learning rate {pace.learning_rate:.3g}")
    if log.epoch is not None:
        said.append(f"epoch {log.epoch:.3g}")
    if pace.memory_gb is not None:
        reserved = f" ({pace.reserved_gb:.3g} reserved)" if pace.reserved_gb is not None else ""
        said.append(f"GPU memory {pace.memory_gb:.3g} GB{reserved}")
    return said


def _not_finite(series: Series) -> str:
    return f" ({series.not_finite:,} not finite)" if series.not_finite else ""


def silent_words(view: View) -> str:
    """Empty while Slurm answers."""
    if view.silent_for is None:
        return ""
    said = f" ({view.silent_words})" if view.silent_words else ""
    return f"Slurm does not answer since {span(view.silent_for)}{said}; watching goes on"


def end_lines(run: Watched) -> list[str]:
    """How it ended, why, and what to do."""
    verdict = run.verdict
    if verdict is None:
        return []
    lines = [f"{run.name}: {' · '.join(word for word in (state_words(run), step_words(run)) if word)}"]
    lines += [f"cause: {verdict.cause}"] if verdict.cause else []
    lines += [f"fix: {verdict.fix}"] if verdict.fix else []
    return lines


# ---------------------------------------------------------------------------------------------- a terminal


def screen(view: View, width: int, height: int, *, unicode: bool) -> list[str]:
    """The live view: at most `height` lines. One run in full, of several a line each."""
    lines = _one(view.runs[0], width, height, unicode) if len(view.runs) == 1 else _several(view.runs, unicode)
    silent = silent_words(view)
    return [*([silent] if silent else []), *lines][: max(height, 1)]


def _one(run: Watched, width: int, height: int, unicode: bool) -> list[str]:
    title = " · ".join(word for word in (run.name, run.facts.name if run.facts else "", state_words(run)) if word)
    lines = [title]
    step = step_words(run)
    if run.progress.catching_up:
        step += ", reading the log …"
    if step:
        lines.append("  ".join([_bar(run, unicode), step, *pace_words(run)]).strip())
    lines += [", ".join(loss_words(run, "→" if unicode else "->"))] if step else []
    stderr = [f"  {line}" for line in run.stderr]
    room = height - len(lines) - (len(stderr) + 1 if stderr else 0) - bool(run.note) - 1
    if room >= 4:
        lines += draw(run.progress.log.loss.points, min(width, CURVE_WIDTH), min(room - 1, 10), unicode=unicode)
    return [*lines, *([run.note] if run.note else []), *(["stderr:", *stderr] if stderr else [])]


def _bar(run: Watched, unicode: bool) -> str:
    log = run.progress.log
    if not log.total_steps or log.current_steps is None:
        return ""
    done = min(round(_BAR * log.current_steps / log.total_steps), _BAR)
    full, empty = ("█", "░") if unicode else ("#", ".")
    return full * done + empty * (_BAR - done)


def _several(runs: tuple[Watched, ...], unicode: bool) -> list[str]:
    arrow = "→" if unicode else "->"
    words = [
        (run.name, state_words(run), step_words(run), *pace_words(run), *loss_words(run, arrow)[:1]) for run in runs
    ]
    return ["  ".join(word for word in each if word) for each in words]


# ---------------------------------------------------------------------------------------------- plain lines


def plain_state(run: Watched) -> str:
    """A line of its own whenever it changes: without what changes all the time."""
    facts = run.facts
    said = re.sub(r", [\d:-]+ of [^,]*", "", state_words(run))
    note = f"; {run.note}" if run.note else ""
    return f"{run.name}: {said}" + (f" [{facts.name}]" if facts and facts.name else "") + note


def plain_progress(run: Watched) -> str:
    """One line; empty before the first step."""
    step = step_words(run)
    log, pace = run.progress.log, run.progress.pace
    if not step:
        return ""
    loss = [f"loss {log.loss.last.value:.4g}"] if log.loss.last else []
    rate = [f"learning rate {pace.learning_rate:.3g}"] if pace.learning_rate is not None else []
    return f"{run.name}: {', '.join([step, *loss, *rate, *pace_words(run)])}"


# ---------------------------------------------------------------------------------------------- JSON


def as_json(run: Watched, event: str) -> dict[str, Any]:
    """One object of the stream. Numbers that are not finite, or not known, are null."""
    log, pace, facts = run.progress.log, run.progress.pace, run.facts
    values: dict[str, Any] = {
        "event": event,
        "job": facts.id if facts else None,
        "name": facts.name if facts else None,
        "directory": str(run.directory) if run.directory else None,
        "state": run.state,
        "reason": facts.reason if facts and facts.reason != "None" else None,
        "nodes": facts.nodes if facts else None,
        "restarts": facts.restarts if facts else log.restarts,
        "step": log.current_steps,
        "total_steps": log.total_steps,
        "epoch": _finite(log.epoch),
        "loss": _last(log.loss),
        "eval_loss": _last(log.eval_loss),
        "learning_rate": _finite(pace.learning_rate),
        "steps_per_second": _finite(pace.steps_per_second),
        "remaining_seconds": pace.remaining.total_seconds() if pace.remaining else None,
        "tokens_per_second": _finite(pace.tokens_per_second),
        "gpu_memory_gb": _finite(pace.memory_gb),
        "gpu_reserved_gb": _finite(pace.reserved_gb),
    }
    if run.verdict:
        verdict = run.verdict
        code = facts.exit_code if facts else None
        ending = {"ok": verdict.ok, "exit_code": code, "id": verdict.id, "cause": verdict.cause, "fix": verdict.fix}
        return {**values, **ending, "stderr": list(run.stderr)}
    return values


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _last(series: Series) -> float | None:
    return _finite(series.last.value) if series.last else None
