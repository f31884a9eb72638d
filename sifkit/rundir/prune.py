"""Which checkpoints of a run may go, and their removal.

What stands in DIR is renamed first, to a name that no trainer takes for a checkpoint, and then removed through file
descriptors: a link is never followed, and a removal that is cut off leaves nothing that looks like a checkpoint.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sifkit.errors import HostError, Interrupted, ProblemFound
from sifkit.rundir.checkpoints import Checkpoint, Status, newest, step_of
from sifkit.rundir.files import Kind
from sifkit.rundir.read import PRUNED, End, Run

Identity = tuple[int, int]  # device and inode
_DEEPEST = 64  # directories in directories, each of which is held open; a checkpoint has three


@dataclass(frozen=True)
class Removal:
    """Something to remove. `name`: relative to the run's directory. `size`: bytes."""

    name: str
    size: int
    why: str


@dataclass(frozen=True)
class Kept:
    """A checkpoint that stays, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Plan:
    """What would go from one directory."""

    directory: Path
    keep: tuple[Kept, ...]
    remove: tuple[Removal, ...]

    @property
    def freed(self) -> int:
        """Bytes."""
        return sum(each.size for each in self.remove)


# ---------------------------------------------------------------------------------------------- deciding


def make_plan(run: Run, *, keep: int = 0, optimizer_only: bool = False) -> Plan:
    """What may go. Pure. `keep`: the newest so many stay whole, beside those that must."""
    must = protected(run, keep)
    if optimizer_only:
        return _optimizer_plan(run, must if run.has_steps_left else _newest(run, keep))
    kept = [Kept(name, why) for name, why in must.items()]
    removals = [Removal(each.name, each.size, _why(each, run)) for each in run.checkpoints if each.name not in must]
    return Plan(run.directory, (*kept, *_links(run)), (*_leftovers(run), *removals))


def protected(run: Run, keep: int) -> dict[str, str]:
    """Checkpoints that stay, by name, each with the reason."""
    must = _newest(run, keep)
    if any(each.name == run.best for each in run.checkpoints):
        must[str(run.best)] = "the best one of the evaluations"
    if run.has_steps_left and (last := run.resumable):
        must[last.name] = "the newest complete one: the run has not done all its steps, and goes on from it"
    only_model = (run.end is End.UNFINISHED and not run.resumable) or run.missing
    if only_model and (model := newest(run.checkpoints, Status.COMPLETE, Status.MODEL_ONLY)):
        must[model.name] = "the newest model that there is"
    for each in run.checkpoints:
        if not each.usable and not each.weights and each.state:
            must[each.name] = "holds no weights that sifkit knows: look at it yourself"
    return must


def _newest(run: Run, keep: int) -> dict[str, str]:
    good = [each for each in run.checkpoints if each.usable]
    return {each.name: f"among the newest {keep}" for each in good[max(len(good) - keep, 0) :]}


def _why(checkpoint: Checkpoint, run: Run) -> str:
    if checkpoint.status is Status.INCOMPLETE:
        return f"incomplete: {'; '.join(checkpoint.problems)}"
    return "there is a newer complete one" if run.has_steps_left else "the run is finished"


def _optimizer_plan(run: Run, whole: dict[str, str]) -> Plan:
    """Weights stay everywhere; of the checkpoints in `whole` the optimizer too."""
    removals = [
        Removal(f"{each.name}/{name}", _size_of(run, f"{each.name}/{name}"), "optimizer; the weights stay")
        for each in run.checkpoints
        if each.usable and each.name not in whole
        for name in sorted(each.optimizer, key=lambda name: name != "latest")
    ]
    kept = [Kept(each.name, whole.get(each.name, "its weights stay")) for each in run.checkpoints]
    return Plan(run.directory, (*kept, *_links(run)), (*_leftovers(run), *removals))


def _links(run: Run) -> list[Kept]:
    links = [file.name for file in run.files if file.kind is Kind.LINK and step_of(file.name) is not None]
    return [Kept(name, "a link: what it leads to is none of this run's") for name in links]


def _leftovers(run: Run) -> list[Removal]:
    """What an earlier prune renamed and did not get to remove, in the directory or in a checkpoint."""
    found = [
        file.name
        for file in run.files
        if file.kind is Kind.DIRECTORY and file.base.startswith(PRUNED) and file.name.count(PRUNED) == 1
    ]
    return [Removal(name, _size_of(run, name), "left by an interrupted prune") for name in found]


def _size_of(run: Run, name: str) -> int:
    return sum(file.size for file in run.files if file.name == name or file.name.startswith(f"{name}/"))


# ---------------------------------------------------------------------------------------------- acting


def identity_of(directory: Path) -> Identity:
    """What a directory is, whatever it is called."""
    status = directory.stat()
    return status.st_dev, status.st_ino


def carry_out(plan: Plan, expected: Identity, on_removed: Callable[[Removal], None] = lambda _: None) -> None:
    """Remove what the plan says; `on_removed` after each.

    Raises `ProblemFound` when the directory is another one by now, when a link stands where a checkpoint stood, or when
    another filesystem is mounted in it: then nothing more is touched.
    """
    mounts = mounts_below(plan.directory)
    with _Directory(str(plan.directory), None) as root:
        if (root.device, root.inode) != expected:
            raise ProblemFound(f"{plan.directory} is another directory than a moment ago", "look at it, and try again")
        for removal in plan.remove:
            _refuse_mounts(plan.directory / removal.name, mounts)
            try:
                _remove(root, removal.name)
            except (KeyboardInterrupt, Interrupted):
                said = f"stopped while {plan.directory / removal.name} was being removed"
                raise Interrupted(said, f"the rest is called {PRUNED}…; the next prune removes it") from None
            on_removed(removal)


class _Directory:
    """An open directory below which names are resolved; never reached through a link but for the outermost."""

    def __init__(self, name: str, parent: _Directory | None) -> None:
        follow, at = (os.O_NOFOLLOW, parent.fd) if parent else (0, None)
        self.depth: int = parent.depth + 1 if parent else 0
        if self.depth > _DEEPEST:
            raise ProblemFound(f"{name} lies more than {_DEEPEST} directories deep", "look at it yourself")
        try:
            self.fd: int = os.open(name, os.O_RDONLY | os.O_DIRECTORY | follow, dir_fd=at)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            said = f"{name} is no directory any more: a link took its place"
            raise ProblemFound(said, "look at it yourself") from None
        status = os.fstat(self.fd)
        self.device, self.inode = status.st_dev, status.st_ino

    def __enter__(self) -> _Directory:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def is_directory(self, name: str) -> bool:
        """Whether `name` is a directory, and no link to one."""
        return stat.S_ISDIR(os.stat(name, dir_fd=self.fd, follow_symlinks=False).st_mode)

    def rename(self, old: str, new: str) -> None:
        """Both names stand in this directory."""
        os.rename(old, new, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def remove_tree(self, name: str) -> None:
        """Everything below `name`, then `name`. Raises `ProblemFound` at another filesystem."""
        with _Directory(name, self) as inner:
            if inner.device != self.device:
                raise ProblemFound(f"{name} is another filesystem, mounted here", "unmount it first")
            with os.scandir(inner.fd) as entries:
                names = [entry.name for entry in entries]
            for each in names:
                if inner.is_directory(each):
                    inner.remove_tree(each)
                else:
                    os.unlink(each, dir_fd=inner.fd)
        os.rmdir(name, dir_fd=self.fd)


def _remove(root: _Directory, name: str) -> None:
    """Remove what is called `name`, at most one directory deep. It has lost its own name before anything of it goes."""
    outer, _, base = name.rpartition("/")
    if outer:
        with _Directory(outer, root) as checkpoint:
            _remove(checkpoint, base)
        return
    if not root.is_directory(base):
        if step_of(base) is not None:
            raise ProblemFound(f"{base} is no directory any more: a link took its place", "look at it yourself")
        os.unlink(base, dir_fd=root.fd)
        return
    aside = base if base.startswith(PRUNED) else f"{PRUNED}{base}"
    if aside != base:
        root.rename(base, aside)
    root.remove_tree(aside)


def mounts_below(directory: Path, table: Path = Path("/proc/self/mountinfo")) -> tuple[str, ...]:
    """Mount points below a directory. Raises `HostError` where the kernel does not tell. Source: proc(5), mountinfo."""
    try:
        lines = table.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError as error:
        raise HostError(f"{table}: {error.strerror}", "mount /proc, as every Linux system does") from None
    points = [_unescaped(line.split(" ")[4]) for line in lines if line.count(" ") > 4]
    return tuple(point for point in points if point.startswith(f"{directory.resolve()}/"))


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _refuse_mounts(path: Path, mounts: tuple[str, ...]) -> None:
    inside = [point for point in mounts if f"{point}/".startswith(f"{path.resolve()}/")]
    if inside:
        raise ProblemFound(f"{path}: something is mounted at {inside[0]}", f"unmount it first: umount {inside[0]}")
