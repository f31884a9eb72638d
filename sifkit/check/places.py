"""What of this host the container will see, as far as it can be known. Pure.

`sifkit train` and sifkit's job files bind the checkout at /mnt, absolute paths of the config, the site's binds and
HF_HOME (sifkit/launch.py). Apptainer itself adds the home, /tmp, /var/tmp and the current directory, by its
configuration (apptainer.conf: mount home, mount tmp, bind path).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sifkit.check.facts import Facts

IN_CHECKOUT = Path("/mnt")
WRITTEN = ("output_dir", "logging_dir", "tokenized_path", "cache_dir", "ray_storage_path")
READ = (
    "model_name_or_path",
    "adapter_name_or_path",
    "reward_model",
    "ref_model",
    "dataset_dir",
    "media_dir",
    "deepspeed",
    "resume_from_checkpoint",
)


def texts_of(values: Mapping[str, Any], key: str) -> Iterator[str]:
    """What a key names, where it may name several."""
    value = values.get(key)
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else ()
    yield from (word.strip() for word in words if isinstance(word, str) and word.strip())


def absolute_texts(values: Mapping[str, Any]) -> tuple[Path, ...]:
    """Absolute paths of the config: each is bound where it is."""
    found = (Path(text) for key in values for text in texts_of(values, key) if text.startswith("/") and len(text) > 1)
    return tuple(path for path in found if not path.is_relative_to(IN_CHECKOUT))


def is_seen(place: Path, facts: Facts) -> bool | None:
    """Whether a place of this host is one of the container's too; None: that depends on what is not known."""
    if facts.job is not None and not facts.job.ours:
        return None  # what a job file of the user's own binds is in its shell's hands
    if any(place.is_relative_to(seen) for seen in (*_bound(facts), *_of_apptainer(facts))):
        return True
    if facts.host is None or _binds_more(facts.host.apptainer_config):
        return None
    return False


def checkout_is_the_place(facts: Facts) -> bool:
    """Whether the run starts in IN_CHECKOUT: in our jobs it does, in others if they bind something there."""
    job = facts.job
    return job is None or job.ours or re.search(rf":{IN_CHECKOUT}(?![\w./-])", job.script) is not None


def _bound(facts: Facts) -> Iterator[Path]:
    yield from (_whole_model(path) for path in absolute_texts(facts.config.values))
    if facts.site is not None:
        for bind in facts.site.binds:
            source, _, target = bind.partition(":")
            yield Path(target.partition(":")[0] or source)
        if facts.site.hf_home:
            yield Path(facts.site.hf_home)
    if facts.host is not None and (hf_home := facts.host.environment.get("HF_HOME")):
        yield Path(hf_home)


def _whole_model(path: Path) -> Path:
    """Of a snapshot in the hub's cache, the model's whole directory is bound: its files are links to blobs."""
    return path.parent.parent if path.parent.name == "snapshots" else path


def _of_apptainer(facts: Facts) -> Iterator[Path]:
    if facts.host is None:
        return
    config = facts.host.apptainer_config
    if config.get("mount home", "yes") == "yes":
        yield from (Path(home) for home in (facts.host.environment.get("HOME"), facts.host.home) if home)
    if config.get("mount tmp", "yes") == "yes":
        yield from (Path("/tmp"), Path("/var/tmp"))
    if here := facts.host.environment.get("PWD"):
        yield Path(here)
    yield from (Path("/proc"), Path("/sys"), Path("/dev"))


def _binds_more(config: Mapping[str, str]) -> bool:
    """Directories that the administrator binds for everyone; `/etc/…` alone is Apptainer's own default."""
    words = config.get("bind path", "").replace(",", " ").split()
    return any(not word.startswith("/etc/") for word in words)
