"""Before the smoke run: is the checkout whole and of the image's version, can this config be tried here?

Reads files of the host only, so that a mistake is said before any container starts.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sifkit import checkout as checkouts
from sifkit.errors import UsageError
from sifkit.model import Method
from sifkit.places import fault_of
from sifkit.verify.checks import Check, Level, any_failed, failed, not_run, passed, warned
from sifkit.verify.request import VerifyOptions
from sifkit.verify.smoke import TrainConfig, default_config, read_config, with_method

_MEDIA = {"images", "videos", "audios"}  # llamafactory/data/parser.py, DatasetAttr


@dataclass(frozen=True)
class TrainSetup:
    """What the smoke run needs. `model` None: a tiny one is made."""

    checkout: Path
    config: TrainConfig
    model: Path | None
    device: Literal["gpu", "cpu"]
    method: Method | None = None  # in the place of the config's own


def prepare(options: VerifyOptions, version: str | None) -> tuple[TrainSetup | None, tuple[Check, ...]]:
    """The setup, or None and the checks that say why not. `version`: LLaMA-Factory in the image, None if not known."""
    checkout, model = options.checkout, options.model
    checks = (*judge_checkout(checkout, version), *judge_caches(options.caches))
    if any_failed(checks):
        return None, checks
    try:
        read = with_method(read_config(options.config or default_config(checkout)), options.method)
    except UsageError as error:
        return None, (*checks, failed(Level.TRAIN, "config", error.message, error.message, error.fix))
    problem = judge_model(model) or judge_config(read, read_dataset_info(checkout), model)
    if problem:
        return None, (*checks, problem)
    given = model.absolute() if model else None
    setup = TrainSetup(checkout.absolute(), read, given, options.device, options.method)
    return setup, (*checks, *judge_resumable(read))


def judge_caches(caches: Mapping[str, str]) -> tuple[Check, ...]:
    """A file can be written, and locked, in each cache that the user's jobs are given: it is tried."""
    name = "caches are writable"
    faults = {variable: fault for variable, path in caches.items() if (fault := fault_of(Path(path)))}
    if not caches:
        return ()
    if not faults:
        return (passed(Level.TRAIN, name, ", ".join(caches)),)
    said = "; ".join(f"{variable}={caches[variable]}: {fault}" for variable, fault in faults.items())
    cause = "a job that is given this cache stops when it first writes to it"
    fix = f"point {', '.join(faults)} to a directory of yours that can be written, or unset it"
    return (failed(Level.TRAIN, name, said, cause, fix),)


def judge_checkout(checkout: Path, version: str | None) -> tuple[Check, ...]:
    """The checkout is whole and of the image's version."""
    found = checkouts.problems(checkout, version)
    if found:
        return tuple(
            failed(Level.TRAIN, "checkout", problem.message, problem.message, problem.fix) for problem in found
        )
    return (passed(Level.TRAIN, "checkout", f"LLaMA-Factory {checkouts.version_of(checkout)}, whole"),)


def judge_model(model: Path | None) -> Check | None:
    """What is wrong with a real model's directory; None when nothing is, or a tiny one will be made."""
    if model is None or (model / "config.json").is_file():
        return None
    fix = "name the directory that holds config.json, the weights and the tokenizer"
    return failed(Level.TRAIN, "model", f"{model} has no config.json", "it is no model directory", fix)


def read_dataset_info(checkout: Path) -> dict[str, dict[str, Any]]:
    """data/dataset_info.json of a checkout that `judge_checkout` found whole."""
    info = json.loads((checkout / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    return {name: entry for name, entry in info.items() if isinstance(entry, dict)}


def judge_config(config: TrainConfig, info: dict[str, dict[str, Any]], model: Path | None) -> Check | None:
    """Why this config cannot run, or cannot be tried with a smoke run; None when it can."""
    if config.stage == "ppo":
        return not_run(Level.TRAIN, "smoke run", "stage ppo needs a trained reward model")
    if config.dataset_dir != "data":
        return None  # registered elsewhere: the run itself will say what is missing
    for name in (*config.datasets, *config.eval_datasets):
        if name not in info:
            return _undefined(config, name, info)
    media = [name for name in config.datasets if _MEDIA & set(info[name].get("columns") or {})]
    if media and model is None:
        reason = f"{', '.join(media)} has images, video or audio; the smoke model reads text. Give one: --model DIR"
        return not_run(Level.TRAIN, "smoke run", reason)
    return None


def _undefined(config: TrainConfig, name: str, info: dict[str, dict[str, Any]]) -> Check:
    near = difflib.get_close_matches(name, info, n=1)
    hint = f"did you mean {near[0]}?" if near else "add an entry for it"
    cause = f"dataset {name} is not registered in data/dataset_info.json"
    return failed(Level.TRAIN, "config", f"{config.path.name} trains on {name}", cause, hint)


def judge_resumable(config: TrainConfig) -> tuple[Check, ...]:
    """Said of the user's own config, which the smoke run overrides."""
    if not config.save_only_model:
        return ()
    said = "a stopped job would start again at step 0"
    cause = f"{config.path.name} sets save_only_model: true, so that its checkpoints hold no optimizer"
    return (warned(Level.TRAIN, "the config can resume", said, cause, "save_only_model: false"),)
