"""`sifkit inspect`: what an image file tells of itself, of its making, and of who signed it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sifkit import provenance, sign
from sifkit.apptainer import Apptainer
from sifkit.commands.options import JsonOption, ProjectOption, VerboseOption, narration, out_console, print_json
from sifkit.errors import Exit, HostError, ProblemFound, SifkitError, UsageError
from sifkit.gather.image import require_image
from sifkit.hashes import sha256_of
from sifkit.lock import read_lock
from sifkit.meter import size_text
from sifkit.printable import printable
from sifkit.progress import progress_for
from sifkit.run import Runner
from sifkit.spec import NoProject, Project, find_project, load_spec
from sifkit.store import Store

Part = Literal["spec", "lock", "definition", "packages", "sbom"]
_MOST = 10  # differences and labels of others that a person reads; --json has all


def inspect(
    subject: Annotated[str, typer.Argument(metavar="IMAGE|FILE.sif", help="an image of this project, or any file")],
    show: Annotated[Part | None, typer.Option(help="print this part of what it carries, and nothing else")] = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Tell what an image is, from its file: pins, packages, how it was made, who signed it.

    In a project, also how its spec and lock differ from those that are there now.

    Exit code 1: the file was changed after it was signed, or does not carry what --show asks for.
    """
    if show and json_:
        raise UsageError("--show prints a part as it is", "leave out --json")
    around = _project(project)
    path = _file(subject, around)
    carried = provenance.read_carried(path)
    if show:
        _print_part(show, path, carried)
        return
    found = _look(path, carried, around, verbose)
    if json_:
        print_json(_as_json(found))
    else:
        _show(found, out_console())
    if found.signed and found.signed.broken:
        raise typer.Exit(Exit.PROBLEM)


@dataclass(frozen=True)
class _Found:
    path: Path
    carried: provenance.Carried
    told: provenance.Told
    labels: Mapping[str, str]
    sha256: str
    size: int  # bytes
    signatures: tuple[sign.Signature, ...]
    signed: sign.Verdict | None  # None: there are signatures, and no Apptainer to check them
    built: bool | None  # the file that this project built; None: this project has not built such an image
    differences: tuple[str, ...] | None  # None: nothing to compare with


def _project(given: Path | None) -> Project | None:
    try:
        return find_project((given or Path.cwd()).absolute())
    except NoProject:
        if given is not None:
            raise
        return None


def _file(subject: str, around: Project | None) -> Path:
    """The image that is meant. Raises `UsageError` for what is none."""
    path = Path(subject)
    if path.suffix != ".sif" and around and not path.is_file():
        path = Store(around.images).sif(path.stem if path.suffix in (".yaml", ".lock") else subject)
    try:
        require_image(path)
    except UsageError as error:
        fix = f"build it: python build.py {path.stem}, or name a file: sifkit inspect FILE.sif"
        fix = "get the file again, or build it anew" if path.is_file() else fix
        raise UsageError(error.message, fix) from None
    return path


def _print_part(part: Part, path: Path, carried: provenance.Carried) -> None:
    text: str | None = getattr(carried, part)
    if text is None:
        raise ProblemFound(f"{path} carries no {_PARTS[part]}", _elsewhere(carried))
    sys.stdout.write(text if text.endswith("\n") else f"{text}\n")


_PARTS = {
    "spec": "spec",
    "lock": "lock",
    "definition": "definition",
    "packages": "list of Debian packages",
    "sbom": "bill of materials",
}


def _elsewhere(carried: provenance.Carried) -> str:
    if carried.nothing:
        return "it was not built by sifkit: whoever built it may have these"
    return "an earlier release built it: build it again with this one"


def _look(path: Path, carried: provenance.Carried, around: Project | None, verbose: bool) -> _Found:
    echo = (lambda text: narration.print(text, markup=False, highlight=False, soft_wrap=True)) if verbose else None
    runner, progress = Runner(os.environ, echo), progress_for(narration, verbose=verbose)
    with progress.phase(f"read {path.name}"):
        sha256, signatures = sha256_of(path), sign.signatures(path)
        signed = _signed(path, runner) if signatures else sign.Verdict(sign.State.UNSIGNED, ())
    told = provenance.tell(carried, path)
    manifest = Store(around.images).manifest(told.name) if around else None
    return _Found(
        path=path,
        carried=carried,
        told=told,
        labels=carried.labels if carried.labels is not None else _asked(path, runner),
        sha256=sha256,
        size=path.stat().st_size,
        signatures=signatures,
        signed=signed,
        built=manifest.sha256 == sha256 if manifest else None,
        differences=_differences(told, around) if around else None,
    )


