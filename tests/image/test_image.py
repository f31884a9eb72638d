"""What every image must be: its lock and nothing else, ready to run for any user on any host."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from testinfra.host import Host

from sifkit import __version__
from sifkit.apptainer import Apptainer
from sifkit.deffile import HOST_DIR, IMAGE_DIR, VENV, debian_packages
from sifkit.model import ImageSpec, Lock, Scratch
from sifkit.sifwrite import partition
from sifkit.spec import Project
from sifkit.squash.read import opened
from tests.conftest import wanted

pytestmark = pytest.mark.image

PYTHON = f"{VENV}/bin/python"

LIST_PACKAGES = (
    "import importlib.metadata, json; "
    "print(json.dumps([[d.metadata['Name'], d.version] for d in importlib.metadata.distributions()]))"
)

# What a build may use to reach a site's mirrors, and no image may hold.
SITE_VARIABLES = re.compile(
    r"(?i)^(https?_proxy|all_proxy|no_proxy|pip_.*|uv_.*|ssl_cert_(file|dir)|requests_ca_bundle|curl_ca_bundle)$"
)


def in_image(host: Host, code: str) -> str:
    """What the image's Python prints, free of everything outside the image."""
    answer: str = host.check_output("%s -I -c %s", PYTHON, code)
    return answer


def test_python_is_the_specs(sif_host: Host, spec: ImageSpec) -> None:
    assert in_image(sif_host, "import sys; print('%d.%d' % sys.version_info[:2])") == spec.python
    assert sif_host.check_output("command -v python") == PYTHON


def test_packages_are_the_locks_and_no_others(sif_host: Host, lock: Lock) -> None:
    installed = {canonicalize_name(name): version for name, version in json.loads(in_image(sif_host, LIST_PACKAGES))}
    locked = {canonicalize_name(package.name): package.version for package in lock.packages}
    installed_by_venv = {"pip"} - locked.keys()
    assert {name: installed[name] for name in installed.keys() - installed_by_venv} == locked


def test_lock_and_spec_inside_are_those_beside_the_definition(
    sif_host: Host, lock: Lock, spec: ImageSpec, project: Project
) -> None:
    assert sif_host.file(f"{IMAGE_DIR}/requirements.lock").content_string == lock.text
    assert sif_host.file(f"{IMAGE_DIR}/spec.yaml").content_string == project.spec_path(spec.name).read_text()


def test_labels_say_what_the_image_is(labels: dict[str, str], spec: ImageSpec, lock: Lock) -> None:
    wanted = {
        "org.opencontainers.image.title": spec.name,
        "org.opencontainers.image.version": spec.llamafactory.version,
        "org.sifkit.version": __version__,
        "org.sifkit.spec-digest": f"sha256:{spec.digest()}",
        "org.sifkit.lock-digest": f"sha256:{lock.digest()}",
        "org.sifkit.torch": spec.torch.version,
        "org.sifkit.cuda": spec.torch.cuda,
    }
    assert {name: labels.get(name) for name in wanted} == wanted


def test_llamafactory_cli_says_the_specs_version(sif_host: Host, spec: ImageSpec) -> None:
    said = sif_host.check_output("llamafactory-cli version")
    assert re.search(rf"\b{re.escape(spec.llamafactory.version)}\b", said), said


def test_images_own_test_passes(apptainer: Apptainer, sif: Path) -> None:
    # `llamafactory-cli version` succeeds on a broken install; the %test imports the trainer.
    assert "ok: LLaMA-Factory" in apptainer.runner.run(apptainer.test_command(sif)).output


def test_users_own_packages_do_not_shadow_the_image(sif_host: Host) -> None:
    assert sif_host.environment()["PYTHONNOUSERSITE"] == "1"
    assert sif_host.check_output("python -c 'import site; print(site.ENABLE_USER_SITE)'") == "False"


def test_specs_environment_is_set_and_nothing_of_the_site(sif_host: Host, spec: ImageSpec) -> None:
    inside = sif_host.environment()
    assert {name: inside.get(name) for name in spec.env} == spec.env
    assert [name for name in inside if SITE_VARIABLES.match(name) and name not in spec.env] == []


