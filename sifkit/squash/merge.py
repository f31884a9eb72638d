"""Lays trees over each other: the last one wins, directories merge."""

from __future__ import annotations

from collections.abc import Iterable

from sifkit.squash.layout import Directory, Node


def merged(trees: Iterable[Directory]) -> Directory:
    """One tree of several; changes the first. A directory keeps the attributes that it got first.

    What is no directory in both is replaced whole: a file over a directory hides all that was in it.
    """
    first, *others = trees
    for tree in others:
        waiting = [(first, tree)]
        while waiting:
            below, above = waiting.pop()
            waiting += [pair for name, node in above.children.items() if (pair := _laid(below, name, node))]
    return first


def _laid(directory: Directory, name: bytes, node: Node) -> tuple[Directory, Directory] | None:
    """Put `node` into a directory; where both are directories, they are to be merged."""
    there = directory.children.get(name)
    if isinstance(there, Directory) and isinstance(node, Directory):
        return there, node
    directory.children[name] = node
    return None
