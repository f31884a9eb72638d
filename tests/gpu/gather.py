"""Fill a directory with what a GPU node without network needs for the whole chain. Run it where there is network.

    python tests/gpu/gather.py [DIRECTORY]        # default: build/gpu-node

debs/ holds Apptainer, wheels/ LLaMA-Factory with what the node's environment lacks and its source archive, sifkit/
what sifkit itself runs with. Safe to run again. tests/gpu/chain.sh uses all three on the node.

Three packages of LLaMA-Factory's metadata are as large as the rest together, and training on text imports none of
them: `LEFT_OUT`. A wheel without files stands for each, under a version that says so (5.50.0+left.out), since the
node's pip resolves and checks the whole set. bitsandbytes (60 MB) is not carried: there is no QLoRA on the node.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename
from uv import find_uv_bin

from sifkit.errors import CommandFailed, HostError, SifkitError, UsageError
from sifkit.site import apt_mirrors

ROOT = Path(__file__).resolve().parents[2]
NODE = Path(__file__).with_name("node-packages.txt")

LLAMAFACTORY, DEEPSPEED, TORCH = "0.9.5", "0.19.8", "2.11.0"
PYTHON, PLATFORM = "3.12", "x86_64-manylinux_2_28"
LEFT_OUT = ("gradio", "av", "modelscope", "hf-transfer")  # 62, 38, 6 and 4 MB; the web interface, video, model hubs
BUILT_HERE = ("deepspeed", "antlr4-python3-runtime")  # published as source alone; pure Python with DS_BUILD_OPS=0
WITH_THE_NODE = re.compile(r"nvidia-(?!ml-py)|cuda-")  # come with its torch
NOT_THERE = ("uv", "docker", "dockerfile")  # on the node pip installs, and nothing is imported from Docker
TEST_TOOLS = ("pytest-xdist",)

# Debian 13's run on Ubuntu 24.04's C library; squashfs-tools and FUSE bring what an image is made and mounted with.
SUITES = {
    "sid": ("apptainer",),
    "trixie": (
        *("squashfs-tools", "liblzo2-2", "squashfuse", "libsquashfuse0", "libfuse3-4", "fuse-overlayfs"),
        *("uidmap", "libsubid5", "libseccomp2", "libsqlite3-0"),
    ),
}
NODE_GLIBC = (2, 39)
MOST_MB = 58.0  # what may be carried to the node at once, beside the repository


def main() -> int:
    """Gather, print sizes; an error in words and its exit code otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / "build" / "gpu-node")
    directory = parser.parse_args().directory.absolute()
    try:
        gather(directory)
    except SifkitError as error:
        sys.stderr.write(f"error: {error.message}\n" + (f"fix: {error.fix}\n" if error.fix else ""))
        return error.exit
    return 0


