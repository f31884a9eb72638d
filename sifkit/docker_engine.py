"""Images made by the Docker Engine: `build.py --engine docker`.

Each step is a container that is committed, not a `docker build`: its builders take nothing from outside without leaving
it in the image or its history, but BuildKit, which the docker SDK cannot drive (docs/docker.md). What the site lends
lies in a volume of the daemon's, so that a remote daemon will do, and packages are kept in two more.
"""

from __future__ import annotations

import os
import shutil
import socket
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import docker
from docker.errors import APIError, DockerException, ImageNotFound
from docker.types import Mount
from requests.exceptions import RequestException

from sifkit import __version__, credentials
from sifkit.assemble import join, squash_options
from sifkit.deffile import HOST_DIR, IMAGE_DIR
from sifkit.dockerfile import Parts, parts_of
from sifkit.errors import CommandFailed, HostError
from sifkit.layers import TIME
from sifkit.logins import Login
from sifkit.model import Image, digest_of
from sifkit.reference import Reference, mirrored
from sifkit.run import TAIL_LINES, Command
from sifkit.site import debian_logins
from sifkit.squash import Source
from sifkit.tools import Timings
from sifkit.workshop import Workshop

CACHES = ("uv", "pip")  # volumes sifkit-uv and sifkit-pip
_SOCKETS = ("/var/run/docker.sock", "{XDG_RUNTIME_DIR}/docker.sock")
_PATIENCE = 20  # seconds, for a sign of life
_LONGEST = 24 * 3600  # seconds; a commit of gigabytes is silent for minutes
_INSTEAD = "or build with Apptainer: leave out --engine docker"


def _local_socket(environ: Mapping[str, str]) -> str:
    places = [place.format(XDG_RUNTIME_DIR=environ.get("XDG_RUNTIME_DIR", "/run")) for place in _SOCKETS]
    return "unix://" + next((place for place in places if Path(place).exists()), places[0])


def _try_socket(address: str) -> None:
    """Raises `HostError` for a socket of this host that nobody listens on, or that this user may not use."""
    scheme, _, path = address.partition("://")
    if scheme != "unix":
        return
    try:
        with socket.socket(socket.AF_UNIX) as tried:
            tried.settimeout(_PATIENCE)
            tried.connect(path)
    except PermissionError:
        message = f"the Docker daemon's socket {address} is not for this user"
        raise HostError(message, f"have yourself added to the group docker, {_INSTEAD}") from None
    except OSError as error:
        message = f"no Docker daemon answers at {address}: {error.strerror or error}"
        raise HostError(message, f"start it, name another: DOCKER_HOST=…, {_INSTEAD}") from None


@dataclass(frozen=True)
class DockerEngine:
    """A daemon that makes images; `assemble` stands where execute's own does."""

    client: docker.DockerClient

    @classmethod
    def find(cls, environ: Mapping[str, str]) -> DockerEngine:
        """The daemon that $DOCKER_HOST names, else this host's, else this user's own. Raises `HostError`."""
        address = environ.get("DOCKER_HOST") or _local_socket(environ)
        values = {**environ, "DOCKER_HOST": address}
        _try_socket(address)
        try:
            docker.from_env(environment=values, timeout=_PATIENCE).close()  # it asks for the daemon's version
            return cls(docker.from_env(environment=values, timeout=_LONGEST))
        except (DockerException, RequestException) as error:
            message = f"the Docker daemon at {address} cannot be used: {error}"
            raise HostError(message, f"look at DOCKER_HOST, {_INSTEAD}") from None

    def version(self) -> str:
        """The daemon's. Raises `HostError` when it is gone."""
        with _told("begin"):
            return str(self.client.version()["Version"])

    def assemble(self, image: Image, workshop: Workshop, target: Path, timings: Timings) -> None:
        """Make `target`, an image that is whole but for its facts, and sifkit/NAME:latest in the daemon."""
        parts = parts_of(image, sifkit_version=__version__)
        progress = workshop.tools.progress
        workshop.engine["docker"] = self.version()
        build = _Build(self.client, image, parts, workshop)
        with build.cleaned(), workshop.scratch() as scratch:
            with timings.phase("base", progress, f"{parts.base} with Debian packages, in Docker"):
                system = build.system(scratch)
            with timings.phase("install", progress, f"install {len(image.lock.packages)} packages, in Docker"):
                final = build.python(system, scratch)
            with timings.phase("export", progress, "compress what Docker made"):
                tree = build.squash(final, scratch)
            with timings.phase("join", progress, f"join {image.name}"):
                join(image, [tree], workshop, scratch, target)


