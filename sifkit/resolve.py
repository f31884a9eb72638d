"""What follows from a spec: requirements for the resolver, the platform, the base as this site obtains it.

Pure: what the host shows is handed in as `HostBases`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from packaging.requirements import Requirement

from sifkit.compat.findings import Question, Target
from sifkit.compat.pairs import constraints
from sifkit.compat.tables import Tables, TorchBuild
from sifkit.errors import UsageError
from sifkit.model import Base, Debootstrap, DockerBase, ImageBase, ImageSpec, Resolution, Scratch, Site, digest_of
from sifkit.tables import Extra, KnownBase, known_bases, known_extras, known_sdists, known_snapshots

OLDEST_GLIBC = "2.28"  # of bases that we do not know: what torch's own wheels ask for since 2.6
MOUNTED_OVER = ("/dev", "/home", "/proc", "/root", "/sys", "/tmp", "/var/tmp")  # by Apptainer's own defaults
NEWEST_MANYLINUX = (2, 40)  # the newest platform that uv names


@dataclass(frozen=True)
class HostBases:
    """What the build host offers for making bases."""

    debootstrap: bool = False
    suites: tuple[str, ...] = ()  # that its debootstrap has scripts for
    mirrors: Mapping[str, str] = field(default_factory=dict)  # apt suite → mirror


def resolution(spec: ImageSpec, tables: Tables, site: Site) -> Resolution:
    """A torch that no row knows is left to the index. Raises `UsageError` for an extra or Python that is not known."""
    check_python(spec)
    base = environment_base(spec, site)
    if base and base.environment:
        return _in_environment(spec, tables, base.environment)
    return Resolution(
        requirements=(
            *_requirements_of(spec, tables),
            "setuptools",  # builds the few packages without wheels, pinned like everything else
            "uv",  # installs the lock; stays in the image for users' overlays
        ),
        python=spec.python,
        platform=platform_of(spec),
        sdists=_sdists(spec),
        torch_backend=_backend(spec, tables.default_build(spec.torch.version)),
        toolkit=_toolkit(spec, tables),
        apt=tuple(sorted({package for name in spec.extras for package in extra_named(name).apt})),
        constraints=constraints(Question(spec, Target(), tables)),
    )


def _in_environment(spec: ImageSpec, tables: Tables, environment: str) -> Resolution:
    """The environment's own pip installs, from wheels alone: a build from source needs more than is there."""
    mounted = mounted_over(environment)
    if mounted:
        message = f"the host's {mounted} is mounted over the image's when it runs, with the environment {environment}"
        fix = "have the environment at another place, /opt or /srv: it is copied to the same place in the image"
        raise UsageError(f"definitions/{spec.name}.yaml: {message}", fix)
    if spec.sdists:
        wheels = " ".join(spec.sdists)
        message = (
            f"definitions/{spec.name}.yaml: sdists: in an environment that is already there only wheels are installed"
        )
        raise UsageError(message, f"leave sdists out, and put wheels into the wheelhouse: pip wheel {wheels}")
    return Resolution(
        requirements=_requirements_of(spec, tables),
        python=spec.python,
        platform=f"as {environment}",
        sdists=(),
        torch_backend=None,
        toolkit=_toolkit(spec, tables),
        constraints=constraints(Question(spec, Target(), tables)),
        environment=environment,
    )


def mounted_over(path: str) -> str | None:
    """The directory of the host that Apptainer puts over `path` when an image runs, if it does."""
    return next((place for place in MOUNTED_OVER if f"{path}/".startswith(f"{place}/")), None)


def environment_base(spec: ImageSpec, site: Site) -> Scratch | None:
    """The image's base, if it has a Python environment of the build host in it."""
    base = site.bases.get(spec.base) if isinstance(spec.base, str) else spec.base
    return base if isinstance(base, Scratch) and base.environment else None


def _requirements_of(spec: ImageSpec, tables: Tables) -> tuple[str, ...]:
    """What the spec asks for, as pip writes requirements."""
    build, default = tables.build(spec.torch.version, spec.torch.cuda), tables.default_build(spec.torch.version)
    return (
        *_torch_set(spec, build or default),
        f"llamafactory=={spec.llamafactory.version}",
        *(requirement for name in spec.extras for requirement in _requirements(name, spec, tables)),
        *((build.nvcc,) if build and build.nvcc and _toolkit(spec, tables) else ()),
        *spec.packages,
    )


def _sdists(spec: ImageSpec) -> tuple[str, ...]:
    of_extras = [name for extra in spec.extras for name in extra_named(extra).sdists]
    return tuple(sorted({*(row.name for row in known_sdists()), *of_extras, *spec.sdists}))


def _toolkit(spec: ImageSpec, tables: Tables) -> str | None:
    """Where NVIDIA's wheels put nvcc, if an extra asks for it; None where no wheel brings it, and the base has to."""
    build = tables.build(spec.torch.version, spec.torch.cuda)
    asked = any(extra_named(name).nvcc for name in spec.extras)
    return f"nvidia/cu{spec.torch.cuda.partition('.')[0]}" if asked and build and build.nvcc else None


def _torch_set(spec: ImageSpec, build: TorchBuild | None) -> tuple[str, ...]:
    """torch, torchvision and torchaudio as one set; where no row knows it, the resolver's choice."""
    vision = f"torchvision=={build.torchvision}" if build and build.torchvision else "torchvision"
    audio = f"torchaudio=={build.torchaudio}" if build and build.torchaudio else "torchaudio"
    return (f"torch=={spec.torch.version}", vision, audio)


