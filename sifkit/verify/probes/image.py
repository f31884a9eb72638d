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
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
import traceback

SYSTEM_DIRS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


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
        "imports": [],
        "outside": [],
    }
    started = time.monotonic()
    answer["objects"] = _objects(_library_trees())
    answer["libraries"] = _library_names(answer["objects"])
    answer["objects_seconds"] = time.monotonic() - started
    _write(answer_path, answer)
    for module in modules:
        answer["importing"] = module
        _write(answer_path, answer)
        answer["imports"].append(_try_import(module))
    answer.pop("importing", None)
    answer["outside"] = _modules_outside()
    answer.update(_torch_facts())
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


def _library_trees():
    """Where Python packages with shared objects live: the environment, and the interpreter's own."""
    paths = sysconfig.get_paths()
    trees = [sys.prefix, paths["platlib"], paths["purelib"], paths["platstdlib"]]
    trees = [os.path.realpath(tree) for tree in trees if os.path.isdir(tree)]
    trees = [tree for tree in dict.fromkeys(trees) if tree not in ("/", "/usr")]
    return [tree for tree in trees if not any(tree != other and tree.startswith(other + "/") for other in trees)]


def _objects(trees):
    """Every ELF file with a dynamic section: where it is, what it is called, what it needs and where it looks."""
    found = []
    for tree in trees:
        for folder, _, files in os.walk(tree):
            for name in files:
                path = os.path.join(folder, name)
                if not _is_library(name) or os.path.islink(path):
                    continue
                facts = _dynamic_section(path)
                if facts:
                    found.append(facts)
    return found


def _is_library(name):
    return name.endswith(".so") or ".so." in name


def _dynamic_section(path):
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    with open(path, "rb") as file:
        if file.read(4) != b"\x7fELF":
            return None
        try:
            elf = ELFFile(file)
            facts = {
                "path": path,
                "machine": elf["e_machine"],
                "soname": None,
                "needed": [],
                "rpath": [],
                "runpath": [],
            }
            for segment in elf.iter_segments("PT_DYNAMIC"):
                for tag in segment.iter_tags():
                    _note(tag, facts)
        except ELFError as error:
            return {"path": path, "machine": "", "soname": None, "needed": [], "rpath": [], "runpath": [],
                    "broken": str(error) or type(error).__name__}  # fmt: skip
    return facts


def _note(tag, facts):
    kind = tag.entry.d_tag
    if kind == "DT_NEEDED":
        facts["needed"].append(tag.needed)
    elif kind == "DT_SONAME":
        facts["soname"] = tag.soname
    elif kind in ("DT_RPATH", "DT_RUNPATH"):
        facts[kind[3:].lower()] = [part for part in getattr(tag, kind[3:].lower()).split(":") if part]


def _library_names(objects):
    """Names under which the loader can find a library: the loader's own directories, those of its cache,
    LD_LIBRARY_PATH, absolute run paths, and every directory of the environment that holds one.

    The last is wider than what the loader searches, because packages load their neighbours' libraries
    by path before their own (torch does so with nvidia-*-cu12), and a loaded soname satisfies DT_NEEDED.
    """
    folders = set(SYSTEM_DIRS) | {os.path.dirname(facts["path"]) for facts in objects}
    folders |= {part for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part}
    folders |= {part for facts in objects for part in facts["rpath"] + facts["runpath"] if part.startswith("/")}
    ldconfig = shutil.which("ldconfig") or "/sbin/ldconfig"
    if os.path.exists(ldconfig):
        said = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=False).stdout
        folders |= {os.path.dirname(line.split("=> ")[1]) for line in said.splitlines() if "=> " in line}
    multiarch = sysconfig.get_config_var("MULTIARCH")
    if multiarch:
        folders |= {"/lib/" + multiarch, "/usr/lib/" + multiarch}
    names = {name for folder in folders if os.path.isdir(folder) for name in os.listdir(folder) if _is_library(name)}
    return sorted(names | {facts["soname"] for facts in objects if facts["soname"]})


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


def _torch_facts():
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "_C"):
        return {"torch_cuda": None, "architectures": []}
    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()  # get_arch_list() is empty where no GPU is
    return {"torch_cuda": torch.version.cuda, "architectures": (flags or "").split()}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
