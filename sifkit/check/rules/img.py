"""IMG: the versions in an image, whether what the run imports does import, and whether the image is what it was."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from sifkit.causes import find_cause
from sifkit.check.facts import Facts, ImageFacts, Kind
from sifkit.check.rule import Found, NotChecked, Severity, rule
from sifkit.compat.tables import LlamaFactoryRelease, load_tables, requirement_of

_LOCK_AGAIN = "lock and build the image again: sifkit lock NAME, then python build.py NAME"
PARSER, TUNER = "llamafactory.hparams.parser", "llamafactory.train.tuner"


# ---------------------------------------------------------------------------------------------- versions


@rule(
    "IMG001",
    "dependency-outside-range",
    needs=[Kind.IMAGE],
    prevents="ImportError: transformers>=4.55.0,<=5.6.0 is required for a normal functioning of this module, but found "
    "transformers==5.7.0.",
    why="LLaMA-Factory compares the versions of transformers, datasets, accelerate, peft and trl with its own ranges "
    "when it starts, and stops outside them; what its metadata asks for beyond that is only a warning.",
    fix=_LOCK_AGAIN,
    source="llamafactory/extras/misc.py, check_dependencies (0.9.4, 0.9.5); transformers/utils/versions.py (4.57.1); "
    "definitions/compat/llamafactory.yaml",
    rows=(1,),
)
def dependency_outside_range(facts: Facts) -> Iterator[Found | NotChecked]:
    """A package in the image whose version lies outside the range of the image's LLaMA-Factory."""
    image = _image(facts)
    release = load_tables().llamafactory(image.llamafactory)
    if release is None:
        yield NotChecked(f"the tables know no LLaMA-Factory {image.llamafactory or '(there is none in the image)'}")
        return
    refused = dict(_refused(image, release))
    switched_off = _is_on(image.environment.get("DISABLE_VERSION_CHECK"))
    for package, text in refused.items():
        has = image.packages.get(package, "none")
        message = f"the image has {package} {has}; LLaMA-Factory {image.llamafactory} asks for {text}"
        if switched_off:
            yield Found(f"{message}, and its check is switched off", _LOCK_AGAIN, severity=Severity.WARNING)
        else:
            yield Found(f"{message} and stops when it starts", _LOCK_AGAIN)
    for requirement in map(requirement_of, release.requires):
        name = canonicalize_name(requirement.name)
        if name not in refused and not _within(image.packages.get(name), requirement):
            message = f"the image has {name} {image.packages[name]}; LLaMA-Factory {image.llamafactory} was published "
            yield Found(f"{message}for {requirement.specifier}", _LOCK_AGAIN, severity=Severity.WARNING)


def _refused(image: ImageFacts, release: LlamaFactoryRelease) -> Iterator[tuple[str, str]]:
    """Packages that the check at start refuses, and what it asks for."""
    for text in release.runtime:
        requirement = requirement_of(text)
        name = canonicalize_name(requirement.name)
        if not _passes(image.packages.get(name), requirement):
            yield name, text


def _passes(version: str | None, requirement: Requirement) -> bool:
    """As transformers' require_version judges: plain comparison, which takes 5.6.0+cu128 to be above 5.6.0.

    Of several != only the last counts there; the ranges have none.
    """
    try:
        got = Version(version or "")
    except InvalidVersion:
        return False
    compared = {
        "<": got.__lt__, "<=": got.__le__, "==": got.__eq__, "!=": got.__ne__, ">=": got.__ge__, ">": got.__gt__
    }  # fmt: skip
    wanted = {each.operator: Version(each.version) for each in requirement.specifier if each.operator in compared}
    return all(compared[operator](version) for operator, version in wanted.items())


def _within(version: str | None, requirement: Requirement) -> bool:
    """Whether the version fits, or is not there at all: then the imports tell whether it is needed."""
    if version is None or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
        return True
    try:
        return requirement.specifier.contains(Version(version), prereleases=True)
    except InvalidVersion:
        return True


def _is_on(value: str | None) -> bool:
    """As LLaMA-Factory's is_env_enabled."""
    return (value or "0").lower() in ("true", "y", "1")


@rule(
    "IMG002",
    "other-version-than-checkout",
    Severity.WARNING,
    needs=[Kind.IMAGE, Kind.CHECKOUT],
    prevents="nothing is said: edits to the checkout have no effect, and features of its version are missing",
    why="The image runs its own LLaMA-Factory; of the checkout only data, examples and the YAML are read.",
    fix="Use a checkout of the image's version, or an image of the checkout's.",
    source="field reports, LF#5761; src/llamafactory/extras/env.py of the checkout",
    rows=(2,),
)
def other_version_than_checkout(facts: Facts) -> Iterator[Found | NotChecked]:
    """A checkout of another LLaMA-Factory than the one in the image."""
    image, checkout = _image(facts), facts.checkout
    assert checkout is not None
    if checkout.version is None or not image.llamafactory:
        yield NotChecked("the checkout or the image does not say its version")
    elif checkout.version != image.llamafactory:
        message = f"the checkout {checkout.root} is LLaMA-Factory {checkout.version}; "
        message += f"what runs is the image's own {image.llamafactory}"
        yield Found(message, f"use a checkout of that version: sifkit checkout {image.llamafactory} DIR")


