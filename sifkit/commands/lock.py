"""`sifkit lock`: resolve specs to locks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sifkit import digests, inherit
from sifkit.commands.options import (
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    image_name,
    make_tools,
    print_json,
)
from sifkit.compat.gate import require_fit
from sifkit.environment import changes, read_environment
from sifkit.errors import Exit, HostError
from sifkit.execute import findings_of, require_fits
from sifkit.files import write_whole
from sifkit.host import host_bases
from sifkit.lock import BaseDigest, State, base_of, make_lock, moved, read_lock, state, with_base
from sifkit.model import ImageBase, ImageSpec, Lock, Resolution
from sifkit.reference import reference_of
from sifkit.registry import Settings
from sifkit.resolve import environment_base, resolution, resolve_base
from sifkit.site import ca_bundle
from sifkit.spec import load_spec
from sifkit.tools import Tools


def lock(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]…", help="default: all")] = None,
    check: Annotated[bool, typer.Option("--check", help="only say what is stale; exit 1 if anything is")] = False,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="resolve anew what is current, too")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="do not ask the compatibility tables")] = False,
    no_digest: Annotated[bool, typer.Option("--no-digest", help="leave a docker base by its tag")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Resolve specs to locks, hashes included, and tags of docker bases to digests.

    --upgrade shows what moved.
    """
    tools = make_tools(project, site_file, verbose)
    wishes = Wishes(check=check, upgrade=upgrade, trust=no_check, digest=not no_digest)
    names = [image_name(name, tools) for name in images] if images else tools.project.names()
    results = [_lock_one(name, tools, wishes) for name in names]
    if json_:
        print_json(results)
    if check and any(result["state"] != "current" for result in results):
        raise typer.Exit(Exit.PROBLEM)


@dataclass(frozen=True)
class Wishes:
    """What the command line asks for."""

    check: bool = False
    upgrade: bool = False
    trust: bool = False  # the compatibility tables are not asked
    digest: bool = True  # a docker base by tag gets its digest


def _lock_one(name: str, tools: Tools, wishes: Wishes) -> dict[str, Any]:
    spec, path = load_spec(tools.project, name), tools.project.lock_path(name)
    wanted = resolution(spec, tools.tables, tools.site)
    before = _state(spec, wanted, path, tools)
    if not wishes.trust:  # what the spec alone tells is said before anything is resolved
        require_fit(name, findings_of(spec, tools))
    if wishes.check or (before == "current" and not wishes.upgrade):
        fix = "" if before == "current" else f": run sifkit lock {name}"
        tools.progress.note(f"{name}: lock is {before}{fix}")
        if not wishes.trust and before == "current":
            require_fits(spec, read_lock(path), tools)
        added = {} if wishes.check or not wishes.digest else _add_digest(spec, path, tools)
        return {"name": name, "state": before, **added}
    old = read_lock(path) if before in ("current", "stale") else None
    digest = _digest(spec, old, tools, wishes)  # before the resolver, which takes longer
    with tools.progress.phase(f"resolve {name}"):
        lock = with_base(_make(spec, wanted, tools), digest)
    if not wishes.trust:
        require_fits(spec, lock, tools)  # else the lock is not written
    write_whole(path, lock.text)
    tools.progress.note(lock.text[2 : lock.text.index(";")].replace(name, path.name, 1))
    lines = moved(old, lock) if old else ()
    for line in lines or (("nothing moved",) if old else ()):
        tools.progress.note(f"  {line}")
    return {"name": name, "state": "current", "was": before, **_as_json(digest, lines)}


def _as_json(digest: BaseDigest | None, lines: tuple[str, ...] = ()) -> dict[str, Any]:
    base = {"base": digest.name, "digest": digest.digest} if digest else {}
    return {**base, **({"moved": list(lines)} if lines else {})}


def _digest(spec: ImageSpec, old: Lock | None, tools: Tools, wishes: Wishes) -> BaseDigest | None:
    """Of a docker base by tag. One that another host locked stays where this one makes the same base otherwise."""
    base, known = _base(spec, tools), base_of(old.text) if old else None
    reference = reference_of(base.source)
    if reference is None:
        return known if base.name else None
    if known and known.name == str(reference) and not wishes.upgrade:
        return known
    return BaseDigest(str(reference), _ask(base, tools)) if wishes.digest else None


def _add_digest(spec: ImageSpec, path: Path, tools: Tools) -> dict[str, Any]:
    """To a lock that is current and was written without; not for sifkit's own bases, which `--upgrade` brings."""
    base, lock = _base(spec, tools), read_lock(path)
    reference, known = reference_of(base.source), base_of(lock.text)
    default = base.name and base.name not in tools.site.bases
    if reference is None or default or (known and known.name == str(reference)):
        return {}
    found = BaseDigest(str(reference), _ask(base, tools))
    write_whole(path, with_base(lock, found).text)
    tools.progress.note(f"  base {found.name}: {found.digest}")
    return _as_json(found)


def _base(spec: ImageSpec, tools: Tools) -> ImageBase:
    return resolve_base(spec, tools.site, host_bases(tools.runner))


def _ask(base: ImageBase, tools: Tools) -> str:
    """Raises with one more way out: the tag as it is."""
    reference = reference_of(base.source)
    assert reference is not None
    settings = Settings(tools.environ, ca_bundle(tools.site, tools.environ), tools.progress.note, site=tools.site)
    try:
        with tools.progress.phase(f"digest of {reference.short}"):
            return digests.resolve(reference, settings)
    except HostError as error:
        error.fix = f"{error.fix}; or leave the base by its tag: --no-digest"
        raise


def _make(spec: ImageSpec, wanted: Resolution, tools: Tools) -> Lock:
    """Resolved by uv for the image; or by the pip of the environment that the image starts from."""
    base = environment_base(spec, tools.site)
    if base:
        return inherit.make_lock(spec, wanted, base, tools.site, tools.runner)
    return make_lock(spec, wanted, tools.site, tools.runner)


def _state(spec: ImageSpec, wanted: Resolution, path: Path, tools: Tools) -> State:
    """Also stale when the environment changed. Where that is on another host, it is said that it was not compared."""
    found, base = state(wanted, path), environment_base(spec, tools.site)
    if found != "current" or base is None or base.environment is None:
        return found
    if not Path(base.environment).is_dir():
        tools.progress.note(f"{spec.name}: {base.environment} is not on this host: the lock is not compared with it")
        return found
    return "stale" if changes(read_lock(path), read_environment(base, tools.runner)) else "current"
