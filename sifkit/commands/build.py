"""`sifkit build`, and `python build.py`: build images; list, render, sign or verify them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from sifkit import __version__, deffile, dockerfile, execute
from sifkit import offline as offline_builds
from sifkit import sign as signatures
from sifkit.apptainer import Apptainer
from sifkit.commands.options import (
    Device,
    JsonOption,
    ProjectOption,
    SiteOption,
    VerboseOption,
    image_name,
    make_tools,
    out_console,
    print_json,
)
from sifkit.errors import UsageError
from sifkit.model import Method
from sifkit.spec import DEFAULT_IMAGE
from sifkit.tools import Tools

Engine = Literal["apptainer", "docker"]
_NO_WISHES = ("gpu", 1, None, None, None, None, False, None)  # of a verification: the options' defaults


@dataclass(frozen=True)
class _Way:
    """By what images are built, and whether from the cache alone."""

    engine: Engine
    offline: bool


def build(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]…", help=f"default: {DEFAULT_IMAGE}")] = None,
    list_: Annotated[bool, typer.Option("--list", help="images, pins and state; build nothing")] = False,
    render: Annotated[bool, typer.Option("--render", help="the definition on standard output; build nothing")] = False,
    engine: Annotated[Engine, typer.Option(help="build with it; with --render: its kind of definition")] = "apptainer",
    buildkit: Annotated[
        bool, typer.Option("--buildkit", help="with --render --engine docker: keep packages in BuildKit's caches")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="build even what is current")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="from the cache alone; say what it lacks")] = False,
    no_check: Annotated[bool, typer.Option("--no-check", help="do not ask the compatibility tables")] = False,
    sign: Annotated[bool, typer.Option("--sign", help="sign with a key of Apptainer's keyring")] = False,
    key: Annotated[
        str | None, typer.Option(metavar="FINGERPRINT", help="the key to sign with; else the only one")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="build if stale, then verify on this node")] = False,
    checkout: Annotated[Path | None, typer.Option(help="LLaMA-Factory checkout; else fetched and cached")] = None,
    config: Annotated[Path | None, typer.Option(help="training YAML; else an example of the checkout")] = None,
    model: Annotated[Path | None, typer.Option(help="model directory; else a tiny one made in the container")] = None,
    device: Annotated[Device, typer.Option(help="train on")] = "gpu",
    method: Annotated[Method | None, typer.Option(help="train with it; else as the config says")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to train on")] = 1,
    report: Annotated[Path | None, typer.Option(help="directory of the report; else reports/IMAGE")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep model and checkpoints of the verification")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build images; list, render, sign or verify them."""
    if list_ + render + verify > 1:
        raise UsageError("--list, --render and --verify are different things", "give one of them")
    wishes = (device, gpus, checkout, config, model, report, keep, method)
    if not verify and wishes != _NO_WISHES:
        raise UsageError("an option of --verify without it", "add --verify, or leave the option out")
    _require_engine_used(engine, render=render, list_=list_, buildkit=buildkit)
    _require_something_built(offline, engine, nothing=list_ or render)
    if key and not sign:
        raise UsageError("--key without --sign", "add --sign, or leave the option out")
    if sign and (list_ or render):
        raise UsageError("--sign, but nothing is built", "leave out --sign, or --list and --render")
    if list_ and images:
        raise UsageError("--list shows every image", "leave the names out")
    tools = make_tools(project, site_file, verbose)
    signing, how = _signing_key(key, tools) if sign else None, _Way(engine, offline)
    names = list(dict.fromkeys(image_name(name, tools, verify=verify) for name in images or [DEFAULT_IMAGE]))
    if list_:
        _print_list(tools, json_)
    elif render:
        _print_definitions(names, tools, engine, json_, buildkit=buildkit)
    elif verify:
        from sifkit.commands import verifying  # here: it takes a third of the time of a build that has nothing to do

        build_stale = partial(
            _build,
            tools=tools,
            force=force,
            checked=not no_check,
            signing=signing,
            how=how,
            checkouts=checkout is None,
        )
        verifying.verify(names, tools, verifying.Wishes(*wishes), build_stale, checked=not no_check, as_json=json_)
    else:
        steps = _build(names, tools, force=force, checked=not no_check, signing=signing, how=how)
        _print_built(steps, tools, json_)


def _require_engine_used(engine: Engine, *, render: bool, list_: bool, buildkit: bool) -> None:
    if buildkit and not (render and engine == "docker"):
        raise UsageError("--buildkit belongs to --render --engine docker", "give both, or leave it out")
    if list_ and engine == "docker":
        raise UsageError("--list builds nothing", "leave out --engine")


def _require_something_built(offline: bool, engine: Engine, *, nothing: bool) -> None:
    if offline and (nothing or engine == "docker"):
        what = "--list and --render" if nothing else "--engine docker"
        raise UsageError("--offline is a way of building with Apptainer", f"leave it out, or {what}")


def _build(
    names: list[str],
    tools: Tools,
    *,
    force: bool,
    checked: bool,
    signing: signatures.SigningKey | None,
    how: _Way,
    checkouts: bool = False,
) -> list[execute.Step]:
    """Build what is stale, and sign what the key did not sign yet. `checkouts`: a verification takes the cache's."""
    if how.offline:
        steps = offline_builds.build_all(
            names, tools, force=force, checked=checked, signing=signing, checkouts=checkouts
        )
    elif how.engine == "docker":
        from sifkit.docker_engine import DockerEngine  # here: the SDK takes a third of a second

        assembler = DockerEngine.find(tools.environ).assemble
        steps = execute.build_all(names, tools, force=force, checked=checked, signing=signing, assembler=assembler)
    else:
        steps = execute.build_all(names, tools, force=force, checked=checked, signing=signing)
    if signing:
        apptainer = Apptainer.find(tools.runner)
        for name in names:
            signatures.sign_published(name, signing, apptainer, tools.store, tools.progress)
    return steps


def _signing_key(wanted: str | None, tools: Tools) -> signatures.SigningKey:
    """Tried before anything is built; a passphrase is asked for at the terminal, if there is one."""
    ask = partial(typer.prompt, hide_input=True, err=True) if sys.stdin.isatty() else None
    keyring = signatures.keyring_of(tools.environ)
    return signatures.signing_key(wanted, Apptainer.find(tools.runner), keyring, tools.site.signatures, ask)


def _print_list(tools: Tools, as_json: bool) -> None:
    from sifkit import listing  # here: it knows of verifications, and takes as long as they

    rows = listing.list_images(tools)
    if as_json:
        print_json(listing.as_json(rows))
    else:
        out_console().print(listing.as_table(rows, tools.tables))


def _print_definitions(names: list[str], tools: Tools, engine: Engine, as_json: bool, *, buildkit: bool) -> None:
    render = partial(dockerfile.render, buildkit=buildkit) if engine == "docker" else deffile.render
    texts = {name: render(execute.load_image(name, tools), sifkit_version=__version__) for name in names}
    if as_json:
        print_json([{"name": name, "definition": text} for name, text in texts.items()])
    else:
        sys.stdout.write("\n".join(texts.values()))


def _print_built(steps: list[execute.Step], tools: Tools, as_json: bool) -> None:
    if not as_json:
        return
    results = []
    for step in steps:
        manifest = tools.store.manifest(step.image.name)
        sif = tools.store.sif(step.image.name)
        known = {"sha256": manifest.sha256, "size": manifest.size} if manifest else {}
        results.append(
            {"name": step.image.name, "image": str(sif), "built": bool(step.reasons), "why": step.reasons, **known}
        )
    print_json(results)