@rule(
    "IMG014",
    "unknown-llamafactory",
    Severity.INFO,
    needs=[Kind.IMAGE],
    prevents="nothing: rules that know LLaMA-Factory by its version say less",
    why="Ranges, the parser's refusals and renamed keys are known by release.",
    fix="Update sifkit, or the tables: sifkit compat update.",
    source="definitions/compat/llamafactory.yaml",
)
def unknown_llamafactory(facts: Facts) -> Iterator[Found]:
    """A LLaMA-Factory of which sifkit's tables know nothing."""
    image = _image(facts)
    known = load_tables().llamafactories
    if image.llamafactory and load_tables().llamafactory(image.llamafactory) is None:
        span = f"{known[0].version} to {known[-1].version}"
        message = f"the image has LLaMA-Factory {image.llamafactory}; the tables know {span}"
        yield Found(message, "update the tables: sifkit compat update; or use an image with a release that is known")


@rule(
    "IMG006",
    "resume-refused",
    needs=[Kind.IMAGE],
    prevents="ValueError: Due to a serious vulnerability issue in `torch.load`, even with `weights_only=True`, we now "
    "require users to upgrade torch to at least v2.6 in order to use the function.",
    why="The optimizer's state is no safetensors file; transformers from 4.52 on refuses to load it with a torch "
    "older than 2.6. A run starts, saves, and cannot go on from what it saved.",
    fix="Use an image with torch 2.6 or newer.",
    source="transformers/utils/import_utils.py, check_torch_load_is_safe (4.52.1, 4.57.1, 5.6.0; not yet in 4.51.3); "
    "LF#8379",
    rows=(17,),
)
def resume_refused(facts: Facts) -> Iterator[Found | NotChecked]:
    """A torch with which this transformers resumes no checkpoint."""
    image = _image(facts)
    torch, transformers = image.packages.get("torch"), image.transformers
    if torch is None or not transformers:
        yield NotChecked("the image has no torch or no transformers")
        return
    if not facts.value("do_train"):
        return
    try:
        if Version(torch) >= Version("2.6") or Version(transformers) < Version("4.52"):
            return
    except InvalidVersion:
        yield NotChecked(f"torch {torch} or transformers {transformers} is no version")
        return
    how = _resumes(facts)
    message = f"transformers {transformers} resumes no checkpoint with torch {torch}: "
    fix = "use an image with torch 2.6 or newer: pins in the spec, then lock and build again"
    if how:
        yield Found(message + how, fix, key="resume_from_checkpoint")
    else:
        yield Found(f"{message}a run that is stopped cannot go on", fix, severity=Severity.WARNING)


def _resumes(facts: Facts) -> str | None:
    """Why the run will resume, or will have to."""
    if facts.value("resume_from_checkpoint"):
        return "this run resumes one"
    fresh = facts.value("overwrite_output_dir") is True
    if facts.checkout and facts.checkout.checkpoints and not fresh:
        return f"this run goes on from {facts.checkout.checkpoints[-1].path.name} in output_dir"
    if facts.job and facts.job.requeue:
        return "this job requeues itself, and then goes on from its newest checkpoint"
    return None


# ---------------------------------------------------------------------------------------------- imports

# What imports tried without a GPU cannot tell.
_NEEDS_DRIVER = re.compile(r"libcuda\.so|libnvidia-ml|NVIDIA driver|No CUDA GPUs|CUDA-capable device")


@rule(
    "IMG003",
    "import-fails",
    needs=[Kind.IMAGE],
    prevents="OSError: libcudart.so.13: cannot open shared object file: No such file or directory",
    why="A package of the image cannot be imported: it was built for another torch, or lacks a library. LLaMA-Factory "
    "imports late, so that `llamafactory-cli version` succeeds in such an image.",
    fix=_LOCK_AGAIN,
    source="tried in the image, each in a process of its own; sifkit/data/causes.yaml",
    rows=(1, 10, 11, 19),
)
def import_fails(facts: Facts) -> Iterator[Found | NotChecked]:
    """A package that the run needs, or may need, and that does not import in the image."""
    image = _image(facts)
    failed = {module: said for module, said in image.imports.items() if said}
    told: set[str] = set()
    for module, said in failed.items():
        if _NEEDS_DRIVER.search(_last_line(said)):
            yield NotChecked(f"{module} imports only where there is a GPU")
        elif _last_line(said) not in told:  # what imports a package that fails, fails in its words
            yield _failed_import(module, said, _uses(module, facts))
        told.add(_last_line(said))
    if not image.imports:
        yield NotChecked("no import was tried in this image")


