"""The frozen data that flows through sifkit: specs, sites, bases, resolved images.

The pydantic models are the single source of what a spec and a site file may say: loading, the
editors' JSON Schema and the reference pages all come from them.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Annotated, Literal

from packaging.requirements import InvalidRequirement, Requirement
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

Version = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)*((a|b|rc|\.post|\.dev)[0-9]+)?$")]
MinorVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+$")]
DebianPackage = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?$")]
DriverVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+){0,2}$")]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9A-Fa-f]{40}$")]
AbsolutePath = Annotated[str, StringConstraints(pattern=r"^/[^\x00-\x1f]*$")]

# One token inside a definition header: Apptainer reads the rest of the line as the value.
_ONE_LINE = r"^[^\s\x00-\x1f]+$"
IMAGE_NAME = "[a-z0-9][a-z0-9._-]*"
Method = Literal["full", "lora", "qlora"]  # of training, that a verification can try
RegistryHost = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]+(:[0-9]+)?$")]
RegistryPlace = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$")]
SourceReference = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$")]
OneWord = Annotated[str, StringConstraints(pattern=_ONE_LINE)]
SectionName = Annotated[
    str,
    StringConstraints(
        pattern=r"^(setup|files|post|environment|labels|runscript|startscript|test|help"
        r"|app(install|env|run|start|labels|files|help|test) [A-Za-z0-9][A-Za-z0-9._-]*)$"
    ),
]


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


# ---------------------------------------------------------------------------------------------- bases


class Debootstrap(Strict):
    """A Debian or Ubuntu tree made by debootstrap from a package mirror."""

    bootstrap: Literal["debootstrap"]
    suite: OneWord = Field(description="the release's code name", examples=["trixie"])
    mirror: OneWord | None = Field(
        None,
        description="package mirror; null takes it from the host's apt sources, for a snapshot the public archive; "
        "{snapshot} in it stands for the moment",
        examples=["http://mirror.example/debian"],
    )
    snapshot: Annotated[str, StringConstraints(pattern=r"^[0-9]{8}T[0-9]{6}Z$")] | None = Field(
        None, description="the moment (UTC) whose packages are meant", examples=["20261120T000000Z"]
    )

    @field_validator("mirror")
    @classmethod
    def _no_password(cls, value: str | None) -> str | None:
        if "@" in (value or "").partition("://")[2].partition("/")[0]:
            raise ValueError(
                "the address holds a user or a password, and stands in the image: leave them out, and write "
                "`machine HOST login USER password PASSWORD` into a file that debian.auth in the site file names"
            )
        return value

    @model_validator(mode="after")
    def _mirror_of_the_moment(self) -> Debootstrap:
        named = "{snapshot}" in (self.mirror or "")
        if self.snapshot and self.mirror and not named:
            raise ValueError("with a snapshot, the mirror's address has {snapshot} where the moment stands")
        if named and not self.snapshot:
            raise ValueError("the mirror's address has {snapshot}, but no snapshot is given")
        return self


class DockerBase(Strict):
    """An image from a registry; give the digest (`name@sha256:…`) to have the same one next month."""

    bootstrap: Literal["docker"]
    from_: OneWord = Field(alias="from", examples=["debian:trixie-slim"])


class LocalImage(Strict):
    """A .sif or a sandbox directory on this filesystem."""

    bootstrap: Literal["localimage"]
    from_: SourceReference = Field(alias="from", examples=["/shared/images/debian-trixie.sif"])


class OciArchive(Strict):
    """A tar file in OCI layout, as `podman save --format oci-archive` writes."""

    bootstrap: Literal["oci-archive"]
    from_: SourceReference = Field(alias="from")


class DockerArchive(Strict):
    """A tar file as `docker save` writes."""

    bootstrap: Literal["docker-archive"]
    from_: SourceReference = Field(alias="from")


# What a tree needs to run the host's Python, compiler (libexec on Ubuntu) and ldconfig, which Triton asks.
HOST_TREE = (
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/libexec",
    "/usr/include",
    "/etc/passwd",
    "/etc/group",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ssl/certs",
    "/etc/alternatives",
)


class Scratch(Strict):
    """An empty tree with directories of the build host copied in: for hosts without any network or registry."""

    bootstrap: Literal["scratch"]
    copy_: tuple[AbsolutePath, ...] = Field(
        HOST_TREE,
        alias="copy",
        description="files and directories of the host, copied to the same place; absent ones are left out",
    )
    environment: AbsolutePath | None = Field(
        None,
        description="a Python environment of the build host, copied to the same place; its packages are kept, "
        "only what is missing is installed",
        examples=["/opt/torch/.venv"],
    )


Base = Annotated[
    Debootstrap | DockerBase | LocalImage | OciArchive | DockerArchive | Scratch, Field(discriminator="bootstrap")
]


# ---------------------------------------------------------------------------------------------- image spec


class Torch(Strict):
    """Which torch. torchvision and torchaudio follow from it: the three are one set."""

    version: Version = Field(examples=["2.9.1"])
    cuda: MinorVersion = Field(description="the CUDA that torch is built for", examples=["12.8"])


class LlamaFactory(Strict):
    """Which LLaMA-Factory."""

    version: Version = Field(examples=["0.9.5"])


def _version_alone(value: object) -> object:
    """`llamafactory: 0.9.5` says as much as `llamafactory: {version: 0.9.5}`."""
    return {"version": value} if isinstance(value, str) else value


LlamaFactoryChoice = Annotated[
    LlamaFactory, BeforeValidator(_version_alone, json_schema_input_type=Version | LlamaFactory)
]
ImageName = Annotated[str, StringConstraints(pattern=f"^{IMAGE_NAME}$", max_length=80)]


class SpecContents(Strict):
    """What a spec may say besides its pins."""

    gpu: tuple[str, ...] = Field(
        (), description="GPUs that the image must serve, checked before it is built", examples=[["V100", "H100"]]
    )
    driver: DriverVersion | None = Field(
        None, description="oldest NVIDIA driver that it will meet", examples=["535.104.05"]
    )
    extras: tuple[OneWord, ...] = Field(
        (), description="LLaMA-Factory's optional dependencies, by the names of its wheel"
    )
    packages: tuple[SourceReference, ...] = Field((), description="further Python requirements, as pip writes them")
    sdists: tuple[OneWord, ...] = Field(
        (), description="Python packages that may be built from source, besides those known"
    )
    apt: tuple[DebianPackage, ...] = Field((), description="Debian packages besides Python itself")
    env: dict[Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(
        default_factory=dict, description="environment variables inside the image"
    )

    sections: dict[SectionName, str] = Field(
        default_factory=dict,
        description="text for sections of the definition, as it is: behind sifkit's own; runscript, startscript and "
        "help in place of it. `post` runs when the Python packages are there, with /opt/venv/bin first on PATH",
        examples=[{"post": "git clone --depth 1 https://example.org/tool.git /opt/tool"}],
    )

    @field_validator("sections")
    @classmethod
    def _sections_stay_sections(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if re.search(r"[\x00-\x08\x0b-\x1f]", text) or any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"{name} holds a control character, or is not text")
            if re.search(r"^\s*%", text, re.MULTILINE):
                raise ValueError(f"{name} has a line that begins with %, which would begin another section")
            if "{{" in text:
                raise ValueError(f"{name} holds '{{{{', which Apptainer takes for a build argument")
        return value

    @field_validator("packages")
    @classmethod
    def _requirements(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            try:
                Requirement(text)
            except InvalidRequirement as error:
                raise ValueError(
                    f"{text!r} is no requirement as pip writes them: {str(error).splitlines()[0]}"
                ) from None
        return value

    @field_validator("env")
    @classmethod
    def _one_line_values(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if name in ("PATH", "PYTHONNOUSERSITE"):
                raise ValueError(f"{name} is the image's own: its Python and its isolation depend on it")
            if not text.isascii() and "\\u" in ascii(text) and any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"{name} is not text (a lone surrogate)")
            if re.search(r"[\x00-\x1f]", text):
                raise ValueError(f"{name} holds a control character or a line break")
            if "{{" in text:  # Apptainer ≥ 1.2 reads {{ }} in definitions as build arguments
                raise ValueError(f"{name} holds '{{{{', which Apptainer takes for a build argument")
        return value


class ImageSpec(SpecContents):
    """What is in an image: the same on every machine. `definitions/NAME.yaml`."""

    name: ImageName = Field(description="file name of the image, without .sif; the spec's own file name")
    base: OneWord | Base = Field(
        description="logical name of the operating system (the site says how to obtain it), or a base written out"
    )
    python: MinorVersion = Field(description="the base's Python", examples=["3.13"])
    torch: Torch
    llamafactory: LlamaFactoryChoice

    def digest(self) -> str:
        """Identity of what is in the image; comments, the order of keys, `gpu` and `driver` do not count."""
        unsaid = {"gpu", "driver"} | (set() if self.sections else {"sections"})  # specs without keep their digest
        return digest_of(self.model_dump(mode="json", by_alias=True, exclude=unsaid))


class TorchWish(Strict):
    """As much of torch as the user knows."""

    version: Version | None = None
    cuda: MinorVersion | None = None


class ImageWish(SpecContents):
    """A spec with pins left out, for `sifkit resolve` to choose."""

    name: ImageName
    base: OneWord | Base | None = None
    python: MinorVersion | None = None
    torch: TorchWish = TorchWish()
    llamafactory: LlamaFactoryChoice | None = None


# ---------------------------------------------------------------------------------------------- site


class PythonIndex(Strict):
    """Where Python packages come from on this site."""

    url: OneWord | None = Field(
        None, description="package index; null takes UV_DEFAULT_INDEX, PIP_INDEX_URL or pip.conf, else the public one"
    )
    extra_urls: tuple[OneWord, ...] = Field(
        (), description="further indexes, asked first; none takes UV_INDEX, PIP_EXTRA_INDEX_URL or pip.conf"
    )
    torch_url: Annotated[str, StringConstraints(pattern=r"^[^\s{}]*(\{cuda\}[^\s{}]*)*$")] | None = Field(
        None, description="index of torch builds for other CUDA versions, with {cuda} for cu126 and the like"
    )
    wheelhouse: str | None = Field(None, description="directory of wheels, used instead of an index")
    ca_bundle: str | None = Field(
        "auto",
        description="certificates for everything that is reached, builds included: auto takes those of SSL_CERT_FILE, "
        "REQUESTS_CA_BUNDLE or the host; null none; or a path; never baked in",
    )


class SiteDebian(Strict):
    """How Debian's packages are reached; the mirror itself is named in `bases`."""

    auth: str | None = Field(
        None,
        description="file with users and passwords of mirrors, as apt_auth.conf(5) has them, lent to apt for the time "
        "of a build; null takes the host's own for the mirror, where this user may read it",
        examples=["/etc/apt/auth.conf.d/mirror.conf"],
    )


