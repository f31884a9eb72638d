"""Locks: every package of an image with version, file and hash, resolved by uv for the image, not for this host.

A lock is a requirements file in pip's own format, so that anything can install from it. One file for each
package: the wheel that the image's Python and platform will use, named in a comment with its size in bytes. What the
base's environment brings stands in comments of its own: `inherit` writes such locks. So does the digest of a base that
comes from a registry; locks without one are as valid.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

from sifkit.errors import CommandFailed, UsageError
from sifkit.model import ImageSpec, Inherited, Lock, LockedPackage, Resolution, Site
from sifkit.run import Command, Runner

_PACKAGE = re.compile(
    r"^(?P<name>\S+)==(?P<version>\S+) \\\n"
    r"    --hash=sha256:(?P<sha256>[0-9a-f]{64})  # (?P<file>\S+) (?P<size>[0-9]{1,15})$",
    re.MULTILINE,
)
_INHERITED = re.compile(r"^# inherited: (?P<name>\S+)==(?P<version>\S+)$", re.MULTILINE)
_BASE = re.compile(r"^# base: (?P<name>[^\s@]+)@(?P<digest>sha256:[0-9a-f]{64})$")
_HEAD_LINES = 3  # and one for the base, where it has a digest
CONSTRAINTS = "constraints.txt"  # beside the requirements, for the time of a resolution
_COUNT = re.compile(r"^# \S+: (?P<packages>[0-9]{1,6}) packages,(?:[^\n]* (?P<inherited>[0-9]{1,6}) inherited;)?")
_REFUSED = r"\b40[13] (Unauthorized|Forbidden)|authentication credentials"
_INPUTS = re.compile(r"^# inputs: ([0-9a-f]{64})$", re.MULTILINE)

State = Literal["current", "stale", "missing", "damaged"]


@dataclass(frozen=True)
class BaseDigest:
    """What a base's name stood for when the lock was written."""

    name: str  # whole, with registry and tag
    digest: str

    def line(self) -> str:
        """Its line in a lock."""
        return f"# base: {self.name}@{self.digest}"


def parse_lock(text: str, file: str) -> Lock:
    """Read a lock. Raises `UsageError` if it is not one, or was edited so that a package has no hash."""
    inputs = _INPUTS.search(text)
    packages = tuple(
        LockedPackage(m["name"], m["version"], m["file"], int(m["size"]), m["sha256"]) for m in _PACKAGE.finditer(text)
    )
    inherited = tuple(Inherited(m["name"], m["version"]) for m in _INHERITED.finditer(text))
    count, body = _COUNT.search(text), "".join(f"{line}\n" for line in text.split("\n")[_head_lines(text) : -1])
    counts = (int(count["packages"]), int(count["inherited"] or 0)) if count else None
    whole = counts == (len(packages), len(inherited)) and body == _entries(packages, inherited)
    if inputs is None or not (packages or inherited) or not whole:
        raise UsageError(
            f"{file}: not a lock as sifkit wrote it (edited, cut, or merged)",
            f"write it again: sifkit lock {Path(file).stem}",
        )
    return Lock(text, inputs[1], packages, inherited)


def _head_lines(text: str) -> int:
    return _HEAD_LINES + (1 if base_of(text) else 0)


def base_of(text: str) -> BaseDigest | None:
    """The base's digest in the text of a lock."""
    lines = text.split("\n")
    found = _BASE.match(lines[_HEAD_LINES]) if len(lines) > _HEAD_LINES else None
    return BaseDigest(found["name"], found["digest"]) if found else None


def with_base(lock: Lock, base: BaseDigest | None) -> Lock:
    """The lock with this digest of its base, or with none."""
    lines = lock.text.split("\n")
    lines[_HEAD_LINES : _head_lines(lock.text)] = [base.line()] if base else []
    return replace(lock, text="\n".join(lines))


def moved(before: Lock, after: Lock) -> tuple[str, ...]:
    """What another lock of an image changes, a line each: its base first, then packages by name."""
    old, new = before.versions(), after.versions()
    lines = [_base_moved(base_of(before.text), base_of(after.text))]
    for name in sorted({*old, *new}):
        if name not in old:
            lines.append(f"{name} {new[name]} is new")
        elif name not in new:
            lines.append(f"{name} {old[name]} is gone")
        elif old[name] != new[name]:
            lines.append(f"{name} {old[name]} → {new[name]}")
    return tuple(line for line in lines if line)


def _base_moved(old: BaseDigest | None, new: BaseDigest | None) -> str:
    if new is None or new == old:
        return "" if new == old or old is None else f"base {old.name}: no digest any more (was {old.digest})"
    was = f"{old.digest} → " if old and old.name == new.name else ""
    return f"base {new.name}: {was}{new.digest}"


