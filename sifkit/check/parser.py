"""LLaMA-Factory's own parser, foretold: every reason for which it would refuse a config. Pure.

`llamafactory-cli train FILE.yaml` builds its argument classes from the file, then checks them against each other. What
it does in between stands in sifkit/data/parser, step by step; `refusals` takes those steps. Agreement with the real
parser of real images is measured in tests/image/test_parser_agreement.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sifkit.check.facts import ImageFacts
from sifkit.check.parser_steps import Step, steps_of
from sifkit.check.parser_words import Words

# The series whose sources the steps were read from, and which the agreement test ran against.
_LLAMAFACTORY = ("0.9.4", "0.9.5")
_TRANSFORMERS = {"4.57": "transformers-4.yaml", "5.6": "transformers-5.yaml"}


@dataclass(frozen=True)
class Device:
    """What a process of the run will find. `tf32`: compute capability 8 or newer. `gpus`: those that it sees."""

    gpu: bool
    tf32: bool = True
    gpus: int = 1
    distributed: bool = False  # started by torchrun, as llamafactory-cli does by itself where it sees several GPUs


@dataclass(frozen=True)
class Refusal:
    """A reason to refuse. `raised`: the exception; `message`: its text, as near to the parser's as Python says it."""

    id: str
    raised: str
    message: str
    keys: tuple[str, ...]
    fix: str
    source: str
    package: str | None = None  # the distribution that the image has not, or in another version


@dataclass
class _Parsing:
    """The state of one parse: arguments as the steps so far have left them."""

    image: ImageFacts
    values: Mapping[str, Any]
    names: dict[str, Any]
    blamed: set[str] = field(default_factory=set)  # keys of refusals that were exceptions: what follows is not news


def covered(image: ImageFacts) -> bool:
    """Whether the steps were read from the sources of this image's versions, and it has the arguments they name."""
    if image.llamafactory not in _LLAMAFACTORY or _series(image.transformers) not in _TRANSFORMERS:
        return False
    return all(image.argument(name) for name in _arguments_of(image.llamafactory, image.transformers))


@lru_cache
def _arguments_of(llamafactory: str, transformers: str) -> frozenset[str]:
    """Those that the steps look at before they set them themselves."""
    own = {*Words.names(), *_found(Device(gpu=False))}
    names: set[str] = set()
    for step in _steps(llamafactory, transformers):
        if step is not None:
            names.update(name for name in step.looks_at() if name not in own)
            own.update(name for name, _ in step.let)
    return frozenset(names)


def refusals(
    values: Mapping[str, Any], image: ImageFacts, device: Device, files: Mapping[str, Any] | None = None
) -> tuple[Refusal, ...]:
    """Every reason for which the image's parser refuses these values; the first is the one that it would say.

    `files`: contents of JSON and YAML files that values name, by their text; None for one that cannot be read. Of
    others nothing is known, and they count as readable. Whether output_dir holds something is not looked at. Raises
    `ValueError` for an image that is not `covered`.
    """
    if not covered(image):
        raise ValueError(f"no steps for LLaMA-Factory {image.llamafactory} with transformers {image.transformers}")
    parsing = _Parsing(image, values, _names(values, image, device, {} if files is None else files))
    return tuple(_taken(parsing))


