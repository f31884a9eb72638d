"""Several processes, GPUs or nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from sifkit.check.architectures import config_of
from sifkit.check.facts import Facts, JobFacts, Kind
from sifkit.check.rule import Edit, Found, NotChecked, Severity, rule
from sifkit.check.rules.dat import used
from sifkit.check.rules.slm import job_of
from sifkit.check.script import parse_script
from sifkit.estimate.numbers import is_count, is_number
from sifkit.filesystems import NETWORK

_LAUNCHER = "llamafactory/launcher.py, launch; 0.9.4 and 0.9.5"
_TOKENS_A_SECOND = 100_000  # of one process; measured: 350,000 on a core of today, with a small vocabulary
_DEFAULT_TIMEOUT = 1800  # seconds (transformers, TrainingArguments.ddp_timeout)
_WITHOUT_END = "180000000"  # seconds, as LLaMA-Factory's own examples have it


def processes(job: JobFacts) -> int:
    """Of the whole job, one for each GPU."""
    return max(job.gpus, 1) * job.nodes


def zero_stage(facts: Facts) -> int | None:
    """Of the DeepSpeed file; None without one."""
    files = facts.checkout.at("deepspeed") if facts.checkout else ()
    says: Any = next((path.json for path in files if path.json), None) or facts.config.values.get("deepspeed")
    zero = says.get("zero_optimization") if isinstance(says, Mapping) else None
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    return stage if isinstance(stage, int) else None


@rule(
    "DST001",
    "tokenizing-outlasts-timeout",
    Severity.WARNING,
    needs=(Kind.JOB, Kind.CHECKOUT),
    prevents="Watchdog caught collective operation timeout: WorkNCCL(SeqNum=1, OpType=ALLREDUCE, …, "
    "Timeout(ms)=1800000) ran for 1800000 milliseconds before timing out.",
    why="the first process of a node tokenizes alone; all others wait for it, at most ddp_timeout seconds",
    fix="ddp_timeout: 180000000; or tokenize beforehand into tokenized_path",
    source="llamafactory/data/loader.py, get_dataset; transformers 4.57.1 and 5.6.0, training_args.py "
    "(main_process_first, ddp_timeout); libtorch_cuda.so of torch 2.6 and 2.9",
    rows=(21,),
)
def tokenizing_outlasts_timeout(facts: Facts) -> Iterator[Found | NotChecked]:
    """Several processes, and tokenizing may take longer than they wait for each other."""
    timeout = facts.value("ddp_timeout") or _DEFAULT_TIMEOUT
    if processes(job_of(facts)) == 1 or not is_number(timeout) or timeout > 100_000:
        return
    if facts.value("streaming") is True:
        return
    known = [each for each in used(facts) if each.entry is not None]
    unknown = [each.name for each in known if each.rows is None or each.mean_tokens is None]
    seconds = _tokenizing(facts)
    if seconds > timeout / 2:
        message = f"tokenizing takes some {seconds / 60:,.0f} minutes, and processes wait {timeout / 60:,.0f} for it"
        fix = f"ddp_timeout: {_WITHOUT_END}; or tokenize beforehand: tokenized_path"
        key = "ddp_timeout" if "ddp_timeout" in facts.config.values else "dataset"
        yield Found(message, fix, key, edit=Edit("ddp_timeout", _WITHOUT_END))
    elif unknown:
        yield NotChecked(f"how large {', '.join(unknown)} is cannot be seen here; ddp_timeout is {timeout:,.0f} s")


def _tokenizing(facts: Facts) -> float:
    """Seconds, at the speed of a slow core."""
    workers = facts.value("preprocessing_num_workers")
    limit = facts.value("max_samples")
    tokens = 0.0
    for each in used(facts):
        rows = min(each.rows or 0, limit) if is_count(limit) else each.rows or 0
        tokens += rows * (each.mean_tokens or 0.0)
    cpus = job_of(facts).cpus
    at_once = min(workers, cpus or workers) if is_count(workers) else 1
    return tokens / (_TOKENS_A_SECOND * at_once)


@rule(
    "DST002",
    "deepspeed-needs-torchrun",
    needs=(Kind.JOB,),
    prevents="ValueError: Please use `FORCE_TORCHRUN=1` to launch DeepSpeed training.",
    why="with one GPU LLaMA-Factory starts one plain process, and DeepSpeed wants a launcher's environment",
    fix="FORCE_TORCHRUN=1 llamafactory-cli train …; sifkit's own job files set it",
    source=f"{_LAUNCHER}; llamafactory/hparams/parser.py, get_train_args",
)
def deepspeed_needs_torchrun(facts: Facts) -> Iterator[Found]:
    """A job file of the user's own for one GPU, with deepspeed in the YAML and without FORCE_TORCHRUN."""
    job = job_of(facts)
    if facts.config.values.get("deepspeed") is None or job.ours or not job.script or processes(job) > 1:
        return
    script = parse_script(job.script)
    if not script.mentions("FORCE_TORCHRUN") and not any(line.has("torchrun") for line in script.lines):
        message = "deepspeed with one GPU, and the job file does not set FORCE_TORCHRUN"
        yield Found(message, "export FORCE_TORCHRUN=1 in the job file", "deepspeed")