@dataclass(frozen=True)
class _Build:
    client: docker.DockerClient
    image: Image
    parts: Parts
    workshop: Workshop

    @property
    def _name(self) -> str:
        """What the daemon's containers and the volume of this project's build of this image are named after."""
        owner = digest_of([socket.gethostname(), str(self.workshop.tools.store.directory), self.image.name])
        return f"sifkit-{owner[:16]}"

    @property
    def _ours(self) -> dict[str, str | list[str] | bool]:
        return {"name": self._name}

    @contextmanager
    def cleaned(self) -> Iterator[None]:
        """Without containers and volumes of a killed build before, and of this one afterwards."""
        with _told("begin"):
            self._remove_all()
        try:
            yield
        finally:
            with _told("clean up"):
                self._remove_all()

    def _remove_all(self) -> None:
        for container in self.client.containers.list(all=True, ignore_removed=True, filters=self._ours):
            container.remove(force=True)
        for volume in self.client.volumes.list(filters=self._ours):
            volume.remove(force=True)

    # ------------------------------------------------------------------------------------------ steps

    def system(self, scratch: Path) -> str:
        """The base with Debian packages, kept in the daemon for all images that ask for the same; its id."""
        step = "step 1 of 2, Debian packages"
        with _told(step):
            base = self._base()
            tag = digest_of([base, self.parts.system])[:32]
            try:
                return str(self.client.images.get(f"sifkit-base:{tag}").id)
            except ImageNotFound:
                pass
            container, site = self._container(base, self.parts.system), self.workshop.tools.site
            self._lend(container, scratch, wheels=False, debian=debian_logins(site) if site.debian.auth else ())
            self._follow(step, container)
            return str(container.commit(repository="sifkit-base", tag=tag).id)

    def python(self, system: str, scratch: Path) -> str:
        """The whole image, which becomes sifkit/NAME:latest; its id."""
        step = "step 2 of 2, Python packages"
        with _told(step):
            container = self._container(system, self.parts.python, caches=True)
            self._lend(container, scratch, wheels=True)
            container.put_archive("/", _tar_of(self._own_files()))
            self._follow(step, container)
            changes = list(self.parts.changes())
            return str(container.commit(repository=f"sifkit/{self.image.name}", tag="latest", changes=changes).id)

    def _own_files(self) -> dict[str, bytes]:
        lock = self.workshop.tools.project.root / self.image.lock_path
        named = {"requirements.lock": lock, "spec.yaml": lock.with_suffix(".yaml")}
        return {f"{IMAGE_DIR[1:]}/{name}": path.read_bytes() for name, path in named.items()}

    def _base(self) -> str:
        """Pulled if the daemon has it not; its id. Raises `HostError` when it cannot be had."""
        site, environ = self.workshop.tools.site, self.workshop.tools.environ
        asked = mirrored(Reference.parse(self.parts.base), site)
        reference = asked.short
        try:
            return str(self.client.images.get(reference).id)
        except ImageNotFound:
            pass
        try:
            login = _login(asked.registry, environ)
            for row in self.client.api.pull(reference, stream=True, decode=True, auth_config=login):
                if "error" in row:
                    raise _no_base(reference, row["error"], self.image)
                self._line(" ".join(str(row[key]) for key in ("id", "status", "progress") if row.get(key)))
            return str(self.client.images.get(reference).id)
        except APIError as error:
            raise _no_base(reference, str(error.explanation or error), self.image) from None

    # ------------------------------------------------------------------------------------------ containers

    def _container(self, image: str, script: str, *, caches: bool = False) -> Any:
        """Not started yet. Its environment and labels are the base's: what is set here would be committed."""
        mounts = [Mount(HOST_DIR, self._name, type="volume")]
        mounts += [Mount(f"{HOST_DIR}/{name}", f"sifkit-{name}", type="volume") for name in CACHES if caches]
        return self.client.containers.create(
            image,
            command=[script],
            entrypoint=["/bin/sh", "-exc"],
            name=f"{self._name}-{len(self.client.containers.list(all=True, filters=self._ours))}",
            user="0",
            network_mode="host",
            mounts=mounts,
            use_config_proxy=False,
        )

    def _lend(self, container: Any, scratch: Path, *, wheels: bool, debian: Iterable[Login] = ()) -> None:
        """What the site lends, into the volume at HOST_DIR."""
        lent, archive = scratch / "lent", scratch / "lent.tar"
        shutil.rmtree(lent, ignore_errors=True)
        self.workshop.lend(lent, debian)
        house = self.workshop.tools.site.python_index.wheelhouse
        with tarfile.open(archive, "w") as tar:
            tar.add(lent, ".", filter=_as_root)
            for package in self.image.lock.packages if wheels and house else ():
                tar.add(Path(house or "") / package.file, f"wheels/{package.file}", filter=_as_root)
        with archive.open("rb") as stream:
            container.put_archive(HOST_DIR, stream)
        archive.unlink()

    def _follow(self, step: str, container: Any) -> None:
        """Run it to its end. Raises `CommandFailed` that names the step, with what was said last."""
        tail: list[str] = []
        container.start()
        for line in _lines(container.logs(stream=True, follow=True)):
            tail = [*tail, line][-TAIL_LINES:]
            self._line(line)
        code = int(container.wait()["StatusCode"])
        if code:
            said = "\n".join(tail[-15:])
            raise CommandFailed(f"{step}: failed (exit {code}):\n{said}", returncode=code, tail=tuple(tail))

    def _line(self, text: str) -> None:
        with self.workshop.log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")
        if text.strip():
            self.workshop.tools.progress.line(text)

    # ------------------------------------------------------------------------------------------ file system

    def squash(self, image: str, scratch: Path) -> Source:
        """The files of an image as a squashfs that can be joined, written while the daemon sends them."""
        target, pipe = scratch / "docker.sqfs", scratch / "docker.tar"
        os.mkfifo(pipe)
        container = self._container(image, "")
        sender = _Sender(container, pipe)
        sender.start()
        try:
            self.workshop.run(sqfstar_command(pipe, target))
        finally:
            sender.finish()
        return Source(target, all_root=True)


