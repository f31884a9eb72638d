"""The programs that a host without network needs before it can unbundle: sifkit, what it builds on, and Apptainer."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from email.parser import BytesParser
from importlib.metadata import PackageNotFoundError, distribution, distributions
from json import loads
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zipfile import ZipFile

from sifkit import __version__
from sifkit.bundle.archive import Item, Kind
from sifkit.checkout import Sources
from sifkit.errors import CommandFailed, HostError
from sifkit.hashes import sha256_of
from sifkit.layers import TIME
from sifkit.run import Command
from sifkit.tools import Tools

PLATFORM = "x86_64-manylinux_2_28"  # of the oldest hosts that sifkit's dependencies have wheels for: RHEL 8
_PIP_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")
REQUIREMENTS = "requirements.txt"
_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "sifkit")
# What ci/install-apptainer.sh installs on Debian.
APPTAINER = ("apptainer", "debootstrap", "squashfs-tools", "squashfuse", "fuse2fs", "fuse3", "uidmap")


def this_python() -> str:
    """The minor version that runs sifkit here."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def items_of(kind: Kind, directory: Path, *suffixes: str) -> list[Item]:
    """Every file in a directory that ends so, by name."""
    paths = sorted(path for path in directory.iterdir() if path.suffix in suffixes)
    return [Item.of_file(kind, f"{kind}/{path.name}", path, sha256_of(path)) for path in paths]


# ---------------------------------------------------------------------------------------------- sifkit


def sifkit_wheels(python: str, scratch: Path, tools: Tools) -> list[Item]:
    """sifkit's own wheel, those of its dependencies for this Python, and the requirements file that pins them by hash.

    Versions are those that run here, wherever they fit the other Python. Raises `CommandFailed`.
    """
    into = scratch / "sifkit"
    into.mkdir(parents=True)
    env = _index_environment(tools)
    own = _own_wheel(into, scratch, env, tools)
    pinned = into / REQUIREMENTS
    _pin(own, python, pinned, scratch, env, tools)
    argv = (*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps")
    platforms = [word for platform in _PIP_PLATFORMS for word in ("--platform", platform)]
    wheels = ("--only-binary", ":all:", "--python-version", python, *platforms)
    tools.runner.run(
        Command((*argv, *wheels, "--require-hashes", "--requirement", str(pinned), "--dest", str(into)), env=env),
        on_line=tools.progress.line,
    )
    with pinned.open("a", encoding="utf-8") as stream:
        stream.write(f"sifkit=={__version__} --hash=sha256:{sha256_of(own)}\n")
    return items_of("sifkit", into, ".whl", ".txt")


def _index_environment(tools: Tools) -> Mapping[str, str]:
    """The site's index, for pip and uv alike."""
    pip = Sources.of_site(tools.site, tools.environ).pip_env
    return {**pip, **({"UV_DEFAULT_INDEX": pip["PIP_INDEX_URL"]} if "PIP_INDEX_URL" in pip else {})}


def _own_wheel(into: Path, scratch: Path, env: Mapping[str, str], tools: Tools) -> Path:
    """Built from a copy of the sources: builds leave things beside them."""
    root, copy = _source_root(), scratch / "source"
    copy.mkdir()
    for name in _SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(root / name, copy / name)
    argv = (_uv(), "build", "--wheel", "--quiet", "--python", sys.executable, "--out-dir", str(into), str(copy))
    tools.runner.run(Command(argv, env={**env, "SOURCE_DATE_EPOCH": str(TIME)}), on_line=tools.progress.line)
    wheels = sorted(into.glob("*.whl"))
    if len(wheels) != 1:
        raise CommandFailed(f"uv built {len(wheels)} wheels of sifkit, not one", returncode=0)
    return wheels[0]


def _source_root() -> Path:
    """Where this sifkit was installed from. Raises `HostError` where that was no directory of sources."""
    fix = "bundle with a sifkit that runs from its sources (make venv), or give --without-sifkit"
    try:
        said = loads(distribution("sifkit").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        said = {}
    url = urlsplit(said.get("url", ""))
    candidates = (Path(unquote(url.path)) if url.scheme == "file" else None, Path(__file__).parents[2])
    for root in candidates:
        if root and all((root / name).exists() for name in _SOURCES):
            return root
    raise HostError("sifkit's own wheel cannot be made: its sources are not here", fix)


def _pin(own: Path, python: str, target: Path, scratch: Path, env: Mapping[str, str], tools: Tools) -> None:
    """What the wheel requires, as a requirements file with hashes. uv prefers versions that stand in it before."""
    wanted = scratch / "requirements.in"
    requires = _requirements_of(own)
    wanted.write_text("".join(f"{line}\n" for line in requires))
    target.write_text("".join(f"{name}=={version}\n" for name, version in _installed()))
    argv = [_uv(), "pip", "compile", str(wanted), "--output-file", str(target), "--quiet", "--no-config"]
    argv += ["--no-header", "--no-annotate", "--generate-hashes", "--no-python-downloads", "--only-binary", ":all:"]
    argv += ["--python-version", python, "--python-platform", PLATFORM]
    tools.runner.run(Command(tuple(argv), env=env), on_line=tools.progress.line)


def _requirements_of(wheel: Path) -> list[str]:
    with ZipFile(wheel) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        head = BytesParser().parsebytes(archive.read(name), headersonly=True)
    return [str(line) for line in head.get_all("Requires-Dist") or () if "extra ==" not in line]


def _installed() -> list[tuple[str, str]]:
    found = {one.metadata["Name"]: one.version for one in distributions() if one.metadata["Name"]}
    return sorted((name, version) for name, version in found.items() if name != "sifkit")


def _uv() -> str:
    from uv import find_uv_bin  # here: nodes that only verify have no uv

    return find_uv_bin()


def _pip() -> tuple[str, ...]:
    """uv downloads no wheels for others; the pip that it brings does, in environments without one as well."""
    return (_uv(), "tool", "run", "--python", sys.executable, "pip")


# ---------------------------------------------------------------------------------------------- Apptainer


def apptainer_packages(scratch: Path, tools: Tools) -> list[Item]:
    """Apptainer and all that it needs, as .deb files for this host's release.

    apt resolves for a system that has nothing. Where the release has no Apptainer that fits it, Debian's unstable is
    asked, as ci/install-apptainer.sh does.
    """
    if tools.runner.which("apt-get") is None:
        fix = "bundle on Debian or Ubuntu of the release that the other host has, or leave --with-apptainer out"
        raise HostError("Apptainer's packages come from apt, which is not on this host", fix)
    into, status = scratch / "apptainer", scratch / "status"
    (into / "partial").mkdir(parents=True)
    status.touch()
    argv = ("apt-get", "install", "--download-only", "-qy", "--no-install-recommends")
    settings = (f"Dir::State::status={status}", f"Dir::Cache::archives={into}", "Debug::NoLocking=1")
    options = [word for setting in settings for word in ("-o", setting)]
    plain = Command((*argv, *options, *APPTAINER))
    unstable = Command((*argv, *options, "-t", "sid", *APPTAINER))
    if tools.runner.run(plain, on_line=tools.progress.line, check=False).returncode != 0:
        tools.runner.run(unstable, on_line=tools.progress.line)
    return items_of("apptainer", into, ".deb")
