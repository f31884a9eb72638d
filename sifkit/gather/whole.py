"""All facts of each YAML: its own, beside what surrounds every one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sifkit.check.facts import CheckoutFacts, ConfigFacts, Facts, HostFacts, ImageFacts, JobFacts, Place, SiteFacts
from sifkit.gather.checkout import gather_checkout
from sifkit.gather.host import look_at


@dataclass(frozen=True)
class Surroundings:
    """What is the same for every YAML of one check. None: it is not there, or was not to be looked at."""

    image: ImageFacts | None
    checkout: Path | None
    shared: bool  # the checkout is sifkit's own cached one
    host: HostFacts | None
    site: SiteFacts | None
    job: JobFacts | None
    environ: Mapping[str, str]


def facts_of(configs: Sequence[ConfigFacts], around: Surroundings) -> tuple[Facts, ...]:
    """Everything about each; what a YAML holds never raises. Output directories are tried together."""
    checkouts = [_checkout_of(config, around) for config in configs]
    outputs = {str(each.output.host): each.output.host for each in checkouts if each and each.output}
    places = {place.name: place for place in look_at(outputs)} if around.host else {}
    return tuple(
        Facts(
            config, around.image, checkout, _host(around.host, checkout, places), around.site, _job(config, around.job)
        )
        for config, checkout in zip(configs, checkouts, strict=True)
    )


def _checkout_of(config: ConfigFacts, around: Surroundings) -> CheckoutFacts | None:
    if config.problem is not None or around.checkout is None:
        return None
    return gather_checkout(
        around.checkout,
        config,
        around.image,
        shared=around.shared,
        environ=around.environ,
        hf_home=around.site.hf_home if around.site else None,
    )


def _job(config: ConfigFacts, job: JobFacts | None) -> JobFacts | None:
    """A YAML may say itself that it trains on the CPU, or that it wants torchrun."""
    if job is None:
        return None
    values = config.values
    cpu = values.get("use_cpu") is True or values.get("no_cuda") is True
    torchrun = job.torchrun or bool(values.get("deepspeed") or values.get("fsdp"))
    return dataclasses.replace(job, device="cpu" if cpu else job.device, torchrun=torchrun)


def _host(host: HostFacts | None, checkout: CheckoutFacts | None, places: Mapping[str, Place]) -> HostFacts | None:
    """This host with the YAML's own output directory among its places."""
    if host is None or checkout is None or checkout.output is None:
        return host
    output = dataclasses.replace(places[str(checkout.output.host)], name="output_dir")
    return dataclasses.replace(host, places=(*host.places, output))
