"""GPU: driver, kernels and number types; memory is in gpu_memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from packaging.version import InvalidVersion, Version

from sifkit.check.facts import Facts, ImageFacts, JobFacts, Kind, SiteFacts, TargetGpu
from sifkit.check.rule import Edit, Found, NotChecked, Severity, rule
from sifkit.check.rules.cfg_parser import device_of
from sifkit.compat.hardware import at_least, kernels_fix
from sifkit.compat.tables import has_kernels, load_tables

_SITE = "name the GPUs in the site file (gpu.models), or with --gpu"


def target(facts: Facts) -> tuple[SiteFacts, JobFacts]:
    """The site and the job, which the rules here need."""
    assert facts.site is not None
    assert facts.job is not None
    return facts.site, facts.job


def _image(facts: Facts) -> ImageFacts:
    assert facts.image is not None
    return facts.image


def on_gpu(facts: Facts) -> bool:
    """Whether the run trains on GPUs at all."""
    return target(facts)[1].device == "gpu"


def names(gpus: tuple[TargetGpu, ...]) -> str:
    """Their models."""
    return ", ".join(gpu.model for gpu in gpus)


def those(facts: Facts, lack: Callable[[TargetGpu], bool | None]) -> tuple[tuple[TargetGpu, ...], bool]:
    """The GPUs that lack something, and whether those are all that the run can get."""
    gpus = target(facts)[0].gpus
    found = tuple(gpu for gpu in gpus if lack(gpu))
    return found, bool(found) and len(found) == len(gpus)


@rule(
    "GPU001",
    "driver-too-old",
    needs=(Kind.IMAGE, Kind.SITE, Kind.JOB),
    prevents="The NVIDIA driver on your system is too old (found version",
    why="the image's torch is built with a CUDA that this driver does not start: each CUDA needs a driver of its own "
    "major version, or a newer one",
    fix="an image for an older CUDA, or a newer driver",
    source="definitions/compat/cuda.yaml; the message: torch 2.9.1 libtorch_python.so",
    rows=(5,),
)
def driver_too_old(facts: Facts) -> Iterator[Found | NotChecked]:
    """The driver of the site does not start the CUDA that the image's torch was built with."""
    image, (site, _) = _image(facts), target(facts)
    if not on_gpu(facts) or image.torch_cuda is None:
        return
    if site.driver is None:
        yield NotChecked("the site names no driver (gpu.driver)")
        return
    oldest = load_tables().oldest_driver(image.torch_cuda)
    if oldest is None:
        yield NotChecked(f"which driver CUDA {image.torch_cuda} needs is in no table")
    elif not _new_enough(site.driver, oldest):
        message = (
            f"torch is built for CUDA {image.torch_cuda}, which needs driver {oldest}; the site's is {site.driver}"
        )
        yield Found(message, f"{_older_cuda(site.driver)}, or driver {oldest} or newer")


def _new_enough(given: str, oldest: str) -> bool:
    try:
        return at_least(given, oldest)
    except ValueError:
        return True  # a word that is no version: nothing is concluded


def _older_cuda(driver: str) -> str:
    fitting = [row.version for row in load_tables().cudas if _new_enough(driver, row.driver)]
    return f"an image for CUDA {max(fitting, key=Version)} or older" if fitting else "another node"