@rule(
    "DST003",
    "effective-batch",
    Severity.INFO,
    needs=(Kind.JOB,),
    prevents="nothing: a number to know when GPUs are added, for the learning rate follows from it",
    why="each GPU takes per_device_train_batch_size rows, gradient_accumulation_steps times, before weights change",
    fix="lower gradient_accumulation_steps as GPUs are added, to keep it",
    source="transformers 4.57.1 and 5.6.0, trainer.py",
)
def effective_batch(facts: Facts) -> Iterator[Found]:
    """How many rows several GPUs take together before the weights change."""
    job, each = job_of(facts), facts.value("per_device_train_batch_size")
    steps = facts.value("gradient_accumulation_steps") or 1
    if processes(job) > 1 and is_count(each) and is_count(steps):
        nodes = f" × {job.nodes} nodes" if job.nodes > 1 else ""
        said = f"{each} on each GPU × {steps} accumulated × {max(job.gpus, 1)} GPUs{nodes}"
        total = each * steps * processes(job)
        message = f"effective batch {total}: {said}"
        fix = "change gradient_accumulation_steps if it should be another"
        keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
        yield Found(message, fix, next((key for key in keys if key in facts.config.values), None))


@rule(
    "DST004",
    "nccl-over-sockets",
    Severity.WARNING,
    needs=(Kind.JOB, Kind.HOST),
    prevents="nothing: GPUs wait for each other's data most of the time; or NCCL WARN Bootstrap : no socket "
    "interface found",
    why="NCCL_* of your environment is handed to the run; these switch its fast ways off, or fit one machine alone",
    fix="unset it, and let NCCL choose",
    source="https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html; libnccl.so.2 of torch 2.9; "
    "sifkit/launch.py, ENVIRONMENT_PASSED",
    rows=(39,),
)
def nccl_over_sockets(facts: Facts) -> Iterator[Found]:
    """NCCL_IB_DISABLE, NCCL_P2P_DISABLE or NCCL_SOCKET_IFNAME is set where several GPUs work together."""
    assert facts.host is not None
    job, environment = job_of(facts), facts.host.environment
    if processes(job) == 1:
        return
    if job.nodes > 1 and environment.get("NCCL_IB_DISABLE") == "1":
        yield Found("NCCL_IB_DISABLE=1: the nodes talk over TCP, without InfiniBand", "unset NCCL_IB_DISABLE")
    name = environment.get("NCCL_SOCKET_IFNAME", "")
    if job.nodes > 1 and name and not name.startswith("^"):  # which leaves some out
        message = f"NCCL_SOCKET_IFNAME={name}: each node needs an interface of that name, which reaches the others"
        yield Found(message, "unset NCCL_SOCKET_IFNAME, unless all nodes have it")
    if job.gpus > 1 and environment.get("NCCL_P2P_DISABLE") == "1":
        yield Found("NCCL_P2P_DISABLE=1: the GPUs of a node talk through its memory", "unset NCCL_P2P_DISABLE")


