"""The command line: parse, call, render. Errors become text here and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal, NoReturn

import typer
from rich.console import Console

from sifkit import __version__, deffile, execute, listing, site, stamp
from sifkit import checkout as checkouts
from sifkit import verify as verification
from sifkit.errors import Exit, HostError, Interrupted, SifkitError, UsageError
from sifkit.execute import Tools
from sifkit.lock import make_lock, state
from sifkit.progress import progress_for
from sifkit.run import Runner
from sifkit.spec import DEFAULT_IMAGE, find_project, load_spec
from sifkit.verify.report import as_json as as_json_report

narration = Console(stderr=True)
app = typer.Typer(
    help="Apptainer images for LLaMA-Factory: pinned from a short YAML, built fast, verified by a real training run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Device = Literal["gpu", "cpu"]


SiteOption = Annotated[
    Path | None, typer.Option("--site", help="site file; else $SIFKIT_SITE, ./site.yaml, user config")
]
ProjectOption = Annotated[Path | None, typer.Option("--project", help="directory that holds definitions/")]
JsonOption = Annotated[bool, typer.Option("--json", help="results as JSON on standard output")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="show commands and all their output")]


def make_tools(project: Path | None, site_file: Path | None, verbose: bool) -> Tools:
    """Everything that a command acts with. Raises `UsageError` for a site file that is wrong."""
    environ = dict(os.environ)
    echo = (lambda text: narration.print(text, markup=False, highlight=False, soft_wrap=True)) if verbose else None
    if project is not None and not (project / "definitions").is_dir():
        raise UsageError(f"--project {project}: there is no definitions/ in it", "name the directory that holds it")
    return Tools(
        project=find_project((project or Path.cwd()).absolute()),
        site=site.load_site(site_file, environ, Path.cwd()),
        runner=Runner(environ, echo),
        progress=progress_for(narration, verbose=verbose),
        environ=environ,
    )


@app.command()
def build(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]…", help=f"default: {DEFAULT_IMAGE}")] = None,
    list_: Annotated[bool, typer.Option("--list", help="images, pins and state; build nothing")] = False,
    render: Annotated[bool, typer.Option("--render", help="the definition on standard output; build nothing")] = False,
    force: Annotated[bool, typer.Option("--force", help="build even what is current")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="build if stale, then verify on this node")] = False,
    checkout: Annotated[Path | None, typer.Option(help="LLaMA-Factory checkout; else fetched and cached")] = None,
    config: Annotated[Path | None, typer.Option(help="training YAML; else an example of the checkout")] = None,
    model: Annotated[Path | None, typer.Option(help="model directory; else a tiny one made in the container")] = None,
    device: Annotated[Device, typer.Option(help="train on")] = "gpu",
    gpus: Annotated[int, typer.Option(min=1, help="GPUs to train on")] = 1,
    report: Annotated[Path | None, typer.Option(help="directory of the report; else reports/IMAGE")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="keep model and checkpoints of the verification")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Build images; list, render or verify them."""
    if list_ + render + verify > 1:
        raise UsageError("--list, --render and --verify are different things", "give one of them")
    tools = make_tools(project, site_file, verbose)
    names = list(dict.fromkeys(_image_name(name, tools, verify=verify) for name in images or [DEFAULT_IMAGE]))
    if list_:
        _print_list(tools, json_)
    elif render:
        _print_definitions(names, tools, json_)
    elif verify:
        _verify(
            names, tools, stamp.Wishes(device, gpus, checkout, config, model, report, keep), force=force, as_json=json_
        )
    else:
        _print_built(execute.build_all(names, tools, force=force), tools, json_)


def _image_name(word: str, tools: Tools, *, verify: bool = False) -> str:
    """An image may be given as its name, its spec's path or its .sif; a foreign .sif can be verified as a file."""
    path = Path(word)
    if path.suffix not in (".yaml", ".sif", ".lock"):
        return word
    foreign = path.suffix == ".sif" and path.absolute() != tools.store.sif(path.stem)
    if foreign and verify and not path.is_file():
        raise UsageError(f"{path}: no such file")
    if foreign and verify:
        return word
    home = tools.project.images if path.suffix == ".sif" else tools.project.definitions
    places = {path.resolve().parent, (tools.project.root / path).resolve().parent}
    if len(path.parts) > 1 and home.resolve() not in places:
        raise UsageError(f"{path} is not in this project", f"name an image of {tools.project.root}, or give --project")
    return path.stem


def _print_list(tools: Tools, as_json: bool) -> None:
    rows = listing.list_images(tools)
    if as_json:
        print_json(listing.as_json(rows))
    else:
        out_console().print(listing.as_table(rows))


def _print_definitions(names: list[str], tools: Tools, as_json: bool) -> None:
    texts = {name: deffile.render(execute.load_image(name, tools), sifkit_version=__version__) for name in names}
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


