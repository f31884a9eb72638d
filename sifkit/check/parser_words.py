"""The words that steps of the parser (sifkit/data/parser) may use, beside Python's own operators. Pure.

Each does what a function or a constructor of LLaMA-Factory, transformers or accelerate does, and raises as that does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from packaging.version import InvalidVersion, Version

from sifkit.check.facts import ImageFacts

# accelerate/utils/constants.py and transformers/trainer_utils.py (FSDPOption), the same in transformers 4.57 and 5.6
_FSDP_OPTIONS = (
    "full_shard",
    "shard_grad_op",
    "no_shard",
    "hybrid_shard",
    "hybrid_shard_zero2",
    "offload",
    "auto_wrap",
)
# transformers/trainer_pt_utils.py: fields of AcceleratorConfig
_ACCELERATOR = frozenset(
    {
        "split_batches",
        "dispatch_batches",
        "even_batches",
        "use_seedable_sampler",
        "non_blocking",
        "gradient_accumulation_kwargs",
        "use_configured_state",
    }
)
# integrations/integration_utils.py: get_available_reporting_integrations, package by name of the integration
_REPORTERS = {
    "azure_ml": "azureml",
    "comet_ml": "comet-ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "codecarbon": "codecarbon",
    "clearml": "clearml",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
_TRUE, _FALSE = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")
_LARGEST_SEED = 2**32 - 1  # numpy.random.seed


@dataclass(frozen=True)
class Words:
    """The words for one image, and for the files that a config names: their content, None for one that cannot be read.

    Of a file that is not in `files` nothing is known; it counts as readable.
    """

    image: ImageFacts
    files: Mapping[str, Any]

    @classmethod
    def names(cls) -> frozenset[str]:
        """Of all words."""
        nothing: Any = None
        return frozenset(cls(nothing, {}).all())

    def all(self) -> dict[str, Any]:
        """By name."""
        plain: Mapping[str, Callable[..., Any]] = {
            word.__name__.lstrip("_"): word
            for word in (_split, _json_dict, _one_of, _fspath, _join, _timedelta, _environ, _seeded, _accelerator)
        }
        fsdp = {"fsdp_option": _fsdp_option, "fsdp_plugin_5": _fsdp_plugin_5, "fsdp_plugin_4": _fsdp_plugin_4}
        builtin = {word.__name__: word for word in (isinstance, int, float, str, dict, len, max, any)}
        own = {
            "choice": self.choice,
            "reporters": self.reporters,
            "opened": self.opened,
            "opened_json": self.opened_json,
            "deepspeed_content": self.deepspeed_content,
            "at_least": self.at_least,
            "is_backend": _is_backend,
            "accelerator": self.accelerator,
        }
        return {**builtin, **plain, **fsdp, **own}

    def choice(self, name: str, value: object, kind: str) -> str:
        """transformers' ExplicitEnum(value): one of the argument's choices."""
        argument = self.image.argument(name)
        return _one_of(value, argument.choices if argument else (), kind)

    def reporters(self, value: Any) -> list[Any]:
        """TrainingArguments.report_to as `__post_init__` leaves it."""
        if value in ("all", ["all"]):
            return [name for name, package in _REPORTERS.items() if package in self.image.packages]
        if value in ("none", ["none"]):
            return []
        return value if isinstance(value, list) else [value]

    def opened_json(self, path: str) -> Any:
        """The content of a JSON file; of one that is named as YAML, the parser makes nothing."""
        if path.endswith((".yaml", ".yml")):
            raise ValueError(f"{path} is read as JSON: Expecting value: line 1 column 1 (char 0)")
        return self.opened(path)

    def opened(self, path: object) -> Any:
        """The content of a file."""
        if not isinstance(path, str):
            raise TypeError("Unexpected file type")
        content = self.files.get(path, {})
        if content is None:
            raise FileNotFoundError(f"[Errno 2] No such file or directory: {path!r}")
        return content

    def accelerator(self, value: Any) -> dict[str, Any]:
        """AcceleratorConfig of a mapping or a JSON file."""
        if isinstance(value, str):
            return _accelerator(self.opened_json(value))
        return _accelerator(value)

    def deepspeed_content(self, value: Any) -> Any:
        """accelerate's HfDeepSpeedConfig: a mapping, or a file. Of an unknown file: one that is well."""
        if isinstance(value, dict):
            return value
        if not isinstance(value, str):
            raise TypeError(f"a DeepSpeed config is a path or a mapping, not {type(value).__name__}")
        content = self.files.get(value, {"zero_optimization": {}})
        if content is None:
            raise ValueError(
                "Expected a string path to an existing deepspeed config, or a dictionary, or a base64 encoded string. "
                f"Received: {value}"
            )
        return content

    def at_least(self, package: str, version: str) -> bool:
        """Whether the image's package is of this version or newer."""
        try:
            return Version(self.image.packages.get(package, "0")) >= Version(version)
        except InvalidVersion:
            return False


