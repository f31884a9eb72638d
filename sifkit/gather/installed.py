"""The Apptainer that is installed: its version, its configuration, the programs that it brings along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from sifkit.check.hosts import BIND_PATH
from sifkit.errors import CommandFailed, HostError
from sifkit.run import Command, Runner

_WITHIN = timedelta(seconds=1)


@dataclass(frozen=True)
class Installed:
    """`version` None: there is no Apptainer, or it does not answer."""

    version: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    config_file: Path | None = None
    brings: Path | None = None  # the directory of its own programs: LIBEXECDIR/apptainer/bin
    setuid: bool = False
    singularity: str | None = None  # a program of that name that is not Apptainer, in its own words


def read_installed(runner: Runner) -> Installed:
    """Asks the program `apptainer` and, where it is missing, `singularity`."""
    build = build_settings(_said(runner, "apptainer", "buildcfg"))
    said = build.get("PACKAGE_VERSION") or _said(runner, "apptainer", "--version")
    version = re.search(r"\d+\.\d+\.\d+", said)
    if version is None:
        other = _said(runner, "singularity", "--version")
        return Installed(singularity=other or None)
    file = Path(build.get("APPTAINER_CONF_FILE", "/etc/apptainer/apptainer.conf"))
    brings = Path(build.get("LIBEXECDIR", "/usr/libexec")) / "apptainer" / "bin"
    return Installed(version[0], read_config(file), file, brings, _is_setuid(brings / "starter-suid"))


def _said(runner: Runner, *argv: str) -> str:
    try:
        return runner.run(Command(argv), timeout=_WITHIN).output.strip()
    except (CommandFailed, HostError):
        return ""


def _is_setuid(starter: Path) -> bool:
    try:
        return bool(starter.stat().st_mode & 0o4000)
    except OSError:
        return False


def build_settings(text: str) -> dict[str, str]:
    """NAME=VALUE lines of `apptainer buildcfg`."""
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


def read_config(file: Path) -> dict[str, str]:
    """The settings of an apptainer.conf; empty where it cannot be read: Apptainer then stops, too."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    return parse_config(text)


def parse_config(text: str) -> dict[str, str]:
    """`key = value` lines. Of a key that stands twice the last counts, but bind paths add up."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        key, value = " ".join(key.split()), value.strip()
        if not equals or key.startswith("#"):
            continue
        found[key] = f"{found[key]}\n{value}" if key == BIND_PATH and key in found else value
    return found