@rule(
    "GPU002",
    "no-kernels",
    needs=(Kind.IMAGE, Kind.SITE, Kind.JOB),
    prevents="no kernel image is available for execution on the device",
    why="torch holds machine code for some generations of GPUs; a newer or an older one runs nothing of it",
    fix="an image whose torch has kernels for the GPU",
    source="CUDA C++ Programming Guide, binary and PTX compatibility; torch.cuda.get_arch_list() of the image",
    rows=(7,),
)
def no_kernels(facts: Facts) -> Iterator[Found | NotChecked]:
    """The image's torch has no code for a GPU that the run may get, or for no GPU at all."""
    image, (site, _) = _image(facts), target(facts)
    if not on_gpu(facts):
        return
    if image.torch_cuda is None:
        message = "the image's torch is built for the CPU: it sees no GPU, and the run would train on the CPU or stop"
        yield Found(message, "an image whose torch is built for CUDA; or use_cpu: true")
        return
    if not image.torch_architectures:
        yield NotChecked("which GPUs the image's torch has kernels for could not be read")
        return
    without, all_of_them = those(
        facts, lambda gpu: gpu.capability and not has_kernels(image.torch_architectures, gpu.capability)
    )
    if not without:
        return
    listed = " ".join(image.torch_architectures)
    pairs = [gpu.capability for gpu in site.gpus if gpu.capability]
    yield Found(
        f"torch has kernels for {listed}, and none for {names(without)}{_capabilities(without)}",
        kernels_fix(load_tables(), *pairs) + ("" if all_of_them else f"; or ask for another than {names(without)}"),
        severity=None if all_of_them else Severity.WARNING,
    )


def _capabilities(gpus: tuple[TargetGpu, ...]) -> str:
    listed = dict.fromkeys(f"sm_{gpu.capability[0]}{gpu.capability[1]}" for gpu in gpus if gpu.capability)
    return f" ({', '.join(listed)})"


@rule(
    "GPU003",
    "slow-bf16",
    Severity.WARNING,
    needs=(Kind.SITE, Kind.JOB),
    prevents="nothing is said: it trains, many times slower",
    why="torch.cuda.is_bf16_supported() counts emulation, so that LLaMA-Factory takes bf16 on GPUs before Ampere, "
    "where it is computed in fp32 and converted",
    fix="fp16: true",
    source="torch 2.9.1 torch/cuda/__init__.py, is_bf16_supported; definitions/compat/gpus.yaml",
    rows=(35,),
)
def slow_bf16(facts: Facts) -> Iterator[Found | NotChecked]:
    """bf16 on a GPU that has it not in hardware."""
    key = next((key for key in ("bf16", "pure_bf16") if facts.config.values.get(key) is True), None)
    if key is None or not on_gpu(facts):
        return
    slow, all_of_them = those(facts, lambda gpu: gpu.bf16 is False)
    if not slow:
        return
    message = f"{key}: true, and {names(slow)} computes bf16 by emulation: it trains, many times slower"
    if all_of_them:
        edit = Edit("bf16", value="true", rename="fp16") if key == "bf16" else None
        yield Found(message, f"fp16: true instead of {key}", key, edit=edit)
    else:
        yield Found(message, f"fp16: true instead of {key}, or ask for another GPU than {names(slow)}", key)


@rule(
    "GPU004",
    "half-precision-without-gpu",
    needs=(Kind.JOB,),
    prevents="ValueError: Your setup doesn't support bf16/gpu.",
    why="transformers takes bf16 on the CPU only where use_cpu says that it is meant; pure_bf16 it never takes there",
    fix="ask for a GPU, or train on the CPU: use_cpu: true without half precision",
    source="transformers 4.57.1 and 5.6.0 training_args.py, __post_init__; LLaMA-Factory 0.9.5 hparams/parser.py; "
    "accelerate 1.11.0 accelerator.py: fp16 is left out on the CPU",
    rows=(6,),
)
def half_precision_without_gpu(facts: Facts) -> Iterator[Found | NotChecked]:
    """Half precision in a run that has no GPU."""
    values, job = facts.config.values, facts.job
    if job is None or job.device != "cpu":
        return
    meant = values.get("use_cpu") is True or values.get("no_cuda") is True
    if values.get("pure_bf16") is True and not device_of(facts).gpu:  # use_cpu on a GPU's node is taken
        message = "pure_bf16: true in a run without a GPU: LLaMA-Factory stops at once"
        cause = "ValueError: This device does not support `pure_bf16`."
        yield Found(message, "ask for a GPU, or pure_bf16: false", "pure_bf16", cause=cause)
    half = [key for key in ("bf16", "bf16_full_eval") if values.get(key) is True]
    if half and not meant:
        message = f"{half[0]}: true in a run without a GPU: LLaMA-Factory stops at once"
        off = ", ".join(f"{key}: false" for key in half)
        yield Found(message, f"ask for a GPU, or train on the CPU: use_cpu: true, {off}", half[0])
    if values.get("fp16") is True:
        message = "fp16: true in a run without a GPU: it computes in fp32, and says nothing"
        yield Found(message, "ask for a GPU, or fp16: false", "fp16", severity=Severity.WARNING)


