"""What a training run consists of, found and put together before it starts or is queued: image, checkout, config."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from packaging.version import InvalidVersion, Version

from sifkit import checkout as checkouts
from sifkit.apptainer import Apptainer
from sifkit.errors import ProblemFound, UsageError
from sifkit.launch import Launch, find_config, plan_launch, read_training
from sifkit.spec import DEFAULT_IMAGE, Project
from sifkit.tools import Tools

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
    checked: bool = True


@dataclass(frozen=True)
class Ready:
    """A launch that was checked, and the image's facts."""

    launch: Launch
    image: ImageFacts


def make_ready(word: Path, overrides: tuple[str, ...], wishes: Wishes, tools: Tools) -> Ready:
    """Find image, checkout and config. Raises `UsageError`, or `ProblemFound` for a checkout that does not fit.

    What else would stop the run, `checking.require_sound` says.
    """
    image = image_facts(image_file(wishes.image, tools.project), tools)
    given = wishes.checkout or enclosing_checkout(Path.cwd())
    training = read_training(find_config(word, given), overrides) if _is_found(word, given) else None
    checkout = (given or _cached_checkout(image, tools)).resolve()
    if wishes.checked:
        require_checkout(checkout, image)
    training = training or read_training(find_config(word, checkout), overrides)
    nv = wishes.nv if wishes.nv is not None else _gpu_expected(wishes)
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


def image_file(word: str | None, project: Project | None) -> Path:
    """A .sif by path, or an image of the project by name. Raises `UsageError` if it is not there."""
    name = word or DEFAULT_IMAGE
    if name.endswith(".sif"):
        if Path(name).exists():
            return Path(name).resolve()
        raise UsageError(f"{name}: no such file", "name an image: --image FILE.sif, or an image of definitions/")
    if project is None:
        raise UsageError(f"{name}: there is no project here", "name an image's file: --image FILE.sif")
    path = project.images / f"{name}.sif"
    if path.is_file():
        return path.resolve()
    known = project.names()
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
    sources = checkouts.Sources.of_site(tools.site, tools.environ)
    return checkouts.cached(image.llamafactory, tools.cache, tools.runner, tools.progress, sources=sources)


def require_checkout(checkout: Path, image: ImageFacts) -> None:
    """The checkout is whole and of the image's version. Raises `ProblemFound` with what to do."""
    found = checkouts.problems(checkout, image.llamafactory)
    if found:
        raise ProblemFound("\n".join(problem.message for problem in found), found[0].fix)


def hf_home(tools: Tools) -> Path | None:
    """Where Hugging Face's cache is, if it is said: the site's, else $HF_HOME. None: below the home, as ever."""
    named = tools.site.cache.hf_home or tools.environ.get("HF_HOME")
    return Path(named).expanduser().absolute() if named else None
