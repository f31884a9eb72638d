"""A training run in an image: what is bound, what is set, and the command line. Job files and `sifkit train` share it.

The container sees the checkout at /mnt, where the run starts, so that relative paths mean what LLaMA-Factory's own
examples mean by them; and every absolute path that the config names, at the same place.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sifkit import yamlfile
from sifkit.apptainer import Bind
from sifkit.errors import UsageError
from sifkit.model import Site
from sifkit.verify.smoke import TrainConfig, parse_config

IN_CHECKOUT = "/mnt"
IN_CACHE = "/sifkit/cache"
IN_CONFIG = "/sifkit/config"

# What of the caller's environment the container sees; see docs/slurm.md for what each is for.
ENVIRONMENT_PASSED = (
    "SLURM_*",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "NVIDIA_VISIBLE_DEVICES",
    "HF_*",
    "NCCL_*",
    "GLOO_*",
    "UCX_*",
    "FI_*",
    "TORCH_*",
    "TORCHELASTIC_*",
    "PYTORCH_*",
    "WANDB_*",
    "SWANLAB_*",
    "MLFLOW_*",
    "MODELSCOPE_*",
    "USE_MODELSCOPE_HUB",
    "USE_OPENMIND_HUB",
    "LLAMAFACTORY_*",
    "RECORD_VRAM",
    "DISABLE_VERSION_CHECK",
    "TOKENIZERS_PARALLELISM",
    "OMP_NUM_THREADS",
    "FORCE_TORCHRUN",
    "NNODES",
    "NODE_RANK",
    "NPROC_PER_NODE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RDZV_ID",
    "MIN_NNODES",
    "MAX_NNODES",
    "MAX_RESTARTS",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
)

# Compilers and plots write here; with the image read-only and the home perhaps small, each gets a place of its own.
CACHES = {
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "MPLCONFIGDIR": "matplotlib",
}
FIXED = {"PYTHONUNBUFFERED": "1", "PYTHONNOUSERSITE": "1"}

# Keys of a training YAML whose directories a run writes (llamafactory/hparams/*.py, transformers TrainingArguments).
_WRITTEN = ("output_dir", "logging_dir", "tokenized_path", "cache_dir", "ray_storage_path")

_READ = (
    "model_name_or_path",
    "adapter_name_or_path",
    "dataset_dir",
    "media_dir",
    "deepspeed",
    "resume_from_checkpoint",
)

_SAFE_RELATIVE = re.compile(r"[A-Za-z0-9._/+=@%-]+")


@dataclass(frozen=True)
class Training:
    """A training YAML with the overrides of the command line."""

    path: Path  # absolute
    values: Mapping[str, Any]
    overrides: tuple[str, ...]  # KEY=VALUE, as LLaMA-Factory takes them after the YAML
    config: TrainConfig

    @property
    def output_dir(self) -> str:
        """As it is written: relative to the checkout, or absolute."""
        return str(self.values["output_dir"])

    @property
    def needs_torchrun(self) -> bool:
        """DeepSpeed and FSDP want a launcher even for one GPU (llamafactory/hparams/parser.py)."""
        return self.config.distributed


@dataclass(frozen=True)
class Launch:
    """One run, ready to be written as a command line."""

    image: Path
    checkout: Path
    training: Training
    config_in_container: str
    output_dir: Path  # on the host
    checkout_bind: Bind
    binds: tuple[Bind, ...]  # besides the checkout and the cache
    nv: bool
    torchrun: bool

    @property
    def command(self) -> tuple[str, ...]:
        """What runs in the container."""
        return ("llamafactory-cli", "train", self.config_in_container, *self.training.overrides)


def read_training(path: Path, overrides: Iterable[str] = ()) -> Training:
    """Read a training YAML as LLaMA-Factory would. Raises `UsageError` naming what is wrong with it or an override."""
    words = tuple(overrides)
    values = {**_read_values(path), **dict(_override(word) for word in words)}
    output_dir = values.get("output_dir")
    if not isinstance(output_dir, str) or not output_dir:
        raise UsageError(f"{path} names no output_dir", "add one: output_dir: saves/NAME")
    require_one_line("output_dir", output_dir)
    return Training(path.absolute(), values, words, _parsed(path, values))


def _read_values(path: Path) -> dict[str, Any]:
    return {entry.key: _listed(entry.value) for entry in yamlfile.load_entries(path)}


def _listed(value: object) -> object:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _parsed(path: Path, values: dict[str, Any]) -> TrainConfig:
    """A config that only predicts names eval_dataset alone."""
    datasets = values.get("dataset") or values.get("eval_dataset")
    try:
        return parse_config(path, {**values, "dataset": datasets})
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}", "correct the value") from None


def _override(word: str) -> tuple[str, Any]:
    key, found, value = word.partition("=")
    if not found or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", key):
        raise UsageError(f"{word!r} is no KEY=VALUE", "overrides follow the config: learning_rate=1e-5 max_steps=100")
    require_one_line(f"the override {key}", value)
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError, RecursionError):
        return key, value


def require_one_line(what: str, value: str) -> None:
    """Raises `UsageError` for control characters: no file format here can carry them safely."""
    if re.search(r"[\x00-\x1f\x7f]", value):
        raise UsageError(f"{what} holds a line break or control character: {value!r}", "use a name without it")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise UsageError(f"{what} is not UTF-8: {value!r}", "use a name that is")


def find_config(word: Path, checkout: Path | None) -> Path:
    """The config as given, or below the checkout. Raises `UsageError` if it is in neither."""
    places = [word] if checkout is None or word.is_absolute() else [word, checkout / word]
    for path in places:
        if path.is_file():
            return path.absolute()
    also = f" here or in {checkout}" if len(places) > 1 else ""
    raise UsageError(
        f"{word}: no such file{also}", "name a training YAML: its path, or one of the checkout's examples/"
    )


def plan_launch(
    image: Path,
    checkout: Path,
    training: Training,
    *,
    site: Site,
    nv: bool,
    torchrun: bool,
    hf_home: Path | None,
    shared_checkout: bool = False,
) -> Launch:
    """What the run needs. Looks which of the config's paths are there; changes nothing.

    A `shared_checkout` is bound read-only. Raises `UsageError` for an output_dir that would lie in it.
    """
    if torchrun or training.needs_torchrun:
        _require_words(training.overrides)
    inside, config_bind = _config_place(training.path, checkout)
    output_dir = host_path(training.output_dir, checkout)
    if shared_checkout and output_dir.is_relative_to(checkout):
        raise UsageError(
            f"output_dir: {training.output_dir} would lie in the cached checkout {checkout}",
            "give a checkout of your own (--checkout DIR; sifkit checkout VERSION DIR), or an absolute output_dir",
        )
    _require_places(training.values)
    binds = [*config_bind, *_site_binds(site), *_path_binds(training.values, output_dir)]
    if hf_home:
        binds.append(Bind(hf_home, str(hf_home), writable=True))
    launch = Launch(
        image=image,
        checkout=checkout,
        checkout_bind=Bind(checkout, IN_CHECKOUT, writable=not shared_checkout),
        training=training,
        config_in_container=inside,
        output_dir=output_dir,
        binds=_without_covered(binds),
        nv=nv,
        torchrun=torchrun or training.needs_torchrun,
    )
    for bind in (launch.checkout_bind, *launch.binds):
        require_one_line("the path", str(bind.source))
        bind.option()  # said now, not on the node
    return launch


def host_path(text: str, checkout: Path) -> Path:
    """Where a path of the config lies on the host: below the checkout unless it is absolute."""
    path = Path(text)
    if path.is_relative_to(IN_CHECKOUT):
        return checkout / path.relative_to(IN_CHECKOUT)
    return path if path.is_absolute() else checkout / path


def _require_words(overrides: tuple[str, ...]) -> None:
    """LLaMA-Factory splits torchrun's command line at blanks (llamafactory/launcher.py, 0.9.3 to 0.9.5)."""
    for word in overrides:
        if len(word.split()) != 1:
            raise UsageError(
                f"the override {word!r} holds blanks, at which LLaMA-Factory splits it on several GPUs",
                "write it into the config instead",
            )


