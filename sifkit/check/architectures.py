"""What is known of architectures, from data/architectures.yaml and model_modules.yaml; of a model, from its config."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sifkit import yamlfile
from sifkit.check.facts import Facts, PathFacts
from sifkit.model import Strict

_DATA = Path(__file__).parent.parent / "data"


class Modules(Strict):
    """Names in a model of one type: of all modules, of the parts of a layer, of what lies outside layers."""

    type: str
    modules: tuple[str, ...]
    layer: tuple[str, ...]
    outside: tuple[str, ...]


class Architectures(Strict):
    """All of data/architectures.yaml."""

    conv3d: tuple[str, ...]
    conv3d_templates: tuple[str, ...]
    mixture_of_depths: tuple[str, ...]
    megatron_keys: tuple[str, ...]


class MediaTemplates(Strict):
    """Templates that take images, videos, audios, in these releases of LLaMA-Factory."""

    releases: tuple[str, ...]
    images: tuple[str, ...]
    videos: tuple[str, ...]
    audios: tuple[str, ...]

    def of(self, kind: str) -> tuple[str, ...]:
        """Those that take this kind."""
        return {"images": self.images, "videos": self.videos, "audios": self.audios}[kind]


class _ModuleTable(Strict):
    architectures: tuple[Modules, ...]


@cache
def known() -> Architectures:
    """The table."""
    return yamlfile.load_own(_DATA / "architectures.yaml", Architectures)


@cache
def media_templates() -> MediaTemplates:
    """The table."""
    return yamlfile.load_own(_DATA / "media_templates.yaml", MediaTemplates)


@cache
def _modules() -> dict[str, Modules]:
    rows = yamlfile.load_own(_DATA / "model_modules.yaml", _ModuleTable).architectures
    return {row.type: row for row in rows}


def modules_of(model_type: object) -> Modules | None:
    """By its model_type; None: no row knows it."""
    return _modules().get(str(model_type))


def model_of(facts: Facts) -> PathFacts | None:
    """The directory of the model that is trained, if it is on this host and has a config.json."""
    found = facts.checkout.at("model_name_or_path") if facts.checkout else ()
    return next((path for path in found if path.json is not None), None)


def config_of(facts: Facts) -> Mapping[str, Any]:
    """That model's config.json; empty when it is not here."""
    model = model_of(facts)
    return model.json or {} if model else {}


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of a model of several parts, the part that reads text."""
    inner = config.get("text_config")
    return inner if isinstance(inner, Mapping) else config


def layers(config: Mapping[str, Any]) -> int | None:
    """How many layers it has (model/adapter.py, _setup_freeze_tuning)."""
    inner = text_config(config)
    found = inner.get("num_hidden_layers") or inner.get("num_layers") or inner.get("n_layer")
    return found if isinstance(found, int) else None
