"""From a recipe to a spec: what is understood becomes pins, what is missing is chosen, the rest raw sections."""

from __future__ import annotations

import os
import posixpath
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name
from pydantic import ValidationError

from sifkit.compat.choose import choose
from sifkit.compat.packages import COMPILER
from sifkit.compat.tables import Tables
from sifkit.errors import ProblemFound, SifkitError, UsageError
from sifkit.importing.bases import take_base
from sifkit.importing.commands import understand
from sifkit.importing.recipe import Copy, Fault, Item, Raw, Recipe, Script
from sifkit.importing.wishes import Wishes
from sifkit.model import ImageSpec, ImageWish
from sifkit.tables import known_bases, known_extras

_ORDER = ("setup", "files", "post", "environment", "labels", "runscript", "startscript", "test", "help")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    name: str
    root: Path  # of the project: %files are relative to it
    python: str = ""
    keep_base: bool = False


@dataclass(frozen=True)
class Imported:
    """A spec, and what became of every part of the source."""

    spec: ImageSpec
    file: str
    items: tuple[Item, ...]
    problem: str = ""  # why its pins do not fit together, where they are the source's own


def convert(recipe: Recipe, tables: Tables, options: Options) -> Imported:
    """Raises `UsageError` with every line that has no counterpart, `ProblemFound` where the pins contradict."""
    wishes = Wishes(recipe.directory, tables)
    _take_image(recipe, wishes)
    kept = _take_steps(recipe, wishes)
    wishes.merge_metrics()
    base, weak = take_base(recipe, wishes, keep=options.keep_base)
    if options.python:
        wishes.python, weak = options.python, weak - {"python"}
    raw = [*recipe.raw, *_scripts(kept), *_copies(kept, recipe, wishes, options)]
    faults = [*recipe.faults, *wishes.faults, *_unwritable(raw)]
    if faults:
        raise _refusal(recipe, faults)
    spec, problem = _chosen(wishes, recipe, base, weak, raw, options)
    items = sorted([*recipe.items, *wishes.items, *_raw_items(recipe.raw)], key=lambda item: item.line)
    return Imported(spec, recipe.file, tuple(dict.fromkeys(items)), problem)


# ---------------------------------------------------------------------------------------------- steps


def _take_image(recipe: Recipe, wishes: Wishes) -> None:
    """Pins of what is installed, which counts more than what was asked for."""
    if not recipe.packages:
        return
    wishes.versions = {canonicalize_name(name): version for name, version in recipe.packages.items()}
    installed = wishes.versions
    if recipe.python:
        wishes.pin("python", recipe.python, 0, f"Python {recipe.python} in the image")
    for name in ("torch", "llamafactory"):
        if name in installed:
            wishes.pin(name, installed[name].partition("+")[0], 0, f"{name} {installed[name]} in the image")
    if recipe.cuda:
        wishes.pin("cuda", recipe.cuda, 0, f"torch of the image, for CUDA {recipe.cuda}")
    for name, extra in known_extras().items():
        if all(canonicalize_name(re.split(r"[^\w.-]", text)[0]) in installed for text in extra.requires):
            wishes.extra(name, 0, f"{', '.join(extra.requires)} in the image")


def _take_steps(recipe: Recipe, wishes: Wishes) -> list[tuple[int, str] | Copy]:
    """In the source's order; what is not understood comes back."""
    kept: list[tuple[int, str] | Copy] = []
    for step in recipe.steps:
        if isinstance(step, Script):
            kept += understand(step, wishes)
        elif _is_checkout(step, recipe, wishes):
            wishes.checkouts.add(posixpath.normpath(step.target))
            version = wishes.version_here()
            what = f"{step.source} → {step.target}: LLaMA-Factory {version}".rstrip()
            wishes.llamafactory_asked(step.line, what, version, ())
            wishes.checkout_left(step.line, step.target)
        else:
            place = posixpath.join(step.target, posixpath.basename(step.source))
            target = place if step.target.endswith("/") or step.target in (".", "") else step.target
            wishes.copied[posixpath.normpath(posixpath.join("/", target))] = step.source
            kept.append(step)
    return kept


def _is_checkout(step: Copy, recipe: Recipe, wishes: Wishes) -> bool:
    """A whole context that is LLaMA-Factory's, or whose Dockerfile is LLaMA-Factory's own by its words."""
    if posixpath.normpath(step.source) not in (".", "/"):
        return False
    try:
        own = "llama factory" in Path(recipe.file).read_text(errors="replace").lower().replace("-", " ")
    except OSError:
        own = False
    return own or bool(wishes.version_here())


