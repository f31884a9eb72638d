"""`--fix`: changes of a training YAML that keep everything else of it, comments and order included. Pure.

A value is replaced where it stands, by the marks that PyYAML leaves on its nodes; nothing is written anew from data.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import yaml

from sifkit.check.rule import Edit

_COMMENTS = re.compile(r"(?:^[ \t]*(?:#[^\n]*)?(?:\n|\Z))+\Z", re.MULTILINE)  # and empty lines, at the end


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits made; of several for one key, the first. What cannot be placed is left out."""
    chosen: dict[str, Edit] = {}
    for edit in edits:
        chosen.setdefault(edit.key, edit)
    spans, added = _spans(text, chosen)
    for start, end, new in sorted(spans, reverse=True):
        text = text[:start] + new + text[end:]
    return _with_lines(text, added)


def _spans(text: str, edits: dict[str, Edit]) -> tuple[list[tuple[int, int, str]], list[str]]:
    """Parts of the text to replace, and lines to add."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    nodes = {key.value: (key, value) for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    lines = _takes_lines(text, root)
    spans: list[tuple[int, int, str]] = []
    added: list[str] = []
    for edit in edits.values():
        removes = edit.value is None and edit.rename is None
        if edit.key in nodes and (lines or not removes):
            spans += _changes(text, *nodes[edit.key], edit)
        elif edit.key not in nodes and edit.value is not None and edit.rename is None and lines:
            added.append(f"{edit.key}: {edit.value}")
    return spans, added


def _changes(text: str, key: yaml.Node, value: yaml.Node, edit: Edit) -> list[tuple[int, int, str]]:
    """PyYAML's marks count the characters of the text that it was given."""
    start, end = value.start_mark.index, _end(text, value)
    elsewhere = start < key.end_mark.index or text[start : start + 1] == "&"  # an alias, or what aliases stand for
    if elsewhere and (edit.value is not None or edit.rename is None):
        return []
    if edit.value is None and edit.rename is None:
        return [(*_whole_lines(text, key.start_mark.index, end), "")]
    changes = []
    if edit.rename is not None:
        changes.append((key.start_mark.index, key.end_mark.index, edit.rename))
    if edit.value is not None:
        before = text[key.end_mark.index : start]
        below = before.startswith(":") and "\n" in before and not before[1:].strip()
        start = key.end_mark.index + 1 if below else start  # onto the key's own line
        changes.append((start, end, f" {edit.value}" if below or start == end else edit.value))
    return changes


def _end(text: str, node: yaml.Node) -> int:
    """Behind its last letter. PyYAML takes what follows a block for its end: line breaks, comments."""
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.ScalarNode):
        return start + len(text[start:end].rstrip()) if node.style in ("|", ">") else end
    if not isinstance(node, yaml.CollectionNode) or node.flow_style or not node.value:
        return end
    last = node.value[-1]
    ends = [_end(text, part) for part in (last if isinstance(last, tuple) else (last,))]
    inside = [each for each in ends if start < each <= end]  # an alias ends where its anchor does
    return max(inside) if len(inside) == len(ends) else start + len(_COMMENTS.sub("", text[start:end]).rstrip())


def _whole_lines(text: str, start: int, end: int) -> tuple[int, int]:
    """From the line's start to its end, a comment behind the value included."""
    first = text.rfind("\n", 0, start) + 1
    if end > start and text[end - 1] == "\n":
        return first, end
    last = text.find("\n", end)
    return first, len(text) if last < 0 else last + 1


def _takes_lines(text: str, root: yaml.Node | None) -> bool:
    """Whether a line at the end is a key of the mapping: not behind `{…}` on one line, nor after `...`."""
    flow = isinstance(root, yaml.MappingNode) and root.flow_style
    return not flow and "\n..." not in text


def _with_lines(text: str, lines: list[str]) -> str:
    newline = "\r\n" if "\r\n" in text else "\n"
    start = newline if lines and text and not text.endswith("\n") else ""
    return text + start + "".join(f"{line}{newline}" for line in lines)


def diff_of(before: str, after: str, file: str) -> str:
    """As `diff -u` shows it."""
    lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), file, file)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)
