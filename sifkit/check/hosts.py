"""Questions that several rules ask of a host. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from packaging.version import Version

from sifkit.check.facts import Facts, HostFacts
from sifkit.check.places import is_seen
from sifkit.check.rule import Severity

OLDEST_APPTAINER = Version("1.2.0")  # as sifkit.apptainer has it
BIND_PATH = "bind path"  # of apptainer.conf, where it may stand on several lines; their values joined by line breaks
_PATH = re.compile(r"/[\w.-][\w./-]*")  # a path with no blank in it, wherever it stands
_BOUND_BY_DEFAULT = "/etc/localtime\n/etc/hosts"  # pkg/util/apptainerconf/config.go, directive "bind path"

# Of a distribution (ID of os-release): how root installs, and what of it the names are.
_INSTALL = {
    "debian": "apt-get install",
    "ubuntu": "apt-get install",
    "fedora": "dnf install",
    "rhel": "dnf install",
    "rocky": "dnf install",
    "almalinux": "dnf install",
    "centos": "dnf install",
    "opensuse-leap": "zypper install",
    "sles": "zypper install",
    "arch": "pacman -S",
    "alpine": "apk add",
}
_UIDMAP = {"apt-get install": "uidmap", "pacman -S": "shadow", "zypper install": "shadow", "apk add": "shadow-subids"}


def install(host: HostFacts, package: str) -> str:
    """Root's command for a package that has the same name everywhere; newuidmap's package by that program's name."""
    command = _INSTALL.get(host.distribution)
    if package == "newuidmap":
        package = _UIDMAP.get(command or "", "shadow-utils")
    return f"{command} {package}" if command else f"install {package}"


def by_root(host: HostFacts, command: str) -> str:
    """Who is to type it: root does at once, others ask."""
    return f"`{command}`" if host.uid == 0 else f"`sudo {command}` (root does this once: ask the administrator)"


def on_this_host(facts: Facts) -> Severity:
    """What keeps a run from starting here: an error; a warning where it is queued, and another node will run it."""
    queued = facts.job is not None and not facts.job.here and facts.site is not None and facts.site.slurm
    return Severity.WARNING if queued else Severity.ERROR


def elsewhere(facts: Facts) -> str:
    """What to add where the run is queued."""
    if on_this_host(facts) is Severity.ERROR:
        return ""
    return "; seen on this host: the node that runs the job may differ, `srun sifkit doctor` shows it"


def is_on(config: Mapping[str, str], key: str) -> bool:
    """Of a setting of apptainer.conf whose default is yes."""
    return config.get(key, "yes") != "no"


def bind_sources(config: Mapping[str, str]) -> tuple[str, ...]:
    """Files and directories of the host that apptainer.conf puts into every container."""
    return tuple(line.split(":")[0] for line in config.get(BIND_PATH, _BOUND_BY_DEFAULT).splitlines() if line)


def bound_by_script(facts: Facts, path: Path) -> bool:
    """Whether the container of a job file of the user's own has this path; where that is not sure, yes."""
    script = facts.job.script if facts.job else ""
    named = any(path.is_relative_to(word) for word in _PATH.findall(script))
    return named or is_seen(path, replace(facts, job=None)) is not False