def _scripts(kept: Iterable[tuple[int, str] | Copy]) -> list[Raw]:
    return [Raw(one[0], "post", one[1]) for one in kept if not isinstance(one, Copy)]


def _copies(kept: Iterable[tuple[int, str] | Copy], recipe: Recipe, wishes: Wishes, options: Options) -> list[Raw]:
    """%files, with sources as seen from the project; files that were read into pins are not needed any more."""
    found = []
    for one in kept:
        if not isinstance(one, Copy):
            continue
        what = f"{one.source} → {one.target}"
        if wishes.used and (recipe.directory / one.source) in wishes.used:
            wishes.note(one.line, what, "ours", "read: what it asks for are pins")
            continue
        found.append(Raw(one.line, "files", f"{_word(_source(one, recipe, options))} {_word(one.target)}"))
        wishes.note(one.line, what, "kept", "sections.files")
        if (recipe.directory / one.source).is_dir() and (recipe.directory / ".dockerignore").is_file():
            wishes.note(one.line, ".dockerignore", "left", "Apptainer copies all of a directory")
        if not any(character in one.source for character in "*?[") and not (recipe.directory / one.source).exists():
            wishes.note(one.line, f"{one.source} is not there", "changed", "put it there before you build")
    return found


def _source(step: Copy, recipe: Recipe, options: Options) -> str:
    path = Path(os.path.normpath(recipe.directory.absolute() / step.source))
    inside = path.is_relative_to(options.root.absolute())
    shown = path.relative_to(options.root.absolute()).as_posix() if inside else str(path)
    return f"{shown}/." if step.contents and path.is_dir() else shown


def _word(text: str) -> str:
    return shlex.quote(text) if re.search(r"\s", text) else text


# ---------------------------------------------------------------------------------------------- refusals


def _unwritable(raw: Iterable[Raw]) -> list[Fault]:
    """Text that would end its section, or that Apptainer reads as a build argument."""
    found = []
    for one in raw:
        for row in one.text.split("\n"):
            if row.lstrip().startswith("%"):
                fix = "begin the line with something else, or put the text into a file and COPY it"
                found.append(Fault(one.line, f"a line that begins a section: {row.strip()[:60]}", fix))
            if "{{" in row:
                found.append(
                    Fault(
                        one.line, f"Apptainer takes {{{{ for a build argument: {row.strip()[:60]}", "put it into a file"
                    )
                )
    return found


def _refusal(recipe: Recipe, faults: list[Fault]) -> UsageError:
    rows = [f"{recipe.file}:{fault.line}: {fault.what}\n  fix: {fault.fix}" for fault in sorted(faults, key=_line)]
    return UsageError("\n".join(dict.fromkeys(rows)), "correct these lines; nothing was written")


def _line(fault: Fault) -> int:
    return fault.line


# ---------------------------------------------------------------------------------------------- choosing


def _chosen(
    wishes: Wishes, recipe: Recipe, base: Any, weak: frozenset[str], raw: list[Raw], options: Options
) -> tuple[ImageSpec, str]:
    """The pins, and the newest that fits for what nobody said. Pins of a base that is replaced give way.

    Where the source's own pins do not fit together it is still its spec, with the reason.
    """
    python = wishes.python
    if python and base is None and python not in {known.python for known in known_bases().values()}:
        wishes.note(recipe.base_line, f"Python {python}", "changed", "no base of ours has it; or --keep-base")
        wishes.python, weak = "", weak - {"python"}
    refused: SifkitError | None = None
    for dropped in _orders(weak):
        try:
            spec = choose(_wish(wishes, recipe, base, dropped, raw, options), wishes.tables).spec
        except (ProblemFound, UsageError) as error:
            refused = refused or error
            continue
        for key in dropped:
            value = getattr(wishes, key)
            wishes.unpin(key, recipe.base_line)
            why = f"{_said(spec, key)}: {_reason(refused)}"
            wishes.note(recipe.base_line, f"{key} {value} of {recipe.base}", "changed", why)
        _note_chosen(wishes, spec, dropped)
        return spec, ""
    assert refused is not None
    said = _as_said(wishes, recipe, base, raw, options)
    if said:
        return said, f"{refused.message}\n{refused.fix or ''}".rstrip()
    fix = (refused.fix or "").replace('say it: python: "3.12"', "say it: --python 3.12")
    raise type(refused)(f"{recipe.file}: its pins do not fit together\n{refused.message}", fix)


