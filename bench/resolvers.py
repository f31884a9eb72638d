"""The table of combinations, asked of plain pip and plain uv: does a resolver refuse what cannot run?

Prints a line for each question, and writes the answers beside sifkit's own into docs/compatibility.md. Needs the
package index, every Python of the table where uv finds it (it fetches those that are not there, if it may), and a
quarter of an hour. Of the caller's settings only the index, certificates, proxies and caches count: constraints, extra
indexes and overrides would answer in the resolvers' place.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from uv import find_uv_bin

from bench import page
from sifkit.compat.findings import Severity
from sifkit.errors import CommandFailed, HostError, SifkitError
from sifkit.resolve import platform_of
from sifkit.run import Command, Runner
from sifkit.tables import known_extras, known_sdists
from tests.compat.test_combinations import TABLE, Combination, found

PAGE, MARKS = "compatibility.md", "make resolvers"

LIMIT = timedelta(minutes=5)  # for one question
AT_ONCE = 2

# Published as source archives alone, with code to run before they say what they need. Like those of sdists.yaml they
# may be built; everything else must be a wheel, so that no question starts a compiler.
SOURCE_ONLY = frozenset({"deepspeed", "flash-attn"})

INDEX_SETTINGS = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")
# fmt: off
SETTINGS_KEPT = (
    "PIP_CACHE_DIR", "PIP_CERT", "PIP_CLIENT_CERT", "PIP_DEFAULT_TIMEOUT", "PIP_PROXY", "PIP_TRUSTED_HOST",
    "UV_CACHE_DIR", "UV_HTTP_TIMEOUT", "UV_INSECURE_HOST", "UV_NATIVE_TLS", "UV_SYSTEM_CERTS",
    "UV_PYTHON_DOWNLOADS", "UV_PYTHON_INSTALL_DIR", "UV_PYTHON_INSTALL_MIRROR",
)
# fmt: on

# What the tools say, in this order: a conflict that is told beside a network failure may be its consequence.
UNREACHABLE = re.compile(
    r"Retrying \(Retry|Could not fetch URL|ConnectionError|SSLError|Max retries exceeded|Read timed out"
    r"|[Ff]ailed to fetch|error sending request|Request failed after|Network connectivity is disabled"
    r"|dns error|could not be queried|HTTP status (client|server) error|\b(4|5)\d\d (Client|Server) Error",
)
NOT_BUILT = re.compile(r"Failed to build|metadata-generation-failed|build backend returned an error")
CONFLICT = re.compile(
    r"No solution found|ResolutionImpossible|No matching distribution found|requires a different Python"
    r"|is not a supported wheel on this platform"
)


class Verdict(Enum):
    """How a question ended."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    NOT_BUILT = "refused at build"
    GAVE_UP = "gave up"

    @property
    def refuses(self) -> bool:
        """Whether the user is told no."""
        return self in (Verdict.REFUSED, Verdict.NOT_BUILT)


MEANINGS = (
    "*accepted*: the resolver found versions that it would install, which does not say that they run; *refused*: there",
    "are none; *refused at build*: a package that exists only as source could not say what it needs; *gave up*: no",
    f"answer in {LIMIT.total_seconds() / 60:.0f} minutes.",
)


@dataclass(frozen=True)
class Question:
    """What a user would ask for a row without sifkit."""

    python: str
    platform: str  # as uv names it
    requirements: tuple[str, ...]
    built: tuple[str, ...]  # packages that may be built from source
    wheels: tuple[Path, ...]  # that the requirements name and that must be made first


@dataclass(frozen=True)
class Answer:
    """A verdict with the tool's reason."""

    verdict: Verdict
    words: str = ""


@dataclass(frozen=True)
class Resolver:
    """pip or uv."""

    name: str
    command: Callable[[Question, Path], Command]  # of a question and the interpreter of its Python


@dataclass(frozen=True)
class Asker:
    """What asking takes: a runner, and for each Python the interpreter of a virtual environment."""

    runner: Runner
    interpreters: Mapping[str, Path]


@dataclass(frozen=True)
class Row:
    """A combination, and what each tool says about it."""

    name: str
    answers: Mapping[str, Answer]


# ------------------------------------------------------------------------------------------ questions


