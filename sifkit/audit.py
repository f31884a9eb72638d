"""Audit of an environment's compiled files: do they fit each other, the system, torch, and the site's GPUs?

The check that resolvers do not make: metadata says nothing of symbol versions, of torch's C++ ABI, or of GPUs. Needs no
GPU and starts nothing of what it looks at. Over an image this is part of `--verify`'s static level, too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

from sifkit.apptainer import Apptainer, Bind
from sifkit.causes import find_cause
from sifkit.compat.tables import Tables
from sifkit.errors import UsageError
from sifkit.run import Command, Runner
from sifkit.verify.checks import Check, Level, failed, failed_because, timed
from sifkit.verify.container import IN_LIBRARIES, Answer, Container
from sifkit.verify.elf import ElfFacts, judge_elf, parse_elf
from sifkit.verify.gpus import judge_architectures
from sifkit.verify.probes import elf


def audit_environment(
    prefix: Path, runner: Runner, tables: Tables, gpu_models: tuple[str, ...] = ()
) -> tuple[Check, ...]:
    """Audit a virtual or conda environment of this host, against this host's libraries. Runs nothing of it.

    LD_LIBRARY_PATH is not looked at: what needs it works in some shells and not in others.
    Raises `UsageError` if there is no Python environment at `prefix`.
    """
    return _judge(read_environment(prefix, runner), gpu_models, tables)


def audit_image(
    image: Path,
    apptainer: Apptainer,
    tables: Tables,
    gpu_models: tuple[str, ...] = (),
    binds: tuple[Bind, ...] = (),
) -> tuple[Check, ...]:
    """Audit the environment of the image's `python3`, in one container that imports no package of it.

    An image that does not start, or has no `python3`, is one failed check.
    """
    answer = read_image(image, apptainer, binds)
    if answer.facts is None:
        return (timed(_unread(answer), answer.seconds),)
    return _judge(parse_elf(answer.facts), gpu_models, tables)


def _judge(facts: ElfFacts, gpu_models: tuple[str, ...], tables: Tables) -> tuple[Check, ...]:
    architectures, cuda = (facts.torch.architectures, facts.torch.cuda) if facts.torch else ((), None)
    return (*judge_elf(facts), judge_architectures(architectures, cuda, gpu_models, tables))


def read_environment(prefix: Path, runner: Runner) -> ElfFacts:
    """The facts that `audit_environment` judges."""
    if not list(prefix.glob("lib*/python3*/site-packages")):
        raise UsageError(
            f"{prefix} is no Python environment: it has no lib/python3.*/site-packages",
            "name the directory that holds pyvenv.cfg, or a conda environment's",
        )
    trees = elf.outermost([str(prefix), *(str(folder) for folder in _systems_packages(prefix))])
    if not trees:
        raise UsageError(f"{prefix} is the system itself", "name a virtual environment, or a conda environment")
    folders = [*_own_folders(prefix), *_cache_folders(runner)]
    return parse_elf(elf.read_environment(trees, str(prefix / "bin" / "python"), folders))


def read_image(image: Path, apptainer: Apptainer, binds: tuple[Bind, ...] = ()) -> Answer:
    """The answer of probes/elf.py in the image, for `parse_elf`."""
    with tempfile.TemporaryDirectory(prefix="sifkit-audit-", dir=apptainer.runner.environ.get("TMPDIR")) as work:
        container = Container(apptainer, image, Path(work), nv=False, binds=binds)
        return container.ask("elf", log=Path(work) / "elf.log", env={"PYTHONPATH": IN_LIBRARIES})


def _unread(answer: Answer) -> Check:
    name = "the image starts"
    last = answer.said.strip().splitlines()[-1] if answer.said.strip() else "no output"
    known = find_cause(answer.said, "run")
    if known:
        return failed_because(Level.STATIC, name, last, known)
    return failed(
        Level.STATIC,
        name,
        last,
        "the image's python3 did not answer",
        "see that it is 3.10 or newer, as pyelftools needs: apptainer exec IMAGE python3 -V",
    )


# ---------------------------------------------------------------------------------------- places of an environment


def _own_folders(prefix: Path) -> list[str]:
    """Where the interpreter itself finds libraries: libpython, and conda's libstdc++."""
    return [str(folder / "lib") for folder in (prefix, _base(prefix)) if folder]


def _systems_packages(prefix: Path) -> Iterator[Path]:
    """The packages of the interpreter from which a virtual environment was made, if it sees them."""
    base = _base(prefix)
    if base and _settings(prefix).get("include-system-site-packages", "").lower() == "true":
        yield from base.glob("lib*/python3*/site-packages")
        yield from base.glob("lib*/python3*/dist-packages")
        yield from base.glob("local/lib*/python3*/dist-packages")


def _base(prefix: Path) -> Path | None:
    home = _settings(prefix).get("home")
    return Path(home).parent if home else None


def _settings(prefix: Path) -> dict[str, str]:
    """pyvenv.cfg; empty for an environment that is not virtual."""
    path = prefix / "pyvenv.cfg"
    if not path.is_file():
        return {}
    lines = (line.partition("=") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return {name.strip().lower(): value.strip() for name, _, value in lines}


def _cache_folders(runner: Runner) -> list[str]:
    """The folders of this host's loader cache; none on a system without ldconfig, or without a cache."""
    ldconfig = runner.which("ldconfig")
    said = runner.run(Command((ldconfig, "-p")), check=False).output if ldconfig else ""
    return elf.folders_of_cache(said)
