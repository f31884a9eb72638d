"""The one door through which sifkit starts programs.

A `Runner` echoes a copy-pasteable command at `-v`, tees output to a log, hands each line to whoever
shows progress, stops everything on Ctrl-C, and raises `CommandFailed` with the last lines.
"""

from __future__ import annotations

import io
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO, NoReturn

from sifkit.errors import CommandFailed, HostError
from sifkit.redact import HIDDEN, is_secret, redact

TAIL_LINES = 40

_SUPERVISE = Path(__file__).with_name("supervise.py")

# What a child may see of the caller's environment. Everything else (PYTHONPATH, CONDA_*, APPTAINER_BIND,
# LD_LIBRARY_PATH, …) changes what is built or run without being written anywhere.
_LOCALE_AND_PLACES = """HOME LANG LC_ALL LOGNAME PATH SHELL TERM TMPDIR TZ USER
    XDG_CACHE_HOME XDG_CONFIG_HOME XDG_RUNTIME_DIR SOURCE_DATE_EPOCH"""
_NETWORK = """http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
    SSL_CERT_FILE SSL_CERT_DIR REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO NETRC"""
ENVIRONMENT_KEPT = frozenset(f"{_LOCALE_AND_PLACES} {_NETWORK}".split())


@dataclass(frozen=True)
class Command:
    """A program to run: what, where, with which additions to the cleaned environment."""

    argv: tuple[str, ...]
    cwd: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    remove_after: tuple[Path, ...] = ()  # must not outlive the program, even if sifkit is killed
    remove_on_failure: tuple[Path, ...] = ()  # likewise, unless the program ends well

    def shown(self) -> str:
        """The command as a person would type it."""
        assignments = [
            f"{name}={HIDDEN if is_secret(name) else shlex.quote(value)}" for name, value in self.env.items()
        ]
        return " ".join([*assignments, shlex.join(self.argv)])


@dataclass(frozen=True)
class Result:
    """What a program answered; `output` holds standard output alone, `tail` the last lines of both."""

    returncode: int
    output: str
    tail: tuple[str, ...]


