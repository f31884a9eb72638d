"""From specs to images: read, plan, build, test, publish. The orchestration reads as a list of verbs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sifkit import __version__
from sifkit.apptainer import Apptainer
from sifkit.assemble import add_carried, assemble
from sifkit.causes import find_cause
from sifkit.check.facts import ImageFacts
from sifkit.compat.check import check
from sifkit.compat.findings import Finding, Target
from sifkit.compat.gate import require_fit, say
from sifkit.deffile import labels, needs_whole_build, render
from sifkit.environment import read_environment, require_unchanged, require_usable
from sifkit.errors import CommandFailed
from sifkit.gather.image import ask, hash_ahead, parse_facts, write_into
from sifkit.hashes import sha256_of
from sifkit.host import Room, check_cache_room, check_images_room, choose_tmpdir, host_bases, tree_bytes
from sifkit.lock import current_lock
from sifkit.model import Image, ImageSpec, Lock, Scratch
from sifkit.plan import Recipe, reasons_to_build, recipe_of
from sifkit.reference import pinned
from sifkit.resolve import resolution, resolve_base
from sifkit.sign import SigningKey, sign
from sifkit.spec import load_spec
from sifkit.store import Manifest, exclusive, flush
from sifkit.together import pool
from sifkit.tools import Timings, Tools
from sifkit.workshop import Workshop, fresh_log, say_waiting

Assembler = Callable[[Image, Workshop, Path, Timings], None]  # makes an image that is whole but for its facts


@dataclass(frozen=True)
class How:
    """What is asked of a build beside the image itself."""

    force: bool = False
    signing: SigningKey | None = None
    assembler: Assembler = assemble


@dataclass(frozen=True)
class Step:
    """An image, and why it must be built; no reasons: it is current."""

    image: Image
    recipe: Recipe
    reasons: tuple[str, ...]


def load_image(name: str, tools: Tools) -> Image:
    """Spec, lock and base of one image. Raises `UsageError` for whatever is wrong with them."""
    spec = load_spec(tools.project, name)
    path = tools.project.lock_path(name)
    base = resolve_base(spec, tools.site, host_bases(tools.runner))
    wanted = resolution(spec, tools.tables, tools.site)
    lock = current_lock(wanted, path)
    return Image(spec, wanted, lock, path.relative_to(tools.project.root).as_posix(), pinned(base, lock))


def make_step(image: Image, tools: Tools, *, force: bool = False) -> Step:
    """Compare an image's recipe with what is there."""
    recipe = recipe_of(image)
    manifest = tools.store.manifest(image.name)
    reasons = reasons_to_build(recipe, manifest.as_built() if manifest else None, tools.store.on_disk(image.name))
    return Step(image, recipe, reasons or (("asked for",) if force else ()))


def findings_of(spec: ImageSpec, tools: Tools, lock: Lock | None = None) -> tuple[Finding, ...]:
    """A spec, and its lock where there is one, against the tables, the site's driver and its GPUs."""
    return check(spec, Target.of(spec, tools.site), tools.tables, lock)


def require_fits(spec: ImageSpec, lock: Lock, tools: Tools) -> None:
    """Say what is worth saying of a spec and its lock. Raises `ProblemFound` for what cannot work."""
    findings = findings_of(spec, tools, lock)
    require_fit(spec.name, findings)
    say(spec.name, findings, tools.progress)


def build_all(
    names: Sequence[str],
    tools: Tools,
    *,
    force: bool = False,
    checked: bool = True,
    signing: SigningKey | None = None,
    assembler: Assembler = assemble,
) -> list[Step]:
    """Build what is stale; return what was planned. Everything is read and checked before anything is built."""
    images = [load_image(name, tools) for name in names]
    for image in images if checked else ():
        require_fits(image.spec, image.lock, tools)
    steps = [make_step(image, tools, force=force) for image in images]
    say_current(steps, tools)
    for step in steps:
        if step.reasons:
            require_environment(step.image, tools)
    build_stale(steps, tools, How(force, signing, assembler))
    return steps


def say_current(steps: Sequence[Step], tools: Tools) -> None:
    """Which images need nothing."""
    for step in steps:
        if not step.reasons:
            tools.progress.note(f"{step.image.name}: up to date ({tools.store.sif(step.image.name)})")


def build_stale(steps: Sequence[Step], tools: Tools, how: How) -> None:
    """Build those that have reasons; without any, Apptainer need not be here."""
    stale = [step for step in steps if step.reasons]
    if stale:
        apptainer = Apptainer.find(tools.runner)
        for step in stale:
            build(step, tools, apptainer, how)


def require_environment(image: Image, tools: Tools) -> None:
    """An environment of this host that the image starts from is the one that was locked. Raises with the fix."""
    base = image.base.source
    if isinstance(base, Scratch) and base.environment:
        found = read_environment(base, tools.runner)
        require_usable(image.spec, found)
        require_unchanged(image.lock, found, tools.project.lock_path(image.name))


