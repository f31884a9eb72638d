"""What an image holds, asked of the image once: from the cache, from the image file itself, or by one container.

Loading from the cache happens at every check: it imports nothing that takes long.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sifkit.check.facts import Argument, ImageFacts
from sifkit.errors import CommandFailed, UsageError
from sifkit.files import write_whole
from sifkit.sif import GENERIC_JSON, OBJECT_NAME, fault_of, read_object

if TYPE_CHECKING:
    from sifkit.apptainer import Apptainer, Bind
    from sifkit.progress import Progress
    from sifkit.sifwrite import HashAhead

_PACKAGE = Path(__file__).parent.parent
_PROBES = _PACKAGE / "verify" / "probes"
_ASKED_BY = tuple(_PROBES / name for name in ("facts.py", "imports.py", "parser_facts.py", "elf.py"))
_JUDGED_BY = _PACKAGE / "data" / "optional_libraries.yaml"

_FORMAT = 1  # as in probes/facts.py
_TIMEOUT = timedelta(minutes=10)
_ROOM = 1 << 19  # bytes for facts in an image's file; those of LLaMA-Factory 0.9.5 are a third of it


def image_facts(
    image: Path, identity: str, cache: Path, find_apptainer: Callable[[], Apptainer], progress: Progress
) -> ImageFacts:
    """The facts of `image`: from the cache, else from the file, else asked in a container and cached.

    Raises `UsageError` for what is no image, `CommandFailed` when the image does not answer.
    """
    known = cached_facts(image, identity, cache)
    if known:
        return known
    require_image(image)
    with progress.phase(f"{image.stem}: ask what it holds"):
        text = ask(image, find_apptainer())
    facts = parse_facts(text, image, identity)
    if facts is None:
        raise CommandFailed(f"{image}: its facts cannot be read: {text[:200]!r}", returncode=0)
    path = _cache_path(cache, identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return facts


def cached_facts(image: Path, identity: str, cache: Path) -> ImageFacts | None:
    """The facts, where they are in the cache or in the image file; None where a container would have to tell."""
    path = _cache_path(cache, identity)
    try:
        known = parse_facts(path.read_text(encoding="utf-8", errors="replace"), image, identity)
    except OSError:
        known = None
    if known:
        return known
    written = read_object(image, OBJECT_NAME)
    return parse_facts(written.decode("utf-8", "replace"), image, identity) if written else None


def cache_key(identity: str) -> str:
    """A file's name for the answer of an image of this identity to the probe as it is now."""
    digest = hashlib.sha256(identity.encode())
    for path in (*_ASKED_BY, _JUDGED_BY):
        digest.update(b"\0" + path.read_bytes())
    return f"{digest.hexdigest()}.json"


def _cache_path(cache: Path, identity: str) -> Path:
    return cache / "facts" / cache_key(identity)


def file_identity(image: Path) -> str:
    """An image that is known by no sha256: its place, size and time, since 5 GB take seconds to hash."""
    status = image.stat()
    return f"{image.resolve()} {status.st_size} {status.st_mtime_ns} {status.st_ino}"


def require_image(image: Path) -> None:
    """Raises `UsageError` for what Apptainer could not start: no file, no right to read it, no whole SIF."""
    fix = "build it (python build.py), or name another: --image FILE.sif"
    if image.is_dir():
        raise UsageError(f"{image} is a directory, no image", fix)
    if not image.is_file():
        raise UsageError(f"{image}: no such image", fix)
    try:
        fault = fault_of(image)
    except OSError as error:
        raise UsageError(f"{image} cannot be read: {error.strerror}", f"see who may: ls -l {image}") from None
    if fault:
        raise UsageError(f"{image} is no image: {fault}", fix)


# ---------------------------------------------------------------------------------------------- reading


def parse_facts(text: str, image: Path, identity: str = "") -> ImageFacts | None:
    """What `ask` returned, or an image file holds; None when the text is anything else: it is then asked again."""
    try:
        answer = json.loads(text)
        return _facts(answer, image, identity) if answer["format"] == _FORMAT else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _facts(answer: Mapping[str, Any], image: Path, identity: str) -> ImageFacts:
    packages = _texts(answer["packages"])
    return ImageFacts(
        path=image,
        llamafactory=packages.get("llamafactory", ""),
        transformers=packages.get("transformers", ""),
        python=_text(answer["python"]),
        arguments=tuple(map(_argument, _list(answer["arguments"]))),
        derived=frozenset(_words(answer["derived"])),
        packages=packages,
        templates=frozenset(_words(answer["templates"])),
        models=_texts(answer["models"]),
        torch_cuda=_text(answer["torch_cuda"]) if answer["torch_cuda"] is not None else None,
        torch_architectures=_words(answer["torch_architectures"]),
        glibc=_text(answer["glibc"]),
        programs=_texts(answer["programs"]),
        environment=_texts(answer["environment"]),
        python_headers=answer["python_headers"] is True,
        imports=_texts(answer["imports"]),
        unresolved=_words(answer["unresolved"]),
        libraries=frozenset(_words(answer["libraries"])),
        cuda_compat=_words(answer["cuda_compat"]),
        sha256=identity if re.fullmatch(r"[0-9a-f]{64}", identity) else None,
        model_types=frozenset(_words(answer["model_types"])),
    )