def _signed(path: Path, runner: Runner) -> sign.Verdict | None:
    try:
        return sign.judge(path, Apptainer.find(runner), sign.keyring_of(os.environ))
    except HostError:
        return None


def _asked(path: Path, runner: Runner) -> dict[str, str]:
    """The labels of an image whose file does not tell them: Apptainer looks into a container."""
    try:
        return Apptainer.find(runner).labels(path)
    except SifkitError:
        return {}


def _differences(told: provenance.Told, around: Project) -> tuple[str, ...] | None:
    if told.sifkit is None or not around.spec_path(told.name).is_file():
        return None
    lock = around.lock_path(told.name)
    try:
        return provenance.differences(told, load_spec(around, told.name), read_lock(lock) if lock.is_file() else None)
    except UsageError as error:
        return (f"this project's own spec or lock cannot be read: {error.message}",)


# ---------------------------------------------------------------------------------------------- output


def _as_json(found: _Found) -> dict[str, Any]:
    told, carried = found.told, found.carried
    return {
        "image": str(found.path),
        "name": told.name,
        "sha256": found.sha256,
        "size": found.size,
        "sifkit": told.sifkit,
        "versions": dict(told.versions),
        "base": told.base,
        "python_packages": told.python_packages,
        "debian_packages": told.debian_packages,
        "spec_digest": told.spec_digest,
        "lock_digest": told.lock_digest,
        "carries": [part for part in _PARTS if getattr(carried, part) is not None],
        "facts": carried.facts,
        "signature": {
            "state": _signature_word(found),
            "keys": list(dict.fromkeys(one.fingerprint for one in found.signatures)),
            "said": found.signed.said if found.signed else "",
        },
        "labels": dict(found.labels),
        "doubts": told.doubts,
        "built_here": found.built,
        "differences": found.differences,
    }


def _show(found: _Found, console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(found):
        table.add_row(Text(name, "bold"), Text(printable(value)))
    console.print(table)
    for doubt in found.told.doubts:
        console.print(Text(printable(f"! {doubt}"), "yellow"))
    if found.carried.nothing:
        words = "This image carries nothing of its making: it was not built by sifkit. Its labels:"
        _list(words, [f"{name}: {value}" for name, value in sorted(found.labels.items())] or ["none"], console)
    if found.differences:
        _list("This project says otherwise by now (image -> project):", list(found.differences), console)


def _list(title: str, lines: list[str], console: Console) -> None:
    console.print(f"\n{title}", highlight=False)
    for line in lines[:_MOST]:
        console.print(Text(printable(f"  {line}")))
    if len(lines) > _MOST:
        console.print(f"  and {len(lines) - _MOST} more: --json", highlight=False)


def _rows(found: _Found) -> Iterator[tuple[str, str]]:
    told, carried = found.told, found.carried
    yield "image", f"{told.name} ({found.path})"
    yield "sha256", found.sha256
    yield "size", size_text(found.size)
    if told.sifkit:
        yield "built by", f"sifkit {told.sifkit}"
    if told.versions:
        yield "holds", ", ".join(f"{name} {version}" for name, version in told.versions.items())
    if told.base:
        yield "base", told.base
    if not carried.nothing:
        yield "packages", f"{_number(told.python_packages)} of Python, {_number(told.debian_packages)} of Debian"
        yield "spec", told.spec_digest or "none that can be read"
        yield "lock", told.lock_digest or "none that can be read"
    yield "carries", ", ".join([_PARTS[part] for part in _PARTS if getattr(carried, part) is not None] or ["nothing"])
    yield "facts", "in the file" if carried.facts else "none: `sifkit check` asks a container"
    yield "signature", _signature_line(found)
    if found.built is not None:
        yield "this project", "built this file" if found.built else "built another file of this name"
    if found.differences == ():
        yield "spec and lock", "as in this project"


def _number(count: int | None) -> str:
    return "an unknown number" if count is None else str(count)


def _signature_word(found: _Found) -> str:
    return found.signed.state.name.lower() if found.signed else "unchecked"


def _signature_line(found: _Found) -> str:
    keys = ", ".join(dict.fromkeys(one.fingerprint or "a key of no keyring" for one in found.signatures))
    if found.signed is None:
        return f"by {keys}; not checked: Apptainer is not installed"
    if found.signed.state is sign.State.UNSIGNED:
        return "none"
    if found.signed.state is sign.State.VALID:
        return f"by {keys}; nothing was changed since"
    said = f" ({found.signed.said})" if found.signed.broken else ""
    return f"by {keys}, but {found.signed.state.value}{said}"
