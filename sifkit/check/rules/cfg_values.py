"""CFG, the values of the training YAML: what LLaMA-Factory takes without a word, and what becomes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from sifkit.check.facts import Argument, Facts, ImageFacts, Kind
from sifkit.check.parser_reading import loads_with_omegaconf
from sifkit.check.parser_tables import reporters
from sifkit.check.parser_values import Misfit, is_hole, misfit, nearest, shortened, takes, with_point
from sifkit.check.rule import Edit, Found, Severity, rule

_TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "null": "nothing"}


def _image(facts: Facts) -> ImageFacts:
    assert facts.image is not None  # needs=[Kind.IMAGE]
    return facts.image


def _set(facts: Facts) -> Iterator[tuple[str, Any, Argument]]:
    """Values that are set and known, with their arguments."""
    for key, value in facts.config.values.items():
        argument = _image(facts).argument(str(key))
        if argument and not (isinstance(value, str) and is_hole(value)):  # of those CFG013 speaks
            yield key, value, argument


def misfits(facts: Facts) -> frozenset[str]:
    """Keys whose values are of a type, or none of the choices, that their argument has."""
    return frozenset(
        key for key, value, argument in _set(facts) if misfit(value, argument) or not takes(value, argument)
    )


@rule(
    "CFG004",
    "wrong-type",
    needs=[Kind.IMAGE],
    prevents="TypeError: '>' not supported between instances of 'str' and 'int'",
    why='LLaMA-Factory checks no types when it reads a YAML. Text where true or false belongs counts as true, "false" '
    "too; where a number belongs it fails in the middle of the run, or at the first comparison.",
    fix="Write a value of the argument's type.",
    source=f"{'transformers 4.57.1 and 5.6.0'}, hf_argparser.py: parse_dict passes values on as they are",
)
def wrong_type(facts: Facts) -> Iterator[Found]:
    """A value of a type that the argument does not take, even where the parser lets it pass."""
    for key, value, argument in _set(facts):
        kind = misfit(value, argument)
        if kind is None or (kind is Misfit.NUMBER_AS_TEXT and not _is_quoted(key, facts)):
            continue
        message, fix, new = _said(kind, key, value, argument)
        safe = new is not None and facts.config.line(key) and not _is_overridden(key, facts)
        works = kind is Misfit.EMPTY or isinstance(value, bool)  # as nothing, as 0 or 1: till somebody counts with it
        severity = Severity.WARNING if works else None
        yield Found(message, fix, key=key, edit=Edit(key, new) if safe else None, severity=severity)


def _said(kind: Misfit, key: str, value: Any, argument: Argument) -> tuple[str, str, str | None]:
    """Message, fix, and the new value where only one can be meant."""
    shown = json.dumps(value) if isinstance(value, bool) else value
    shown = shown if isinstance(shown, (str, int, float)) else type(value).__name__
    wanted = " or ".join(_TYPES.get(each, each) for each in argument.type.split(" | "))
    if kind is Misfit.TEXT_FOR_FLAG:
        meant = {"true": "true", "false": "false"}.get(str(value).strip().lower())
        what = f'"{shown}" is text' if isinstance(value, str) else f"{shown} is no true or false"
        effect = "counts as true" if value else "counts as false"
        return f"{key}: {what}, and {effect}", f"write {meant or 'true or false'}", meant
    if kind is Misfit.NUMBER_AS_TEXT:
        return f'{key}: "{shown}" is text, not {wanted}', f"write {str(value).strip()}", str(value).strip()
    if kind is Misfit.EMPTY:
        default = "" if argument.default is None else f", or remove it: the default is {argument.default}"
        return f"{key} is empty, which replaces its default by nothing", f"give it {wanted}{default}", None
    if kind is Misfit.NOT_WHOLE:
        return f"{key}: {shown} is no whole number", "write a whole number", None
    return f"{key}: {shown} is not {wanted}", f"write {wanted}", None


def _is_quoted(key: str, facts: Facts) -> bool:
    return re.search(rf"^{re.escape(str(key))}\s*:\s*[\"']", facts.config.text, re.MULTILINE) is not None


def _is_overridden(key: str, facts: Facts) -> bool:
    return any(each.partition("=")[0] == key for each in facts.config.overrides)


@rule(
    "CFG005",
    "not-a-choice",
    needs=[Kind.IMAGE],
    prevents="ValueError: Unknown task: sfft.",
    why="The argument takes a few values. Most are not checked when the YAML is read: the run ends later, or does "
    "something else.",
    fix="Write one of the choices.",
    source="LLaMA-Factory 0.9.4 and 0.9.5, hparams/*.py: Literal and Enum types; transformers, training_args.py",
)
def not_a_choice(facts: Facts) -> Iterator[Found]:
    """A value that is none of the argument's choices; report_to is one of them."""
    for key, value, argument in _set(facts):
        several = key == "ddp_backend" and ":" in str(value)  # cpu:gloo,cuda:nccl, which torch takes too
        if key != "template" and not takes(value, argument) and not several:
            yield _other(facts, key, value, tuple(str(choice) for choice in argument.choices))
    named = facts.config.values.get("report_to")
    for word in named if isinstance(named, list) else [named] if isinstance(named, str) else []:
        if word not in (*reporters(), "all", "none"):
            yield _other(facts, "report_to", word, ("none", "all", *reporters()))


