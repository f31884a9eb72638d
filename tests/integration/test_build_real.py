"""The whole chain with the real uv, debootstrap and Apptainer, on packages that take seconds."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sifkit.apptainer import Apptainer, Exec, Privileges
from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.hashes import sha256_of
from sifkit.run import Command, Runner
from sifkit.site import user_cache
from tests.integration import toy

pytestmark = pytest.mark.apptainer


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.make_wheelhouse(tmp_path_factory.mktemp("wheels"))


@pytest.fixture
def toy_project(tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("SIFKIT_SITE", str(tmp_path / "project" / "site.yaml"))
    project = toy.make_project(tmp_path / "project", wheelhouse)
    assert main(["lock", "--project", str(project)]) == Exit.OK
    return project


def inside(apptainer: Apptainer, image: Path, script: str) -> str:
    command = Exec(image, ("sh", "-c", script)).command(apptainer)
    return apptainer.runner.run(command).output.strip()


def test_from_spec_to_an_image_that_runs(
    toy_project: Path, apptainer: Apptainer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", "--project", str(toy_project), "toy", "--json"]) == Exit.OK
    (built,) = json.loads(capsys.readouterr().out)
    image = Path(built["image"])
    assert built["sha256"] == sha256_of(image)

    run = Command((apptainer.program, "run", str(image), "version"), env=apptainer.privileges.run_env)
    assert apptainer.runner.run(run).output == "toy version\n"
    assert inside(apptainer, image, 'echo "$GREETING $PYTHONNOUSERSITE"') == "it's $HOME 1"
    assert apptainer.labels(image)["org.sifkit.llamafactory"] == "0.9.5"
    lock = (toy_project / "definitions" / "toy.lock").read_text()
    assert inside(apptainer, image, "cat /opt/sifkit/requirements.lock") == lock.strip()
    assert (
        inside(apptainer, image, "ls -A /var/cache/sifkit /root") == "/root:\n.bashrc\n.profile\n\n/var/cache/sifkit:"
    )
    assert inside(apptainer, image, "ls /opt/venv/lib/python3.13/site-packages/torch/__pycache__").startswith(
        "__init__.cpython-313"
    )

    compression = subprocess.run(
        [apptainer.program, "sif", "list", str(image)], capture_output=True, text=True, check=True
    )
    assert "zstd" in compression.stdout.lower() or "Squashfs" in compression.stdout


def test_the_hosts_certificates_are_lent_and_not_kept(toy_project: Path, tmp_path: Path, apptainer: Apptainer) -> None:
    marker = "sifkit-test-certificate-of-this-site"
    bundle = tmp_path / "ca.pem"
    bundle.write_text(f"# {marker}\n" + Path("/etc/ssl/certs/ca-certificates.crt").read_text())
    site = toy_project / "site.yaml"
    site.write_text(site.read_text().replace("{wheelhouse", f"{{ca_bundle: {bundle}, wheelhouse"))
    assert main(["build", "--project", str(toy_project), "toy"]) == Exit.OK
    image = toy_project / "images" / "toy.sif"
    # /tmp and /var/tmp are the host's
    places = "/etc /opt /root /usr/local /var"
    found = inside(apptainer, image, f"grep -rl --exclude-dir=tmp {marker} {places} 2>/dev/null || true")
    assert found == ""


def test_the_rendered_definition_builds_with_plain_apptainer(
    toy_project: Path, wheelhouse: Path, apptainer: Apptainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the wheelhouse stands in for the index, through the environment that %post would have anyway.

    Spec and lock may be read by their owner alone, not so in the image.
    """
    for path in (toy_project / "definitions").glob("toy.*"):
        path.chmod(0o600)
    assert main(["build", "--project", str(toy_project), "toy"]) == Exit.OK
    capsys.readouterr()
    assert main(["build", "--project", str(toy_project), "--render", "toy"]) == Exit.OK
    definition = tmp_path / "toy.def"
    (wheelhouse / "uv.toml").write_text(f'no-index = true\nfind-links = ["{wheelhouse}"]\n')
    offline = f"export PIP_NO_INDEX=1 PIP_FIND_LINKS={wheelhouse} UV_CONFIG_FILE={wheelhouse}/uv.toml"
    definition.write_text(capsys.readouterr().out.replace("%post\n", f"%post\n    {offline}\n"))
    argv = [apptainer.program, "build", *apptainer.privileges.build_flags, "--bind", str(wheelhouse)]
    image = tmp_path / "plain.sif"
    apptainer.runner.run(Command((*argv, str(image), str(definition)), cwd=toy_project))
    # uv notes in some packages, beside RECORD, when it saw their file
    listing = "find /opt /usr/bin -not -path '*/__pycache__*' -not -name uv_cache.json | sort; dpkg -l"
    listing += "; stat -c '%A %n' /opt/sifkit/*"
    ours = inside(apptainer, toy_project / "images" / "toy.sif", listing)
    assert inside(apptainer, image, listing) == ours
    assert ours.count("-rw-r--r-- /opt/sifkit/") == 3
    assert inside(apptainer, image, "ls -A /var/cache/sifkit") == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["-m venv /opt/venv", "ok: LLaMA-Factory"])