def _entries(packages: Iterable[LockedPackage], inherited: Iterable[Inherited]) -> str:
    """The lines of the packages, which must be all that a lock holds."""
    return "".join(f"# inherited: {package.name}=={package.version}\n" for package in inherited) + "".join(
        f"{package.name}=={package.version} \\\n    --hash=sha256:{package.sha256}  # {package.file} {package.size}\n"
        for package in packages
    )


def state(wanted: Resolution, path: Path) -> State:
    """Whether the lock at `path` was resolved from what is wanted now. Needs no network."""
    if not path.is_file():
        return "missing"
    try:
        lock = read_lock(path)
    except UsageError:
        return "damaged"
    return "current" if lock.inputs_digest == wanted.digest() else "stale"


def read_lock(path: Path) -> Lock:
    """Raises `UsageError` if there is none."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file", f"write it: sifkit lock {path.stem}")
    try:
        return parse_lock(path.read_bytes().decode(), str(path))
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a text file", f"write it again: sifkit lock {path.stem}") from None


def current_lock(wanted: Resolution, path: Path) -> Lock:
    """The lock of a spec. Raises `UsageError` when it is missing or stale."""
    lock = read_lock(path)
    if lock.inputs_digest != wanted.digest():
        raise UsageError(f"{path} is stale: the spec changed since it was written", f"run: sifkit lock {path.stem}")
    return lock


def make_lock(spec: ImageSpec, wanted: Resolution, site: Site, runner: Runner) -> Lock:
    """Resolve with uv. Raises `UsageError` with the resolver's own words when nothing fits."""
    with tempfile.TemporaryDirectory(prefix="sifkit-lock-") as scratch:
        requirements = write_requirements(wanted, Path(scratch))
        output = Path(scratch, "pylock.toml")
        command = Command(tuple(uv_command(wanted, site, requirements, output)), env=index_environment(wanted, site))
        result = runner.run(command, check=False)
        if result.returncode != 0:
            raise refusal(spec, "\n".join(result.tail), result.returncode)
        packages = locked_packages(tomli.loads(output.read_text()), wanted)
    return parse_lock(render_lock(spec, wanted, packages), f"{spec.name}.lock")


def write_requirements(wanted: Resolution, directory: Path) -> Path:
    """The resolver's input, with `CONSTRAINTS` beside it."""
    requirements = directory / "requirements.in"
    requirements.write_text("\n".join(wanted.requirements) + "\n")
    requirements.with_name(CONSTRAINTS).write_text("\n".join(wanted.constraints) + "\n")
    return requirements


def uv_command(wanted: Resolution, site: Site, requirements: Path, output: Path) -> list[str]:
    """uv's command line, flag beside its value."""
    from uv import find_uv_bin  # here: nodes that only verify have no uv

    index = site.python_index
    argv = [find_uv_bin(), "pip", "compile", str(requirements), "--output-file", str(output), "--quiet"]
    argv += ["--format", "pylock.toml", "--no-config", "--no-python-downloads"]
    argv += ["--python-version", wanted.python, "--python-platform", wanted.platform]
    argv += ["--only-binary", ":all:"]
    if wanted.constraints:
        argv += ["--constraints", str(requirements.with_name(CONSTRAINTS))]
    for name in wanted.sdists:
        argv += ["--no-binary", name]
    if index.wheelhouse:
        argv += ["--no-index", "--find-links", index.wheelhouse]
    if wanted.torch_backend and index.torch_url:
        argv += ["--index-strategy", "unsafe-best-match"]
    elif wanted.torch_backend:
        argv += ["--torch-backend", wanted.torch_backend]
    return argv


def index_environment(wanted: Resolution, site: Site) -> dict[str, str]:
    """The site's indexes for uv, in its environment: everybody on a node sees command lines, passwords included."""
    index = site.python_index
    default = {"UV_DEFAULT_INDEX": index.url} if index.url and not index.wheelhouse else {}
    torch = index.torch_url.format(cuda=wanted.torch_backend) if index.torch_url and wanted.torch_backend else None
    further = [*(() if index.wheelhouse else index.extra_urls), *([torch] if torch else [])]
    return {**default, **({"UV_INDEX": " ".join(further)} if further else {})}


def locked_packages(pylock: dict[str, Any], wanted: Resolution) -> list[LockedPackage]:
    """The one file of each package in uv's pylock.toml (PEP 751). Raises `UsageError` for one without a hash."""
    packages, order = [], _installers_order(wanted)
    for entry in pylock["packages"]:
        wheels = sorted(entry.get("wheels", ()), key=lambda wheel: _rank(_file_name(wheel), order))
        file = wheels[0] if wheels else entry.get("sdist") or entry.get("archive") or {}
        sha256 = file.get("hashes", {}).get("sha256")
        if not sha256:
            raise UsageError(f"{entry['name']} {entry.get('version')}: the index gives no sha256", "use another index")
        name = canonicalize_name(entry["name"])
        packages.append(LockedPackage(name, entry["version"], _file_name(file), file.get("size", 0), sha256))
    return sorted(packages, key=lambda package: package.name)


