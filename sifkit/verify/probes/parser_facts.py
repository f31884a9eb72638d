"""What this LLaMA-Factory takes from a training YAML. Imported by imports.py, inside the container.

Read from the dataclasses that `llamafactory-cli train` itself parses with, transformers' training arguments among
them. A help that the field's metadata lack is taken from the class's own docstring.
"""

import dataclasses
import enum
import inspect
import re
import types
import typing


def arguments():
    """What `llamafactory-cli train` parses a YAML into."""
    from llamafactory.hparams import parser

    kinds = parser._TRAIN_ARGS
    return {
        "arguments": _arguments(kinds),
        "derived": sorted({f.name for kind in kinds for f in dataclasses.fields(kind) if not f.init}),
    }


def names():
    """Templates, models, architectures: what LLaMA-Factory and transformers know by name.

    Its data package imports more than its parser: audio and video libraries.
    """
    from llamafactory.data.template import TEMPLATES
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    return {"templates": sorted(TEMPLATES), "models": _models(), "model_types": sorted(CONFIG_MAPPING_NAMES)}


def _models():
    """The template of each model that LLaMA-Factory lists, by hub id; "" where it names none."""
    from llamafactory.extras.constants import DEFAULT_TEMPLATE, SUPPORTED_MODELS

    found = {}
    for name, sources in SUPPORTED_MODELS.items():
        for hub_id in sources.values():
            found[hub_id] = found.get(hub_id) or DEFAULT_TEMPLATE.get(name, "")
    return found


def _arguments(kinds):
    found = {}
    for kind in kinds:
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.init:  # HfArgumentParser.parse_dict takes these keys and no others
                found.setdefault(field.name, _argument(field, hints[field.name], kind))
    return list(found.values())


def _argument(field, hint, kind):
    owner = _owner(field.name, kind)
    choices = field.metadata.get("choices") or _choices(hint)
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