def test_debian_packages_are_installed(sif_host: Host, spec: ImageSpec) -> None:
    if isinstance(spec.base, Scratch):
        pytest.skip("the base is a copy of the build host: no package is installed into it")
    packages = debian_packages(spec, wanted(spec))
    missing = [name for name in packages if not sif_host.package(name.split("=")[0]).is_installed]
    assert missing == []


def test_triton_finds_a_compiler_and_pythons_headers(sif_host: Host) -> None:
    header = in_image(sif_host, "import sysconfig; print(sysconfig.get_path('include'))")
    done = sif_host.run("printf '#include <Python.h>\\n' | gcc -I %s -x c -fsyntax-only -", header)
    assert done.rc == 0, done.stderr


@pytest.mark.parametrize("directory", [HOST_DIR, "/root/.cache", "/var/lib/apt/lists", "/var/cache/apt/archives"])
def test_no_cache_is_left(sif_host: Host, directory: str) -> None:
    if sif_host.file(directory).exists:
        found = sif_host.run("find %s -type f ! -name lock", directory)  # apt keeps directories that only root reads
        assert found.stdout == ""


def test_certificates_are_the_distributions(sif_host: Host, spec: ImageSpec) -> None:
    if isinstance(spec.base, Scratch):
        pytest.skip("the base is a copy of the build host, certificates included")
    pem = re.compile(r"-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----")
    bundle = pem.findall(sif_host.file("/etc/ssl/certs/ca-certificates.crt").content_string)
    packaged = pem.findall(sif_host.check_output("find /usr/share/ca-certificates -name '*.crt' -exec cat {} +"))
    assert bundle
    assert set(bundle) - set(packaged) == set()


@pytest.mark.parametrize("module", ["torch", "transformers", "llamafactory"])
def test_bytecode_is_compiled(sif_host: Host, module: str) -> None:
    code = (
        "import importlib.util, pathlib; "
        f"spec = importlib.util.find_spec({module!r}); "
        "files = list(pathlib.Path(spec.origin).parent.rglob('*.py')); "
        "print(sum(not pathlib.Path(importlib.util.cache_from_source(str(f))).exists() for f in files), len(files))"
    )
    missing, all_files = map(int, in_image(sif_host, code).split())
    assert all_files > 0
    assert missing <= all_files // 100  # templates with a .py name that no Python can compile


# One process compiles files; whether the last one's bytecode is the image's. Header: the time and size of its source.
COMPILE = """
import pathlib, py_compile, sys, tempfile
from importlib.util import cache_from_source
paths = [f"{sys.prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages/" + one for one in %r]
with tempfile.TemporaryDirectory() as folder:
    for path in paths:
        made = py_compile.compile(path, cfile=f"{folder}/one.pyc", doraise=True)
    print(pathlib.Path(made).read_bytes()[16:] == pathlib.Path(cache_from_source(path)).read_bytes()[16:])
"""


def test_bytecode_shows_nothing_of_what_other_packages_compiled(sif_host: Host, spec: ImageSpec, lock: Lock) -> None:
    if spec.python != "3.13" or "av" not in lock.versions():
        pytest.skip("the one file known to show it is PyAV's, compiled by Python 3.13")
    before, shows = "pandas/io/formats/style.py", "av/video/frame.py"
    assert in_image(sif_host, COMPILE % [shows]) == "True"
    assert in_image(sif_host, COMPILE % [before, shows]) == "False"  # else this test shows nothing


# Those for whose names each of their files would be looked for.
WITHOUT_NAMES = """
from importlib.metadata import distributions, packages_distributions
named = {owner for owners in packages_distributions().values() for owner in owners}
print([d.metadata["Name"] for d in distributions() if d.metadata["Name"] in named and not d.read_text("top_level.txt")])
"""


def test_names_of_packages_are_written_down(sif_host: Host) -> None:
    assert in_image(sif_host, WITHOUT_NAMES) == "[]"


def test_no_files_share_a_block(sif: Path) -> None:
    with opened(partition(sif)) as image:
        assert image.superblock.fragments == 0


def test_every_file_is_readable_by_every_user(sif_host: Host) -> None:
    private = sif_host.check_output("find %s %s ! -type l ! -perm -004 | head -5", VENV, IMAGE_DIR)
    assert private == ""


def test_mount_point_of_the_reference_workflow_exists(sif_host: Host) -> None:
    assert sif_host.file("/mnt").is_directory
