"""Datasets: registered, there, and of the stage that they are used for."""

from __future__ import annotations

import difflib
import os.path
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from sifkit.check.dataset import Attributes, attributes, local_name, source_of
from sifkit.check.facts import CheckoutFacts, DatasetFacts, Facts, Kind, PathFacts
from sifkit.check.places import IN_CHECKOUT, texts_of
from sifkit.check.rule import Edit, Found, NotChecked, Severity, rule

_PARSER = "llamafactory/data/parser.py, get_dataset_list; 0.9.4 and 0.9.5"
LOADER = "llamafactory/data/loader.py; 0.9.4 and 0.9.5"


def checkout_of(facts: Facts) -> CheckoutFacts:
    """The checkout's facts, which a rule that needs them has."""
    assert facts.checkout is not None
    return facts.checkout


def is_tokenized(facts: Facts) -> bool:
    """Whether tokenized data is there already: then all other settings of data are ignored (loader.py, get_dataset)."""
    return any(path.is_dir and path.names for path in checkout_of(facts).at("tokenized_path"))


def used(facts: Facts) -> tuple[DatasetFacts, ...]:
    """The datasets that the run will read."""
    return () if is_tokenized(facts) else checkout_of(facts).datasets


@rule(
    "DAT001",
    "no-dataset-info",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Cannot open data/dataset_info.json due to [Errno 2] No such file or directory: "
    "'data/dataset_info.json'.",
    why="dataset_info.json of dataset_dir says where each dataset is; relative paths count from the checkout, which is "
    "where the run starts in the container",
    fix="name the directory that holds dataset_info.json: dataset_dir: data",
    source=_PARSER,
    rows=(4,),
)
def no_dataset_info(facts: Facts) -> Iterator[Found | NotChecked]:
    """Datasets are named, and dataset_dir has no dataset_info.json that can be read."""
    checkout = checkout_of(facts)
    path, asked = checkout.dataset_info_path, [*texts_of(facts.config.values, "dataset")]
    asked += texts_of(facts.config.values, "eval_dataset")
    if path is None or checkout.dataset_info is not None or not asked or is_tokenized(facts):
        return
    if any(each.fault == "does not answer" for each in checkout.at("dataset_dir")):
        yield NotChecked(f"{path.parent} does not answer")
        return
    if leaves_checkout(str(facts.config.values.get("dataset_dir", "data"))):
        return  # DAT013
    key = "dataset_dir" if "dataset_dir" in facts.config.values else "dataset"
    if problem := checkout.info_problem:
        at = f"line {problem.line} of {path}" if problem.line else str(path)
        yield Found(f"{at}: {problem.message}", "correct that file", key, file=path, line=problem.line)
    else:
        message = f"{path} is not there, so {', '.join(asked)} cannot be found"
        yield Found(message, "name the directory that holds it: dataset_dir: data", key)


@rule(
    "DAT002",
    "dataset-not-registered",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Undefined dataset X in dataset_info.json.",
    why="a dataset is found by its name in dataset_info.json alone, never by a file's name",
    fix="correct the name, or add an entry to dataset_info.json",
    source=_PARSER,
    rows=(4,),
)
def dataset_not_registered(facts: Facts) -> Iterator[Found]:
    """A dataset is named that dataset_info.json does not have."""
    info, path = checkout_of(facts).dataset_info, checkout_of(facts).dataset_info_path
    for each in used(facts):
        if each.entry is not None or info is None:
            continue
        near = difflib.get_close_matches(each.name, info, n=1, cutoff=0.75)
        place = path or "the mapping dataset_dir"
        message = f"{each.key}: {each.name or 'an empty name'} is not registered in {place}"
        if not each.name:
            yield Found(message, "remove the comma that is too much", each.key, edit=_renamed(facts, each, None))
        elif near:
            yield Found(message, f"did you mean {near[0]}?", each.key, edit=_renamed(facts, each, near[0]))
        else:
            yield Found(message, f'add an entry to it: "{each.name}": {{"file_name": "FILE"}}', each.key)


def _renamed(facts: Facts, dataset: DatasetFacts, name: str | None) -> Edit | None:
    """The key's value with that one name replaced or removed."""
    value = facts.config.values.get(dataset.key)
    if not isinstance(value, str):
        return None
    words = [name if word.strip() == dataset.name else word.strip() for word in value.split(",")]
    return Edit(dataset.key, ",".join(word for word in words if word is not None))


