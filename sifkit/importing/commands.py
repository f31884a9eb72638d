"""Commands of a build: those that say what an image holds become wishes, the rest stays shell text.

A recogniser gets the words of one command and says whether all of it was taken. What is not taken is kept in order,
with the changes of directory and the variables that it needs.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from sifkit.importing import conda, pip
from sifkit.importing.facts import is_python_of_debian
from sifkit.importing.recipe import Script
from sifkit.importing.shell import Simple, decided, expand, split, variables_in
from sifkit.importing.wishes import REPOSITORY, Wishes

_ASSIGNMENT = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
NEWLINE = "\n"
# Named as their Debian packages, and not in a small base.
_PROGRAMS = re.compile(r"(?:^|[\n;&|(]|&&)\s*(curl|wget|git|unzip|make|cmake|rsync|bzip2)\s")
_SHELLS = {"/bin/sh", "sh", "/usr/bin/sh"}


@dataclass
class Scene:
    """Where a script stands: what it is in, what it has set, and what waits for a command that needs it."""

    wishes: Wishes
    directory: str
    variables: dict[str, str]
    pending: list[str] = field(default_factory=list)  # cd and assignments since the last kept command
    kept: list[tuple[int, str]] = field(default_factory=list)

    @property
    def changes_place(self) -> bool:
        """Whether what is kept sets a directory or a variable."""
        return any(re.match(r"cd\s|(export\s+)?[A-Za-z_]\w*=\S*$", text) for _, text in self.kept)

    @property
    def moved(self) -> bool:
        """Whether a kept command changes the directory, which the next script must not see."""
        return any(re.match(r"cd\s", text) for _, text in self.kept)


def understand(script: Script, wishes: Wishes) -> list[tuple[int, str]]:
    """Take what is understood; return what must be kept, a line and a shell text each."""
    scene = Scene(wishes, script.directory, dict(script.variables))
    start = script.directory
    _walk(script.text, script.line, scene)
    if not scene.kept:
        return []
    used = variables_in("\n".join(text for _, text in scene.kept))
    opening = [f"mkdir -p {shlex.quote(start)}", f"cd {shlex.quote(start)}"] if start else []
    opening += [f"{name}={shlex.quote(value)}" for name, value in script.variables.items() if name in used]
    text = "\n".join([*opening, *(text for _, text in scene.kept)])
    if script.shell not in _SHELLS:
        text = f"{script.shell} -c {shlex.quote(f'set -e{NEWLINE}{text}')}"
    elif opening or scene.changes_place:  # for the next script not to see
        text = f"({NEWLINE}{text}{NEWLINE})"
    return [(scene.kept[0][0], text)]


def _walk(text: str, line: int, scene: Scene) -> None:
    for found in split(text, line, scene.variables):
        command = _reread(found, scene)
        choice = decided(command.text, scene.variables) if command.tail else None
        if choice and choice[0]:
            _walk(choice[1], command.line, scene)
        elif choice:
            scene.wishes.note(command.line, command.text.split("\n")[0], "left", "its condition does not hold")
        elif _is_of_apt_sources(command.text):
            scene.wishes.note(command.line, command.text.split("\n")[0], "site", "bases.NAME.mirror")
        elif not _taken(_first_alternative(command, scene), scene):
            _keep(command, scene)


def _is_of_apt_sources(text: str) -> bool:
    """Only moves the system to another mirror."""
    return "/etc/apt/sources.list" in text and not re.search(r"(^|\s)(apt-get|apt|curl|wget|gpg|dpkg|pip)\s", text)


def _first_alternative(command: Simple, scene: Scene) -> Simple:
    """Of `a || b` the first: b is for when it fails."""
    first, operator, _ = command.text.partition("||")
    again = split(first, command.line, scene.variables) if operator and not command.words and not command.tail else []
    return again[0] if len(again) == 1 else command


def _is_known_text(text: str) -> str:
    """What some lines are for that no plain commands are; empty for others."""
    if re.search(r"astral\.sh/uv|/uv/install\.sh", text):
        return "uv is in every image"
    if re.search(r"conda\.sh|conda activate|\.bashrc", text) and re.search(r"_ENVIRONMENT|\.bashrc|\.profile", text):
        return "the image's environment is always active"
    if re.search(r"(mini(conda|forge)|anaconda)[\w.$()-]*\.sh", text, re.IGNORECASE):
        return "Python is the base's, its environment /opt/venv"
    return ""


def _reread(command: Simple, scene: Scene) -> Simple:
    """With the variables that commands before it set."""
    if not command.words:
        return command
    again = split(command.text, command.line, scene.variables)
    return again[0] if len(again) == 1 else command


def _keep(command: Simple, scene: Scene) -> None:
    scene.kept += [(command.line, text) for text in scene.pending]
    scene.pending.clear()
    scene.kept.append((command.line, command.text))
    what = command.text.splitlines()[0][:100]
    scene.wishes.note(command.line, what, "kept", "sections.post")
    for program in dict.fromkeys(_PROGRAMS.findall(command.text)):
        if program not in scene.wishes.apt:
            scene.wishes.debian(program, command.line)
            scene.wishes.note(command.line, program, "pin", "apt: what is kept calls it")


def _taken(command: Simple, scene: Scene) -> bool:
    known = _is_known_text(command.text) if not command.words and not command.tail else ""
    if known:
        scene.wishes.note(command.line, command.text, "ours", known)
        return True
    if not command.words:
        return False
    words = _without_prefix(command.words)
    if not words:
        return _assigned(command, scene)
    line, wishes = command.line, scene.wishes
    rest = list(words)
    program = posixpath.basename(rest.pop(0))
    if program in ("export", "set", ":", "true", "echo", "cd"):
        return _builtin(program, rest, command, scene)
    if re.fullmatch(r"python3?(\.\d+)?", program) and rest[:1] == ["-m"] and rest[1:2] in (["pip"], ["uv"], ["venv"]):
        program, rest = rest[1], rest[2:]
    program = "pip" if re.fullmatch(r"pip3?(\.\d+)?", program) else program
    recogniser = _RECOGNISERS.get(program)
    return recogniser is not None and recogniser(rest, line, wishes, scene)


def _without_prefix(words: Sequence[str]) -> list[str]:
    """Without sudo, env, time, and assignments before a command."""
    rest = list(words)
    while rest and (rest[0] in ("sudo", "env", "time", "exec", "-E") or re.fullmatch(r"[A-Za-z_]\w*=.*", rest[0])):
        rest.pop(0)
    return rest


def _assigned(command: Simple, scene: Scene) -> bool:
    found = _ASSIGNMENT.fullmatch(command.text)
    if found is None:
        return False
    for word in command.words:
        name, equals, value = word.partition("=")
        if equals:
            scene.variables[name] = expand(value, scene.variables)
    scene.pending.append(command.text)
    return True


def _builtin(program: str, rest: list[str], command: Simple, scene: Scene) -> bool:
    match program:
        case "cd":
            scene.directory = posixpath.normpath(posixpath.join(scene.directory or "/", rest[0] if rest else "/root"))
            scene.pending.append(command.text)
        case "export":
            for word in rest:
                name, equals, value = word.partition("=")
                if equals:
                    scene.variables[name] = value
            scene.pending.append(command.text)
        case "set":
            scene.wishes.note(command.line, command.text, "ours", "a build stops at the first error anyway")
        case "echo" | "true" | ":":
            scene.wishes.note(command.line, command.text, "left", "it only says something")
    return True


# ---------------------------------------------------------------------------------------------- recognisers


def _apt(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    options = ("-o", "-t", "--target-release", "--option")
    plain: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word in options and rest:
            rest.pop(0)
        elif not word.startswith("-"):
            plain.append(word)
    verb, names = (plain[0], plain[1:]) if plain else ("", [])
    if verb in ("update", "clean", "autoclean", "autoremove", "upgrade", "dist-upgrade", "full-upgrade"):
        reason = "the base's packages are the mirror's newest" if "upgrade" in verb else "sifkit's own build does it"
        wishes.note(line, f"apt-get {verb}", "ours", reason)
        return True
    if verb != "install" or not all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?", name) for name in names):
        return False
    for name in names:
        python = re.match(r"python(3\.\d+)", name)
        if is_python_of_debian(name):
            wishes.pin("python", python[1], line, f"apt: {name}") if python else wishes.note(
                line, f"apt: {name}", "ours", "Python is in every base"
            )
        else:
            wishes.debian(name, line)
            wishes.note(line, f"apt: {name}", "pin", "apt")
    return True


def _pip(words: list[str], line: int, wishes: Wishes, scene: Scene) -> bool:
    plain = [word for word in words if not word.startswith("-")]
    verb = plain[0] if plain else ""
    if verb == "install":
        return pip.install(words[words.index("install") + 1 :], line, wishes, scene.directory)
    if verb == "config":
        wishes.note(line, shlex.join(("pip", *words)), "site", "python_index of the site file")
        return True
    if verb in ("uninstall", "cache", "list", "freeze", "check", "show", "--version"):
        wishes.note(line, shlex.join(("pip", *words)), "ours", "a lock says what is in the image, and no more")
        return True
    return False


def _uv(words: list[str], line: int, wishes: Wishes, scene: Scene) -> bool:
    if words[:1] == ["pip"]:
        return _pip(words[1:], line, wishes, scene)
    if words[:1] == ["venv"]:
        return _venv(words[1:], line, wishes, scene)
    if words[:1] == ["python"]:
        version = next((word for word in words[2:] if re.fullmatch(r"3\.\d+(\.\d+)?", word)), "")
        wishes.pin("python", ".".join(version.split(".")[:2]), line, shlex.join(("uv", *words))) if version else None
        return bool(version)
    if words[:1] in (["sync"], ["add"], ["run"]):
        wishes.fault(
            line,
            f"uv {words[0]}: its packages are in uv.lock and pyproject.toml, for another environment",
            "uv export --no-hashes > requirements.txt, and pip install -r requirements.txt in its place",
        )
        return True
    return words[:1] == ["cache"]


def _venv(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    option = next((word for word in words if re.fullmatch(r"(--python=)?(python)?3\.\d+", word)), "")
    if option:
        wishes.pin("python", re.sub(r".*?(3\.\d+)$", r"\1", option), line, shlex.join(("venv", *words)))
    wishes.note(line, shlex.join(("venv", *words)), "ours", "the image's environment is /opt/venv, first on PATH")
    return True


def _git(words: list[str], line: int, wishes: Wishes, scene: Scene) -> bool:
    """A clone of LLaMA-Factory is the release that it names; another is kept."""
    plain = [word for word in words if not word.startswith("-")]
    if plain[:1] == ["lfs"] and plain[1:2] == ["install"]:
        wishes.note(line, "git lfs install", "left", "a setting of one user")
        return True
    url = next((word for word in words if REPOSITORY.fullmatch(word.rstrip("/"))), "")
    if plain[:1] == ["checkout"] and scene.directory in wishes.checkouts:
        wishes.llamafactory_at(line, shlex.join(("git", *words)), plain[-1])
        return True
    if plain[:1] != ["clone"] or not url:
        if plain[:1] == ["clone"]:
            wishes.debian("git", line)
        return False
    branch = next(
        (words[at + 1] for at, word in enumerate(words[:-1]) if word in ("-b", "--branch")),
        next((word.partition("=")[2] for word in words if word.startswith("--branch=")), ""),
    )
    after = words[words.index(url) + 1 :]
    target = after[0] if after else posixpath.basename(url).removesuffix(".git")
    wishes.checkouts.add(posixpath.normpath(posixpath.join(scene.directory or "/", target)))
    wishes.llamafactory_at(line, shlex.join(("git", *words)), branch)
    wishes.checkout_left(line, target)
    return True


def _remove(words: list[str], line: int, wishes: Wishes, scene: Scene) -> bool:
    """Lists, caches and downloads of a build that sifkit's own does not leave either."""
    known = (
        r"/var/(lib/apt/lists|cache/apt).*|(/root|~|\$HOME)/\.cache.*|/tmp/\*?|.*/pkgs.*|.*(conda|mamba|forge).*\.sh"
    )
    paths = [word for word in words if not word.startswith("-")]
    gone = [posixpath.normpath(posixpath.join(scene.directory or "/", path)) for path in paths]
    if not all(re.fullmatch(known, path) or place in wishes.checkouts for path, place in zip(paths, gone, strict=True)):
        return False
    wishes.note(line, shlex.join(("rm", *words)), "ours", "nothing of it is left by sifkit's build")
    return True


