"""What rules look at: frozen facts of the image, the config, the checkout, this host, the site and the job. Pure.

Each is gathered once, by one module of `sifkit/gather/`. What could not be learnt is None, and rules that need it are
reported as not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any


class Kind(str, Enum):
    """A body of facts, by the name that "not checked" gives it."""

    CONFIG = "config"
    IMAGE = "image"
    CHECKOUT = "checkout"
    HOST = "host"
    SITE = "site"
    JOB = "job"


# ---------------------------------------------------------------------------------------------- image


@dataclass(frozen=True)
class Argument:
    """An argument of LLaMA-Factory. `default`: as JSON has it; None also where there is none."""

    name: str
    group: str  # the class that the parser builds from it: ModelArguments, DataArguments, …
    declared: str  # the class that declares it
    type: str
    help: str
    required: bool
    default: Any
    choices: tuple[Any, ...]


@dataclass(frozen=True)
class ImageFacts:
    """What an image holds, as its own probe (verify/probes/facts.py) answered."""

    path: Path
    llamafactory: str
    transformers: str
    python: str  # "3.13.5"
    arguments: tuple[Argument, ...]
    derived: frozenset[str]  # attributes of the argument classes that a YAML must not set
    packages: Mapping[str, str]  # every distribution: version by normalised name
    templates: frozenset[str]
    models: Mapping[str, str]  # supported models: template by hub id ("" where LLaMA-Factory names none)
    torch_cuda: str | None  # "12.8"; None: built for the CPU
    torch_architectures: tuple[str, ...]  # torch.cuda.get_arch_list(): sm_90, compute_90
    glibc: str  # "2.41"
    programs: Mapping[str, str]  # path by name, of those that are there: gcc, cc, g++, nvcc, git, ninja, ldconfig
    environment: Mapping[str, str]  # as a program in it sees it, with --cleanenv
    python_headers: bool  # Python.h of its Python
    imports: Mapping[str, str]  # by module: "" when it imported, else the end of what it said, mostly a traceback
    unresolved: tuple[str, ...]  # "FILE needs libX.so": shared objects that no directory of the image holds
    libraries: frozenset[str]  # of interest, there: libibverbs.so.1, libmlx5.so.1, …; DeepSpeed's cpu_adam_op, …
    cuda_compat: tuple[str, ...] = ()  # cuda/compat directories that the loader looks into
    sha256: str | None = None  # of the image file, where its manifest says it
    model_types: frozenset[str] = frozenset()  # architectures that its transformers knows; empty: not asked
    record: ImageRecord | None = None  # what the project knows of the file; None: it is of no project

    def argument(self, name: str) -> Argument | None:
        """By its name."""
        return self._by_name().get(name)

    def _by_name(self) -> Mapping[str, Argument]:
        found = self.__dict__.get("_named")
        if found is None:
            found = {argument.name: argument for argument in self.arguments}
            object.__setattr__(self, "_named", found)
        return found


@dataclass(frozen=True)
class ImageRecord:
    """An image file as its project knows it: how it differs from what was built, and on what it was verified."""

    name: str
    change: str | None  # "its size is 7 bytes, of the image that was built 4.8 GB"
    verified: tuple[str, ...]  # kinds of device on which this very file passed: "CPU", "H100 80GB HBM3"


# ---------------------------------------------------------------------------------------------- config


@dataclass(frozen=True)
class Entry:
    """A top key of the training YAML: `value` as YAML 1.1 reads it, `raw` as it is written if it is one plain value."""

    key: str
    line: int
    value: Any
    raw: str | None
    column: int = 1


@dataclass(frozen=True)
class ConfigFacts:
    """A training YAML. `problem`: why it cannot be read at all; then nothing else is known of it."""

    path: Path  # as the user named it
    text: str = ""
    entries: tuple[Entry, ...] = ()
    overrides: tuple[str, ...] = ()  # KEY=VALUE after the YAML
    values: Mapping[str, Any] = field(default_factory=dict)  # as the image's LLaMA-Factory reads them, overridden
    problem: Problem | None = None

    def line(self, key: str) -> int | None:
        """Where a key stands; None for one that stands nowhere, or only on the command line."""
        return next((entry.line for entry in self.entries if entry.key == key), None)


@dataclass(frozen=True)
class Problem:
    """Why something could not be read, and what to do."""

    message: str
    fix: str | None = None
    line: int | None = None


# ---------------------------------------------------------------------------------------------- files


@dataclass(frozen=True)
class PathFacts:
    """A path that the config names, looked at on this host at the place where the container will find it."""

    key: str  # of the config: model_name_or_path, deepspeed, …
    text: str  # as written
    host: Path  # where it lies here
    exists: bool
    is_dir: bool
    real: Path  # links followed
    readable: bool
    names: tuple[str, ...] = ()  # of a directory: what lies in it
    json: Mapping[str, Any] | None = None  # of a JSON file; of a model's directory, its config.json
    size: int | None = None  # bytes of a file; of a model's directory, of its weights
    links: tuple[Path, ...] = ()  # places outside the checkout to which links lead, as the container sees them
    missing: tuple[str, ...] = ()  # of a model's directory: files that its index names and that are not there
    pointers: tuple[str, ...] = ()  # of a model's directory: files of git-lfs in the place of weights
    damaged: tuple[str, ...] = ()  # of a model's directory: "model.safetensors is cut off"
    fault: str | None = None  # why it could not be looked at: "does not answer", "permission denied"
    plain: bool = True  # False: a directory, a pipe, a device; of dataset files alone


@dataclass(frozen=True)
class DatasetFacts:
    """A dataset that the config names."""

    name: str
    key: str  # dataset or eval_dataset
    entry: Mapping[str, Any] | None  # of dataset_info.json; None: not registered
    files: tuple[PathFacts, ...] = ()  # local files
    columns: frozenset[str] | None = None  # of the first row; None: not read
    rows: int | None = None  # None: not counted
    mean_tokens: float | None = None  # estimate of a row's length; None: not read
    problem: str | None = None  # why its file cannot be read
    line: int | None = None  # of the first file, where the problem is
    first: Mapping[str, Any] | None = None  # the first row
    exact: bool = False  # rows were counted, not estimated, and columns are those of all
    message_keys: frozenset[str] = frozenset()  # of the messages, where its rows have some
    roles: frozenset[str] = frozenset()  # who speaks in them
    absent_media: tuple[str, ...] = ()  # of the first rows: images, videos, audios that are not there
    media: frozenset[str] = frozenset()  # of images, videos, audios those that the rows have some of
    broken_rows: int = 0  # of those that were read: turns that do not alternate, which LLaMA-Factory drops
    read_rows: int = 0
    answers: tuple[int, int, int] = (
        0,
        0,
        0,
    )  # of the rows that were read: those with none, one (sft), two (pairs, kto)


@dataclass(frozen=True)
class CheckoutFacts:
    """A checkout of LLaMA-Factory and what the config names in and beside it."""

    root: Path
    version: str | None
    problems: tuple[Problem, ...]  # not whole, not of the image's version
    dataset_info: Mapping[str, Mapping[str, Any]] | None  # None: it is not there, or the dataset_dir is online
    dataset_info_path: Path | None
    datasets: tuple[DatasetFacts, ...] = ()
    paths: tuple[PathFacts, ...] = ()
    output: PathFacts | None = None  # output_dir
    checkpoints: tuple[CheckpointFacts, ...] = ()  # in output_dir
    shared: bool = False  # sifkit's own cached checkout, bound read-only
    hub: tuple[HubModel, ...] = ()  # models of a hub that the config names
    info_problem: Problem | None = None  # why dataset_info.json cannot be read

    def at(self, key: str) -> tuple[PathFacts, ...]:
        """The paths that a key of the config names."""
        return tuple(path for path in self.paths if path.key == key)


@dataclass(frozen=True)
class HubModel:
    """A model that the config names by its name on a hub, as this host's cache has it."""

    key: str  # of the config
    name: str  # Qwen/Qwen3-4B
    hub: str  # huggingface or modelscope
    cache: Path  # the directory that the library looks into
    snapshot: Path | None  # of the revision; None: nothing of it is here
    missing: tuple[str, ...] = ()  # what that snapshot lacks
    partial: int = 0  # downloads that were broken off
    token: bool = False  # one is set, or kept
    offline: bool = False  # the library is told not to ask the hub


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint-N in output_dir. `missing`: files that resuming needs."""

    path: Path
    step: int
    missing: tuple[str, ...]


# ---------------------------------------------------------------------------------------------- host


@dataclass(frozen=True)
class Place:
    """A directory of this host, by what it is for. Of one that is not there yet: its nearest parent that is."""

    name: str  # "TMPDIR", "HF_HOME", "output_dir", "image", …
    path: Path
    exists: bool
    writable: bool  # tried
    locks: bool | None  # flock tried; None: not tried
    filesystem: str  # as /proc/mounts names it: ext4, nfs4, tmpfs, …
    free: int  # bytes
    fault: str | None = None  # in the system's words, why it cannot be written or locked
    inodes: int | None = None  # that are free; None: this filesystem does not count them
    answers: bool = True  # False: it gave no answer in time, as a dead network mount does


@dataclass(frozen=True)
class GpuFacts:
    """A GPU of this host, as its driver tells it."""

    name: str
    memory: int  # bytes
    capability: tuple[int, int]


@dataclass(frozen=True)
class HostFacts:
    """This host: what Apptainer, the caches and the programs here will meet. Nothing needs to be installed."""

    environment: Mapping[str, str]
    apptainer: str | None  # version
    apptainer_config: Mapping[str, str]  # apptainer.conf: "mount home" → "yes"
    user: str
    uid: int
    user_namespaces: bool
    subuid: bool  # a range for this user in /etc/subuid and /etc/subgid
    newuidmap: bool  # that program is there and may do its work
    fuse: bool  # /dev/fuse opens for this user
    programs: Mapping[str, str]  # path by name: squashfuse_ll, fusermount3, mksquashfs, debootstrap, sbatch, docker, …
    kernel: str
    places: tuple[Place, ...]
    cpus: int
    memory: int  # bytes
    driver: str | None
    gpus: tuple[GpuFacts, ...]
    files: frozenset[str]  # of those that Apptainer mounts by itself, the ones that are there: /etc/localtime, …
    home: str = ""  # in the user database, which is what Apptainer mounts
    home_is_there: bool = True
    known_user: bool = True  # the user database knows this number
    distribution: str = ""  # ID of /etc/os-release: debian, ubuntu, rhel, …
    full_root: bool = False  # root with every capability
    setuid: bool = False  # Apptainer's setuid-root part is installed
    singularity: str | None = None  # a program of that name that is not Apptainer, in its own words
    user_namespaces_fault: str | None = None  # why there are none
    subuid_fault: str | None = None
    newuidmap_fault: str | None = None
    fuse_fault: str | None = None
    fuse_mounts: bool | None = None  # in a user namespace, tried; None: not tried
    overlay: bool | None = None  # likewise
    kernel_squashfs: bool = False
    cgroups: str = ""  # v2, v1
    open_files: tuple[int, int] | None = None  # soft and hard limit; -1: none
    nv_libraries: tuple[str, ...] | None = None  # that --nv binds; None: not known
    slurm: str | None = None  # what its controller said, "" where it is up; None: no clients, or not asked
    container_daemon: str | None = None  # Docker's or Podman's socket that answers
    user_packages: tuple[str, ...] = ()  # Pythons of which packages lie in ~/.local/lib: "3.13"
    nv_glibc: str | None = None  # the newest that libraries which --nv binds need; None: there are none here

    def place(self, name: str) -> Place | None:
        """By what it is for."""
        return next((place for place in self.places if place.name == name), None)


# ---------------------------------------------------------------------------------------------- site and job


@dataclass(frozen=True)
class TargetGpu:
    """A GPU that the run will get: the site's, the command line's, or this host's. `memory` in bytes."""

    model: str
    capability: tuple[int, int] | None
    memory: int | None
    bf16: bool | None  # in hardware
    fp8: bool | None
    largest: int | None = None  # memory of its largest variant, where the name leaves open which it is


