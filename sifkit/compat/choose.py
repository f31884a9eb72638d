"""Choosing pins: the newest set that fits what the user knows, what limited it, and what to change where none does.

Every release of LLaMA-Factory, build of torch and known base makes a candidate. A candidate is judged by the rules of
`check`, and violates those of the user's words that its findings name, or that it does not keep. One that violates
nothing fits; where there is none, those that violate the fewest say what would have to change.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from packaging.version import Version

from sifkit.compat.check import check
from sifkit.compat.findings import Finding, Target, errors, pins_of
from sifkit.compat.packages import COMPILER
from sifkit.compat.tables import Tables
from sifkit.errors import ProblemFound, UsageError
from sifkit.model import ImageSpec, ImageWish, LlamaFactory, Torch
from sifkit.tables import known_bases

MOST_CHANGES = 3  # ways out that are shown


@dataclass(frozen=True)
class Limit:
    """One of the user's words, or a choice that follows, and what it leaves."""

    subject: str
    because: str
    source: str
    leaves: str


@dataclass(frozen=True)
class Choice:
    """The chosen spec, and how it came about."""

    spec: ImageSpec
    limits: tuple[Limit, ...]
    findings: tuple[Finding, ...]  # warnings and unknowns of the chosen one


@dataclass(frozen=True)
class _Candidate:
    spec: ImageSpec
    errors: tuple[Finding, ...]
    violated: frozenset[str]  # the user's words
    impossible: bool  # whatever the user says

    @property
    def order(self) -> tuple[Version, Version, Version, int]:
        """Newest last; among bases the first in their table."""
        bases, torch = list(known_bases()), self.spec.torch
        place = -bases.index(self.spec.base) if self.spec.base in bases else 0
        return Version(self.spec.llamafactory.version), Version(torch.version), Version(torch.cuda), place


def choose(wish: ImageWish, tables: Tables) -> Choice:
    """The newest set that fits. Raises `ProblemFound` with the smallest change when nothing does."""
    if not tables.llamafactories or not tables.builds:
        raise UsageError("there is nothing to choose from: the tables are empty", "run: sifkit compat update")
    releases = _llamafactories(wish, tables)
    for release in reversed(releases):
        candidates = list(_candidates(wish, tables, release))
        fitting = [found for found in candidates if not found.violated and not found.impossible]
        if fitting:
            best = max(fitting, key=lambda found: found.order)
            findings = check(best.spec, Target(wish.gpu, wish.driver), tables)
            return Choice(best.spec, tuple(_limits(candidates, wish)), findings)
    raise _impossible([found for release in releases for found in _candidates(wish, tables, release)], tables)


# ---------------------------------------------------------------------------------------------- candidates


def _candidates(wish: ImageWish, tables: Tables, llamafactory: LlamaFactory) -> Iterator[_Candidate]:
    words = _words(wish)
    for torch, (base, python) in product(_torches(wish, tables), _bases(wish)):
        yield _candidate(wish, words, tables, llamafactory, torch, base, python)


def _llamafactories(wish: ImageWish, tables: Tables) -> list[LlamaFactory]:
    """The releases in the tables; one that no row knows is taken as the user says."""
    if wish.llamafactory and tables.llamafactory(wish.llamafactory.version) is None:
        return [wish.llamafactory]
    return [LlamaFactory(version=row.version) for row in tables.llamafactories]


def _torches(wish: ImageWish, tables: Tables) -> list[Torch]:
    """The builds in the tables; one that no row knows is taken as the user says, who has to name its CUDA, too."""
    known = [Torch(version=row.version, cuda=row.cuda) for row in tables.builds]
    version, cuda = wish.torch.version, wish.torch.cuda
    if version is None or any(row.version == version and cuda in (None, row.cuda) for row in known):
        return known
    if cuda is None:
        near = [row.version for row in known if row.version.startswith(f"{version}.")]
        fix = f"did you mean {', '.join(near)}?" if near else "name its CUDA, too; or: sifkit compat update"
        raise UsageError(f"torch {version} is in no row of the tables", fix)
    return [Torch(version=version, cuda=cuda)]


