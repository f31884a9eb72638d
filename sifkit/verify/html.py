"""report.html: what a verification found, as one file that needs nothing else. Pure, but for reading its template."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from sifkit.verify.checks import Check, Level, Outcome
from sifkit.verify.report import Report, without_controls
from sifkit.verify.svg import COLOURS, Axes, Series, finite, line_chart
from sifkit.verify.train import TrainFacts

_TEMPLATE = Path(__file__).parent.parent / "data" / "report.html.jinja"

_QUESTIONS = {
    Level.STATIC: "Is in the image what belongs there, and does it fit together?",
    Level.HOST: "Do this node's driver and GPUs reach the container?",
    Level.KERNEL: "Does the GPU compute what it should?",
    Level.TRAIN: "Does a short training run do all that a long one will?",
}
_MARKS = {Outcome.PASSED: "✓", Outcome.FAILED: "✗", Outcome.WARNED: "!", Outcome.NOT_RUN: "–"}
_WORST_FIRST = (Outcome.FAILED, Outcome.WARNED)


@dataclass(frozen=True)
class Chart:
    """A picture with its legend: (class of the line, label)."""

    title: str
    svg: Markup
    legend: tuple[tuple[str, str], ...]
    note: str = ""


@dataclass(frozen=True)
class LevelPart:
    """One level: what it asks, how it ended, what it checked."""

    name: str
    question: str
    outcome: str
    kind: str  # the outcome as a CSS class
    seconds: str
    share: float  # of the longest level's time, per cent
    checks: tuple[CheckPart, ...]


@dataclass(frozen=True)
class CheckPart:
    """One check, as words."""

    level: str
    name: str
    kind: str
    mark: str
    outcome: str
    message: str
    cause: str
    fix: str
    seconds: str


@dataclass(frozen=True)
class Page:
    """All that the template says."""

    name: str
    passed: bool
    verdict: str
    facts: tuple[tuple[str, str], ...]
    levels: tuple[LevelPart, ...]
    first: CheckPart | None  # the failure to mend first
    others: tuple[CheckPart, ...]  # further failures, then warnings
    training: str  # what was trained how
    figures: tuple[tuple[str, str], ...]
    charts: tuple[Chart, ...]
    environment: tuple[tuple[str, str], ...]
    files: tuple[str, ...]


def render_html(report: Report) -> str:
    """The page's text. Nothing is loaded by it, and no script runs in it."""
    return _template().render(page=page_of(report))


@cache
def _template() -> Template:
    """Every value is escaped (autoescape), and loses control characters, which logs have and HTML has not."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_printable
    )
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))


def _printable(value: Any) -> Any:
    return without_controls(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# ------------------------------------------------------------------------------------------- page


def page_of(report: Report) -> Page:
    """The report in the words and pictures of the page."""
    parts = [_check(check) for check in report.checks]
    mended = [part for outcome in _WORST_FIRST for part in parts if part.outcome == outcome.value]
    failed = bool(mended) and mended[0].outcome == Outcome.FAILED.value
    longest = max((report.seconds_of(level) for level in report.levels), default=0.0)
    return Page(
        name=report.name,
        passed=report.passed,
        verdict=_verdict(report),
        facts=_facts(report),
        levels=tuple(_level(report, level, longest) for level in report.levels),
        first=mended[0] if failed else None,
        others=tuple(mended[1:] if failed else mended),
        training=_training(report.train) if report.train else "",
        figures=_figures(report.train) if report.train else (),
        charts=_charts(report.train) if report.train else (),
        environment=_environment(report),
        files=report.train.files if report.train else (),
    )


def _verdict(report: Report) -> str:
    if report.passed:
        return "verified"
    return "not verified" if any(check.outcome is Outcome.FAILED for check in report.checks) else "nothing was checked"


def _facts(report: Report) -> tuple[tuple[str, str], ...]:
    when = datetime.fromisoformat(report.started).strftime("%Y-%m-%d %H:%M UTC")
    return (("on", _devices(report)), ("when", when), ("took", duration(report.seconds)))


def _devices(report: Report) -> str:
    if report.device != "gpu":
        return report.device.upper()
    counts = {name: report.gpus.count(name) for name in report.gpus}
    named = [f"{count} × {name}" if count > 1 else name for name, count in counts.items()]
    return ", ".join(named) or "GPU"


def _level(report: Report, level: Level, longest: float) -> LevelPart:
    outcome, seconds = report.outcome_of(level), report.seconds_of(level)
    return LevelPart(
        name=level.value,
        question=_QUESTIONS[level],
        outcome=outcome.value,
        kind=outcome.name.lower(),
        seconds=duration(seconds) if seconds else "",
        share=100 * seconds / longest if longest else 0.0,
        checks=tuple(_check(check) for check in report.checks if check.level is level),
    )


def _check(check: Check) -> CheckPart:
    return CheckPart(
        level=check.level.value,
        name=check.name,
        kind=check.outcome.name.lower(),
        mark=_MARKS[check.outcome],
        outcome=check.outcome.value,
        message=("not run: " if check.outcome is Outcome.NOT_RUN else "") + check.message,
        cause=check.cause if check.cause and check.cause != check.message else "",
        fix=check.fix or "",
        seconds=duration(check.seconds) if check.seconds >= 0.05 else "",
    )


def duration(seconds: float) -> str:
    """`0.4 s`, `63 s`, `2 min 21 s`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def _training(train: TrainFacts) -> str:
    ranks = f", {train.gpus} GPUs" if train.gpus > 1 else ""
    words = (f"{Path(train.config).name}: {train.method} of the {_model(train.model)}{ranks}", train.device)
    return " on ".join(word for word in words if word) + f"; {duration(train.seconds)} with its start"