@dataclass(frozen=True)
class SiteFacts:
    """The cluster, as the site file, the tables and Slurm tell it."""

    gpus: tuple[TargetGpu, ...]  # any of these may be given to the job
    driver: str | None
    source: str  # where the GPUs are said: "site.yaml", "--gpu", "this host"
    binds: tuple[str, ...] = ()
    hf_home: str | None = None
    slurm: bool = False  # its programs are here


@dataclass(frozen=True)
class JobFacts:
    """What the run asks for. Of `sifkit check` alone: what its options or the site say."""

    device: str  # gpu or cpu
    nodes: int
    gpus: int  # a node
    cpus: int | None  # a node
    memory: int | None  # bytes, a node
    time: timedelta | None
    requeue: bool
    torchrun: bool
    ours: bool = True  # sifkit writes the job file; False: a job file of the user's own was given
    script: str = ""  # that file's text
    script_path: Path | None = None
    logs: Path | None = None  # the directory of --output
    logs_fault: str | None = None  # why nothing can be written there: "is not there", "is a file"
    here: bool = False  # it runs on this very host, now, and is not queued
    copy_image: bool = False  # the image is copied to the node first


# ---------------------------------------------------------------------------------------------- all


@dataclass(frozen=True)
class Parsed:
    """What the image's own parser says of a config. `raised` and `text`: the exception, where it refuses."""

    accepts: bool
    raised: str | None
    text: str


@dataclass(frozen=True)
class Facts:
    """All that is known before the queue."""

    config: ConfigFacts
    image: ImageFacts | None = None
    checkout: CheckoutFacts | None = None
    host: HostFacts | None = None
    site: SiteFacts | None = None
    job: JobFacts | None = None
    parsed: Parsed | None = None  # where the image's own parser was asked

    def has(self, kind: Kind) -> bool:
        """Whether these facts were gathered."""
        if kind is Kind.CONFIG:
            return self.config.problem is None
        return getattr(self, kind.value) is not None

    def value(self, key: str) -> Any:
        """The config's value, else the image's default, else None."""
        if key in self.config.values:
            return self.config.values[key]
        argument = self.image.argument(key) if self.image else None
        return argument.default if argument else None
