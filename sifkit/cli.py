"""The command line: its commands joined. Errors become text here and nowhere else."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from collections.abc import Sequence
from keyword import iskeyword
from types import FrameType
from typing import Annotated, NoReturn

import typer

from sifkit import __version__
from sifkit.commands.options import narration
from sifkit.errors import Exit, HostError, Interrupted, SifkitError, UsageError

# Each command's module, in the order of --help. A command that is named is imported alone: together they take a third
# of a second, which is a third of what `sifkit check` may take.
COMMANDS = {
    "resolve": "resolve",
    "lock": "lock",
    "import": "import_",
    "build": "build",
    "checkout": "checkout",
    "bundle": "bundle",
    "unbundle": "unbundle",
    "audit": "audit",
    "inspect": "inspect",
    "reproduce": "reproduce",
    "push": "push",
    "pull": "pull",
    "outputs": "outputs",
    "prune": "prune",
    "explain": "explain",
    "check": "check",
    "rule": "rule",
    "doctor": "doctor",
    "train": "train",
    "sbatch": "sbatch",
    "submit": "submit",
    "jobs": "submit",
    "watch": "watch",
    "compat": "compat",
}


_HELP = "Apptainer images for LLaMA-Factory: pinned from a short YAML, built fast, verified by a real training run."


def make_app(words: Sequence[str]) -> typer.Typer:
    """The command that the first word names, else all."""
    app = typer.Typer(
        help=_HELP,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for name in words[:1] if set(words[:1]) & COMMANDS.keys() else COMMANDS:
        module = importlib.import_module(f"sifkit.commands.{COMMANDS[name]}")
        if name == "compat":
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, f"{name}_" if iskeyword(name) else name))
    return app


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"sifkit {__version__}\n")
        raise typer.Exit


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
        words = sys.argv[1:] if argv is None else argv
        _require_no_empty_word(words)
        code = make_app(words)(args=words, prog_name="sifkit", standalone_mode=False)
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
