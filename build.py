#!/usr/bin/env python3
"""python build.py [IMAGE …] [--list | --render | --verify] — the same as `sifkit build`.

Works with the system's Python on a bare node: it goes on in the project's own environment where that
exists, and else says the one command that makes it.
"""

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ENVIRONMENT = os.path.join(HERE, ".venv")


def main():  # type: () -> int
    """Go on in .venv where there is one; else run here, or say how to make it."""
    python = os.path.join(ENVIRONMENT, "bin", "python")
    if os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(ENVIRONMENT):
        os.execv(python, [python, os.path.abspath(__file__)] + sys.argv[1:])
    sys.path.insert(0, HERE)
    try:
        from sifkit.cli import main as sifkit
    except (ImportError, SyntaxError) as error:
        print("error: sifkit cannot start with %s: %s" % (sys.executable, error), file=sys.stderr)
        print("fix: make its environment once: make -C %s venv" % HERE, file=sys.stderr)
        return 3
    arguments = sys.argv[1:]
    if "--project" not in arguments and not os.path.isdir("definitions"):
        arguments = ["--project", HERE] + arguments
    return sifkit(["build"] + arguments)


if __name__ == "__main__":
    sys.exit(main())
