"""ENV: directories of this host that a run or a build writes: caches, TMPDIR, the image's own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from sifkit.check.facts import Facts, HostFacts, Kind, Place
from sifkit.check.hosts import bound_by_script, elsewhere, on_this_host
from sifkit.check.places import is_seen
from sifkit.check.rule import Found, NotChecked, Severity, rule
from sifkit.check.rules.dst import processes
from sifkit.check.script import parse_script
from sifkit.filesystems import MEMORY, NETWORK

GB = 10**9

# The default image: 4.4 GB of wheels become a tree of 9.9 GB and a .sif of 5.3, of 66,000 files (docs/benchmarks.md).
BUILD_BYTES = 16 * GB
BUILD_FILES = 70_000
SIFKITS = "sifkit's cache"
NO_ROOM = "no room to build the default image"  # so begins what is said then

_COMPILED = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TORCH_EXTENSIONS_DIR")
_TEMPORARY = ("APPTAINER_TMPDIR", "TMPDIR", "/var/tmp", "/tmp", "sifkit")

# Directories that libraries write, by the variable that moves them, of those that sifkit hands into the container.
# Sources: huggingface_hub/constants.py 1.33, datasets/config.py 4.0, torch/hub.py 2.9, wandb's and ModelScope's docs.
_MOVED = (
    *("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "TORCH_HOME", "TORCH_EXTENSIONS_DIR"),
    *("WANDB_DIR", "WANDB_CACHE_DIR", "MODELSCOPE_CACHE"),
)


def _host(facts: Facts) -> HostFacts:
    assert facts.host is not None  # every rule here needs it
    return facts.host


def _places(facts: Facts, names: Iterable[str]) -> list[Place]:
    return [place for place in map(_host(facts).place, names) if place]


def caches(facts: Facts) -> tuple[str, ...]:
    """The caches that the run writes on this host: sifkit's jobs have their compilers' on the node, below TMPDIR."""
    job = facts.job
    if job is None:
        return ("HF_HOME", "sifkit", *_COMPILED)
    if not job.ours:
        return ("HF_HOME", *_COMPILED)
    extensions = ("TORCH_EXTENSIONS_DIR",) if facts.value("deepspeed") else ()
    return ("HF_HOME", *(("sifkit",) if job.here else ()), *extensions)


def _compiled(facts: Facts) -> list[Place]:
    """Of these, where compilers write. `sifkit train` gives them its own cache."""
    return _places(facts, (name for name in caches(facts) if name != "HF_HOME"))


def _named(place: Place) -> str:
    return f"{place.name}={place.path}" if place.name.isupper() else f"{SIFKITS} {place.path}"


def _exports(places: Iterable[Place]) -> str:
    names = ("SIFKIT_CACHE" if place.name == "sifkit" else place.name for place in places)
    return "export " + " ".join(f"{name}=DIRECTORY" for name in names)


@rule(
    "ENV005",
    "cache-not-writable",
    needs=(Kind.HOST,),
    prevents="OSError: [Errno 30] Read-only file system",
    why="libraries write into their caches while they run; one that is on a read-only mount, belongs to somebody else, "
    "or is not in the container stops them there",
    fix="point the variable to a directory of yours that can be written: export HF_HOME=DIRECTORY",
    source="sifkit/launch.py, ENVIRONMENT_PASSED; huggingface_hub/constants.py 1.33; datasets/config.py 4.0",
    rows=(13,),
)
def cache_not_writable(facts: Facts) -> Iterator[Found]:
    """A cache that the run is given cannot be written, or is a directory that the container does not have."""
    shut = [place for place in _places(facts, caches(facts)) if not place.writable]
    for fault in dict.fromkeys(place.fault for place in shut):
        group = [place for place in shut if place.fault == fault]
        said = f"{', '.join(map(_named, group))} cannot be written: {fault or 'permission denied'}{elsewhere(facts)}"
        yield Found(said, f"use directories of yours: {_exports(group)}", severity=on_this_host(facts))
    if facts.job is None or not facts.job.ours:
        return
    for name in _MOVED:
        text = _host(facts).environment.get(name, "")
        if text.startswith("/") and not text.startswith("/mnt/") and is_seen(Path(text), facts) is False:
            said = f"{name}={text} is handed into the container, which has no such directory: its image is read-only"
            fix = f"add {text} to binds: in the site file, or unset {name}"
            yield Found(said, fix, severity=Severity.WARNING)


@rule(
    "ENV006",
    "cache-on-network-filesystem",
    Severity.WARNING,
    needs=(Kind.HOST,),
    prevents="OSError: [Errno 116] Stale file handle",
    why="Triton, Inductor and torch's extensions write, rename and load many small files, which several ranks share: "
    "on a network filesystem they see each other late, wait for each other's locks, and are slow",
    fix="a directory of the node's own disk: export TRITON_CACHE_DIR=/tmp/$USER/triton; sifkit's jobs have one",
    source="triton/knobs.py and torch/utils/cpp_extension.py of torch 2.9.1: defaults below the home",
    rows=(33,),
)
def cache_on_network_filesystem(facts: Facts) -> Iterator[Found]:
    """What compilers keep lies on a network filesystem; of several processes, another rule speaks."""
    several = facts.job is not None and processes(facts.job) > 1  # DST006
    for place in _compiled(facts):
        if place.filesystem in NETWORK and not (several and place.name in _COMPILED):
            said = f"{_named(place)} is on a network filesystem ({place.filesystem}), and compilers' caches go there"
            yield Found(said, f"use the node's own disk: {_exports([place])}, below /tmp")


@rule(
    "ENV007",
    "no-locks",
    needs=(Kind.HOST,),
    prevents="OSError: [Errno 37] No locks available",
    why="datasets and huggingface_hub lock their cache with flock, which this filesystem, or its lock server, refuses",
    fix="put the cache onto another filesystem: export HF_HOME=DIRECTORY; or have the mount's locks mended (lockd)",
    source="filelock/_unix.py of filelock 4.2: every refusal but ENOSYS is raised",
    rows=(34,),
)
def no_locks(facts: Facts) -> Iterator[Found]:
    """flock was tried in a cache, and refused."""
    for place in _places(facts, caches(facts)):
        if place.writable and place.locks is False:
            said = f"{_named(place)} ({place.filesystem}) takes no locks: {place.fault or 'refused'}{elsewhere(facts)}"
            yield Found(said, f"use another filesystem: {_exports([place])}", severity=on_this_host(facts))


@rule(
    "ENV008",
    "tmpdir-too-small",
    Severity.WARNING,
    needs=(Kind.HOST,),
    prevents="No space left on device",
    why="an image is assembled as a tree of 66,000 files, and compressed beside it",
    fix="name a roomy local directory: export TMPDIR=DIRECTORY, or tmpdir: in the site file",
    source="docs/benchmarks.md; sifkit/host.py, choose_tmpdir",
    rows=(23,),
)
def tmpdir_too_small(facts: Facts) -> Iterator[Found | NotChecked]:
    """No directory for temporary files has the room and the inodes for a build; or TMPDIR names none. Runs go on."""
    named = _places(facts, ("APPTAINER_TMPDIR", "TMPDIR"))
    for place in named:
        if not place.exists:
            said = f"{place.name}={place.path} is not there: programs that make temporary files stop, or take /tmp"
            yield Found(said, f"mkdir -p {place.path}, or unset {place.name}")
    places = [place for place in _places(facts, _TEMPORARY) if place.exists or place.name == "sifkit"]
    if not places:
        yield NotChecked("no directories were tried")
    elif not any(roomy(place) for place in places):
        shown = "; ".join(f"{place.path}: {_room(place)}" for place in {each.path: each for each in places}.values())
        fix = "free some, or name a roomy local directory: export TMPDIR=DIRECTORY"
        yield Found(f"{NO_ROOM}, which takes {BUILD_BYTES // GB} GB: {shown}", fix)


def roomy(place: Place) -> bool:
    """Whether the default image can be assembled there."""
    enough = place.free >= BUILD_BYTES and (place.inodes is None or place.inodes >= BUILD_FILES)
    return place.writable and enough


def _room(place: Place) -> str:
    if not place.writable:
        return place.fault or "cannot be written"
    inodes = f", {place.inodes} inodes" if place.inodes is not None and place.inodes < BUILD_FILES else ""
    memory = ", memory" if place.filesystem in MEMORY else ""
    return f"{place.free / GB:.1f} GB free{inodes} ({place.filesystem}{memory})"


@rule(
    "ENV009",
    "image-on-network-filesystem",
    Severity.WARNING,
    needs=(Kind.HOST,),
    prevents="squashfuse_ll failed to mount /var/lib/apptainer/mnt/session/rootfs in 2s",
    why="to start is to read thousands of files of the image, in small reads over the network, from all nodes at once; "
    "and Apptainer waits two seconds for the mount",
    fix="copy the image to each node first: --copy-image, or slurm: {copy_image: true} in the site file",
    source="AP#665; internal/pkg/image/driver/imagedriver.go of Apptainer 1.4: maxTime",
    rows=(26,),
)
def image_on_network_filesystem(facts: Facts) -> Iterator[Found]:
    """The image lies on a network filesystem, and is not copied to the node."""
    place = _host(facts).place("image")
    copied = facts.job is not None and facts.job.copy_image
    if place is None or place.filesystem not in NETWORK or copied:
        return
    fix = "--copy-image, or slurm: {copy_image: true} in the site file"
    if facts.job is not None and facts.job.here:
        fix = "copy it to a local disk, and name the copy: --image /tmp/IMAGE.sif"
    elif facts.job is not None and not facts.job.ours:
        fix = 'in the job file: cp IMAGE.sif "$TMPDIR/" before the run, and run the copy'
    yield Found(f"the image in {place.path} is on a network filesystem ({place.filesystem})", fix)


@rule(
    "ENV010",
    "tmpdir-not-bound",
    Severity.WARNING,
    needs=(Kind.HOST, Kind.JOB),
    prevents="mktemp: failed to create file via template: No such file or directory",
    why="Apptainer hands TMPDIR into the container and binds only /tmp, /var/tmp and the home; sifkit's own jobs bind "
    "a directory of the node and set TMPDIR to it",
    fix='bind it: apptainer exec --bind "$TMPDIR" …; or say --cleanenv; or submit with sifkit',
    source="Apptainer 1.4.5, measured: TMPDIR=/scratch/x apptainer exec IMAGE printenv TMPDIR; sifkit/slurm/jobfile.py",
    rows=(41,),
)
def tmpdir_not_bound(facts: Facts) -> Iterator[Found]:
    """A job file of the user's own hands TMPDIR into a container that does not have that directory."""
    job, text = facts.job, _host(facts).environment.get("TMPDIR", "")
    if job is None or job.ours or not text.startswith("/") or not tuple(parse_script(job.script).containers()):
        return
    if "TMPDIR" in job.script or is_clean(job.script) or bound_by_script(facts, Path(text)):
        return
    said = f"TMPDIR={text} goes into the container, which does not have that directory"
    fix = 'bind it: apptainer exec --bind "$TMPDIR" …; or take --cleanenv'
    yield Found(said, fix, file=job.script_path)