def sqfstar_command(archive: Path, target: Path) -> Command:
    """A squashfs of a tar, compressed and cut as the other parts of an image; without what Docker puts into all."""
    argv = ("sqfstar", *squash_options(), str(target), ".dockerenv", "dev/*")
    return Command(("sh", "-c", 'archive=$1; shift; exec "$@" < "$archive"', "sh", str(archive), *argv))


class _Sender(threading.Thread):
    """Writes the tar of a container's files into a pipe, beside the program that reads it."""

    def __init__(self, container: Any, pipe: Path) -> None:
        super().__init__(daemon=True)
        self._container, self._pipe = container, pipe
        self._failure: Exception | None = None

    def run(self) -> None:
        try:
            with self._pipe.open("wb") as stream:
                for chunk in self._container.export(chunk_size=1 << 20):
                    stream.write(chunk)
        except BrokenPipeError:
            pass  # the reader says why it ended
        except (DockerException, RequestException, OSError) as error:
            self._failure = error

    def finish(self) -> None:
        """Wait for the end. Raises `CommandFailed` if the daemon did not send everything."""
        os.close(os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK))  # lets go of a sender that nobody reads from
        self.join()
        if self._failure:
            raise CommandFailed(f"the Docker daemon did not send the image: {self._failure}", returncode=1)


@contextmanager
def _told(step: str) -> Iterator[None]:
    """What the daemon refuses, as an error that names the step."""
    try:
        yield
    except APIError as error:
        said = str(error.explanation or error)
        raise CommandFailed(f"{step}: the Docker daemon says: {said}", returncode=1, tail=(said,)) from None
    except (DockerException, RequestException) as error:
        raise HostError(f"{step}: the Docker daemon does not answer any more: {error}", "see its log") from None


def _login(registry: str, environ: Mapping[str, str]) -> dict[str, str] | None:
    """From all the places where credentials are; None leaves it to the SDK, which knows Docker's own."""
    known = credentials.find(registry, environ).credentials
    return {"username": known.user, "password": known.password} if known and known.user else None


def _no_base(reference: str, said: str, image: Image) -> HostError:
    place = f"bases: {image.base.name}:" if image.base.name else "base:"
    where = "the site file's" if image.base.name else "the spec's"
    return HostError(
        f"the Docker daemon cannot get {reference}: {said}",
        f"log in (docker login), or name another in {where} {place} {{bootstrap: docker, from: …}}",
    )


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of a log that comes in pieces; of a progress bar, which redraws its line, the last state."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from map(_last_state, whole)
    if rest:
        yield _last_state(rest)


def _last_state(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r").rpartition("\r")[2]


def _tar_of(files: Mapping[str, bytes]) -> bytes:
    """Readable by everybody, in directories that root owns."""
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.mtime = len(data), 0o644, TIME
            tar.addfile(entry, BytesIO(data))
    return stream.getvalue()


def _as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry
