"""Each module imported in turn, and what LLaMA-Factory's parser takes once that is there. Runs inside the container.

    python3 imports.py ANSWER.jsonl MODULE …

One line an answer, written at once: an import that kills the interpreter leaves those before it.
"""

import importlib
import json
import sys
import traceback

PARSER = "llamafactory.hparams.parser"


def main(answer_path, modules):
    """Ask, and write the answers."""
    with open(answer_path, "a", encoding="utf-8") as file:
        for module in modules:
            error = _attempt(lambda module=module: importlib.import_module(module))
            _write(file, {"module": module, "error": error})
            if module == PARSER and not error:
                for part in ("arguments", "names"):
                    _write(file, _asked(part))


def _asked(part):
    answer = {}

    def ask():
        import parser_facts

        answer.update(getattr(parser_facts, part)())

    return {"parser": answer, "error": _attempt(ask)}


def _attempt(action):
    """ "" when it went well, else the end of the traceback."""
    try:
        action()
    except BaseException:  # SystemExit too: whatever stops this import is the answer
        return traceback.format_exc()[-4000:]
    return ""


def _write(file, answer):
    file.write(json.dumps(answer) + "\n")
    file.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
