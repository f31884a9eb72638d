"""Dockerfiles say what the definition says; bases that Docker cannot start from are refused."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest

from sifkit import deffile
from sifkit.dockerfile import Parts, base_of, parts_of, render
from sifkit.errors import UsageError
from sifkit.model import Image
from tests.conftest import make_environment_image, make_image, make_spec

EXTRAS = {"torch": {"version": "2.11.0", "cuda": "13.0"}, "extras": ("deepspeed",)}


def parts(image: Image | None = None) -> Parts:
    return parts_of(image or make_image(), sifkit_version="1")


def dockerfile_steps(text: str) -> list[str]:
    """The scripts of RUN instructions, read as Docker's parser reads them: comments out, continued lines joined."""
    lines = [line for line in text.split("\n") if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", "")
    return [json.loads(found)[2] for found in re.findall(r"^RUN [^\[]*(\[.*\])$", joined, flags=re.MULTILINE)]


def shell_words(script: str) -> list[str]:
    """What a shell sees of a script, however it is indented."""
    return [" ".join(word.split()) for word in shlex.split(script.replace("\\\n", ""), comments=True)]


@pytest.mark.parametrize("changes", [{}, EXTRAS, {"torch": {"version": "2.9.1", "cuda": "12.6"}}])
@pytest.mark.parametrize("buildkit", [False, True])
def test_its_steps_are_the_definitions_own_words(changes: dict[str, object], *, buildkit: bool) -> None:
    image = make_image(make_spec(**changes))
    definition = deffile.render(image, sifkit_version="1")
    post = definition.partition("%post\n")[2].partition("%environment")[0]
    system, python, test = dockerfile_steps(render(image, sifkit_version="1", buildkit=buildkit))
    wanted, found = shell_words(post), [*shell_words(system), *shell_words(python)]
    missing = [word for word in wanted if word not in found]
    assert missing == []
    assert shell_words(test.partition("mounted\n")[2] or test) == shell_words(
        definition.partition("%test\n")[2].partition("%help")[0]
    )
    for script in (system, python, test):
        subprocess.run(["sh", "-n", "-c", script], check=True)


def test_the_two_steps_are_the_whole_post() -> None:
    image, split = make_image(), parts()
    whole = deffile.render(image, sifkit_version="1")
    lines = {line.strip() for line in whole.partition("%post\n")[2].partition("%environment")[0].split("\n")}
    ours = {line.strip() for line in f"{split.system}\n{split.python}".split("\n")}
    assert lines <= ours
    assert ours - lines == {"umask 022", f"mkdir -p {deffile.HOST_DIR}"} - lines
    assert "apt-get" not in split.python
    assert "uv pip" not in split.system


@pytest.mark.parametrize(
    ("base", "reference"),
    [
        ("debian-trixie", "debian:trixie-slim"),
        ({"bootstrap": "debootstrap", "suite": "bookworm", "mirror": "http://mirror.example"}, "debian:bookworm-slim"),
        ({"bootstrap": "docker", "from": "registry.example:5000/a@sha256:1"}, "registry.example:5000/a@sha256:1"),
    ],
)
def test_a_base_is_an_image_of_a_registry(base: object, reference: str) -> None:
    python = "3.11" if reference.startswith("debian:bookworm") else "3.13"
    assert base_of(make_image(make_spec(base=base, python=python))) == reference


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (
            {"bootstrap": "debootstrap", "suite": "sid", "mirror": "http://mirror.example"},
            "known for debootstrap's sid",
        ),
        ({"bootstrap": "localimage", "from": "/a.sif"}, "cannot start from a base of localimage"),
        ({"bootstrap": "oci-archive", "from": "/a.tar"}, "cannot start from a base of oci-archive"),
        ({"bootstrap": "docker-archive", "from": "/a.tar"}, "cannot start from a base of docker-archive"),
        ({"bootstrap": "scratch"}, "cannot start from a base of scratch"),
    ],
)
def test_other_bases_are_refused_with_apptainer_offered(base: object, words: str) -> None:
    with pytest.raises(UsageError, match=words) as error:
        parts(make_image(make_spec(base=base)))
    assert "build with Apptainer" in (error.value.fix or "")


def test_a_tree_of_the_host_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot start from a base of scratch"):
        parts(make_environment_image())


def test_values_mean_themselves_and_only_path_is_extended() -> None:
    changes = parts(make_image(make_spec(env={"ODD": 'it\'s "$HOME" \\ ${X}', "PATHS": "$PATH"}))).changes()
    assert changes[0].startswith('ENV PATH="/opt/venv/bin:${PATH:-/usr/local/sbin:')
    assert 'ENV ODD="it\'s \\"\\$HOME\\" \\\\ \\${X}"' in changes
    assert 'ENV PATHS="\\$PATH"' in changes
    assert changes[-2:] == ('ENTRYPOINT ["llamafactory-cli"]', "CMD []")


def test_labels_are_the_definitions() -> None:
    image = make_image()
    assert dict(parts(image).labels) == deffile.labels(image, sifkit_version="1")


def test_only_the_text_for_buildkit_has_options_that_the_classic_builder_refuses() -> None:
    plain, cached = (render(make_image(), sifkit_version="1", buildkit=buildkit) for buildkit in (False, True))
    assert "--mount" not in plain
    assert cached.count("--mount=type=cache") == 2
    assert cached.count("--mount=type=secret") == 2
    assert "# syntax" not in cached
