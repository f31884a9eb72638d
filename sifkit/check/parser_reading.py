"""A training YAML and its overrides, read as LLaMA-Factory reads them. Pure.

From 0.9.4 on LLaMA-Factory loads with OmegaConf, before with PyYAML; both merge overrides with OmegaConf, and neither
resolves `${…}` (hparams/parser.py: read_args). OmegaConf itself is imported only for what it alone can judge, since
that takes longer than all the rest: `${…}`, anchors, tags, overrides of parts. Plain text is read by its rules here.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

from sifkit.check.facts import Entry, Problem

_OMEGACONF = Version("0.9.4")  # the first that loads YAML with it
_LONGEST = 10_000  # bits
MAX_NODES = 10_000  # omegaconf/_yaml.py; aliases count each time: "billion laughs" stops here
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = frozenset(_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map"))
_PLAIN_KEYS = frozenset(_TAG + name for name in ("str", "int", "float", "bool"))
_SIMPLE_OVERRIDE = re.compile(r"(?P<key>[A-Za-z_]\w*)(=(?P<value>.*))?", re.DOTALL)


class Unreadable(Exception):
    """LLaMA-Factory cannot read this either."""

    def __init__(self, message: str, fix: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(message, fix, line)


@dataclass(frozen=True)
class Reading:
    """What was read: the top keys as they stand in the file, and the values after overriding."""

    entries: tuple[Entry, ...]
    values: dict[str, Any]


class _OmegaLoader(yaml.SafeLoader):
    """OmegaConf's reading of plain text (omegaconf/_yaml.py: get_yaml_loader): 1e-4 is a number, a date is text."""


_OmegaLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TAG + "timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_OmegaLoader.add_implicit_resolver(
    _TAG + "float",
    re.compile(
        r"""^(?:
         [-+]?[0-9]+(?:_[0-9]+)*\.[0-9_]*(?:[eE][-+]?[0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*(?:[eE][-+]?[0-9]+)
        |\.[0-9]+(?:_[0-9]+)*(?:[eE][-+][0-9]+)?
        |[-+]?[0-9]+(?:_[0-9]+)*(?::[0-5]?[0-9])+\.[0-9_]*
        |[-+]?\.(?:inf|Inf|INF)
        |\.(?:nan|NaN|NAN))$""",
        re.VERBOSE,
    ),
    list("-+0123456789."),
)


def loads_with_omegaconf(llamafactory: str | None) -> bool:
    """Whether this LLaMA-Factory reads 1e-4 as a number. Of one that is not known: as the newest does."""
    try:
        return llamafactory is None or Version(llamafactory) >= _OMEGACONF
    except InvalidVersion:
        return True


def read(text: str, overrides: Sequence[str], llamafactory: str | None) -> Reading:
    """Read a config's text. Raises `Unreadable` for what LLaMA-Factory cannot read, and for keys that stand twice."""
    omega = loads_with_omegaconf(llamafactory)
    loader = _OmegaLoader if omega else yaml.SafeLoader
    node = _composed(text, loader)
    if not isinstance(node, (yaml.MappingNode, type(None))):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "plain text"
        raise Unreadable(f"expected keys and values, found {found}", "write one KEY: VALUE a line", 1)
    _refuse_large(node)
    _refuse_twice(node)
    plain = "${" not in text and not any("${" in each or "???" in each for each in overrides) and _is_plain(node)
    values = _plain_values(node, overrides, loader) if plain and (omega or node) else None
    if values is None:
        values = _by_omegaconf(text, overrides, omega)
    _refuse_endless(values)
    return Reading(tuple(_entries(node, values)), values)


def _composed(text: str, loader: type[yaml.SafeLoader]) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        raise _unreadable(error) from None
    except RecursionError:
        raise Unreadable("nested too deeply", "is this the file you meant?") from None
    except (yaml.YAMLError, ValueError) as error:
        raise Unreadable(f"not YAML: {(str(error) or repr(error)).splitlines()[0]}") from None


