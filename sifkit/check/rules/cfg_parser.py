"""CFG, what LLaMA-Factory's parser refuses although each key and value is right, and packages that arguments need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sifkit.check.facts import Facts, HostFacts, ImageFacts, Kind
from sifkit.check.parser import Device, Refusal, covered, refusals
from sifkit.check.parser_tables import Reporter, has_any, needed, reporters
from sifkit.check.rule import Found, NotChecked, Severity, rule
from sifkit.check.rules.cfg_values import misfits

_SAID_BY_OTHERS = frozenset(  # CFG002, CFG003, CFG010, CFG011; GPU004
    {"unknown-keys", "no-model", "no-dataset", "bf16-device", "pure-bf16-device"}
)
_EXTRAS = {
    **dict.fromkeys(("jieba", "nltk", "rouge-chinese"), "metrics"),
    **{name: name for name in ("bitsandbytes", "liger-kernel", "deepspeed", "vllm")},
}


def _image(facts: Facts) -> ImageFacts:
    assert facts.image is not None  # needs=[Kind.IMAGE]
    return facts.image


def device_of(facts: Facts) -> Device:
    """What a process of the run will find, as far as it is known; else one GPU of today."""
    job, site = facts.job, facts.site
    on_cpu = bool(facts.config.values.get("use_cpu") or facts.config.values.get("no_cuda"))
    gpu = job is None or job.device == "gpu" or (on_cpu and job.gpus > 0)
    capabilities = [each.capability for each in site.gpus if each.capability] if site else []
    spread = job is not None and (job.torchrun or job.gpus > 1 or job.nodes > 1)
    return Device(gpu, tf32=all(each >= (8, 0) for each in capabilities), distributed=spread)


def refused(facts: Facts) -> tuple[Refusal, ...]:
    """What the image's parser would say; empty for an image whose parser is not known."""
    known: tuple[Refusal, ...] | None = facts.__dict__.get("_refused")
    if known is None:
        image = _image(facts)
        known = refusals(facts.config.values, image, device_of(facts), _files(facts)) if covered(image) else ()
        object.__setattr__(facts, "_refused", known)  # two rules ask
    return known


def _files(facts: Facts) -> Mapping[str, Any]:
    """Those that could be read; of one that is missing DAT speaks."""
    paths = facts.checkout.paths if facts.checkout else ()
    return {path.text: path.json for path in paths if path.json is not None and not path.is_dir}


def _not_covered(image: ImageFacts) -> NotChecked:
    return NotChecked(
        f"the parser of LLaMA-Factory {image.llamafactory} with transformers {image.transformers} is not known here; "
        "--parse asks the image's own"
    )


@rule(
    "CFG007",
    "parser-refuses",
    needs=[Kind.IMAGE],
    prevents="ValueError: Cannot specify `val_size` if `eval_dataset` is not None.",
    why="LLaMA-Factory and transformers check arguments against each other and against the device when they read the "
    "YAML, and stop at what does not go together.",
    fix="Change one of the keys that are named; each finding says which, and how.",
    source="sifkit/data/parser: LLaMA-Factory 0.9.4 and 0.9.5, hparams/*.py; transformers 4.57.1 and 5.6.0, "
    "training_args.py",
)
def parser_refuses(facts: Facts) -> Iterator[Found | NotChecked]:
    """Arguments, each right by itself, that LLaMA-Factory's parser refuses together or on this device."""
    asked = facts.parsed
    if asked and asked.raised == "died":
        yield NotChecked(f"the image's own parser ended without an answer: {asked.text}")
        asked = None
    said = refused(facts)
    if asked and not asked.accepts and not said:
        yield Found(f"the image's own parser refuses this: {asked.raised}: {asked.text}", "change what it names")
    if not covered(_image(facts)) and asked is None:
        yield _not_covered(_image(facts))
    if asked and asked.accepts:
        return  # it knows best
    elsewhere = misfits(facts)
    for refusal in said:
        named = [key for key in refusal.keys if key in facts.config.values]
        script = facts.job is not None and not facts.job.ours and bool(facts.job.script)
        by_others = refusal.id in _SAID_BY_OTHERS or (refusal.id == "deepspeed-alone" and script)  # DST002
        known = by_others or refusal.package is not None or (named and elsewhere.issuperset(named))
        if not known:
            key = next(iter(named), next(iter(refusal.keys), None))
            message = f"LLaMA-Factory refuses this: {refusal.raised}: {refusal.message}"
            yield Found(message, refusal.fix, key=key, cause=f"{refusal.message} ({refusal.source})")


