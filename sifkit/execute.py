"""From specs to images: read, plan, build, test, publish. The orchestration reads as a list of verbs."""

from __future__ import annotations

import datetime
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from sifkit import __version__
from sifkit.apptainer import Apptainer, Bind
from sifkit.causes import find_cause
from sifkit.compat.check import check
from sifkit.compat.findings import Finding, Target
from sifkit.compat.gate import require_fit, say
from sifkit.compat.tables import Tables, load_tables
from sifkit.deffile import HOST_DIR, labels, render, render_base, render_on_base
from sifkit.environment import read_environment, require_unchanged, require_usable
from sifkit.errors import CommandFailed
from sifkit.gather.image import ask, write_into
from sifkit.host import Room, check_cache_room, check_images_room, choose_tmpdir, host_bases, tree_bytes
from sifkit.lock import current_lock
from sifkit.model import Image, ImageSpec, Lock, Scratch, Site, digest_of
from sifkit.plan import Recipe, reasons_to_build, recipe_of
from sifkit.progress import Progress
from sifkit.resolve import resolution, resolve_base
from sifkit.run import Command, Runner
from sifkit.site import ca_bundle, user_cache
from sifkit.spec import Project, load_spec
from sifkit.store import Manifest, Store, exclusive, sha256_of


@dataclass(frozen=True)
class Tools:
    """Everything that acts, handed down from the command line."""

    project: Project
    site: Site
    runner: Runner
    progress: Progress
    environ: Mapping[str, str]

    @property
    def store(self) -> Store:
        """images/."""
        return Store(self.project.images)

    @property
    def cache(self) -> Path:
        """Bases, packages, checkouts."""
        return user_cache(self.environ)

    @property
    def tables(self) -> Tables:
        """What fits what: the project's own tables, else those of this release."""
        return load_tables(self.project.compat)


@dataclass(frozen=True)
class Step:
    """An image, and why it must be built; no reasons: it is current."""

    image: Image
    recipe: Recipe
    reasons: tuple[str, ...]


