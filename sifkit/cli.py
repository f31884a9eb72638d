"""The command line: its commands joined. Errors become text here and nowhere else."""

from __future__ import annotations

import os
import re
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from sifkit import __version__
from sifkit.commands import (
    audit,
    build,
    check,
    checkout,
    compat,
    doctor,
    explain,
    lock,
    outputs,
    prune,
    resolve,
    rule,
    sbatch,
    submit,
    train,
    watch,
)
from sifkit.commands.options import narration
from sifkit.errors import Exit, HostError, Interrupted, SifkitError, UsageError

app = typer.Typer(
    help="Apptainer images for LLaMA-Factory: pinned from a short YAML, built fast, verified by a real training run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(resolve.resolve)
app.command()(lock.lock)
app.command()(build.build)
app.command()(checkout.checkout)
app.command()(audit.audit)
app.command()(outputs.outputs)
app.command()(prune.prune)
app.command()(explain.explain)
app.command()(check.check)
app.command()(rule.rule)
app.command()(doctor.doctor)
app.command()(train.train)
app.command()(sbatch.sbatch)
app.command()(submit.submit)
app.command()(submit.jobs)
app.command()(watch.watch)
app.add_typer(compat.app, name="compat")


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


def _require_no_empty_word(words: list[str]) -> None:
    """As a path it would mean the current directory, as an option's value that it was not given."""
    empty = [word for word in words if word == "" or re.fullmatch("--[a-z-]+=", word)]
    if empty:
        said = f"{empty[0]} has an empty value" if empty[0] else "there is an empty word on the command line"
        raise UsageError(said, "a shell variable that is not set? write the value out, or leave the option out")


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. Unexpected exceptions keep their traceback: they are our bugs."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup means it
            signal.signal(number, _interrupt)
    try:
        _require_no_empty_word(sys.argv[1:] if argv is None else argv)
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
