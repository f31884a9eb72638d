"""What of the host's GPUs reaches the container. Runs inside the container.

python3 host.py ANSWER.json
"""

import ctypes
import json
import os
import select
import signal
import sys
import time
from pathlib import Path

LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1")
BOUND = "/.singularity.d/libs"
LOAD_SECONDS = 20


def main(answer_path):
    """Ask, and write the answer. Libraries first: no thread runs yet, so that forking is safe."""
    errors = {library: load_error(library) for library in LIBRARIES}
    bound = {path.name: load_error(str(path)) for path in sorted(Path(BOUND).glob("*"))}
    answer = {
        "libraries": errors,
        "bound": bound,
        "device_files": {str(path): open_error(path) for path in device_files(Path("/dev"))},
        **(_no_driver() if errors["libcuda.so.1"] else _driver()),
        **_torch_facts(),
    }
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def load_error(library):
    """Why the loader does not take it, None if it does. Tried in a child: one that crashes is an answer too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _load_and_say(library, writer)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], LOAD_SECONDS)
    if not ready:
        os.kill(child, signal.SIGKILL)
    said = os.read(reader, 4096).decode(errors="replace")
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    if not ready:
        return f"does not come back after {LOAD_SECONDS} s"
    if os.WIFSIGNALED(status):
        return f"loading it crashes (signal {os.WTERMSIG(status)})"
    return None if said == "loaded" else said or f"loading it ends the program (status {status})"


def _load_and_say(library, writer):
    """In the child, which ends here."""
    try:
        ctypes.CDLL(library)
        said = "loaded"
    except OSError as error:
        said = str(error)
    os.write(writer, said.encode()[:4096])
    os._exit(0)


def device_files(directory):
    """Of the NVIDIA driver: the GPUs, its control files, and those that MIG devices are guarded with."""
    return sorted(path for path in (*directory.glob("nvidia*"), *directory.glob("nvidia-caps/*")) if not path.is_dir())


def open_error(path):
    """Why it cannot be opened, None if it can; a MIG capability is only read."""
    try:
        os.close(os.open(path, os.O_RDONLY if path.parent.name == "nvidia-caps" else os.O_RDWR))
    except OSError as error:
        return error.strerror
    return None


def _no_driver():
    return {"cuinit": None, "driver_cuda": None, "start_seconds": None, "loaded": []}


def _driver():
    """Start libcuda. Driver API: cuInit, cuDriverGetVersion (1000 × major + 10 × minor)."""
    libcuda, version, started = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0), time.monotonic()
    cuinit = libcuda.cuInit(0)
    seconds = time.monotonic() - started
    libcuda.cuDriverGetVersion(ctypes.byref(version))
    return {
        "cuinit": cuinit,
        "driver_cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "start_seconds": seconds,
        "loaded": _loaded("libcuda.so"),
    }


def _loaded(name):
    """Files mapped into this process whose name holds `name`."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if name in line})


def _torch_facts():
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", lambda: None)()
    facts = {"torch_cuda": torch.version.cuda, "architectures": (flags or "").split(), "torch_error": None}
    facts.update(device_count=0, devices=[])
    try:
        torch.cuda.init()
        facts["device_count"] = torch.cuda.device_count()
        facts["devices"] = [torch.cuda.get_device_name(index) for index in range(facts["device_count"])]
    except Exception as error:  # RuntimeError, AssertionError, AcceleratorError by version: its words are the answer
        facts["torch_error"] = f"{type(error).__name__}: {error}"
    return facts


if __name__ == "__main__":
    main(sys.argv[1])
