"""CFG, the keys of the training YAML: those that LLaMA-Factory does not know, or misses. CFG001 is in unreadable.py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sifkit.check.architectures import known
from sifkit.check.facts import Facts, ImageFacts, Kind
from sifkit.check.parser_tables import Renamed, renamed
from sifkit.check.parser_values import is_hole, nearest
from sifkit.check.rule import Edit, Found, Severity, rule

_NOT_USED = "ValueError: Some keys are not used by the HfArgumentParser: ['{}']"
_PARSE_DICT = "transformers 4.57.1 and 5.6.0, hf_argparser.py: HfArgumentParser.parse_dict"
_DERIVED_FROM = {
    "compute_dtype": "bf16, fp16 or pure_bf16",
    "device_map": "the stage",
    "model_max_length": "cutoff_len",
    "block_diag_attn": "neat_packing",
}
_FREE_TEXT = ("default_system",)  # `${` may be meant there


def unknown_keys(facts: Facts) -> Iterator[str]:
    """Keys that the image's LLaMA-Factory has no argument for, those that it had once included."""
    image = _image(facts)
    yield from (str(key) for key in facts.config.values if image.argument(str(key)) is None)


def _image(facts: Facts) -> ImageFacts:
    assert facts.image is not None  # needs=[Kind.IMAGE]
    return facts.image


@rule(
    "CFG002",
    "unknown-key",
    needs=[Kind.IMAGE],
    prevents=_NOT_USED.format("lora_ranks"),
    why="LLaMA-Factory stops at a key for which it has no argument: a slip of the pen, or an argument of another "
    "version.",
    fix="Correct the key's spelling, or remove it. `sifkit explain --search WORDS` finds arguments by what they do.",
    source=_PARSE_DICT,
    rows=(3,),
)
def unknown_key(facts: Facts) -> Iterator[Found]:
    """A key that the image's LLaMA-Factory does not know."""
    image = _image(facts)
    names = [argument.name for argument in image.arguments]
    for key in unknown_keys(facts):
        if key in image.derived or _renamed(key, image):
            continue
        near, clear = nearest(key, names)
        free = near is not None and near not in facts.config.values
        message = f"{key}: LLaMA-Factory {image.llamafactory} knows no such key, and stops at it"
        fix = f"write {near}" if near and clear and free else f"remove {key}"
        if key in known().megatron_keys:
            near, fix = None, f"remove {key}, which is for USE_MCA=1 in an image with mcore_adapter"
        hint = f"{fix} (did you mean {near}?)" if near and free and not clear else fix
        safe = near and clear and free and facts.config.line(key)
        yield Found(message, hint, key=key, edit=Edit(key, rename=near) if safe else None)


@rule(
    "CFG003",
    "derived-key",
    needs=[Kind.IMAGE],
    prevents=_NOT_USED.format("compute_dtype"),
    why="LLaMA-Factory derives this attribute from other arguments; it is no argument of its own, and it stops at it.",
    fix="Remove the key, and set the argument that it is derived from.",
    source="LLaMA-Factory 0.9.4 and 0.9.5, hparams/model_args.py: ModelArguments, fields with init=False",
    rows=(3,),
)
def derived_key(facts: Facts) -> Iterator[Found]:
    """A key that LLaMA-Factory derives from others and that must not be set."""
    image = _image(facts)
    for key in unknown_keys(facts):
        if key in image.derived:
            origin = _DERIVED_FROM.get(key, "other arguments")
            message = f"{key} is derived from {origin}; LLaMA-Factory stops at it"
            yield Found(message, f"remove {key}; what it should be follows from {origin}", key=key)


@rule(
    "CFG010",
    "required-key",
    prevents="ValueError: Please provide `model_name_or_path`.",
    why="Without a model there is nothing to train, without a dataset nothing to train on, without do_train nothing is "
    "done, and without output_dir everything is written to ./trainer_output.",
    fix="Add the key.",
    source="LLaMA-Factory 0.9.5, hparams/model_args.py, hparams/parser.py: get_train_args, train/sft/workflow.py; "
    "transformers 5.6.0, training_args.py",
)
def required_key(facts: Facts) -> Iterator[Found]:
    """A key without which nothing is trained, or results get lost: model, dataset, do_train, output_dir."""
    values = facts.config.values
    if values.get("model_name_or_path") is None:
        yield _missing(facts, "model_name_or_path", "there is nothing to train, and LLaMA-Factory stops", "NAME_OR_DIR")
    if values.get("do_train") and values.get("dataset") is None:
        yield _missing(facts, "dataset", "there is nothing to train on, and LLaMA-Factory stops", "NAME")
    if not any(values.get(key) for key in ("do_train", "do_eval", "do_predict")) and _evaluates_never(values):
        yield _missing(facts, "do_train", "LLaMA-Factory loads the model and ends without training it", "true")
    if values.get("output_dir") is None:
        found = _missing(facts, "output_dir", "everything is written to ./trainer_output", "DIRECTORY")
        yield Found(found.message, found.fix, key=found.key, severity=Severity.WARNING)


