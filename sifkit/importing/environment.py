"""Variables of an image: literal ones for `env`, others for the section, some that are sifkit's or the site's own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sifkit.importing.recipe import Fault, Item, Raw, Variable
from sifkit.importing.shell import split, variables_in

_BUILD_ONLY = re.compile(
    r"DEBIAN_FRONTEND|(PIP|UV|CONDA|MAMBA|POETRY|APT)_\w+|NEEDRESTART_MODE|PYTHONNOUSERSITE|VIRTUAL_ENV"
)
_PROXY = re.compile(r"(https?|no|all|ftp)_proxy", re.IGNORECASE)
_OWN_PATHS = re.compile(r"conda|mamba|venv|virtualenv|\.local|cuda|nvidia|/root/\.cargo|pyenv", re.IGNORECASE)
ACTIVATION = re.compile(
    r"\s*(?:(?:\.|source)\s+\S*(?:conda\.sh|mamba\.sh|/activate)\b"
    r"|(?:conda|mamba|micromamba)\s+activate\b|eval .*conda)"
)


@dataclass
class Environment:
    """Filled in the source's order; the last value of a name counts."""

    known: dict[str, str] = field(default_factory=dict)
    raw: list[Raw] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    _literal: dict[str, Variable] = field(default_factory=dict)

    @property
    def variables(self) -> list[Variable]:
        """Literal ones, by the order in which they came first."""
        return list(self._literal.values())

    def set(self, line: int, name: str, value: str) -> None:
        """One variable, its own known variables replaced."""
        self.known[name] = value
        if _PROXY.fullmatch(name):
            self._note(line, name, "site", "the usual variables of who builds")
        elif _BUILD_ONLY.fullmatch(name):
            self._note(line, f"{name}={value}", "ours", "for a build alone")
        elif name == "PATH":
            self._path(line, value)
        elif variables_in(value):
            quoted = value.replace("\\", "\\\\").replace('"', '\\"').replace("`", "\\`")
            self._literal.pop(name, None)
            self.raw.append(Raw(line, "environment", f'export {name}="{quoted}"'))
            self._note(line, f"{name}={value}", "kept", "sections.environment")
        elif "{{" in value or re.search(r"[\x00-\x1f]", value):
            fix = "set it in the job, or write the file that needs it under sections.post"
            self.faults.append(Fault(line, f"{name} holds a line break or '{{{{'", fix))
        else:
            self._literal[name] = Variable(line, name, value)
            self._note(line, f"{name}={value}", "pin", f"env.{name}")

    def _path(self, line: int, value: str) -> None:
        """/opt/venv/bin comes first in any case; directories of other Pythons must not come before it."""
        own = [part for part in value.split(":") if not part.startswith("$") and not _OWN_PATHS.search(part)]
        own = [
            part
            for part in own
            if part not in ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
        ]
        if not own:
            self._note(line, f"PATH={value}", "ours", "/opt/venv/bin comes first")
            return
        self.raw.append(Raw(line, "environment", f'export PATH="$PATH:{":".join(own)}"'))
        self._note(line, f"PATH={value}", "kept", "sections.environment, behind /opt/venv/bin")

    def script(self, line: int, text: str) -> None:
        """A section of shell text: assignments of literal values as variables, the rest as it is."""
        for command in split(text, line, {}):
            words = command.words[1:] if command.words[:1] == ("export",) else command.words
            pairs = [word.partition("=") for word in words]
            if words and all(equals and re.fullmatch(r"[A-Za-z_]\w*", name) for name, equals, _ in pairs):
                for name, _, value in pairs:
                    self.set(command.line, name, value)
            elif command.words[:1] == ("export",) and all(word in self.known for word in words):
                continue  # A=b; export A
            elif ACTIVATION.match(command.text) and not command.tail:
                self._note(command.line, command.text, "ours", "the image's environment is always active")
            else:
                self.raw.append(Raw(command.line, "environment", command.text))
                self._note(command.line, command.text, "kept", "sections.environment")

    def _note(self, line: int, what: str, fate: str, where: str) -> None:
        item = Item(line, " ".join(what.split()), fate, where)  # type: ignore[arg-type]
        if item not in self.items:
            self.items.append(item)
