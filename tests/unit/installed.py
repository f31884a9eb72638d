"""Virtual environments of this Python, and packages in them as installers leave those."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from sifkit.bytecode import site_packages

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SITE = site_packages(PYTHON)


def environment(directory: Path) -> Path:
    """An empty one, with a space in its name."""
    root = directory / "an environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    return root


def install(venv: Path, name: str, files: Mapping[str, str]) -> Path:
    """Files relative to site-packages, listed in RECORD. Returns the package's dist-info directory."""
    info = venv / SITE / f"{name}-1.0.dist-info"
    info.mkdir()
    for path, text in files.items():
        (venv / SITE / path).parent.mkdir(parents=True, exist_ok=True)
        (venv / SITE / path).write_text(text)
    (info / "RECORD").write_text("".join(f'"{path}",,\n' for path in files) + f"{info.name}/RECORD,,\n")
    return info
