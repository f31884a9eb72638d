"""What is asked of a spec, and what was found: the words that rules, commands and tests share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from sifkit.compat.tables import LlamaFactoryRelease, Tables, TorchBuild
from sifkit.model import ImageSpec, Lock, Site
from sifkit.tables import KnownBase, known_bases


class Severity(str, Enum):
    """ERROR stops; WARNING is said; UNKNOWN means that no row of the tables knows, and nothing is concluded."""

    ERROR = "error"
    WARNING = "warning"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Finding:
    """Something that does not fit, or that nobody knows to fit."""

    rule: str  # a stable name: driver-too-old
    severity: Severity
    subject: str  # what of the wish it is about: "driver 550.54", "V100", "extra deepspeed"
    message: str
    fix: str
    source: str  # where the fact was read

    @property
    def text(self) -> str:
        """What, by which rule, and where the first of its facts was read."""
        source = self.source.split()[0] if self.source.startswith("http") else self.source
        return f"{self.message} [{self.rule}; {source}]"


def errors(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop."""
    return [found for found in findings if found.severity is Severity.ERROR]


@dataclass(frozen=True)
class Target:
    """Where the image must run: the spec's own words, else the site's."""

    gpus: tuple[str, ...] = ()
    driver: str | None = None

    @classmethod
    def of(cls, spec: ImageSpec, site: Site) -> Target:
        """A spec that names its GPUs is not for all those of the site."""
        return cls(spec.gpu or site.gpu.models, spec.driver or site.gpu.driver)


@dataclass(frozen=True)
class Pinned:
    """A package of which one version was chosen."""

    name: str
    version: str | None
    file: str  # of the wheel, "" where none was chosen yet
    origin: str  # "packages: vllm==0.11.0", "the lock"


@dataclass(frozen=True)
class Question:
    """A spec, where it must run, what is known; and its lock, when there is one."""

    spec: ImageSpec
    target: Target
    tables: Tables
    lock: Lock | None = None

    @cached_property
    def build(self) -> TorchBuild | None:
        """The row of this torch for this CUDA."""
        return self.tables.build(self.spec.torch.version, self.spec.torch.cuda)

    @cached_property
    def llamafactory(self) -> LlamaFactoryRelease | None:
        """The row of this LLaMA-Factory."""
        return self.tables.llamafactory(self.spec.llamafactory.version)

    @cached_property
    def base(self) -> KnownBase | None:
        """The operating system's row, for a base that is a known name."""
        return known_bases().get(self.spec.base) if isinstance(self.spec.base, str) else None

    @cached_property
    def pinned(self) -> dict[str, Pinned]:
        """Packages of which the version is known: every one in the lock, else those that the spec pins."""
        if self.lock is None:
            return pins_of(self.spec.packages, self.spec.python)
        inherited = (p for p in self.lock.inherited if self._concerns(p.name) and _is_version(p.version))
        found = {p.name: Pinned(p.name, p.version, "", "the environment") for p in inherited}
        return {**found, **{p.name: Pinned(p.name, p.version, p.file, "the lock") for p in self.lock.packages}}

    def _concerns(self, name: str) -> bool:
        """Whether an inherited package is the image's business: what is tied to torch only when it is asked for.

        An environment holds what other work needs; nothing of that may refuse an image that does not use it.
        """
        own = {canonicalize_name(Requirement(text).name) for text in self.spec.packages}
        return name in own or name in self.spec.extras or not (name == "flash-attn" or self.tables.releases(name))

    @property
    def torch_words(self) -> str:
        """As people say it."""
        return f"torch {self.spec.torch.version} for CUDA {self.spec.torch.cuda}"


def pins_of(packages: Iterable[str], python: str) -> dict[str, Pinned]:
    """The requirements of a spec that apply to this Python, by name."""
    found = [_pinned(text, python) for text in packages]
    return {pin.name: pin for pin in found if pin}


def _pinned(text: str, python: str) -> Pinned | None:
    """A requirement that applies; its version where it is pinned, or where it is a wheel, whose name says it."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return None
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    if requirement.marker and not requirement.marker.evaluate({**environment, "platform_system": "Linux"}):
        return None
    file = (requirement.url or "").rpartition("/")[2].partition("#")[0].replace("%2B", "+")
    pins = [part.version for part in requirement.specifier if part.operator == "==" and "*" not in part.version]
    version = pins[0] if pins else _version_of_wheel(file)
    return Pinned(canonicalize_name(requirement.name), version, file, f"packages: {text}")


def _version_of_wheel(file: str) -> str | None:
    """Source archives, branches and forks do not say their version in a way that one could trust."""
    try:
        return str(parse_wheel_filename(file)[1])
    except InvalidWheelFilename:
        return None


def _is_version(text: str) -> bool:
    """Distributions' own packages have versions that pip knows nothing of, and that nothing asks for."""
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def same_version(one: str, other: str) -> bool:
    """2.10 is 2.10.0; what stands after a plus does not count."""
    return Version(Version(one).public) == Version(Version(other).public)