def _bases(wish: ImageWish) -> list[tuple[object, str]]:
    """Known bases, and the one that the user names. Raises `UsageError` for one whose Python nobody knows."""
    found: list[tuple[object, str]] = [(name, base.python) for name, base in known_bases().items()]
    if wish.base is None or wish.base in known_bases():
        return found
    if wish.python is None:
        near = difflib.get_close_matches(str(wish.base), known_bases(), n=1) if isinstance(wish.base, str) else []
        fix = f"did you mean {near[0]}?" if near else 'say it: python: "3.12"'
        raise UsageError(f"base {_base_words(wish.base)}: which Python it has is not known", fix)
    return [(wish.base, wish.python)]


def _base_words(base: object) -> str:
    """A base written out is said by where it comes from."""
    return base if isinstance(base, str) else str(getattr(base, "from_", None) or getattr(base, "bootstrap", base))


def _candidate(
    wish: ImageWish,
    words: Mapping[str, str],
    tables: Tables,
    llamafactory: LlamaFactory,
    torch: Torch,
    base: object,
    python: str,
) -> _Candidate:
    values = wish.model_dump(by_alias=True, exclude={"base", "python", "torch", "llamafactory"}, exclude_defaults=True)
    spec = ImageSpec.model_validate(
        {
            "apt": (*COMPILER, "git"),
            **values,
            "base": base,
            "python": python,
            "torch": torch,
            "llamafactory": llamafactory,
        }
    )
    found = tuple(errors(check(spec, Target(wish.gpu, wish.driver), tables)))
    named = {words[error.subject] for error in found if error.subject in words}
    kept = {key for key, holds in _kept(wish, spec).items() if not holds}
    impossible = any(error.subject not in words for error in found)
    return _Candidate(spec, found, frozenset(named | kept), impossible)


def _words(wish: ImageWish) -> dict[str, str]:
    """Subjects of findings that the user could leave out or change, each as the user wrote it."""
    words = {name: name for name in wish.gpu}
    words |= {f"extra {name}": f"extra {name}" for name in wish.extras}
    if wish.driver:
        words[f"driver {wish.driver}"] = f"driver {wish.driver}"
    for python in {python for _, python in _bases(wish)}:
        for pin in pins_of(wish.packages, python).values():
            words |= dict.fromkeys((pin.name, f"{pin.name} {pin.version}"), pin.origin)
    return words


def _kept(wish: ImageWish, spec: ImageSpec) -> dict[str, bool]:
    """The user's own pins, and whether a candidate keeps them."""
    pins: dict[str, bool] = {}
    if wish.llamafactory:
        pins[f"LLaMA-Factory {wish.llamafactory.version}"] = wish.llamafactory == spec.llamafactory
    if wish.torch.version:
        pins[f"torch {wish.torch.version}"] = wish.torch.version == spec.torch.version
    if wish.torch.cuda:
        pins[f"CUDA {wish.torch.cuda}"] = wish.torch.cuda == spec.torch.cuda
    if wish.base:
        pins[f"base {_base_words(wish.base)}"] = wish.base == spec.base
    if wish.python:
        pins[f"Python {wish.python}"] = wish.python == spec.python
    return pins


# ---------------------------------------------------------------------------------------------- reasoning


def _limits(candidates: list[_Candidate], wish: ImageWish) -> Iterator[Limit]:
    """The user's words first, each with what it takes away; then what follows from the packages themselves."""
    words = _words(wish)
    left = list(candidates)
    for word in dict.fromkeys((*_kept(wish, candidates[0].spec), *words.values())):
        gone = [found for found in candidates if word in found.violated]
        left = [found for found in left if found not in gone]
        yield Limit(word, *_because(gone, word, words), _shown(left))
    rules = dict.fromkeys(error.rule for found in candidates for error in found.errors if error.subject not in words)
    for rule in rules:
        gone = [found for found in left if any(error.rule == rule for error in found.errors)]
        if gone:
            left = [found for found in left if found not in gone]
            newest = max(gone, key=lambda found: found.order)
            error = next(error for error in newest.errors if error.rule == rule)
            yield Limit(error.subject, error.message, error.source, _shown(left))


