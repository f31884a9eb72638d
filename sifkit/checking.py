"""Checking a run before it is queued: what is around it is looked at once, then each YAML is judged.

`sifkit check` shows what is found; `submit`, `sbatch`, `train` and `--verify` stop at its errors.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sifkit import checkout as checkouts
from sifkit import preflight
from sifkit.apptainer import Apptainer, Bind
from sifkit.check.facts import ConfigFacts, Facts, ImageFacts, JobFacts
from sifkit.check.ignores import read_ignores, without_ignored
from sifkit.check.report import Checked, line_of
from sifkit.check.rule import Rule, Severity, all_rules, apply
from sifkit.check.rules.cfg_parser import device_of
from sifkit.check.settings import find_settings, overridden, selection
from sifkit.compat.tables import Tables, load_tables
from sifkit.errors import CommandFailed, HostError, ProblemFound, UsageError
from sifkit.gather.config import Case, config_of, parse_all_inside, read_config
from sifkit.gather.host import gather_host
from sifkit.gather.image import image_facts
from sifkit.gather.image_record import identity_of, read_record
from sifkit.gather.jobscript import bytes_of, read_script
from sifkit.gather.site import default_partition, site_facts
from sifkit.gather.whole import Surroundings, facts_of
from sifkit.launch import find_config
from sifkit.model import Site
from sifkit.progress import Progress
from sifkit.run import Runner
from sifkit.site import user_cache
from sifkit.slurm.cluster import Partition, read_cluster
from sifkit.slurm.request import Job, parse_time
from sifkit.spec import DEFAULT_IMAGE, Project
from sifkit.store import Store
from sifkit.tools import Tools
from sifkit.verify.container import IN_CHECKOUT, Container
from sifkit.verify.nvml import read_host, visible_devices


@dataclass(frozen=True)
class Workplace:
    """What a check acts with. Unlike a build, it needs no project: any .sif and any YAML can be checked."""

    project: Project | None
    site: Site
    runner: Runner
    progress: Progress
    environ: Mapping[str, str]

    @classmethod
    def of(cls, tools: Tools) -> Workplace:
        """That of a command which has a project."""
        return cls(tools.project, tools.site, tools.runner, tools.progress, tools.environ)

    @property
    def cache(self) -> Path:
        """Facts of images, and checkouts."""
        return user_cache(self.environ)

    @property
    def tables(self) -> Tables:
        """What fits what."""
        return load_tables(self.project.compat if self.project else None)


@dataclass(frozen=True)
class Asked:
    """What the command line says of the run; None: the site's, else a default."""

    image: str | None = None
    checkout: Path | None = None
    models: tuple[str, ...] = ()  # of GPUs
    driver: str | None = None
    script: Path | None = None  # a job file of the user's own
    device: str = "gpu"
    partition: str | None = None
    nodes: int = 1
    gpus: int | None = None
    cpus: int | None = None
    mem: str | None = None
    time: str | None = None
    requeue: bool | None = None
    logs: Path | None = None
    parse: bool = False
    hash: bool = False


@dataclass(frozen=True)
class Around:
    """What every YAML is judged with, and what a person should know of it."""

    facts: Surroundings
    said: tuple[str, ...] = ()
    apptainer: Apptainer | None = field(default=None, repr=False)  # to ask the image's own parser


def surroundings(asked: Asked, place: Workplace, near: Path, job: JobFacts | None = None) -> Around:
    """Look at everything but the YAMLs. `near`: the first of them, whose checkout is taken when none is named.

    `job`: what is asked of Slurm, where that is known already.
    """
    said: list[str] = []
    image = _image(asked, place, said)
    checkout, shared = _checkout(asked, place, near, image)
    partition = _partition(asked, place, said)
    host = gather_host(place.runner, place.environ, _places(place, image))
    site = site_facts(
        place.site, place.tables, models=asked.models, driver=asked.driver, host=host, partition=partition
    )
    job = job or _job(asked, place.site, partition)
    facts = Surroundings(image, checkout, shared, host, site, job, place.environ)
    said.append(_seen(facts))
    return Around(facts, tuple(said), Apptainer.find(place.runner) if asked.parse else None)


def _seen(facts: Surroundings) -> str:
    image, site, job = facts.image, facts.site, facts.job
    parts = [
        f"image {image.path.stem} (LLaMA-Factory {image.llamafactory})" if image else "no image",
        f"checkout {facts.checkout}" + (" (sifkit's own)" if facts.shared else "") if facts.checkout else "no checkout",
    ]
    if site and site.gpus:
        parts.append(f"GPU {' or '.join(gpu.model for gpu in site.gpus)} ({site.source})")
    if job:
        parts.append(f"{job.nodes} node{'s' * (job.nodes > 1)} with {job.gpus} GPU{'s' * (job.gpus != 1)}")
    return "checked against: " + ", ".join(parts)


# ---------------------------------------------------------------------------------------------- one by one


