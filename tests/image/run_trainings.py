"""Runs inside an image, in a checkout: start each training YAML as `llamafactory-cli train` does, and say how it ends.

python3 run_trainings.py ANSWER.json YAML…
"""

# mypy: ignore-errors
import json
import os
import sys
import traceback
from pathlib import Path


def main(answer, *configs):
    """One process a config; what takes long, the imports, is done once before they part."""
    import llamafactory.train.tuner  # noqa: F401

    ends = {config: started(config) for config in configs}
    Path(answer).write_text(json.dumps(ends), encoding="utf-8")


def started(config):
    """The exit code, and what was printed."""
    log = Path(config).with_suffix(".log")
    child = os.fork()
    if child == 0:
        run(config, log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "said": log.read_text(encoding="utf-8", errors="replace")}


def run(config, log):
    """Never returns."""
    code = 1
    try:
        with log.open("w", buffering=1, encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            from llamafactory.train.tuner import run_exp

            sys.argv = ["llamafactory-cli", config]
            run_exp()
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


main(*sys.argv[1:])
