"""Rows of datasets: columns, tags, turns and media that their entries promise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from sifkit.check.dataset import FORMATS, Attributes, attributes, turns_alternate
from sifkit.check.facts import DatasetFacts, Facts, Kind
from sifkit.check.rule import Found, Severity, rule
from sifkit.check.rules.dat import LOADER, NO_ROW_LEFT, absent_columns, unnamed_columns, used

_CONVERTER = "llamafactory/data/converter.py; 0.9.4 and 0.9.5"


@rule(
    "DAT005",
    "columns-missing",
    needs=(Kind.CHECKOUT,),
    prevents="KeyError: 'instruction'",
    why="the columns that an entry of dataset_info.json names are looked up in every row. An entry that names some "
    "columns has no others: the defaults (instruction, input, output; conversations) count only without `columns`",
    fix="name the columns as the data has them, in its entry of dataset_info.json",
    source=f"{_CONVERTER}; data/parser.py, DatasetAttr.join",
)
def columns_missing(facts: Facts) -> Iterator[Found]:
    """The data has no column of a name that its entry gives, or that the default is."""
    for each in used(facts):
        if each.entry is None or each.columns is None or each.problem is not None:
            continue
        meant = attributes(each.entry)
        if meant.formatting not in FORMATS:
            message = f"{each.key}: formatting {meant.formatting!r} of {each.name} is none"
            yield Found(message, f"write one of {', '.join(FORMATS)} into its entry", each.key)
            continue
        severity = None if each.exact else Severity.WARNING
        if absent := absent_columns(each, meant):
            said = ", ".join(f"{name} ({use})" if name != use else name for use, name in absent.items())
            message = f"{each.key}: {each.name} has no column {said}; it has {', '.join(sorted(each.columns))}"
            fix = _columns_fix(each, absent)
            yield Found(message, fix, each.key, cause=f"KeyError: {next(iter(absent.values()))!r}", severity=severity)
        elif unnamed := unnamed_columns(meant):
            message = f"{each.key}: the entry of {each.name} names no column {' and '.join(unnamed)}"
            named = ", ".join(f'"{use}": "COLUMN"' for use in unnamed)
            yield Found(message, f'name them: "columns": {{{named}}}', each.key, cause="KeyError: None")
        elif wrong := _first_row(each, meant, facts.value("stage") or "sft"):
            message, cause = wrong
            yield Found(
                f"{each.key}: in the first row of {each.name}, {message}", "mend the rows", each.key, cause=cause
            )
        elif meant.formatting != "alpaca":
            yield from _tags(each, meant, severity)


def _first_row(dataset: DatasetFacts, meant: Attributes, stage: str) -> tuple[str, str] | None:
    """A value of another type than its converter takes, and how that ends."""
    if (row := dataset.first) is None:
        return None
    texts = [*([meant.system] if stage != "pt" else [])]
    texts += [meant.prompt, meant.query] if meant.formatting == "alpaca" else []
    for name in texts:
        if (value := row.get(name or "")) and not isinstance(value, str | bool):
            kind = type(value).__name__
            return f"column {name} is a {kind}, and no text", f"TypeError: expected str instance, {kind} found"
    if meant.formatting == "alpaca":
        return _history(row.get(meant.history or ""), meant)
    return _message(row, meant, stage)


def _history(value: object, meant: Attributes) -> tuple[str, str] | None:
    if isinstance(value, list) and not all(isinstance(each, list | str) and len(each) == 2 for each in value):
        return f"column {meant.history} is no list of pairs", "ValueError: not enough values to unpack (expected 2, …)"
    return None


def _message(row: Mapping[str, Any], meant: Attributes, stage: str) -> tuple[str, str] | None:
    messages = row.get(meant.messages or "")
    if not isinstance(messages, list) or not all(isinstance(each, Mapping) for each in messages):
        cause = "TypeError: string indices must be integers, not 'str'"
        return f"column {meant.messages} is no list of messages", cause
    read = messages[:1] if stage == "pt" else messages
    empty = [each for each in read if not isinstance(each.get(meant.content_tag or "", ""), str)]
    if turns_alternate(row, meant) and any(not each.get("tool_calls") for each in empty):
        return "a message's content is no text", "RuntimeError: Expected a string, got None"
    return None


def _columns_fix(dataset: DatasetFacts, absent: dict[str, str]) -> str:
    columns = dataset.columns or frozenset()
    if "messages" in absent or {"messages", "conversations"} & columns:
        where = "conversations" if "conversations" in columns else "messages" if "messages" in columns else "COLUMN"
        return f'write into its entry: "formatting": "sharegpt", "columns": {{"messages": "{where}"}}'
    named = ", ".join(f'"{use}": "COLUMN"' for use in absent)
    return f'name the columns in its entry: "columns": {{{named}}}'


def _missing_tags(dataset: DatasetFacts, meant: Attributes) -> list[str]:
    """Keys that its messages should have, and have not."""
    tags = (meant.role_tag, meant.content_tag) if dataset.message_keys else ()
    return [tag for tag in tags if tag and tag not in dataset.message_keys]


def _tags(dataset: DatasetFacts, meant: Attributes, severity: Severity | None) -> Iterator[Found]:
    """Keys and speakers of the messages, against the entry's tags."""
    if missing := _missing_tags(dataset, meant):
        keys = ", ".join(sorted(dataset.message_keys))
        message = f"{dataset.key}: messages of {dataset.name} have no {' and '.join(missing)}; they have {keys}"
        fix = 'name them in its entry: "tags": {"role_tag": "role", "content_tag": "content", …}'
        yield Found(message, fix, dataset.key, cause=f"KeyError: {missing[0]!r}", severity=severity)
    first, second = meant.roles
    known = {*first, *second, meant.system_tag}
    if dataset.roles and not dataset.roles & known:
        said = ", ".join(sorted(dataset.roles))
        message = (
            f"{dataset.key}: who speaks in {dataset.name} ({said}) is none of its entry's tags: all rows are dropped"
        )
        fix = 'name them in its entry: "tags": {"user_tag": "user", "assistant_tag": "assistant", …}'
        yield Found(message, fix, dataset.key, cause=NO_ROW_LEFT, severity=severity)