@dataclass
class Timings:
    """Wall seconds of the phases of one build."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, progress: Progress, title: str) -> Iterator[None]:
        """Time what happens inside, and show it."""
        started = time.monotonic()
        with progress.phase(title):
            yield
        self.seconds[name] = round(time.monotonic() - started, 1)


def load_image(name: str, tools: Tools) -> Image:
    """Spec, lock and base of one image. Raises `UsageError` for whatever is wrong with them."""
    spec = load_spec(tools.project, name)
    path = tools.project.lock_path(name)
    base = resolve_base(spec, tools.site, host_bases(tools.runner))
    wanted = resolution(spec, tools.tables, tools.site)
    return Image(spec, wanted, current_lock(wanted, path), path.relative_to(tools.project.root).as_posix(), base)


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


def build_all(names: Sequence[str], tools: Tools, *, force: bool = False, checked: bool = True) -> list[Step]:
    """Build what is stale; return what was planned. Everything is read and checked before anything is built."""
    images = [load_image(name, tools) for name in names]
    for image in images if checked else ():
        require_fits(image.spec, image.lock, tools)
    steps = [make_step(image, tools, force=force) for image in images]
    for step in steps:
        if not step.reasons:
            tools.progress.note(f"{step.image.name}: up to date ({tools.store.sif(step.image.name)})")
    for step in steps:
        if step.reasons:
            require_environment(step.image, tools)
    if any(step.reasons for step in steps):
        apptainer = Apptainer.find(tools.runner)
        for step in steps:
            if step.reasons:
                build(step, tools, apptainer, force=force)
    return steps


def require_environment(image: Image, tools: Tools) -> None:
    """An environment of this host that the image starts from is the one that was locked. Raises with the fix."""
    base = image.base.source
    if isinstance(base, Scratch) and base.environment:
        found = read_environment(base, tools.runner)
        require_usable(image.spec, found)
        require_unchanged(image.lock, found, tools.project.lock_path(image.name))


def build(step: Step, tools: Tools, apptainer: Apptainer, *, force: bool = False) -> None:
    """Build, test and publish one image. Raises `CommandFailed` with the likely cause; leaves nothing then."""
    name, store = step.image.name, tools.store
    with exclusive(store.directory / f".{name}.lock", lambda: _say_waiting(name, tools)):
        step = make_step(step.image, tools, force=force)
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
        try:
            publish(step, workshop, workshop.assemble(step.image))
        except CommandFailed as error:
            raise _with_cause(error, workshop.log) from None
        finally:
            store.partial(name).unlink(missing_ok=True)


def room_of(image: Image) -> Room:
    """Estimated from the lock, and measured where directories of this host are copied."""
    base = image.base.source
    if isinstance(base, Scratch) and base.environment:
        return Room.for_host_tree(tree_bytes((*base.copy_, base.environment)), image.lock)
    return Room.for_lock(image.lock)


def publish(step: Step, workshop: Workshop, timings: Timings) -> None:
    """Hash the finished image, write its manifest, give both their names."""
    tools, image = workshop.tools, step.image
    partial = tools.store.partial(image.name)
    with timings.phase("hash", tools.progress, "hash and publish"):
        status = partial.stat()
        manifest = Manifest(
            name=image.name,
            sha256=sha256_of(partial),
            size=status.st_size,
            mtime_ns=status.st_mtime_ns,
            built=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            recipe=step.recipe,
            base=image.base.name or image.base.source.bootstrap,
            versions=_versions(image, workshop.apptainer),
            seconds=timings.seconds,
        )
        tools.store.publish(manifest)
    tools.progress.note(f"{tools.store.sif(image.name)}  {manifest.size / 1e9:.2f} GB  sha256 {manifest.sha256[:12]}…")


def _versions(image: Image, apptainer: Apptainer) -> dict[str, str]:
    inside = {
        key.removeprefix("org.sifkit."): value for key, value in labels(image, sifkit_version=__version__).items()
    }
    names = ("python", "torch", "cuda", "llamafactory", "transformers")
    return {"sifkit": __version__, "apptainer": str(apptainer.version()), **{name: inside[name] for name in names}}


@dataclass(frozen=True)
class Workshop:
    """Where one image is assembled: scratch space, the log, and what the site lends to the build."""

    tools: Tools
    apptainer: Apptainer
    tmpdir: Path
    log: Path

    def assemble(self, image: Image) -> Timings:
        """Base, image, test; the result stands under the partial name."""
        timings = Timings()
        definition = self.definition(image, timings)
        partial = self.tools.store.partial(image.name)
        with timings.phase("build", self.tools.progress, f"build {image.name}"):
            self.apptainer_build(definition, partial)
        with timings.phase("test", self.tools.progress, "run the image's own test"):
            self._run(self.apptainer.test_command(partial))
        with timings.phase("facts", self.tools.progress, "ask what it holds, for sifkit check"):
            self.write_facts(image.name, partial)
        return timings

    def write_facts(self, name: str, partial: Path) -> None:
        """Into the image's own file. An image that does not answer is not lost: it is asked when they are needed."""
        try:
            facts = ask(partial, self.apptainer)
        except (CommandFailed, OSError) as error:
            self.tools.progress.note(f"{name}: what it holds is not written into it: {error}")
        else:
            write_into(partial, facts, self.apptainer)

    def definition(self, image: Image, timings: Timings) -> str:
        """The second step, on a base that is made if need be; all in one where no base can be kept."""
        if image.resolution.environment is not None:
            return render(image, sifkit_version=__version__)
        return render_on_base(image, str(self.base(image, timings)), sifkit_version=__version__)

    def base(self, image: Image, timings: Timings) -> Path:
        """The operating system with the Debian packages, made once for all images that ask for the same."""
        definition = render_base(image)
        bases = self.tools.cache / "bases"
        bases.mkdir(parents=True, exist_ok=True)
        name = f"{image.base.name or image.base.source.bootstrap}-{digest_of(definition)[:16]}.sif"
        target = bases / name
        with exclusive(bases / f".{name}.lock", lambda: _say_waiting(name, self.tools)):
            if target.exists():
                return target
            for leftover in bases.glob(f".{name}.*.partial"):
                leftover.unlink(missing_ok=True)
            partial = bases / f".{name}.{os.getpid()}.partial"
            with timings.phase("base", self.tools.progress, f"base {name.removesuffix('.sif')}"):
                self.apptainer_build(definition, partial)
            partial.replace(target)
        return target

    def apptainer_build(self, definition: str, target: Path) -> None:
        """Run Apptainer with the site's certificates and caches bound for the time of the build."""
        scratch = Path(tempfile.mkdtemp(prefix="sifkit-", dir=self._tmpdir()))
        try:
            deffile = scratch / "image.def"
            deffile.write_text(definition, encoding="utf-8")
            command = self.apptainer.build_command(
                target, deffile, binds=self._lend(scratch / "lent"), root=self.tools.project.root, tmpdir=scratch
            )
            self._run(command)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _tmpdir(self) -> Path:
        self.tmpdir.mkdir(parents=True, exist_ok=True)
        return self.tmpdir

    def _lend(self, directory: Path) -> tuple[Bind, ...]:
        """Certificates, index settings and package caches, at HOST_DIR inside the build and nowhere in the image."""
        binds = [Bind(directory, HOST_DIR, writable=True)]
        for name in ("uv", "pip", "wheels"):
            (directory / name).mkdir(parents=True)
        for name in ("uv", "pip"):
            kept = self.tools.cache / name
            kept.mkdir(parents=True, exist_ok=True)
            binds.append(Bind(kept, f"{HOST_DIR}/{name}", writable=True))
        wheelhouse = self.tools.site.python_index.wheelhouse
        if wheelhouse:
            binds.append(Bind(Path(wheelhouse).absolute(), f"{HOST_DIR}/wheels"))
            (directory / "uv.toml").write_text(f'no-index = true\nfind-links = ["{HOST_DIR}/wheels"]\n')
        bundle = ca_bundle(self.tools.site, self.tools.environ)
        if bundle:
            shutil.copy(bundle, directory / "ca-bundle.crt")
        site = directory / "site.sh"
        site.touch(mode=0o600)
        site.write_text(site_script(self.tools.site, self.tools.environ, has_bundle=bundle is not None))
        return tuple(binds)

    def _run(self, command: Command) -> None:
        self.tools.runner.run(command, log=self.log, on_line=self.tools.progress.line)


