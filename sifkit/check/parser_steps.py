"""The steps of LLaMA-Factory's parser, as sifkit/data/parser has them, compiled. Reads packaged data; otherwise pure.

Expressions are Python, of a small part of its grammar that is checked before anything is compiled. Python itself
evaluates them, so that what raises a TypeError in the parser raises the same one here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

import yaml
from packaging.version import Version

_DATA = Path(__file__).parents[1] / "data" / "parser"
_GRAMMAR = (
    *(ast.Expression, ast.Constant, ast.Name, ast.Load, ast.Store, ast.Attribute, ast.Call, ast.Subscript, ast.Slice),
    *(ast.List, ast.Tuple, ast.Dict, ast.ListComp, ast.DictComp, ast.GeneratorExp, ast.comprehension, ast.IfExp),
    *(ast.BoolOp, ast.boolop, ast.UnaryOp, ast.unaryop, ast.BinOp, ast.operator, ast.Compare, ast.cmpop),
)
_METHODS = frozenset({"copy", "endswith", "get", "items", "split", "startswith", "strip", "upper"})


@dataclass(frozen=True)
class Expression:
    """Python that was read and found harmless. `names`: what it looks at, in its order."""

    text: str
    code: CodeType
    names: tuple[str, ...]

    def value(self, names: dict[str, Any]) -> Any:
        """Its value. Raises what Python raises."""
        names["__builtins__"] = {}  # else Python puts its own there
        return eval(self.code, names)


@dataclass(frozen=True)
class Step:
    """What the parser does at one place: change arguments (`let`), refuse, or ask for a package."""

    id: str
    when: Expression | None
    let: tuple[tuple[str, Expression], ...]
    refuse: Expression | None
    package: str | None  # a requirement, as check_version takes it
    raises: str
    says: str
    keys: tuple[str, ...]
    fix: str | None
    since: str | None
    until: str | None
    source: str

    def names(self) -> tuple[str, ...]:
        """The arguments that it is about."""
        return self.keys or tuple(dict.fromkeys(self.looks_at()))

    def looks_at(self) -> Iterator[str]:
        """The names in its expressions."""
        for expression in (self.when, self.refuse, *(each for _, each in self.let)):
            yield from expression.names if expression else ()

    def is_of(self, version: Version) -> bool:
        """Whether a program of this version takes the step."""
        since, until = self.since, self.until
        return not (since and version < Version(since)) and not (until and version >= Version(until))


@lru_cache
def steps_of(file: str, section: str) -> tuple[Step, ...]:
    """The steps of a section of a file of sifkit/data/parser, in their order."""
    part = read_data(file)[section]
    return tuple(_step(row, part["source"]) for row in part["steps"])


@lru_cache
def read_data(file: str) -> Any:
    """A file of sifkit/data/parser, as YAML has it."""
    fast = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, and not in every build of PyYAML
    return yaml.load((_DATA / file).read_text(encoding="utf-8"), Loader=fast)


def _step(row: Mapping[str, Any], source: str) -> Step:
    unknown = set(row) - {"id", "when", "let", "refuse", "package", "raises", "says", "keys", "fix", "since", "until"}
    if unknown:
        raise ValueError(f"step {row['id']}: unknown {sorted(unknown)}")
    return Step(
        id=row["id"],
        when=compiled(row["when"]) if "when" in row else None,
        let=tuple((name, compiled(str(text))) for name, text in row.get("let", {}).items()),
        refuse=compiled(row["refuse"]) if "refuse" in row else None,
        package=row.get("package"),
        raises=row.get("raises", "ValueError"),
        says=row.get("says", ""),
        keys=tuple(row.get("keys", ())),
        fix=row.get("fix"),
        since=row.get("since"),
        until=row.get("until"),
        source=source,
    )


@cache
def compiled(text: str) -> Expression:
    """Read an expression. Raises `ValueError` for one outside the grammar."""
    tree = ast.parse(text, mode="eval")
    for node in ast.walk(tree):
        strange = not isinstance(node, _GRAMMAR) or (isinstance(node, ast.Attribute) and node.attr not in _METHODS)
        if strange:
            raise ValueError(f"not for a step of the parser: {ast.unparse(node)!r} in {text!r}")
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    bound = {node.id for node in nodes if isinstance(node.ctx, ast.Store)}  # in comprehensions
    names = [node.id for node in nodes if node.id not in bound]
    return Expression(text, compile(tree, "<step>", "eval"), tuple(dict.fromkeys(names)))