def question_of(row: Combination, wheelhouse: Path) -> Question:
    """Facts that no resolver can be told (GPUs, drivers, apt packages) leave the question as it is."""
    spec = row.image()
    extras = [Requirement(text).name for name in spec.extras for text in known_extras()[name].requires]
    texts = [
        f"torch=={spec.torch.version}",
        f"llamafactory=={spec.llamafactory.version}",
        *extras,
        *spec.packages,
        *(f"{name} @ {value}" if value.endswith(".whl") else f"{name}=={value}" for name, value in row.lock.items()),
    ]
    wanted = [Requirement(text) for text in dict.fromkeys(texts)]
    by_name = {canonicalize_name(requirement.name) for requirement in wanted if not requirement.url}
    return Question(
        python=spec.python,
        platform=platform_of(spec),
        requirements=tuple(_in_wheelhouse(requirement, wheelhouse) for requirement in wanted),
        built=tuple(sorted({*(known.name for known in known_sdists()), *spec.sdists, *(SOURCE_ONLY & by_name)})),
        wheels=tuple(_wheel(requirement, wheelhouse) for requirement in wanted if requirement.url),
    )


def _wheel(requirement: Requirement, wheelhouse: Path) -> Path:
    assert requirement.url
    return wheelhouse / requirement.url.rpartition("/")[2]


def _in_wheelhouse(requirement: Requirement, wheelhouse: Path) -> str:
    if not requirement.url:
        return str(requirement)
    return f"{requirement.name} @ {_wheel(requirement, wheelhouse).as_uri()}"