class SiteRegistry(Strict):
    """How one registry is reached."""

    mirror: RegistryPlace | None = Field(
        None,
        description="taken in its place: HOST[:PORT][/FOLDER]; names and digests in locks and images stay",
        examples=["registry.example:5000/dockerhub"],
    )
    http: bool = Field(False, description="it speaks plain http")


class SiteProxy(Strict):
    """Proxies, before those of the environment."""

    http: OneWord | None = Field(None, description="for http; null takes http_proxy", examples=["http://proxy:3128"])
    https: OneWord | None = Field(None, description="for https; null takes https_proxy")
    no_proxy: OneWord | None = Field(None, description="hosts that need none; null takes no_proxy")


class SiteGpu(Strict):
    """The GPUs of this site, for checks where there is none (a login node)."""

    driver: DriverVersion | None = Field(None, examples=["550.54.15"])
    models: tuple[str, ...] = Field((), examples=[["A100", "H100"]])


class SiteSlurm(Strict):
    """Defaults for jobs."""

    partition: OneWord | None = None
    account: OneWord | None = None
    qos: OneWord | None = None
    constraint: OneWord | None = None
    gres: OneWord = Field("gpu:{n}", description="how this cluster asks for n GPUs of a node")
    gpus: int = Field(1, ge=0, description="GPUs of each node, if the command line says nothing")
    cpus: int | None = Field(None, ge=1, description="cores of each node; null: the share that goes with its GPUs")
    mem: OneWord | None = Field(None, description="memory of each node; null: the share that goes with its GPUs")
    time: str | None = Field(None, description="time limit, as sbatch writes it", examples=["24:00:00"])
    mail_user: OneWord | None = None
    requeue: bool = Field(False, description="jobs go on after time limit and preemption")
    signal: int = Field(300, ge=20, description="seconds before the time limit at which such a job is warned")
    copy_image: bool = Field(False, description="copy the image to the node first")
    modules: tuple[OneWord, ...] = Field((), description="loaded by each job", examples=[["apptainer"]])