def is_clean(script: str) -> bool:
    """Whether every container of a job file starts with an empty environment."""
    containers = tuple(parse_script(script).containers())
    return bool(containers) and all(line.has("--cleanenv", "-e", "--containall", "-C") for line in containers)


@rule(
    "ENV014",
    "few-open-files",
    Severity.WARNING,
    needs=(Kind.HOST,),
    prevents="OSError: [Errno 24] Too many open files",
    why="each worker that loads data hands tensors over as open files, each rank has its libraries, sockets and shards",
    fix="ulimit -n 4096, up to the hard limit; beyond it: /etc/security/limits.conf, by root",
    source="torch/multiprocessing/__init__.py 2.9.1: file_descriptor sharing; AP#1380",
    rows=(23,),
)
def few_open_files(facts: Facts) -> Iterator[Found | NotChecked]:
    """Fewer files may be open than the 1024 that distributions allow. Slurm takes this limit along to the node."""
    limits = _host(facts).open_files
    if limits is None:
        yield NotChecked("the limit is not known")
        return
    soft, hard = limits
    if 0 <= soft < 1024:
        raised = hard < 0 or hard >= 1024
        fix = f"ulimit -n {min(4096, hard) if hard >= 0 else 4096}" if raised else "root: nofile in limits.conf"
        yield Found(f"only {soft} files may be open at a time (ulimit -n)", fix)