def _unreadable(error: yaml.MarkedYAMLError) -> Unreadable:
    line = error.problem_mark.line + 1 if error.problem_mark else None
    said = error.problem or error.context or ""
    if "end of stream" in said and error.context_mark:  # a quote that is never closed: where it begins
        line, said = error.context_mark.line + 1, f"{said} {error.context}"
    whole = f"{error.context}, {said}" if said.startswith("but ") else said
    return Unreadable(f"not YAML: {whole}", "correct this line", line)


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (part for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _refuse_large(node: yaml.Node | None) -> None:
    """Walks with a limit, so that neither aliases that multiply nor one that holds itself take time."""
    left = [node] if node else []
    count = 0
    while left:
        count += 1
        if count > MAX_NODES:
            raise Unreadable(f"more than {MAX_NODES} values, aliases counted each time", "is this the file you meant?")
        left.extend(_children(left.pop()))


def _refuse_endless(values: dict[str, Any]) -> None:
    """A hexadecimal number may be longer than Python writes in decimals (sys.get_int_max_str_digits)."""
    for key, value in values.items():
        if isinstance(value, int) and value.bit_length() > _LONGEST:
            raise Unreadable(f"{key} is a number with thousands of digits", "is this the file you meant?")


def _refuse_twice(node: yaml.Node | None) -> None:
    if node is None:
        return
    for child in _children(node):
        _refuse_twice(child)
    if not isinstance(node, yaml.MappingNode):
        return
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise Unreadable("a key must be plain text", "write one KEY: VALUE a line", line)
        if key.tag != _TAG + "str":
            continue
        if key.value in first:
            raise Unreadable(f"{key.value} stands twice (first on line {first[key.value]})", "keep one", line)
        first[key.value] = line


def _is_plain(node: yaml.Node | None) -> bool:
    """Nothing in it needs OmegaConf: no anchors that are used, no merges, no tags beyond YAML's plain ones."""
    left, seen = [node] if node else [], set()
    while left:
        each = left.pop()
        keys = [key.tag for key, _ in each.value] if isinstance(each, yaml.MappingNode) else []
        if each in seen or each.tag not in _PLAIN_TAGS or any(tag not in _PLAIN_KEYS for tag in keys):
            return False
        seen.add(each)
        left.extend(_children(each))
    return True


def _plain_values(
    node: yaml.Node | None, overrides: Sequence[str], loader: type[yaml.SafeLoader]
) -> dict[str, Any] | None:
    """None: OmegaConf has to do it after all, since an override reaches into a value or replaces a part of one."""
    values: dict[str, Any] = _constructed(node, loader) if node else {}
    for override in overrides:
        found = _SIMPLE_OVERRIDE.fullmatch(override)
        if not found or isinstance(values.get(found["key"]), (dict, list)):
            return None
        new_node = _composed(found["value"] or "", _OmegaLoader)
        if new_node is not None and (not isinstance(new_node, yaml.ScalarNode) or not _is_plain(new_node)):
            return None
        values[found["key"]] = _constructed(new_node, _OmegaLoader) if new_node else None
    return values


def _constructed(node: yaml.Node, loader: type[yaml.SafeLoader]) -> Any:
    try:
        return loader("").construct_document(node)
    except (yaml.YAMLError, ValueError, KeyError, IndexError) as error:  # a number that is none: 0b_
        said = (str(error) or repr(error)).splitlines()[0]
        raise Unreadable(f"not YAML: {said}", None, node.start_mark.line + 1) from None


def _by_omegaconf(text: str, overrides: Sequence[str], omega: bool) -> dict[str, Any]:
    from omegaconf import OmegaConf  # 0.2 s

    try:
        given = OmegaConf.from_cli(list(overrides))
        base = OmegaConf.load(io.StringIO(text)) if omega else yaml.safe_load(text)
        values = OmegaConf.to_container(OmegaConf.merge(base, given))
    except yaml.MarkedYAMLError as error:
        raise _unreadable(error) from None
    except RecursionError:
        raise Unreadable("nested too deeply", "is this the file you meant?") from None
    except Exception as error:  # OmegaConf raises what Python raises, beside its own
        raise Unreadable(_said(error), "correct the value or the override") from None
    if not isinstance(values, dict):
        raise Unreadable(f"expected keys and values, found {type(values).__name__}")
    return {**values}


def _said(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    first = (str(error) or repr(error)).splitlines()[0]
    return f"{key}: {first}" if key else first


def _entries(node: yaml.Node | None, values: dict[str, Any]) -> Iterator[Entry]:
    for key, value in node.value if node else ():
        if key.tag != _TAG + "merge":
            yield Entry(
                key=key.value,
                line=key.start_mark.line + 1,
                value=_as_yaml_1_1(value, values.get(key.value)),
                raw=value.value if isinstance(value, yaml.ScalarNode) else None,
                column=key.start_mark.column + 1,
            )


def _as_yaml_1_1(node: yaml.Node, value: Any) -> Any:
    """A plain scalar as PyYAML reads it, where `1e-4` is text; anything else as it was read."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS:
        return value
    loader = yaml.SafeLoader("")
    plain = (node.style is None, node.style is not None)
    tag = loader.resolve(yaml.ScalarNode, node.value, plain)  # type: ignore[no-untyped-call]
    try:
        return loader.construct_object(yaml.ScalarNode(tag, node.value), deep=True)
    except (yaml.YAMLError, ValueError, KeyError):
        return value