class SiteCache(Strict):
    """Where caches are kept."""

    hf_home: str | None = None


class SiteSignatures(Strict):
    """What `--verify` asks of an image's signatures. One that was changed after it was signed is refused anyway."""

    required: bool = Field(False, description="refuse an image that nobody signed")
    keys: tuple[Fingerprint, ...] = Field(
        (),
        description="fingerprints of the keys that may sign; none: any key that Apptainer's keyring here knows",
        examples=[["8883491F4268F173C6E5DC49EDECE4F3F38D871E"]],
    )


class Site(Strict):
    """How things are obtained and run here; never part of an image. `site.yaml`."""

    bases: dict[str, Base] = Field(
        default_factory=dict, description="logical base names of the specs, and how to get each"
    )
    python_index: PythonIndex = PythonIndex()
    debian: SiteDebian = SiteDebian()
    registries: dict[RegistryHost, SiteRegistry] = Field(
        default_factory=dict, description="registries by host, docker.io among them", examples=[{"docker.io": {}}]
    )
    proxy: SiteProxy = SiteProxy()
    tmpdir: str = Field("auto", description="where images are assembled: node-local, with room; auto chooses")
    gpu: SiteGpu = SiteGpu()
    slurm: SiteSlurm = SiteSlurm()
    binds: tuple[str, ...] = Field((), description="directories that jobs need besides their own, SOURCE[:TARGET[:ro]]")
    cache: SiteCache = SiteCache()
    signatures: SiteSignatures = SiteSignatures()