def _because(gone: list[_Candidate], word: str, words: dict[str, str]) -> tuple[str, str]:
    """Why the newest of those that a word takes away does not fit, and where that was read."""
    if not gone:
        return "nothing in the tables is against it", ""
    newest = max(gone, key=lambda found: found.order)
    error = next((error for error in newest.errors if words.get(error.subject) == word), None)
    return (error.message, error.source) if error else ("the spec says so", "")


def _shown(candidates: list[_Candidate]) -> str:
    """The torch versions and Pythons that are left."""
    if not candidates:
        return "nothing"
    builds = sorted({(Version(found.spec.torch.version), found.spec.torch.cuda) for found in candidates})
    cudas = sorted({cuda for _, cuda in builds}, key=Version)
    pythons = sorted({found.spec.python for found in candidates}, key=Version)
    torch = f"{builds[0][0]} to {builds[-1][0]}" if len(builds) > 1 else str(builds[0][0])
    cuda = f"{cudas[0]} to {cudas[-1]}" if len(cudas) > 1 else cudas[0]
    return f"torch {torch} (CUDA {cuda}), Python {', '.join(pythons)}"


# ---------------------------------------------------------------------------------------------- no way


def _impossible(candidates: Iterable[_Candidate], tables: Tables) -> ProblemFound:
    """Why nothing fits, and the smallest changes with which something does."""
    possible = [found for found in candidates if not found.impossible]
    if not possible:
        said = "\n".join(dict.fromkeys(f"- {error.text}" for found in candidates for error in found.errors[:1]))
        return ProblemFound(f"nothing fits:\n{said}", "take a base or a LLaMA-Factory that the tables know")
    fewest = min(len(found.violated) for found in possible)
    least = [found for found in possible if len(found.violated) == fewest]
    best = [
        _easiest([found for found in least if found.violated == words], tables) for words in {f.violated for f in least}
    ]
    ways = sorted(best, key=lambda found: found.order, reverse=True)[:MOST_CHANGES]
    reasons = dict.fromkeys(f"- {error.text}" for found in ways for error in found.errors)
    message = "no set fits everything that is asked for:\n" + "\n".join(reasons or ["- the pins contradict each other"])
    return ProblemFound(message, "the smallest change is one of:\n" + "\n".join(_way(found, tables) for found in ways))


def _easiest(candidates: list[_Candidate], tables: Tables) -> _Candidate:
    """The newest; where the driver has to be newer, the newest of those that ask for the oldest such driver."""

    def needs(found: _Candidate) -> Version:
        return Version(tables.oldest_driver(found.spec.torch.cuda) or "0")

    if any(word.startswith("driver ") for word in candidates[0].violated):
        lowest = min(needs(found) for found in candidates)
        candidates = [found for found in candidates if needs(found) == lowest]
    return max(candidates, key=lambda found: found.order)


def _way(found: _Candidate, tables: Tables) -> str:
    changes = "; and ".join(_change(word, found, tables) for word in sorted(found.violated))
    spec = found.spec
    return (
        f"- {changes} → LLaMA-Factory {spec.llamafactory.version}, torch {spec.torch.version}, "
        f"CUDA {spec.torch.cuda}, Python {spec.python}"
    )


def _change(word: str, found: _Candidate, tables: Tables) -> str:
    kind, _, value = word.partition(" ")
    spec = found.spec
    match kind:
        case "driver" if generation := [error.fix for error in found.errors if error.rule == "gpu-driver"]:
            return f"{generation[0]} (now {value})"
        case "driver":
            return f"driver {tables.oldest_driver(spec.torch.cuda)} or newer instead of {value}"
        case "LLaMA-Factory":
            return f"llamafactory: {spec.llamafactory.version} instead of {value}"
        case "torch":
            return f"torch {spec.torch.version} instead of {value}"
        case "CUDA":
            return f"CUDA {spec.torch.cuda} instead of {value}"
        case "base" | "Python":
            return f"base: {_base_words(spec.base)} (Python {spec.python}) instead of {word}"
        case _:
            return f"leave out {word}"
