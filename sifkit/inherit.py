"""Locks of images that start from an environment of the build host: its own pip says what is missing.

pip takes what is installed for satisfied, and reports what it would install without doing it. Only that is locked
with hashes; everything else of the environment is recorded as inherited.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from packaging.utils import canonicalize_name

from sifkit.environment import Environment, read_environment, require_torch, require_usable, torch_advice
from sifkit.errors import CommandFailed, UsageError
from sifkit.lending import indexes
from sifkit.lock import CONSTRAINTS, advice, index_advice, parse_lock, render_lock, write_requirements
from sifkit.model import ImageSpec, Lock, LockedPackage, Resolution, Scratch, Site
from sifkit.run import Command, Runner


def make_lock(spec: ImageSpec, wanted: Resolution, base: Scratch, site: Site, runner: Runner) -> Lock:
    """Resolve against the environment as it is. Raises `UsageError` with pip's own words when nothing fits."""
    found = read_environment(base, runner)
    require_usable(spec, found)
    wheelhouse = _wheelhouse(site)
    with tempfile.TemporaryDirectory(prefix="sifkit-lock-") as scratch:
        requirements = write_requirements(wanted, Path(scratch))
        report = Path(scratch, "report.json")
        command = Command(tuple(pip_command(found, site, requirements, report)), env=pip_environment(site))
        result = runner.run(command, check=False)
        if result.returncode != 0:
            raise refusal(spec, found, "\n".join(result.tail), result.returncode, wheelhouse)
        packages = missing_packages(json.loads(report.read_text()))
    replaced = {package.name for package in packages}
    inherited = [package for package in found.packages if package.name not in replaced]
    lock = parse_lock(render_lock(spec, wanted, packages, inherited), f"{spec.name}.lock")
    require_torch(spec, lock, found)
    return lock


def _wheelhouse(site: Site) -> Path | None:
    """The site's directory of wheels. Raises `UsageError` if it is not there: pip would only warn."""
    named = site.python_index.wheelhouse
    if named is None:
        return None
    directory = Path(named).absolute()
    if not directory.is_dir():
        raise UsageError(
            f"the site's python_index.wheelhouse {directory} is not a directory", "correct it in the site file"
        )
    return directory


def pip_command(found: Environment, site: Site, requirements: Path, report: Path) -> list[str]:
    """pip's command line, flag beside its value. Isolated, so that nobody's ~/.local counts as installed."""
    wheelhouse = _wheelhouse(site)
    argv = [found.interpreter, "-I", "-m", "pip", "install", "--dry-run", "--report", str(report)]
    argv += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--only-binary", ":all:"]
    if wheelhouse:
        argv += ["--isolated", "--no-index", "--find-links", str(wheelhouse)]
    return [*argv, "--constraint", str(requirements.with_name(CONSTRAINTS)), "--requirement", str(requirements)]


def pip_environment(site: Site) -> dict[str, str]:
    """The site's indexes, not on the command line: everybody on a node sees those, passwords included."""
    found = {} if site.python_index.wheelhouse else indexes(site.python_index)
    return {name: value for name, value in found.items() if name.startswith("PIP_")}


def missing_packages(report: dict[str, Any]) -> list[LockedPackage]:
    """What pip's installation report says would be installed. Raises `UsageError` for a file without a hash.

    Format: https://pip.pypa.io/en/stable/reference/installation-report/
    """
    packages = []
    for entry in report["install"]:
        name, version = canonicalize_name(entry["metadata"]["name"]), entry["metadata"]["version"]
        url = entry["download_info"]["url"]
        sha256 = _sha256(entry["download_info"].get("archive_info", {}))
        if sha256 is None:
            raise UsageError(f"{name} {version}: {url} gives no sha256", "ask for a wheel of it, by name and version")
        path = unquote(urlsplit(url).path)
        size = Path(path).stat().st_size if url.startswith("file:") else 0  # an index's size is not reported
        packages.append(LockedPackage(name, version, path.rpartition("/")[2], size, sha256))
    return sorted(packages, key=lambda package: package.name)


def _sha256(archive: dict[str, Any]) -> str | None:
    """pip before 23.1 has `hash: sha256=…` alone."""
    kind, _, old = archive.get("hash", "").partition("=")
    return archive.get("hashes", {}).get("sha256") or (old if kind == "sha256" else None)


# ---------------------------------------------------------------------------------------------- refusals


def refusal(
    spec: ImageSpec, found: Environment, said: str, returncode: int, wheelhouse: Path | None
) -> UsageError | CommandFailed:
    """pip's refusal as it said it, with what to change or to carry."""
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    absent = re.findall(r"No matching distribution found for (\S+)", said)
    if not absent and "ResolutionImpossible" not in said:
        return CommandFailed(
            f"pip of {found.path} could not resolve {spec.name}:\n{said}", index_advice(said), returncode=returncode
        )
    conflict = "\n  ".join([*errors, *_causes(said)])
    fixes = [torch_advice(spec, found) if re.search(r"\btorch==", conflict) else None]
    if wheelhouse:
        fixes += [f"put a wheel of {what} for Python {found.python} into {wheelhouse}" for what in absent]
    elif absent and (advised := index_advice(said)):
        fixes.append(advised)
    fixes.append(None if wheelhouse and absent else advice(spec, conflict))
    return UsageError(
        f"{spec.name} cannot be resolved in {found.path}:\n  {conflict}", "\n".join(fix for fix in fixes if fix)
    )


def _causes(said: str) -> list[str]:
    """The lines below "The conflict is caused by:", which pip indents."""
    lines = said.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("The conflict is caused by")), None)
    return [line.strip() for line in lines[start + 1 :] if line.startswith("    ")] if start is not None else []
