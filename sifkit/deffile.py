"""Definitions: an image as Apptainer `.def` text. Pure functions of an `Image`; every shell value is quoted.

`render` gives one definition that builds anywhere with plain `apptainer build` in the project's root.
sifkit makes the same of parts (docs/adr/0003-images-from-layers.md), for which the other functions give the texts:
`render_base` (bootstrap and Debian packages), `install_script` (Python packages, in a container of the base) and
`render_top` (what is this image's own). Only an image made of an environment of the build host is built in one: no text
says what that holds, so no part of it could be kept.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping, Sequence
from shlex import quote

from typing_extensions import assert_never

from sifkit.bytecode import VALID_FOR_GOOD, compile_packages, site_packages
from sifkit.importnames import write_import_names
from sifkit.model import (
    Base,
    Debootstrap,
    DockerArchive,
    DockerBase,
    Image,
    ImageSpec,
    LocalImage,
    OciArchive,
    Resolution,
    Scratch,
)

HOST_DIR = "/var/cache/sifkit"  # bound for the time of a build: caches, certificates, site settings; empty in the image
IMAGE_DIR = "/opt/sifkit"  # what the image was made from
CARRIED_LOCK, CARRIED_SPEC = f"{IMAGE_DIR}/requirements.lock", f"{IMAGE_DIR}/spec.yaml"
DEBIAN_PACKAGES = f"{IMAGE_DIR}/debian-packages"  # lines of: name version architecture sha256-of-the-.deb
VENV = "/opt/venv"
CUDA_HOME = "/usr/local/cuda"
WHOLE_LOCK = f"{HOST_DIR}/requirements.lock"  # where `install_script` finds what is to be installed
MISSING_LOCK = f"{HOST_DIR}/missing.lock"

# Python itself, certificates for plain builds, and what `python3 -m venv` needs.
PYTHON_PACKAGES = ("ca-certificates", "python3", "python3-venv")


def render(image: Image, *, sifkit_version: str) -> str:
    """The whole image in one definition."""
    raw = image.spec.sections
    setup = _setup(image.base.source) + _raw(raw, "setup")
    post = _post(image, system=True, python=True) + _raw(raw, "post", f'export PATH={VENV}/bin:"$PATH"')
    parts = [_comment(image), header(image.base.source), setup, _files(image), post, *_tail(image, sifkit_version)]
    parts += [f"%{name}\n{text.strip()}\n" for name, text in raw.items() if name.startswith("app")]
    return "\n".join(parts)


def needs_whole_build(image: Image) -> bool:
    """Whether an image has what no layer can hold: the host's own tree, or what raw sections of its spec do."""
    raw = any(name in ("setup", "files", "post") or name.startswith("app") for name in image.spec.sections)
    return raw or image.resolution.environment is not None


def _raw(sections: Mapping[str, str], name: str, before: str = "") -> str:
    """A spec's own text for a section, as it is: indenting it would change what its heredocs hold."""
    if name not in sections:
        return ""
    comment = [] if name in ("files", "labels") else ["", "# From the spec's sections."]
    return "\n".join([*comment, *([before] if before else []), sections[name].strip("\n")]) + "\n"


def render_base(image: Image) -> str:
    """Operating system and Debian packages alone; the same text for every image that asks for the same."""
    source = image.base.source
    title = f"# {source.bootstrap} base with {', '.join(debian_packages(image.spec, image.resolution))}\n"
    # Else the time of the build; no image shows it, but its block of data is copied into each.
    date = _section("labels", "org.label-schema.build-date 1980-01-01T00:00:00Z")
    return "\n".join([title, header(source), _setup(source), _post(image, system=True, python=False), date])


def render_top(image: Image, *, sifkit_version: str) -> str:
    """What is this image's own, on an empty tree: files, environment, labels, runscript, test, help."""
    return "\n".join(["Bootstrap: scratch\n", _files(image), *_tail(image, sifkit_version)])


def debian_packages(spec: ImageSpec, resolution: Resolution) -> tuple[str, ...]:
    """Everything that apt installs, sorted, without doubles."""
    return tuple(sorted({*PYTHON_PACKAGES, *spec.apt, *resolution.apt}))