# ---------------------------------------------------------------------------------------------- resolved


@dataclass(frozen=True)
class LockedPackage:
    """One file of a lock: a wheel, or for a few packages a source archive."""

    name: str
    version: str
    file: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class Inherited:
    """A package that the base's environment brings: nothing is fetched, so there is no file and no hash."""

    name: str
    version: str


@dataclass(frozen=True)
class Lock:
    """A spec resolved: every package, hashed. `text` is the file, a requirements file that pip reads too."""

    text: str
    inputs_digest: str  # of what it was resolved from: see lock.inputs_digest
    packages: tuple[LockedPackage, ...]
    inherited: tuple[Inherited, ...] = ()

    def digest(self) -> str:
        """Identity of the file, byte for byte."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def versions(self) -> dict[str, str]:
        """Everything that the image holds, installed or inherited: version by normalised name."""
        inherited = {package.name: package.version for package in self.inherited}
        return inherited | {package.name: package.version for package in self.packages}

    def version_of(self, name: str) -> str | None:
        """The version of a package in the image, by its normalised name."""
        return self.versions().get(name)

    def download_bytes(self) -> int:
        """What a build with an empty cache downloads."""
        return sum(package.size for package in self.packages)


@dataclass(frozen=True)
class Resolution:
    """What follows from a spec and the tables: a lock is resolved from it, a definition rendered from it."""

    requirements: tuple[str, ...]
    python: str
    platform: str
    sdists: tuple[str, ...]
    torch_backend: str | None  # cu126 and the like, when the package index's own torch is for another CUDA
    constraints: tuple[str, ...] = ()  # which releases to keep clear of, where a package is needed at all
    apt: tuple[str, ...] = ()  # Debian packages that extras need
    toolkit: str | None = None  # nvidia/cu13: where wheels put nvcc below site-packages, if an extra compiles with it
    environment: str | None = None  # of the build host, in which only what is missing is installed

    def digest(self) -> str:
        """Identity of what a lock depends on; a lock carries it, so that a stale one is known without a resolver."""
        parts = [self.requirements, self.python, self.platform, self.sdists, self.torch_backend, self.constraints]
        return digest_of([*parts, self.environment] if self.environment else parts)


@dataclass(frozen=True)
class Image:
    """A spec with all that follows from it: everything that rendering needs."""

    spec: ImageSpec
    resolution: Resolution
    lock: Lock
    lock_path: str  # as the definition's %files names it, relative to the project's root
    base: ImageBase

    @property
    def name(self) -> str:
        """The spec's name."""
        return self.spec.name


@dataclass(frozen=True)
class ImageBase:
    """A base as this site obtains it."""

    name: str  # logical name, "" when the spec wrote the base out
    source: Debootstrap | DockerBase | LocalImage | OciArchive | DockerArchive | Scratch
    identity: str  # what staleness compares: the same wherever the same logical base is meant


def digest_of(value: object) -> str:
    """sha256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
