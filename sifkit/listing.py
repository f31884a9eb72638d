"""What `--list` shows: every image with its pins and its state."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from sifkit.compat.tables import Tables
from sifkit.errors import UsageError
from sifkit.execute import Tools, load_image, make_step
from sifkit.spec import load_spec


@dataclass(frozen=True)
class Row:
    """One image. `state`: missing, stale, built, verified, or broken when its spec or lock cannot be read."""

    name: str
    state: str
    why: str
    llamafactory: str
    torch: str
    cuda: str
    python: str
    base: str
    size: int | None  # bytes
    gpus: tuple[str, ...]  # models in the tables that torch has kernels for
    driver: str  # the oldest; "" where no row knows


def list_images(tools: Tools) -> list[Row]:
    """All images of the project; one that is broken does not hide the others."""
    return [_row(name, tools) for name in tools.project.names()]


def _row(name: str, tools: Tools) -> Row:
    try:
        spec = load_spec(tools.project, name)
    except UsageError as error:
        return Row(name, "broken", error.message, "", "", "", "", "", None, (), "")
    on_disk = tools.store.on_disk(name)
    state, why = _state(name, tools)
    base = spec.base if isinstance(spec.base, str) else spec.base.bootstrap
    pins = (spec.llamafactory.version, spec.torch.version, spec.torch.cuda, spec.python, base)
    build = tools.tables.build(spec.torch.version, spec.torch.cuda)
    served = tuple(gpu.model for gpu in tools.tables.gpus_served(build)) if build else ()
    driver = tools.tables.oldest_driver(spec.torch.cuda) or ""
    return Row(name, state, why, *pins, on_disk[0] if on_disk else None, served, driver)


def _state(name: str, tools: Tools) -> tuple[str, str]:
    try:
        step = make_step(load_image(name, tools), tools)
    except UsageError as error:
        return "broken", f"{error.message} ({error.fix})" if error.fix else error.message
    if tools.store.on_disk(name) is None:
        return "missing", ""
    if step.reasons:
        return "stale", " and ".join(step.reasons)
    return _verified(name, tools) or ("built", "")


def _verified(name: str, tools: Tools) -> tuple[str, str] | None:
    """A report that passed counts for the image that it names by sha256, and for no other."""
    path = tools.project.reports / name / "report.json"
    manifest = tools.store.manifest(name)
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if manifest is None or not isinstance(report, dict) or report.get("sha256") != manifest.sha256:
        return None
    device, when = str(report.get("device", "")), str(report.get("started", ""))[:10]
    if report.get("passed"):
        return "verified", f"on the {'GPU' if device == 'gpu' else device.upper()}, {when}"
    return "built", f"verification failed, {when}: see {path.parent.name}/report.json in reports/"


def representatives(models: Sequence[str], tables: Tables) -> tuple[str, ...]:
    """One of the served GPUs for each compute capability: the one that data centres have, else the first."""
    by_capability: dict[str, str] = {}
    for gpu in tables.gpus:
        if gpu.model in models:
            by_capability.setdefault(gpu.capability, gpu.model)
    return tuple(by_capability.values())


def as_table(rows: Sequence[Row], tables: Tables) -> Table:
    """For people."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("image", "state", "LLaMA-Factory", "torch", "CUDA", "Python", "base", "size", "driver", "GPUs"):
        table.add_column(title, no_wrap=title != "GPUs")
    table.add_column("", overflow="fold")
    colours = {"verified": "green", "built": "green", "stale": "yellow", "broken": "red"}
    for row in rows:
        colour = colours.get(row.state, "")
        size = "" if row.size is None else f"{row.size / 1e9:.1f} GB"
        serves = (f"≥ {row.driver}" if row.driver else "", " ".join(representatives(row.gpus, tables)))
        pins = (row.llamafactory, row.torch, row.cuda, row.python, row.base, size, *serves)
        cells = (Text(cell) for cell in (*pins, row.why))  # Text: brackets in a message are no markup
        table.add_row(Text(row.name), Text(row.state, style=colour), *cells)
    return table


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """For machines."""
    return [dataclasses.asdict(row) for row in rows]
