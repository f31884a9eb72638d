"""Models: a directory on this host, or a name on a hub and what this host's cache has of it.

Sources: transformers 4.57.1 and 5.6.0 (modeling_utils.py, utils/hub.py); huggingface_hub 0.36.2 and 1.33.0
(constants.py, file_download.py, utils/_validators.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sifkit.check.facts import HubModel, PathFacts
from sifkit.gather.looking import is_plain, names_in, read_object, read_plain
from sifkit.rundir.whole import fault_of

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")  # in the order of preference
_WEIGHTS = re.compile(r"(adapter_)?(model|pytorch_model).*\.(safetensors|bin)|consolidated.*\.(safetensors|pth)")
_POINTER = b"version https://git-lfs"
_POINTER_SIZE = 1024  # bytes; a pointer of git-lfs has some 130
_LOOKED_INTO = 64  # weight files whose header is read
_REPO_ID = re.compile(r"(\b[\w\-.]{1,96}\b/)?\b[\w\-.]{1,96}\b", re.ASCII)


def is_hub_name(text: str) -> bool:
    """Whether the hub's own client takes it as a name (utils/_validators.py)."""
    plain = _REPO_ID.fullmatch(text) and "--" not in text and ".." not in text
    return bool(plain) and not text.endswith(".git")


def with_model(facts: PathFacts) -> PathFacts:
    """A model's or an adapter's directory: its config, the size of its weights, what of them is missing or damaged."""
    directory = facts.host
    names = names_in(directory)
    config = "adapter_config.json" if "adapter_config.json" in names and "config.json" not in names else "config.json"
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    files = [directory / name for name in weights if is_plain(directory / name)]
    return replace(
        facts,
        names=names,
        json=read_object(directory / config),
        size=sum(file.stat().st_size for file in files),
        missing=missing_files(directory, names),
        pointers=tuple(file.name for file in files if _is_pointer(file)),
        damaged=_damaged(files[:_LOOKED_INTO]),
    )


def missing_files(directory: Path, names: tuple[str, ...]) -> tuple[str, ...]:
    """Shards that the index names, and links that lead nowhere."""
    broken = [name for name in names if not os.path.exists(directory / name)]  # noqa: PTH110 never raises
    shards = {shard for shard in _shards(directory, names) if not is_plain(directory / shard)}
    return tuple(sorted({*broken, *shards}))


def _shards(directory: Path, names: tuple[str, ...]) -> frozenset[str]:
    """What the index names; transformers looks at none where model.safetensors lies there whole."""
    if "model.safetensors" in names:
        return frozenset()
    index = next((name for name in _INDEXES if name in names), None)
    if index is None or (index == _INDEXES[1] and "pytorch_model.bin" in names):
        return frozenset()
    weight_map = (read_object(directory / index) or {}).get("weight_map")
    return frozenset(map(str, weight_map.values())) if isinstance(weight_map, dict) else frozenset()


def _is_pointer(file: Path) -> bool:
    return file.stat().st_size < _POINTER_SIZE and (read_plain(file, 100) or b"").startswith(_POINTER)


def _damaged(files: list[Path]) -> tuple[str, ...]:
    """Of safetensors alone: what a file of torch.save holds is not known without running it."""
    found = []
    for file in files:
        if file.suffix == ".safetensors" and not _is_pointer(file):
            try:
                fault = fault_of(file)
            except OSError as error:
                fault = f"cannot be read: {error.strerror}"
            found += [f"{file.name} {fault}"] if fault else []
    return tuple(found)


# ---------------------------------------------------------------------------------------------- the hub's cache


@dataclass(frozen=True)
class Hub:
    """Where a hub's client looks, and what it is told."""

    name: str  # huggingface or modelscope
    cache: Path
    token: bool
    offline: bool


def hub_of(values: Mapping[str, Any], environ: Mapping[str, str], hf_home: str | None) -> Hub:
    """By the config and the variables that the run will see. `hf_home`: the site's."""
    own = values.get("cache_dir")
    if environ.get("USE_MODELSCOPE_HUB", "0").lower() in ("true", "y", "1"):  # extras/misc.py, is_env_enabled
        home = Path(environ.get("HOME", "/"))
        place = own or environ.get("MODELSCOPE_CACHE") or home / ".cache/modelscope/hub"
        return Hub("modelscope", Path(place), bool(values.get("ms_hub_token")), offline=False)
    home = _hf_home(environ, hf_home)
    place = own or environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE") or home / "hub"
    token = values.get("hf_hub_token") or environ.get("HF_TOKEN") or (read_plain(home / "token", 9) or b"").strip()
    offline = _is_true(environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE"))
    return Hub("huggingface", Path(os.path.expandvars(str(place))), bool(token), offline)


def _hf_home(environ: Mapping[str, str], site: str | None) -> Path:
    named = environ.get("HF_HOME") or site
    if named:
        return Path(named.replace("~", environ.get("HOME", "~"), 1) if named.startswith("~") else named)
    cache = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '')}/.cache"
    return Path(cache) / "huggingface"


def _is_true(text: str | None) -> bool:
    return (text or "").upper() in ("1", "TRUE", "YES", "ON")  # huggingface_hub/constants.py


def hub_model(key: str, name: str, revision: str, hub: Hub) -> HubModel:
    """What the cache has of a model."""
    known = HubModel(key, name, hub.name, hub.cache, None, token=hub.token, offline=hub.offline)
    if hub.name == "modelscope":
        found = next((place for place in _modelscope(hub.cache, name) if place.is_dir()), None)
        return replace(known, snapshot=found, missing=_lacking(found) if found else ())
    folder = hub.cache / f"models--{name.replace('/', '--')}"
    partial = sum(blob.endswith(".incomplete") for blob in names_in(folder / "blobs"))
    snapshot = _snapshot(folder, revision)
    return replace(known, snapshot=snapshot, missing=_lacking(snapshot) if snapshot else (), partial=partial)


def _modelscope(cache: Path, name: str) -> tuple[Path, ...]:
    """modelscope has written names with a dot as three underscores, and below models/ since 1.22."""
    names = (name, name.replace(".", "___"))
    return tuple(cache / below / each for below in ("models", ".", "hub/models", "hub") for each in names)


def _snapshot(folder: Path, revision: str) -> Path | None:
    """refs/REVISION names the commit whose files are linked below snapshots/."""
    commit = (read_plain(folder / "refs" / revision, 200) or revision.encode()).decode("utf-8", "replace").strip()
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and "/" not in commit and snapshot.is_dir() else None


def _lacking(snapshot: Path) -> tuple[str, ...]:
    names = names_in(snapshot)
    found = list(missing_files(snapshot, names))
    found += [] if "config.json" in names or "adapter_config.json" in names else ["config.json"]
    weights = any(_WEIGHTS.fullmatch(name) for name in names) or any(name in names for name in _INDEXES)
    return tuple(found if weights else [*found, "its weights"])
