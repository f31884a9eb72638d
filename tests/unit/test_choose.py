"""sifkit resolve: the newest set that fits, what limited it, and the smallest change where nothing fits."""

from __future__ import annotations

import pytest

from sifkit.compat.choose import choose
from sifkit.errors import ProblemFound, UsageError
from sifkit.model import ImageSpec, ImageWish
from tests.conftest import TABLES


def wish(**words: object) -> ImageWish:
    return ImageWish.model_validate({"name": "mine", **words})


def chosen(**words: object) -> ImageSpec:
    return choose(wish(**words), TABLES).spec


def pins(spec: ImageSpec) -> tuple[str, str, str, object]:
    return spec.torch.version, spec.torch.cuda, spec.python, spec.base


def test_what_the_user_knows_is_enough() -> None:
    spec = chosen(llamafactory="0.9.5", gpu=("V100", "H100"), driver="535.104")
    assert pins(spec) == ("2.10.0", "12.8", "3.13", "debian-trixie")
    assert spec.apt == ("gcc", "libc6-dev", "python3-dev", "git")
    assert (spec.gpu, spec.driver) == (("V100", "H100"), "535.104")


def test_each_word_says_what_it_took_away_and_what_is_left() -> None:
    choice = choose(wish(llamafactory="0.9.5", gpu=("V100", "H100"), driver="535.104"), TABLES)
    limits = {limit.subject: limit for limit in choice.limits}
    assert list(limits)[:4] == ["LLaMA-Factory 0.9.5", "V100", "H100", "driver 535.104"]
    assert "has no kernels for V100 (sm_70)" in limits["V100"].because
    assert limits["V100"].leaves == "torch 2.4.0 to 2.10.0 (CUDA 12.1 to 12.8), Python 3.11, 3.12, 3.13"
    assert limits["H100"].because == "nothing in the tables is against it"
    assert limits["torch 2.5.1"].leaves.startswith("torch 2.6.0 to 2.10.0")
    assert all(limit.source for limit in choice.limits if "no kernels" in limit.because)


def test_without_words_it_is_the_newest_of_everything_that_has_a_whole_set() -> None:
    spec = chosen()
    newest = [row for row in TABLES.builds if row.torchvision and row.torchaudio][-1]
    assert (spec.torch.version, spec.torch.cuda) == (newest.version, newest.cuda)
    assert spec.llamafactory.version == TABLES.llamafactories[-1].version


def test_a_release_that_bounds_numpy_takes_an_older_base() -> None:
    assert pins(chosen(llamafactory="0.9.3", torch={"cuda": "12.4"})) == ("2.6.0", "12.4", "3.11", "debian-bookworm")


def test_an_extra_limits_torch() -> None:
    assert chosen(llamafactory="0.9.5", extras=("vllm",)).torch.version == "2.8.0"
    assert chosen(llamafactory="0.9.5", extras=("deepspeed",)).torch.cuda == "13.0"


def test_the_users_pins_are_kept() -> None:
    assert pins(chosen(torch={"version": "2.9.1"}, base="ubuntu-noble")) == ("2.9.1", "12.8", "3.12", "ubuntu-noble")


def test_an_impossible_wish_is_answered_with_the_smallest_change() -> None:
    with pytest.raises(ProblemFound) as caught:
        chosen(llamafactory="0.9.5", gpu=("V100", "B200"), torch={"cuda": "13.0"}, driver="580.65.06")
    ways = (caught.value.fix or "").splitlines()[1:]
    assert ways[0].startswith("- leave out V100 → LLaMA-Factory 0.9.5, torch 2.14")
    assert ways[1].startswith("- CUDA 12.8 instead of 13.0 → LLaMA-Factory 0.9.5, torch 2.10.0, CUDA 12.8")
    assert len(ways) == 2
    assert "dropped it" in caught.value.message


def test_a_driver_that_is_too_old_is_told_which_is_not() -> None:
    with pytest.raises(ProblemFound) as caught:
        chosen(llamafactory="0.9.5", driver="470.57.02")
    assert "driver 525.60.13 or newer instead of 470.57.02" in (caught.value.fix or "")


def test_two_changes_where_one_is_not_enough() -> None:
    with pytest.raises(ProblemFound) as caught:
        chosen(llamafactory="0.9.5", gpu=("K80",), driver="470.57.02")
    ways = (caught.value.fix or "").splitlines()[1:]
    assert ways[0].startswith("- leave out K80; and driver 525.60.13 or newer instead of 470.57.02 →")


def test_a_package_that_fits_no_torch_is_named() -> None:
    with pytest.raises(ProblemFound) as caught:
        chosen(llamafactory="0.9.5", packages=("transformers==5.7.0",))
    assert "leave out packages: transformers==5.7.0" in (caught.value.fix or "")


def test_what_no_row_knows_is_not_refused() -> None:
    assert chosen(llamafactory="0.9.99").llamafactory.version == "0.9.99"
    choice = choose(wish(torch={"version": "2.99.0", "cuda": "15.0"}, gpu=("Z900",)), TABLES)
    assert choice.spec.torch.version == "2.99.0"
    assert {finding.rule for finding in choice.findings} >= {"torch-unknown", "gpu-unknown"}


def test_an_unknown_torch_needs_its_cuda() -> None:
    with pytest.raises(UsageError, match=r"torch 2\.99\.0 is in no row"):
        chosen(torch={"version": "2.99.0"})


def test_a_base_of_ones_own_needs_its_python() -> None:
    base = {"bootstrap": "docker", "from": "nvidia/cuda:12.8.1-devel-ubuntu24.04"}
    with pytest.raises(UsageError, match="which Python it has is not known"):
        chosen(base=base)
    assert chosen(base=base, python="3.12", torch={"cuda": "12.8"}, extras=("deepspeed",)).torch.version == "2.10.0"


def test_a_base_with_a_typo_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        chosen(base="debian-trixy")
    assert caught.value.fix == "did you mean debian-trixie?"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("A100 80GB", "A100"),
        ("gpu:a100:4", "A100"),
        ("3090", "RTX 3090"),
        ("A6000", "RTX A6000"),
        ("V100-32GB", "V100"),
    ],
)
def test_gpus_are_found_as_people_and_slurm_name_them(name: str, model: str) -> None:
    gpu = TABLES.gpu(name)
    assert gpu is not None
    assert gpu.model == model


def test_gpus_of_other_makers_have_no_near_name() -> None:
    assert TABLES.gpu("MI300X") is None
    assert "did you mean" not in TABLES.nearest_gpu("MI300X")


def test_a_driver_that_dropped_the_gpu_is_told_which_one_runs_it() -> None:
    with pytest.raises(ProblemFound) as caught:
        chosen(llamafactory="0.9.5", gpu=("V100",), driver="590.44.01")
    ways = (caught.value.fix or "").splitlines()[1:]
    assert any(way.startswith("- driver 580, or leave V100 out (now 590.44.01) → ") for way in ways)