def _image(asked: Asked, place: Workplace, said: list[str]) -> ImageFacts | None:
    """The image that is named must be there; without one the default image, if it was built."""
    sif = _sif(asked.image, place)
    if sif is None:
        said.append(f"no image: {DEFAULT_IMAGE} is not built, and --image names no other; its rules are not checked")
        return None
    store = Store(sif.parent)
    identity = identity_of(store, sif.stem) if sif.is_file() else ""
    facts = image_facts(sif, identity, place.cache, lambda: Apptainer.find(place.runner), place.progress)
    return replace(facts, record=read_record(Project(sif.parent.parent), sif.stem, hash_=asked.hash))


def _sif(word: str | None, place: Workplace) -> Path | None:
    """None: no image is named, and the default image is not built."""
    built = place.project is not None and Store(place.project.images).sif(DEFAULT_IMAGE).is_file()
    return preflight.image_file(word, place.project) if word or built else None


def _checkout(asked: Asked, place: Workplace, near: Path, image: ImageFacts | None) -> tuple[Path | None, bool]:
    """The one that is named, else around the YAML or here, else sifkit's own of the image's version if it is there."""
    if asked.checkout is not None:
        if not asked.checkout.is_dir():
            raise UsageError(
                f"--checkout {asked.checkout}: there is no such directory", "name a LLaMA-Factory checkout"
            )
        return asked.checkout.resolve(), False
    found = preflight.enclosing_checkout(near.absolute().parent) or preflight.enclosing_checkout(Path.cwd())
    if found:
        return found.resolve(), False
    kept = place.cache / "checkouts" / image.llamafactory if image and image.llamafactory else None
    return (kept, True) if kept and (kept / checkouts.VERSION_FILE).is_file() else (None, False)


def _partition(asked: Asked, place: Workplace, said: list[str]) -> Partition | None:
    try:
        partitions = read_cluster(place.runner)
    except CommandFailed as error:
        said.append(
            f"Slurm does not answer, so its limits are not known: {error.tail[-1] if error.tail else error.message}"
        )
        return None
    return default_partition(partitions, asked.partition or place.site.slurm.partition)


def _places(place: Workplace, image: ImageFacts | None) -> dict[str, Path]:
    """Directories that a run writes to or reads from, by what they are for."""
    environ = place.environ
    home = place.site.cache.hf_home or environ.get("HF_HOME")
    places = {"TMPDIR": Path(environ.get("TMPDIR") or "/tmp"), "sifkit's cache": place.cache}
    if home:
        places["HF_HOME"] = Path(home).expanduser()
    if image:
        places["image"] = image.path.parent
    return places


def _job(asked: Asked, site: Site, partition: Partition | None) -> JobFacts:
    """The user's own job file, else the options, completed from the site and from the partition's smallest node."""
    if asked.script is not None:
        return read_script(asked.script, Path.cwd())
    gpus = site.slurm.gpus if asked.gpus is None else asked.gpus
    groups = [group for group in partition.groups if group.gpus >= gpus] if partition else []
    node = min(groups, key=lambda group: (group.gpus, group.cpus), default=None)
    share = gpus / node.gpus if node and node.gpus and gpus else 1.0
    memory = asked.mem or site.slurm.mem
    limit = asked.time or site.slurm.time
    return JobFacts(
        device=asked.device if gpus else "cpu",
        nodes=asked.nodes,
        gpus=gpus,
        cpus=asked.cpus or site.slurm.cpus or (int(node.cpus * share) if node else None),
        memory=_memory(memory) if memory else (int(node.memory_mb * share) * 2**20 if node else None),
        time=parse_time(limit) if limit else None,
        requeue=site.slurm.requeue if asked.requeue is None else asked.requeue,
        torchrun=asked.nodes * gpus > 1,
        logs=asked.logs,
        copy_image=site.slurm.copy_image,
    )


def job_facts(job: Job) -> JobFacts:
    """What a job of ours asks for."""
    wanted = job.resources
    return JobFacts(
        device="gpu" if wanted.gpus else "cpu",
        nodes=wanted.nodes,
        gpus=wanted.gpus,
        cpus=wanted.cpus,
        memory=_memory(wanted.memory) if wanted.memory else None,
        time=wanted.time,
        requeue=job.resume is not None,
        torchrun=job.torchrun,
        logs=Path(job.logs),
        copy_image=job.copy_image,
    )


def here(environ: Mapping[str, str], *, gpu: bool, torchrun: bool, now: bool) -> JobFacts:
    """A run on this node, with all GPUs that it may see. `now`: it starts at once."""
    found = _visible(environ) if gpu else 0
    device = "gpu" if gpu else "cpu"
    return JobFacts(device, 1, found, None, None, None, requeue=False, torchrun=torchrun or found > 1, here=now)


def verification_job(device: str, gpus: int) -> JobFacts:
    """A smoke run on this node."""
    gpus = gpus if device == "gpu" else 0
    return JobFacts(device, 1, gpus, None, None, None, requeue=False, torchrun=gpus > 1, here=True)