def header(source: Base) -> str:
    """The lines that say where the tree comes from."""
    match source:
        case Debootstrap():
            lines = ["Bootstrap: debootstrap", f"OSVersion: {source.suite}", f"MirrorURL: {source.mirror}"]
        case DockerBase() | LocalImage() | OciArchive() | DockerArchive():
            lines = [f"Bootstrap: {source.bootstrap}", f"From: {source.from_}"]
        case Scratch():
            lines = ["Bootstrap: scratch"]
        case _:
            assert_never(source)
    return "\n".join(lines) + "\n"


def labels(image: Image, *, sifkit_version: str) -> dict[str, str]:
    """OCI's labels, and sifkit's: enough to say what an image is without its manifest."""
    spec, lock = image.spec, image.lock
    return {
        "org.opencontainers.image.title": spec.name,
        "org.opencontainers.image.version": spec.llamafactory.version,
        "org.opencontainers.image.description": _summary(spec),
        "org.opencontainers.image.base.name": image.base.name or image.base.source.bootstrap,
        "org.sifkit.version": sifkit_version,
        "org.sifkit.spec-digest": f"sha256:{spec.digest()}",
        "org.sifkit.lock-digest": f"sha256:{lock.digest()}",
        "org.sifkit.python": spec.python,
        "org.sifkit.torch": spec.torch.version,
        "org.sifkit.cuda": spec.torch.cuda,
        "org.sifkit.llamafactory": spec.llamafactory.version,
        "org.sifkit.transformers": lock.version_of("transformers") or "",
    }


def _summary(spec: ImageSpec) -> str:
    torch = f"torch {spec.torch.version} for CUDA {spec.torch.cuda}"
    return f"LLaMA-Factory {spec.llamafactory.version}, {torch}, Python {spec.python}"


def _comment(image: Image) -> str:
    return (
        f"# {image.name}: {_summary(image.spec)}\n"
        f"# Written by sifkit from definitions/{image.name}.yaml and its lock. Plain Apptainer builds it too,\n"
        "# in the directory that holds definitions/:\n" + _plain_build(image)
    )


def _plain_build(image: Image) -> str:
    files = f"{image.name}.sif {image.name}.def"
    if image.resolution.environment is None:
        return f"#     apptainer build {files}\n"
    return (
        "#     APPTAINERENV_PIP_NO_INDEX=1 APPTAINERENV_PIP_FIND_LINKS=/mnt \\\n"
        f"#         apptainer build --bind WHEELS:/mnt:ro {files}\n"
        f"# with a directory of wheels, on a host that has {image.resolution.environment} as the lock knows it.\n"
    )


def _section(name: str, *paragraphs: str) -> str:
    body = "\n\n".join(paragraph.strip("\n") for paragraph in paragraphs if paragraph)
    # split("\n"), not splitlines or textwrap.indent: those also break at U+2028, inside somebody's value
    lines = (f"    {line}" if line else "" for line in body.split("\n"))
    return f"%{name}\n" + "\n".join(lines) + "\n"


def _setup(source: Base) -> str:
    mount_point = (
        "# sifkit binds caches and certificates here while it builds.\n"
        f'umask 022\nmkdir -p "${{APPTAINER_ROOTFS:?}}{HOST_DIR}"'
    )
    if isinstance(source, Debootstrap):
        return _section("setup", mount_point, _BUILD_HOST)
    if not isinstance(source, Scratch):
        return _section("setup", mount_point)
    directories = ["dev", "etc", "home", "mnt", "opt", "proc", "root", "sys", "tmp", "usr", "var/tmp"]
    tree = f"""\
# The tree is the build host's own.
cd "${{APPTAINER_ROOTFS:?}}"
mkdir -p {" ".join(directories)}
chmod 1777 tmp var/tmp
for path in {" ".join(quote(path) for path in source.copy_)}; do
    [ ! -e "$path" ] || cp -a --parents "$path" .
done
{_copy_environment(source)}for link in bin lib lib64 sbin; do
    [ -e "$link" ] || ln -s "usr/$link" "$link"
done"""
    return _section("setup", tree, mount_point)


