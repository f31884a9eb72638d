"""Conda's commands and environment files: Python, torch and CUDA as pins, other packages by the index's names."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from sifkit.importing.facts import facts
from sifkit.importing.wishes import Wishes

PipInstall = Callable[[Sequence[str], int, Wishes, str], bool]
_VALUES = ("-n", "--name", "-p", "--prefix", "-c", "--channel", "-f", "--file", "--solver")
_MATCH = re.compile(r"(?:[\w.-]+::)?(?P<name>[A-Za-z0-9_.-]+)\s*(?P<rest>.*)")


def command(words: Sequence[str], line: int, wishes: Wishes, directory: str, pip_install: PipInstall) -> bool:
    """One command. False where it must be kept."""
    plain, files = _read(words)
    verb = " ".join(plain[:2]) if plain[:1] == ["env"] else (plain[0] if plain else "")
    names = plain[2:] if verb.startswith("env") else plain[1:]
    if verb in ("clean", "init", "activate", "deactivate", "config", "info", "list", "remove", "env list", "shell"):
        wishes.note(line, shlex.join(("conda", *words)), "ours", "there is one environment, /opt/venv")
        return True
    if verb not in ("install", "create", "update", "env create", "env update"):
        return False
    for text in names:
        package(text, line, wishes)
    for name in files:
        _file(name, line, wishes, directory, pip_install)
    return True


def _read(words: Sequence[str]) -> tuple[list[str], list[str]]:
    plain, files, rest = [], [], list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word.startswith("-") and option in _VALUES:
            value = value if equals else (rest.pop(0) if rest else "")
            files += [value] if option in ("-f", "--file") else []
        elif not word.startswith("-"):
            plain.append(word)
    return plain, files


def package(text: str, line: int, wishes: Wishes) -> None:
    """`python=3.11`, `pytorch-cuda=12.4`, `numpy>=1.26`, `nvidia/label/cuda-12.4::cuda-toolkit`."""
    found = _MATCH.fullmatch(text.strip())
    if found is None:
        wishes.note(line, text, "left", "no name of a package")
        return
    name, rest = found["name"].lower(), found["rest"].replace(" ", "")
    exact = re.match(r"={1,2}(\d[\w.]*)", rest)
    known = facts().conda.get(name)
    if name == "python":
        minor = re.search(r"3\.\d+", rest)
        if minor:
            wishes.pin("python", minor[0], line, text)
    elif known and known.cuda:
        if exact and (minor := re.match(r"\d+\.\d+", exact[1])):
            wishes.pin("cuda", minor[0], line, text)
        else:
            wishes.note(line, text, "ours", "CUDA comes with torch")
    elif known and known.apt:
        wishes.debian(known.apt, line)
        wishes.note(line, text, "pin", f"apt: {known.apt}")
    elif known and known.requirement is None:
        wishes.note(line, text, "ours", "sifkit's build has its own")
    else:
        wishes.require(_requirement(known.requirement if known and known.requirement else name, rest), line)


def _requirement(name: str, rest: str) -> str:
    """Conda's `=1.26` means any 1.26; a build string behind a second `=` means nothing elsewhere."""
    fuzzy = re.fullmatch(r"=(\d[\w.]*)(=.*)?", rest)
    if fuzzy:
        whole = fuzzy[1].count(".") >= 2
        return f"{name}=={fuzzy[1]}" if whole else f"{name}=={fuzzy[1]}.*"
    exact = re.fullmatch(r"==(\d[\w.]*)(=.*)?", rest)
    return f"{name}=={exact[1]}" if exact else f"{name}{rest if re.match(r'[<>!~=]', rest) else ''}"


def _file(name: str, line: int, wishes: Wishes, directory: str, pip_install: PipInstall) -> None:
    """An environment file beside the source."""
    here = _find(name, wishes, directory)
    if here is None:
        wishes.fault(
            line,
            f"{name} is not beside the file that is imported",
            f"put it there, or list its packages in place of -f {name}",
        )
        return
    wishes.used.add(here)
    try:
        content = yaml.safe_load(here.read_text(encoding="utf-8"))
        rows = list(content["dependencies"])
    except (yaml.YAMLError, OSError, ValueError, KeyError, TypeError) as error:
        wishes.fault(line, f"{here} is no environment file of conda's: {type(error).__name__}", "correct it")
        return
    for row in rows:
        if isinstance(row, str):
            package(row, line, wishes)
        elif isinstance(row, dict):
            for text in row.get("pip") or ():
                if not pip_install(str(text).split(), line, wishes, directory):
                    wishes.note(line, str(text), "left", "no lock holds a URL: install it under sections.post")


def _find(name: str, wishes: Wishes, directory: str) -> Path | None:
    place = posixpath.normpath(posixpath.join(directory or "/", name))
    for candidate in (wishes.copied.get(place), name.lstrip("/"), posixpath.basename(name)):
        if candidate and (here := wishes.directory / candidate).is_file():
            return here
    return None