@rule(
    "DAT003",
    "dataset-file-missing",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: File data/mine.json not found.",
    why="file_name counts from dataset_dir; the run looks for it when it has the GPUs already",
    fix="put the file there, or correct file_name in dataset_info.json",
    source=f"{LOADER}, _load_single_dataset",
    rows=(4,),
)
def dataset_file_missing(facts: Facts) -> Iterator[Found | NotChecked]:
    """An entry of dataset_info.json names a file that is not there or cannot be read, or names none at all."""
    path = checkout_of(facts).dataset_info_path
    for each in used(facts):
        if each.entry is not None and _names_nothing(each.entry):
            message = f"{each.key}: the entry of {each.name} says nowhere where its data is"
            yield Found(message, 'add "file_name": "FILE" to its entry', each.key, cause="KeyError: 'file_name'")
        for file in each.files:
            if file.fault == "does not answer":
                yield NotChecked(f"{file.host} does not answer")
            elif not file.exists and not file.links and not is_hidden(file):
                message = f"{each.key}: {each.name} is {file.text} by {path}, and that is not in {file.host.parent}"
                yield Found(message, f"put it there, or correct the entry of {each.name}", each.key)
            elif file.exists and not file.readable:
                message = f"{each.key}: {file.host} of {each.name} may not be read by this user"
                yield Found(message, f"ask its owner: chmod a+r {file.host}", each.key)
            elif file.exists and not (file.plain or file.is_dir):
                message = f"{each.key}: {each.name} is {file.text} by {path}, and that is a pipe or a device"
                yield Found(message, f"put a file there, or correct the entry of {each.name}", each.key)


def _names_nothing(entry: Mapping[str, Any]) -> bool:
    return source_of(entry) is None or (source_of(entry) == "file_name" and local_name(entry) is None)


def is_hidden(path: PathFacts) -> bool:
    """Whether a path lies where the container has the checkout."""
    return path.text.startswith(f"{IN_CHECKOUT}/")


def leaves_checkout(text: str) -> bool:
    """Whether a relative path climbs out of the checkout."""
    return os.path.normpath(text).split("/")[0] == ".."


# ---------------------------------------------------------------------------------------------- stages


@rule(
    "DAT004",
    "stage-does-not-fit",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: The dataset is not applicable in the current training stage.",
    why="stages rm and dpo train on pairs, which dataset_info.json marks by ranking: true; all others refuse pairs. "
    "kto drops rows without a kto_tag, sft those with one",
    fix="choose a dataset of that kind, correct its entry, or change the stage",
    source=f"{LOADER}, _get_merged_dataset; data/processor/feedback.py and supervised.py",
    rows=(46,),
)
def stage_does_not_fit(facts: Facts) -> Iterator[Found]:
    """A dataset of pairs in a stage that wants none, or the other way round; or no row of the stage's kind."""
    stage = facts.value("stage") or "sft"
    pairs = stage in ("rm", "dpo")
    if facts.config.values.get("dataset_dir") == "ONLINE" and pairs and not is_tokenized(facts):
        fix = "register the dataset in a dataset_info.json, with ranking: true"
        yield Found(f"dataset_dir: ONLINE knows no pairs, which stage {stage} trains on", fix, "dataset_dir")
    for key, group in groupby(used(facts), lambda each: each.key):
        datasets = [each for each in group if each.entry is not None]
        misfits = {each.name: found for each in datasets if (found := _misfit(each, stage, pairs))}
        yield from misfits.values()
        dropped = [each for each in datasets if each.name not in misfits and _is_dropped(each, stage)]
        severity = None if len(dropped) == len(datasets) else Severity.WARNING
        for each in dropped:
            yield Found(*_dropped(each, stage), key, severity=severity, cause=NO_ROW_LEFT)


NO_ROW_LEFT = "no row is left: RuntimeError: Cannot find valid samples, check `data/README.md` for the data format."


def _misfit(dataset: DatasetFacts, stage: str, pairs: bool) -> Found | None:
    ranking = (dataset.entry or {}).get("ranking", False)
    if pairs and ranking is False:
        message = f"{dataset.key}: {dataset.name} has no pairs (ranking: true), which stage {stage} trains on"
        fix = "choose a dataset of pairs, or mark this one: ranking: true, with columns chosen and rejected"
        return Found(message, fix, dataset.key)
    if not pairs and ranking is True:
        message = f"{dataset.key}: {dataset.name} has pairs (ranking: true), which stage {stage} refuses"
        return Found(message, "choose another dataset, or train on pairs: stage: dpo", dataset.key)
    return None


def _is_dropped(dataset: DatasetFacts, stage: str) -> bool:
    """kto wants rows of two answers, sft of one; of what was not read, the entry tells."""
    if stage not in ("sft", "kto", "dpo", "rm") or dataset.broken_rows == dataset.read_rows > 0:
        return False  # turns that do not alternate are another rule's matter
    meant = attributes(dataset.entry or {})
    if _names_nothing(dataset.entry or {}) or absent_columns(dataset, meant) or unnamed_columns(meant):
        return False  # DAT003, DAT005
    if dataset.read_rows:
        return dataset.exact and dataset.answers[1 if stage == "sft" else 2] == 0
    two = meant.kto_tag is not None or meant.ranking
    none = meant.formatting == "alpaca" and meant.response is None
    return two or none if stage == "sft" else stage == "kto" and not two


