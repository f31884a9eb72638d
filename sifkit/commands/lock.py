"""`sifkit lock`: resolve specs to locks."""

from __future__ import annotations

from typing import Annotated

import typer

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
from sifkit.errors import Exit
from sifkit.execute import Tools, findings_of, require_fits
from sifkit.files import write_whole
from sifkit.lock import make_lock, read_lock, state
from sifkit.resolve import resolution
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
    wanted = resolution(spec, tools.tables)
    before = state(wanted, path)
    if not trust:  # what the spec alone tells is said before anything is resolved
        require_fit(name, findings_of(spec, tools))
    if check or (before == "current" and not upgrade):
        fix = "" if before == "current" else f": run sifkit lock {name}"
        tools.progress.note(f"{name}: lock is {before}{fix}")
        if not trust and before == "current":
            require_fits(spec, read_lock(path), tools)
        return {"name": name, "state": before}
    with tools.progress.phase(f"resolve {name}"):
        lock = make_lock(spec, wanted, tools.site, tools.runner)
    if not trust:
        require_fits(spec, lock, tools)  # else the lock is not written
    write_whole(path, lock.text)
    tools.progress.note(f"{path.name}: {len(lock.packages)} packages, {lock.download_bytes() / 1e9:.1f} GB to download")
    return {"name": name, "state": "current", "was": before}
