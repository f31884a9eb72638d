"""Which packages a Python imports: the first of each name on its path. Runs on both sides.

python3 versions.py ANSWER.json
"""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path


def main(answer_path):
    """Ask, and write the answer."""
    found = {}
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-").replace(".", "-")
        if name:
            found.setdefault(name, distribution.version)
    answer = {"python": platform.python_version(), "packages": found}
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
