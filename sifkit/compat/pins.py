"""Pins written into a spec's file, which keeps its comments, its order and everything else that it says."""

from __future__ import annotations

from collections.abc import Mapping

import yaml

from sifkit.errors import UsageError
from sifkit.model import ImageSpec

HEAD = "# yaml-language-server: $schema=spec.schema.json\n"


def new_text(spec: ImageSpec) -> str:
    """A spec's file from nothing."""
    lines = [f"name: {spec.name}", f"llamafactory: {{version: {spec.llamafactory.version}}}"]
    lines += [f"gpu: {_flow(spec.gpu)}"] if spec.gpu else []
    lines += [f'driver: "{spec.driver}"'] if spec.driver else []
    lines += [f"extras: {_flow(spec.extras)}"] if spec.extras else []
    lines += [f"packages: {_flow(spec.packages)}"] if spec.packages else []
    return with_pins(HEAD + "\n".join(lines) + "\n", spec)


def with_pins(text: str, spec: ImageSpec) -> str:
    """`text` with base, python, torch, llamafactory and apt as in `spec`; what says the same already is not touched.

    Raises `UsageError` for a text that is no mapping.
    """
    for key, value in _pins(spec).items():
        text = _with(text, key, value)
    return text


def _pins(spec: ImageSpec) -> dict[str, str | Mapping[str, str] | None]:
    base = spec.base if isinstance(spec.base, str) else None  # written out: the user's own
    return {
        "llamafactory": {"version": spec.llamafactory.version},
        "base": base,
        "python": f'"{spec.python}"',
        "torch": {"version": spec.torch.version, "cuda": f'"{spec.torch.cuda}"'},
        "apt": _flow(spec.apt) if spec.apt else None,
    }


def _with(text: str, key: str, value: str | Mapping[str, str] | None) -> str:
    if value is None:
        return text
    node = _value_node(text, key)
    if node is None:
        shown = value if isinstance(value, str) else f"{{{', '.join(f'{k}: {v}' for k, v in value.items())}}}"
        return f"{text.rstrip()}\n{key}: {shown}\n"
    if isinstance(value, str):
        return _replaced(text, node, value) if isinstance(node, yaml.ScalarNode) else text
    if isinstance(node, yaml.ScalarNode):  # llamafactory: 0.9.5
        return _replaced(text, node, value.get("version", node.value))
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
    first = node.value[0][0].start_mark
    return f"{text[: first.index]}{inner}: {value}\n{' ' * first.column}{text[first.index :]}"


def _replaced(text: str, node: yaml.Node, value: str) -> str:
    same = isinstance(node, yaml.ScalarNode) and node.value == value.strip('"')
    return text if same else text[: node.start_mark.index] + value + text[node.end_mark.index :]


def _value_node(text: str, key: str) -> yaml.Node | None:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        raise UsageError("a spec is a file of keys and values", "begin it with name: …")
    return next((value for name, value in root.value if name.value == key), None)


def _flow(values: tuple[str, ...]) -> str:
    return yaml.safe_dump(list(values), default_flow_style=True, width=1000).strip()
