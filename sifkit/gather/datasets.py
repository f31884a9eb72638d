"""The datasets that the config names: their entries, their files, the first rows.

As LLaMA-Factory 0.9.4 and 0.9.5 look for them (llamafactory/data/loader.py, _load_single_dataset).
"""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sifkit.check.dataset import FILE_TYPES, Attributes, answers, attributes, local_name, turns_alternate
from sifkit.check.facts import DatasetFacts, PathFacts
from sifkit.gather.looking import answer, links_outside, names_in
from sifkit.gather.rows import HEAD, WHOLE, Sample, mean_tokens, read_sample
from sifkit.launch import host_path

_READ_IN_ALL = 8 << 20  # bytes of files that are read whole; of further ones the first rows
_FILES_LOOKED_AT = 2_000  # of a dataset that is a directory
_FILES_READ = 16  # of those
_MEDIA_LOOKED_AT = 24  # files of the first rows


class Unreadable(ValueError):
    """dataset_info.json does not parse."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


def parse(content: bytes) -> object:
    """Raises `Unreadable`."""
    try:
        return json.loads(content)
    except UnicodeDecodeError:
        raise Unreadable("it is no UTF-8") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"it is no JSON: {error.msg}", error.lineno) from None
    except ValueError:  # sys.get_int_max_str_digits
        raise Unreadable("it holds a number with thousands of digits") from None
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None


def entries(value: object) -> Mapping[str, Mapping[str, Any]]:
    """The entries of dataset_info.json that are mappings. Raises `Unreadable` for what holds none at all."""
    if not isinstance(value, Mapping):
        raise Unreadable("it holds no mapping of dataset names")
    return {str(name): entry for name, entry in value.items() if isinstance(entry, Mapping)}


@dataclass(frozen=True)
class _Places:
    """Where files are looked for. `below`: dataset_dir, as it is written."""

    root: Path
    below: str
    media: str


def gather_datasets(
    values: Mapping[str, Any], info: Mapping[str, Mapping[str, Any]], root: Path
) -> tuple[DatasetFacts, ...]:
    """Those of `dataset` and `eval_dataset`, in that order; a name that stands twice, once for each key."""
    folder = values.get("dataset_dir", "data")
    below = folder if isinstance(folder, str) else ""
    places = _Places(root, below, str(values.get("media_dir") or below))
    left = _READ_IN_ALL
    found: dict[str, DatasetFacts] = {}
    for key in ("dataset", "eval_dataset"):
        for name in names_of(values.get(key)):
            known = found.get(f"dataset {name}")
            each = replace(known, key=key) if known else _dataset(key, name, info.get(name), places, left)
            left -= 0 if known else sum(file.size or 0 for file in each.files)
            found[f"{key} {name}"] = each
    return tuple(found.values())


def names_of(value: object) -> list[str]:
    """The names in `dataset: a,b` or a list of them (hparams/data_args.py, split_arg)."""
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    return [str(word).strip() if isinstance(value, str) else str(word) for word in words]


def _dataset(key: str, name: str, entry: Mapping[str, Any] | None, places: _Places, left: int) -> DatasetFacts:
    facts = DatasetFacts(name, key, entry)
    text = local_name(entry) if entry is not None else None
    if entry is None or text is None:
        return facts
    written = os.path.join(places.below, text)  # noqa: PTH118 as the loader does it
    path = host_path(written, places.root)
    silent = (PathFacts(key, written, path, False, False, path, False, fault="does not answer"),)
    facts = replace(facts, files=answer(lambda: _files(key, written, places.root)) or silent)
    if problem := _types_problem(facts.files):
        return replace(facts, problem=problem)
    return answer(lambda: _with_rows(facts, places, left)) or facts


def _files(key: str, written: str, root: Path) -> tuple[PathFacts, ...]:
    """The file; of a directory everything in it, as the loader takes it."""
    path = host_path(written, root)
    names = names_in(path)[:_FILES_LOOKED_AT] if path.is_dir() else ()
    links = links_outside(path, root)
    if not names:
        return (_file(key, written, path, links),)
    return tuple(_in_directory(key, f"{written.rstrip('/')}/{name}", path / name, root, links) for name in names)


def _in_directory(key: str, text: str, path: Path, root: Path, links: tuple[Path, ...]) -> PathFacts:
    """The links of its directory count for it too."""
    own = links_outside(path, root) if path.is_symlink() else tuple(place / path.name for place in links)
    return _file(key, text, path, own)


def _file(key: str, text: str, path: Path, links: tuple[Path, ...]) -> PathFacts:
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        return PathFacts(key, text, path, False, False, path, False, links=links, fault=said)
    real = Path(os.path.realpath(path))
    readable = os.access(path, os.R_OK)
    plain = stat.S_ISREG(status.st_mode)
    return PathFacts(
        key, text, path, True, path.is_dir(), real, readable, size=status.st_size, links=links, plain=plain
    )


def _types_problem(files: tuple[PathFacts, ...]) -> str | None:
    """Of what the loader refuses by names alone."""
    there = [file for file in files if file.exists]
    if len(there) == 1 and there[0].is_dir:
        return "its directory is empty"
    kinds = {_kind(file): Path(file.text).name for file in there}
    unknown = [name for kind, name in kinds.items() if kind not in FILE_TYPES]
    if unknown:
        return f"{unknown[0]} has no ending of a data file: {', '.join(FILE_TYPES)}"
    if len({"json" if kind == "jsonl" else kind for kind in kinds}) > 1:
        return f"its directory holds files of several types: {', '.join(sorted(kinds.values()))}"
    return None


def _kind(file: PathFacts) -> str:
    return os.path.splitext(file.text)[1][1:]  # noqa: PTH122 as the loader does it


def _with_rows(facts: DatasetFacts, places: _Places, left: int) -> DatasetFacts:
    """Rows of the first files; of the others only their size counts."""
    readable = [file for file in facts.files if file.exists and file.readable and not file.is_dir]
    samples: list[tuple[PathFacts, Sample]] = []
    for file in (file for file in readable[:_FILES_READ] if file.real.is_file()):  # no pipe is opened
        whole = (file.size or 0) <= left
        left -= (file.size or 0) if whole else 0
        samples.append((file, _sample(file, WHOLE if whole else HEAD)))
    faulty = next(((file, sample) for file, sample in samples if sample.problem), None)
    if faulty:
        file, sample = faulty
        return replace(facts, problem=f"{file.text}: {sample.problem}", line=sample.line)
    read = _of_samples(facts, samples, len(readable) == len(facts.files) == len(samples))
    rows = [row for _, sample in samples for row in sample.rows_read[:_MEDIA_LOOKED_AT]]
    return replace(read, absent_media=_absent_media(attributes(facts.entry or {}), rows, places))


def _sample(file: PathFacts, whole: int) -> Sample:
    try:
        return read_sample(file.host, _kind(file), file.size or 0, whole)
    except OSError as error:
        return Sample(problem=f"it cannot be read: {error.strerror}")


def _of_samples(facts: DatasetFacts, samples: list[tuple[PathFacts, Sample]], whole: bool) -> DatasetFacts:
    assert facts.entry is not None
    meant = attributes(facts.entry)
    rows = [row for _, sample in samples for row in sample.rows_read]
    columns = [named for _, sample in samples if (named := sample.named()) is not None]
    read = sum(file.size or 0 for file, sample in samples if sample.rows is not None)
    counted = sum(sample.rows or 0 for _, sample in samples)
    size = sum(file.size or 0 for file in facts.files)
    messages = [message for row in rows for message in _messages(row, meant)]
    counts = Counter(answers(row, meant) for row in rows)
    return replace(
        facts,
        columns=frozenset().union(*columns) if columns else None,
        rows=round(counted * size / read) if read else None,
        mean_tokens=mean_tokens(rows, meant.texts()),
        first=rows[0] if rows else None,
        exact=whole and all(sample.exact for _, sample in samples),
        message_keys=frozenset(str(key) for message in messages for key in message),
        media=frozenset(kind for kind in meant.media if any(row.get(getattr(meant, kind)) for row in rows)),
        broken_rows=sum(not turns_alternate(row, meant) for row in rows) if meant.formatting != "alpaca" else 0,
        read_rows=len(rows),
        answers=(counts[0], counts[1], counts[2]),
        roles=frozenset(str(message[tag]) for message in messages if (tag := meant.role_tag) and tag in message),
    )


def _messages(row: Mapping[str, Any], meant: Attributes) -> list[Mapping[str, Any]]:
    value = row.get(meant.messages) if meant.formatting != "alpaca" and meant.messages else None
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, list) else []


# ---------------------------------------------------------------------------------------------- media


def _absent_media(meant: Attributes, rows: Sequence[Mapping[str, Any]], places: _Places) -> tuple[str, ...]:
    """A file in media_dir, else the path as it is written (data/converter.py, _find_medias)."""
    named = [word for row in rows for kind in meant.media for word in _words(row.get(getattr(meant, kind)))]
    some = dict.fromkeys(named[:_MEDIA_LOOKED_AT])
    return tuple(
        word for word in some if not any(_is_there(place, places.root) for place in (f"{places.media}/{word}", word))
    )


def _words(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _words(each)


def _is_there(text: str, root: Path) -> bool:
    return text.startswith(("http://", "https://", "data:")) or os.path.exists(host_path(text, root))  # noqa: PTH110
