"""IMG: what an image brings besides Python packages, and how that meets the host: compilers, libraries, environment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from packaging.version import InvalidVersion, Version

from sifkit.check.facts import Facts, HostFacts, ImageFacts, Kind
from sifkit.check.rule import Found, NotChecked, Severity, rule

# ---------------------------------------------------------------------------------------------- compilers


@rule(
    "IMG007",
    "no-compiler",
    Severity.WARNING,
    needs=[Kind.IMAGE],
    prevents="RuntimeError: Failed to find C compiler. Please specify via CC environment variable or set "
    "triton.knobs.build.impl.",
    why="Triton compiles a launcher for each kernel when it is first used, with the image's C compiler and Python's "
    "headers.",
    fix="Add gcc, libc6-dev and python3-dev to apt in the spec, and build again.",
    source="triton/runtime/build.py (3.2, 3.5): CC, gcc, clang; triton/backends/nvidia/driver.c includes Python.h",
    rows=(31,),
)
def no_compiler(facts: Facts) -> Iterator[Found]:
    """An image without a C compiler or Python's headers, which Triton needs."""
    image = _image(facts)
    lacking = []
    if not (image.environment.get("CC") or {"gcc", "clang"} & set(image.programs)):
        lacking.append("C compiler")
    if not image.python_headers:
        lacking.append("Python.h")
    if not lacking:
        return
    key = _triton_key(facts)
    message = f"the image has no {' and no '.join(lacking)}"
    fix = "add gcc, libc6-dev and python3-dev to apt in the spec, and build again"
    if key is not None and not (facts.job and facts.job.device == "cpu"):
        yield Found(
            f"{message}: {key} compiles kernels when the run starts, and fails", fix, key=key, severity=Severity.ERROR
        )
    else:
        yield Found(f"{message}: whatever uses Triton fails", fix)


def _triton_key(facts: Facts) -> str | None:
    """The key by which the run uses Triton for certain."""
    keys = ("enable_liger_kernel", "use_unsloth", "torch_compile")
    return next((key for key in keys if facts.value(key) is True), None)


@rule(
    "IMG008",
    "no-nvcc",
    needs=[Kind.IMAGE, Kind.CHECKOUT, Kind.JOB],
    prevents="deepspeed.ops.op_builder.builder.MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA "
    "op(s)",
    why="DeepSpeed compiles its own Adam when it is first used: the one for the CPU with offload_optimizer, the fused "
    "one where its file names an optimizer. Both ask for nvcc, ninja and a C++ compiler.",
    fix="Use an image with the extra deepspeed (extras in the spec), which brings them; or a DeepSpeed file without "
    "offload_optimizer and optimizer.",
    source="deepspeed 0.18.4: op_builder/builder.py (jit_load, nvcc_args), runtime/engine.py "
    "(_configure_basic_optimizer), read; accelerate 1.11.0: accelerator.py (_prepare_deepspeed)",
    rows=(19,),
)
def no_nvcc(facts: Facts) -> Iterator[Found | NotChecked]:
    """A DeepSpeed file that makes DeepSpeed compile, and an image that cannot."""
    image, job = _image(facts), facts.job
    if not facts.value("deepspeed") or "deepspeed" not in image.packages or (job and job.device == "cpu"):
        return
    settings = _deepspeed_file(facts)
    if settings is None:
        yield NotChecked("the DeepSpeed file cannot be read")
        return
    operator, cause = _compiled_operator(settings)
    lacking = [name for name in ("nvcc", "ninja", "g++") if name not in image.programs]
    if operator is None or operator in image.libraries or not lacking:
        return
    message = (
        f"{cause}: DeepSpeed compiles {operator.removesuffix('_op')}, and the image has no {', no '.join(lacking)}"
    )
    fix = "build an image with extras: [deepspeed] in its spec, or name a DeepSpeed file without offload_optimizer"
    yield Found(message, fix, key="deepspeed")


def _deepspeed_file(facts: Facts) -> Mapping[str, Any] | None:
    value = facts.value("deepspeed")
    if isinstance(value, Mapping):
        return value
    assert facts.checkout is not None
    return next((path.json for path in facts.checkout.at("deepspeed")), None)


def _compiled_operator(settings: Mapping[str, Any]) -> tuple[str | None, str]:
    """The operator that such a file makes DeepSpeed load, and by which of its entries."""
    zero = settings.get("zero_optimization")
    offload = zero.get("offload_optimizer") if isinstance(zero, Mapping) else None
    optimizer = settings.get("optimizer")
    kind = str(optimizer.get("type", "")).lower() if isinstance(optimizer, Mapping) else ""
    if isinstance(offload, Mapping) and offload.get("device", "none") != "none":
        wanted = settings.get("zero_force_ds_cpu_optimizer", True) or kind in ("adam", "adamw")
        return ("cpu_adam_op" if wanted else None), "offload_optimizer"
    parameters = optimizer.get("params") if isinstance(optimizer, Mapping) else None
    of_torch = isinstance(parameters, Mapping) and parameters.get("torch_adam") is True
    return ("fused_adam_op" if kind in ("adam", "adamw") and not of_torch else None), f"optimizer {kind}"


# ---------------------------------------------------------------------------------------------- libraries