def _argument(row: Mapping[str, Any]) -> Argument:
    _words([row[name] for name in ("name", "group", "declared", "type", "help")])
    return Argument(**{**row, "choices": tuple(_list(row["choices"]))})


# An image file may come from anyone: what is no text where text belongs is no answer.


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(value: Mapping[object, object]) -> dict[str, str]:
    return {_text(name): _text(each) for name, each in value.items()}


def _words(value: object) -> tuple[str, ...]:
    return tuple(map(_text, _list(value)))


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


# ---------------------------------------------------------------------------------------------- asking


def ask(image: Path, apptainer: Apptainer, binds: tuple[Bind, ...] = ()) -> str:
    """The facts as text, from one container. Raises `CommandFailed` with the likely cause when it does not answer."""
    import elftools

    from sifkit.apptainer import Bind, Exec
    from sifkit.verify.container import IN_LIBRARIES, IN_PROBES, IN_WORK

    tmpdir = apptainer.runner.environ.get("TMPDIR")
    with apptainer.runner.scratch("sifkit-facts-", Path(tmpdir) if tmpdir else None) as work:
        ours = (
            Bind(_PROBES, IN_PROBES),
            Bind(Path(elftools.__file__).parent, f"{IN_LIBRARIES}/elftools"),
            Bind(work, IN_WORK, writable=True),
        )
        # no environment of ours: the probe tells the image's
        argv = ("python3", f"{IN_PROBES}/facts.py", f"{IN_WORK}/facts.json")
        command = Exec(image, argv, (*ours, *binds), cwd=IN_WORK).command(apptainer)
        result = apptainer.runner.run(command, log=work / "log", check=False, timeout=_TIMEOUT)
        answer = work / "facts.json"
        text = answer.read_text(encoding="utf-8", errors="replace") if answer.is_file() else ""
    if not text:
        raise _failed(image, "what it holds", "\n".join(result.tail), result.returncode, result.tail)
    return reduced(text)


def hash_ahead(image: Path) -> HashAhead:
    """Read the file of an image that is still to get its facts, for the sha256 that it will have with them."""
    from sifkit.layers import TIME
    from sifkit.sifwrite import HashAhead

    return HashAhead.read(image, GENERIC_JSON, OBJECT_NAME, _ROOM, time=TIME)


def write_into(image: Path, facts: str) -> None:
    """Add facts to the image's own file as an object, which changes nothing in what the image holds.

    It stands in the group of the file system, so that `apptainer sign` signs it too. Spaces at its end give it a size
    that is known before the facts are, so that the file is hashed meanwhile.
    """
    from sifkit.layers import TIME
    from sifkit.sifwrite import NewObject, append_object

    append_object(image, NewObject(GENERIC_JSON, OBJECT_NAME, facts.encode().ljust(_ROOM)), time=TIME)


def reduced(text: str) -> str:
    """The probe's answer with what follows from its compiled files in place of them, which are thousands of lines."""
    from sifkit.verify.container import read_answer
    from sifkit.verify.elf import optional, parse_elf, unresolved

    answer = read_answer(text)
    elf = parse_elf(answer.pop("elf"))
    missing = unresolved(elf, optional().libraries)
    # operators that DeepSpeed was built with need no compiler
    built = re.findall(r"deepspeed/ops/\w+/(\w+_op)[.\w-]*\.so", "\n".join(found.path for found in elf.native))
    return json.dumps(
        {
            "arguments": [],
            "derived": [],
            "templates": [],
            "models": {},
            "model_types": [],
            **answer,
            "libraries": sorted({*answer["libraries"], *built}),
            "torch_cuda": elf.torch.cuda if elf.torch else None,
            "torch_architectures": elf.torch.architectures if elf.torch else (),
            "unresolved": [f"{found.short} needs {name}" for name, needing in missing.items() for found in needing],
        }
    )


def require_parser(facts: ImageFacts) -> None:
    """Raises `CommandFailed` with the likely cause where the image's LLaMA-Factory did not tell its arguments."""
    if not facts.arguments:
        said = facts.imports.get("llamafactory.hparams.parser", "")
        raise _failed(facts.path, "its arguments", said, 1, ())


def _failed(image: Path, what: str, said: str, returncode: int, tail: tuple[str, ...]) -> CommandFailed:
    from sifkit.causes import find_cause

    known = find_cause(said, "run")
    last = said.strip().splitlines()[-1] if said.strip() else "no answer"
    message = f"{image} does not tell {what}: {last}" + (f"\n{known.cause}" if known else "")
    fix = known.fix if known else f"verify the image: python build.py --verify --device cpu {image}"
    return CommandFailed(message, fix, returncode=returncode, tail=tail)
