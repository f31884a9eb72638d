"""Every error that sifkit raises on purpose, each with its exit code and the fix.

Raise where you know; `cli.main` renders. An exception that is not a `SifkitError` is a bug of ours
and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    PROBLEM = 1  # a check or a verification found a problem
    USAGE = 2  # the spec or the command line is wrong
    HOST = 3  # this host lacks something
    PROGRAM = 4  # an external program failed
    INTERRUPTED = 130


class SifkitError(Exception):
    """What failed, on which input (`message`), and what to try (`fix`)."""

    exit = Exit.PROBLEM

    def __init__(self, message: str, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix


class ProblemFound(SifkitError):
    """A check or a verification found a problem."""


class UsageError(SifkitError):
    """A spec, a site file or the command line is wrong."""

    exit = Exit.USAGE


class HostError(SifkitError):
    """This host lacks a program, a right, space, or a device."""

    exit = Exit.HOST


class CommandFailed(SifkitError):
    """An external program failed; `tail` holds the last lines it printed."""

    exit = Exit.PROGRAM

    def __init__(self, message: str, fix: str | None = None, *, returncode: int, tail: tuple[str, ...] = ()) -> None:
        super().__init__(message, fix)
        self.returncode = returncode
        self.tail = tail


class Interrupted(SifkitError):
    """Ctrl-C, SIGTERM or SIGHUP arrived; children are stopped and partial files removed."""

    exit = Exit.INTERRUPTED