def _config_place(path: Path, checkout: Path) -> tuple[str, list[Bind]]:
    """A plain name below the checkout stays what it is; any other file is bound under a name that is safe."""
    if path.is_relative_to(checkout) and _SAFE_RELATIVE.fullmatch(str(path.relative_to(checkout))):
        return str(path.relative_to(checkout)), []
    suffix = path.suffix if path.suffix in (".yaml", ".yml", ".json") else ".yaml"
    inside = f"{IN_CONFIG}/train{suffix}"
    return inside, [Bind(path, inside)]


def _site_binds(site: Site) -> list[Bind]:
    binds = []
    for text in site.binds:
        source, _, rest = text.partition(":")
        target, _, mode = rest.partition(":")
        binds.append(Bind(Path(source), target or source, writable=mode != "ro"))
    return binds


def _path_binds(values: Mapping[str, Any], output_dir: Path) -> list[Bind]:
    """Absolute paths of the config that are there, at the same place; what the run writes, writable."""
    binds = [Bind(output_dir, str(output_dir), writable=True)] if Path(str(values["output_dir"])).is_absolute() else []
    for key, value in values.items():
        for text in _texts(value):
            path = Path(text)
            if not path.is_absolute() or len(path.parts) < 2 or path.is_relative_to(IN_CHECKOUT):
                continue
            if key in _WRITTEN and key != "output_dir":
                binds.append(Bind(path, text, writable=True))
            elif key != "output_dir" and _exists(path):
                whole = _hub_model(path)
                binds.append(Bind(whole, str(whole)))
    return [bind for bind in binds if not Path(bind.target).is_relative_to(IN_CHECKOUT)]


