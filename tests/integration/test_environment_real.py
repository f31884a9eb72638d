"""An image of what this host already has: its Python, an environment with packages in it, a directory of wheels."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sifkit.apptainer import Apptainer, Exec
from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.lock import read_lock
from sifkit.model import Inherited
from sifkit.run import Command
from sifkit.verify.checks import Outcome
from sifkit.verify.container import IN_LIBRARIES, Container
from sifkit.verify.static import ImageFacts, judge_origin, judge_packages, parse_facts
from tests.integration import toy

pytestmark = pytest.mark.apptainer

PYTHON = "/usr/bin/python3"  # with its libraries in /usr, which is copied
PROGRAMS = ("bash", "cat", "chmod", "dash", "echo", "env", "ln", "ls", "rm", "sh")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory that Apptainer does not mount over: not /tmp, where pytest's are."""
    parent = next((path for path in ("/opt", "/srv") if os.access(path, os.W_OK)), None)
    if parent is None:
        pytest.skip("no directory here that may be written and is not mounted into containers (/opt, /srv)")
    directory = Path(tempfile.mkdtemp(prefix="sifkit-test-", dir=parent))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def environment(place: Path) -> Path:
    """torch's set and two more packages are already there."""
    directory = place / "venv"
    subprocess.run([PYTHON, "-m", "venv", str(directory)], check=True)
    wheels = place / "installed"
    wheels.mkdir()
    local = {"torch": ("2.9.1+cu128", toy.TOYS["torch"][1])}
    local |= {name: ("1.0", {f"{name}.py": "VERSION = '1.0'\n"}) for name in ("kept", "replaced")}
    for name in ("torch", "torchvision", "torchaudio", "kept", "replaced"):
        toy.write_wheel(wheels, name, local.get(name))
    pip_install(directory, *wheels.glob("*.whl"))
    return directory


def pip_install(environment: Path, *wheels: Path) -> None:
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-index", "--no-deps", *map(str, wheels)], check=True)


@pytest.fixture(scope="module")
def wheelhouse(place: Path) -> Path:
    directory = place / "wheels"
    directory.mkdir()
    toy.write_wheel(directory, "llamafactory")
    toy.write_wheel(directory, "replaced", ("2.0", {"replaced.py": "VERSION = '2.0'\n"}))
    return directory


def small_tree() -> list[str]:
    """What runs Python and a shell: programs, the standard library, and the libraries that they load."""
    asked = "import sysconfig as s; p = s.get_paths(); print(p['stdlib'], p['platstdlib'])"
    library, platform = subprocess.run(
        [PYTHON, "-I", "-c", asked], capture_output=True, text=True, check=True
    ).stdout.split()
    programs = [PYTHON, "/usr/sbin/ldconfig", *(f"/usr/bin/{name}" for name in PROGRAMS)]
    extensions = [str(path) for path in Path(platform, "lib-dynload").glob("*.so")]
    said = subprocess.run(["ldd", *programs, *extensions], capture_output=True, text=True, check=False).stdout
    loaded = {word for line in said.splitlines() for word in line.split() if word.startswith("/") and word[-1] != ":"}
    files = [Path(path) for path in (*programs, *loaded)]
    placed = {str(path.parent.resolve() / path.name) for path in files} | {str(path.resolve()) for path in files}
    return sorted({*placed, library, platform, "/usr/lib64", "/etc/passwd", "/etc/group"})


