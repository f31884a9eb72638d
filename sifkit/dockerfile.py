"""Dockerfiles: an image as text for Docker. Pure; taken from the definition's own sections, so that the two agree.

`parts_of` gives what the Docker Engine is asked for step by step, `render` the same as one Dockerfile.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import PurePosixPath

from sifkit import deffile
from sifkit.deffile import CARRIED_LOCK, CARRIED_SPEC, HOST_DIR
from sifkit.errors import UsageError
from sifkit.model import Debootstrap, DockerBase, Image
from sifkit.tables import known_bases

SITE_SECRET = "sifkit-site"  # the build secret that BuildKit is handed: shell lines, as sifkit's own site.sh
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Docker's own, for bases that say none
_SHELL = ("/bin/sh", "-exc")  # as Apptainer runs %post


@dataclass(frozen=True)
class Parts:
    """An image as Docker makes it: a base, two scripts that leave a layer each, what the result says of itself."""

    base: str  # an image of a registry
    system: str  # shell text: Debian packages
    python: str  # shell text: Python packages, from CARRIED_LOCK
    environment: tuple[tuple[str, str], ...]  # literal values, but for $PATH in that of PATH
    labels: tuple[tuple[str, str], ...]
    entrypoint: tuple[str, ...]
    test: str  # shell text

    def changes(self) -> tuple[str, ...]:
        """Environment, labels and entrypoint as Dockerfile instructions."""
        return (
            *(f"ENV {name}={_value(name, value)}" for name, value in self.environment),
            *(f"LABEL {name}={_value(name, value)}" for name, value in self.labels),
            f"ENTRYPOINT {json.dumps(self.entrypoint)}",
            "CMD []",
        )


def parts_of(image: Image, *, sifkit_version: str) -> Parts:
    """Raises `UsageError` for a base that Docker cannot start from."""
    base = base_of(image)
    sections = _sections(deffile.render(image, sifkit_version=sifkit_version))
    system = _sections(deffile.render_base(image))["post"]
    site = system.partition("\n\n")[0]
    python = sections["post"].removeprefix(system).strip("\n")
    return Parts(
        base=base,
        system=f"umask 022\nmkdir -p {HOST_DIR}\n{system}",
        python=f"umask 022\n{site}\n\n{python}",
        environment=_environment(sections["environment"]),
        labels=tuple((name, value) for name, _, value in map(_label, sections["labels"].split("\n"))),
        entrypoint=_entrypoint(sections["runscript"]),
        test=sections["test"],
    )


def base_of(image: Image) -> str:
    """The registry image to start from; for debootstrap's tree, the one that bases.yaml names for its release."""
    match image.base.source:
        case DockerBase(from_=reference):
            return reference
        case Debootstrap(suite=suite):
            found = next((known.docker for known in known_bases().values() if known.suite == suite), None)
            if found:
                return found
            message = f"{image.name}: no registry image is known for debootstrap's {suite}"
        case source:
            message = f"{image.name}: Docker cannot start from a base of {source.bootstrap}"
    fix = "name an image of a registry, base: {bootstrap: docker, from: …}, or build with Apptainer"
    raise UsageError(message, fix)


# ---------------------------------------------------------------------------------------------- text


def render(image: Image, *, sifkit_version: str, buildkit: bool = False) -> str:
    """The whole image as one Dockerfile; its context is the directory of spec and lock.

    The classic builder takes no `--mount`, not even in a stage that it does not need, hence the two texts.
    """
    parts = parts_of(image, sifkit_version=sifkit_version)
    lock = PurePosixPath(image.lock_path)
    files = [lock.name, lock.with_suffix(".yaml").name]
    places = [CARRIED_LOCK, CARRIED_SPEC]
    paragraphs = [
        _comment(image, lock.parent, buildkit=buildkit),
        f"FROM {parts.base}",
        _run(_with_secret(parts.system) if buildkit else parts.system, _SECRET if buildkit else ()),
        "\n".join(f"COPY {json.dumps(pair)}" for pair in zip(files, places, strict=True)),
        _run(_with_secret(parts.python) if buildkit else parts.python, (*_SECRET, *_CACHES) if buildkit else ()),
        _assignments("ENV", parts.environment),
        _run(f"{_NO_STUBS}\n{parts.test}" if buildkit else parts.test),
        _assignments("LABEL", parts.labels),
        f"ENTRYPOINT {json.dumps(parts.entrypoint)}\nCMD []",
    ]
    return "\n\n".join(paragraphs) + "\n"


