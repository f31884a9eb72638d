"""`sifkit rule`: the page of a rule of `sifkit check`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from sifkit.check.pages import page, rule_json
from sifkit.check.rule import Rule, all_rules
from sifkit.check.select import parse_codes
from sifkit.commands.options import JsonOption, out_console, print_json
from sifkit.errors import UsageError


def rule(
    codes: Annotated[list[str] | None, typer.Argument(metavar="[CODE]…", help="CFG003, a family (CFG), a name")] = None,
    all_: Annotated[bool, typer.Option("--all", help="every rule")] = False,
    json_: JsonOption = False,
) -> None:
    """Explain a rule of `sifkit check`: what it catches, the message it prevents, why, how to fix it, the source."""
    known = all_rules()
    if not codes and not all_:
        raise UsageError("no rule is named", "give a code (sifkit rule CFG002), or see all: sifkit rule --all")
    wanted = parse_codes(codes or ["ALL"], known, "sifkit rule")
    found = [each for code, each in known.items() if any(code.startswith(w) or w == "ALL" for w in wanted)]
    if json_:
        print_json(rule_json(found))
    elif len(found) == 1 or not (all_ or any(len(word) == 3 for word in wanted)):
        sys.stdout.write("\n".join(page(each) for each in found))
    else:
        out_console().print(_table(found))


def _table(found: list[Rule]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("code", "rule", "severity", "catches"):
        table.add_column(title, overflow="fold")
    for each in found:
        table.add_row(each.code, each.name, each.severity.value, Text(each.catches))
    return table
