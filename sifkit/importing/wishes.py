"""What the commands of a source ask for, gathered: requirements, Debian packages, pins, and what became of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sifkit.checkout import version_of
from sifkit.compat.tables import Tables
from sifkit.errors import SifkitError
from sifkit.importing.facts import cuda_of, facts
from sifkit.importing.recipe import Fate, Fault, Item
from sifkit.tables import known_extras

FOLLOWERS = ("torchvision", "torchaudio", "triton")
REPOSITORY = re.compile(
    r"(?:git\+)?(?:https://|git@)github\.com[:/](?:hiyouga|hiyouga2)/LL(?:a|A)MA-?Factory(?:\.git)?", re.I
)
_RELEASE = re.compile(r"v?(\d+\.\d+\.\d+(?:\.(?:post|dev)\d+)?)")
_WHEEL_INDEX = re.compile(r"download(?:-r2)?\.pytorch\.org/whl/(?P<rest>[^\s]*)")


@dataclass
class Wishes:
    """Filled command by command, in the order of the source. The first pin of a kind counts where two contradict."""

    directory: Path
    tables: Tables
    torch: str = ""
    cuda: str = ""
    python: str = ""
    llamafactory: str = ""
    asks_llamafactory: bool = False
    extras: dict[str, int] = field(default_factory=dict)  # and the line of each
    packages: dict[str, int] = field(default_factory=dict)
    apt: dict[str, int] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    checkouts: set[str] = field(default_factory=set)  # directories of the image that hold LLaMA-Factory's source
    copied: dict[str, str] = field(default_factory=dict)  # place in the image → file of the host, below `directory`
    used: set[Path] = field(default_factory=set)  # files of the host that were read
    versions: Mapping[str, str] = field(default_factory=dict)  # that an image has

    def note(self, line: int, what: str, fate: Fate, where: str) -> None:
        """Said in the report."""
        item = Item(line, " ".join(what.split()), fate, where)
        if item not in self.items:
            self.items.append(item)

    def fault(self, line: int, what: str, fix: str) -> None:
        """Nothing is written then."""
        self.faults.append(Fault(line, " ".join(what.split()), fix))

    # ------------------------------------------------------------------------------------------ pins

    def pin(self, key: str, value: str, line: int, because: str) -> None:
        """Set a pin once; what says otherwise later is listed."""
        old = getattr(self, key)
        if old and old != value:
            self.note(line, f"{because}: {key} {value}", "left", f"{key} is {old} already; the spec has one")
            return
        setattr(self, key, value)
        self.note(line, because, "pin", f"{_KEYS[key]}: {value}")

    def unpin(self, key: str, line: int) -> None:
        """Take back what was said of a pin that gives way."""
        self.items = [one for one in self.items if (one.line, one.fate) != (line, "pin") or _KEYS[key] not in one.where]

    def checkout_left(self, line: int, place: str) -> None:
        """LLaMA-Factory's source was in the image, with data/ and examples/, which its wheel has not."""
        self.note(line, f"{place}: data/ and examples/", "left", "bind a checkout: sifkit checkout VERSION")

    def index(self, url: str, line: int) -> None:
        """An index of PyTorch's says which CUDA; any other is the site's."""
        found = _WHEEL_INDEX.search(url)
        if found is None:
            self.note(line, url, "site", "python_index.url")
            return
        cuda = re.search(r"cu(\d{3})", found["rest"])
        if found["rest"].startswith(("nightly", "test")):
            self.fault(line, f"torch from {url}: builds that are gone in weeks", "take a release of torch")
        elif cuda:
            self.pin("cuda", cuda_of(cuda[1]), line, url)
        elif re.match(r"(cpu|rocm|xpu)", found["rest"]):
            self.fault(line, f"torch from {url} is not for NVIDIA's GPUs", "sifkit's images are for CUDA: name cu128")

    def require(self, text: str, line: int) -> bool:
        """One requirement as pip writes them. False for one that no lock can hold: a URL, a path."""
        if self._is_llamafactory_url(text, line):
            return True
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            return False
        if requirement.url:
            return self._is_llamafactory_url(requirement.url, line, tuple(requirement.extras))
        name = canonicalize_name(requirement.name)
        if name == "llamafactory":
            self.llamafactory_asked(line, text, _exact(requirement), tuple(sorted(requirement.extras)))
        elif name == "torch":
            self._torch(requirement, line)
        elif name in FOLLOWERS:
            self.note(line, text, "ours", "it follows from torch: the three are one set")
        elif name in facts().build_tools:
            self.note(line, text, "ours", "what builds packages is sifkit's own")
        elif requirement.marker is None or requirement.marker.evaluate():
            self._package(requirement, name, line)
        return True

    def _torch(self, requirement: Requirement, line: int) -> None:
        exact = _exact(requirement)
        if exact:
            version, _, local = exact.partition("+")
            self.pin("torch", version, line, str(requirement))
            if cuda_of(local.removeprefix("cu")):
                self.pin("cuda", cuda_of(local.removeprefix("cu")), line, str(requirement))
            return
        fitting = [row for row in self.tables.builds if requirement.specifier.contains(row.version)]
        if str(requirement.specifier) and fitting and not self.torch:
            newest = max(fitting, key=lambda row: row.parsed)
            self.torch = newest.version
            self.note(line, str(requirement), "pin", f"torch.version: {newest.version}, the newest that it takes")
        else:
            self.note(line, str(requirement), "ours", "torch is in every image; which, is chosen below if nobody says")

    def _package(self, requirement: Requirement, name: str, line: int) -> None:
        extra = next((key for key in known_extras() if canonicalize_name(key) == name), None)
        if extra:
            self.extra(extra, line, str(requirement))
        if name == "ninja" and not str(requirement.specifier):
            self.note(line, str(requirement), "ours", "with the extras that compile")
        elif not extra or str(requirement.specifier):
            self.packages.setdefault(self._with_version(requirement, name), line)
            self.note(line, str(requirement), "pin", "packages")

    def _with_version(self, requirement: Requirement, name: str) -> str:
        """An image says which version came."""
        version = self.versions.get(name)
        if version is None or str(requirement.specifier).startswith("=="):
            return str(requirement)
        extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
        return f"{requirement.name}{extras}=={version.partition('+')[0]}"

    # ------------------------------------------------------------------------------------------ LLaMA-Factory

    def _is_llamafactory_url(self, text: str, line: int, extras: tuple[str, ...] = ()) -> bool:
        found = REPOSITORY.search(text)
        if found is None:
            return False
        egg = re.search(r"egg=[\w-]+\[([^\]]*)\]|^[\w-]+\[([^\]]*)\]\s*@", text)
        named = tuple((egg[1] or egg[2]).split(",")) if egg else extras
        reference = re.match(r"@([^#]+)", text[found.end() :])
        self.llamafactory_at(line, text, reference[1] if reference else "", named)
        return True

    def llamafactory_at(self, line: int, text: str, reference: str, extras: tuple[str, ...] = ()) -> None:
        """Of a git tag; of anything else only that it is asked for."""
        release = _RELEASE.fullmatch(reference)
        if reference and not release:
            self.note(line, f"{text}: {reference} is no release", "changed", "the newest release that fits is taken")
        self.llamafactory_asked(line, text, release[1] if release else "", extras)

    def llamafactory_asked(self, line: int, text: str, version: str, extras: tuple[str, ...]) -> None:
        """It is installed, in this version if one is given, with these extras."""
        self.asks_llamafactory = True
        if version:
            self.pin("llamafactory", version, line, text)
        elif not self.llamafactory:
            self.note(line, text, "pin", "llamafactory")
        for extra in extras:
            self.extra(extra.strip(), line, text)

    def extra(self, name: str, line: int, because: str) -> None:
        """One of LLaMA-Factory's optional stacks; those that sifkit does not know are listed."""
        if name in ("torch", "dev", "all", ""):
            self.note(line, f"extra {name}", "ours", "torch is in every image") if name == "torch" else None
            return
        if name not in known_extras():
            self.note(line, f"extra {name}", "left", "not known: name its packages under packages:")
            return
        if name not in self.extras:
            self.extras[name] = line
            self.note(line, because, "pin", f"extras: {name}")

    def version_here(self) -> str:
        """Of the LLaMA-Factory whose root is the context; empty where it is something else."""
        try:
            return version_of(self.directory)
        except SifkitError:
            return ""

    def debian(self, package: str, line: int) -> None:
        """One package of apt's."""
        self.apt.setdefault(package, line)

    def merge_metrics(self) -> None:
        """Packages that together are an extra, become it."""
        for name, extra in known_extras().items():
            wanted = {canonicalize_name(Requirement(text).name) for text in extra.requires}
            here = {canonicalize_name(Requirement(text).name): text for text in self.packages}
            plain = {key for key, text in here.items() if not str(Requirement(text).specifier)}
            if name not in self.extras and len(wanted) > 1 and wanted <= plain:
                self.extra(name, min(self.packages[here[key]] for key in wanted), ", ".join(sorted(wanted)))
                texts = {here[key] for key in wanted}
                self.items = [one for one in self.items if not (one.where == "packages" and one.what in texts)]
                for text in texts:
                    del self.packages[text]


_KEYS = {"torch": "torch.version", "cuda": "torch.cuda", "python": "python", "llamafactory": "llamafactory"}


def _exact(requirement: Requirement) -> str:
    """The version of `==`; empty for ranges and for `==2.*`."""
    found = [part for part in requirement.specifier if part.operator in ("==", "===")]
    return found[0].version if found and "*" not in found[0].version else ""
