"""reports/NAME/verified.jsonl: one line for each verification that ran to its end, of whatever image had that name.

The report beside it is replaced each time; the record stays: an image that passed on one kind of GPU has
passed there, also after it was verified on another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sifkit.errors import HostError
from sifkit.store import exclusive
from sifkit.verify.checks import Level, Outcome
from sifkit.verify.report import Report, as_json

FILE = "verified.jsonl"
_LONGEST = 1e9  # seconds


@dataclass(frozen=True)
class Record:
    """One verification of one image, by sha256."""

    sha256: str
    device: str  # gpu or cpu
    gpus: tuple[str, ...]  # the model of each GPU that was used
    driver: str | None
    started: str  # ISO 8601, UTC
    passed: bool
    outcome: dict[str, str]  # by level
    seconds: float

    @property
    def kind(self) -> str:
        """What it ran on, in words: `CPU`, `H100 80GB HBM3`, `2 × H100 80GB HBM3`."""
        if self.device != "gpu":
            return self.device.upper()
        names = [name.removeprefix("NVIDIA ") for name in self.gpus]
        counts = {name: names.count(name) for name in names}
        return ", ".join(f"{count} × {name}" if count > 1 else name for name, count in counts.items()) or "GPU"

    @property
    def date(self) -> str:
        """The day, UTC."""
        return self.started[:10]


def parse_record(value: object) -> Record | None:
    """A line of the record, or a report.json, as a record; None for anything else.

    A verification that ended before a container was started (a checkout or a config that cannot work) says
    nothing about the image, nor does a train that failed with a config, a model or a method of the user's own: None.
    """
    if not isinstance(value, dict):
        return None
    outcome, seconds, driver = value.get("outcome"), value.get("seconds"), value.get("driver")
    texts = [value.get(name) for name in ("sha256", "device", "started")]
    if not (isinstance(outcome, dict) and isinstance(seconds, int | float) and isinstance(value.get("passed"), bool)):
        return None
    if not 0 <= seconds < _LONGEST:  # NaN and what no float holds are not either
        return None
    if not all(isinstance(text, str) and text for text in (*texts, *outcome.values())):
        return None
    if not _looked_at(outcome) or (value.get("own") and _only_training_failed(outcome)):
        return None
    host = value.get("host")
    if driver is None and isinstance(host, dict):
        driver = host.get("driver")
    sha256, device, started = map(str, texts)
    gpus = value.get("gpus") or _gpus_of(host)
    if not (isinstance(gpus, list | tuple) and all(isinstance(gpu, str) for gpu in gpus)):
        return None
    return Record(
        sha256, device, tuple(gpus), str(driver) if driver else None, started, value["passed"], outcome, float(seconds)
    )


def _looked_at(outcome: dict[str, str]) -> bool:
    """Level static is the first to start a container; host and train have checks that are made before."""
    first = outcome.get(Level.STATIC.value)
    if first is not None:
        return first != Outcome.NOT_RUN.value
    return any(said != Outcome.NOT_RUN.value for said in outcome.values())


def _only_training_failed(outcome: dict[str, str]) -> bool:
    return [level for level, said in outcome.items() if said == Outcome.FAILED.value] == [Level.TRAIN.value]


def _gpus_of(host: object) -> list[str]:
    """The GPUs of a report that does not say which were used: sifkit 0.1.0 wrote none of several."""
    gpus = host.get("gpus") if isinstance(host, dict) else None
    return [str(gpu.get("name")) for gpu in gpus if isinstance(gpu, dict)][:1] if isinstance(gpus, list) else []


def record_of(report: Report) -> Record | None:
    """The line for a report; None where nothing was learnt about the image."""
    return parse_record(as_json(report))


# ---------------------------------------------------------------------------------------------- file


def append(directory: Path, record: Record) -> None:
    """Add a line, whole, whoever else adds one at the same time."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    line = json.dumps(asdict(record), allow_nan=False).encode() + b"\n"
    try:
        with exclusive(path, on_wait=lambda: None):
            _append(path, line)
    except HostError:  # no locks here: O_APPEND alone keeps lines of one host apart, and readers skip what is torn
        _append(path, line)


def _append(path: Path, line: bytes) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, b"\n" + line if torn else line)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_records(directory: Path) -> tuple[Record, ...]:
    """All that can be read, oldest first; with report.json where the record lacks it (older versions wrote none)."""
    found = [record for line in _lines(directory / FILE) if (record := _parsed(line))]
    report = _parsed(_text(directory / "report.json"))
    if report and (report.sha256, report.started) not in {(record.sha256, record.started) for record in found}:
        found.append(report)
    return tuple(sorted(found, key=lambda record: record.started))


def latest_of_each_kind(records: Iterable[Record], sha256: str) -> tuple[Record, ...]:
    """Of the verifications of exactly this image, the last on each kind of device; newest first."""
    last: dict[str, Record] = {}
    for record in records:
        if record.sha256 == sha256:
            last.pop(record.kind, None)
            last[record.kind] = record
    return tuple(reversed(last.values()))


def _lines(path: Path) -> list[str]:
    return _text(path).splitlines()


def _text(path: Path) -> str:
    """Empty for what is no file that can be read: one broken record does not hide the other images."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError:
        return ""


def _parsed(text: str) -> Record | None:
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None  # torn, or not ours
    return parse_record(value)
