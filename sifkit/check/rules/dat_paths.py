"""Paths of the config, as the container sees them; and what the file of DeepSpeed says."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sifkit.check.facts import Facts, Kind, PathFacts
from sifkit.check.places import IN_CHECKOUT, READ, WRITTEN, checkout_is_the_place, is_seen, texts_of
from sifkit.check.rule import Found, NotChecked, rule
from sifkit.check.rules.dat import checkout_of, is_hidden, leaves_checkout, used
from sifkit.estimate.numbers import is_count

_LAUNCH = "apptainer(1) 1.4, --bind; sifkit/launch.py"


def _looked_at(facts: Facts) -> Iterator[tuple[str, PathFacts]]:
    """Every path that is read, with the words for it."""
    for path in checkout_of(facts).paths:
        yield f"{path.key}: {path.text}", path
    for dataset in used(facts):
        for file in dataset.files:
            yield f"{file.key}: {file.text} of {dataset.name}", file


@rule(
    "DAT008",
    "link-leaves-the-binds",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: File data/mine.json not found.",
    why="the container sees the checkout at /mnt, absolute paths of the config and the site's binds; a link, or a "
    "file_name of dataset_info.json, that leads elsewhere leads nowhere",
    fix="bind where it leads: site.yaml, binds: [DIR]; or name the real path in the config",
    source=_LAUNCH,
    rows=(45,),
)
def link_leaves_the_binds(facts: Facts) -> Iterator[Found | NotChecked]:
    """A link, or an absolute file_name, leads to a place that the container does not have."""
    unsure = False
    for words, path in _looked_at(facts):
        places = [*path.links, *([Path(path.text)] if _is_elsewhere(path) else [])]
        seen = {place: is_seen(place, facts) for place in places}
        unsure |= None in seen.values()
        if lost := next((place for place, answer in seen.items() if answer is False), None):
            message = f"{words} leads to {lost}, which the container does not have"
            yield Found(message, f"bind it: binds: [{lost.parent}] in the site file; or copy it", path.key)
    if unsure:
        yield NotChecked("which directories the container is given is not known here")


def _is_elsewhere(path: PathFacts) -> bool:
    """An absolute path that no key of the config names: one of dataset_info.json."""
    return path.text.startswith("/") and not is_hidden(path) and path.key in ("dataset", "eval_dataset") and path.exists


@rule(
    "DAT013",
    "path-leaves-checkout",
    prevents="ValueError: Cannot open ../data/dataset_info.json due to [Errno 2] No such file or directory: "
    "'../data/dataset_info.json'.",
    why="the run starts in /mnt, where the checkout is; above it is the container's own root",
    fix="write an absolute path, which is then bound",
    source=_LAUNCH,
    rows=(45,),
)
def path_leaves_checkout(facts: Facts) -> Iterator[Found]:
    """A relative path climbs out of the checkout."""
    if not checkout_is_the_place(facts):
        return
    values = facts.config.values
    for key in dict.fromkeys((*READ, *WRITTEN)):
        for text in texts_of(values, key):
            if leaves_checkout(text):
                root = facts.checkout.root if facts.checkout else Path("/path/of/the/checkout")
                meant = os.path.normpath(root / text)
                message = f"{key}: {text} leaves the checkout, which is all that the container sees of relative paths"
                yield Found(message, f"{key}: {meant}", key)


@rule(
    "DAT014",
    "hidden-by-checkout",
    needs=(Kind.CHECKOUT,),
    prevents="OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/mnt/models/llama'. "
    "Use `repo_type` argument if needed.\nOSError: Failed to load tokenizer.",
    why="the container has the checkout at /mnt: whatever this host has there is hidden",
    fix="reach it by another path, as a link outside /mnt or a site's bind: binds: [/mnt/data:/data]",
    source=_LAUNCH,
    rows=(45,),
)
def hidden_by_checkout(facts: Facts) -> Iterator[Found]:
    """A path below /mnt, where the container has the checkout, and the checkout has no such file."""
    if not checkout_is_the_place(facts):
        return
    for words, path in _looked_at(facts):
        if is_hidden(path) and not path.exists and path.key not in WRITTEN:
            below = Path(path.text).relative_to(IN_CHECKOUT)
            message = f"{words}: in the container {IN_CHECKOUT} is the checkout, which has no {below}"
            top = f"{IN_CHECKOUT}/{below.parts[0]}"
            fix = f"bind it elsewhere, binds: [{top}:/{below.parts[0]}] in the site file, and name it there: /{below}"
            yield Found(message, fix, path.key)


@rule(
    "DAT016",
    "written-into-shared-checkout",
    needs=(Kind.CHECKOUT,),
    prevents="OSError: [Errno 30] Read-only file system: 'saves'",
    why="without a checkout of your own the run gets the cached one, which all runs share and which is bound read-only",
    fix="give a checkout of your own (--checkout DIR; sifkit checkout VERSION DIR), or an absolute path",
    source=_LAUNCH,
    rows=(13,),
)
def written_into_shared_checkout(facts: Facts) -> Iterator[Found]:
    """The run writes into the checkout that sifkit keeps for all."""
    checkout = checkout_of(facts)
    for key in WRITTEN if checkout.shared else ():
        for text in texts_of(facts.config.values, key):
            absolute = text.startswith("/") and not text.startswith(f"{IN_CHECKOUT}/")
            full = any(path.text == text and path.is_dir and path.names for path in checkout.at("tokenized_path"))
            if not absolute and not (key == "tokenized_path" and full):
                message = f"{key}: {text} would lie in the cached checkout {checkout.root}"
                yield Found(message, "an absolute path, or a checkout of your own: --checkout DIR", key)


# ---------------------------------------------------------------------------------------------- DeepSpeed

# key of the DeepSpeed file: key of the config, as HfTrainerDeepSpeedConfig.trainer_config_process pairs them
_MATCHED = {
    "train_micro_batch_size_per_gpu": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm",
    "optimizer.params.lr": "learning_rate",
    "optimizer.params.eps": "adam_epsilon",
    "optimizer.params.weight_decay": "weight_decay",
    "scheduler.params.warmup_max_lr": "learning_rate",
    "fp16.enabled": "fp16",
    "bf16.enabled": "bf16",
}


@rule(
    "DAT009",
    "deepspeed-file",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Please correct the following DeepSpeed config values that mismatch TrainingArguments "
    "values:\n- ds gradient_accumulation_steps=4 vs hf gradient_accumulation_steps=1\n"
    "The easiest method is to set these DeepSpeed config values to 'auto'.",
    why="deepspeed names a JSON file; what it says of batch, learning rate and precision must be what the YAML says, "
    'or "auto"',
    fix='"auto" in the DeepSpeed file for what the YAML sets',
    source="transformers 4.57.1 and 5.6.0, integrations/deepspeed.py; accelerate 1.11.0, utils/deepspeed.py; "
    "tried with deepspeed 0.18.4",
)
def deepspeed_file(facts: Facts) -> Iterator[Found]:
    """The file of DeepSpeed is missing, no JSON, or says something else than the YAML."""
    for path in checkout_of(facts).at("deepspeed"):
        if path.json is not None:
            yield from _mismatches(path.text, path.json, facts)
        elif path.exists:
            cause = "json.decoder.JSONDecodeError: …"
            yield Found(f"deepspeed: {path.text} holds no JSON object", "correct that file", "deepspeed", cause=cause)
        elif not path.links and not is_hidden(path) and path.fault is None and not leaves_checkout(path.text):
            fix = "name a file of examples/deepspeed/, as ds_z2_config.json"
            cause = "ValueError: Expected a string path to an existing deepspeed config, or a dictionary, or a base64 "
            cause += f"encoded string. Received: {path.text}"
            yield Found(f"deepspeed: {path.host} is not there", fix, "deepspeed", cause=cause)


def _mismatches(name: str, says: Mapping[str, Any], facts: Facts) -> Iterator[Found]:
    for long, key in _MATCHED.items():
        there, wanted = _at(says, long), facts.value(key)
        if there is None or there == "auto" or wanted is None or there == wanted:
            continue
        if long.endswith(".enabled") and facts.value(f"{key}_full_eval") is True and there is True:
            continue
        if key == "per_device_train_batch_size" and facts.value("auto_find_batch_size") is True:
            continue
        message = f"deepspeed: {name} says {long}: {_json(there)}, and {key} is {_json(wanted)}"
        yield Found(message, f'write "auto" there, or {key}: {_json(there)}', "deepspeed")
    yield from _total_batch(name, says, facts)


def _total_batch(name: str, says: Mapping[str, Any], facts: Facts) -> Iterator[Found]:
    there, job = _at(says, "train_batch_size"), facts.job
    factors = [facts.value("per_device_train_batch_size"), facts.value("gradient_accumulation_steps") or 1]
    if not is_count(there) or job is None or not all(map(is_count, factors)):
        return
    total = math.prod([*factors, max(job.gpus, 1), job.nodes])
    if there != total and facts.value("auto_find_batch_size") is not True:
        message = f"deepspeed: {name} says train_batch_size: {there}, and this run has {total}"
        yield Found(message, 'write "auto" there', "deepspeed")


def _at(says: Mapping[str, Any], long: str) -> Any:
    value: Any = says
    for part in long.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _json(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
