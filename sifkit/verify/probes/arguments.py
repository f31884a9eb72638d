"""Every argument that this LLaMA-Factory takes from a training YAML. Runs inside the container.

    python3 arguments.py ANSWER.json

Read from the dataclasses that `llamafactory-cli train` itself parses with, transformers' training arguments among
them. A help that the field's metadata lack is taken from the class's own docstring.
"""

import dataclasses
import enum
import inspect
import json
import re
import sys
import types
import typing
from importlib.metadata import version


def main(answer_path):
    """Ask, and write the answer."""
    from llamafactory.hparams import parser

    arguments = {}
    for kind in parser._TRAIN_ARGS:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.init:  # HfArgumentParser.parse_dict takes these keys and no others
                arguments.setdefault(field.name, _argument(field, hints[field.name], kind))
    answer = {
        "versions": {name: version(name) for name in ("llamafactory", "transformers")},
        "arguments": list(arguments.values()),
        "derived": sorted({f.name for kind in parser._TRAIN_ARGS for f in dataclasses.fields(kind) if not f.init}),
    }
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump(answer, file)


def _argument(field, hint, kind):
    owner = _owner(field.name, kind)
    choices = field.metadata.get("choices") or _choices(hint) or _templates(field.name)
    return {
        "name": field.name,
        "group": kind.__name__,
        "declared": owner.__module__ + "." + owner.__qualname__,
        "type": _type_name(hint),
        "help": " ".join((field.metadata.get("help") or _documented(field.name, owner)).split()),
        "required": field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
        "default": _default(field),
        "choices": [_plain(choice) for choice in choices],
    }


def _owner(name, kind):
    """The class that declares the field: the outermost that annotates it."""
    return next(cls for cls in kind.__mro__ if name in inspect.get_annotations(cls))


def _choices(hint):
    """What a Literal or an Enum allows, inside Optional and Union too."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value for member in hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [choice for inner in typing.get_args(hint) for choice in _choices(inner)]
    return []


def _templates(name):
    """The names that `template` may have; they stand in a registry, not in the argument's type."""
    if name != "template":
        return []
    from llamafactory.data.template import TEMPLATES

    return sorted(TEMPLATES)


def _type_name(hint):
    """As a person writes it: `int | None`, `list[str]`; a Literal or Enum as the type of its choices."""
    if hint is type(None):
        return "null"
    origin = typing.get_origin(hint)
    if origin is typing.Literal or (isinstance(hint, type) and issubclass(hint, enum.Enum)):
        return " | ".join(dict.fromkeys(type(choice).__name__ for choice in _choices(hint)))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type_name(inner) for inner in typing.get_args(hint)))
    if origin is not None:
        inner = ", ".join(_type_name(each) for each in typing.get_args(hint))
        return origin.__name__ + (f"[{inner}]" if inner else "")
    return getattr(hint, "__name__", None) or str(hint).removeprefix("typing.")


def _documented(name, cls):
    """The paragraph on a parameter in the class's docstring (transformers writes `name (type, …):` and indents)."""
    text = inspect.cleandoc(cls.__doc__ or "")
    found = re.search(rf"^( *){name} \(.*?\):[ ]*\n((?:\1[ ]+\S.*\n?|[ ]*\n)+)", text, re.MULTILINE)
    return found[2] if found else ""


def _default(field):
    if field.default is not dataclasses.MISSING:
        return _plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return _plain(field.default_factory())
    return None


def _plain(value):
    """A value as JSON has it; an Enum by its value, anything else as Python shows it."""
    if isinstance(value, enum.Enum):
        return _plain(value.value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)


if __name__ == "__main__":
    main(*sys.argv[1:])