_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "all_proxy")


def site_script(site: Site, environ: Mapping[str, str], *, has_bundle: bool) -> str:
    """Shell lines that %post reads from the bound directory: how this site reaches its mirrors."""
    index, exports = site.python_index, {name: environ[name] for name in _PROXIES if environ.get(name)}
    if has_bundle:
        bundle = f"{HOST_DIR}/ca-bundle.crt"
        names = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
        exports |= dict.fromkeys(names, bundle)
    if index.wheelhouse:
        wheels = f"{HOST_DIR}/wheels"
        # uv has no variable that turns the index off, only a setting
        exports |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": wheels, "UV_CONFIG_FILE": f"{HOST_DIR}/uv.toml"}
    elif index.url:
        exports |= {"UV_DEFAULT_INDEX": index.url, "PIP_INDEX_URL": index.url}
        exports |= _plain_http(index.url)
    if index.torch_url:
        exports["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exports.items())


def _plain_http(url: str) -> dict[str, str]:
    """pip refuses an index without TLS unless it is told that this one is meant."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        return {}
    host = parts.hostname if parts.port is None else f"{parts.hostname}:{parts.port}"
    return {"PIP_TRUSTED_HOST": host, "UV_INSECURE_HOST": host}


def fresh_log(project: Project, name: str) -> Path:
    """An empty log for one build."""
    log = project.root / "build" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("")
    return log


def _say_waiting(name: str, tools: Tools) -> None:
    tools.progress.note(f"{name}: another build of it is running; waiting for it to end")


def _with_cause(error: CommandFailed, log: Path) -> CommandFailed:
    """The same failure with its likely cause and fix, read from what the program said last."""
    found = find_cause("\n".join(error.tail), "build")
    message = error.message + (f"\nlikely cause: {found.cause}" if found else "") + f"\nwhole output: {log}"
    fix = found.fix if found else error.fix
    return CommandFailed(message, fix, returncode=error.returncode, tail=error.tail)
