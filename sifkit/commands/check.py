"""`sifkit check`: a training YAML against image, checkout, host, site and job, before the queue."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from sifkit import __version__, checking
from sifkit.check.edits import diff_of, edited
from sifkit.check.report import RENDERERS, Checked, TextOptions, text
from sifkit.check.rule import Rule, Severity, all_rules
from sifkit.check.select import Selection, parse_codes
from sifkit.check.settings import find_settings, overridden, selection
from sifkit.checking import Asked
from sifkit.commands import joboptions as options
from sifkit.commands.options import ProjectOption, SiteOption, VerboseOption, make_tools, narration, out_console
from sifkit.commands.train import CheckoutOption, ImageOption
from sifkit.errors import Exit, UsageError
from sifkit.files import write_whole
from sifkit.progress import progress_for
from sifkit.run import Runner
from sifkit.site import load_site
from sifkit.spec import NoProject
from sifkit.yamlfile import MAX_BYTES

Format = Literal["text", "json", "github", "sarif", "junit"]
_TRAINS = re.compile(r"^(stage|do_train)\s*:", re.MULTILINE)
_MOST_PASSES = 5  # a fix may make room for another: a key that is renamed has a value, too


def check(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="CONFIG… [KEY=VALUE]…", help="training YAMLs, or directories of them; then overrides"),
    ] = None,
    image: ImageOption = None,
    checkout: CheckoutOption = None,
    gpu: Annotated[
        list[str] | None, typer.Option("--gpu", help="a GPU that the run may get: A100; else the site's")
    ] = None,
    driver: Annotated[str | None, typer.Option(help="NVIDIA driver of the nodes; else the site's")] = None,
    job: Annotated[Path | None, typer.Option("--job", help="a job file of your own, checked with the YAML")] = None,
    partition: options.PartitionOption = None,
    nodes: options.NodesOption = 1,
    gpus: options.GpusOption = None,
    cpus: options.CpusOption = None,
    mem: options.MemOption = None,
    time: options.TimeOption = None,
    requeue: options.RequeueOption = None,
    select: Annotated[
        list[str] | None, typer.Option(metavar="CODES", help="rules to ask: CFG,DAT002; else all")
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="CODES", help="rules to leave out")] = None,
    format_: Annotated[Format, typer.Option("--format", help="how to show what was found")] = "text",
    fix: Annotated[bool, typer.Option("--fix", help="make the safe changes in the YAML; the rest of it stays")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="show what --fix would change, and change nothing")] = False,
    parse: Annotated[
        bool, typer.Option("--parse", help="also ask the image's own parser, in a container: seconds")
    ] = False,
    hash_: Annotated[
        bool, typer.Option("--hash", help="also compare the image's sha256 with its manifest's: seconds")
    ] = False,
    why: Annotated[bool, typer.Option("--why", help="say the cause of each finding, too")] = False,
    not_checked: Annotated[
        bool, typer.Option("--not-checked", help="name every rule that could not be checked")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="warnings count as errors")] = False,
    project: ProjectOption = None,
    site_file: SiteOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Find what would stop a training run, before it is queued, and how to mend it.

    Reads the YAML, the image, the checkout, this host, the site file and Slurm; starts nothing, except once for each
    image to ask it what it holds. Rules that cannot be checked here are named.

    Exit code 1: there are errors.
    """
    known = all_rules()
    chosen = parse_codes(select or [], known, "--select"), parse_codes(ignore or [], known, "--ignore")
    configs, overrides = _split(words or [], checkout)
    place = _workplace(project, site_file, verbose)
    asked = Asked(
        image=image,
        checkout=checkout,
        models=tuple(gpu or ()),
        driver=driver,
        script=job,
        partition=partition,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        mem=mem,
        time=time,
        requeue=requeue,
        parse=parse,
        hash=hash_,
    )
    around = checking.surroundings(asked, place, near=configs[0])
    run = _Run(known, chosen, overrides, around, asked, place)
    if diff:
        raise typer.Exit(_show_diff(configs, run))
    if fix:
        _fix(configs, run)
    checked = run.check(configs)
    _show(checked, run, format_, TextOptions(_color(), causes=why, skipped=not_checked))
    wrong = any(one.failed or (strict and one.count(Severity.WARNING)) for one in checked)
    if wrong:
        raise typer.Exit(Exit.PROBLEM)