def _link(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    """python and pip under other names: /opt/venv/bin has them."""
    if not words or not re.fullmatch(r"(/usr(/local)?/bin/)?(python|pip)3?", words[-1]):
        return False
    version = re.search(r"python(3\.\d+)$", words[-2]) if len(words) > 1 else None
    if version:
        wishes.pin("python", version[1], line, shlex.join(("ln", *words)))
    wishes.note(line, shlex.join(("ln", *words)), "ours", "python is /opt/venv's")
    return True


def _alternatives(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    version = next((found[1] for word in words if (found := re.search(r"python(3\.\d+)$", word))), "")
    if not version:
        return False
    wishes.pin("python", version, line, shlex.join(("update-alternatives", *words)))
    return True


def _repository(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    if not any("deadsnakes" in word for word in words):
        return False
    wishes.note(line, shlex.join(("add-apt-repository", *words)), "ours", "Python is the base's own")
    return True


def _installer(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    """Fetching and running an installer of conda's."""
    if not any(
        re.search(r"(mini(conda|forge)|mambaforge|anaconda)[\w.-]*\.sh|micromamba", word, re.I) for word in words
    ):
        return False
    wishes.note(line, words[-1], "ours", "Python is the base's, its environment /opt/venv")
    return True


def _conda(words: list[str], line: int, wishes: Wishes, scene: Scene) -> bool:
    if words[:1] == ["run"]:
        inner = _after_options(words[1:], ("-n", "-p", "--name", "--prefix"))
        return bool(inner) and _taken(Simple(line, shlex.join(inner), tuple(inner)), scene)
    return conda.command(words, line, wishes, scene.directory, pip.install)


def _after_options(words: Sequence[str], with_value: Sequence[str]) -> list[str]:
    rest = list(words)
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option in with_value and rest:
            rest.pop(0)
    return rest


def _activate(words: list[str], line: int, wishes: Wishes, _: Scene) -> bool:
    """`. /opt/conda/etc/profile.d/conda.sh`, `source venv/bin/activate`."""
    if not any(re.search(r"conda\.sh|activate|\.bashrc|mamba\.sh", word) for word in words[:1]):
        return False
    wishes.note(line, shlex.join((".", *words)), "ours", "the image's environment is always active")
    return True


Recogniser = Callable[[list[str], int, Wishes, Scene], bool]
_RECOGNISERS: Mapping[str, Recogniser] = {
    **dict.fromkeys(("apt-get", "apt"), _apt),
    "pip": _pip,
    "uv": _uv,
    **dict.fromkeys(("venv", "virtualenv"), _venv),
    "git": _git,
    "rm": _remove,
    "ln": _link,
    "update-alternatives": _alternatives,
    "add-apt-repository": _repository,
    **dict.fromkeys(("wget", "curl", "bash", "sh"), _installer),
    **dict.fromkeys(("conda", "mamba", "micromamba"), _conda),
    **dict.fromkeys((".", "source"), _activate),
}
