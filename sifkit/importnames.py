"""Shell text that writes down which names a package is imported by, so that nobody has to look for them.

transformers asks importlib.metadata for the names of all packages whenever it is imported. They stand in
top_level.txt, which setuptools writes; of a package without it, each file in RECORD is looked for. In the default image
these are 56 of 136 packages, and 11,800 files: docs/benchmarks.md.
"""

from __future__ import annotations

from shlex import quote

from sifkit.bytecode import site_packages

# packages_distributions is asked itself, so that its answer is the same with and without these files.
_WRITE = """\
# Which names a package is imported by: who asks importlib.metadata for them, as transformers does, else waits until
# each file of each package without a top_level.txt was looked for. (Python takes indented lines only below something.)
{python} -I -c 'if "indented":
    import base64, hashlib, sys
    from importlib.metadata import Distribution, packages_distributions
    from pathlib import Path
    names = {{}}
    for name, packages in packages_distributions().items():
        for package in packages:
            names.setdefault(package, set()).add(name)
    for info in Path(sys.argv[1]).glob("*.dist-info"):
        record, listed, whole = info / "RECORD", info / "top_level.txt", info / "RECORD.new"
        found = names.get(Distribution.at(info).metadata["Name"])
        if not found or listed.exists() or not record.exists():
            continue
        text = "".join(name + "\\n" for name in sorted(found)).encode()
        listed.write_bytes(text)
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
        row = f"{{info.name}}/{{listed.name}},sha256={{digest}},{{len(text)}}\\n"
        whole.write_bytes(record.read_bytes().rstrip() + b"\\n" + row.encode())
        whole.replace(record) # never written into: it may be a link to what a cache keeps
' {site_packages}"""


def write_import_names(venv: str, python: str) -> str:
    """Lines that give each package of a virtual environment a top_level.txt, and RECORD a row of it.

    `python`: its minor version.
    """
    place = quote(f"{venv}/{site_packages(python)}")
    return _WRITE.format(python=quote(f"{venv}/bin/python"), site_packages=place)