_BUILD_HOST = """\
# debootstrap took these from the build host. Devices can be made by root alone, and the host's are mounted over them.
cd "${APPTAINER_ROOTFS:?}"
find dev -mindepth 1 -delete
rm -f etc/resolv.conf
: > etc/resolv.conf
echo localhost > etc/hostname"""


def _copy_environment(source: Scratch) -> str:
    """Like the rest, but it must be there."""
    return f"cp -a --parents {quote(source.environment)} .\n" if source.environment else ""


def _files(image: Image) -> str:
    lock, spec = _file_word(image.lock_path), _file_word(spec_path(image))
    own = _section("files", f"{lock} {CARRIED_LOCK}\n{spec} {CARRIED_SPEC}")
    return own + _raw(image.spec.sections, "files")


def spec_path(image: Image) -> str:
    """Relative to the project's root."""
    return image.lock_path.removesuffix(".lock") + ".yaml"


def _file_word(path: str) -> str:
    return quote(path) if any(character.isspace() for character in path) else path


_READABLE = f"""\
# Copies have the modes of their files, which may be their owner's alone.
chmod 644 {CARRIED_LOCK} {CARRIED_SPEC}"""
_UV_INSTALL = f"{VENV}/bin/uv pip install --python {VENV}/bin/python --require-hashes"
_SITE = f"""\
# What the site needs to reach its mirrors: written by sifkit beside its caches, absent in a plain build.
if [ -r {HOST_DIR}/site.sh ]; then set +x; . {HOST_DIR}/site.sh; set -x; fi"""


def _post(image: Image, *, system: bool, python: bool) -> str:
    has_apt = not isinstance(image.base.source, Scratch)
    paragraphs = [_SITE]
    if system:
        paragraphs += [_system(image)] if has_apt else ["# Triton asks ldconfig where libcuda is.\n/usr/sbin/ldconfig"]
    install = _python if image.resolution.environment is None else _python_in_environment
    paragraphs += [install(image), _READABLE] if python else []
    return _section("post", *paragraphs)


def _system(image: Image) -> str:
    options = _apt_options(image.base.source)
    packages = " \\\n    ".join(quote(package) for package in debian_packages(image.spec, image.resolution))
    return f"""\
# Debian packages. apt may not change users in a user namespace, hence the sandbox user.
umask 022
export DEBIAN_FRONTEND=noninteractive
apt-get update -q {options}
apt-get install -qy --no-install-recommends {options} \\
    {packages}

{_RECORD}

{_SAME_FILES}

{VALID_FOR_GOOD}"""


def _apt_options(source: Base) -> str:
    """The index of a snapshot is as old as its moment, which apt would refuse."""
    old = isinstance(source, Debootstrap) and re.search(r"/\d{8}T\d{6}Z(/|$)", source.mirror or "")
    return "-o APT::Sandbox::User=root" + (" -o Acquire::Check-Valid-Until=false" if old else "")


# apt's index knows debootstrap's packages too, and reads itself however it is compressed (apt-get(8), indextargets).
_RECORD = f"""\
# Which packages these are, each with the sha256 that the mirror's index gives of its file.
mkdir -p {IMAGE_DIR}
{{
    apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' | xargs -r /usr/lib/apt/apt-helper cat-file
    echo
    dpkg-query -W -f '${{db:Status-Status}}: ${{Package}} ${{Version}} ${{Architecture}}\\n'
}} | awk '
    /^Package: / {{ name = $2 }}
    /^Version: / {{ version = $2 }}
    /^Architecture: / {{ architecture = $2 }}
    /^SHA256: / {{ sha256 = $2 }}
    /^$/ {{ if (sha256) known[name " " version " " architecture] = sha256; sha256 = "" }}
    /^installed: / {{ key = $2 " " $3 " " $4; print key, (key in known) ? known[key] : "-" }}
' | LC_ALL=C sort > {DEBIAN_PACKAGES}
test -s {DEBIAN_PACKAGES}"""