def build(step: Step, tools: Tools, apptainer: Apptainer, how: How) -> None:
    """Build, test and publish one image. Raises `CommandFailed` with the likely cause; leaves nothing then."""
    name, store = step.image.name, tools.store
    with exclusive(store.directory / f".{name}.lock", lambda: say_waiting(name, tools.progress)):
        step = make_step(step.image, tools, force=how.force)
        if not step.reasons:
            tools.progress.note(f"{name}: the other build made it")
            return
        tools.progress.note(f"{name}: building, because {' and '.join(step.reasons)}")
        room = room_of(step.image)
        tmpdir = choose_tmpdir(tools.site, tools.environ, room, tools.cache)
        check_images_room(store.directory, tmpdir, room)
        if step.image.resolution.environment is None:  # what pip installs is small, and nothing else is kept
            check_cache_room(tools.cache, room)
        workshop = Workshop(tools, apptainer, tmpdir, fresh_log(tools.project, name))
        store.remove_partials(name)
        with tools.runner.removing(store.partial(name)):
            try:
                publish(step, workshop, make(step.image, workshop, how))
            except CommandFailed as error:
                raise _with_cause(error, workshop.log) from None


def room_of(image: Image) -> Room:
    """Estimated from the lock, and measured where directories of this host are copied."""
    base = image.base.source
    if isinstance(base, Scratch) and base.environment:
        return Room.for_host_tree(tree_bytes((*base.copy_, base.environment)), image.lock)
    return Room.for_lock(image.lock)


def publish(step: Step, workshop: Workshop, made: Finished) -> None:
    """Write the finished image's manifest, give both their names."""
    tools, image, timings = workshop.tools, step.image, made.timings
    partial = tools.store.partial(image.name)
    with timings.phase("publish", tools.progress, "publish"):
        status = partial.stat()
        manifest = Manifest(
            name=image.name,
            sha256=made.sha256 or sha256_of(partial),
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            built=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            recipe=step.recipe,
            base=image.base.name or image.base.source.bootstrap,
            versions=_versions(image, workshop),
            seconds=timings.seconds,
        )
        tools.store.publish(manifest)
    tools.progress.note(f"{tools.store.sif(image.name)}  {manifest.size / 1e9:.2f} GB  sha256 {manifest.sha256[:12]}…")


def _versions(image: Image, workshop: Workshop) -> dict[str, str]:
    inside = {
        key.removeprefix("org.sifkit."): value for key, value in labels(image, sifkit_version=__version__).items()
    }
    names = ("python", "torch", "cuda", "llamafactory", "transformers")
    made_with = {"apptainer": str(workshop.apptainer.version()), **workshop.engine}
    return {"sifkit": __version__, **made_with, **{name: inside[name] for name in names}}


@dataclass(frozen=True)
class Finished:
    """An image under its partial name. `sha256`: of the file, where it is known."""

    timings: Timings
    sha256: str | None


def make(image: Image, workshop: Workshop, how: How) -> Finished:
    """Base, packages, image, test, facts, signature; the result stands under the partial name."""
    timings, tools = Timings(), workshop.tools
    partial = tools.store.partial(image.name)
    if how.assembler is not assemble or not needs_whole_build(image):
        how.assembler(image, workshop, partial, timings)
    else:
        with timings.phase("build", tools.progress, f"build {image.name}"):
            workshop.apptainer_build(render(image, sifkit_version=__version__), partial)
            add_carried(image, tools, partial)
    with timings.phase("test", tools.progress, "run its own test, and ask what it holds"):
        sha256 = test(image, partial, workshop)
    if how.signing:
        with timings.phase("sign", tools.progress, f"sign {image.name}"):
            sign(partial, how.signing, workshop.apptainer)
            sha256 = None
    return Finished(timings, sha256)


def test(image: Image, partial: Path, workshop: Workshop) -> str | None:
    """Ask the image for its facts, write them into its file, and run its own test where they do not answer it.

    Meanwhile the file goes to the disk, and is hashed; returns its sha256 with the facts, where that holds. Raises
    `CommandFailed` when the test fails. An image that does not answer is not lost: it is asked again when its facts
    are needed.
    """

    def learn() -> str | CommandFailed | OSError:
        try:
            return ask(partial, workshop.apptainer)
        except (CommandFailed, OSError) as error:
            return error

    tools = workshop.tools
    with pool(tools.runner.stop_all, 3) as beside:
        asked, ahead = beside.submit(learn), beside.submit(hash_ahead, partial)
        beside.submit(flush, partial).result()
        facts = asked.result()
    if not isinstance(facts, str) or not answers_test(image, parse_facts(facts, partial)):
        workshop.run(workshop.apptainer.test_command(partial))
    if isinstance(facts, str):
        foreseen = ahead.result()
        write_into(partial, facts)
        return foreseen.of(partial)
    tools.progress.note(f"{image.name}: what it holds is not written into it: {facts}")
    return None


def answers_test(image: Image, facts: ImageFacts | None) -> bool:
    """Whether the facts, for which the same modules were imported, show what the definition's own test looks at."""
    spec = image.spec
    if facts is None or "test" in spec.sections:
        return False
    modules = ("torchaudio", "torchvision", "llamafactory.train.tuner")
    imported = all(facts.imports.get(module) == "" for module in modules)
    torch = facts.packages.get("torch", "").partition("+")[0]
    versions = (torch, facts.torch_cuda, facts.llamafactory)
    return imported and versions == (spec.torch.version, spec.torch.cuda, spec.llamafactory.version)


def _with_cause(error: CommandFailed, log: Path) -> CommandFailed:
    """The same failure with its likely cause and fix, read from what the program said last."""
    found = find_cause("\n".join(error.tail), "build")
    message = error.message + (f"\nlikely cause: {found.cause}" if found else "") + f"\nwhole output: {log}"
    fix = found.fix if found else error.fix
    return CommandFailed(message, fix, returncode=error.returncode, tail=error.tail)