def _split(value: Any) -> Any:
    """LLaMA-Factory's split_arg."""
    return [item.strip() for item in value.split(",")] if isinstance(value, str) else value


def _json_dict(value: Any) -> Any:
    """A mapping that is written as JSON text; anything else as it is."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value


def _one_of(value: object, choices: Sequence[object], kind: str) -> str:
    if isinstance(value, str) and value in choices:
        return value
    raise ValueError(f"{value} is not a valid {kind}, please select one of {list(choices)}")


def _fspath(value: Any) -> Any:
    """os.path.expanduser, as far as types go."""
    return os.fspath(value)


def _join(first: Any, second: str) -> Any:
    return os.path.join(first, second)  # noqa: PTH118 mixing bytes and text must raise as it does in the parser


def _timedelta(seconds: Any) -> timedelta:
    return timedelta(seconds=seconds)


def _environ(value: object) -> str:
    """A value that goes into os.environ."""
    if isinstance(value, str):
        return value
    raise TypeError(f"str expected, not {type(value).__name__}")


def _seeded(value: Any) -> Any:
    """transformers.set_seed: random, numpy and torch take the seed in turn."""
    if not isinstance(value, int):
        raise TypeError(f"a seed is a whole number, not {type(value).__name__}")
    if not 0 <= value <= _LARGEST_SEED:
        raise ValueError("Seed must be between 0 and 2**32 - 1")
    return value


def _is_backend(value: object) -> bool:
    """A backend of torch.distributed that its CUDA wheels have; a list of several is not judged."""
    return isinstance(value, str) and (":" in value or value.lower() in ("nccl", "gloo"))


def _accelerator(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"accelerator_config is a mapping or a JSON file, not {type(value).__name__}")
    for key in value:
        if key not in _ACCELERATOR:
            raise TypeError(f"AcceleratorConfig.__init__() got an unexpected keyword argument {key!r}")
    return value


def _fsdp_option(value: object) -> str:
    return _one_of(value, _FSDP_OPTIONS, "FSDPOption")


def _fsdp_plugin_5(options: Any, config: Mapping[str, Any]) -> None:
    """TrainingArguments._process_fsdp_args of transformers 5, from "Build kwargs" on."""
    wrap = config.get("transformer_layer_cls_to_wrap")
    _fsdp_wrap(options, config.get("min_num_params", 0), [wrap] if isinstance(wrap, str) else wrap)
    prefetch = config.get("backward_prefetch", "NO_PREFETCH")
    if int(config.get("version", 1)) == 2:
        _truth(config.get("reshard_after_forward", True))
    else:
        _truth(config.get("forward_prefetch", "false"))
        prefetch.upper()
        _truth(config.get("use_orig_params", "true"))
    _fsdp_sync(config)
    _truth(config.get("cpu_ram_efficient_loading", "false"))
    _truth(config.get("sync_module_states", "true"))


def _fsdp_plugin_4(options: Any, config: Mapping[str, Any], least: Any, wrap: Any) -> None:
    """The same of transformers 4: `__post_init__`, from "accelerate integration for FSDP" on."""
    _fsdp_wrap(options, least, wrap)
    config.get("backward_prefetch", "NO_PREFETCH").upper()
    _fsdp_sync(config)


def _fsdp_wrap(options: Any, least: Any, wrap: Any) -> None:
    for option in options:
        option.upper()
        if option == "auto_wrap" and not least > 0 and wrap is not None:
            ",".join(wrap)


def _fsdp_sync(config: Mapping[str, Any]) -> None:
    sync = str(config.get("sync_module_states", "true")).lower()
    if sync == "false" and str(config.get("cpu_ram_efficient_loading", "false")).lower() == "true":
        raise ValueError('`sync_module_states` must be `"True"` if `cpu_ram_efficient_loading` is `"True"`')


def _truth(value: object) -> bool:
    """transformers' str_to_bool."""
    text = str(value).lower()
    if text not in (*_TRUE, *_FALSE):
        raise ValueError(f"invalid truth value {text}")
    return text in _TRUE