_SECRET = (f"--mount=type=secret,id={SITE_SECRET}",)
_CACHES = tuple(f"--mount=type=cache,id=sifkit-{name},target={HOST_DIR}/{name}" for name in ("uv", "pip"))

_NO_STUBS = f"rmdir {HOST_DIR}/pip {HOST_DIR}/uv # where the caches were mounted"


def _comment(image: Image, directory: PurePosixPath, *, buildkit: bool) -> str:
    file = f"{image.name}.Dockerfile"
    secret = f"--secret id={SITE_SECRET},src=FILE " if buildkit else ""
    how = (
        "# FILE, which may be left out, holds lines like: export PIP_INDEX_URL=… UV_DEFAULT_INDEX=…"
        if buildkit
        else "# --render --buildkit gives the one that keeps packages in BuildKit's caches."
    )
    return (
        f"# {image.name}: {dict(deffile.labels(image, sifkit_version=''))['org.opencontainers.image.description']}\n"
        f"# Written by sifkit from {directory / image.name}.yaml and its lock. "
        f"{'BuildKit builds it' if buildkit else 'Docker builds it, with BuildKit or without'},\n"
        f"# in the directory that holds {directory}/:\n"
        f"#     docker build --network host -t {image.name} -f {file} {secret}{directory}\n{how}"
    )


def _with_secret(script: str) -> str:
    """The script with the site's lines from the secret; that site.sh is there says that the caches are to stay."""
    path = f"{HOST_DIR}/site.sh"
    source = f"[ ! -r /run/secrets/{SITE_SECRET} ] || . /run/secrets/{SITE_SECRET}"
    return f"mkdir -p {HOST_DIR}\necho '{source}' > {path}\n{script}\nrm {path}"


def _run(script: str, options: tuple[str, ...] = ()) -> str:
    """A RUN in exec form, since the shell form is one line and scripts have quotes over several.

    Comments and the shell's own continued lines stand as they are: both mean the same to Docker.
    """
    head = " \\\n    ".join(["RUN", *options]) if options else "RUN"
    lines = [f'{head} ["{_SHELL[0]}", "{_SHELL[1]}", "\\']
    for line in script.split("\n"):
        if re.match(r"\s*#", line):
            lines.append(f"    {line.strip()}")
        elif line.endswith("\\"):
            lines.append(f"    {_escaped(line[:-1])}\\")
        elif line:
            lines.append(f"    {_escaped(line)}\\n\\")
    return "\n".join([*lines, '"]'])


def _escaped(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _assignments(word: str, pairs: tuple[tuple[str, str], ...]) -> str:
    return f"{word} " + " \\\n    ".join(f"{name}={_value(name, value)}" for name, value in pairs)


def _value(name: str, value: str) -> str:
    """In double quotes, where backslash, quote and dollar mean something. PATH means its own, or what Docker has."""
    quoted = re.sub(r'["\\$]', r"\\\g<0>", value)
    return '"' + (quoted.replace(r"\$PATH", f"${{PATH:-{_PATH}}}") if name == "PATH" else quoted) + '"'


# ---------------------------------------------------------------------------------------------- definition


def _sections(definition: str) -> dict[str, str]:
    """The sections of a definition that sifkit rendered, without their indentation."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in definition.split("\n"):
        if line.startswith("%"):
            lines = found.setdefault(line[1:], [])
        else:
            lines.append(line.removeprefix("    "))
    return {name: "\n".join(body).strip("\n") for name, body in found.items()}


def _environment(section: str) -> tuple[tuple[str, str], ...]:
    exports = (line for line in section.split("\n") if line.startswith("export "))
    pairs = (shlex.split(line)[1].partition("=") for line in exports)
    return tuple((name, value) for name, _, value in pairs)


def _label(line: str) -> tuple[str, str, str]:
    return line.partition(" ")


def _entrypoint(runscript: str) -> tuple[str, ...]:
    """The program that a runscript becomes."""
    plain = re.fullmatch(r'exec ([\w/.-]+) "\$@"', runscript)
    return (plain[1],) if plain else ("/bin/sh", "-c", runscript, "run")