@rule(
    "DAT025",
    "turns-do-not-alternate",
    needs=(Kind.CHECKOUT,),
    prevents="Invalid message count in […]. Skipping this abnormal example. (a line of the log for each)",
    why="after the system's, messages come from user and assistant in turn and end with the assistant (of pairs, with "
    "the user); other rows are dropped, and in stage pt end the run",
    fix="mend the rows, or their tags in dataset_info.json",
    source=f"{_CONVERTER}; data/processor/pretrain.py",
)
def turns_do_not_alternate(facts: Facts) -> Iterator[Found]:
    """Rows of messages in which user and assistant do not take turns."""
    for key, group in groupby(used(facts), lambda each: each.key):
        datasets = list(group)
        lost = [each for each in datasets if each.exact and each.read_rows == each.broken_rows > 0]
        for each in datasets:
            meant = attributes(each.entry or {})
            unknown = each.roles and not each.roles & {*meant.roles[0], *meant.roles[1], meant.system_tag}
            if not each.broken_rows or each.problem or unknown or _missing_tags(each, meant):  # DAT010, DAT005
                continue
            pretrains = facts.value("stage") == "pt"
            severity = Severity.ERROR if pretrains or len(lost) == len(datasets) else Severity.WARNING
            message = f"{key}: {each.broken_rows} of {each.read_rows} rows of {each.name} are dropped"
            message = f"{message}: user and assistant do not take turns, or the last turn is not the assistant's"
            cause = "stage pt stops at the first of them: IndexError: list index out of range" if pretrains else None
            yield Found(
                message, "mend these rows, or its tags in dataset_info.json", key, severity=severity, cause=cause
            )


@rule(
    "DAT010",
    "malformed-dataset",
    needs=(Kind.CHECKOUT,),
    prevents="datasets.exceptions.DatasetGenerationError: An error occurred while generating the dataset",
    why="datasets reads a file by its ending; JSON as an array of objects, or as one object after the other, "
    "each column of one type; a directory's files all of one type",
    fix="correct the file at that line",
    source=f"{LOADER}, _load_single_dataset; datasets 4.0.0, packaged_modules/json/json.py, tried",
    rows=(4,),
)
def malformed_dataset(facts: Facts) -> Iterator[Found]:
    """A data file that its reader refuses: not JSON, cut off, empty, of an unknown type, or a column of two types."""
    for each in used(facts):
        if each.problem is not None:
            file = next((file.host for file in each.files if each.problem.startswith(f"{file.text}: ")), None)
            fix = f"correct it, at line {each.line}" if each.line else "correct or replace it"
            message = f"{each.key}: {each.name}: {each.problem}"
            key = None if file and each.line else each.key
            yield Found(message, fix, key, file=file if key is None else None, line=each.line)


@rule(
    "DAT019",
    "media-missing",
    Severity.WARNING,
    needs=(Kind.CHECKOUT,),
    prevents="FileNotFoundError: [Errno 2] No such file or directory: 'mllm_demo_data/1.jpg'",
    why="images, videos and audios of a row count from media_dir (by default dataset_dir), else from the checkout",
    fix="name the directory that the rows' paths count from: media_dir: DIR",
    source=f"{_CONVERTER}, _find_medias",
    rows=(4,),
)
def media_missing(facts: Facts) -> Iterator[Found]:
    """Images, videos or audios of a dataset's first rows are not there."""
    for each in used(facts):
        if each.absent_media:
            place = facts.config.values.get("media_dir") or facts.config.values.get("dataset_dir", "data")
            message = f"{each.key}: {each.absent_media[0]} of {each.name} is not in {place}"
            key = "media_dir" if "media_dir" in facts.config.values else each.key
            yield Found(message, "name the directory that such paths count from: media_dir: DIR", key)
