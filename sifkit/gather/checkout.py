"""A checkout, and what the config names in and beside it: looked at here, at the place where the container finds it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from sifkit import checkout as checkouts
from sifkit.check.facts import (
    CheckoutFacts,
    CheckpointFacts,
    ConfigFacts,
    HubModel,
    ImageFacts,
    PathFacts,
    Problem,
)
from sifkit.errors import UsageError
from sifkit.gather import datasets
from sifkit.gather.looking import MAX_JSON, answer, links_outside, names_in, read_object, read_plain
from sifkit.gather.model_files import hub_model, hub_of, is_hub_name, with_model
from sifkit.launch import host_path, passed_names
from sifkit.rundir.checkpoints import Status, judge_checkpoint, step_of
from sifkit.rundir.files import look_at, walk
from sifkit.rundir.trainlog import read_state

MODELS = (
    "model_name_or_path",
    "adapter_name_or_path",
    "reward_model",
    "reward_model_adapters",
    "ref_model",
    "ref_model_adapters",
)
FILES = ("deepspeed", "fsdp_config", "new_special_tokens_config")  # a path, where they are no mapping
DIRECTORIES = ("media_dir", "tokenized_path", "cache_dir", "resume_from_checkpoint")
_LISTS = ("adapter_name_or_path",)  # split at commas (hparams/model_args.py)
_JUDGED = 8  # checkpoints, the newest first
_FILES_EACH = 2_000  # of a checkpoint


def gather_checkout(
    root: Path,
    config: ConfigFacts,
    image: ImageFacts | None,
    *,
    shared: bool,
    environ: Mapping[str, str],
    hf_home: str | None = None,
) -> CheckoutFacts:
    """Everything of it. `environ`: the caller's. `hf_home`: the site's."""
    values = config.values
    info_path, info, problem = _dataset_info(values.get("dataset_dir", "data"), root)
    paths, hub = _paths(values, root, _hub_environment(image, environ), hf_home)
    named = values.get("output_dir")
    output = _look("output_dir", named, root) if isinstance(named, str) and named else None
    version, problems = _judged(root, image)
    return CheckoutFacts(
        root=root,
        version=version,
        problems=problems,
        dataset_info=info,
        dataset_info_path=info_path,
        datasets=datasets.gather_datasets(values, info, root) if info is not None else (),
        paths=paths,
        output=output,
        checkpoints=gather_checkpoints(output.host) if output and output.is_dir else (),
        shared=shared,
        hub=hub,
        info_problem=problem,
    )


def _judged(root: Path, image: ImageFacts | None) -> tuple[str | None, tuple[Problem, ...]]:
    try:
        version = checkouts.version_of(root)
    except UsageError as error:
        return None, (Problem(error.message, error.fix),)
    found = checkouts.problems(root, image.llamafactory if image else None)
    return version, tuple(Problem(each.message, each.fix) for each in found)


def _hub_environment(image: ImageFacts | None, environ: Mapping[str, str]) -> Mapping[str, str]:
    """What the image sets counts in it; of the caller's, what a launch hands over (launch.ENVIRONMENT_PASSED)."""
    passed = {name: environ[name] for name in ("HOME", *passed_names(environ)) if name in environ}
    return {**(image.environment if image else {}), **passed}


# ---------------------------------------------------------------------------------------------- dataset_info.json


def _dataset_info(
    dataset_dir: object, root: Path
) -> tuple[Path | None, Mapping[str, Mapping[str, Any]] | None, Problem | None]:
    """Its path, what it holds, and why it cannot be read. Nothing of all that where it is online."""
    if isinstance(dataset_dir, Mapping):  # the mapping itself (data/parser.py, get_dataset_list)
        return None, datasets.entries(dataset_dir), None
    if not isinstance(dataset_dir, str) or dataset_dir == "ONLINE" or dataset_dir.startswith("REMOTE:"):
        return None, None, None
    path = host_path(dataset_dir, root) / "dataset_info.json"
    content = answer(lambda: read_plain(path, MAX_JSON))
    if content is None:
        return path, None, None if not os.path.exists(path) else Problem("it is no file that can be read")  # noqa: PTH110
    try:
        return path, datasets.entries(datasets.parse(content)), None
    except datasets.Unreadable as error:
        return path, None, Problem(str(error), line=error.line)