@pytest.fixture
def project(tmp_path: Path, environment: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    root = tmp_path / "project"
    (root / "definitions").mkdir(parents=True)
    version = subprocess.run([PYTHON, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    spec = {
        "name": "node",
        "base": {"bootstrap": "scratch", "copy": small_tree(), "environment": str(environment)},
        "python": ".".join(version.split(".")[:2]),
        "torch": {"version": "2.9.1", "cuda": "12.8"},
        "llamafactory": "0.9.5",
        "packages": ["replaced>=2"],
    }
    (root / "definitions" / "node.yaml").write_text(json.dumps(spec))
    (root / "site.yaml").write_text(f"python_index: {{wheelhouse: {wheelhouse}}}\n")
    monkeypatch.setenv("SIFKIT_SITE", str(root / "site.yaml"))
    return root


SHOW = """\
import sys, kept, replaced, torch, llamafactory
print(sys.prefix, kept.VERSION, replaced.VERSION, torch.__version__, replaced.__cached__)"""


def inside(apptainer: Apptainer, image: Path, *argv: str) -> str:
    return apptainer.runner.run(Exec(image, argv).command(apptainer)).output.strip()


def asked(apptainer: Apptainer, image: Path, work: Path) -> ImageFacts:
    """What the static level's probe finds in the image."""
    container = Container(apptainer, image, work, nv=False)
    modules = ("torch", "llamafactory.train.tuner", "kept")
    answer = container.ask("image", *modules, log=work / "static.log", env={"PYTHONPATH": IN_LIBRARIES})
    assert answer.facts is not None, answer.said
    return parse_facts(answer.facts)


def test_what_is_there_is_kept_and_what_is_missing_is_installed(
    project: Path, environment: Path, wheelhouse: Path, apptainer: Apptainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lock", "--project", str(project)]) == Exit.OK
    lock = read_lock(project / "definitions" / "node.lock")
    assert {package.name: package.version for package in lock.packages} == {"llamafactory": "0.9.5", "replaced": "2.0"}
    assert {Inherited("torch", "2.9.1+cu128"), Inherited("kept", "1.0")} <= set(lock.inherited)
    assert lock.version_of("pip") is not None

    assert main(["build", "--project", str(project), "node"]) == Exit.OK
    image = project / "images" / "node.sif"
    seconds = json.loads((project / "images" / "node.json").read_text())["seconds"]
    # No base is made, which would be kept whatever the host holds later.
    assert set(seconds) == {"build", "test"}
    prefix, kept, replaced, torch, bytecode = inside(apptainer, image, "python", "-c", SHOW).split()
    assert (prefix, kept, replaced, torch) == ("/opt/venv", "1.0", "2.0", "2.9.1+cu128")
    assert inside(apptainer, image, "ls", bytecode) == bytecode
    assert inside(apptainer, image, "sh", "-c", "cd /opt/venv && pwd -P") == str(environment)
    assert inside(apptainer, image, "llamafactory-cli", "version") == "toy version"
    assert inside(apptainer, image, "ls", "-A", "/var/cache/sifkit") == ""

    facts = asked(apptainer, image, project)
    packages, origin = judge_packages(facts.distributions, lock), judge_origin(facts)
    assert (packages.outcome, origin.outcome) == (Outcome.PASSED, Outcome.PASSED), (packages, origin)
    assert f"{len(lock.inherited)} of them the host's" in packages.message

    definition, plain = project / "node.def", project / "plain.sif"
    capsys.readouterr()
    assert main(["build", "--project", str(project), "--render", "node"]) == Exit.OK
    definition.write_text(capsys.readouterr().out)
    argv = (apptainer.program, "build", *apptainer.privileges.build_flags, "--bind", f"{wheelhouse}:/mnt:ro")
    wheels = {"APPTAINERENV_PIP_NO_INDEX": "1", "APPTAINERENV_PIP_FIND_LINKS": "/mnt"}
    apptainer.runner.run(Command((*argv, str(plain), str(definition)), cwd=project, env=wheels))
    assert inside(apptainer, plain, "python", "-c", SHOW) == inside(apptainer, image, "python", "-c", SHOW)


def test_an_environment_that_changed_is_said_before_anything_is_built(
    project: Path, environment: Path, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lock", "--project", str(project)]) == Exit.OK
    assert main(["lock", "--check", "--project", str(project)]) == Exit.OK
    later = place / "later"
    later.mkdir()
    toy.write_wheel(later, "kept", ("1.1", {"kept.py": "VERSION = '1.1'\n"}))
    pip_install(environment, *later.glob("*.whl"))
    capsys.readouterr()
    assert main(["build", "--project", str(project), "node"]) == Exit.USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert "changed: kept 1.0 → 1.1" in said
    assert "run: sifkit lock node" in said
    assert not (project / "images" / "node.sif").exists()
    assert main(["lock", "--check", "--project", str(project)]) == Exit.PROBLEM
    assert main(["lock", "--project", str(project)]) == Exit.OK
    assert Inherited("kept", "1.1") in read_lock(project / "definitions" / "node.lock").inherited


def test_what_cannot_be_had_is_refused_in_pips_words_with_what_to_carry(
    project: Path, wheelhouse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = project / "definitions" / "node.yaml"
    spec.write_text(spec.read_text().replace("replaced>=2", "no-such-package-of-anybody"))
    assert main(["lock", "--project", str(project)]) == Exit.USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert "No matching distribution found for no-such-package-of-anybody" in said
    assert f"put a wheel of no-such-package-of-anybody for Python {sys_python()} into" in said
    assert not (project / "definitions" / "node.lock").exists()


def sys_python() -> str:
    said = subprocess.run([PYTHON, "-V"], capture_output=True, text=True, check=True).stdout.split()[1]
    return said.rpartition(".")[0]


def test_another_torch_than_the_environments_is_named_with_what_to_write(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = project / "definitions" / "node.yaml"
    spec.write_text(spec.read_text().replace('"12.8"', '"12.6"'))
    assert main(["lock", "--no-check", "--project", str(project)]) == Exit.USAGE
    assert 'write torch: {version: 2.9.1, cuda: "12.8"}' in " ".join(capsys.readouterr().err.split())
    spec.write_text(spec.read_text().replace('"2.9.1"', '"2.8.0"').replace('"12.6"', '"12.8"'))
    assert main(["lock", "--no-check", "--project", str(project)]) == Exit.USAGE
    assert 'has torch 2.9.1+cu128: write torch: {version: 2.9.1, cuda: "12.8"}' in " ".join(
        capsys.readouterr().err.split()
    )


def test_an_interpreter_that_would_not_be_in_the_image_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = json.loads((project / "definitions" / "node.yaml").read_text())
    spec["base"]["copy"] = ["/usr/lib64"]
    (project / "definitions" / "node.yaml").write_text(json.dumps(spec))
    assert main(["lock", "--project", str(project)]) == Exit.USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert str(Path(PYTHON).resolve()) in said
    assert "list them under copy" in said
