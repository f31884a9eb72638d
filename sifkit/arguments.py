"""The arguments that an image's own LLaMA-Factory takes from a training YAML, asked of the image once."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from sifkit.apptainer import Apptainer
from sifkit.causes import find_cause
from sifkit.errors import CommandFailed
from sifkit.files import write_whole
from sifkit.model import digest_of
from sifkit.progress import Progress
from sifkit.verify.container import PROBES, Container

_PROBE = "arguments"
_OMEGACONF = Version("0.9.4")  # the first whose YAML is read by OmegaConf, which takes 1e-4 for a number


@dataclass(frozen=True)
class Argument:
    """An argument of LLaMA-Factory. `default`: as JSON has it; None also where there is none."""

    name: str
    group: str  # the class that the parser builds from it: ModelArguments, DataArguments, …
    declared: str  # the class that declares it
    type: str
    help: str
    required: bool
    default: Any
    choices: tuple[Any, ...]


@dataclass(frozen=True)
class Arguments:
    """All arguments of one image."""

    llamafactory: str
    transformers: str
    arguments: tuple[Argument, ...]
    derived: frozenset[str]  # attributes of the same classes that a YAML must not set

    def named(self, name: str) -> Argument | None:
        """By its name."""
        return next((argument for argument in self.arguments if argument.name == name), None)

    @property
    def reads_exponents(self) -> bool:
        """Whether `1e-4` is a number. In PyYAML's eyes it is text: field reports of LLaMA-Factory up to 0.9.3."""
        try:
            return Version(self.llamafactory) >= _OMEGACONF
        except InvalidVersion:
            return True


def parse_arguments(text: str) -> Arguments | None:
    """What probes/arguments.py answered; None when the text is anything else: it is then asked again."""
    try:
        facts = json.loads(text)
        versions = facts["versions"]
        return Arguments(
            llamafactory=str(versions["llamafactory"]),
            transformers=str(versions["transformers"]),
            arguments=tuple(Argument(**{**row, "choices": tuple(row["choices"])}) for row in facts["arguments"]),
            derived=frozenset(facts["derived"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def cache_key(identity: str) -> str:
    """A file's name for the answer of an image of this identity to the probe as it is now."""
    probe = hashlib.sha256((PROBES / f"{_PROBE}.py").read_bytes()).hexdigest()
    return f"{digest_of([identity, probe])}.json"


def file_identity(image: Path) -> str:
    """An image that is known by no sha256: its place, size and time, since 5 GB take seconds to hash."""
    status = image.stat()
    return f"{image.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def arguments_of(
    image: Path, identity: str, cache: Path, find_apptainer: Callable[[], Apptainer], progress: Progress
) -> Arguments:
    """The arguments of the LLaMA-Factory in `image`, from the cache if it was asked before.

    Raises `CommandFailed` when the image does not answer.
    """
    path = cache / "arguments" / cache_key(identity)
    known = parse_arguments(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else None
    if known:
        return known
    with progress.phase(f"{image.stem}: ask for its arguments"):
        text = _ask(image, find_apptainer())
    answer = parse_arguments(text)
    if answer is None:
        raise CommandFailed(f"{image}: its arguments cannot be read: {text[:200]!r}", returncode=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return answer


def _ask(image: Path, apptainer: Apptainer) -> str:
    with tempfile.TemporaryDirectory(prefix="sifkit-arguments-") as work:
        container = Container(apptainer, image, Path(work), nv=False)
        answer = container.ask(_PROBE, log=Path(work) / f"{_PROBE}.log")
    if answer.facts is None:
        known = find_cause(answer.said, "run")
        last = answer.said.strip().splitlines()[-1] if answer.said.strip() else "no answer"
        said = f"{image} does not tell its arguments: {last}" + (f"\n{known.cause}" if known else "")
        fix = known.fix if known else f"verify the image: python build.py --verify --device cpu {image}"
        raise CommandFailed(said, fix, returncode=answer.result.returncode, tail=answer.result.tail)
    return json.dumps(answer.facts)