def test_a_real_build_that_is_stopped_leaves_nothing(
    toy_project: Path, number: signal.Signals, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (toy_project / "definitions" / "toy.yaml").open("a") as spec:
        spec.write('sections: {test: "sleep 2"}\n')  # so that its own test is run, and is still running when stopped
    bases = user_cache(os.environ) / "bases"
    bases.mkdir(parents=True, exist_ok=True)
    monkeypatch.setenv("SIFKIT_CACHE", str(tmp_path / "cache"))  # without layers, so that there is something to install
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bases").symlink_to(bases.absolute())
    log = toy_project / "build" / "toy.log"
    mounts = Path("/proc/mounts").read_text()
    argv = [sys.executable, "-m", "sifkit", "build", "--project", str(toy_project), "toy"]
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: log.is_file() and moment in log.read_text(), 120, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    tmpdir = toy_project.parent / "tmp"
    wait_for(lambda: not programs_with(str(toy_project.parent)))  # those that clean up among them
    wait_for(lambda: not list(tmpdir.iterdir()))
    assert not [path.name for path in (toy_project / "images").iterdir() if path.suffix != ".lock"]
    assert Path("/proc/mounts").read_text() == mounts
    assert main(["build", "--project", str(toy_project), "toy"]) == Exit.OK


def test_a_package_whose_hash_is_wrong_is_refused(toy_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = toy_project / "definitions" / "toy.lock"
    text = lock.read_text()
    start = text.index("sha256:", text.index("torchaudio==")) + len("sha256:")
    lock.write_text(text[:start] + "0" * 64 + text[start + 64 :])
    assert main(["build", "--project", str(toy_project), "toy"]) == Exit.PROGRAM
    said = " ".join(capsys.readouterr().err.split())
    assert "torchaudio" in said
    assert "hash" in said.lower()
    assert not (toy_project / "images" / "toy.sif").exists()


class AsUser(Runner):
    """Runs everything as an ordinary user."""

    def __init__(self, user: str, home: str) -> None:
        super().__init__({"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": home})
        self._user = user

    def run(self, command: Command, **options: object) -> object:  # type: ignore[override]
        argv = ("runuser", "-u", self._user, "--", *command.argv)
        return super().run(Command(argv, command.cwd, command.env), **options)  # type: ignore[arg-type]


@pytest.mark.skipif(os.geteuid() != 0, reason="run as an ordinary user, every other test here shows the same")
def test_an_ordinary_user_builds_and_runs_what_root_does(ordinary_user: str, wheelhouse: Path) -> None:
    home = Path(pwd.getpwnam(ordinary_user).pw_dir)
    apptainer = Apptainer(AsUser(ordinary_user, str(home)), "apptainer", Privileges())
    definition = home / "small.def"
    definition.write_text(
        "Bootstrap: debootstrap\nOSVersion: trixie\nMirrorURL: "
        + host_mirror()
        + "\n\n%post\n    echo built > /built\n"
    )
    tmpdir = home / "tmp"
    tmpdir.mkdir()
    subprocess.run(["chown", "-R", ordinary_user, str(home)], check=True)
    image = home / "small.sif"
    apptainer.runner.run(apptainer.build_command(image, definition, root=home, tmpdir=tmpdir))
    assert inside(apptainer, image, "cat /built; id -un") == f"built\n{ordinary_user}"


def host_mirror() -> str:
    from sifkit.host import host_bases
    from sifkit.resolve import _mirror
    from sifkit.tables import known_bases

    mirror = _mirror(known_bases()["debian-trixie"], host_bases(Runner(os.environ)))
    assert mirror is not None
    return mirror


def programs_with(text: str) -> list[str]:
    """Command lines of running programs that name `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


def wait_for(happened: Callable[[], bool], seconds: float = 40, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert process is None or process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