@rule(
    "GPU007",
    "fp8-without-hardware",
    Severity.WARNING,
    needs=(Kind.SITE, Kind.JOB),
    prevents="nothing is said, or a kernel fails at the first step",
    why="FP8 tensor cores come with compute capability 8.9 (Ada, Hopper); LLaMA-Factory's FP8 asks for torch 2.7",
    fix="fp8: false",
    source="LLaMA-Factory 0.9.5 hparams/training_args.py, Fp8Arguments; accelerate 1.11.0 utils/environment.py, "
    "check_cuda_fp8_capability",
)
def fp8_without_hardware(facts: Facts) -> Iterator[Found | NotChecked]:
    """FP8 training on a GPU without FP8, or with a torch that is too old for it."""
    if facts.config.values.get("fp8") is not True or not on_gpu(facts):
        return
    lacking, all_of_them = those(facts, lambda gpu: gpu.fp8 is False)
    if lacking:
        more = "" if all_of_them else f", or ask for another GPU than {names(lacking)}"
        yield Found(f"fp8: true, and {names(lacking)} has no FP8 in hardware", f"fp8: false{more}", "fp8")
    torch = _version(facts, "torch")
    if torch is not None and torch < Version("2.7"):
        yield Found(
            f"fp8: true needs torch 2.7; the image has {torch}", "fp8: false, or an image with torch 2.7", "fp8"
        )


def _version(facts: Facts, package: str) -> Version | None:
    try:
        return Version(facts.image.packages[package]) if facts.image else None
    except (KeyError, InvalidVersion):
        return None


@rule(
    "GPU008",
    "flash-attention-unsupported",
    needs=(Kind.IMAGE, Kind.SITE, Kind.JOB),
    prevents="FlashAttention only supports Ampere GPUs or newer.",
    why="FlashAttention 2 has kernels from compute capability 8.0 on, and its first call fails on older GPUs; without "
    "its package or without a GPU LLaMA-Factory logs that and takes another attention",
    fix="flash_attn: auto, with which PyTorch's own attention is taken",
    source="flash-attn csrc/flash_attn/flash_api.cpp, mha_fwd; transformers 4.57.1 and 5.6.0 utils/import_utils.py, "
    "is_flash_attn_2_available; LLaMA-Factory 0.9.5 model/model_utils/attention.py",
)
def flash_attention_unsupported(facts: Facts) -> Iterator[Found | NotChecked]:
    """flash_attn: fa2 on a GPU before Ampere, or in an image without the package."""
    if facts.config.values.get("flash_attn") != "fa2":
        return
    edit = Edit("flash_attn", value="auto")
    missing = "flash-attn" not in _image(facts).packages
    if missing or not on_gpu(facts):
        lack = "the image has no flash-attn" if missing else "the run has no GPU"
        message = f"flash_attn: fa2, and {lack}: LLaMA-Factory logs that, and takes another attention"
        fix = "flash_attn: auto" + (", or an image with flash-attn" if missing and on_gpu(facts) else "")
        cause = "FlashAttention-2 is not installed."
        yield Found(message, fix, "flash_attn", cause=cause, edit=edit, severity=Severity.WARNING)
        return
    old, all_of_them = those(facts, lambda gpu: gpu.capability and gpu.capability < (8, 0))
    if old:
        message = f"flash_attn: fa2 needs compute capability 8.0, and {names(old)} has less{_capabilities(old)}"
        severity = None if all_of_them else Severity.WARNING
        yield Found(message, "flash_attn: auto", "flash_attn", edit=edit, severity=severity)


