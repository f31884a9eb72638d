"""CFG001: a training YAML that cannot be read; every other rule then has nothing to look at."""

from __future__ import annotations

from collections.abc import Iterator

from sifkit.check.facts import Facts
from sifkit.check.rule import Found, rule


@rule(
    "CFG001",
    "unreadable",
    of_config=False,
    prevents="yaml.scanner.ScannerError: mapping values are not allowed here",
    why="The file is not a YAML of keys and values that LLaMA-Factory could read: it is missing, not text, not YAML, "
    "a list, or so large that it is no training config.",
    fix="Correct the line that is named, or name another file.",
    source="llamafactory/hparams/parser.py, read_args (0.9.3 to 0.9.5); PyYAML",
)
def unreadable(facts: Facts) -> Iterator[Found]:
    """A training YAML that cannot be read as keys and values."""
    problem = facts.config.problem
    if problem is not None:
        fix = problem.fix or "correct it, or name another file"
        yield Found(problem.message, fix, file=facts.config.path, line=problem.line)