def _evaluates_never(values: Any) -> bool:
    return values.get("eval_strategy", "no") in ("no", False, None)


def _missing(facts: Facts, key: str, effect: str, value: str) -> Found:
    how = "is empty" if key in facts.config.values else "is not set"
    return Found(f"{key} {how}: {effect}", f"add {key}: {value}", key=key)


@rule(
    "CFG011",
    "renamed-key",
    needs=[Kind.IMAGE],
    prevents=_NOT_USED.format("evaluation_strategy"),
    why="The argument has another name in the image's LLaMA-Factory or transformers, or was removed; LLaMA-Factory "
    "stops at the old name.",
    fix="Write the new name, or do what the finding says instead.",
    source="sifkit/data/parser/renamed.yaml has the source of each",
    rows=(3,),
)
def renamed_key(facts: Facts) -> Iterator[Found]:
    """A key by the name that it had in another version, or of an argument that is gone."""
    for key in unknown_keys(facts):
        row = _renamed(key, _image(facts))
        if row and row.new:
            yield _under_new_name(key, row, row.new, facts)
        elif row:
            message = f"{key} is gone from the image's versions; LLaMA-Factory stops at it"
            yield Found(message, row.advice or f"remove {key}", key=key)


def _under_new_name(key: str, row: Renamed, new: str, facts: Facts) -> Found:
    message = f"{key} is named {new} in the image's versions; LLaMA-Factory stops at the old name"
    if row.value is not None and facts.config.values[key] is not True:
        return Found(message, f"remove {key}, and set {new} as you mean it", key=key)
    if new in facts.config.values:
        return Found(message, f"remove {key}: {new} is set too", key=key)
    fix = f"write {new}" + (f": {row.value}" if row.value else f" instead of {key}")
    return Found(message, fix, key=key, edit=Edit(key, row.value, new) if facts.config.line(key) else None)


def _renamed(key: str, image: ImageFacts) -> Renamed | None:
    """A row for a key that the image does not know, to one that it does."""
    return next((row for row in renamed() if row.old == key and (not row.new or image.argument(row.new))), None)


@rule(
    "CFG013",
    "not-filled-in",
    prevents="without it `${HOME}` stays as it is written, and is looked for as a file of that name",
    why="LLaMA-Factory reads its YAML with OmegaConf, but calls OmegaConf.to_container without resolve=True: "
    "interpolations stay text, and so does ???, OmegaConf's word for a value that is still to be given.",
    fix='Write the value itself, or give it as an override: `KEY="$VALUE"` after the YAML.',
    source="LLaMA-Factory 0.9.3 to 0.9.5, hparams/parser.py: read_args; OmegaConf 2.4.0, omegaconf.py: to_container",
)
def not_filled_in(facts: Facts) -> Iterator[Found]:
    """A value with `${…}` or `???`, which nobody fills in."""
    for key, value in facts.config.values.items():
        hole = next((text for text in _texts(value) if is_hole(text)), None)
        if hole is not None and key not in _FREE_TEXT:
            message = f"{key}: LLaMA-Factory does not fill in {hole}, and takes it as it is written"
            yield Found(message, f"write the value itself, or give it after the YAML: {key}=VALUE", key=str(key))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for each in value.values() for text in _texts(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in _texts(each))


@rule(
    "CFG015",
    "blanks-for-torchrun",
    needs=[Kind.JOB],
    prevents=_NOT_USED.format("is"),
    why="With torchrun, llamafactory-cli joins its arguments with blanks and splits the line again: a value with "
    "blanks arrives in pieces, of which each counts as an override.",
    fix="Put the value into the YAML, where blanks are safe.",
    source="LLaMA-Factory 0.9.3 to 0.9.5, launcher.py and cli.py: launch",
)
def blanks_for_torchrun(facts: Facts) -> Iterator[Found]:
    """An override with blanks in it, or a config's path with blanks, where torchrun is used."""
    assert facts.job is not None  # needs=[Kind.JOB]
    if not (facts.job.torchrun or facts.job.gpus > 1 or facts.job.nodes > 1):
        return
    for override in facts.config.overrides:
        if re.search(r"\s", override):
            key, _, value = override.partition("=")
            message = f"{override!r} has blanks, at which LLaMA-Factory splits it when it starts torchrun"
            yield Found(message, f"put it into the YAML: {key}: {value}", key=key)
    if re.search(r"\s", str(facts.config.path)) and not facts.job.ours:
        message = f"the path {str(facts.config.path)!r} has blanks, at which LLaMA-Factory splits it"
        yield Found(message, "rename the file or its directory", file=facts.config.path)
