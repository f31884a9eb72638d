"""pip's command line, and uv's, read as far as specs can say it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sifkit.importing.wishes import Wishes
from sifkit.tables import known_extras

# Options that take a value. Source: pip 25 and uv 0.9, `pip install --help`.
_INDEXES = ("-i", "--index-url", "--extra-index-url", "-f", "--find-links", "--index", "--default-index")
_TORCH_BACKEND = "--torch-backend"
_VALUES = (
    *("--trusted-host", "--progress-bar", "--timeout", "--default-timeout", "--retries", "--python", "-p", "--proxy"),
    *("--config-settings", "--config-setting", "-C", "--global-option", "--root-user-action", "--index-strategy"),
    *(
        "--no-binary",
        "--only-binary",
        "--python-version",
        "--platform",
        "--cache-dir",
        "--link-mode",
        "--upgrade-strategy",
    ),
)
_NOT_HERE = ("-t", "--target", "--prefix", "--root")  # somewhere else than the environment
_LOCAL = re.compile(r"(?P<path>\.{1,2}(?:/[^\[\]]*)?|/[^\[\]]*)(?:\[(?P<extras>[^\]]*)\])?")


def install(words: Sequence[str], line: int, wishes: Wishes, directory: str) -> bool:
    """What follows `pip install`. False where it must be kept as a command, then nothing of it was taken."""
    found: list[tuple[str, str]] = list(_read(words))
    if any(kind in ("elsewhere", "local") and not _is_checkout(text, wishes, directory) for kind, text in found):
        return False
    if not all(_file(text, wishes, directory) for kind, text in found if kind == "file"):
        return False
    if any(kind == "name" and not _is_plain(text) for kind, text in found):
        return _split(found, line, wishes, directory)
    for kind, text in found:
        _take(kind, text, line, wishes, directory)
    return True


def _split(found: list[tuple[str, str]], line: int, wishes: Wishes, directory: str) -> bool:
    """URLs and checkouts cannot be locked: one among names keeps its whole command."""
    urls = [text for kind, text in found if kind == "name" and not _is_plain(text)]
    if not all(wishes.require(text, line) for text in urls):  # LLaMA-Factory's own repository
        return False
    for kind, text in found:
        if text not in urls:
            _take(kind, text, line, wishes, directory)
    return True


def _is_plain(text: str) -> bool:
    return "://" not in text and not text.endswith((".whl", ".tar.gz", ".zip"))


def _read(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Kind and text of each argument."""
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word.startswith("-") and option in (*_INDEXES, _TORCH_BACKEND, *_VALUES, "-r", "--requirement", "-c", "-e"):
            value = value if equals else (rest.pop(0) if rest else "")
            yield _kind(option), value
        elif option in ("--requirements", "--constraint", "--editable", "--constraints"):
            yield _kind(option), value if equals else (rest.pop(0) if rest else "")
        elif option in _NOT_HERE:
            yield "elsewhere", value
        elif re.fullmatch(r"-r.+", word):
            yield "file", word[2:]
        elif not word.startswith("-"):
            yield ("local" if _LOCAL.fullmatch(word) else "name"), word


def _kind(option: str) -> str:
    if option in _INDEXES:
        return "index"
    if option in ("-r", "--requirement", "--requirements"):
        return "file"
    if option in ("-e", "--editable"):
        return "local"
    if option in ("-c", "--constraint", "--constraints"):
        return "constraints"
    return "backend" if option == _TORCH_BACKEND else "nothing"


def _take(kind: str, text: str, line: int, wishes: Wishes, directory: str) -> None:
    match kind:
        case "index":
            wishes.index(text, line)
        case "backend" if text.startswith("cu"):
            wishes.index(f"https://download.pytorch.org/whl/{text}", line)
        case "constraints":
            wishes.note(line, f"constraints {text}", "left", "the lock holds every version; or name them: packages:")
        case "file":
            _take_file(text, line, wishes, directory)
        case "local":
            found = _LOCAL.fullmatch(text)
            extras = tuple((found["extras"] or "").split(",")) if found else ()
            wishes.llamafactory_asked(line, f"pip install {text}", "", extras)
        case "name":
            wishes.require(text, line)


def _is_checkout(text: str, wishes: Wishes, directory: str) -> bool:
    """Whether a local directory of the image is LLaMA-Factory's source, cloned or copied there."""
    if "://" in text:
        return False
    found = _LOCAL.fullmatch(text)
    path = posixpath.normpath(posixpath.join(directory or "/", found["path"] if found else text))
    return path in wishes.checkouts


def _extra_of(path: str) -> str | None:
    """LLaMA-Factory keeps its extras in requirements/NAME.txt."""
    found = re.search(r"(?:^|/)requirements/([\w-]+)\.txt$", path)
    return found[1] if found and found[1] in known_extras() else None


def _file(path: str, wishes: Wishes, directory: str) -> bool:
    """Whether a file of requirements is an extra, or can be read and holds nothing that no lock can."""
    if _extra_of(path) and (not directory or _in_checkout(path, wishes, directory)):
        return True
    found = _host_file(path, wishes, directory)
    return found is not None and all(_is_plain(text) for text in _lines(found))


def _in_checkout(path: str, wishes: Wishes, directory: str) -> bool:
    full = posixpath.normpath(posixpath.join(directory or "/", path))
    return any(full.startswith(f"{place}/") for place in wishes.checkouts)


def _host_file(path: str, wishes: Wishes, directory: str) -> Path | None:
    """The file beside the source that was copied to `path`, by its name: where it was copied from is in the steps."""
    name = posixpath.normpath(posixpath.join(directory or "/", path))
    copied = wishes.copied.get(name)
    candidates = [copied] if copied else [path.lstrip("/"), posixpath.basename(path)]
    for candidate in candidates:
        here = wishes.directory / candidate
        if here.is_file() and here.stat().st_size < 1_000_000:
            return here
    return None


def _lines(path: Path) -> list[str]:
    """Requirements of a file: without comments, continuations joined, hashes left out."""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    found = []
    for row in text.splitlines():
        plain = re.sub(r"(^|\s)#.*", "", row).strip()
        plain = re.sub(r"\s+--hash=\S+", "", plain)
        if plain:
            found.append(plain)
    return found


def _take_file(path: str, line: int, wishes: Wishes, directory: str) -> None:
    extra = _extra_of(path)
    here = None if extra and _in_checkout(path, wishes, directory) else _host_file(path, wishes, directory)
    if extra and here is None:
        wishes.extra(extra, line, f"-r {path}")
        return
    assert here is not None
    wishes.used.add(here)
    for text in _lines(here):
        if text.startswith("-"):
            for kind, value in _read(text.split()):
                if kind != "file" or value != path:
                    _take(kind, value, line, wishes, directory)
        else:
            wishes.require(text, line)
