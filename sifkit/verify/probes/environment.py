"""What is in a Python environment of this host. Runs with that environment's own interpreter, isolated.

    ENVIRONMENT/bin/python -I environment.py

Standard library only, any Python 3. One JSON object, on the last line of standard output.
"""

import ast
import importlib.metadata
import json
import os
import re
import sys


def main():
    """Ask, and print the answer."""
    packages = _packages()
    answer = {
        "python": "{}.{}".format(*sys.version_info[:2]),
        "base_prefix": sys.base_prefix,
        "path": [folder for folder in sys.path if os.path.exists(folder)],
        "packages": packages,
        "torch_cuda": _torch_cuda(),
    }
    print(json.dumps(answer))


def _packages():
    """Version by name as packages write it; of doubles the one that imports find. Broken metadata has neither."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name and distribution.version:
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution.version)
    return found


def _torch_cuda():
    """`cuda` in torch/version.py, without importing torch: that takes seconds. None: no torch, or without CUDA."""
    for folder in sys.path:
        path = os.path.join(folder, "torch", "version.py")
        if os.path.isfile(path):
            with open(path, encoding="utf-8", errors="replace") as file:
                return _constant(file.read(), "cuda")
    return None


def _constant(source, name):
    """`cuda = '13.0'` or `cuda: Optional[str] = '13.0'`."""
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return ast.literal_eval(node.value)
    return None


if __name__ == "__main__":
    main()
