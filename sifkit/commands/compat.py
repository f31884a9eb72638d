"""`sifkit compat`: the tables of what fits what: read again, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from rich.table import Table
from rich.text import Text

from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    make_tools,
    out_console,
    print_json,
)
from sifkit.compat.tables import LlamaFactoryRelease, Tables
from sifkit.errors import Exit
from sifkit.listing import representatives
from sifkit.site import ca_bundle

app = typer.Typer(help="What fits what: torch, CUDA, drivers, GPUs, LLaMA-Factory.", no_args_is_help=True)


@app.command()
def update(
    check: Annotated[
        bool, typer.Option("--check", help="write nothing; exit 1 if the index says something else")
    ] = False,
    cuda: Annotated[list[str] | None, typer.Option(help="also builds for this CUDA, from the site's torch_url")] = None,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Read torch, LLaMA-Factory and the packages tied to torch from the package index into definitions/compat/."""
    from sifkit.compat import read_torch
    from sifkit.compat import update as updating  # here: what reads indexes is not loaded by other commands
    from sifkit.compat.wheels import DEFAULT_INDEX, Index

    tools = make_tools(project, site_file, verbose)
    site, environ = tools.site, tools.environ
    url = site.python_index.url or DEFAULT_INDEX
    others = read_torch.torch_index(site.python_index.torch_url, tuple(cuda or ()))
    with Index(url, ca_bundle(site, environ), environ) as index:
        kept = [row for row in tools.tables.builds if row.index == "torch" and row.cuda not in (cuda or ())]
        texts = updating.read_all(index, others, tools.progress, kept)
    changed = updating.changed(tools.project.compat, texts)
    if not check:
        updating.write(tools.project.compat, texts)
    for name in changed:
        tools.progress.note(
            f"{_shown(tools.project.compat / name)}: {'differs from the index' if check else 'written'}"
        )
    if not changed:
        tools.progress.note("the tables say what the index says")
    if json_:
        print_json({"changed": changed, "written": not check})
    if check and changed:
        raise typer.Exit(Exit.PROBLEM)


def _shown(path: Path) -> str:
    return f"{path.parent.parent.name}/{path.parent.name}/{path.name}"


@app.command()
def show(
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """The tables: each torch with its set, drivers and GPUs; LLaMA-Factory's ranges, where its two lists disagree."""
    tables = make_tools(project, site_file, verbose).tables
    if json_:
        print_json(_as_json(tables))
        return
    console = out_console()
    console.print(torch_table(tables))
    console.print()
    console.print(llamafactory_table(tables))


def _as_json(tables: Tables) -> dict[str, object]:
    rows = {
        "torch": tables.builds,
        "cuda": tables.cudas,
        "gpus": tables.gpus,
        "drivers": tables.spans,
        "llamafactory": tables.llamafactories,
        "packages": tables.tied,
        "pairs": tables.pairs,
    }
    return {name: [row.model_dump(mode="json") for row in found] for name, found in rows.items()}


def torch_table(tables: Tables) -> Table:
    """One line for each build of torch."""
    table = Table(title="torch", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for title in (
        "torch",
        "CUDA",
        "driver",
        "GPUs",
        "Python",
        "torchvision",
        "torchaudio",
        "triton",
        "C++11 ABI",
        "nvcc",
    ):
        table.add_column(title, no_wrap=True)
    for row in tables.builds:
        served = " ".join(representatives([gpu.model for gpu in tables.gpus_served(row)], tables))
        cells = (
            row.version,
            row.cuda,
            f"≥ {tables.oldest_driver(row.cuda) or '?'}",
            served,
            f"{row.pythons[0]}–{row.pythons[-1]}",
        )
        rest = (row.torchvision or "none", row.torchaudio or "none", row.triton or "", "yes" if row.cxx11_abi else "no")
        table.add_row(*(Text(cell) for cell in (*cells, *rest, "wheel" if row.nvcc else "")))
    return table


def llamafactory_table(tables: Tables) -> Table:
    """Ranges by package; a second line where metadata and the check at start disagree."""
    table = Table(title="LLaMA-Factory", title_justify="left", box=None, pad_edge=False, header_style="bold")
    for title in ("version", "package", "wheel metadata", "check at start"):
        table.add_column(title, overflow="fold")
    for row in tables.llamafactories:
        version = row.version
        table.add_row(
            Text(version), Text("Python"), Text(row.python), Text(f"wheels for {row.pythons[0]}–{row.pythons[-1]}")
        )
        for name, metadata, runtime in ranges(row):
            differs = runtime != "" and SpecifierSet(metadata) != SpecifierSet(runtime)
            mark = "≠ " if differs else ""
            table.add_row(
                Text(""), Text(name), Text(metadata), Text(f"{mark}{runtime}", style="yellow" if differs else "")
            )
    return table


def ranges(row: LlamaFactoryRelease) -> list[tuple[str, str, str]]:
    """Package, range in the metadata, range in the check at start; only packages with a range in either."""
    metadata = {canonicalize_name(found.name): str(found.specifier) for found in map(Requirement, row.requires)}
    runtime = {canonicalize_name(found.name): str(found.specifier) for found in map(Requirement, row.runtime)}
    names = sorted(name for name in {*metadata, *runtime} if metadata.get(name) or runtime.get(name))
    return [(name, metadata.get(name, ""), runtime.get(name, "")) for name in names]