class Runner:
    """Starts programs; every part that acts is handed one."""

    def __init__(
        self,
        environ: Mapping[str, str],
        echo: Callable[[str], None] | None = None,
        hide: Callable[[str], str] = redact,
    ) -> None:
        self.environ = {name: environ[name] for name in ENVIRONMENT_KEPT if name in environ}
        # Where the cluster is. SBATCH_*, SQUEUE_* and the like stand for options, which change what is asked unseen.
        self.slurm_environment = {name: environ[name] for name in ("SLURM_CONF", "SLURM_CLUSTERS") if name in environ}
        self._echo = echo
        self._hide = hide  # in what people read: the echo, logs, lines and the tail; never in Result.output
        self._running: set[_Supervised] = set()

    def which(self, program: str) -> str | None:
        """Where `program` is, on PATH or in the system directories that ordinary users often lack."""
        path = self.environ.get("PATH", os.defpath)
        return shutil.which(program, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")

    def run(
        self,
        command: Command,
        *,
        log: Path | None = None,
        on_line: Callable[[str], None] | None = None,
        check: bool = True,
        timeout: timedelta | None = None,
    ) -> Result:
        """Run to the end. Raises `CommandFailed` if it fails (and `check`), `HostError` if it is not there."""
        if self.which(command.argv[0]) is None:
            raise HostError(f"{command.argv[0]} is not installed", f"install {command.argv[0]}, or add it to PATH")
        if self._echo:
            self._echo(f"$ {self._hide(command.shown())}")
        program = _Supervised(command, {**self.environ, **command.env}, log, on_line, self._hide)
        self._running.add(program)
        try:
            result = program.wait(timeout)
        finally:
            self._running.discard(program)
        if check and result.returncode != 0:
            raise failure(command, result)
        return result

    @contextmanager
    def removing(self, *paths: Path, lock: IO[str] | None = None) -> Iterator[None]:
        """Paths that are gone afterwards, even if this process is killed inside: a program of our own sees to it.

        It holds `lock`, too, so that whoever waits for it finds them gone.
        """
        command = Command(("sleep", "infinity"), remove_after=paths)
        held = (lock.fileno(),) if lock else ()
        guard = _Supervised(command, dict(self.environ), None, None, self._hide, held)
        guard.start()
        try:
            yield
        finally:
            guard.stop()
            guard.finish()

    @contextmanager
    def scratch(self, prefix: str, parent: Path | None = None) -> Iterator[Path]:
        """A directory for this user alone, gone afterwards, whenever this process is killed.

        Who removes it is started before it is made. `parent`: default TMPDIR. Raises `OSError`.
        """
        directory = (parent or Path(tempfile.gettempdir())).absolute() / f"{prefix}{secrets.token_hex(8)}"
        with self.removing(directory):
            directory.mkdir(mode=0o700)
            yield directory

    def stop_all(self) -> None:
        """Stop every program that other threads wait for; each of them sees its program fail."""
        for program in tuple(self._running):
            program.stop()

    def replace(self, command: Command) -> NoReturn:
        """Become the program: signals and exit code are then its own. Raises `HostError` if it is not there."""
        program = self.which(command.argv[0])
        if program is None:
            raise HostError(f"{command.argv[0]} is not installed", f"install {command.argv[0]}, or add it to PATH")
        if self._echo:
            self._echo(f"$ {self._hide(shlex.join(command.argv))}")
        for number in (signal.SIGTERM, signal.SIGHUP):  # handlers end with us, but ignoring would be inherited
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        os.execve(program, command.argv, {**self.environ, **command.env})

    def output(self, *argv: str) -> str:
        """Standard output of a short command, stripped."""
        return self.run(Command(argv)).output.strip()


def failure(command: Command, result: Result) -> CommandFailed:
    """The error for a program that failed, with what it said last."""
    said = "\n".join(result.tail[-15:])
    message = f"{Path(command.argv[0]).name} failed (exit {result.returncode})" + (f":\n{said}" if said else "")
    return CommandFailed(message, returncode=result.returncode, tail=result.tail)


class _Supervised:
    """One running program behind `supervise.py`, its two output streams read by two threads."""

    def __init__(
        self,
        command: Command,
        env: dict[str, str],
        log: Path | None,
        on_line: Callable[[str], None] | None,
        hide: Callable[[str], str],
        keep_open: tuple[int, ...] = (),
    ) -> None:
        self._hide = hide
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._stdout: list[str] = []
        self._on_line = on_line
        self._guard = threading.Lock()
        self._log = log.open("a", encoding="utf-8") if log else None
        remove = [word for path in command.remove_after for word in ("--remove", str(path))]
        remove += [word for path in command.remove_on_failure for word in ("--remove-on-failure", str(path))]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", str(_SUPERVISE), *remove, "--", *command.argv],
            cwd=command.cwd,
            env=env,
            stdin=subprocess.PIPE,  # the leash: see supervise.py
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=keep_open,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, True), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr, False), daemon=True),
        ]

    def _read(self, stream: IO[bytes], is_stdout: bool) -> None:
        # newline="\n": Python would otherwise turn each \r of a progress bar into a line
        with io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline="\n") as lines:
            for raw in lines:
                self._take(raw, is_stdout)

    def _take(self, raw: str, is_stdout: bool) -> None:
        # a progress bar redraws its line: keep the last state
        line = self._hide(raw.rstrip("\n").rstrip("\r").rpartition("\r")[2])
        with self._guard:
            if is_stdout:
                self._stdout.append(raw)
            if line.strip():
                self._tail.append(line)
            try:
                self._pass_on(line)
            except OSError:  # nobody reads our output, or the log's disk is full: the program goes on
                self._on_line = self._log = None

    def _pass_on(self, line: str) -> None:
        if self._log:
            self._log.write(f"{line}\n")
            self._log.flush()
        if self._on_line and line.strip():
            self._on_line(line)

    def start(self) -> None:
        for reader in self._readers:
            reader.start()

    def wait(self, timeout: timedelta | None) -> Result:
        try:
            self.start()
            self._process.wait(timeout.total_seconds() if timeout else None)
        except subprocess.TimeoutExpired:
            self._tail.append(f"(stopped by sifkit: no end after {timeout})")
            self.stop()
        except BaseException:  # Ctrl-C, SIGTERM: the children go first, then the exception goes on
            self.stop()
            raise
        finally:
            self.finish()
        return Result(self._process.returncode, "".join(self._stdout), tuple(self._tail))

    def finish(self) -> None:
        """Close what is open, when the program has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        for reader in self._readers:
            reader.join(timeout=5)
        if self._log:
            self._log.close()

    def stop(self) -> None:
        """Let go of the leash, and wait until all of it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
