"""The text of an imported spec: its pins, what was kept, and above them what was not taken over."""

from __future__ import annotations

from typing import Any

import yaml

from sifkit.compat.pins import HEAD
from sifkit.importing.convert import Imported
from sifkit.model import ImageSpec
from sifkit.yamlfile import parse

_FATES = {"changed": "changed", "left": "left out", "site": "for the site file"}
_TEXT = "tag:yaml.org,2002:str"
_FLOW = ("torch", "llamafactory", "extras", "packages", "apt", "base")


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    plain = dumper.resolve(yaml.ScalarNode, value, (True, False)) == _TEXT  # type: ignore[no-untyped-call]
    style = "|" if "\n" in value else None if plain else '"'
    return dumper.represent_scalar(_TEXT, value, style=style)


_Dumper.add_representer(str, _text)


def write(imported: Imported) -> str:
    """A file that reads back as the same spec."""
    spec = imported.spec
    text = "".join([HEAD, _comments(imported), *(_entry(key, value) for key, value in _values(spec))])
    assert parse(text, ImageSpec, f"{spec.name}.yaml") == spec
    return text


def _values(spec: ImageSpec) -> list[tuple[str, Any]]:
    values = spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    keys = ("name", "base", "python", "torch", "llamafactory", "extras", "packages", "sdists", "apt", "env", "sections")
    return [(key, values[key]) for key in keys if values.get(key)]


def _entry(key: str, value: Any) -> str:
    flow = key in _FLOW and not isinstance(value, str)
    text = yaml.dump(
        value if flow else {key: value},
        Dumper=_Dumper, default_flow_style=flow, sort_keys=False, width=10_000, allow_unicode=True,
    )  # fmt: skip
    return f"{key}: {text}" if flow else text


def _comments(imported: Imported) -> str:
    """What a reader of the spec cannot see in it."""
    rows = [f"# From {imported.file.rpartition('/')[2]}, by `sifkit import`."]
    for item in imported.items:
        if item.fate in _FATES:
            where = f"line {item.line}: " if item.line else ""
            rows.append(f"#   {where}{item.what}: {_FATES[item.fate]}: {item.where}")
    return "\n".join(_one_line(row) for row in rows) + "\n"


def _one_line(text: str) -> str:
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain if len(plain) <= 240 else f"{plain[:239]}…"
