"""What `sifkit doctor` says of a host: what was found, what is wrong with it, and who can build how. Pure.

The judgements are those of the ENV rules of `sifkit check`; here each is put beside what it is about.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from sifkit.check.facts import ConfigFacts, Facts, HostFacts, Place
from sifkit.check.hosts import bind_sources, install
from sifkit.check.rule import Finding, Severity, all_rules, apply
from sifkit.check.rules.env import build_fault
from sifkit.check.rules.env_places import NO_ROOM, SIFKITS, roomy
from sifkit.filesystems import MEMORY, NETWORK

_STOPS_RUNS = ("ENV001", "ENV002", "ENV011", "ENV012", "ENV016")
_CACHES = ("HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
_KEPT = ("sifkit", "APPTAINER_CACHEDIR", *_CACHES)
_TEMPORARY = ("APPTAINER_TMPDIR", "TMPDIR", "/var/tmp", "/tmp")


class State(str, Enum):
    """Of a row: as it should be, worth a look, or in the way."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"
    NOTE = "note"  # neither needed nor wrong


@dataclass(frozen=True)
class Row:
    """One thing of the host, and what was found."""

    name: str
    found: str
    state: State


@dataclass(frozen=True)
class Way:
    """A way to build images without being root on this host. `taken`: it is what sifkit does."""

    name: str
    works: bool
    why: str
    taken: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All that is said of a host."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    ways: tuple[Way, ...]
    run: bool  # images can be run
    build: bool


def diagnose(host: HostFacts) -> Diagnosis:
    """The rules of the family ENV, asked of this host alone."""
    rules = [rule for rule in all_rules().values() if rule.family == "ENV"]
    findings, _ = apply(rules, Facts(ConfigFacts(Path("-")), host=host))
    stopped = {what_it_stops(finding) for finding in findings} - {""}
    run = "stops runs and builds" not in stopped
    return Diagnosis(tuple(_rows(host, findings)), findings, ways(host), run, build=not stopped)


def stops(finding: Finding) -> bool:
    """Whether it keeps images from being run or built; others only slow a run down, or may stop it later."""
    return what_it_stops(finding) != ""


def what_it_stops(finding: Finding) -> str:
    """In words, for people: "stops runs and builds", "stops builds", ""."""
    if finding.code in _STOPS_RUNS and finding.severity is Severity.ERROR:
        return "stops runs and builds"
    words = {"ENV003": "", "ENV005": SIFKITS, "ENV008": NO_ROOM}  # of these, the findings with such words
    return "stops builds" if words.get(finding.code, "\0") in finding.message else ""


# ---------------------------------------------------------------------------------------------- rows


def _rows(host: HostFacts, findings: tuple[Finding, ...]) -> Iterator[Row]:
    def row(name: str, found: str, *codes: str, missing: bool = False) -> Row:
        return Row(name, found, State.NOTE if missing else _state(findings, codes))

    yield row("system", _system(host))
    yield row("user", f"{host.user}, home {host.home or 'unknown'}{_absent(host)}", "ENV016")
    yield row("Apptainer", _apptainer(host), "ENV001")
    yield row("user namespaces", host.user_namespaces_fault or _namespaces(host), "ENV002")
    nothing = host.apptainer is None
    yield row("ids for builds", _ids(host), "ENV003", missing=nothing)
    yield row("mounting images", _mounting(host), "ENV012", missing=nothing)
    yield row("files for containers", _files(host), "ENV011", missing=nothing)
    yield row("open files", _limits(host), "ENV014")
    yield row("environment", _environment(findings), "ENV004")
    yield from (_place_row(place, _temporary_state(place)) for place in _places(host, _TEMPORARY))
    yield from (_place_row(place, _cache_state(place, findings)) for place in _places(host, _KEPT))
    yield row("GPU", _gpus(host), missing=not host.gpus)
    yield row("NVIDIA libraries", _libraries(host), missing=not host.gpus)
    yield row("Slurm", _slurm(host), missing=host.slurm != "")
    yield row("Docker, Podman", _containers(host), missing=True)
    yield row("programs", _programs(host), missing=not _build_programs(host))


def _state(findings: tuple[Finding, ...], codes: tuple[str, ...]) -> State:
    about = [finding for finding in findings if finding.code in codes]
    if any(stops(finding) or finding.severity is Severity.ERROR for finding in about):
        return State.FAULT
    return State.WARNING if any(finding.severity is Severity.WARNING for finding in about) else State.OK


def _system(host: HostFacts) -> str:
    memory = f"{host.memory / 1024**3:.0f} GiB"
    return f"{host.distribution or 'unknown'}, kernel {host.kernel}, cgroups {host.cgroups}, {host.cpus} CPUs, {memory}"


def _absent(host: HostFacts) -> str:
    return "" if host.home_is_there else " (not there)"


def _apptainer(host: HostFacts) -> str:
    if host.apptainer is None:
        return f"none; singularity is {host.singularity}" if host.singularity else "none"
    return f"{host.apptainer}, {'with' if host.setuid else 'without'} setuid"


def _namespaces(host: HostFacts) -> str:
    tried = {"FUSE": host.fuse_mounts, "overlay": host.overlay}
    words = [
        f"{name} {'mounts' if works else 'does not mount'} in one" for name, works in tried.items() if works is not None
    ]
    return "; ".join(["allowed", *words])


def _ids(host: HostFacts) -> str:
    if host.full_root:
        return "root needs none"
    return build_fault(host) or f"a range in subuid and subgid for {host.user}, newuidmap"


