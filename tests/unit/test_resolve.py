"""What follows from a spec, without a network."""

from __future__ import annotations

from typing import Any

import pytest

from sifkit.errors import UsageError
from sifkit.model import Debootstrap, DockerBase, LocalImage, Site
from sifkit.resolve import HostBases, platform_of, resolve_base
from sifkit.tables import known_bases, known_extras, known_sdists, modules_of_extras
from tests.conftest import HOST, make_spec, wanted


def test_torchvision_and_torchaudio_follow_torch() -> None:
    requirements = wanted(torch={"version": "2.6.0", "cuda": "12.4"}).requirements
    assert {"torch==2.6.0", "torchvision==0.21.0", "torchaudio==2.6.0"} <= set(requirements)


def test_a_torch_that_no_row_knows_is_left_to_the_index() -> None:
    resolution = wanted(torch={"version": "2.99.0", "cuda": "15.0"})
    assert resolution.requirements[:3] == ("torch==2.99.0", "torchvision", "torchaudio")
    assert resolution.torch_backend is None


def test_another_cuda_takes_uvs_torch_backend() -> None:
    assert wanted().torch_backend is None
    assert wanted(torch={"version": "2.9.1", "cuda": "12.6"}).torch_backend == "cu126"


def test_extras_become_requirements_and_unknown_ones_are_refused() -> None:
    assert "rouge-chinese" in wanted(extras=("metrics",)).requirements
    with pytest.raises(UsageError) as caught:
        wanted(extras=("metric",))
    assert caught.value.fix == "did you mean metrics?"


def test_python_must_be_the_bases_own() -> None:
    with pytest.raises(UsageError) as caught:
        wanted(python="3.12")
    assert caught.value.message.endswith("debian-trixie has Python 3.13, not 3.12")
    assert caught.value.fix == 'write python: "3.13", or base: ubuntu-noble'


@pytest.mark.parametrize(
    ("base", "platform"),
    [
        ("debian-trixie", "x86_64-manylinux_2_40"),  # 2.41, but uv's newest is 2.40
        ("debian-bookworm", "x86_64-manylinux_2_36"),
        ("site-own", "x86_64-manylinux_2_28"),
    ],
)
def test_platform_is_what_the_bases_glibc_runs(base: str, platform: str) -> None:
    assert platform_of(make_spec(base=base)) == platform


def test_with_debootstrap_and_a_mirror_no_registry_is_needed() -> None:
    base = resolve_base(make_spec(), Site(), HOST)
    assert base.source == Debootstrap(bootstrap="debootstrap", suite="trixie", mirror="http://mirror.example/debian")


def test_a_mirror_of_another_release_of_the_family_serves() -> None:
    host = HostBases(debootstrap=True, suites=("trixie",), mirrors={"bookworm": "http://mirror.example/debian"})
    source = resolve_base(make_spec(), Site(), host).source
    assert isinstance(source, Debootstrap)
    assert source.mirror == "http://mirror.example/debian"


@pytest.mark.parametrize(
    "host",
    [
        HostBases(),
        HostBases(debootstrap=True, suites=("trixie",)),
        HostBases(debootstrap=True, suites=("bookworm",), mirrors=HOST.mirrors),
        HostBases(debootstrap=True, suites=("trixie",), mirrors={"noble": "http://mirror.example/ubuntu"}),
    ],
)
def test_without_those_the_default_is_the_registry(host: HostBases) -> None:
    source = resolve_base(make_spec(), Site(), host).source
    assert source == DockerBase.model_validate({"bootstrap": "docker", "from": "debian:trixie-slim"})


def test_how_a_default_base_is_obtained_is_not_its_identity() -> None:
    assert resolve_base(make_spec(), Site(), HOST).identity == resolve_base(make_spec(), Site(), HostBases()).identity