def _visible(environ: Mapping[str, str]) -> int:
    try:
        return len(visible_devices(read_host(), environ))
    except HostError:  # no driver here; a rule says so
        return 0


def _memory(asked: str) -> int | None:
    """Bytes on a node; None for all that it has, which sbatch writes as 0. Raises `UsageError` for no amount."""
    found = bytes_of(asked)
    if found is None:
        raise UsageError(f"--mem {asked!r} is no amount of memory", "write it as 64G")
    return found or None


# ---------------------------------------------------------------------------------------------- judging


def find(word: Path, checkout: Path | None) -> Path:
    """A YAML as it is named, else below the checkout. Raises `UsageError` for one that is nowhere."""
    if word.exists() or word.is_symlink():
        return word
    return find_config(word, checkout)


def read(path: Path, overrides: tuple[str, ...], around: Around) -> ConfigFacts:
    """A YAML as it lies there, as the image's LLaMA-Factory would read it."""
    return read_config(path, overrides, around.facts.image)


def read_text(path: Path, text: str, overrides: tuple[str, ...], around: Around) -> ConfigFacts:
    """A text that could stand in a YAML's place."""
    return config_of(path, text, overrides, around.facts.image)


def judge(
    configs: Sequence[ConfigFacts], rules: Callable[[Path], Iterable[Rule]], around: Around
) -> tuple[Checked, ...]:
    """Ask each YAML's rules."""
    gathered = facts_of(configs, around.facts)
    if around.apptainer and around.facts.image:
        gathered = _parsed(gathered, around.facts.image.path, around.apptainer)
    return tuple(_judged(facts, tuple(rules(facts.config.path))) for facts in gathered)


def _parsed(gathered: Sequence[Facts], image: Path, apptainer: Apptainer) -> tuple[Facts, ...]:
    """With what the image's own parser says of each, in one start of it. Raises `CommandFailed` if it does not."""
    readable = [facts for facts in gathered if facts.config.problem is None]
    checkout = next((facts.checkout.root for facts in readable if facts.checkout), None)
    cases = [Case(facts.config.text, facts.config.overrides, device_of(facts)) for facts in readable]
    with tempfile.TemporaryDirectory(prefix="sifkit-parse-") as work:
        binds = (Bind(checkout, IN_CHECKOUT),) if checkout else ()
        container = Container(apptainer, image, Path(work), nv=False, binds=binds)
        verdicts = iter(parse_all_inside(container, cases, IN_CHECKOUT if checkout else None))
    return tuple(replace(f, parsed=next(verdicts)) if f.config.problem is None else f for f in gathered)


def _judged(facts: Facts, asked: tuple[Rule, ...]) -> Checked:
    findings, skipped = apply(asked, facts)
    kept, ignored = without_ignored(findings, read_ignores(facts.config.text))
    if facts.config.problem is not None:
        skipped = ()  # nothing was checked, which the one finding says
    left_out = {each.code for each in skipped}
    return Checked(
        file=str(facts.config.path),
        findings=kept,
        skipped=skipped,
        ignored=ignored,
        asked=tuple(rule.code for rule in asked if rule.code not in left_out),
    )


# ---------------------------------------------------------------------------------------------- stopping

NO_CHECK = "sifkit is wrong? --no-check goes on all the same; one rule alone: # sifkit: ignore[CODE] in the YAML"

# A verification runs the YAML with another model, in another place and for a few steps (verify/smoke.py); what is wrong
# with the image it finds out itself, and reports.
NOT_OF_A_VERIFICATION = (
    "IMG",
    "CKP",
    "SLM",
    "DST",
    "GPU005",
    "GPU006",
    "DAT006",
    "DAT007",
    "DAT008",
    "DAT017",
    "DAT018",
)


def require_sound(
    configs: Sequence[Path],
    overrides: tuple[str, ...],
    around: Around,
    progress: Progress,
    leave_out: tuple[str, ...] = (),
) -> None:
    """Say warnings. Raises `ProblemFound` with every error and its fix."""
    known = all_rules()

    def rules(config: Path) -> Iterable[Rule]:
        return overridden(selection(find_settings(config), known), (), leave_out).rules(known, config)

    read_ = [read(config, overrides, around) for config in configs]
    checked = judge(read_, rules, around)
    for one in checked:
        for finding in one.findings:
            if finding.severity is Severity.WARNING:
                progress.note(f"warning: {line_of(one, finding)}; {finding.fix}")
    wrong = [(one, finding) for one in checked for finding in one.findings if finding.severity is Severity.ERROR]
    if wrong:
        said = [f"- {line_of(one, finding)}" for one, finding in wrong]
        fixes = dict.fromkeys(finding.fix for _, finding in wrong)
        raise ProblemFound("this run would fail:\n" + "\n".join(said), "\n".join([*fixes, NO_CHECK]))
