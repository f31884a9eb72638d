"""What is in this image: distributions, shared objects, compiler, imports. Runs inside the container.

    python3 image.py ANSWER.json [MODULE …]

Standard library and pyelftools (bound in) only. The answer is written before the imports and again
after each, so that an import that kills the interpreter leaves a trace of how far it came.
"""

# Tens of thousands of files: os is several times faster than pathlib.

import importlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback

import elf


def main(answer_path, modules):
    """Ask, and write the answer."""
    answer = {
        "python": platform.python_version(),
        "prefix": sys.prefix,
        "libc": platform.libc_ver()[1],
        "user_site": bool(site.ENABLE_USER_SITE),
        "path": sys.path[1:],
        "distributions": _distributions(),
        "compiler": _compiler(),
        "nvcc": None,
        "imports": [],
        "outside": [],
    }
    answer["elf"] = elf.read_environment(
        elf.interpreter_trees(), sys.executable, [*elf.library_path(), *elf.cache_folders()]
    )
    answer["nvcc"] = _nvcc((answer["elf"]["torch"] or {}).get("architectures") or [])
    _write(answer_path, answer)
    for module in modules:
        answer["importing"] = module
        _write(answer_path, answer)
        answer["imports"].append(_try_import(module))
    answer.pop("importing", None)
    answer["outside"] = _modules_outside()
    _write(answer_path, answer)


def _write(path, answer):
    with open(path + ".partial", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace(path + ".partial", path)


def _distributions():
    found = []
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            found.append({"name": name, "version": distribution.version, "path": str(distribution.locate_file(""))})
    return found


def _compiler():
    """Build a small extension, as Triton does for each kernel launcher: this needs cc, libc's and Python's headers."""
    program = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    if program is None:
        return {"program": None, "works": False, "said": "no gcc, clang or cc on PATH"}
    with tempfile.TemporaryDirectory(dir=os.environ.get("SIFKIT_WORK")) as folder:
        source = os.path.join(folder, "probe.c")
        with open(source, "w") as file:
            file.write("#include <Python.h>\n#include <stdio.h>\nint probe(void) { return PY_MAJOR_VERSION; }\n")
        command = [program, source, "-O1", "-shared", "-fPIC", "-I" + os.path.dirname(header)]
        done = subprocess.run([*command, "-o", os.path.join(folder, "probe.so")], capture_output=True, text=True)
    return {"program": program, "works": done.returncode == 0, "said": done.stderr[-2000:]}


# What torch's own headers include; cudart is linked as torch.utils.cpp_extension does.
_CUDA_SOURCE = """
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cusolverDn.h>
#include <cusparse.h>
__global__ void add(__nv_bfloat16 *x) { x[threadIdx.x] += __float2bfloat16(1.0f); }
extern "C" int probe(__nv_bfloat16 *x) { add<<<1, 32>>>(x); return (int)cudaGetLastError(); }
"""


def _nvcc(architectures):
    """nvcc where torch.utils.cpp_extension looks for it, and what it says to a kernel for the newest architecture.

    None: there is none. Source: torch/utils/cpp_extension.py, _find_cuda_home.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc")
    home = home or (os.path.dirname(os.path.dirname(found)) if found else "/usr/local/cuda")
    program = os.path.join(home, "bin", "nvcc")
    if not os.path.exists(program):
        return None
    version = subprocess.run([program, "--version"], capture_output=True, text=True)
    release = re.search(r"release (\d+\.\d+)", version.stdout)
    binary = [name for name in architectures if re.match(r"sm_\d+$", name)]
    with tempfile.TemporaryDirectory(dir=os.environ.get("SIFKIT_WORK")) as folder:
        source = os.path.join(folder, "probe.cu")
        with open(source, "w") as file:
            file.write(_CUDA_SOURCE)
        command = [program, source, "-shared", "-Xcompiler", "-fPIC", "-L" + os.path.join(home, "lib64"), "-lcudart"]
        command += ["-arch=" + binary[-1]] if binary else []
        done = subprocess.run([*command, "-o", os.path.join(folder, "probe.so")], capture_output=True, text=True)
    said = (done.stdout + done.stderr)[-2000:]
    return {"program": program, "release": release and release[1], "works": done.returncode == 0, "said": said}


def _try_import(module):
    started = time.monotonic()
    error = None
    try:
        importlib.import_module(module)
    except BaseException:  # SystemExit too: whatever stops this import is the answer
        error = traceback.format_exc()
    return {"module": module, "seconds": time.monotonic() - started, "error": error}


def _modules_outside():
    """Loaded modules whose file belongs neither to the environment, nor to the system's Python, nor to this probe.

    Files that a module wrote itself into the temporary directory (torch's remote modules) are not foreign.
    """
    paths = sysconfig.get_paths()
    inside = [
        sys.prefix,
        sys.base_prefix + "/lib",
        sys.base_prefix + "/local/lib",  # Debian's place for what an administrator installed
        paths["stdlib"],
        paths["platstdlib"],
        tempfile.gettempdir(),
        "/sifkit",
    ]
    inside = {folder.rstrip("/") + "/" for base in inside for folder in (base, os.path.realpath(base))}
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return [
        {"module": name, "file": file}
        for name, file in files.items()
        if isinstance(file, str) and os.path.isabs(file) and not any(file.startswith(folder) for folder in inside)
    ]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
