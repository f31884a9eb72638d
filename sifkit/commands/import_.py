"""`sifkit import`: a spec from a Dockerfile, a definition or an image."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    make_tools,
    narration,
    out_console,
    print_json,
)
from sifkit.errors import ProblemFound, UsageError
from sifkit.files import write_whole
from sifkit.importing.convert import Imported, Options, convert
from sifkit.importing.definition import is_definition, read_definition
from sifkit.importing.dockerfile import read_dockerfile
from sifkit.importing.recipe import Recipe
from sifkit.importing.wishes import Wishes
from sifkit.importing.write import write
from sifkit.model import IMAGE_NAME, ImageSpec
from sifkit.printable import printable
from sifkit.tools import Tools
from sifkit.yamlfile import parse

LARGEST = 1_000_000  # bytes; a Dockerfile has a few thousand
FATES = {
    "pin": "in the spec",
    "changed": "changed",
    "kept": "kept as it is",
    "ours": "sifkit's own",
    "site": "site file",
    "left": "left out",
}


def import_(
    source: Annotated[Path, typer.Argument(metavar="DOCKERFILE|FILE.def|IMAGE.sif", help="what is there already")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="definitions/NAME.yaml; else printed")] = None,
    name: Annotated[str | None, typer.Option(help="of the image; else by --output, or by the source")] = None,
    context: Annotated[Path | None, typer.Option(help="directory that COPY means; else the Dockerfile's")] = None,
    build_arg: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="of ARG or %arguments")] = None,
    python: Annotated[str | None, typer.Option(help="the Python of a base that says nothing of it")] = None,
    keep_base: Annotated[
        bool, typer.Option("--keep-base", help="do not replace a base of CUDA's or PyTorch's")
    ] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a spec from a Dockerfile, a definition or an image.

    Says what became of each line; refuses what has no counterpart.
    """
    tools = make_tools(project, site_file, verbose)
    options = Options(_name(name, output, source), tools.project.root, python or "", keep_base)
    if output and output.exists():
        raise UsageError(f"{output} is there already", "remove it, or give another name: -o definitions/NAME.yaml")
    recipe, own = _read(source, context, _arguments(build_arg), tools)
    if own:
        _write_own(own, options.name, output, tools)
        return
    imported = convert(recipe, tools.tables, options)
    text = write(imported)
    if output:
        write_whole(output, text)
    _print(imported, text, output, tools, as_json=json_)
    if imported.problem:
        raise ProblemFound(f"the pins of {source} do not fit together: {imported.problem}", _next(imported, output))


def _next(imported: Imported, output: Path | None) -> str:
    where = str(output) if output else "the spec"
    return f"{where} says what the source says; change it, or have its pins chosen: sifkit resolve {imported.spec.name}"


def _name(given: str | None, output: Path | None, source: Path) -> str:
    """Raises `UsageError` for what cannot be an image's name."""
    if output and (output.suffix != ".yaml" or (given and given != output.stem)):
        raise UsageError(f"--output {output}: a spec's file is NAME.yaml, NAME as in it", "-o definitions/NAME.yaml")
    plain = source.resolve().parent.name if source.stem.lower() == "dockerfile" else source.stem
    word = given or (output.stem if output else re.sub(r"[^a-z0-9._-]+", "-", plain.lower()).strip("-._") or "image")
    if not re.fullmatch(IMAGE_NAME, word):
        raise UsageError(f"{word!r} is no image's name", "lower-case letters, digits, '.', '_' and '-'")
    return word


def _arguments(words: list[str] | None) -> dict[str, str]:
    pairs = [word.partition("=") for word in words or ()]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise UsageError(f"--build-arg {wrong[0]}: no value", "--build-arg NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _read(source: Path, context: Path | None, arguments: dict[str, str], tools: Tools) -> tuple[Recipe, str]:
    """The recipe, and the spec of an image of sifkit's own."""
    if source.suffix == ".sif":
        from sifkit.apptainer import Apptainer
        from sifkit.importing.image import read_image

        return read_image(source, arguments, Apptainer.find(tools.runner), tools.progress)
    text = _text(source)
    if is_definition(text):
        return read_definition(str(source), text, context or source.parent, arguments), ""
    return read_dockerfile(source, text, context or _context(source, tools), arguments), ""


def _context(source: Path, tools: Tools) -> Path:
    """Of a Dockerfile in a LLaMA-Factory checkout its root, which its own files mean; else where it lies."""
    for directory in source.resolve().parents[:4]:
        if Wishes(directory, tools.tables).version_here():
            return directory
    return source.parent


def _text(source: Path) -> str:
    try:
        if source.is_dir():
            raise UsageError(f"{source} is a directory", f"name the file: {source / 'Dockerfile'}")
        with source.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise UsageError(f"{source} is no Dockerfile and no definition: too large", "images end in .sif")
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        raise UsageError(f"{source} is no text (UTF-8)", "images end in .sif") from None
    except OSError as error:
        raise UsageError(f"{source}: {error.strerror}") from None


def _write_own(text: str, name: str, output: Path | None, tools: Tools) -> None:
    """The spec that an image of sifkit's holds, under its new name."""
    renamed = re.sub(r"(?m)^name:.*$", f"name: {name}", text, count=1)
    parse(renamed, ImageSpec, "the image's own spec")
    tools.progress.note("this image was made by sifkit: its own spec")
    if output:
        write_whole(output, renamed)
    else:
        sys.stdout.write(renamed)


def _print(imported: Imported, text: str, output: Path | None, tools: Tools, *, as_json: bool) -> None:
    if as_json:
        spec = imported.spec.model_dump(mode="json", by_alias=True)
        items = [{"line": i.line, "what": i.what, "fate": i.fate, "where": i.where} for i in imported.items]
        print_json({"spec": spec, "items": items, "problem": imported.problem, "written": output is not None})
        return
    (out_console() if output else narration).print(as_table(imported))
    if output:
        tools.progress.note(f"{output}: written; next: sifkit lock {imported.spec.name}")
    else:
        sys.stdout.write(text)


def as_table(imported: Imported) -> Table:
    """Every part of the source, and what became of it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("line", "what", "", "where or why"):
        table.add_column(title, overflow="fold")
    for item in imported.items:
        line = str(item.line or "")
        table.add_row(line, Text(printable(item.what)), Text(FATES[item.fate]), Text(printable(item.where)))
    return table
