"""What can be known of a training run before it starts or is queued: its image, checkout, config and paths."""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from sifkit import checkout as checkouts
from sifkit import stamp
from sifkit.apptainer import Apptainer
from sifkit.errors import ProblemFound, UsageError
from sifkit.execute import Tools
from sifkit.launch import Launch, Training, find_config, host_path, plan_launch, read_training
from sifkit.spec import DEFAULT_IMAGE
from sifkit.verify.checks import Outcome
from sifkit.verify.prepare import judge_config, read_dataset_info

SAVES_ON_SIGNAL = Version("5.1")  # transformers with enable_jit_checkpoint (trainer_jit_checkpoint.py, #41723)


@dataclass(frozen=True)
class ImageFacts:
    """An image file and what its labels say; None: it does not say."""

    path: Path
    llamafactory: str | None
    transformers: str | None

    @property
    def saves_on_signal(self) -> bool:
        """Whether its trainer can write a checkpoint when it gets SIGTERM."""
        try:
            return self.transformers is not None and Version(self.transformers) >= SAVES_ON_SIGNAL
        except InvalidVersion:
            return False


@dataclass(frozen=True)
class Wishes:
    """What the command line says of a run; None: the default."""

    image: str | None = None
    checkout: Path | None = None
    nv: bool | None = None
    torchrun: bool = False
    gpus: int | None = None  # a node; None: not asked for, as with `sifkit train`


@dataclass(frozen=True)
class Ready:
    """A launch that was checked, and the image's facts."""

    launch: Launch
    image: ImageFacts


def make_ready(word: Path, overrides: tuple[str, ...], wishes: Wishes, tools: Tools) -> Ready:
    """Find image, checkout and config, and judge them. Raises `UsageError` or `ProblemFound` with the fix."""
    image = image_facts(image_file(wishes.image, tools), tools)
    given = wishes.checkout or enclosing_checkout(Path.cwd())
    training = read_training(find_config(word, given), overrides) if _is_found(word, given) else None
    checkout = (given or _cached_checkout(image, tools)).resolve()
    require_checkout(checkout, image)
    training = training or read_training(find_config(word, checkout), overrides)
    require_trainable(training, checkout)
    nv = wishes.nv if wishes.nv is not None else _gpu_expected(wishes)
    require_device(training, gpu=nv)
    launch = plan_launch(
        image.path,
        checkout,
        training,
        site=tools.site,
        nv=nv,
        torchrun=wishes.torchrun,
        hf_home=hf_home(tools) if wishes.gpus is None else None,  # a job binds its own
        shared_checkout=given is None,
    )
    return Ready(launch, image)


def _is_found(word: Path, checkout: Path | None) -> bool:
    return word.is_file() or checkout is not None


def _gpu_expected(wishes: Wishes) -> bool:
    return Path("/dev/nvidiactl").exists() if wishes.gpus is None else wishes.gpus > 0


def image_file(word: str | None, tools: Tools) -> Path:
    """A .sif by path, or an image of the project by name. Raises `UsageError` if it is not there."""
    name = word or DEFAULT_IMAGE
    path = Path(name) if name.endswith(".sif") else tools.store.sif(name)
    if path.is_file():
        return path.resolve()
    if name.endswith(".sif"):
        raise UsageError(f"{path}: no such file", "name an image: --image FILE.sif, or an image of definitions/")
    known = tools.project.names()
    if name in known:
        raise UsageError(f"{path} is not there", f"build it: python build.py {name}")
    near = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"there is no image {name}", f"did you mean {near[0]}?" if near else f"images here: {', '.join(known)}"
    )


def image_facts(path: Path, tools: Tools) -> ImageFacts:
    """What the image's labels say."""
    labels = Apptainer.find(tools.runner).labels(path)
    return ImageFacts(path, labels.get("org.sifkit.llamafactory"), labels.get("org.sifkit.transformers") or None)


def enclosing_checkout(start: Path) -> Path | None:
    """The checkout of LLaMA-Factory that holds `start`, if there is one."""
    for directory in (start, *start.parents):
        if (directory / checkouts.VERSION_FILE).is_file():
            return directory
    return None


def _cached_checkout(image: ImageFacts, tools: Tools) -> Path:
    if image.llamafactory is None:
        raise UsageError(f"{image.path} does not say which LLaMA-Factory it holds", "give a checkout: --checkout DIR")
    sources = stamp.checkout_sources(tools)
    return checkouts.cached(image.llamafactory, tools.cache, tools.runner, tools.progress, sources=sources)


def require_checkout(checkout: Path, image: ImageFacts) -> None:
    """The checkout is whole and of the image's version. Raises `ProblemFound` with what to do."""
    found = checkouts.problems(checkout, image.llamafactory)
    if found:
        raise ProblemFound("\n".join(problem.message for problem in found), found[0].fix)


def require_trainable(training: Training, checkout: Path) -> None:
    """Datasets are registered, files are there. Raises `ProblemFound`."""
    problem = judge_config(training.config, read_dataset_info(checkout), Path("/"))
    if problem and problem.outcome is Outcome.FAILED:
        raise ProblemFound(problem.cause or problem.message, problem.fix)
    for key in ("model_name_or_path", "reward_model", "adapter_name_or_path"):
        _require_directory(key, training.values.get(key), checkout)
    deepspeed = training.values.get("deepspeed")
    if isinstance(deepspeed, str) and not host_path(deepspeed, checkout).is_file():
        raise ProblemFound(f"deepspeed: {deepspeed} is not in {checkout}", "name a file of examples/deepspeed/")


def require_device(training: Training, *, gpu: bool) -> None:
    """Half precision is refused without a GPU (hparams/parser.py). Raises `ProblemFound`."""
    half = [key for key in ("bf16", "fp16") if training.values.get(key) is True]
    if half and not gpu:
        message = f"{half[0]}: true needs a GPU, and this run has none: LLaMA-Factory would stop at once"
        raise ProblemFound(
            message, f"ask for a GPU, or train on the CPU: use_cpu=true {half[0]}=false after the config"
        )


def _require_directory(key: str, value: object, checkout: Path) -> None:
    """A relative name may be one of the hub's; an absolute one can only be a directory."""
    words = value if isinstance(value, list) else str(value or "").split(",")
    for word in (str(each).strip() for each in words):
        if word.startswith("/") and not os.path.isdir(host_path(word, checkout)):  # noqa: PTH112 too long is no error
            raise ProblemFound(f"{key}: there is no directory {word}", "correct the path in the config")


def hf_home(tools: Tools) -> Path | None:
    """Where Hugging Face's cache is, if it is said: the site's, else $HF_HOME. None: below the home, as ever."""
    named = tools.site.cache.hf_home or tools.environ.get("HF_HOME")
    return Path(named).expanduser().absolute() if named else None
