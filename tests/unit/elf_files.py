"""Real shared objects, made by the host's compiler, and a Python environment to put them into."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

OLD_ABI = "-D_GLIBCXX_USE_CXX11_ABI=0"
NEW_ABI = "-D_GLIBCXX_USE_CXX11_ABI=1"

# As many of torch's functions as extensions use in these tests; the second returns a string, which marks its name.
C10 = """
#include <string>
namespace c10 {
namespace detail { void torchCheckFail(const char*, const char*, unsigned, const std::string&) {} }
std::string toStr(int) { return {}; }
void GetDevice() {}
}
"""
CHECK_FAIL = """
#include <string>
namespace c10 { namespace detail { void torchCheckFail(const char*, const char*, unsigned, const std::string&); } }
void fail(std::string text) { c10::detail::torchCheckFail("", "", 1, text); }
"""

VERSION_PY = "from typing import Optional\n__version__ = '2.9.1+cu128'\ndebug = False\ncuda: Optional[str] = '12.8'\n"
FLAGS = "sm_70 sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"


def compiled(target: Path, source: str, *options: str) -> Path:
    """A shared object from C++; options come last, so that libraries may be among them."""
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler here to make ELF files with")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = target.with_name(target.name + ".cc")
    text.write_text(source)
    command = ["g++", "-shared", "-fPIC", "-O1", "-o", str(target), str(text), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    text.unlink()
    assert done.returncode == 0, done.stderr
    return target


class Environment:
    """A virtual environment as far as an audit looks at one."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.packages = prefix / "lib" / "python3.13" / "site-packages"
        self.packages.mkdir(parents=True)
        (prefix / "pyvenv.cfg").write_text(f"home = {prefix.parent}/base/bin\ninclude-system-site-packages = false\n")

    def library(self, path: str, source: str = "void f() {}", *options: str) -> Path:
        """A shared object at a place in site-packages."""
        return compiled(self.packages / path, source, *options)

    def torch(self, *options: str, source: str = C10) -> None:
        """A torch of two libraries, with the C++11 ABI unless options say otherwise."""
        self.library("torch/lib/libc10.so", source, *(options or (NEW_ABI,)), "-Wl,-soname,libc10.so")
        self.library("torch/lib/libtorch_python.so", f'extern "C" const char flags[] = "ipc_h{FLAGS}";')
        (self.packages / "torch" / "version.py").write_text(VERSION_PY)

    def with_torch(self) -> tuple[str, ...]:
        """Linker options of an extension."""
        return ("-L", str(self.packages / "torch" / "lib"), "-Wl,--no-as-needed", "-lc10")

    def record(self, package: str, version: str, *paths: str) -> None:
        """What an installer leaves of a distribution."""
        directory = self.packages / f"{package}-{version}.dist-info"
        directory.mkdir()
        (directory / "RECORD").write_text("".join(f"{path},sha256=x,1\n" for path in paths))