# An empty third field of shadow: no day of the last change, so no ageing (shadow(5)). An empty machine-id: none yet
# (machine-id(5)). Caches of ldconfig and fontconfig hold inodes and times, and are made again by whoever needs them.
_SAME_FILES = """\
# Nothing stays of the day, the machine or this run: two builds give the same files.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/debconf/*-old /var/lib/dpkg/*-old /var/cache/ldconfig/* /var/cache/man/* \\
    /var/cache/fontconfig/* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/ssh/ssh_host_*
rm -f /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-
find /var/log -type f -delete
[ ! -e /etc/machine-id ] || : > /etc/machine-id
sed -i 's/^\\([^:]*:[^:]*\\):[0-9]*:/\\1::/' /etc/shadow"""


def _python(image: Image) -> str:
    return f"""\
# Python packages: uv from the lock, by pip; then everything else in the lock, by uv. Each file is checked
# against its hash; the few source archives are built with the setuptools that the lock pins. Bytecode does not
# name the time of its source, so that all times in an image may be the same.
{_venv_with_uv(image, CARRIED_LOCK)}
{_UV_INSTALL}{_torch_backend(image)} \\
    --build-constraints {CARRIED_LOCK} \\
    -r {CARRIED_LOCK}

{compile_packages(VENV, image.spec.python, for_good=True)}

{write_import_names(VENV, image.spec.python)}

{_toolkit(image)}# A plain build filled these caches itself; under sifkit they are the host's, and stay.
[ -e {HOST_DIR}/site.sh ] || rm -rf {HOST_DIR}/pip {HOST_DIR}/uv
rm -rf {VENV}/uv.lock /root/.cache"""


def install_script(image: Image, anew: Sequence[str] = (), *, uv_is_there: bool = False) -> str:
    """Shell text that installs MISSING_LOCK, a part of the lock, into VENV in a container of the base.

    The cache is bound at the directory above VENV: within one mount, uv makes hard links in place of copies. `anew`:
    packages that uv keeps, but damaged, so that it must load them again. `uv_is_there`: the program stands in VENV,
    which is empty otherwise; then nothing needs pip, which takes seconds to be installed.
    """
    packages = f"{VENV}/{site_packages(image.spec.python)}"
    return f"""\
set -e
umask 022
{_SITE}
export HOME={HOST_DIR} TMPDIR={HOST_DIR}
{f"python{image.spec.python} -m venv --without-pip {VENV}" if uv_is_there else _venv_with_uv(image, WHOLE_LOCK)}
export UV_CACHE_DIR={posixpath.dirname(VENV)}/uv UV_LINK_MODE=hardlink
{f"{VENV}/bin/uv cache clean {' '.join(map(quote, anew))}" if anew else "# all that uv keeps is used"}
{_UV_INSTALL} --no-deps{_torch_backend(image)} \\
    --build-constraints {WHOLE_LOCK} -r {MISSING_LOCK}
# Each layer's bytecode gets the time that its sources have in an image.
{compile_packages(VENV, image.spec.python, for_good=False)}
# Of wheels that are files of the host, uv notes when it saw them; an image holds no times.
grep -l '^[^/]*/uv_cache.json,' {packages}/*.dist-info/RECORD | while read -r record; do
    sed -i '/uv_cache.json,/d' "$record"
    rm "${{record%RECORD}}uv_cache.json"
done
{write_import_names(VENV, image.spec.python)}
rm -f {VENV}/uv.lock
"""


def _venv_with_uv(image: Image, lock: str) -> str:
    return f"""\
export PIP_CACHE_DIR={HOST_DIR}/pip UV_CACHE_DIR={HOST_DIR}/uv UV_LINK_MODE=copy
python{image.spec.python} -m venv {VENV}
grep -A1 '^uv==' {lock} > {VENV}/uv.lock
install_uv() {{
    {VENV}/bin/pip install --quiet --disable-pip-version-check --no-compile --require-hashes --only-binary :all: \\
        -r {VENV}/uv.lock
}}
# pip does not load a file again whose copy in its cache is damaged.
install_uv || {{ {VENV}/bin/pip cache purge; install_uv; }}"""


