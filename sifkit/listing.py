"""What `--list` shows: every image with its pins and its state."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from sifkit.compat.tables import Tables
from sifkit.errors import UsageError
from sifkit.execute import load_image, make_step
from sifkit.printable import printable
from sifkit.spec import load_spec
from sifkit.tools import Tools
from sifkit.verify.record import Record, latest_of_each_kind, read_records


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
    verifications: tuple[Record, ...] = ()  # of this very file: the last on each kind of device, newest first


def list_images(tools: Tools) -> list[Row]:
    """All images of the project; one that is broken does not hide the others."""
    return [_row(name, tools) for name in tools.project.names()]


def _row(name: str, tools: Tools) -> Row:
    try:
        spec = load_spec(tools.project, name)
    except UsageError as error:
        return Row(name, "broken", error.message, "", "", "", "", "", None, (), "")
    on_disk = tools.store.on_disk(name)
    verifications = _verifications(name, tools)
    state, why = _state(name, tools, verifications)
    base = spec.base if isinstance(spec.base, str) else spec.base.bootstrap
    pins = (spec.llamafactory.version, spec.torch.version, spec.torch.cuda, spec.python, base)
    build = tools.tables.build(spec.torch.version, spec.torch.cuda)
    served = tuple(gpu.model for gpu in tools.tables.gpus_served(build)) if build else ()
    driver = tools.tables.oldest_driver(spec.torch.cuda) or ""
    return Row(name, state, why, *pins, on_disk[0] if on_disk else None, served, driver, verifications)


def _verifications(name: str, tools: Tools) -> tuple[Record, ...]:
    """Of the file that lies there; of one that was changed since it was built nothing is known."""
    manifest = tools.store.manifest(name)
    if manifest is None or tools.store.on_disk(name) != (manifest.size, manifest.mtime_ns):
        return ()
    return latest_of_each_kind(read_records(tools.project.reports / name), manifest.sha256)


def _state(name: str, tools: Tools, verifications: tuple[Record, ...]) -> tuple[str, str]:
    try:
        step = make_step(load_image(name, tools), tools)
    except UsageError as error:
        return "broken", f"{error.message} ({error.fix})" if error.fix else error.message
    if tools.store.on_disk(name) is None:
        return "missing", ""
    if step.reasons:
        return "stale", " and ".join(step.reasons)
    return judge_verifications(verifications)


def judge_verifications(verifications: Sequence[Record]) -> tuple[str, str]:
    """verified: it passed on some kind of device, and nothing failed there since. Each kind with its day."""
    good = [f"{record.kind}, {record.date}" for record in verifications if record.passed]
    bad = [f"{record.kind}, {record.date}" for record in verifications if not record.passed]
    said = [f"on {'; '.join(good)}"] if good else []
    if bad:
        said.append(f"verification failed on {'; '.join(bad)}: see report.html in reports/")
    return "verified" if good else "built", "; ".join(said)


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
        cells = (Text(printable(cell)) for cell in (*pins, row.why))  # Text: brackets in a message are no markup
        table.add_row(Text(row.name), Text(row.state, style=colour), *cells)
    return table


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """For machines."""
    return [dataclasses.asdict(row) for row in rows]
