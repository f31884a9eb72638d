"""Known pairs: packages that every resolver puts together and that fail, and how a resolver keeps clear of them."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet

from sifkit.compat.findings import Finding, Question, Severity
from sifkit.compat.tables import Pair, overlap, specifier_of


def pairs(question: Question) -> Iterator[Finding]:
    """Known pairs that resolvers accept and that fail: chosen already, or with no way around for the resolver."""
    for pair, have in _at_odds(question):
        pin = question.pinned.get(pair.package)
        if pin and pin.version:
            certain = pin.version in specifier_of(pair.versions)
        else:
            certain = question.lock is None and not _avoidable(question, pair)
        if certain:
            other = f"{pair.other} {str(have).removeprefix('==')}"
            message = (
                f"{pair.package} {pair.versions} works only with {pair.other} {pair.needs}, not {other}: {pair.symptom}"
            )
            fix = f"{pair.other}{pair.needs}, or {pair.package}{pair.instead}"
            yield Finding("known-pair", Severity.ERROR, other, message, fix, pair.source)


def _at_odds(question: Question) -> Iterator[tuple[Pair, SpecifierSet]]:
    """Pairs that could meet: both get into the image, and the other in no version that the first works with."""
    for pair in question.tables.pairs:
        have = version_of_other(question, pair)
        if have is not None and not overlap(have, specifier_of(pair.needs)) and _wanted(question, pair.package):
            yield pair, have


def version_of_other(question: Question, pair: Pair) -> SpecifierSet | None:
    """The other package's pin, or the range that LLaMA-Factory gives; None when it does not get into the image."""
    if pair.other == "torch":
        return SpecifierSet(f"=={question.spec.torch.version}")
    pin = question.pinned.get(pair.other)
    if pin and pin.version:
        return SpecifierSet(f"=={pin.version}")
    return _asked(question, pair.other) if _wanted(question, pair.other) else None


def _asked(question: Question, package: str) -> SpecifierSet:
    """The range that this LLaMA-Factory gives, that of an extra included where the spec has it."""
    row = question.llamafactory
    if row is None:
        return SpecifierSet()
    of_extra = row.extra_specifiers(package, package) if package in question.spec.extras else SpecifierSet()
    return row.specifiers(package) & of_extra


def _wanted(question: Question, package: str) -> bool:
    """Whether the package gets into the image at all: what is tied to torch only when it is asked for."""
    return not question.tables.releases(package) or package in question.spec.extras or package in question.pinned


def _avoidable(question: Question, pair: Pair) -> bool:
    return overlap(_asked(question, pair.package), specifier_of(pair.instead))


def constraints(question: Question) -> tuple[str, ...]:
    """What a resolver has to be told so that it keeps clear of the known pairs."""
    return tuple(f"{pair.package}{pair.instead}" for pair, _ in _at_odds(question))


RULES = (pairs,)
