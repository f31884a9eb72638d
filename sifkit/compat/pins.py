"""Pins written into a spec's file, which keeps its comments, its order and everything else that it says."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from sifkit.errors import UsageError
from sifkit.model import ImageSpec
from sifkit.yamlfile import parse

HEAD = "# yaml-language-server: $schema=spec.schema.json\n"


def new_text(spec: ImageSpec) -> str:
    """A spec's file from nothing."""
    return with_pins(f"{HEAD}name: {spec.name}\n", spec)


def with_pins(text: str, spec: ImageSpec, file: str = "the spec") -> str:
    """`text` saying what `spec` says; what it says already is not touched, comments and order stay.

    Raises `UsageError` with the lines to write by hand for a text that cannot be completed in place.
    """
    values = _values(spec)
    try:
        for key, value in values.items():
            text = _with(text, key, value)
        if parse(text, ImageSpec, file) == spec:
            return text
    except (UsageError, yaml.YAMLError):
        pass  # an anchor, a flow mapping around all, a comment in a brace: said below
    lines = "\n".join(f"{key}: {_shown(value)}" for key, value in values.items() if value is not None)
    raise UsageError(f"{file} cannot be completed in place; it stays as it is", f"write into it yourself:\n{lines}")


def _values(spec: ImageSpec) -> dict[str, str | Mapping[str, str] | None]:
    """What is written, as YAML; None: nothing to say."""
    base = spec.base if isinstance(spec.base, str) else None  # written out: the user's own
    return {
        "llamafactory": {"version": spec.llamafactory.version},
        "gpu": _flow(spec.gpu) if spec.gpu else None,
        "driver": f'"{spec.driver}"' if spec.driver else None,
        "extras": _flow(spec.extras) if spec.extras else None,
        "packages": _flow(spec.packages) if spec.packages else None,
        "base": base,
        "python": f'"{spec.python}"',
        "torch": {"version": spec.torch.version, "cuda": f'"{spec.torch.cuda}"'},
        "apt": _flow(spec.apt) if spec.apt else None,
    }


def _shown(value: str | Mapping[str, str]) -> str:
    return value if isinstance(value, str) else f"{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}"


def _with(text: str, key: str, value: str | Mapping[str, str] | None) -> str:
    if value is None:
        return text
    node = _value_node(text, key)
    if node is None:
        return f"{text.rstrip()}\n{key}: {_shown(value)}\n"
    if isinstance(value, str):
        return _replaced(text, node, value)
    if isinstance(node, yaml.ScalarNode):  # llamafactory: 0.9.5, or nothing after the colon
        return _replaced(text, node, value["version"] if node.value else _shown(value))
    for inner, inner_value in value.items():
        text = _with_inner(text, key, inner, inner_value)
    return text


def _with_inner(text: str, key: str, inner: str, value: str) -> str:
    node = _value_node(text, key)
    assert isinstance(node, yaml.MappingNode)
    for name, child in node.value:
        if name.value == inner:
            return _replaced(text, child, value)
    if node.flow_style:
        end = node.end_mark.index - 1  # before the brace
        body = text[node.start_mark.index + 1 : end].strip()
        return f"{text[: node.start_mark.index]}{{{body}{', ' if body else ''}{inner}: {value}{text[end:]}"
    last, column = _end(node.value[-1][1]), node.value[0][0].start_mark.column
    rest = text[last:].partition("\n")  # a comment behind the last value stays there
    return f"{text[:last]}{rest[0]}\n{' ' * column}{inner}: {value}{rest[1]}{rest[2]}"


def _replaced(text: str, node: yaml.Node, value: str) -> str:
    """The node's own text replaced; one that says the same already is left as it was written."""
    if yaml.SafeLoader("").construct_document(node) == yaml.safe_load(value):
        return text
    start, end = node.start_mark.index, _end(node)
    blank = " " if text[start - 1 : start] == ":" else ""  # nothing stood after the colon
    return f"{text[:start]}{blank}{value}{text[end:]}"


def _end(node: yaml.Node) -> int:
    """Where the node's own text ends: a block's mark is at whatever comes after it."""
    if isinstance(node, yaml.SequenceNode) and not node.flow_style and node.value:
        return _end(node.value[-1])
    end: int = node.end_mark.index
    return end


def _value_node(text: str, key: str) -> yaml.Node | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError("a spec is a file of keys and values", "begin it with name: …")
    return next((value for name, value in root.value if name.value == key), None)


def _flow(values: tuple[str, ...]) -> str:
    return yaml.safe_dump(list(values), default_flow_style=True, width=1000, allow_unicode=True).strip()
