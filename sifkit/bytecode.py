"""Shell text that makes an image's bytecode the same at every build, and valid whatever the time of its source.

The programs are Python's standard library alone: they run in any base, also where plain Apptainer or Docker builds.
"""

from __future__ import annotations

from shlex import quote

# In one process, what Python 3.13 compiled before decides whether equal constants of a later file are kept once or
# twice: PyAV's video/frame.py came out in three sizes. uv's --compile-bytecode gives its processes whatever is next,
# and a process a file takes three times as long as these hundreds: docs/benchmarks.md.
_COMPILE = """\
# Bytecode, on all processors. What a process compiled before shows in what it compiles next, so that every hundred
# files of a package get one of their own. Tests get none: who imports one compiles it then. (Python takes
# indented lines only below something.)
{python} -I -W ignore -c 'if "indented":
    import csv, glob, os, sys
    from contextlib import suppress
    from py_compile import PycInvalidationMode, PyCompileError, compile
    site, mode = sys.argv[1], PycInvalidationMode[sys.argv[2]]
    def sources(record):
        with open(record, encoding="utf-8", newline="") as rows:
            names = sorted(row[0] for row in csv.reader(rows) if row and row[0].endswith(".py"))
        return [one for one in names if one[0] not in "./" and not {{"test", "tests"}} & set(one.split("/")[:-1])]
    def compile_all(names):
        for name in names:
            with suppress(PyCompileError): # a template, or not for this Python
                compile(os.path.join(site, name), doraise=True, invalidation_mode=mode)
    packages = [sources(record) for record in sorted(glob.glob(site + "/*.dist-info/RECORD"))]
    parts = [names[at : at + 100] for names in packages for at in range(0, len(names), 100)]
    total, done, running, bad = sum(map(len, parts)), 0, 0, 0
    processors = len(os.sched_getaffinity(0))
    for part in parts + [None] * processors:
        if running == processors or (running and not part):
            bad += os.wait()[1] != 0
            running -= 1
        if part and os.fork() == 0:
            code = 1
            try:
                compile_all(part)
                code = 0
            finally:
                os._exit(code)
        if part:
            running += 1
            done += len(part)
            if done == total or done // 1000 > (done - len(part)) // 1000:
                print(f"bytecode: {{done}} of {{total}} files", flush=True)
    sys.exit(f"bytecode: {{bad}} processes failed" if bad else 0)
' {site_packages} {mode}"""

# PEP 552: after the magic number flags (1: valid without a look at the source), then the source's hash in place of its
# time and size. The code itself stays as it was compiled, which is faster than to compile it anew.
VALID_FOR_GOOD = """\
# Python's bytecode is valid for its source's time, but times in an image are made all the same. This makes it valid
# for good. (Not in /tmp, which is the host's. Python takes indented lines only below something.)
find /usr /opt -path '*/__pycache__/*.pyc' | /usr/bin/python3 -c 'if "indented":
    import os, struct, sys
    from importlib.util import source_from_cache, source_hash
    for path in sys.stdin.read().splitlines():
        source = source_from_cache(path)
        with open(path, "r+b") as pyc:
            if os.path.exists(source):
                now = os.stat(source)
                if pyc.read(16)[4:] == struct.pack("<3I", 0, int(now.st_mtime), now.st_size):
                    pyc.seek(4)
                    pyc.write(struct.pack("<I", 1) + source_hash(open(source, "rb").read()))
'"""


def site_packages(python: str) -> str:
    """Where packages are, relative to a virtual environment. `python`: its minor version."""
    return f"lib/python{python}/site-packages"


def compile_packages(venv: str, python: str, *, for_good: bool) -> str:
    """Lines that compile what a virtual environment's packages list in their RECORD.

    `python`: its minor version. `for_good`: valid without a look at the source; else for its time and size.
    """
    mode = "UNCHECKED_HASH" if for_good else "TIMESTAMP"
    place = quote(f"{venv}/{site_packages(python)}")
    return _COMPILE.format(python=quote(f"{venv}/bin/python"), site_packages=place, mode=mode)
