"""`sifkit resolve`: choose the pins that fit what the user knows."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table
from rich.text import Text

from sifkit import yamlfile
from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    image_name,
    make_tools,
    narration,
    out_console,
    print_json,
)
from sifkit.compat import pins
from sifkit.compat.choose import Choice, choose
from sifkit.compat.gate import as_json, say
from sifkit.errors import UsageError
from sifkit.files import write_whole
from sifkit.model import IMAGE_NAME, ImageWish, TorchWish
from sifkit.resolve import extra_named
from sifkit.tools import Tools

UNNAMED = "image"  # of a wish that is not written


def resolve(
    image: Annotated[str | None, typer.Argument(metavar="[IMAGE]", help="its spec is completed, or begun")] = None,
    llamafactory: Annotated[str | None, typer.Option(help="version; else the newest that fits")] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="a GPU to serve; may be repeated")] = None,
    driver: Annotated[str | None, typer.Option(help="the oldest NVIDIA driver to serve")] = None,
    torch: Annotated[str | None, typer.Option(help="version")] = None,
    cuda: Annotated[str | None, typer.Option(help="the CUDA that torch is built for")] = None,
    extra: Annotated[list[str] | None, typer.Option(help="an extra to have; may be repeated")] = None,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="choose base, Python and torch anew")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write nothing")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Choose pins: the newest set that fits.

    torch, CUDA, Python and base from LLaMA-Factory, GPUs, driver and extras, with what limited them.

    Without IMAGE the spec goes to standard output.
    """
    tools = make_tools(project, site_file, verbose)
    path = _spec_path(image, tools) if image is not None else None
    wish = _wish(path, upgrade=upgrade)
    wish = _with_options(wish, llamafactory, gpu, driver, torch, cuda, extra)
    for name in wish.extras:
        extra_named(name)
    choice = choose(_for_site(wish, tools), tools.tables)
    own = choice.spec.model_copy(update={"gpu": wish.gpu, "driver": wish.driver})  # the site's stay in the site file
    before = _read(path) if path and path.is_file() else None
    text = pins.new_text(own) if before is None else pins.with_pins(before, own, str(path))
    if path and not dry_run and text != before:
        write_whole(path, text)
    _print(choice, text, tools, path=path, written=path is not None and not dry_run, as_json_=json_)


def _spec_path(word: str, tools: Tools) -> Path:
    """Raises `UsageError` for a word that is no image's name: it becomes a file's."""
    name = image_name(word, tools)
    if not re.fullmatch(IMAGE_NAME, name):
        raise UsageError(
            f"{word!r} is no image's name", "letters, digits, '.', '_' and '-', as in llamafactory-0.9.5-cu128"
        )
    return tools.project.spec_path(name)


def _read(path: Path) -> str:
    """The text with its line ends."""
    return path.read_bytes().decode("utf-8")


def _wish(path: Path | None, *, upgrade: bool) -> ImageWish:
    """What the file says already. Raises `UsageError` for a name that is none, or a file that is wrong."""
    if path is None or not path.is_file():
        return yamlfile.parse(f"name: {path.stem if path else UNNAMED}\n", ImageWish, str(path or "NAME"))
    wish = yamlfile.load(path, ImageWish)
    if wish.name != path.stem:
        raise UsageError(f"{path}:1: name is {wish.name!r}, the file says {path.stem!r}", "make them the same")
    if upgrade:
        own_base = wish.base if not isinstance(wish.base, str) else None
        return wish.model_copy(
            update={"torch": TorchWish(), "base": own_base, "python": wish.python if own_base else None}
        )
    return wish


def _with_options(
    wish: ImageWish,
    llamafactory: str | None,
    gpus: list[str] | None,
    driver: str | None,
    torch: str | None,
    cuda: str | None,
    extras: list[str] | None,
) -> ImageWish:
    """The command line's words over the file's."""
    changes: dict[str, Any] = {
        "llamafactory": {"version": llamafactory} if llamafactory else None,
        "gpu": tuple(name.strip() for word in gpus or () for name in word.split(",") if name.strip()) or None,
        "driver": driver,
        "torch": {**wish.torch.model_dump(), **{k: v for k, v in (("version", torch), ("cuda", cuda)) if v}},
        "extras": tuple(dict.fromkeys((*wish.extras, *(extras or ())))) or None,
    }
    values = wish.model_dump(by_alias=True, exclude_none=True)
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return ImageWish.model_validate({**values, **given})
    except ValidationError as error:
        names = {"version": "llamafactory"}
        wrong = [(str(problem["loc"][-1]), problem["input"]) for problem in error.errors()]
        said = "; ".join(f"--{names.get(name, name)}: {given!r} cannot be read" for name, given in wrong)
        raise UsageError(said, "write versions as 0.9.5, drivers as 535.104, CUDA as 12.8") from None


def _for_site(wish: ImageWish, tools: Tools) -> ImageWish:
    """GPUs and driver that the user does not name are the site's: the choice must run here."""
    gpu = tools.site.gpu
    return wish.model_copy(update={"gpu": wish.gpu or gpu.models, "driver": wish.driver or gpu.driver})


def _print(choice: Choice, text: str, tools: Tools, *, path: Path | None, written: bool, as_json_: bool) -> None:
    spec = choice.spec
    if as_json_:
        limits = [{"subject": limit.subject, "because": limit.because, "source": limit.source, "leaves": limit.leaves}
                  for limit in choice.limits]  # fmt: skip
        chosen = spec.model_dump(mode="json", by_alias=True)
        print_json({"chosen": chosen, "limits": limits, "findings": as_json(choice.findings), "written": written})
        return
    (out_console() if written else narration).print(as_table(choice))  # the spec itself has standard output
    say(spec.name, choice.findings, tools.progress)
    if written and path:
        tools.progress.note(f"{path}: written; next: sifkit lock {spec.name}")
    else:
        sys.stdout.write(text)


def as_table(choice: Choice) -> Table:
    """What limited the choice, in order, and what was chosen."""
    spec = choice.spec
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("because of", "this does not fit", "left"):
        table.add_column(title, overflow="fold")
    for limit in choice.limits:
        table.add_row(Text(limit.subject), Text(limit.because), Text(limit.leaves))
    pins_ = f"torch {spec.torch.version}, CUDA {spec.torch.cuda}, Python {spec.python}, {spec.base}"
    table.add_row(
        Text("newest of these", style="bold"),
        Text(f"LLaMA-Factory {spec.llamafactory.version}"),
        Text(pins_, style="bold"),
    )
    return table
