"""`sifkit explain`: a training YAML key by key, by the image's own LLaMA-Factory."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from sifkit import explain as explaining
from sifkit.apptainer import Apptainer
from sifkit.check.facts import Argument, ImageFacts
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
from sifkit.errors import Exit, UsageError
from sifkit.explain import Explained, default_text, shortened
from sifkit.gather.image import file_identity, image_facts, require_image, require_parser
from sifkit.gather.image_record import identity_of
from sifkit.printable import printable
from sifkit.progress import progress_for
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.spec import DEFAULT_IMAGE
from sifkit.yamlfile import load_entries


def explain(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG|KEY]", help="a training YAML, or the name of an argument")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="every argument that there is")] = False,
    search: Annotated[str | None, typer.Option(metavar="WORDS", help="arguments whose name or help holds them")] = None,
    image: Annotated[
        str, typer.Option(help="an image's name, or a .sif: whose LLaMA-Factory is asked")
    ] = DEFAULT_IMAGE,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Explain a training YAML key by key: value, meaning, type, default, choices.

    Read from the LLaMA-Factory in the image, so that it is right for that version; the first time takes 10 to 30
    seconds, then the answer is cached.

    Exit code 1: a key is unknown, or a value does not fit.
    """
    if (config is not None) + all_ + (search is not None) != 1:
        raise UsageError("there is nothing, or too much, to explain", "give one of: CONFIG, KEY, --all, --search WORDS")
    entries = load_entries(Path(config)) if config is not None and not _is_key(config) else ()
    known = _arguments(image, project, site_file, verbose)
    if config is not None and not _is_key(config):
        _explain_config(config, explaining.explain(entries, known), known, json_)
        return
    if search is not None:
        found: Sequence[Argument] = explaining.search(known, search)
    else:
        found = known.arguments if all_ else (_named(str(config), known),)
    if json_:
        print_json([dataclasses.asdict(argument) for argument in found])
    else:
        out_console().print(_argument_table(found, full=len(found) == 1))
    if not found:
        raise UsageError(f"no argument holds {search!r}", "search for fewer letters: --search rate; or see --all")


def _is_key(word: str) -> bool:
    return re.fullmatch(r"[A-Za-z_]\w*", word) is not None and not Path(word).exists()


def _named(key: str, known: ImageFacts) -> Argument:
    argument = known.argument(key)
    if argument is None:
        near = difflib.get_close_matches(key, [each.name for each in known.arguments], n=1)
        fix = f"did you mean {near[0]}?" if near else f"search for it: sifkit explain --search {key}"
        raise UsageError(f"{key}: no such file, and LLaMA-Factory {known.llamafactory} knows no such key", fix)
    return argument


def _arguments(image: str, project: Path | None, site_file: Path | None, verbose: bool) -> ImageFacts:
    """Of a project's image by its sha256, of any other .sif by its place, size and time. A .sif needs no project."""
    if image.endswith(".sif"):
        sif = Path(image)
        runner, cache, progress = Runner(os.environ), user_cache(os.environ), progress_for(narration, verbose=verbose)
        require_image(sif)
        identity = file_identity(sif)
    else:
        tools = make_tools(project, site_file, verbose)
        name = image_name(image, tools)
        sif, runner, cache, progress = tools.store.sif(name), tools.runner, tools.cache, tools.progress
        require_image(sif)
        identity = identity_of(tools.store, name)
    facts = image_facts(sif.absolute(), identity, cache, lambda: Apptainer.find(runner), progress)
    require_parser(facts)
    return facts


# ---------------------------------------------------------------------------------------------- showing


def _explain_config(config: str, rows: Sequence[Explained], known: ImageFacts, as_json: bool) -> None:
    if as_json:
        print_json({"config": config, "llamafactory": known.llamafactory, "keys": [_row_json(row) for row in rows]})
    else:
        out_console().print(_config_table(rows))
        for row in rows:
            if row.problem:
                said = (
                    f"{config}:{row.line}: {row.key}: {row.shown} {row.problem}"
                    if row.argument
                    else (f"{config}:{row.line}: {row.key}: {row.problem}")
                )
                narration.print(printable(said), style="red", markup=False, highlight=False, soft_wrap=True)
    if any(row.problem for row in rows):
        raise typer.Exit(Exit.PROBLEM)


def _row_json(row: Explained) -> dict[str, Any]:
    said = {"key": row.key, "line": row.line, "value": row.value, "problem": row.problem}
    return {**said, "argument": dataclasses.asdict(row.argument) if row.argument else None}


def _config_table(rows: Sequence[Explained]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("line", "key", "value", "default", "meaning"):
        table.add_column(title, justify="right" if title == "line" else "left", overflow="fold")
    for row in rows:
        style = "red" if row.problem else ""
        argument = row.argument
        default = default_text(argument) if argument else ""
        meaning = _meaning(argument, full=False) if argument else Text("unknown", style)
        table.add_row(str(row.line), Text(printable(row.key), style), Text(_short(row.shown), style), default, meaning)
    return table


def _short(text: str, most: int = 60) -> str:
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def _meaning(argument: Argument, *, full: bool) -> Text:
    choices = [str(choice) for choice in argument.choices]
    listed = f" One of: {', '.join(choices) if full else shortened(choices)}." if choices else ""
    return Text.assemble(printable(argument.help), listed, (f" [{argument.type}]", "dim"))


def _argument_table(arguments: Sequence[Argument], *, full: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("key", "default", "meaning"):
        table.add_column(title, overflow="fold")
    for argument in arguments:
        table.add_row(Text(argument.name), Text(_short(default_text(argument))), _meaning(argument, full=full))
    return table