@rule(
    "CFG009",
    "reports-to-everything",
    Severity.WARNING,
    needs=[Kind.IMAGE],
    prevents="wandb.errors.errors.UsageError: api_key not configured (no-tty). call wandb.login(key=[your_api_key])",
    why="Up to transformers 4, a config without report_to reports to every tracker that is installed. One that wants "
    "an account asks for it, which fails in a job or waits for ever.",
    fix="Set report_to to none, or to the trackers that you use, with their keys in the environment.",
    source="transformers 4.57.1 and 5.6.0, training_args.py: report_to; integrations/integration_utils.py",
    rows=(42,),
)
def reports_to_everything(facts: Facts) -> Iterator[Found]:
    """A tracker that wants an account and has no key here: named in report_to, or found because it is not set."""
    image = _image(facts)
    value = facts.config.values.get("report_to")
    everything = value in ("all", ["all"]) or (value is None and _reports_by_default(image))
    named = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    for name, reporter in reporters().items():
        if not reporter.account or not (everything or name in named) or not has_any(reporter.needs, image.packages):
            continue
        if everything:
            how = "report_to is not set, which means all that are installed" if value is None else "report_to is all"
            yield Found(f"{how}: {name} among them, which wants an account", "add report_to: none", key="report_to")
        elif facts.host and not _has_account(reporter, facts.host):
            message = f"report_to names {name}, and {reporter.key} is not set here"
            yield Found(message, f"export {reporter.key}, or write report_to: none", key="report_to")


def _reports_by_default(image: ImageFacts) -> bool:
    try:
        return Version(image.transformers).major < 5
    except InvalidVersion:
        return False


def _has_account(reporter: Reporter, host: HostFacts) -> bool:
    environment = host.environment
    switched_off = any(environment.get(name, "").lower() in values for name, values in reporter.without.items())
    return bool(reporter.key and environment.get(reporter.key)) or switched_off


@rule(
    "CFG012",
    "package-missing",
    needs=[Kind.IMAGE],
    prevents="importlib.metadata.PackageNotFoundError: The 'liger-kernel' distribution was not found and is required "
    "by this application.",
    why="The argument needs a package that the image has not, or has in another version. LLaMA-Factory asks for some "
    "of them when it reads the YAML; the others are missed when the model was loaded.",
    fix="Build the image with the package, or choose another option.",
    source="LLaMA-Factory 0.9.4 and 0.9.5, hparams/parser.py: _check_extra_dependencies; "
    "sifkit/data/parser/packages.yaml has the source of the others",
)
def package_missing(facts: Facts) -> Iterator[Found | NotChecked]:
    """An argument that needs a package which the image has not, or not in that version."""
    image = _image(facts)
    if not covered(image):
        yield _not_covered(image)
    yield from _refused_for_packages(facts)
    for row in needed():
        if row.is_asked_for(facts) and not has_any(row.needs, image.packages):
            yield Found(f"{row.key}: {row.says}", _with([row.needs[0].name], row.instead), key=row.key)
    yield from _trackers(facts, image)


def _refused_for_packages(facts: Facts) -> Iterator[Found]:
    """One finding a key, also where it needs several."""
    lacking: dict[str, dict[str, Refusal]] = {}
    for refusal in refused(facts):
        if refusal.package:
            lacking.setdefault(refusal.keys[0], {}).setdefault(refusal.package, refusal)
    for key, refusals_of in lacking.items():
        first, *others = refusals_of.values()
        also = f" Nor is there {', '.join(each.package or '' for each in others)}." if others else ""
        yield Found(f"{key}: {first.message}{also}", _with([*refusals_of], first.fix), key=key)


def _trackers(facts: Facts, image: ImageFacts) -> Iterator[Found]:
    value = facts.config.values.get("report_to")
    for name in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        reporter = reporters().get(name) if isinstance(name, str) else None
        if reporter and not has_any(reporter.needs, image.packages):
            fix = _with([reporter.needs[0].name], "write report_to: none")
            yield Found(f"report_to: {reporter.says}", fix, key="report_to")


def _with(packages: Sequence[str], instead: str) -> str:
    extra = _EXTRAS.get(canonicalize_name(packages[0]))
    what = f"the extra {extra}" if extra else f"{', '.join(packages)} (packages: in its spec)"
    return f"{instead}, or build the image with {what}"