# Directories of the container that nothing may hide: its programs, and what the kernel shows.
_OF_THE_IMAGE = ("/opt/venv", "/opt/sifkit", "/usr", "/etc", "/bin", "/lib", "/lib64", "/proc", "/sys", "/dev")


def _require_places(values: Mapping[str, Any]) -> None:
    """Raises `UsageError` for paths that the container does not see, or that would hide what the image holds."""
    for key in (*_WRITTEN, *_READ):
        for text in _texts(values.get(key)):
            if os.path.normpath(text).split("/")[0] == "..":
                message = f"{key}: {text} leaves the checkout, which is all that the container sees"
                raise UsageError(message, "write an absolute path")
            if key in _WRITTEN and _hides(Path(os.path.normpath(text))):
                raise UsageError(f"{key}: {text} would hide what the image holds there", "use a directory of your own")


def _hides(place: Path) -> bool:
    return any(Path(inside).is_relative_to(place) or place.is_relative_to(inside) for inside in _OF_THE_IMAGE)


def _texts(value: object) -> list[str]:
    match value:
        case str():
            return [word.strip() for word in value.split(",")]
        case list() | tuple():
            return [text for each in value for text in _texts(each)]
        case _:
            return []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a prompt of a thousand words that starts with a slash is no file name
        return False


def _hub_model(path: Path) -> Path:
    """Files of a Hugging Face snapshot are links to ../../blobs: the model's whole directory is needed."""
    return path.parent.parent if path.parent.name == "snapshots" else path


def _without_covered(binds: list[Bind]) -> tuple[Bind, ...]:
    """Each target once, writable if any asked for it; none below another that gives the same. Outer before inner."""
    merged: dict[str, Bind] = {}
    for bind in binds:
        known = merged.get(bind.target)
        if known is None or (bind.writable and not known.writable):
            merged[bind.target] = bind
    ordered = sorted(merged.values(), key=lambda bind: (len(Path(bind.target).parts), bind.target))
    return tuple(
        bind for index, bind in enumerate(ordered) if not any(_covers(outer, bind) for outer in ordered[:index])
    )


def _covers(outer: Bind, inner: Bind) -> bool:
    below = Path(inner.target).is_relative_to(outer.target) and inner.source.is_relative_to(outer.source)
    same = below and Path(inner.target).relative_to(outer.target) == inner.source.relative_to(outer.source)
    return same and (outer.writable or not inner.writable)


def passed_names(environ: Mapping[str, str]) -> list[str]:
    """The variables of the caller that the container sees."""
    return sorted(name for name in environ if any(fnmatch.fnmatchcase(name, pattern) for pattern in ENVIRONMENT_PASSED))


def exec_argv(launch: Launch, program: str = "apptainer", *, cache: Path, env: Mapping[str, str]) -> list[str]:
    """The plain `apptainer exec` line; `env` besides what `APPTAINERENV_…` hands over."""
    argv = [program, "exec", "--cleanenv", *(["--nv"] if launch.nv else []), "--pwd", IN_CHECKOUT]
    binds = (launch.checkout_bind, *launch.binds, Bind(cache, IN_CACHE, writable=True))
    for bind in binds:
        argv += ["--bind", bind.option()]
    for name, value in env.items():
        argv += ["--env", f"{name}={value}"]
    return [*argv, str(launch.image), *launch.command]


def fixed_environment() -> dict[str, str]:
    """What is set in the container whatever the caller has."""
    return {**FIXED, **{name: f"{IN_CACHE}/{folder}" for name, folder in CACHES.items()}}