def _backend(spec: ImageSpec, default: TorchBuild | None) -> str | None:
    """PyTorch's index holds the builds for other CUDA versions; the %test compares what came."""
    if default is None or default.cuda == spec.torch.cuda:
        return None
    return f"cu{spec.torch.cuda.replace('.', '')}"


def extra_named(name: str) -> Extra:
    """Raises `UsageError` with the nearest name for one that is not known."""
    extras = known_extras()
    if name not in extras:
        near = difflib.get_close_matches(name, extras, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(extras)}; others go under packages:"
        raise UsageError(f"extras: unknown extra {name!r}", hint)
    return extras[name]


def _requirements(name: str, spec: ImageSpec, tables: Tables) -> tuple[str, ...]:
    """An extra's packages, in the ranges that this LLaMA-Factory gives where it has one for them."""
    row = tables.llamafactory(spec.llamafactory.version)
    found = [Requirement(text) for text in extra_named(name).requires]
    for requirement in found:
        if row:
            requirement.specifier &= row.extra_specifiers(name, requirement.name)
    return tuple(str(requirement) for requirement in found)


def check_python(spec: ImageSpec) -> None:
    """A known base has one Python. Raises `UsageError` when the spec asks for another."""
    base = known_bases().get(spec.base) if isinstance(spec.base, str) else None
    if base is None or base.python == spec.python:
        return
    others = [name for name, other in known_bases().items() if other.python == spec.python]
    fix = f'write python: "{base.python}"' + (f", or base: {others[0]}" if others else "")
    raise UsageError(f"definitions/{spec.name}.yaml: {spec.base} has Python {base.python}, not {spec.python}", fix)


def platform_of(spec: ImageSpec) -> str:
    """The newest wheels that the base's glibc runs, as uv names it."""
    base = known_bases().get(spec.base) if isinstance(spec.base, str) else None
    major, minor = (int(part) for part in (base.glibc if base else OLDEST_GLIBC).split("."))
    major, minor = min((major, minor), NEWEST_MANYLINUX)
    return f"x86_64-manylinux_{major}_{minor}"


def resolve_base(spec: ImageSpec, site: Site, host: HostBases) -> ImageBase:
    """The base as this site obtains it. Raises `UsageError` for a name that nobody knows."""
    if not isinstance(spec.base, str):
        return ImageBase("", _with_mirror(spec.base, host), _identity(spec.base))
    if spec.base in site.bases:
        source = _with_mirror(site.bases[spec.base], host)
        return ImageBase(spec.base, source, _identity(site.bases[spec.base]))
    known = known_bases().get(spec.base)
    if known is None:
        names = sorted({*known_bases(), *site.bases})
        near = difflib.get_close_matches(spec.base, names, n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"known: {', '.join(names)}; others go under bases: in the site file"
        )
        raise UsageError(f"definitions/{spec.name}.yaml: base: {spec.base!r} is not known", hint)
    return ImageBase(spec.base, _default_source(known, host), f"default:{spec.base}")


def _default_source(known: KnownBase, host: HostBases) -> Debootstrap | DockerBase:
    """debootstrap where the host can, since it needs no registry; else the registry."""
    mirror = _mirror(known, host)
    if host.debootstrap and known.suite in host.suites and mirror:
        return Debootstrap(bootstrap="debootstrap", suite=known.suite, mirror=mirror)
    return DockerBase.model_validate({"bootstrap": "docker", "from": known.docker})


def _mirror(known: KnownBase, host: HostBases) -> str | None:
    """The host's mirror for this release, or the one it uses for another release of the same family."""
    family = [other.suite for other in known_bases().values() if other.family == known.family]
    return next((host.mirrors[suite] for suite in (known.suite, *family) if suite in host.mirrors), None)


def _with_mirror(source: Base, host: HostBases) -> Base:
    if isinstance(source, Debootstrap) and source.snapshot:
        return _at_moment(source, source.snapshot)
    if not isinstance(source, Debootstrap) or source.mirror:
        return source
    known = _known_suite(source.suite)
    mirror = host.mirrors.get(source.suite) or (known and _mirror(known, host))
    if not mirror:
        raise UsageError(
            f"no mirror for {source.suite}: the host's apt sources name none", "give `mirror:` in the site file"
        )
    return source.model_copy(update={"mirror": mirror})


def _at_moment(source: Debootstrap, snapshot: str) -> Debootstrap:
    """The address with the moment in it, which is all that a definition needs."""
    known = _known_suite(source.suite)
    if source.mirror is None and known is None:
        raise UsageError(
            f"no archive of snapshots is known for {source.suite}", "give `mirror:`, with {snapshot} in the address"
        )
    address = source.mirror or known_snapshots()[known.family].url  # type: ignore[union-attr]
    return Debootstrap(
        bootstrap="debootstrap", suite=source.suite, mirror=address.replace("{snapshot}", snapshot), snapshot=None
    )


def _known_suite(suite: str) -> KnownBase | None:
    return next((base for base in known_bases().values() if base.suite == suite), None)


def _identity(source: Base) -> str:
    return digest_of(source.model_dump(mode="json", by_alias=True))