def _python_in_environment(image: Image) -> str:
    environment, version = image.resolution.environment, image.spec.python
    assert environment is not None
    link = f"ln -s {quote(environment)} {VENV}\n" if environment.rstrip("/") != VENV else ""
    return f"""\
# What the host's environment lacks, by its own pip, each file checked against its hash. Everything is compiled
# here, on all cores, since imports without bytecode are slow; files that are not for this Python stay as they are.
export PIP_CACHE_DIR={HOST_DIR}/pip
{link}{VENV}/bin/python -I -m pip install --quiet --disable-pip-version-check --root-user-action ignore \\
    --require-hashes --no-deps --no-compile -r {CARRIED_LOCK}
{VENV}/bin/python -I -m compileall -qq -j 0 {VENV}/{site_packages(version)} || echo "some files do not compile"

{write_import_names(VENV, version)}

{_toolkit(image)}# A plain build filled this cache itself; under sifkit it is the host's, and stays.
[ -e {HOST_DIR}/site.sh ] || rm -rf {HOST_DIR}/pip
rm -rf /root/.cache"""


def _toolkit(image: Image) -> str:
    """/usr/local/cuda of the wheels' nvcc, headers and libraries, whose names linkers look for without versions."""
    if image.resolution.toolkit is None:
        return ""
    wheels = f"{VENV}/{site_packages(image.spec.python)}/{image.resolution.toolkit}"
    return f"""\
# A CUDA toolkit where everybody looks for it, of links into the wheels.
mkdir -p {CUDA_HOME}/lib64
ln -s lib {wheels}/lib64 # where nvcc itself links from
for part in bin include nvvm; do ln -s {wheels}/$part {CUDA_HOME}/$part; done
for library in {wheels}/lib/*; do
    name=${{library##*/}}
    ln -sf "$library" "{CUDA_HOME}/lib64/$name"
    case $name in *.so.*) ln -sf "$library" "{CUDA_HOME}/lib64/${{name%%.so.*}}.so" ;; esac
done

"""


def _torch_backend(image: Image) -> str:
    backend = image.resolution.torch_backend
    return f" \\\n    --torch-backend {backend}" if backend else ""


def _tail(image: Image, sifkit_version: str) -> list[str]:
    spec = image.spec
    environment = [f'export PATH={VENV}/bin:"$PATH"']
    environment += ["# The user's ~/.local would shadow the image where $HOME is mounted.", "export PYTHONNOUSERSITE=1"]
    environment += [f"export CUDA_HOME={CUDA_HOME}"] if image.resolution.toolkit else []
    environment += [f"export {name}={quote(value)}" for name, value in sorted(spec.env.items())]
    wanted = labels(image, sifkit_version=sifkit_version)
    raw = spec.sections
    parts = [
        _section("environment", "\n".join(environment)) + _raw(raw, "environment"),
        _section("labels", "\n".join(f"{name} {value}" for name, value in wanted.items())) + _raw(raw, "labels"),
        _own(raw, "runscript", 'exec llamafactory-cli "$@"'),
        _section("test", _test(spec)) + _raw(raw, "test"),
        _own(raw, "help", _help(image)),
    ]
    return [*parts, *([_own(raw, "startscript", "")] if "startscript" in raw else [])]


def _own(sections: Mapping[str, str], name: str, ours: str) -> str:
    """A section that a spec may replace."""
    return f"%{name}\n{sections[name].strip()}\n" if name in sections else _section(name, ours)


def _test(spec: ImageSpec) -> str:
    return f"""\
# `llamafactory-cli version` succeeds on a broken install; the trainer's import does not.
{VENV}/bin/python -c 'import torch, torchaudio, torchvision; \\
    import llamafactory.train.tuner; \\
    from llamafactory.extras.env import VERSION; \\
    assert VERSION == "{spec.llamafactory.version}", VERSION; \\
    assert torch.__version__.split("+")[0] == "{spec.torch.version}", torch.__version__; \\
    assert torch.version.cuda == "{spec.torch.cuda}", torch.version.cuda; \\
    print("ok: LLaMA-Factory", VERSION, "torch", torch.__version__)'"""


def _help(image: Image) -> str:
    return f"""\
{_summary(image.spec)}.

Train, in a LLaMA-Factory {image.spec.llamafactory.version} checkout (data/ and examples/ come from there):

  apptainer exec --nv --bind CHECKOUT:/mnt {image.name}.sif \\
      bash -c "cd /mnt && llamafactory-cli train examples/train_lora/YOUR.yaml"

What is inside: {CARRIED_LOCK}; labels: apptainer inspect {image.name}.sif"""
