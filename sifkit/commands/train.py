"""`sifkit train`: run a training now, on this node, in the image."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sifkit import checking, preflight
from sifkit import launch as launches
from sifkit.apptainer import Apptainer
from sifkit.commands.options import NoCheckOption, ProjectOption, SiteOption, VerboseOption, make_tools
from sifkit.run import Command
from sifkit.tools import Tools

ConfigArgument = Annotated[Path, typer.Argument(help="training YAML: a path, or one of the checkout's examples/")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]…", help="said after the config, and win over it")
]
ImageOption = Annotated[str | None, typer.Option("--image", help="image by name, or a .sif; else the default image")]
CheckoutOption = Annotated[
    Path | None,
    typer.Option(help="LLaMA-Factory checkout, at /mnt in the container; else the one around here, else cached"),
]
NvOption = Annotated[
    bool | None, typer.Option("--nv/--no-nv", help="bind the NVIDIA libraries; else if there is a GPU")
]


def train(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    image: ImageOption = None,
    checkout: CheckoutOption = None,
    nv: NvOption = None,
    print_: Annotated[bool, typer.Option("--print", help="print the plain apptainer line; run nothing")] = False,
    no_check: NoCheckOption = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Train now, on this node, in the image.

    Signals go to the trainer and its exit code is returned: the process becomes `apptainer exec`. The environment is
    cleaned but for what docs/slurm.md lists. Relative paths in the config mean the checkout.
    """
    tools = make_tools(project, site_file, verbose)
    wishes = preflight.Wishes(image=image, checkout=checkout, nv=nv, checked=not no_check)
    ready = preflight.make_ready(config, tuple(overrides or ()), wishes, tools)
    if not no_check:
        _require_sound(ready.launch, checkout, tools, now=not print_)
    apptainer = Apptainer.find(tools.runner)
    if print_:
        sys.stdout.write(_shown(ready.launch, tools, apptainer))
        return
    _make_places(ready.launch, tools)
    tools.runner.replace(_command(ready.launch, tools, apptainer))


def _require_sound(launch: launches.Launch, checkout: Path | None, tools: Tools, *, now: bool) -> None:
    """What `sifkit check` finds, for a run on this node, or later on one like it. Raises `ProblemFound`."""
    place, path = checking.Workplace.of(tools), launch.training.path
    asked = checking.Asked(image=str(launch.image), checkout=checkout)
    around = checking.surroundings(
        asked, place, path, checking.here(tools.environ, gpu=launch.nv, torchrun=launch.torchrun, now=now)
    )
    checking.require_sound([path], launch.training.overrides, around, tools.progress)


def _cache(tools: Tools) -> Path:
    return tools.cache / "train"


def _make_places(launch: launches.Launch, tools: Tools) -> None:
    for folder in launches.CACHES.values():
        (_cache(tools) / folder).mkdir(parents=True, exist_ok=True)
    for bind in launch.binds:
        if bind.writable:
            bind.source.mkdir(parents=True, exist_ok=True)


def _environment(tools: Tools) -> dict[str, str]:
    """What the container sees of ours. By variable and not by option: options are seen by every user of a node."""
    names = launches.passed_names(tools.environ)
    return {name: tools.environ[name] for name in names}


def _argv(launch: launches.Launch, tools: Tools, program: str) -> list[str]:
    env = launches.fixed_environment()
    if home := preflight.hf_home(tools):
        env["HF_HOME"] = str(home)
    return launches.exec_argv(launch, program, cache=_cache(tools), env=env)


def _command(launch: launches.Launch, tools: Tools, apptainer: Apptainer) -> Command:
    passed = {f"APPTAINERENV_{name}": value for name, value in _environment(tools).items()}
    return Command(
        tuple(_argv(launch, tools, apptainer.program)),
        env={**apptainer.privileges.run_env, **passed},
    )


def _shown(launch: launches.Launch, tools: Tools, apptainer: Apptainer) -> str:
    """The command as a person would type it, with the values of variables left to the shell."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in apptainer.privileges.run_env.items()]
    settings += [f'APPTAINERENV_{name}="${name}"' for name in _environment(tools)]
    folders = " ".join(shlex.quote(str(_cache(tools) / folder)) for folder in launches.CACHES.values())
    written = " ".join(shlex.quote(str(bind.source)) for bind in launch.binds if bind.writable)
    words = " ".join([*settings, shlex.join(_argv(launch, tools, "apptainer"))])
    return f"mkdir -p {folders} {written}".rstrip() + f"\n{words}\n"