def _workplace(project: Path | None, site_file: Path | None, verbose: bool) -> checking.Workplace:
    """With the project around here, if there is one."""
    try:
        return checking.Workplace.of(make_tools(project, site_file, verbose))
    except NoProject:
        environ = dict(os.environ)
        site = load_site(site_file, environ, Path.cwd())
        return checking.Workplace(None, site, Runner(environ), progress_for(narration, verbose=verbose), environ)


@dataclass(frozen=True)
class _Run:
    """What is the same for every YAML of this command."""

    known: Mapping[str, Rule]
    chosen: tuple[tuple[str, ...], tuple[str, ...]]
    overrides: tuple[str, ...]
    around: checking.Around
    asked: Asked
    place: checking.Workplace

    def selection(self, config: Path) -> Selection:
        return overridden(selection(find_settings(config), self.known), *self.chosen)

    def rules(self, config: Path) -> Iterable[Rule]:
        return self.selection(config).rules(self.known, config)

    def check(self, configs: Sequence[Path]) -> tuple[Checked, ...]:
        read = [checking.read(config, self.overrides, self.around) for config in configs]
        return checking.judge(read, self.rules, self.around)

    def check_text(self, config: Path, text: str) -> Checked:
        return checking.judge([checking.read_text(config, text, self.overrides, self.around)], self.rules, self.around)[
            0
        ]


# ---------------------------------------------------------------------------------------------- words


def _split(words: Sequence[str], checkout: Path | None) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    """Configs and directories of them, then overrides. Raises `UsageError` when no config is among them."""
    overrides = tuple(word for word in words if "=" in word and not os.path.exists(word))  # noqa: PTH110 never raises
    given = [word for word in words if word not in overrides]
    if not given:
        raise UsageError("no config is named", "give a training YAML, or a directory of them: sifkit check CONFIG")
    configs = [config for word in given for config in _configs(word, checkout)]
    return tuple(dict.fromkeys(configs)), overrides


def _configs(word: str, checkout: Path | None) -> list[Path]:
    path = Path(word)
    if path.is_dir():
        found = sorted(each for each in path.rglob("*") if each.suffix in (".yaml", ".yml") and _trains(each))
        if not os.access(path, os.R_OK | os.X_OK):
            raise UsageError(f"{path} may not be read", f"ask its owner, or: chmod u+rx {path}")
        if not found:
            raise UsageError(f"{path}: there is no training YAML in it", "name one that says stage: or do_train:")
        return found
    return [checking.find(path, checkout)]


def _trains(path: Path) -> bool:
    """Other YAMLs of a checkout (accelerate's, merges, specs) are not for `llamafactory-cli train`."""
    try:
        if not path.is_file():
            return False
        with path.open(encoding="utf-8", errors="replace") as file:
            return _TRAINS.search(file.read(MAX_BYTES)) is not None
    except OSError:
        return True  # checked, and said


# ---------------------------------------------------------------------------------------------- fixing


def _fix(configs: Sequence[Path], run: _Run) -> None:
    for config in configs:
        before, after = _fixed(config, run)
        if after != before:
            with config.open("r+b"):  # what may not be written is not replaced either
                write_whole(config, after)
            narration.print(f"{config}: mended", markup=False, highlight=False)


def _show_diff(configs: Sequence[Path], run: _Run) -> int:
    """As a program that checks formatting: exit code 1 when something would change."""
    changed = False
    for config in configs:
        before, after = _fixed(config, run)
        changed |= before != after
        sys.stdout.write(diff_of(before, after, str(config)))
    return Exit.PROBLEM if changed else Exit.OK


def _fixed(config: Path, run: _Run) -> tuple[str, str]:
    """The text as it is and as it would be, all safe fixes made."""
    (one,) = run.check([config])
    if any(finding.code == "CFG001" for finding in one.findings):
        return "", ""
    before = after = config.read_bytes().decode("utf-8")
    for _ in range(_MOST_PASSES):
        edits = [finding.edit for finding in one.findings if finding.edit]
        last, after = after, edited(after, edits)
        if after == last:
            break
        one = run.check_text(config, after)
    return before, after


# ---------------------------------------------------------------------------------------------- showing


def _color() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def _show(checked: Sequence[Checked], run: _Run, format_: Format, shown: TextOptions) -> None:
    out_console()  # what the encoding of standard output lacks is shown as an escape
    if format_ == "text":
        for line in run.around.said:
            narration.print(line, markup=False, highlight=False, soft_wrap=True)
        sys.stdout.write(text(checked, shown))
    else:
        sys.stdout.write(RENDERERS[format_](checked, run.known.values(), __version__))