def _verify(names: list[str], tools: Tools, wishes: stamp.Wishes, *, force: bool, as_json: bool) -> None:
    if wishes.report and len(names) > 1:
        raise UsageError("--report names one directory, but several images are verified", "verify them one by one")
    stamp.require(wishes)
    files = [name for name in names if name.endswith(".sif")]
    execute.build_all([name for name in names if name not in files], tools, force=force)
    reports = [_verify_one(name, tools, wishes, as_json=as_json) for name in names]
    if as_json:
        print_json([as_json_report(report) for report in reports])
    if not all(report.passed for report in reports):
        raise typer.Exit(Exit.PROBLEM)


def _verify_one(name: str, tools: Tools, wishes: stamp.Wishes, *, as_json: bool) -> verification.Report:
    if name.endswith(".sif"):
        done = stamp.verify_file(Path(name), tools, wishes)
    else:
        done = stamp.verify_image(name, tools, wishes)
    if not as_json:
        out_console().print(verification.render_table(done.report))
    tools.progress.note(f"report: {done.directory / 'report.json'}, {done.directory / 'junit.xml'}")
    return done.report


def out_console() -> Console:
    """Standard output; a pipe has no width to fit into."""
    return Console() if sys.stdout.isatty() else Console(width=200)


@app.command()
def checkout(
    version: Annotated[str, typer.Argument(help="of LLaMA-Factory, as the image has it")],
    directory: Annotated[Path | None, typer.Argument(help="default: LLaMA-Factory-VERSION")] = None,
    site_file: SiteOption = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring a LLaMA-Factory checkout: git tag where git hosting is reached, else the package index's source archive."""
    tools = make_tools(project, site_file, verbose)
    target = directory or Path(f"LLaMA-Factory-{version}")
    sources = stamp.checkout_sources(tools)
    path = checkouts.fetch(version, target, tools.runner, tools.progress, sources=sources)
    if json_:
        print_json({"version": version, "checkout": str(path)})
    else:
        sys.stdout.write(f"{path}\n")


@app.command()
def lock(
    images: Annotated[list[str] | None, typer.Argument(metavar="[IMAGE]…", help="default: all")] = None,
    check: Annotated[bool, typer.Option("--check", help="only say what is stale; exit 1 if anything is")] = False,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="resolve anew what is current, too")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    json_: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Resolve specs to locks: every package with version, file and hash."""
    tools = make_tools(project, site_file, verbose)
    names = [_image_name(name, tools) for name in images] if images else tools.project.names()
    results = [_lock_one(name, tools, check=check, upgrade=upgrade) for name in names]
    if json_:
        print_json(results)
    if check and any(result["state"] != "current" for result in results):
        raise typer.Exit(Exit.PROBLEM)


def _lock_one(name: str, tools: Tools, *, check: bool, upgrade: bool) -> dict[str, str]:
    spec, path = load_spec(tools.project, name), tools.project.lock_path(name)
    before = state(spec, path)
    if check or (before == "current" and not upgrade):
        fix = "" if before == "current" else f": run sifkit lock {name}"
        tools.progress.note(f"{name}: lock is {before}{fix}")
        return {"name": name, "state": before}
    with tools.progress.phase(f"resolve {name}"):
        lock = make_lock(spec, tools.site, tools.runner)
    partial = path.with_suffix(f".lock.{os.getpid()}.partial")
    partial.write_text(lock.text, encoding="utf-8")
    partial.replace(path)
    tools.progress.note(f"{path.name}: {len(lock.packages)} packages, {lock.download_bytes() / 1e9:.1f} GB to download")
    return {"name": name, "state": "current", "was": before}


def print_json(value: object) -> None:
    """Results for machines, on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"sifkit {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show sifkit's version")
    ] = False,
) -> None:
    pass


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    raise Interrupted(f"stopped by {signal.Signals(number).name}; nothing half-made was left")


def show_error(error: SifkitError) -> None:
    """On standard error: what failed, then what to try."""
    narration.print("[bold red]error:[/] ", end="")
    narration.print(error.message, markup=False, highlight=False, soft_wrap=True)
    if error.fix:
        narration.print("[bold green]fix:[/] ", end="")
        narration.print(error.fix, markup=False, highlight=False, soft_wrap=True)


def _quiet_exit() -> int:
    """128 + SIGPIPE, as other programs end; standard output is replaced so that Python's own flush is silent."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. Unexpected exceptions keep their traceback: they are our bugs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    try:
        code = app(args=argv, prog_name="sifkit", standalone_mode=False)
        return int(code or 0)
    except SifkitError as error:
        show_error(error)
        return error.exit
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        return _quiet_exit()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        show_error(HostError(f"{where}{error.strerror or error}", "look at its permissions, kind, and space"))
        return Exit.HOST
    except (KeyboardInterrupt, typer.Abort):
        show_error(Interrupted("stopped by Ctrl-C; nothing half-made was left"))
        return Exit.INTERRUPTED
    except typer.Exit as error:
        return error.exit_code
    except typer.TyperException as error:  # wrong words; typer knows which
        show_error(UsageError(error.format_message(), "see --help"))
        return Exit.USAGE