def _file_name(file: dict[str, Any]) -> str:
    name: str = file.get("name") or (file.get("url") or file["path"]).rsplit("/", 1)[-1]
    return name.replace("%2B", "+")


def _installers_order(wanted: Resolution) -> dict[Tag, int]:
    """The tags that the image's Python takes, best first, as installers rank them.

    uv lists all wheels that fit, in no such order: soundfile has one for any platform, without the library that
    the one for Linux brings.
    """
    major, minor = (int(part) for part in wanted.python.split("."))
    glibc = int(wanted.platform.rpartition("_")[2])
    aliases = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms = []
    for version in range(glibc, 4, -1):
        platforms += [f"manylinux_2_{version}_x86_64"]
        platforms += [f"{aliases[version]}_x86_64"] if version in aliases else []
    platforms += ["linux_x86_64"]
    tags = cpython_tags((major, minor), [f"cp{major}{minor}"], platforms)
    pure = compatible_tags((major, minor), f"cp{major}{minor}", platforms)
    return {tag: place for place, tag in enumerate(dict.fromkeys((*tags, *pure)))}


def _rank(filename: str, order: dict[Tag, int]) -> int:
    _, _, _, tags = parse_wheel_filename(filename)
    return min((order[tag] for tag in tags if tag in order), default=len(order))


def render_lock(
    spec: ImageSpec, wanted: Resolution, packages: list[LockedPackage], inherited: Sequence[Inherited] = ()
) -> str:
    """The text of a lock."""
    amount = _amount(sum(package.size for package in packages)) + (
        f" to install, {len(inherited)} inherited" if inherited else " to download"
    )
    if not all(package.size for package in packages):  # pip's report gives no sizes, and not every index does
        amount = f"at least {amount}"
    head = [
        f"# {spec.name}: {len(packages)} packages, {amount}; Python {wanted.python}, {wanted.platform}",
        "# Written by `sifkit lock` from the spec beside it; do not edit. A requirements file: pip and uv read it.",
        f"# inputs: {wanted.digest()}",
    ]
    return "\n".join(head) + "\n" + _entries(packages, inherited)


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 or not size else f"{size / 1e6:.1f} MB"


def refusal(spec: ImageSpec, said: str, returncode: int) -> UsageError | CommandFailed:
    """uv's refusal as it said it, from the conflict on, with the keys of the spec that take part in it."""
    unread = re.search(_REFUSED, said) is not None  # for uv a package that it may not see is one that is not there
    if unread or ("No solution found" not in said and "because" not in said.lower()):
        return CommandFailed(f"uv could not resolve {spec.name}:\n{said}", index_advice(said), returncode=returncode)
    conflict = re.sub(r"\s*\n\s*", " ", said[max(said.find("Because"), 0) :]).strip()
    hint = conflict.find(" hint: ")
    conflict = conflict if hint < 0 else conflict[:hint]
    return UsageError(f"{spec.name} cannot be resolved:\n  {conflict}", advice(spec, conflict))


def advice(spec: ImageSpec, conflict: str) -> str:
    """Which keys of the spec to change."""
    keys = {
        "torch": f"torch.version (now {spec.torch.version})",
        "llamafactory": f"llamafactory.version (now {spec.llamafactory.version})",
        "Python": f"python (now {spec.python})",
    }
    named = [shown for word, shown in keys.items() if re.search(rf"\b{word}\b", conflict)]
    own = [requirement for requirement in spec.packages if re.split(r"[^\w.-]", requirement)[0] in conflict]
    named += [f"packages: {requirement}" for requirement in own]
    if "no usable wheels" in conflict or "no wheels" in conflict:
        named.append("sdists: [NAME], if the package is pure Python and may be built from source")
    return "change one of: " + "; ".join(named or ["extras", "packages"])


def index_advice(said: str) -> str | None:
    """What to do when the index could not be read."""
    if re.search(_REFUSED, said):
        return "the index refuses: correct user and password in python_index.url of the site file, or in ~/.netrc"
    if re.search(r"certificate|tls|ssl", said, re.IGNORECASE):
        return "the index's certificate is not trusted: set SSL_CERT_FILE to your site's bundle"
    if re.search(r"dns|connect|timed out|error sending request", said, re.IGNORECASE):
        return "the package index cannot be reached: set python_index.url or python_index.wheelhouse in the site file"
    return None
