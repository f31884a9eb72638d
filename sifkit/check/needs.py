"""What a run needs, estimated from the facts: for the rules of memory, disk and steps. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from packaging.version import InvalidVersion, Version

from sifkit.check.architectures import config_of, model_of
from sifkit.check.facts import DatasetFacts, Facts
from sifkit.estimate.disk import Disk, disk
from sifkit.estimate.memory import Estimate, memory
from sifkit.estimate.model import Shape, Value, read_shape
from sifkit.estimate.run import RunLength, run_length
from sifkit.estimate.settings import Unknown

_QUANTISED = ("gptq", "awq", "aqlm", "hqq", "eetq", "bitsandbytes")
_FUSED_EXPERTS = Version("5.0")  # transformers that keeps experts in one tensor


def processes(facts: Facts) -> int:
    """Of the whole run: one for each GPU."""
    job = facts.job
    return max(1, job.nodes * max(1, job.gpus)) if job else 1


def shape_of(facts: Facts) -> Shape | Unknown:
    """The model's sizes. Of a multimodal one, what the files hold beyond the language model counts as vision."""
    config = config_of(facts)
    if not config:
        return Unknown("the model's config.json is not here")
    quantised = config.get("quantization_config")
    if isinstance(quantised, Mapping) and quantised.get("quant_method") in _QUANTISED:
        return Unknown("there is no estimate for a model that is quantised already")
    shape = read_shape(config, fused_experts=_fused(facts))
    if shape is None:
        return Unknown(f"there is no estimate for models of type {config.get('model_type')}")
    return _with_vision(shape, config, facts)


def _fused(facts: Facts) -> bool:
    try:
        return facts.image is None or Version(facts.image.transformers) >= _FUSED_EXPERTS
    except InvalidVersion:
        return True


def _with_vision(shape: Shape, config: Mapping[str, Any], facts: Facts) -> Shape | Unknown:
    if "vision_config" not in config and "audio_config" not in config:
        return shape
    size = _weights_size(facts)
    if size is None:
        return Unknown("the size of the model's files is not known")
    return replace(shape, vision=max(0, size // stored(facts) - shape.text))


def _weights_size(facts: Facts) -> int | None:
    model = model_of(facts)
    return model.size if model else None


def stored(facts: Facts) -> int:
    """Bytes of a number in the model's files, as it is loaded (torch_dtype: auto in model/loader.py)."""
    config = config_of(facts)
    text = config.get("text_config")
    named = [each.get(key) for each in (config, text) if isinstance(each, Mapping) for key in ("dtype", "torch_dtype")]
    word = next((str(each) for each in named if each), "bfloat16")
    return 4 if word.endswith("float32") else 2


def deepspeed_of(facts: Facts) -> Mapping[str, Any] | None:
    """DeepSpeed's configuration, where it was read."""
    found = facts.checkout.at("deepspeed") if facts.checkout else ()
    return next((path.json for path in found if path.json is not None), None)


def memory_of(facts: Facts, changes: Mapping[str, Any] | None = None) -> Estimate | Unknown:
    """Of one GPU, with some values changed."""
    shape = shape_of(facts)
    if isinstance(shape, Unknown):
        return shape
    value = changed(facts, changes or {})
    return memory(shape, value, processes=processes(facts), stored=stored(facts), deepspeed=deepspeed_of(facts))


def changed(facts: Facts, changes: Mapping[str, Any]) -> Value:
    """The config's values, some replaced."""
    return lambda key: changes[key] if key in changes else facts.value(key)


def length_of(facts: Facts) -> RunLength | Unknown:
    """Steps and tokens."""
    datasets: tuple[DatasetFacts, ...] = facts.checkout.datasets if facts.checkout else ()
    return run_length(facts.value, datasets, processes(facts))


def disk_of(facts: Facts, changes: Mapping[str, Any] | None = None) -> Disk | Unknown:
    """Of output_dir, with some values changed."""
    shape, length = shape_of(facts), length_of(facts)
    if isinstance(shape, Unknown):
        return shape
    steps = length.steps if isinstance(length, RunLength) else None
    value = changed(facts, changes or {})
    return disk(shape, value, stored=stored(facts), steps=steps, deepspeed=deepspeed_of(facts))


def gib(size: int) -> str:
    """Bytes, as people read them."""
    return f"{size / 1024**3:.3g} GiB" if size >= 1024**3 else f"{size / 1024**2:.3g} MiB"
