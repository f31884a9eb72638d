"""Images that take seconds to build, and an ordinary user to build them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sifkit.apptainer import Apptainer
from sifkit.run import Runner

# The host's shell and a few programs with the libraries that they load; no network, no registry.
SMALL_DEFINITION = """\
Bootstrap: scratch

%setup
    set -eu
    cd "$APPTAINER_ROOTFS"
    mkdir -p bin dev etc home mnt proc root sys tmp var/tmp
    for name in sh bash cat cp env false head id ls mkdir printf \\
                pwd rm sha256sum sleep stat tail test touch true uname wc; do
        program=/usr/bin/$name
        [ -x "$program" ] || program=/bin/$name
        cp -L "$program" "bin/$name"
        ldd "$program" | grep -o '/[^ ]*' | xargs -r cp -L --parents -t .
    done
    echo 'root:x:0:0:root:/root:/bin/sh' > etc/passwd
    echo 'root:x:0:' > etc/group
    echo small > etc/sifkit-small

%environment
    export SMALL=yes

%labels
    org.opencontainers.image.title small
"""


@pytest.fixture(scope="session")
def apptainer() -> Apptainer:
    """The real one; a host without it fails, because these tests were asked for."""
    return Apptainer.find(Runner(os.environ))


@pytest.fixture(scope="session")
def small_sif(apptainer: Apptainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image with a shell and the commonest programs, built once in a test run."""
    root = tmp_path_factory.mktemp("small-sif")
    definition, tmpdir = root / "small.def", root / "tmp"
    definition.write_text(SMALL_DEFINITION)
    tmpdir.mkdir()
    image = root / "small.sif"
    apptainer.runner.run(apptainer.build_command(image, definition, root=root, tmpdir=tmpdir))
    return image


@pytest.fixture
def ordinary_user() -> Iterator[str]:
    """Made for the test when it runs as root; useradd also gives the subuid range.

    Named after this process: a run that was killed leaves its user behind, and the next must not stumble over it.
    """
    name = f"sifkit-tester-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)