def absent_columns(dataset: DatasetFacts, meant: Attributes) -> dict[str, str]:
    """What columns are looked up for, and their names, of those that the data, as far as it was read, does not have."""
    if dataset.columns is None:
        return {}
    return {use: name for use, name in meant.read().items() if name not in dataset.columns}


def unnamed_columns(meant: Attributes) -> list[str]:
    """Columns that are looked up although the entry names none."""
    uses = ["chosen", "rejected"] if meant.ranking and not meant.kto_tag else []
    uses += ["response"] if meant.kto_tag and meant.formatting == "alpaca" else []
    return [use for use in uses if getattr(meant, use) is None]


def _dropped(dataset: DatasetFacts, stage: str) -> tuple[str, str]:
    meant, words = attributes(dataset.entry or {}), f"{dataset.key}: {dataset.name}"
    drops = f"stage {stage} drops all its rows"
    match stage:
        case "kto" if meant.kto_tag is None:
            fix = 'name it in its entry: "columns": {"kto_tag": "COLUMN"}, or choose another dataset'
            return f"{words} names no column kto_tag: {drops}", fix
        case "kto":
            return f"{words}: column {meant.kto_tag} is neither true nor false: {drops}", "write true and false into it"
        case "dpo" | "rm":
            fix = "texts in columns chosen and rejected; messages, where formatting is sharegpt"
            return f"{words}: chosen and rejected are no pair of answers: {drops}", fix
        case _ if meant.kto_tag is not None:
            return f"{words} has a kto_tag: {drops}", "train with stage: kto, or choose another dataset"
        case _:
            fix = 'train with stage: pt; or name the answers in its entry: "columns": {"response": "COLUMN"}'
            return f"{words} has no answers that are texts (column {meant.response or 'response'}): {drops}", fix


@rule(
    "DAT026",
    "no-such-split",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Unknown split \"test\". Should be one of ['train'].",
    why="files of your own are one split, which is called train",
    fix='"split": "train" in its entry of dataset_info.json, or none',
    source=f"{LOADER}, _load_single_dataset; datasets 4.0.0, arrow_reader.py",
)
def no_such_split(facts: Facts) -> Iterator[Found]:
    """An entry with a local file asks for a split other than train."""
    for each in used(facts):
        split = (each.entry or {}).get("split", "train")
        name = re.match(r"\w*", str(split))
        if each.files and name and name[0] != "train" and split is not None:
            message = f"{each.key}: the entry of {each.name} asks for split {split}, and a file is split train"
            yield Found(message, 'remove "split" from its entry', each.key)


@rule(
    "DAT020",
    "streaming-into-tokenized-path",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Turn off `streaming` when saving dataset to disk.",
    why="without tokenized data in tokenized_path the run makes it and saves it there, which a stream cannot be",
    fix="remove streaming: true, or tokenized_path",
    source=f"{LOADER}, get_dataset",
)
def streaming_into_tokenized_path(facts: Facts) -> Iterator[Found]:
    """streaming: true with a tokenized_path that holds nothing yet."""
    value = facts.config.values
    if value.get("streaming") is True and value.get("tokenized_path") is not None and not is_tokenized(facts):
        message = f"streaming: true, and tokenized_path {value['tokenized_path']} holds no data yet"
        yield Found(message, "remove streaming: true, or tokenized_path", "streaming")


@rule(
    "DAT027",
    "stream-without-workers",
    needs=(Kind.CHECKOUT,),
    prevents="StopIteration",
    why="a stream of local files is cut into dataloader_num_workers parts, by default none, and then has no rows",
    fix="dataloader_num_workers: 1, or more; or remove streaming: true",
    source=f"{LOADER}, _load_single_dataset (to_iterable_dataset); tried",
)
def stream_without_workers(facts: Facts) -> Iterator[Found]:
    """streaming: true with a local dataset, and no workers that load it."""
    if facts.config.values.get("streaming") is not True or facts.value("dataloader_num_workers"):
        return
    local = [each for each in used(facts) if each.entry is not None and source_of(each.entry) == "file_name"]
    for key in dict.fromkeys(each.key for each in local):
        names = ", ".join(each.name for each in local if each.key == key)
        message = f"streaming: true without dataloader_num_workers: {names} would be cut into no parts"
        yield Found(message, "dataloader_num_workers: 1", "streaming", edit=Edit("dataloader_num_workers", "1"))