@rule(
    "IMG010",
    "no-infiniband",
    Severity.WARNING,
    needs=[Kind.IMAGE, Kind.JOB],
    prevents="nothing is said: NCCL takes TCP sockets instead of InfiniBand, and several nodes are slower than one",
    why="NCCL loads libibverbs from the image, and that the library of the card's maker; --nv brings neither.",
    fix="Add libibverbs1 and ibverbs-providers to apt in the spec, and build again.",
    source="libnccl.so.2 of torch 2.9.1 names libibverbs.so.1; nvliblist.conf of Apptainer 1.4.5 lists no such library",
    rows=(39,),
)
def no_infiniband(facts: Facts) -> Iterator[Found]:
    """A run on several nodes, and an image without the libraries for InfiniBand."""
    image, job = _image(facts), facts.job
    assert job is not None
    lacking = [name for name in ("libibverbs.so.1", "libmlx5.so.1") if name not in image.libraries]
    if job.nodes > 1 and job.device == "gpu" and lacking:
        message = f"{job.nodes} nodes, and no {' and no '.join(lacking)} in the image: NCCL goes over TCP sockets"
        yield Found(
            message, "where nodes have InfiniBand or RoCE: add libibverbs1 and ibverbs-providers to apt in the spec"
        )


@rule(
    "IMG009",
    "compat-before-driver",
    Severity.WARNING,
    needs=[Kind.IMAGE],
    prevents="RuntimeError: Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling "
    "NumCudaDevices() that might have already set an error? Error 804: forward compatibility was attempted on non "
    "supported HW",
    why="LD_LIBRARY_PATH of the image names a directory with a libcuda of its own. It is taken before the host's, "
    "which --nv appends; on GPUs other than data-centre ones, or with a newer driver, that fails.",
    fix="Take cuda/compat and stubs out of LD_LIBRARY_PATH in the image.",
    source="libc10_cuda.so and libcudart of torch 2.9; Apptainer 1.4.5: /.singularity.d/env/99-base.sh; "
    "https://docs.nvidia.com/deploy/cuda-compatibility/forward-compatibility.html",
    rows=(30,),
)
def compat_before_driver(facts: Facts) -> Iterator[Found]:
    """A libcuda of the image's own that the loader finds before the host's."""
    image = _image(facts)
    if facts.job and facts.job.device == "cpu":
        return
    searched = image.environment.get("LD_LIBRARY_PATH", "").split(":")
    before = searched[: searched.index("/.singularity.d/libs")] if "/.singularity.d/libs" in searched else searched
    for directory in (each for each in image.cuda_compat if each in before):
        left = ":".join(each for each in searched if each not in (directory, "/.singularity.d/libs"))
        fix = f"set LD_LIBRARY_PATH without it in the image's environment: {left!r}"
        yield Found(f"{directory} of the image holds a libcuda, and LD_LIBRARY_PATH puts it before the host's", fix)


@rule(
    "IMG011",
    "older-libc-than-host-driver",
    Severity.WARNING,
    needs=[Kind.IMAGE, Kind.HOST],
    prevents="/lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.34' not found (required by "
    "/.singularity.d/libs/libGLX.so.0)",
    why="--nv binds the host's driver libraries into the container, where they are loaded with the image's C library.",
    fix="Build on a base with a newer C library.",
    source="https://github.com/apptainer/apptainer/issues/945 and 3041",
    rows=(29,),
)
def older_libc_than_host_driver(facts: Facts) -> Iterator[Found | NotChecked]:
    """Driver libraries of this host that need a newer C library than the image has."""
    image, host = _image(facts), _host(facts)
    if facts.job and facts.job.device == "cpu":
        return
    if host.nv_glibc is None or not image.glibc:
        yield NotChecked("this host has no libraries that --nv would bind")
    elif _older(image.glibc, host.nv_glibc):
        message = f"the image has glibc {image.glibc}; libraries of this host that --nv binds need {host.nv_glibc}"
        yield Found(message, "build on a newer base (debian-trixie has glibc 2.41)")


def _older(one: str, other: str) -> bool:
    try:
        return Version(one) < Version(other)
    except InvalidVersion:
        return False


# ---------------------------------------------------------------------------------------------- environment


@rule(
    "IMG005",
    "user-packages-shadow",
    Severity.WARNING,
    needs=[Kind.IMAGE, Kind.HOST],
    prevents="nothing is said: packages of ~/.local/lib/python3.x are imported instead of the image's",
    why="Apptainer mounts the home directory, and Python takes packages from ~/.local first where the minor version is "
    "the same. What `sifkit train` and its jobs start is told not to; a plain `apptainer exec` of this image is not.",
    fix="Set PYTHONNOUSERSITE=1, or call apptainer with --no-home.",
    source="https://docs.python.org/3/using/cmdline.html#envvar-PYTHONNOUSERSITE; site.py of Python 3.11 to 3.13",
    rows=(8,),
)
def user_packages_shadow(facts: Facts) -> Iterator[Found]:
    """Packages in the user's home that Python in the image would import before the image's own."""
    image, host = _image(facts), _host(facts)
    script = facts.job.script if facts.job and not facts.job.ours else ""
    guarded = image.environment.get("PYTHONNOUSERSITE") or re.search(
        r"PYTHONNOUSERSITE=|--no-home|--containall", script
    )
    minor = ".".join(image.python.split(".")[:2])
    if not guarded and minor in host.user_packages:
        message = (
            f"~/.local/lib/python{minor} holds packages, and a plain `apptainer exec` of this image would import them"
        )
        fix = 'call it with --env PYTHONNOUSERSITE=1 or --no-home; for good: env: {PYTHONNOUSERSITE: "1"} in its spec'
        yield Found(message, fix)


def _image(facts: Facts) -> ImageFacts:
    assert facts.image is not None  # the rules say that they need it
    return facts.image


def _host(facts: Facts) -> HostFacts:
    assert facts.host is not None
    return facts.host