# ---------------------------------------------------------------------------------------------- paths


def _paths(
    values: Mapping[str, Any], root: Path, environ: Mapping[str, str], hf_home: str | None
) -> tuple[tuple[PathFacts, ...], tuple[HubModel, ...]]:
    hub = hub_of(values, environ, hf_home)
    revision = str(values.get("model_revision") or "main")
    paths: list[PathFacts] = []
    models: list[HubModel] = []
    for key, text in _named(values):
        found = _look(key, text, root)
        if key in MODELS and not found.exists and not text.startswith("/") and is_hub_name(text):
            model = hub_model(key, text, revision, hub)
            models.append(model)
            paths += [_cached(found, model)] if model.snapshot else []
        else:
            paths.append(found)
    return tuple(paths), tuple(models)


def _named(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Every path that the config names, with its key."""
    dataset_dir = values.get("dataset_dir")
    if isinstance(dataset_dir, str) and dataset_dir not in ("", "ONLINE") and not dataset_dir.startswith("REMOTE:"):
        yield "dataset_dir", dataset_dir
    for key in (*MODELS, *FILES, *DIRECTORIES):
        value = values.get(key)
        words = value if isinstance(value, list | tuple) else str(value).split(",") if key in _LISTS else [value]
        for word in words if value is not None else ():
            text = word.strip() if isinstance(word, str) else ""
            if text and not text.startswith(("{", "http://", "https://")):
                yield key, text


def _look(key: str, text: str, root: Path) -> PathFacts:
    path = host_path(text, root)
    found = answer(lambda: _looked_at(key, text, path, root))
    return found or PathFacts(key, text, path, False, False, path, False, fault="does not answer")


def _looked_at(key: str, text: str, path: Path, root: Path) -> PathFacts:
    try:
        exists, is_dir = path.exists(), path.is_dir()
        real = Path(os.path.realpath(path))
        size = path.stat().st_size if exists and not is_dir else None
        readable = os.access(path, os.R_OK | os.X_OK if is_dir else os.R_OK)
        links = links_outside(path, root)
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        return PathFacts(key, text, path, False, False, path, False, fault=said)
    facts = PathFacts(key, text, path, exists, is_dir, real, readable, size=size, links=links)
    if is_dir and key in MODELS:
        return with_model(facts)
    if is_dir:
        return replace(facts, names=names_in(path))
    return replace(facts, json=read_object(path) if key in FILES else None)


def _cached(found: PathFacts, model: HubModel) -> PathFacts:
    """The snapshot of a hub's model, as a path of its own: what it needs can be reckoned from it."""
    assert model.snapshot is not None
    real = Path(os.path.realpath(model.snapshot))
    facts = replace(found, host=model.snapshot, exists=True, is_dir=True, real=real, readable=True, links=())
    return answer(lambda: with_model(facts)) or facts


# ---------------------------------------------------------------------------------------------- checkpoints


def gather_checkpoints(output: Path) -> tuple[CheckpointFacts, ...]:
    """By step; the newest are judged, by their files and the end of their state, without reading weights."""
    steps = {step: name for name in names_in(output) if (step := step_of(name)) is not None}
    newest = sorted(steps, reverse=True)[:_JUDGED]
    return tuple(_checkpoint(output, steps[step], step, judged=step in newest) for step in sorted(steps))


def _checkpoint(output: Path, name: str, step: int, *, judged: bool) -> CheckpointFacts:
    path = output / name
    if not judged or not path.is_dir():
        return CheckpointFacts(path, step, ())
    files = tuple(
        found for below, entry in islice(walk(path), _FILES_EACH) for found in look_at(path, below, entry, check=False)
    )
    latest = (read_plain(path / "latest", 200) or b"").decode("utf-8", "replace").strip() or None
    whole = judge_checkpoint(name, files, _shards(path), latest, read_state(path / "trainer_state.json"))
    missing = [problem.removesuffix(" is missing") for problem in whole.problems]
    return CheckpointFacts(path, step, (*missing, *(["the optimizer"] if whole.status is Status.MODEL_ONLY else [])))


def _shards(path: Path) -> dict[str, frozenset[str]]:
    found = {}
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        weight_map = (read_object(path / index) or {}).get("weight_map")
        if isinstance(weight_map, dict):
            found[index] = frozenset(map(str, weight_map.values()))
    return found
