"""A page for every rule, from the rule itself: what `sifkit rule CODE` prints and what stands in docs/rules/. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sifkit.check.rule import FAMILIES, Rule, Severity

_MEANING = {
    Severity.ERROR: "the run fails, or does not do what the YAML says",
    Severity.WARNING: "the run may fail, or wastes time or memory",
    Severity.INFO: "an estimate, to be read",
}


_WORD = re.compile(r"(?!mkdir|export|ulimit|apptainer)[A-Za-z]+(?=[ ,;'-]|: )")
_PROGRAM = re.compile(r"(datasets|deepspeed|srun|torch|torchrun|transformers|triton) ")  # they are written small


def page(rule: Rule) -> str:
    """Markdown: what it catches, the message that it prevents, why, how to mend it, where the facts were read."""
    needs = ", ".join(sorted(kind.value for kind in rule.needs)) or "nothing"
    parts = [
        f"# {rule.code} {rule.name}",
        rule.catches,
        f"Severity: **{rule.severity.value}** ({_MEANING[rule.severity]}). Asks facts of: {needs}.",
        "## What it prevents",
        _quoted(rule.prevents),
        "## Why it happens",
        _sentence(rule.why),
        "## How to fix it",
        _sentence(rule.fix) if _WORD.match(rule.fix) else rule.fix,  # a line to copy stays as it is
        "## Where this was read",
        rule.source,
    ]
    if rule.rows:
        rows = ", ".join(str(row) for row in rule.rows)
        parts.append(f"In the [catalogue of failures](../failures.md): row {rows}.")
    parts.append(f"To leave it out of one YAML: `# sifkit: ignore[{rule.code}]` behind the key.")
    return "\n\n".join(parts) + "\n"


def _sentence(text: str) -> str:
    """With a capital, where it begins with a word of everyday, and a full stop."""
    plain = _WORD.match(text) and not _PROGRAM.match(text)
    whole = text[0].upper() + text[1:] if plain else text
    return whole if whole.endswith((".", "…")) else f"{whole}."


def _quoted(message: str) -> str:
    return "```\n" + message.strip("\n") + "\n```"


def index(rules: Mapping[str, Rule]) -> str:
    """The table of all rules, by family."""
    parts = ["# Rules", "Made from the rules themselves: `make rules`. One of them: `sifkit rule CODE`."]
    for family, meaning in FAMILIES.items():
        found = [rule for rule in rules.values() if rule.family == family]
        if found:
            rows = [f"| [{r.code}]({r.code}.md) | {r.name} | {r.severity.value} | {_cell(r.catches)} |" for r in found]
            head = ["| code | rule | severity | catches |", "|---|---|---|---|"]
            parts += [f"## {family}: {meaning}", "\n".join([*head, *rows])]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def pages(rules: Mapping[str, Rule]) -> dict[str, str]:
    """Every file of docs/rules/, by its name."""
    return {"README.md": index(rules), **{f"{code}.md": page(rule) for code, rule in rules.items()}}


def rule_json(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """For programs."""
    return [
        {
            "code": rule.code,
            "rule": rule.name,
            "severity": rule.severity.value,
            "needs": sorted(kind.value for kind in rule.needs),
            "catches": rule.catches,
            "prevents": rule.prevents,
            "why": rule.why,
            "fix": rule.fix,
            "source": rule.source,
            "failures": list(rule.rows),
        }
        for rule in rules
    ]