def _failed_import(module: str, said: str, wanted: str | None) -> Found:
    known = find_cause(said, "run") or find_cause(said, "build")
    message = f"{module} does not import in the image: {_last_line(said)}"
    fix = known.fix if known else f"see what it lacks: apptainer exec IMAGE python3 -c 'import {module}'; {_LOCK_AGAIN}"
    severity = Severity.ERROR if wanted is not None else Severity.WARNING
    return Found(message, fix, key=wanted or None, cause=known.cause if known else None, severity=severity)


def _last_line(said: str) -> str:
    return said.strip().splitlines()[-1].strip()


def _uses(module: str, facts: Facts) -> str | None:
    """The key for which the run imports a module; "" where it always does, None where it does not."""
    if module in (PARSER, TUNER):
        return ""
    uses: Mapping[str, tuple[tuple[str, bool], ...]] = {
        "deepspeed": (("deepspeed", bool(facts.value("deepspeed"))),),
        "flash_attn": (("flash_attn", facts.value("flash_attn") == "fa2"),),
        "liger_kernel.transformers": (("enable_liger_kernel", facts.value("enable_liger_kernel") is True),),
        "bitsandbytes": (
            ("quantization_bit", _quantises_with_bitsandbytes(facts)),
            ("optim", bool(re.search(r"8bit|bnb|paged", str(facts.value("optim"))))),
        ),
    }
    return next((key for key, is_used in uses.get(module, ()) if is_used), None)


def _quantises_with_bitsandbytes(facts: Facts) -> bool:
    method = facts.value("quantization_method")
    return facts.value("quantization_bit") is not None and str(method or "bnb").lower() in ("bnb", "bitsandbytes")


@rule(
    "IMG004",
    "unresolved-library",
    Severity.WARNING,
    needs=[Kind.IMAGE],
    prevents="OSError: libcudart.so.13: cannot open shared object file: No such file or directory",
    why="A compiled file of the image needs a library that is nowhere in it. Its package imports all the same, or was "
    "not tried, and fails when the file is loaded.",
    fix="Install what brings the library, or take the package out of the image.",
    source="every ELF file of the image's environment read (sifkit audit); sifkit/data/optional_libraries.yaml",
    rows=(11,),
)
def unresolved_library(facts: Facts) -> Iterator[Found]:
    """A shared object in the image that needs a library which is not there."""
    needing: dict[tuple[str, str], list[str]] = {}
    for said in _image(facts).unresolved:
        file, _, library = said.partition(" needs ")
        needing.setdefault((file.split("/")[0].removesuffix(".libs"), library), []).append(file)
    for (package, library), files in needing.items():
        needed = (
            f"{files[0]} and {len(files) - 1} more of the image need" if files[1:] else f"{files[0]} of the image needs"
        )
        message = f"{library}, which {needed}, is not there"
        fix = (
            f"add the Debian package that brings {library} to apt in the spec, or take {package} out; then build again"
        )
        yield Found(message, fix)


# ---------------------------------------------------------------------------------------------- the file


@rule(
    "IMG012",
    "not-verified",
    Severity.WARNING,
    needs=[Kind.IMAGE],
    prevents="nothing: a fault of the image shows in the first job that uses it",
    why="No verification of exactly this file has passed: reports/ knows of none.",
    fix="Verify it: python build.py --verify NAME; without a GPU add --device cpu.",
    source="reports/NAME/verified.jsonl of the project",
)
def not_verified(facts: Facts) -> Iterator[Found | NotChecked]:
    """An image of the project that was never verified, or only before it was built anew."""
    record = _image(facts).record
    if record is None:
        yield NotChecked("the image is of no project, which would have a record of it")
    elif not record.verified and not record.change:
        message = f"no verification of {record.name} as it is now has passed"
        yield Found(
            message, f"verify it: python build.py --verify {record.name} (on a node without a GPU: --device cpu)"
        )


@rule(
    "IMG013",
    "changed-since-build",
    Severity.WARNING,
    needs=[Kind.IMAGE],
    prevents="SQUASHFS error: zlib decompression failed, data probably corrupt",
    why="The file is not, or may not be, the one that was built: a copy was cut off or damaged, or it was written to.",
    fix="Copy it again, or build it again: python build.py --force NAME.",
    source="size, time and sha256 in images/NAME.json; field reports",
    rows=(27,),
)
def changed_since_build(facts: Facts) -> Iterator[Found]:
    """An image file that is not the one that its manifest describes."""
    record = _image(facts).record
    if record is not None and record.change:
        message = f"{_image(facts).path} is not the image that was built: {record.change}"
        fix = f"build it again (python build.py --force {record.name}), or copy it again and compare its sha256"
        yield Found(message, fix)


def _image(facts: Facts) -> ImageFacts:
    assert facts.image is not None  # the rules say that they need it
    return facts.image
