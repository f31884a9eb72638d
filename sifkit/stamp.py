"""`--verify`: bring the checkout, check that the image is the one that was built, verify it, write the report."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sifkit import checkout, sign
from sifkit.apptainer import Apptainer
from sifkit.errors import ProblemFound, UsageError
from sifkit.execute import load_image
from sifkit.hashes import sha256_of
from sifkit.host import existing
from sifkit.lock import read_lock
from sifkit.model import IMAGE_NAME, Method, Site
from sifkit.tools import Tools
from sifkit.verify import Report, Subject, VerifyOptions, verify, write_report
from sifkit.verify.nvml import read_host
from sifkit.verify.record import append, record_of
from sifkit.verify.request import cache_environment


@dataclass(frozen=True)
class Wishes:
    """What the command line asks of a verification; None: what the project or the checkout has."""

    device: Literal["gpu", "cpu"]
    gpus: int = 1
    checkout: Path | None = None
    config: Path | None = None
    model: Path | None = None
    report: Path | None = None
    keep: bool = False
    method: Method | None = None


Before = Callable[[Subject, VerifyOptions], None]  # asked when all is chosen and nothing was run; raises to stop


@dataclass(frozen=True)
class Verified:
    """A report, and the directory that it was written to."""

    report: Report
    directory: Path


def require(wishes: Wishes) -> None:
    """What can be known before building is said before. Raises `HostError` without a GPU, `UsageError` for paths."""
    for name in ("config", "checkout", "model"):
        path: Path | None = getattr(wishes, name)
        if path is not None and not (path.is_file() if name == "config" else path.is_dir()):
            kind = "file" if name == "config" else "directory"
            raise UsageError(f"--{name} {path}: there is no such {kind}", f"give the path of a {kind} that is there")
    if wishes.report is not None and wishes.report.exists() and not wishes.report.is_dir():
        raise UsageError(f"--report {wishes.report}: that is a file", "give a directory")
    if wishes.report is not None and not os.access(existing(wishes.report.absolute()), os.W_OK):
        raise UsageError(f"--report {wishes.report}: nothing can be written there", "give a directory of yours")
    if wishes.device == "cpu" and wishes.gpus > 1:
        raise UsageError(f"--gpus {wishes.gpus} and --device cpu", "leave out one of them")
    if wishes.method == "qlora" and wishes.device == "cpu":
        raise UsageError("--method qlora: 4-bit weights need a GPU", "leave out --device cpu, or --method lora")
    if wishes.device == "gpu":
        read_host()


def verify_image(name: str, tools: Tools, wishes: Wishes, before: Before | None = None) -> Verified:
    """Verify an image that this project built. Raises `ProblemFound` when it is another file by now."""
    image, sif = load_image(name, tools), tools.store.sif(name)
    manifest = tools.store.manifest(name)
    sha256 = _hashed(sif, tools)
    if manifest is None or sha256 != manifest.sha256:
        raise ProblemFound(f"{sif} is not the image that was built: its sha256 differs", f"build again: --force {name}")
    require_signature(sif, tools)
    subject = Subject(sif, name, sha256, image.lock)
    return _verified(subject, image.spec.llamafactory.version, tools, wishes, image.spec.gpu, before)


def verify_file(sif: Path, tools: Tools, wishes: Wishes, before: Before | None = None) -> Verified:
    """Verify any .sif. If sifkit built it from a spec of this project, its packages are compared with that lock."""
    require_signature(sif, tools)  # before anything of it runs
    labels = Apptainer.find(tools.runner).labels(sif)
    title = labels.get("org.opencontainers.image.title", "")
    name = title if re.fullmatch(IMAGE_NAME, title) else sif.stem  # it names files of ours: take no path from it
    path = tools.project.lock_path(name)
    version = labels.get("org.sifkit.llamafactory")
    if version is None and wishes.checkout is None:
        raise UsageError(f"{sif} does not say which LLaMA-Factory it holds", "give a checkout: --checkout DIR")
    lock = read_lock(path) if path.is_file() else None
    subject = Subject(sif.absolute(), name, _hashed(sif, tools), lock)
    return _verified(subject, version or "", tools, wishes, (), before)


def require_signature(sif: Path, tools: Tools) -> None:
    """What the site's policy asks of the image's signatures. Raises `ProblemFound` for one that it refuses."""
    policy = tools.site.signatures
    if not policy.required and not sign.signatures(sif):
        return
    with tools.progress.phase(f"{sif.stem}: check its signature"):
        found = sign.check(sif, policy, Apptainer.find(tools.runner), sign.keyring_of(tools.environ))
    keys = ", ".join(found.fingerprints)
    if found.state is sign.State.STRANGER:
        tools.progress.note(f"{sif.stem}: signed by {keys}; {found.state.value}")
    else:
        tools.progress.note(f"{sif.stem}: signed by {keys}")


def _hashed(sif: Path, tools: Tools) -> str:
    with tools.progress.phase(f"{sif.stem}: check the image's sha256"):
        return sha256_of(sif)


def _verified(
    subject: Subject,
    llamafactory: str,
    tools: Tools,
    wishes: Wishes,
    gpu_models: tuple[str, ...],
    before: Before | None,
) -> Verified:
    given = wishes.checkout.absolute() if wishes.checkout else None
    options = VerifyOptions(
        device=wishes.device,
        checkout=given or _cached_checkout(llamafactory, tools),
        config=wishes.config.absolute() if wishes.config else None,
        model=wishes.model.absolute() if wishes.model else None,
        gpus=wishes.gpus,
        report_dir=(wishes.report or tools.project.reports / subject.name).absolute(),
        gpu_models=gpu_models or tools.site.gpu.models,
        tables=tools.tables,
        method=wishes.method,
        caches=cache_environment(tools.environ) | _site_caches(tools.site),
        keep=wishes.keep,
    )
    if before:
        before(subject, options)
    report = verify(subject, options, Apptainer.find(tools.runner), tools.progress)
    write_report(report, options.report_dir)
    put_on_record(report, tools)
    return Verified(report, options.report_dir)


def put_on_record(report: Report, tools: Tools) -> None:
    """In the project, wherever the report went. One that may not be written to (a shared one) is no failure."""
    record, directory = record_of(report), tools.project.reports / report.name
    if record is None:
        return
    try:
        append(directory, record)
    except OSError as error:
        tools.progress.note(f"not on record in {directory}, so --list will not say it: {error.strerror or error}")


def _site_caches(site: Site) -> dict[str, str]:
    return {"HF_HOME": site.cache.hf_home} if site.cache.hf_home else {}


def _cached_checkout(version: str, tools: Tools) -> Path:
    return checkout.cached(
        version, tools.cache, tools.runner, tools.progress, sources=checkout.Sources.of_site(tools.site, tools.environ)
    )
