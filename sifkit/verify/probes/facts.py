"""What `sifkit check` needs to know of an image. Runs inside the container, in an environment that is the image's own.

    python3 facts.py ANSWER.json

Standard library and pyelftools (bound in) only. Imports are tried in children, side by side: one that kills its
interpreter, or never ends, is an answer, and the rest is answered all the same.
"""

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor

sys.path.append(os.environ.get("SIFKIT_LIBRARIES", "/sifkit/libraries"))

import elf

FORMAT = 1  # of the answer: one of another format is asked again
TIMEOUT = 240  # seconds of one child

PARSER, TUNER = "llamafactory.hparams.parser", "llamafactory.train.tuner"
WITH_TORCH = ("torchaudio", "torchvision")
# Tried where their distribution is installed.
OPTIONAL = {
    "deepspeed": "deepspeed",
    "flash-attn": "flash_attn",
    "bitsandbytes": "bitsandbytes",
    "liger-kernel": "liger_kernel.transformers",
    "vllm": "vllm",
}
PROGRAMS = ("gcc", "cc", "clang", "g++", "git", "ninja", "ldconfig")
LIBRARIES = ("libibverbs.so.1", "libmlx5.so.1", "librdmacm.so.1")

# What Apptainer, the shell and Python put there, and the image does not say. Proxies are the host's, and may hold
# passwords: Apptainer lets them through in spite of --cleanenv.
_NOT_THE_IMAGES = re.compile(r"(APPTAINER|SINGULARITY|SIFKIT)_\w+|HOME|USER|LOGNAME|PWD|OLDPWD|SHLVL|_|TERM|PS1|"
                             r"USER_PATH|PROMPT_COMMAND|LC_CTYPE|(?i:\w+_proxy)")  # fmt: skip


def main(answer_path):
    """Ask, and write the answer."""
    packages = _packages()
    optional = [module for name, module in OPTIONAL.items() if name in packages]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(answer_path))) as folder:
        with ThreadPoolExecutor() as pool:
            groups = ((PARSER, TUNER), (*WITH_TORCH, *optional))
            tried = [pool.submit(_try_imports, group, os.path.join(folder, group[0])) for group in groups]
            answer = {"format": FORMAT, "packages": packages, **_system(), "elf": _elf()}
        imports = [each.result() for each in tried]
    answer["imports"] = {name: error for found, _ in imports for name, error in found.items()}
    answer.update(_with_templates(imports[0][1]))
    with open(answer_path + ".partial", "w", encoding="utf-8") as file:
        json.dump(answer, file)
    os.replace(answer_path + ".partial", answer_path)


def _with_templates(parser):
    """The names that `template` may have stand in a registry, not in the argument's type."""
    for argument in parser.get("arguments", ()):
        if argument["name"] == "template" and not argument["choices"]:
            argument["choices"] = parser.get("templates", [])
    return parser


def _packages():
    """Version by normalised name; of doubles the one that imports find."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return dict(sorted(found.items()))


def _system():
    folders = _loader_folders()
    return {
        "python": platform.python_version(),
        "glibc": _glibc(),
        "programs": _programs(),
        "environment": {name: value for name, value in os.environ.items() if not _NOT_THE_IMAGES.fullmatch(name)},
        "python_headers": os.path.isfile(os.path.join(sysconfig.get_paths()["include"], "Python.h")),
        "libraries": [name for name in LIBRARIES if any(os.path.exists(os.path.join(at, name)) for at in folders)],
        "cuda_compat": [at for at in folders if _is_compat(at)],
    }


def _glibc():
    try:
        return os.confstr("CS_GNU_LIBC_VERSION").split()[-1]
    except (ValueError, AttributeError):  # another C library
        return platform.libc_ver()[1]


def _programs():
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # Triton calls /sbin/ldconfig by its path
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    found["nvcc"] = _nvcc()
    return {name: at for name, at in found.items() if at}


def _nvcc():
    """Where torch looks for it. Source: torch/utils/cpp_extension.py, _find_cuda_home."""
    on_path = shutil.which("nvcc")
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    home = home or (os.path.dirname(os.path.dirname(on_path)) if on_path else "/usr/local/cuda")
    program = os.path.join(home, "bin", "nvcc")
    return program if os.path.exists(program) else None


def _loader_folders():
    """Where the loader looks, in its order."""
    machine = "/usr/lib/" + platform.machine() + "-linux-gnu"
    return list(dict.fromkeys([*elf.library_path(), *elf.cache_folders(), *elf.SYSTEM_DIRS, machine]))


def _is_compat(folder):
    """Whether it holds a libcuda of the image's own, which would be taken before the host's."""
    names = os.listdir(folder) if os.path.isdir(folder) and not folder.startswith("/.singularity.d") else ()
    return any(name.startswith("libcuda.so") for name in names)


def _elf():
    return elf.read_environment(elf.interpreter_trees(), sys.executable, [*elf.library_path(), *elf.cache_folders()])


# ---------------------------------------------------------------------------------------------- imports


def _try_imports(modules, answers):
    """Why each module did not import ("": it did), and what LLaMA-Factory's parser takes.

    A child that dies at one module is followed by another for the rest.
    """
    found, parser, left = {}, {}, list(modules)
    while left:
        path = f"{answers}.{len(left)}"  # each its own: the last line of one that died may be torn
        said = _run_child(left, path)
        for answer in _read(path):
            if "parser" in answer:
                parser.update(answer["parser"])
                if "arguments" not in parser:  # it imported, but does not tell what it takes
                    found[PARSER] = answer["error"]
            else:
                found[answer["module"]] = answer["error"]
        if left[0] not in found:  # it died, or could not even start
            found[left[0]] = said
        left = [module for module in left if module not in found]
    return found, parser


def _run_child(modules, answers):
    """Import the modules in turn; returns why the child died, if it did."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "imports.py")
    places = (
        "HOME",
        "HF_HOME",
        "TRITON_CACHE_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "XDG_CACHE_HOME",
        "MPLCONFIGDIR",
        "TMPDIR",
    )
    folder = os.path.dirname(answers)
    environment = {**os.environ, **dict.fromkeys(places, folder), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen([sys.executable, program, answers, *modules], env=environment, cwd=folder,
                                 stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)  # fmt: skip
        try:
            ended = child.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            return f"did not end in {TIMEOUT} s"
        log.seek(max(0, log.tell() - 4000))
        said = log.read().decode("utf-8", "replace").rstrip()
    why = f"ended by signal {-ended}" if ended < 0 else f"ended with code {ended}"
    return said + "\n" + why if said else why


def _read(path):
    if not os.path.exists(path):
        return []
    with open(path, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if line.endswith("\n")]  # the last may be torn
    return [json.loads(line) for line in lines]


if __name__ == "__main__":
    main(sys.argv[1])