def gather(directory: Path) -> None:
    """Every part, then its size. Raises `UsageError` when that is more than may be carried."""
    for name in ("debs", "wheels", "sifkit"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    gather_debs(directory / "debs")
    gather_wheels(directory / "wheels")
    gather_sifkit(directory / "sifkit", shared=directory / "wheels")
    sizes = {part.name: megabytes(part) for part in sorted(directory.iterdir()) if part.is_dir()}
    for name, size in (*sizes.items(), ("together", sum(sizes.values()))):
        print(f"{name:10} {size:6.1f} MB")
    if sum(sizes.values()) > MOST_MB:
        raise UsageError(f"more than {MOST_MB:.0f} MB", f"name what the node has in {NODE.name}, or add to LEFT_OUT")


def megabytes(directory: Path) -> float:
    """Of all files in it."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / 1e6


# ---------------------------------------------------------------------------------------------- Debian packages


def gather_debs(into: Path) -> None:
    """apt's own download, with sources and lists of our own: this host's stay as they are."""
    if shutil.which("apt-get") is None:
        raise HostError("Debian packages are fetched with apt-get, which is not here", "run this on Debian or Ubuntu")
    with tempfile.TemporaryDirectory(prefix="sifkit-apt-") as scratch:
        options = apt_options(Path(scratch), debian_mirror(os.environ))
        run("apt-get", *options, "update", "-q")
        wanted = [f"{package}/{suite}" for suite, packages in SUITES.items() for package in packages]
        run("apt-get", *options, "download", "-q", *wanted, cwd=into)
    newest: dict[str, Path] = {}
    for path in sorted(into.glob("*.deb"), key=lambda path: path.stat().st_mtime):
        newest[path.name.partition("_")[0]] = path
    keep_only(into, newest.values())
    require_old_glibc(into)


def debian_mirror(environ: dict[str, str] | os._Environ[str]) -> str:
    """The one named, else that of this host's apt sources: Debian's own, not its security archive."""
    named = environ.get("SIFKIT_DEBIAN_MIRROR")
    found = [mirror for mirror in apt_mirrors().values() if re.search(r"/debian/?$", mirror)]
    if not named and not found:
        raise HostError("this host's apt sources name no Debian mirror", "say which: SIFKIT_DEBIAN_MIRROR=http://…")
    return named or found[0]


def apt_options(scratch: Path, mirror: str) -> list[str]:
    """Options that keep everything of apt's below `scratch`, except the keys that it trusts."""
    for name in ("lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    sources = scratch / "sources.list"
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    signed = f"[signed-by={keyring}] " if keyring.is_file() else ""
    sources.write_text("".join(f"deb {signed}{mirror} {suite} main\n" for suite in SUITES))
    settings = {
        "Dir::State::Lists": scratch / "lists",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "",  # `_apt` may not write where we download to
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def require_old_glibc(debs: Path) -> None:
    """Raises `UsageError` for a package whose programs ask for a newer C library than the node has."""
    with tempfile.TemporaryDirectory(prefix="sifkit-debs-") as scratch:
        for path in sorted(debs.glob("*.deb")):
            run("dpkg", "-x", str(path), str(Path(scratch, path.stem)))
        for file in Path(scratch).rglob("*"):
            if file.is_file() and not file.is_symlink() and (needs := glibc_of(file.read_bytes())) > NODE_GLIBC:
                said = ".".join(str(part) for part in needs)
                raise UsageError(
                    f"{file.relative_to(scratch)} needs glibc {said}", "take that package of an older suite"
                )


def glibc_of(content: bytes) -> tuple[int, int]:
    """The newest GLIBC_x.y that an ELF file names; (0, 0) for other files."""
    if not content.startswith(b"\x7fELF"):
        return (0, 0)
    named = {(int(a), int(b)) for a, b in re.findall(rb"\0GLIBC_(\d+)\.(\d+)", content)}
    return max(named, default=(0, 0))


# ---------------------------------------------------------------------------------------------- Python packages


@dataclass(frozen=True)
class Pin:
    """One package of a resolution."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def gather_wheels(into: Path) -> None:
    """What the node's environment lacks of LLaMA-Factory and DeepSpeed, and LLaMA-Factory's source archive."""
    wanted = [f"llamafactory=={LLAMAFACTORY}", f"deepspeed=={DEEPSPEED}", f"torch=={TORCH}"]
    there = node_packages(NODE.read_text())
    missing = [pin for pin in resolve(wanted, there) if not on_the_node(pin, there)]
    download(missing, into)
    own = [leave_out(name, into) for name in LEFT_OUT]
    source = f"llamafactory-{LLAMAFACTORY}.tar.gz"
    if not (into / source).is_file():
        run(*PIP, "download", "-q", "--no-deps", "--no-binary", ":all:", "--ignore-requires-python",
            "-d", str(into), f"llamafactory=={LLAMAFACTORY}")  # fmt: skip
    keep_only(into, [*of_pins(missing, into), *own, into / source])


def gather_sifkit(into: Path, shared: Path) -> None:
    """What sifkit runs with and is not among the `shared` wheels."""
    pins = [pin for pin in resolve([str(ROOT / "pyproject.toml"), *TEST_TOOLS], {}) if pin.name not in NOT_THERE]
    lacking = [pin for pin in pins if not of_pins([pin], shared)]
    download(lacking, into)
    names = into / "requirements.txt"
    names.write_text("".join(f"{pin}\n" for pin in pins))
    keep_only(into, [*of_pins(lacking, into), names])


def node_packages(text: str) -> dict[str, str | None]:
    """Version by normalised name; None where only the name is known."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    split = (line.partition("==") for line in lines if line)
    return {canonicalize_name(name): version or None for name, _, version in split}


def on_the_node(pin: Pin, there: dict[str, str | None]) -> bool:
    """Whether the node has it, in this version where its version is known."""
    if WITH_THE_NODE.match(pin.name):
        return True
    return pin.name in there and there[pin.name] in (None, pin.version)


def resolve(wanted: Iterable[str], there: dict[str, str | None]) -> list[Pin]:
    """uv's answer for the node; versions that it has are kept where they fit (an output file's pins are preferred)."""
    with tempfile.TemporaryDirectory(prefix="sifkit-gather-") as scratch:
        output, overrides, lines = Path(scratch, "out.txt"), Path(scratch, "overrides.txt"), Path(scratch, "in.txt")
        output.write_text("".join(f"{name}=={version}\n" for name, version in there.items() if version))
        overrides.write_text("".join(f"{name} ; sys_platform == 'never'\n" for name in LEFT_OUT))
        files = [word for word in wanted if word.endswith(".toml")]
        lines.write_text("".join(f"{word}\n" for word in wanted if word not in files))
        run(find_uv_bin(), "pip", "compile", "-q", "--no-config", *files, str(lines), "--output-file", str(output),
            "--override", str(overrides), "--python-version", PYTHON, "--python-platform", PLATFORM,
            "--no-header", "--no-annotate")  # fmt: skip
        return [
            Pin(canonicalize_name(a), b) for a, _, b in (line.partition("==") for line in output.read_text().split())
        ]


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def download(pins: list[Pin], into: Path) -> None:
    """One wheel for each; what is already there is not fetched again."""
    missing = [pin for pin in pins if not of_pins([pin], into)]
    for pin in (pin for pin in missing if pin.name in BUILT_HERE):
        run(*PIP, "wheel", "-q", "--no-deps", "-w", str(into), str(pin), env={"DS_BUILD_OPS": "0"})
    fetched = [str(pin) for pin in missing if pin.name not in BUILT_HERE]
    if fetched:
        tags = [word for glibc in (28, 27, 26, 24, 17) for word in ("--platform", f"manylinux_2_{glibc}_x86_64")]
        tags += ["--platform", "manylinux2014_x86_64", "--platform", "manylinux1_x86_64"]
        run(*PIP, "download", "-q", "--no-deps", "--only-binary=:all:", "--python-version", PYTHON,
            "--implementation", "cp", *tags, "-d", str(into), *fetched)  # fmt: skip


def of_pins(pins: list[Pin], directory: Path) -> list[Path]:
    """The files of these packages that are there."""
    wanted = {(pin.name, pin.version) for pin in pins}
    return [path for path in directory.glob("*.whl") if _name_and_version(path) in wanted]


def _name_and_version(path: Path) -> tuple[str, str]:
    parse = parse_wheel_filename if path.suffix == ".whl" else parse_sdist_filename
    name, version = parse(path.name)[:2]
    return str(name), str(version)


def leave_out(name: str, into: Path) -> Path:
    """A wheel of the newest version that LLaMA-Factory takes, with no module in it."""
    version = f"{newest_allowed(requirements_of(into), name)}+left.out"
    stem = f"{name.replace('-', '_')}-{version}"
    path, info = into / f"{stem}-py3-none-any.whl", f"{stem}.dist-info"
    summary = "no files: left out of the packages carried to a node without network"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: {summary}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: gather.py\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},sha256={_record_hash(text)},{len(text.encode())}\n" for file, text in files.items())
    with zipfile.ZipFile(path, "w") as wheel:
        for file, text in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}.items():
            wheel.writestr(zipfile.ZipInfo(file), text)  # its date is fixed, so that a lock made of it stays current
    return path


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def requirements_of(wheels: Path) -> list[Requirement]:
    """What LLaMA-Factory's wheel requires."""
    path = next(wheels.glob(f"llamafactory-{LLAMAFACTORY}-*.whl"))
    with zipfile.ZipFile(path) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        texts = message_from_bytes(wheel.read(name)).get_all("Requires-Dist") or []
    return [Requirement(text) for text in texts]


def newest_allowed(requirements: list[Requirement], name: str) -> str:
    """The upper bound of a package's range; 999 where it has none. Raises `UsageError` if nothing requires it."""
    found = next((wanted for wanted in requirements if canonicalize_name(wanted.name) == name), None)
    if found is None:
        raise UsageError(f"LLaMA-Factory {LLAMAFACTORY} does not require {name}", "take it out of LEFT_OUT")
    return next((bound.version for bound in found.specifier if bound.operator == "<="), "999")


# ---------------------------------------------------------------------------------------------- acting


def keep_only(directory: Path, wanted: Iterable[Path]) -> None:
    """Remove what an earlier version of the lists brought."""
    keep = set(wanted)
    for path in directory.iterdir():
        if path not in keep:
            path.unlink()


def run(*argv: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Raises `CommandFailed` with the program's last lines."""
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise CommandFailed(f"{' '.join(argv[:4])} … failed:\n{tail}", returncode=done.returncode)


if __name__ == "__main__":
    sys.exit(main())
