"""Facts of this host. Nothing needs to be installed, nothing is changed, and what does not answer is not waited for."""

from __future__ import annotations

import os
import platform
import pwd
import resource
import socket
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

from sifkit.apptainer import privileges_of_this_process
from sifkit.check.facts import GpuFacts, HostFacts, Place
from sifkit.check.hosts import bind_sources
from sifkit.errors import CommandFailed, HostError
from sifkit.gather import namespaces
from sifkit.gather.image_host import nv_glibc, user_packages
from sifkit.gather.installed import Installed, read_installed
from sifkit.gather.looking import answer
from sifkit.places import Tried, try_places
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.slurm.cluster import slurm_command
from sifkit.verify.nvlibs import read_nv_libraries
from sifkit.verify.nvml import Gpu, read_host

PROGRAMS = (
    *("apptainer", "singularity", "squashfuse_ll", "squashfuse", "fusermount3", "fuse2fs", "fuse-overlayfs"),
    *("mksquashfs", "unsquashfs", "newuidmap", "newgidmap", "getsubids", "fakeroot", "proot", "debootstrap"),
    *("docker", "podman", "sbatch", "srun", "sinfo", "nvidia-smi", "git"),
)

# Mounted by Apptainer itself, beside the bind paths of its configuration. Without resolv.conf no container starts
# [measured with 1.4.5]; passwd and group it can do without.
_MOUNTED = ("/etc/resolv.conf", "/etc/passwd", "/etc/group")
_SOCKETS = ("/run/docker.sock", "/run/podman/podman.sock")
_SLURM_WITHIN = timedelta(seconds=1)


def gather_host(
    runner: Runner,
    environ: Mapping[str, str],
    places: Mapping[str, Path] | None = None,
    tried: bool = True,
    ask_slurm: bool = False,
) -> HostFacts:
    """All that is known of this host. `places`: directories to try besides the caches and TMPDIR, by what they are for.

    `tried` False: nothing is written or mounted, and places are left out. `ask_slurm`: whether its controller answers.
    """
    uid = os.geteuid()
    user, home = _user(uid)
    all_places = {**usual_places(environ), **({"home": Path(home)} if home else {}), **(places or {})}
    with ThreadPoolExecutor() as pool:  # each waits for a child or a server, and for nothing else
        installed_ = pool.submit(read_installed, runner)
        kernel_ = pool.submit(namespaces.read_namespaces, uid, tried)
        places_ = pool.submit(look_at, all_places if tried else {})
        slurm_ = pool.submit(_slurm, runner, ask_slurm)
        libraries_ = pool.submit(_nv_libraries, runner)
        subuid_ = pool.submit(namespaces.subuid_fault, user, uid, runner)
        driver, gpus = _gpus()
    installed, kernel, subuid_fault = installed_.result(), kernel_.result(), subuid_.result()
    looked, (nv_libraries, glibc) = places_.result(), libraries_.result()
    newuidmap_fault, fuse_fault = namespaces.newuidmap_fault(runner), namespaces.fuse_fault()
    return HostFacts(
        environment=dict(environ),
        apptainer=installed.version,
        apptainer_config=installed.config,
        user=user,
        uid=uid,
        user_namespaces=kernel.fault is None,
        subuid=subuid_fault is None,
        newuidmap=newuidmap_fault is None,
        fuse=fuse_fault is None,
        programs=_programs(runner, installed),
        kernel=platform.release(),
        places=looked,
        cpus=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        driver=driver,
        gpus=gpus,
        files=frozenset(
            filter(os.path.exists, (*_MOUNTED, *bind_sources(installed.config)))
        ),  # False, if not permitted
        known_user=bool(home),
        home=home,
        home_is_there=all(place.exists for place in looked if place.name == "home"),
        distribution=_distribution(),
        full_root=uid == 0 and not privileges_of_this_process().build_flags,
        setuid=installed.setuid,
        singularity=installed.singularity,
        user_namespaces_fault=kernel.fault,
        subuid_fault=subuid_fault,
        newuidmap_fault=newuidmap_fault,
        fuse_fault=fuse_fault,
        fuse_mounts=kernel.fuse,
        overlay=kernel.overlay,
        kernel_squashfs="squashfs" in _text(Path("/proc/filesystems")).split(),
        cgroups="v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "v1",
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        nv_libraries=nv_libraries,
        slurm=slurm_.result(),
        container_daemon=_daemon(environ),
        user_packages=(answer(lambda: user_packages(Path(home))) if home else None) or (),
        nv_glibc=glibc,
    )