def _as_said(wishes: Wishes, recipe: Recipe, base: Any, raw: list[Raw], options: Options) -> ImageSpec | None:
    """A spec of the source's own words; None where they leave something open."""
    bases = known_bases()
    python = wishes.python or (bases[base].python if isinstance(base, str) else "")
    build = wishes.tables.build(wishes.torch, wishes.cuda)
    fitting = [
        name
        for name, known in bases.items()
        if known.python == python or (not python and build and known.python in build.pythons)
    ]
    if not (wishes.torch and wishes.cuda and wishes.llamafactory and (base or fitting)):
        return None
    if base is not None and not python:
        return None
    wish = _wish(wishes, recipe, base or fitting[0], (), raw, options)
    values = wish.model_dump(by_alias=True, exclude_defaults=True)
    chosen = base or fitting[0]
    return ImageSpec.model_validate({**values, "python": python or bases[chosen].python})


def _orders(weak: frozenset[str]) -> list[tuple[str, ...]]:
    """Nothing given up first, then each weak pin, then all."""
    names = [name for name in ("python", "cuda", "torch") if name in weak]
    return [(), *((name,) for name in names), *([tuple(names)] if len(names) > 1 else [])]


def _reason(refused: SifkitError | None) -> str:
    """The first that a refusal names."""
    rows = [row for row in (refused.message if refused else "").split("\n") if row.startswith("- ")]
    return rows[0].removeprefix("- ").partition(" [")[0] if rows else "its pins contradict"


def _said(spec: ImageSpec, key: str) -> str:
    values = {"python": spec.python, "cuda": f"CUDA {spec.torch.cuda}", "torch": f"torch {spec.torch.version}"}
    return f"{values[key]}, the newest that fits the rest"


def _note_chosen(wishes: Wishes, spec: ImageSpec, dropped: tuple[str, ...]) -> None:
    """What nobody said."""
    chosen = {
        "llamafactory": spec.llamafactory.version,
        "torch": spec.torch.version,
        "cuda": spec.torch.cuda,
        "python": spec.python,
    }
    for key, value in chosen.items():
        if not getattr(wishes, key) and key not in dropped:
            why = "not said; the newest that fits"
            if key == "llamafactory" and not wishes.asks_llamafactory:
                why = "the source has none; the newest that fits"
            wishes.note(0, f"{key} {value}", "changed", why)


def _wish(
    wishes: Wishes, recipe: Recipe, base: Any, dropped: tuple[str, ...], raw: list[Raw], options: Options
) -> ImageWish:
    pins = {key: getattr(wishes, key) for key in ("torch", "cuda", "python", "llamafactory") if key not in dropped}
    values: dict[str, Any] = {
        "name": options.name,
        "base": base,
        "python": pins.get("python") or None,
        "torch": {"version": pins.get("torch") or None, "cuda": pins.get("cuda") or None},
        "llamafactory": {"version": pins["llamafactory"]} if pins["llamafactory"] else None,
        "extras": tuple(wishes.extras),
        "packages": tuple(wishes.packages),
        "apt": tuple(dict.fromkeys((*COMPILER, "git", *wishes.apt))),
        "env": {variable.name: variable.value for variable in recipe.environment},
        "sections": _sections(raw),
    }
    try:
        return ImageWish.model_validate({key: value for key, value in values.items() if value is not None})
    except ValidationError as error:
        said = "; ".join(f"{'.'.join(map(str, row['loc']))}: {row['msg']}" for row in error.errors())
        raise UsageError(f"{recipe.file}: {said}", "correct it in the source") from None


def _sections(raw: list[Raw]) -> dict[str, str]:
    """By name, in the source's order."""
    found: dict[str, list[str]] = {}
    for one in raw:
        found.setdefault(one.section, []).append(one.text)
    order = sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: "\n".join(row.rstrip() for row in "\n".join(found[name]).split("\n")) for name in order}


def _raw_items(raw: Iterable[Raw]) -> list[Item]:
    rows = [one for one in raw if one.section not in ("environment",)]
    return [Item(one.line, one.text.split("\n")[0][:100], "kept", f"sections.{one.section}") for one in rows]