@rule(
    "DST006",
    "cache-shared-between-ranks",
    Severity.WARNING,
    needs=(Kind.JOB, Kind.HOST),
    prevents="OSError: [Errno 116] Stale file handle; or a hang at the first step",
    why="all processes compile into one cache at once; on a network filesystem they meet half-written files of others, "
    "and wait for a lock file that one which died has left. "
    "sifkit gives Triton's and inductor's a place on each node; that of torch extensions is your own",
    fix="a directory of each node: TORCH_EXTENSIONS_DIR=/tmp/$USER/torch_extensions",
    source="torch 2.6 to 2.9, utils/cpp_extension.py and file_baton.py; sifkit/launch.py, CACHES",
    rows=(33,),
)
def cache_shared_between_ranks(facts: Facts) -> Iterator[Found]:
    """Several processes compile into a cache on a network filesystem."""
    assert facts.host is not None
    job = job_of(facts)
    compiled = {"TORCH_EXTENSIONS_DIR"} if facts.config.values.get("deepspeed") is not None else set()
    compiled |= set() if job.ours else {"TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
    for place in facts.host.places if processes(job) > 1 else ():
        if place.name in compiled and place.filesystem in NETWORK:
            message = (
                f"{processes(job)} processes compile into {place.path} ({place.name}), which is {place.filesystem}"
            )
            yield Found(message, f"a directory of each node: {place.name}=/tmp/$USER/cache")


@rule(
    "DST007",
    "elastic-incomplete",
    Severity.WARNING,
    needs=(Kind.JOB, Kind.HOST),
    prevents="nothing: MIN_NNODES, MAX_NNODES or MAX_RESTARTS has no effect",
    why="LLaMA-Factory starts an elastic torchrun only with RDZV_ID, and a range of nodes only with both of its ends",
    fix="set RDZV_ID, MIN_NNODES and MAX_NNODES together, or none of them",
    source=_LAUNCHER,
    rows=(37,),
)
def elastic_incomplete(facts: Facts) -> Iterator[Found]:
    """Variables of an elastic start that do nothing without the others."""
    assert facts.host is not None
    job = job_of(facts)
    assigned = parse_script(job.script).assigned() if job.script and not job.ours else {}
    names = {*facts.host.environment, *assigned}
    lone = [name for name in ("MIN_NNODES", "MAX_NNODES", "MAX_RESTARTS") if name in names]
    if lone and "RDZV_ID" not in names:
        yield Found(f"{', '.join(lone)} without RDZV_ID has no effect", f"set RDZV_ID, or unset {', '.join(lone)}")
    elif ("MIN_NNODES" in names) != ("MAX_NNODES" in names):
        missing = "MAX_NNODES" if "MIN_NNODES" in names else "MIN_NNODES"
        yield Found(f"{missing} is not set: the number of nodes stays fixed", f"set {missing}")


# ---------------------------------------------------------------------------------------------- methods


@rule(
    "DST005",
    "sharding-does-not-fit",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models.",
    why="ZeRO-3 and FSDP cut weights into pieces, which most quantised formats and some methods do not survive. Of "
    "FSDP LLaMA-Factory knows when it loads the model only with transformers 4 and cpu_ram_efficient_loading: true",
    fix="ZeRO-2 (examples/deepspeed/ds_z2_config.json), or another method",
    source="llamafactory/model/model_utils/quantization.py, configure_quantization; model/adapter.py; 0.9.4 and 0.9.5; "
    "transformers 4.57.1 and 5.6.0, integrations/fsdp.py, is_fsdp_enabled, and training_args.py",
)
def sharding_does_not_fit(facts: Facts) -> Iterator[Found]:
    """DeepSpeed ZeRO-3 or FSDP with a quantised model, or with several adapters."""
    if zero_stage(facts) != 3 and not _loads_for_fsdp(facts):
        return
    key = "deepspeed" if zero_stage(facts) == 3 else "fsdp"
    words = "ZeRO-3" if key == "deepspeed" else "FSDP"
    if (quantised := _quantised(facts)) is not None:
        message, cause = quantised
        fix = "a ZeRO-2 file, as ds_z2_config.json" if key == "deepspeed" else "remove fsdp, or the quantisation"
        yield Found(f"{key}: {words} with {message}", fix, key, cause=cause)
    adapters = facts.checkout.at("adapter_name_or_path") if facts.checkout else ()
    if key == "deepspeed" and len(adapters) > 1:
        cause = "AssertionError: Cannot use multiple adapters in DeepSpeed ZeRO-3."
        fix = "merge all but the last one beforehand: llamafactory-cli export"
        yield Found(f"adapter_name_or_path: {len(adapters)} adapters with ZeRO-3", fix, key, cause=cause)


def _loads_for_fsdp(facts: Facts) -> bool:
    """Whether is_fsdp_enabled() of transformers holds while the model is loaded, as far as the YAML tells."""
    config, image = facts.config.values.get("fsdp_config"), facts.image
    efficient = isinstance(config, Mapping) and str(config.get("cpu_ram_efficient_loading")).lower() == "true"
    return bool(facts.config.values.get("fsdp")) and efficient and bool(image and image.transformers.startswith("4."))


def _quantised(facts: Facts) -> tuple[str, str] | None:
    """What of the model or the config is quantised in a way that cannot be cut, and what is said then."""
    given = config_of(facts).get("quantization_config")
    bits, method = facts.value("quantization_bit"), str(facts.value("quantization_method") or "bnb").lower()
    if isinstance(given, Mapping):
        how = str(given.get("quant_method", "")).lower()
        cause = "ValueError: DeepSpeed ZeRO-3 or FSDP is incompatible with PTQ-quantized models."
        return None if how in ("mxfp4", "fp8") else (f"a {how or 'quantised'} model", cause)
    if bits is None:
        return None
    if method in ("hqq", "eetq"):
        cause = f"ValueError: {method.upper()} quantization is incompatible with DeepSpeed ZeRO-3 or FSDP."
        return f"quantization_method: {method}", cause
    if method in ("bnb", "bitsandbytes") and bits != 4:
        return (
            f"quantization_bit: {bits}",
            "ValueError: Only 4-bit quantized model can use fsdp+qlora or auto device map.",
        )
    return None


@rule(
    "DST008",
    "layerwise-with-accumulation",
    prevents="ValueError: Per-layer GaLore does not support gradient accumulation.",
    why="layer-wise optimizers change a layer as soon as its gradient is there, and keep none to add up",
    fix="gradient_accumulation_steps: 1, with a larger per_device_train_batch_size",
    source="llamafactory/train/trainer_utils.py, _create_galore_optimizer, _create_apollo_optimizer; 0.9.4 and 0.9.5",
)
def layerwise_with_accumulation(facts: Facts) -> Iterator[Found]:
    """Layer-wise GaLore or APOLLO with gradient accumulation."""
    steps = facts.value("gradient_accumulation_steps")
    for name, said in (("galore", "GaLore"), ("apollo", "APOLLO")):
        on = facts.value(f"use_{name}") is True and facts.value(f"{name}_layerwise") is True
        if on and isinstance(steps, int) and steps != 1:
            message = f"{name}_layerwise: true with gradient_accumulation_steps: {steps}"
            cause = f"ValueError: Per-layer {said} does not support gradient accumulation."
            yield Found(message, "gradient_accumulation_steps: 1", "gradient_accumulation_steps", cause=cause)


@rule(
    "DST009",
    "ppo-refuses-this",
    needs=(Kind.IMAGE,),
    prevents="ImportError: trl>=0.8.6,<=0.9.6 is required for a normal functioning of this module, but found "
    "trl==0.24.0.",
    why="PPO of LLaMA-Factory is written for trl 0.8.6 to 0.9.6, which the rest of it refuses since 0.9.4; it takes no "
    "eval dataset and does not resume",
    fix="train with stage dpo or kto, or in an image with LLaMA-Factory 0.9.3",
    source="llamafactory/train/ppo/trainer.py, __init__ and ppo_train; 0.9.4 and 0.9.5, tried",
)
def ppo_refuses_this(facts: Facts) -> Iterator[Found]:
    """Stage ppo with the image's trl, an eval dataset, or a checkpoint to go on from."""
    if facts.value("stage") != "ppo" or facts.image is None:
        return
    trl = facts.image.packages.get("trl", "")
    if trl and not trl.startswith(("0.8.", "0.9.")):
        message = f"stage: ppo needs trl 0.8.6 to 0.9.6, and the image has {trl}"
        yield Found(message, "stage: dpo or kto; or an image with LLaMA-Factory 0.9.3", "stage")
    for key in ("eval_dataset", "val_size"):
        if facts.config.values.get(key):
            cause = "NotImplementedError: PPOTrainer does not support eval dataset yet."
            yield Found(f"{key}: stage ppo takes no eval dataset", f"remove {key}", key, cause=cause)
    if facts.config.values.get("resume_from_checkpoint"):
        cause = "ValueError: `resume_from_checkpoint` will be supported in the future version."
        message = "resume_from_checkpoint: stage ppo does not resume"
        yield Found(message, "remove it", "resume_from_checkpoint", cause=cause)