def _model(model: str) -> str:
    return f"model {model}" if "/" in model else model


def _figures(train: TrainFacts) -> tuple[tuple[str, str], ...]:
    known = (
        ("steps per second", train.steps_per_second and f"{train.steps_per_second:.2f}"),
        ("tokens per second", train.tokens_per_second and f"{train.tokens_per_second:,.0f}"),
        ("training loss", train.train_loss is not None and f"{train.train_loss:.4g}"),
        ("evaluation loss", train.eval_loss is not None and f"{train.eval_loss:.4g}"),
        ("GPU memory, peak", train.gpu_peak_memory_gb is not None and f"{train.gpu_peak_memory_gb:.1f} GB"),
        ("GPU utilisation, peak", train.gpu_peak_utilisation is not None and f"{train.gpu_peak_utilisation} %"),
    )
    return tuple((name, said) for name, said in known if said)


def _environment(report: Report) -> tuple[tuple[str, str], ...]:
    host = report.host
    rows = list(report.versions.items())
    if host:
        rows += [("NVIDIA driver", host.driver), ("driver's CUDA", host.cuda)]
        for gpu in host.gpus:
            capability = ".".join(map(str, gpu.capability))
            said = f"{gpu.name}, {gpu.memory_total_gb:.0f} GB, compute capability {capability}"
            rows.append((f"GPU {gpu.index}", said + (f", {len(gpu.mig)} MIG devices" if gpu.mig else "")))
    return (*rows, ("image", f"{report.size / 1e9:.2f} GB"), ("sha256", report.sha256))


# ----------------------------------------------------------------------------------------- charts


def _charts(train: TrainFacts) -> tuple[Chart, ...]:
    charts = (_loss_chart(train), _memory_chart(train), _utilisation_chart(train))
    return tuple(chart for chart in charts if chart)


def _loss_chart(train: TrainFacts) -> Chart | None:
    series = [Series("training", train.losses)]
    if train.resumed_losses:
        series.append(Series("resumed from the checkpoint", train.resumed_losses, dashed=True))
    return _chart("Loss", series, Axes("Loss by step", "step", "loss", whole_x=True))


def _memory_chart(train: TrainFacts) -> Chart | None:
    lines = _by_gpu(train, lambda sample: sample.memory_gb)
    return _chart("GPU memory", lines, Axes("GPU memory over time", "seconds", "GB", from_zero=True))


def _utilisation_chart(train: TrainFacts) -> Chart | None:
    lines = _by_gpu(train, lambda sample: sample.utilisation)
    return _chart("GPU utilisation", lines, Axes("GPU utilisation over time", "seconds", "%", from_zero=True, top=100))


def _by_gpu(train: TrainFacts, value: Any) -> list[Series]:
    indices = sorted({sample.index for sample in train.samples})
    return [
        Series(f"GPU {index}", tuple((one.seconds, value(one)) for one in train.samples if one.index == index))
        for index in indices
    ]


def _chart(title: str, series: list[Series], axes: Axes) -> Chart | None:
    """None where there is nothing to show; gaps are named, since an empty place says nothing."""
    if not any(one.points for one in series):
        return None
    svg = line_chart(series, axes)
    gaps = sorted({x for one in series for x, y in one.points if not finite(y)})
    named = ", ".join(f"{x:g}" for x in gaps[:8]) + (" …" if len(gaps) > 8 else "")
    note = f"no finite value at {axes.x} {named}" if gaps else ""
    legend = tuple((f"s{at % COLOURS}{' dashed' if one.dashed else ''}", one.label) for at, one in enumerate(series))
    # ElementTree has escaped what stands in the picture.
    return Chart(title, Markup(svg or ""), legend if svg else (), note)