def test_the_site_decides() -> None:
    site = Site.model_validate({"bases": {"debian-trixie": {"bootstrap": "localimage", "from": "/shared/base.sif"}}})
    base = resolve_base(make_spec(), site, HOST)
    assert isinstance(base.source, LocalImage)
    assert base.identity != resolve_base(make_spec(), Site(), HOST).identity


def test_a_sites_debootstrap_without_mirror_takes_the_hosts_or_says_so() -> None:
    site = Site.model_validate({"bases": {"mine": {"bootstrap": "debootstrap", "suite": "trixie"}}})
    source = resolve_base(make_spec(base="mine"), site, HOST).source
    assert isinstance(source, Debootstrap)
    assert source.mirror == "http://mirror.example/debian"
    with pytest.raises(UsageError, match="no mirror for trixie"):
        resolve_base(make_spec(base="mine"), site, HostBases())


def test_an_unknown_base_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        resolve_base(make_spec(base="debian-trixi"), Site(), HOST)
    assert caught.value.fix == "did you mean debian-trixie?"


def test_the_tables_are_read_and_agree() -> None:
    assert {base.family for base in known_bases().values()} == {"debian", "ubuntu"}
    assert all(extra.source for extra in known_extras().values())
    assert "antlr4-python3-runtime" in {row.name for row in known_sdists()}


def test_a_debootstrap_base_in_the_spec_takes_the_hosts_mirror_too() -> None:
    spec = make_spec(base={"bootstrap": "debootstrap", "suite": "trixie"})
    source = resolve_base(spec, Site(), HOST).source
    assert isinstance(source, Debootstrap)
    assert source.mirror == "http://mirror.example/debian"
    with pytest.raises(UsageError, match="no mirror for trixie"):
        resolve_base(spec, Site(), HostBases())


CU130 = {"version": "2.11.0", "cuda": "13.0"}


def test_an_extra_is_in_the_range_that_this_llamafactory_takes() -> None:
    old = wanted(torch=CU130, llamafactory={"version": "0.9.4"}, extras=("deepspeed",)).requirements
    new = wanted(torch=CU130, extras=("deepspeed",)).requirements
    assert "deepspeed<=0.16.9,>=0.10.0,>=0.13.0" in old
    assert "deepspeed<=0.18.4,>=0.10.0,>=0.13.0" in new


def test_what_compiles_brings_nvcc_of_torchs_cuda_a_compiler_and_its_source() -> None:
    resolution = wanted(torch=CU130, extras=("deepspeed",))
    assert "cuda-toolkit[cccl,crt,nvcc,nvvm]==13.0.2" in resolution.requirements
    assert (resolution.toolkit, resolution.apt) == ("nvidia/cu13", ("g++",))
    assert "deepspeed" in resolution.sdists
    assert "deepspeed" not in wanted(torch=CU130).sdists
    assert wanted(extras=("deepspeed",)).toolkit is None  # CUDA 12.8: no wheel brings it


def test_the_resolver_is_kept_clear_of_known_pairs() -> None:
    old: dict[str, Any] = {"base": "debian-bookworm", "python": "3.11", "llamafactory": {"version": "0.9.3"}}
    assert wanted(**old).constraints == ("pyarrow<26",)
    assert wanted().constraints == ()
    assert wanted(torch={"version": "2.5.1", "cuda": "12.4"}, llamafactory={"version": "0.9.4"}).constraints == (
        "transformers<4.52.4",
    )
    assert wanted(packages=("numpy==1.26.4",)).constraints == ("pyarrow<26",)
    torch_of_vllm = {"version": "2.8.0", "cuda": "12.8"}
    assert wanted(torch=torch_of_vllm, extras=("vllm",)).constraints == ("transformers<5",)
    assert wanted(torch=torch_of_vllm).constraints == ()


def test_what_an_extra_imports_is_known() -> None:
    assert modules_of_extras({"nltk", "torch"}) == ("nltk", "jieba", "rouge_chinese")
    assert modules_of_extras({"liger-kernel", "deepspeed"}) == ("liger_kernel.transformers", "deepspeed")
    assert modules_of_extras({"torch"}) == ()
