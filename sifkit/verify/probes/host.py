"""What of the host's GPUs reaches the container. Runs inside the container.

python3 host.py ANSWER.json
"""

import ctypes
import json
import sys
from pathlib import Path

LIBRARIES = ("libcuda.so.1", "libnvidia-ml.so.1", "libnvidia-ptxjitcompiler.so.1")


def main(answer_path):
    """Ask, and write the answer."""
    errors = {library: _load_error(library) for library in LIBRARIES}
    answer = {
        "libraries": errors,
        "cuinit": None if errors["libcuda.so.1"] else ctypes.CDLL("libcuda.so.1").cuInit(0),
        "loaded": _loaded("libcuda.so"),
        **_torch_facts(),
    }
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def _load_error(library):
    try:
        ctypes.CDLL(library)
    except OSError as error:
        return str(error)
    return None


def _loaded(name):
    """Files mapped into this process whose name holds `name`."""
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return sorted({line.split()[-1] for line in maps.splitlines() if name in line})


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