def _other(facts: Facts, key: str, value: Any, choices: tuple[str, ...]) -> Found:
    raw = next((entry.raw for entry in facts.config.entries if entry.key == key), None)
    changeable = facts.config.line(key) and not _is_overridden(key, facts) and not isinstance(value, list)
    if isinstance(value, bool) and raw in choices:
        message = f"{key}: YAML reads {raw} as {str(value).lower()}, which is none of {shortened(choices)}"
        return Found(message, f'write it in quotes: {key}: "{raw}"', key=key, edit=_edit(key, f'"{raw}"', changeable))
    near, clear = nearest(str(value), choices)
    message = f"{key}: {'nothing' if value is None else value} is none of its choices: {shortened(choices)}"
    fix = f"write {near}" if near and clear else f"write one of {shortened(choices)}"
    alone = not isinstance(facts.config.values.get(key), list)
    quoted = f'"{near}"' if near in ("no", "on", "off", "yes") else near
    return Found(message, fix, key=key, edit=_edit(key, quoted, changeable and alone and clear))


def _edit(key: str, value: str | None, safe: object) -> Edit | None:
    return Edit(key, value) if safe and value else None


@rule(
    "CFG006",
    "exponent-as-text",
    prevents="TypeError: '<=' not supported between instances of 'float' and 'str'",
    why="YAML 1.1 knows a number with an exponent only with a point and a sign. LLaMA-Factory up to 0.9.3 reads 1e-4 "
    "as text; later ones read it as a number, but .5e4 still as text.",
    fix="Write the number with a point and a signed exponent: 1.0e-4.",
    source="LLaMA-Factory 0.9.3 and 0.9.4, hparams/parser.py: read_args; PyYAML 6.0, resolver.py; "
    "OmegaConf 2.4.0, _yaml.py: get_yaml_loader",
    needs=[Kind.IMAGE],
    rows=(43,),
)
def exponent_as_text(facts: Facts) -> Iterator[Found]:
    """A number with an exponent that this LLaMA-Factory reads as text."""
    image = _image(facts)
    reader = "OmegaConf" if loads_with_omegaconf(image.llamafactory) else "PyYAML"
    for key, value, argument in _set(facts):
        if misfit(value, argument) is Misfit.NUMBER_AS_TEXT and not _is_quoted(key, facts):
            number = with_point(value)
            message = f"{key}: {value} is text to LLaMA-Factory {image.llamafactory} ({reader}), not a number"
            safe = facts.config.line(key) and not _is_overridden(key, facts)
            yield Found(message, f"write {number}", key=key, edit=_edit(key, number, safe))


@rule(
    "CFG008",
    "unknown-template",
    needs=[Kind.IMAGE],
    prevents="ValueError: Template llama-3 does not exist.",
    why="Templates are registered in LLaMA-Factory by name, and each version has its own. The name is looked up after "
    "the tokenizer was loaded, not when the YAML is read.",
    fix="Write the name of a template that the image has, or another image.",
    source="LLaMA-Factory 0.9.4 and 0.9.5, data/template.py: get_template_and_fix_tokenizer",
    rows=(44,),
)
def unknown_template(facts: Facts) -> Iterator[Found]:
    """A template that the image's LLaMA-Factory does not have."""
    name = facts.config.values.get("template")
    image = _image(facts)
    if name is None or str(name) in image.templates or not image.templates:
        return
    near, clear = nearest(str(name), image.templates)
    message = f"template: LLaMA-Factory {image.llamafactory} has no template {name}"
    fix = f"write {near}" if near and clear else f"write one that it has{f', {near} for one' if near else ''}"
    safe = clear and facts.config.line("template") and not _is_overridden("template", facts)
    yield Found(
        message, f"{fix}; sifkit explain template lists them", key="template", edit=_edit("template", near, safe)
    )


@rule(
    "CFG014",
    "nothing-logged",
    Severity.WARNING,
    prevents="no loss in trainer_log.jsonl, and `No metric loss to plot.` at the end",
    why="The loss is written every logging_steps steps. A run that is shorter writes none, and draws no plot.",
    fix="Set logging_steps to 1.",
    source="transformers 5.6.0, trainer_callback.py: DefaultFlowCallback; LLaMA-Factory 0.9.5, extras/ploting.py",
)
def nothing_logged(facts: Facts) -> Iterator[Found]:
    """A run of fewer steps than logging_steps, as max_steps says it."""
    steps, every = facts.config.values.get("max_steps"), facts.value("logging_steps")
    if not isinstance(steps, int) or isinstance(steps, bool) or not isinstance(every, (int, float)):
        return
    if not 0 < steps < every or facts.value("logging_strategy") not in ("steps", None):
        return
    message = f"max_steps is {steps}, and the loss is written every {every:g} steps: not once"
    safe = facts.config.line("logging_steps") and not _is_overridden("logging_steps", facts)
    yield Found(message, "write logging_steps: 1", key="logging_steps", edit=_edit("logging_steps", "1", safe))