def _mounting(host: HostFacts) -> str:
    if host.uid == 0:
        return "root, by the kernel" if host.kernel_squashfs else "root; the kernel has no squashfs loaded"
    programs = [name for name in ("squashfuse_ll", "squashfuse") if name in host.programs]
    return f"{programs[0] if programs else 'no squashfuse'}; {host.fuse_fault or '/dev/fuse opens'}"


def _files(host: HostFacts) -> str:
    wanted = dict.fromkeys((*bind_sources(host.apptainer_config), "/etc/resolv.conf"))
    absent = [file for file in wanted if file not in host.files]
    return f"not there: {', '.join(absent)}" if absent else f"{', '.join(wanted)} are there"


def _limits(host: HostFacts) -> str:
    if host.open_files is None:
        return "unknown"
    soft, hard = ("no limit" if limit < 0 else str(limit) for limit in host.open_files)
    return f"{soft} (hard limit {hard})"


def _environment(findings: tuple[Finding, ...]) -> str:
    leaks = [finding.message for finding in findings if finding.code == "ENV004"]
    return leaks[0] if leaks else "nothing that acts on containers"


def _places(host: HostFacts, names: tuple[str, ...]) -> list[Place]:
    return [place for place in map(host.place, names) if place]


def _place_row(place: Place, state: State) -> Row:
    if place.fault and not place.writable:
        return Row(place.name, f"{place.path}: {place.fault}", state)
    absent = "" if place.exists else ", not there yet"
    locks = {True: ", flock works", False: f", no flock: {place.fault}", None: ""}[place.locks]
    kind = f"{place.filesystem}{_kind(place)}"
    return Row(place.name, f"{place.path} ({kind}): {place.free / 1e9:.1f} GB free{locks}{absent}", state)


def _kind(place: Place) -> str:
    return ", network" if place.filesystem in NETWORK else ", memory" if place.filesystem in MEMORY else ""


def _temporary_state(place: Place) -> State:
    if not place.exists and place.name.isupper():
        return State.WARNING
    return State.OK if roomy(place) and place.filesystem not in NETWORK | MEMORY else State.WARNING


def _cache_state(place: Place, findings: tuple[Finding, ...]) -> State:
    """As the rules found it; of a cache that no run writes here, only what was tried is known."""
    about = tuple(finding for finding in findings if f"{place.path}" in finding.message)
    found = _state(about, ("ENV005", "ENV006", "ENV007"))
    works = place.writable and place.locks is not False
    return found if found is not State.OK or works else State.WARNING


def _gpus(host: HostFacts) -> str:
    if not host.gpus:
        return "none, or its driver does not answer"
    names = ", ".join(f"{gpu.name} ({gpu.memory / 1e9:.0f} GB)" for gpu in dict.fromkeys(host.gpus))
    return f"{len(host.gpus)}: {names}, driver {host.driver}"


def _libraries(host: HostFacts) -> str:
    if host.nv_libraries is None:
        return "not known"
    found = [name for name in host.nv_libraries if name.startswith("libcuda.so")]
    return f"--nv binds {', '.join(found)}" if found else "none: --nv would bind no libcuda"


def _slurm(host: HostFacts) -> str:
    if host.slurm is None:
        return "no clients here"
    return "its controller answers" if host.slurm == "" else f"clients, but: {host.slurm}"


def _containers(host: HostFacts) -> str:
    found = [name for name in ("docker", "podman") if name in host.programs]
    if not found:
        return "none"
    answers = f"{host.container_daemon} answers" if host.container_daemon else "no daemon answers"
    return f"{', '.join(found)}; {answers}"


def _build_programs(host: HostFacts) -> bool:
    return {"debootstrap", "mksquashfs"} <= set(host.programs)


def _programs(host: HostFacts) -> str:
    wanted = ("debootstrap", "mksquashfs", "unsquashfs", "git")
    absent = [name for name in wanted if name not in host.programs]
    if not absent:
        return f"{', '.join(wanted)} are there"
    packages = dict.fromkeys(
        "squashfs-tools" if name.endswith("squashfs") or name == "unsquashfs" else name for name in absent
    )
    return f"missing: {', '.join(absent)} ({'; '.join(install(host, package) for package in packages)})"


# ---------------------------------------------------------------------------------------------- ways to build


def ways(host: HostFacts) -> tuple[Way, ...]:
    """Ways of building, the best first. What they need: https://apptainer.org/docs/user/latest/fakeroot.html."""
    fault = build_fault(host) if host.apptainer else "there is no Apptainer"
    return (
        *((_as_root(host),) if host.uid == 0 else ()),
        Way(
            "a range of ids (subuid, newuidmap)",
            fault is None,
            fault or "complete",
            taken=fault is None and not host.full_root,
        ),
        _one_user(host),
        Way("proot", False, "SingularityCE's way; Apptainer does not use it"),
        Way("Docker, Podman", False, _by_docker(host)),
        Way("on another machine", True, "an image is one file: build there, copy the .sif and its .json"),
    )


def _as_root(host: HostFacts) -> Way:
    if host.full_root and host.apptainer:
        return Way("as root", True, "with every capability", taken=True)
    return Way(
        "as root",
        False,
        "this root lacks capabilities, so that Apptainer refuses" if host.apptainer else "there is no Apptainer",
    )


def _one_user(host: HostFacts) -> Way:
    """Of 1.4.5, provoked: debootstrap makes devices, and the base's files belong to several users."""
    why = "Apptainer's answer where there is no range: neither debootstrap nor a base can be unpacked in one"
    faked = "; the fakeroot command, which is there, does not mend that" if "fakeroot" in host.programs else ""
    return Way("a root-mapped user namespace", False, why + faked)


def _by_docker(host: HostFacts) -> str:
    if host.container_daemon is None:
        return "no daemon answers here"
    return f"{host.container_daemon} answers, but sifkit does not build with it: `build.py --render` gives a definition"
