"""A job file of the user's own: its #SBATCH lines and its commands, as far as they are plain without a shell. Pure."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# sbatch(1) of Slurm 22.05 to 24.05
_SHORT = {
    "A": "account",
    "a": "array",
    "C": "constraint",
    "c": "cpus-per-task",
    "D": "chdir",
    "d": "dependency",
    "e": "error",
    "G": "gpus",
    "J": "job-name",
    "L": "licenses",
    "M": "clusters",
    "m": "distribution",
    "N": "nodes",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "t": "time",
    "w": "nodelist",
    "x": "exclude",
}
_FLAGS = {
    "contiguous",
    "exclusive",
    "hold",
    "no-kill",
    "no-requeue",
    "overcommit",
    "oversubscribe",
    "parsable",
    "requeue",
    "spread-job",
    "use-min-nodes",
    "verbose",
    "wait",
}
_ASSIGNED = re.compile(
    r"^\s*(?:export\s+|declare\s+-x\s+)?((?:[A-Za-z_]\w*=(?:\"[^\"]*\"|'[^']*'|\S*)\s*)+)(?:[;#].*)?$"
)
_HERE = re.compile(r"<<-?\s*['\"]?(\w+)['\"]?")
_CONTAINER = re.compile(r"\b(?:apptainer|singularity)\s+(?:-\S+\s+)*(?:exec|run)\b")


@dataclass(frozen=True)
class Option:
    """An option of sbatch, by its long name, and the line where it stands. `value` is empty for a flag."""

    name: str
    value: str
    line: int


@dataclass(frozen=True)
class Line:
    """A command of the script, with its continuation lines."""

    number: int
    text: str

    @property
    def container(self) -> int:
        """Where `apptainer exec` ends in it; 0 without one."""
        match = _CONTAINER.search(self.text)
        return match.end() if match else 0

    def has(self, *words: str) -> bool:
        """Whether one of these stands in it as a word of its own, or begins with it and goes on with `=`."""
        return any(re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", self.text) for word in words)


@dataclass(frozen=True)
class Script:
    """What a job file says. Later options win, as in sbatch."""

    options: Mapping[str, Option] = field(default_factory=dict)
    lines: tuple[Line, ...] = ()

    def value(self, name: str) -> str | None:
        """Of an option of sbatch; None when it is not given."""
        found = self.options.get(name)
        return found.value if found else None

    def number(self, name: str, default: int | None = None) -> int | None:
        """Of an option that is a number: of `--nodes=2-4` the first."""
        match = re.match(r"\d+", self.value(name) or "")
        return int(match[0]) if match else default

    @property
    def nodes(self) -> int:
        """As asked."""
        return self.number("nodes", 1) or 1

    @property
    def tasks(self) -> int:
        """Tasks on each node."""
        on_each = self.number("ntasks-per-node")
        return on_each or max(1, (self.number("ntasks", 1) or 1) // self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs on each node; 0 when none is asked for."""
        if (each := _count(self.value("gpus-per-node"))) is not None:
            return each
        if (gres := _gres(self.value("gres"))) is not None:
            return gres
        if (total := _count(self.value("gpus"))) is not None:
            return -(-total // self.nodes)
        each = _count(self.value("gpus-per-task"))
        return each * self.tasks if each is not None else 0

    def assigned(self) -> Mapping[str, tuple[str, int]]:
        """Variables that are set on lines of their own, with the line; in sub-shells and quotes they are not seen."""
        found = {}
        for line in self.lines:
            if match := _ASSIGNED.match(line.text):
                for word in _words(match[1]):
                    name, _, value = word.partition("=")
                    found[name] = value, line.number
        return found

    def mentions(self, name: str) -> bool:
        """Whether a variable is set anywhere: on a line of its own, before a command, in quotes, by --env."""
        return any(re.search(rf"\b(?:(?:APPTAINER|SINGULARITY)ENV_)?{name}=", line.text) for line in self.lines)

    def containers(self) -> Iterator[Line]:
        """Commands that run something in an image."""
        return (line for line in self.lines if line.container)


def parse_script(text: str) -> Script:
    """Read a job file. #SBATCH lines count until the first command (sbatch(1))."""
    options: dict[str, Option] = {}
    lines = tuple(_lines(text))
    first = lines[0].number if lines else len(text)
    for number, line in enumerate(text.splitlines(), 1):
        if number < first and line.startswith("#SBATCH"):
            options |= {option.name: option for option in _options(line.removeprefix("#SBATCH"), number)}
    return Script(options, lines)


def _lines(text: str) -> Iterator[Line]:
    """Commands with what belongs to them: continued lines, texts in quotes, here-documents."""
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        whole = line
        while whole.endswith("\\") or _is_open(whole):
            following = next(lines, None)
            if following is None:
                break
            whole = f"{whole[:-1]} {following[1]}" if whole.endswith("\\") else f"{whole}\n{following[1]}"
        if match := _HERE.search(whole):
            inner = itertools.takewhile(lambda each, end=match[1]: each[1].strip() != end, lines)  # type: ignore[misc]
            whole += "".join(f"\n{each}" for _, each in inner)
        yield Line(number, whole)


def _is_open(text: str) -> bool:
    """Whether a quote is open at its end."""
    quote, before = "", " "
    for character in text:
        if before == "\\" and quote != "'":
            before = " "
            continue
        if not quote and character == "#" and before.isspace():
            return False
        if character in "'\"" and quote in ("", character):
            quote = "" if quote else character
        before = character
    return bool(quote)


def _options(text: str, number: int) -> Iterator[Option]:
    words = _words(text)
    while words:
        word = words.pop(0)
        if word.startswith("--"):
            name, given, value = word[2:].partition("=")
        elif word.startswith("-") and word[1:2] in _SHORT:
            name, given, value = _SHORT[word[1]], word[2:], word[2:].removeprefix("=")
        else:
            continue
        if not given and name not in _FLAGS and words:
            value = words.pop(0)
        yield Option(name, value, number)


def _words(text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:  # a quote without an end: the shell will say so
        return text.split()


def _count(value: str | None) -> int | None:
    """Of `4`, `a100:4` or `a100:2,h100:2`."""
    if value is None:
        return None
    found = [int(match[1]) for part in value.split(",") if (match := re.search(r"(?:^|:)(\d+)$", part))]
    return sum(found) if found else 1


def _gres(value: str | None) -> int | None:
    parts = [part for part in (value or "").split(",") if part.startswith("gpu")]
    return sum(_count(part) or 1 for part in parts) if parts else None