def usual_places(environ: Mapping[str, str]) -> dict[str, Path]:
    """Where builds and runs write on their own, by the variable that moves it.

    Defaults as the libraries have them: huggingface_hub/constants.py, triton/knobs.py, torch/utils/cpp_extension.py,
    Apptainer's documentation of APPTAINER_CACHEDIR.
    """
    home = Path(environ.get("HOME") or "/")
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    defaults = {
        "XDG_CACHE_HOME": cache,
        "HF_HOME": cache / "huggingface",
        "TRITON_CACHE_DIR": Path(environ.get("TRITON_HOME") or home) / ".triton" / "cache",
        "TORCH_EXTENSIONS_DIR": cache / "torch_extensions",
        "APPTAINER_CACHEDIR": home / ".apptainer" / "cache",
    }
    found = {name: Path(environ.get(name) or default) for name, default in defaults.items()}
    found["sifkit"] = user_cache(environ)
    for name in ("TORCHINDUCTOR_CACHE_DIR", "APPTAINER_TMPDIR", "TMPDIR"):
        if environ.get(name):
            found[name] = Path(environ[name])
    return {**found, "/var/tmp": Path("/var/tmp"), "/tmp": Path("/tmp")}


def look_at(places: Mapping[str, Path]) -> tuple[Place, ...]:
    """Each directory tried, by what it is for; nothing is left behind, and one that does not answer is left."""
    tried = try_places(places.values())
    return tuple(_place(name, path, tried[Path(os.path.abspath(path))]) for name, path in places.items())  # noqa: PTH100


def _place(name: str, path: Path, at: Tried) -> Place:
    tried = (at.exists, at.writable, at.locks, at.filesystem, at.free, at.fault, at.inodes)
    return Place(name, path, *tried, answers=at.answers)


def _user(uid: int) -> tuple[str, str]:
    """Name and home in the user database; of a user who is in none, the number and no home."""
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return str(uid), ""
    return entry.pw_name, entry.pw_dir


def _programs(runner: Runner, installed: Installed) -> dict[str, str]:
    """Apptainer looks among its own programs first: internal/pkg/util/bin/findbin.go."""
    found = {}
    for name in PROGRAMS:
        own = installed.brings / name if installed.brings else None
        path = str(own) if own and os.access(own, os.X_OK) else runner.which(name)
        if path:
            found[name] = path
    return found


def _gpus() -> tuple[str | None, tuple[GpuFacts, ...]]:
    try:
        host = read_host()
    except HostError:
        return None, ()
    return host.driver, tuple(_gpu(gpu) for gpu in host.gpus)


def _gpu(gpu: Gpu) -> GpuFacts:
    return GpuFacts(gpu.name, round(gpu.memory_total_gb * 1e9), gpu.capability)


def _nv_libraries(runner: Runner) -> tuple[tuple[str, ...] | None, str | None]:
    """What --nv binds, and the glibc that it needs; of a host without a driver nobody asks that."""
    if runner.which("ldconfig") is None or runner.which("apptainer") is None:
        return None, None
    try:
        names = read_nv_libraries(runner)
    except OSError:  # Apptainer's list cannot be read
        return None, None
    return names, nv_glibc(runner) if any(name.startswith("libcuda.so") for name in names) else None


def _slurm(runner: Runner, asked: bool) -> str | None:
    """None: no clients. Else "" when the controller is up, or what was said instead."""
    if not asked or runner.which("scontrol") is None:
        return None
    try:
        said = runner.run(slurm_command(runner, "scontrol", "ping"), timeout=_SLURM_WITHIN, check=False)
    except (CommandFailed, HostError) as error:
        return error.message
    if " is UP" in said.output:
        return ""
    return said.tail[-1] if said.tail else "no answer"


def _daemon(environ: Mapping[str, str]) -> str | None:
    """The socket of Docker or Podman that takes connections."""
    named = environ.get("DOCKER_HOST", "").removeprefix("unix://")
    own = f"{environ.get('XDG_RUNTIME_DIR', '')}/podman/podman.sock"
    return next((path for path in (named, *_SOCKETS, own) if path.startswith("/") and _answers(path)), None)


def _answers(path: str) -> bool:
    try:
        if not stat.S_ISSOCK(Path(path).stat().st_mode):
            return False
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(0.2)
            client.connect(path)
    except OSError:
        return False
    return True


def _distribution() -> str:
    lines = _text(Path("/etc/os-release")).splitlines()
    return next((line[3:].strip("\"'") for line in lines if line.startswith("ID=")), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
