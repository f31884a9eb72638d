"""`sifkit lock`: resolve specs to locks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sifkit import inherit
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
from sifkit.errors import Exit
from sifkit.execute import Tools, findings_of, require_fits
from sifkit.files import write_whole
from sifkit.lock import State, make_lock, read_lock, state
from sifkit.model import ImageSpec, Lock, Resolution
from sifkit.resolve import environment_base, resolution
from sifkit.spec import load_spec


def lock(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]…", help="default: all")] = None,
    check: Annotated[bool, typer.Option("--check", help="only say what is stale; exit 1 if anything is")] = False,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="resolve anew what is current, too")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="do not ask the compatibility tables")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Resolve specs to locks, hashes included."""
    tools = make_tools(project, site_file, verbose)
    names = [image_name(name, tools) for name in images] if images else tools.project.names()
    results = [_lock_one(name, tools, check=check, upgrade=upgrade, trust=no_check) for name in names]
    if json_:
        print_json(results)
    if check and any(result["state"] != "current" for result in results):
        raise typer.Exit(Exit.PROBLEM)


def _lock_one(name: str, tools: Tools, *, check: bool, upgrade: bool, trust: bool) -> dict[str, str]:
    spec, path = load_spec(tools.project, name), tools.project.lock_path(name)
    wanted = resolution(spec, tools.tables, tools.site)
    before = _state(spec, wanted, path, tools)
    if not trust:  # what the spec alone tells is said before anything is resolved
        require_fit(name, findings_of(spec, tools))
    if check or (before == "current" and not upgrade):
        fix = "" if before == "current" else f": run sifkit lock {name}"
        tools.progress.note(f"{name}: lock is {before}{fix}")
        if not trust and before == "current":
            require_fits(spec, read_lock(path), tools)
        return {"name": name, "state": before}
    with tools.progress.phase(f"resolve {name}"):
        lock = _make(spec, wanted, tools)
    if not trust:
        require_fits(spec, lock, tools)  # else the lock is not written
    write_whole(path, lock.text)
    tools.progress.note(lock.text[2 : lock.text.index(";")].replace(name, path.name, 1))
    return {"name": name, "state": "current", "was": before}


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