@rule(
    "GPU009",
    "unknown-gpu",
    Severity.WARNING,
    needs=(Kind.SITE, Kind.JOB),
    prevents="what the other GPU rules would have found",
    why="a GPU that no row of the tables knows can be judged neither for kernels nor for memory",
    fix="a name that the tables know: sifkit compat show --json",
    source="definitions/compat/gpus.yaml",
)
def unknown_gpu(facts: Facts) -> Iterator[Found | NotChecked]:
    """The site names no GPU, or one of which the tables know nothing."""
    site, _ = target(facts)
    if not on_gpu(facts):
        return
    if not site.gpus:
        yield NotChecked(f"which GPUs the run gets is not known: {_SITE}")
    for gpu in site.gpus:
        if gpu.capability is None or gpu.memory is None:
            yield NotChecked(f"GPU {gpu.model} ({site.source}): {load_tables().nearest_gpu(gpu.model)}")


@rule(
    "GPU010",
    "more-gpus-than-here",
    needs=(Kind.HOST, Kind.JOB),
    prevents="Duplicate GPU detected : rank",
    why="torchrun starts one process for each GPU that is asked for; where there are fewer, accelerate gives one GPU "
    "to several processes, and NCCL refuses that when they first wait for each other",
    fix="ask for as many GPUs as there are",
    source="LLaMA-Factory 0.9.5 launcher.py (NPROC_PER_NODE); accelerate 1.11.0 state.py, set_device: the process's "
    "number modulo the GPUs; the message: libnccl.so.2 of the images",
)
def more_gpus_than_here(facts: Facts) -> Iterator[Found | NotChecked]:
    """The run asks for more GPUs than this host, on which it starts, has."""
    host, job = facts.host, facts.job
    if host is None or job is None or not job.here or job.device != "gpu":
        return
    if job.gpus > len(host.gpus):
        fix = f"--gpus {len(host.gpus)}" if host.gpus else "train on the CPU (use_cpu: true, bf16: false), or elsewhere"
        yield Found(f"the run asks for {job.gpus} GPUs, and this host has {len(host.gpus)}", fix)


@rule(
    "GPU011",
    "eight-bits-without-hardware",
    Severity.WARNING,
    needs=(Kind.SITE, Kind.JOB),
    prevents="nothing is said: it runs slower. python -m bitsandbytes says: Only slow 8-bit matmul is supported for "
    "your GPU!",
    why="8-bit matrices are multiplied fast by tensor cores of compute capability 7.5 and newer; 4 bits need none, and "
    "run from 6.0 on",
    fix="quantization_bit: 4",
    source="bitsandbytes 0.50.2 cuda_specs.py, has_imma; diagnostics/cuda.py, _print_cuda_diagnostics; its README: "
    "SM60+ minimum, SM75+ recommended",
)
def eight_bits_without_hardware(facts: Facts) -> Iterator[Found | NotChecked]:
    """8-bit quantisation on a GPU before Turing."""
    values: Any = facts.config.values
    if values.get("quantization_bit") != 8 or (facts.value("quantization_method") or "bnb") != "bnb":
        return
    old, all_of_them = those(facts, lambda gpu: gpu.capability and gpu.capability < (7, 5))
    if old and on_gpu(facts):
        more = "" if all_of_them else f", or ask for another GPU than {names(old)}"
        message = f"quantization_bit: 8 is slow below compute capability 7.5, and {names(old)} has less"
        message += _capabilities(old)
        yield Found(message, f"quantization_bit: 4{more}", "quantization_bit")
