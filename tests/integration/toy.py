"""A wheelhouse of toy packages with real names, so that the whole real chain runs in seconds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

TOYS: dict[str, tuple[str, dict[str, str]]] = {
    "torch": ("2.9.1", {"torch/__init__.py": "from torch import version\n__version__ = '2.9.1+cu128'\n", "torch/version.py": "cuda = '12.8'\n"}),
    "torchvision": ("0.24.1", {"torchvision/__init__.py": ""}),
    "torchaudio": ("2.9.1", {"torchaudio/__init__.py": ""}),
    "llamafactory": (
        "0.9.5",
        {
            "llamafactory/__init__.py": "",
            "llamafactory/extras/__init__.py": "",
            "llamafactory/extras/env.py": "VERSION = '0.9.5'\n",
            "llamafactory/train/__init__.py": "",
            "llamafactory/train/tuner.py": "",
            "llamafactory/cli.py": "import sys\ndef main():\n    print('toy', *sys.argv[1:])\n",
        },
    ),
}  # fmt: skip

SPEC = """\
name: toy
base: debian-trixie
python: "3.13"
torch: {version: 2.9.1, cuda: "12.8"}
llamafactory: {version: 0.9.5}
env: {GREETING: "it's $HOME"}
"""


def write_wheel(directory: Path, name: str, toy: tuple[str, dict[str, str]] | None = None) -> None:
    """A wheel that installs: one of the toys, or the version and files that are given."""
    version, files = toy or TOYS[name]
    info = f"{name}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: toy\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if name == "llamafactory":
        metadata[f"{info}/entry_points.txt"] = "[console_scripts]\nllamafactory-cli = llamafactory.cli:main\n"
    everything = {**files, **metadata}
    record = "".join(f"{path},,\n" for path in [*everything, f"{info}/RECORD"])
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in {**everything, f"{info}/RECORD": record}.items():
            wheel.writestr(path, text)


def make_wheelhouse(directory: Path) -> Path:
    """The toys, and the real uv and setuptools for the image's platform."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in TOYS:
        write_wheel(directory, name)
    platform = ["--only-binary", ":all:", "--platform", "manylinux_2_17_x86_64", "--platform", "any"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *platform, "--dest", str(directory), "uv", "setuptools"], check=True)
    return directory


def make_project(root: Path, wheelhouse: Path) -> Path:
    """A project with the toy's spec, and a site file that names the wheelhouse."""
    (root / "definitions").mkdir(parents=True)
    (root / "definitions" / "toy.yaml").write_text(SPEC)
    (root / "site.yaml").write_text(f"python_index: {{wheelhouse: {wheelhouse}}}\n")
    return root