def make_wheel(path: Path) -> None:
    """A wheel of this name without contents, which asks for what flash-attn's published wheels ask for."""
    name, version, *tag = path.stem.split("-")
    info = f"{name}-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
        "Requires-Dist: torch\nRequires-Dist: einops\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: sifkit\nRoot-Is-Purelib: false\nTag: {'-'.join(tag)}\n",
    }
    record = "".join(f"{file},,\n" for file in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(file, text)


# ------------------------------------------------------------------------------------------ asking


def pip_command(question: Question, python: Path) -> Command:
    """`fast-deps` reads metadata by range requests; the newest pip downloads nothing more in a dry run."""
    argv = [str(python), "-m", "pip", "install", "--dry-run", "--use-feature", "fast-deps"]
    argv += ["--no-input", "--disable-pip-version-check", "--no-color", "--progress-bar", "off"]
    argv += ["--only-binary", ":all:", "--no-binary", ",".join(question.built)]
    return Command((*argv, *question.requirements), env=settings(os.environ))


def uv_command(question: Question, python: Path) -> Command:
    """With the same Python as pip, for the platform of the row's base."""
    argv = [find_uv_bin(), "pip", "install", "--dry-run", "--quiet", "--no-config", "--no-python-downloads"]
    argv += ["--python", str(python), "--python-platform", question.platform, "--color", "never"]
    argv += ["--only-binary", ":all:"]
    for name in question.built:
        argv += ["--no-binary", name]
    return Command((*argv, *question.requirements), env=settings(os.environ))


RESOLVERS = (Resolver("pip", pip_command), Resolver("uv", uv_command))
TOOLS = ("sifkit", *(resolver.name for resolver in RESOLVERS))


def settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The caller's index for both tools, and how it is reached; no configuration files."""
    kept = {name: environ[name] for name in SETTINGS_KEPT if name in environ}
    index = next((environ[name] for name in INDEX_SETTINGS if environ.get(name)), "")
    both = {"PIP_INDEX_URL": index, "UV_DEFAULT_INDEX": index} if index else {}
    return {**kept, **both, "PIP_CONFIG_FILE": os.devnull}


def make_environment(python: str, scratch: Path, runner: Runner) -> Path:
    """The interpreter of a fresh virtual environment with the newest pip. Raises `HostError` without such a Python."""
    directory = scratch / f"python{python}"
    argv = (find_uv_bin(), "venv", "--quiet", "--no-config", "--seed", "--python", python, str(directory))
    result = runner.run(Command(argv, cwd=scratch, env=settings(os.environ)), check=False)
    if result.returncode != 0:
        said = "\n".join(result.tail)
        fix = f"put a Python {python} on PATH, or: uv python install {python}; pip comes from the index"
        raise HostError(f"no virtual environment for Python {python}:\n{said}", fix)
    return directory / "bin" / "python"


def ask(resolver: Resolver, question: Question, asker: Asker) -> Answer:
    """Asks a second time where the first answer is none: among some ten thousand requests, one may fail."""
    try:
        return ask_once(resolver, question, asker)
    except CommandFailed:
        return ask_once(resolver, question, asker)


def ask_once(resolver: Resolver, question: Question, asker: Asker) -> Answer:
    """Raises `CommandFailed` when the answer is none, such as an index that cannot be reached."""
    command = resolver.command(question, asker.interpreters[question.python])
    said: list[str] = []
    started = time.monotonic()
    result = asker.runner.run(command, on_line=said.append, check=False, timeout=LIMIT)
    if result.returncode == 0:
        return Answer(Verdict.ACCEPTED)
    if time.monotonic() - started >= LIMIT.total_seconds():
        return Answer(Verdict.GAVE_UP)
    return refusal_in(said, resolver.name, result.returncode)


def refusal_in(said: Sequence[str], tool: str, returncode: int) -> Answer:
    """What a tool that failed meant. Raises `CommandFailed` when it did not refuse."""
    text = "\n".join(said)
    last = "\n".join(said[-15:])
    if UNREACHABLE.search(text):
        raise CommandFailed(f"{tool} could not read the index:\n{last}", "try again", returncode=returncode)
    if NOT_BUILT.search(text):
        return Answer(Verdict.NOT_BUILT, reason(said))
    if CONFLICT.search(text):
        return Answer(Verdict.REFUSED, reason(said))
    raise CommandFailed(f"{tool} failed, and not over a conflict:\n{last}", returncode=returncode)


def reason(said: Sequence[str]) -> str:
    """The sentence that says why: uv's `Because …`, the exception that ended a build, pip's first ERROR."""
    because = re.search(r"Because .*", " ".join(" ".join(said).split()))
    if because:
        return because[0].partition(" hint: ")[0]
    raised = [line.strip() for line in said if re.match(r"\s*\w+(Error|Exception): ", line)]
    errors = [line for line in said if re.match(r"ERROR: (?!Ignored )|error: ", line)]
    return re.sub(r" \(from versions: .*\)$", "", next(iter([*raised, *errors]), said[-1].strip()))


def ask_all(questions: Mapping[Question, Sequence[str]], asker: Asker) -> dict[tuple[str, Question], Answer]:
    """Each question once to each resolver; a line on standard error for each answer."""
    answers: dict[tuple[str, Question], Answer] = {}
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running: dict[Future[Answer], tuple[Resolver, Question]] = {
            pool.submit(ask, resolver, question, asker): (resolver, question)
            for question in questions
            for resolver in RESOLVERS
        }
        try:
            for done in as_completed(running):
                resolver, question = running[done]
                answers[resolver.name, question] = done.result()
                report(f"{len(answers)}/{len(running)} {resolver.name}", done.result(), questions[question])
        except BaseException:  # nobody waits for the questions that are left
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return answers


def report(head: str, answer: Answer, names: Sequence[str]) -> None:
    """One line: who answered what, for which rows, and why."""
    others = f" and {len(names) - 1} more" if len(names) > 1 else ""
    why = f" ({answer.words[:200]})" if answer.words else ""
    sys.stderr.write(f"{head} {answer.verdict.value}: {names[0]}{others}{why}\n")


# ------------------------------------------------------------------------------------------ sifkit's answer


def sifkits_answer(row: Combination) -> Answer:
    """The earliest stage with an error, else the earliest with a warning."""
    for severity, note in ((Severity.ERROR, ""), (Severity.WARNING, " (warning)")):
        for stage in ("spec", "lock"):
            findings = found(row, lock=stage == "lock")
            rules = dict.fromkeys(finding.rule for finding in findings if finding.severity is severity)
            if rules:
                return Answer(Verdict.REFUSED, f"{stage}, {', '.join(rules)}{note}")
    return Answer(Verdict.ACCEPTED)


# ------------------------------------------------------------------------------------------ the page


def page_text(wrong: Sequence[Row], right: Sequence[Row], versions: str) -> str:
    """What stands between the marks."""
    lines = [
        f"{time.strftime('%Y-%m-%d')}, {versions}:",
        "",
        f"| | {' | '.join(TOOLS)} |",
        "|---|---:|---:|---:|",
        count("wrong combinations refused or warned about", wrong, lambda verdict: verdict.refuses),
        count("right combinations accepted", right, lambda verdict: verdict is Verdict.ACCEPTED),
        "",
        *MEANINGS,
        "",
        "| wrong combination | pip | uv | sifkit (stage, rule) |",
        "|---|---|---|---|",
        *(line(row) for row in wrong),
        *not_accepted(right),
    ]
    return "\n".join(lines) + "\n"


def count(what: str, rows: Sequence[Row], counts: Callable[[Verdict], bool]) -> str:
    """A tool that gave up neither refuses nor accepts."""
    cells = [f"{sum(counts(row.answers[tool].verdict) for row in rows)}/{len(rows)}" for tool in TOOLS]
    return f"| {what} | {' | '.join(cells)} |"


def line(row: Row) -> str:
    """One wrong combination."""
    pip, uv, sifkit = (row.answers[tool] for tool in ("pip", "uv", "sifkit"))
    return f"| {row.name} | {pip.verdict.value} | {uv.verdict.value} | {sifkit.words or sifkit.verdict.value} |"


def not_accepted(right: Sequence[Row]) -> list[str]:
    """Right combinations to which somebody says no, with the reason."""
    lines = [
        f"- {row.name}: {tool}: {answer.verdict.value}. {answer.words}".rstrip()
        for row in right
        for tool, answer in row.answers.items()
        if answer.verdict is not Verdict.ACCEPTED
    ]
    return ["", "Right combinations that were not accepted:", "", *lines] if lines else []


def versions_of(asker: Asker) -> str:
    """`pip 26.3 (Python 3.10, 3.11), pip 26.0.1 (Python 3.9), uv 0.13.9`."""
    pips: dict[str, list[str]] = {}
    for python, interpreter in asker.interpreters.items():
        pips.setdefault(asker.runner.output(str(interpreter), "-m", "pip", "--version").split()[1], []).append(python)
    of_uv = asker.runner.output(find_uv_bin(), "--version").split()[1]
    return ", ".join([*(f"pip {pip} (Python {', '.join(names)})" for pip, names in pips.items()), f"uv {of_uv}"])


# ------------------------------------------------------------------------------------------ all of it


def measure(scratch: Path) -> str:
    """Ask everything; the text for the page."""
    asked = {row.name: question_of(row, scratch) for row in (*TABLE.wrong, *TABLE.right)}
    questions: dict[Question, list[str]] = {}
    for name, question in asked.items():
        questions.setdefault(question, []).append(name)
    for wheel in {wheel for question in questions for wheel in question.wheels}:
        make_wheel(wheel)
    asker = prepare({question.python for question in questions}, scratch)
    answers = ask_all(questions, asker)

    def answered(row: Combination) -> Row:
        resolvers = {tool.name: answers[tool.name, asked[row.name]] for tool in RESOLVERS}
        return Row(row.name, {"sifkit": sifkits_answer(row), **resolvers})

    wrong, right = ([answered(row) for row in rows] for rows in (TABLE.wrong, TABLE.right))
    return page_text(wrong, right, versions_of(asker))


def prepare(pythons: Iterable[str], scratch: Path) -> Asker:
    """A virtual environment for each Python."""
    runner = Runner(os.environ)
    ordered = sorted(pythons, key=lambda python: [int(part) for part in python.split(".")])
    return Asker(runner, {python: make_environment(python, scratch, runner) for python in ordered})


def main() -> int:
    """Ask, print, record."""
    try:
        page.read(PAGE, MARKS)  # before a quarter of an hour is spent
        with tempfile.TemporaryDirectory(prefix="sifkit-resolvers-") as scratch:
            text = measure(Path(scratch))
        page.write(PAGE, MARKS, text)
    except SifkitError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"fix: {error.fix}\n" if error.fix else ""))
        return error.exit
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