def _names(values: Mapping[str, Any], image: ImageFacts, device: Device, files: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {argument.name: argument.default for argument in image.arguments}
    known = {key: value for key, value in values.items() if key in defaults}
    return {**Words(image, files).all(), **defaults, **known, **_found(device)}


def _found(device: Device) -> dict[str, Any]:
    """What the steps know of the device."""
    return {
        "on_gpu": device.gpu,
        "has_tf32": device.gpu and device.tf32,
        "gpus": device.gpus if device.gpu else 0,
        "is_distributed": device.distributed,
        "is_zero3": False,
    }


def _taken(parsing: _Parsing) -> Iterator[Refusal]:
    for step in _steps(parsing.image.llamafactory, parsing.image.transformers):
        refusal = _take(step, parsing) if step else _unknown_keys(parsing)
        if refusal:
            yield refusal


@lru_cache
def _steps(llamafactory: str, transformers: str) -> tuple[Step | None, ...]:
    """All that are taken, in their order. None: where keys are refused that no class has taken."""
    of_transformers = _TRANSFORMERS[_series(transformers)]
    before = [step for section in ("model", "data", "ray") for step in steps_of("llamafactory.yaml", section)]
    training = [step for step in steps_of(of_transformers, "training") if step.is_of(Version(transformers))]
    finetuning, checks = (steps_of("llamafactory.yaml", section) for section in ("finetuning", "checks"))
    ours = Version(llamafactory)
    taken = [step for step in before if step.is_of(ours)], [step for step in finetuning if step.is_of(ours)]
    return (*taken[0], *training, *taken[1], None, *(step for step in checks if step.is_of(ours)))


def _take(step: Step, parsing: _Parsing) -> Refusal | None:
    try:
        if step.when and not step.when.value(parsing.names):
            return None
        parsing.names.update({name: expression.value(parsing.names) for name, expression in step.let})
        if step.package:
            return _lacking(step, parsing.image)
        if not (step.refuse and step.refuse.value(parsing.names)):
            return None
    except Exception as error:  # whatever the parser would have raised
        return _raised(step, error, parsing)
    if parsing.blamed & set(step.keys):
        return None
    return Refusal(step.id, step.raises, step.says.format_map(parsing.names), step.keys, step.fix or "", step.source)


def _raised(step: Step, error: Exception, parsing: _Parsing) -> Refusal | None:
    arguments = [name for name in step.names() if parsing.image.argument(name)]
    keys = tuple(name for name in arguments if name in parsing.values) or tuple(arguments)
    if parsing.blamed & set(keys):
        return None
    parsing.blamed.update(keys)
    return Refusal(step.id, type(error).__name__, str(error), keys, _typed(keys, parsing.image), step.source)


def _typed(keys: tuple[str, ...], image: ImageFacts) -> str:
    known = [argument for argument in map(image.argument, keys) if argument]
    return "correct " + ", ".join(f"{argument.name} ({argument.type.replace(' | ', ' or ')})" for argument in known)


def _lacking(step: Step, image: ImageFacts) -> Refusal | None:
    """transformers' require_version."""
    requirement = Requirement(step.package or "")
    found = image.packages.get(canonicalize_name(requirement.name))
    if found is None:
        message = f"The '{step.package}' distribution was not found and is required by this application."
        return _without(step, "PackageNotFoundError", message, requirement.name)
    if _is_in(found, requirement):
        return None
    needed = f"{step.package} is required for a normal functioning of this module"
    message = f"{needed}, but found {requirement.name}=={found}."
    return _without(step, "ImportError", message, requirement.name)


def _without(step: Step, raised: str, message: str, package: str) -> Refusal:
    return Refusal(step.id, raised, message, step.keys, step.fix or "", step.source, package)


def _is_in(version: str, requirement: Requirement) -> bool:
    """Compared plainly, as transformers/utils/versions.py does: 2.6.0+cu124 is above 2.6.0."""
    compare = {"<": operator.lt, "<=": operator.le, "==": operator.eq, ">=": operator.ge, ">": operator.gt}
    try:
        return all(compare[part.operator](Version(version), Version(part.version)) for part in requirement.specifier)
    except InvalidVersion:
        return False


def _unknown_keys(parsing: _Parsing) -> Refusal | None:
    unknown = [key for key in parsing.values if not isinstance(key, str) or parsing.image.argument(key) is None]
    if not unknown:
        return None
    keys = sorted(map(str, unknown))
    message = f"Some keys are not used by the HfArgumentParser: {keys}"
    source = "transformers, hf_argparser.py: HfArgumentParser.parse_dict"
    return Refusal("unknown-keys", "ValueError", message, tuple(keys), "correct or remove them", source)


def _series(version: str) -> str:
    return ".".join(version.split(".")[:2])
