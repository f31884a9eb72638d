"""Level kernel: does the GPU compute what it should, through each way that training uses? Needs a GPU."""

from __future__ import annotations

import re
from typing import Any

from sifkit.causes import find_cause
from sifkit.verify.checks import Check, Level, failed, failed_because, not_run, passed, timed

# Largest relative error (Frobenius norm) of a product against float64. bfloat16 keeps 8 bits of
# mantissa (2⁻⁹ ≈ 0.002 for each rounding), TF32 10, float32 23; an error in the hardware or a wrong kernel is ≫.
_TOLERANCES = {"bfloat16": 0.02, "float32": 0.002}

_TITLES = {
    "start": "CUDA starts",
    "matmul_bfloat16": "bf16 matmul",
    "matmul_float32": "fp32 matmul",
    "triton": "Triton kernel",
    "compile": "torch.compile",
    "backward": "attention, forward and backward",
}


def judge_kernels(answer: dict[str, Any]) -> tuple[Check, ...]:
    """One check for each thing that probes/kernel.py tried; what it did not reach has failed."""
    return tuple(_judge_one(key, title, answer.get(key)) for key, title in _TITLES.items())


def _judge_one(key: str, title: str, tried: dict[str, Any] | None) -> Check:
    if tried is None:
        return failed(Level.KERNEL, title, "no answer", "the probe died before it", "read kernel.log")
    if tried.get("skipped"):
        return not_run(Level.KERNEL, title, tried["skipped"])
    if tried["error"]:
        check = failed_because(Level.KERNEL, title, headline(tried["error"]), find_cause(tried["error"], "run"))
    elif key == "start":
        check = passed(Level.KERNEL, title, _start_said(tried["import_seconds"], tried["cuda_seconds"]))
    else:
        check = _judge_error(title, tried)
    return timed(check, tried["seconds"])


def _start_said(import_seconds: float, cuda_seconds: float) -> str:
    return f"torch imported in {import_seconds:.1f} s, first memory on the GPU {cuda_seconds:.1f} s later"


def _judge_error(title: str, tried: dict[str, Any]) -> Check:
    said = f"relative error {tried['relative_error']:.2g}"
    if not tried["relative_error"] <= tolerance(title):
        cause = "the GPU computes wrongly: defective hardware, or a kernel of another architecture"
        return failed(Level.KERNEL, title, said, cause, "look at dmesg for Xid errors")
    if tried.get("size"):
        said += f" at {tried['size']}²"
    if tried.get("teraflops"):
        said += f"; {tried['teraflops']:.0f} TFLOP/s at {tried['teraflops_size']}²"
    return passed(Level.KERNEL, title, said)


def headline(traceback: str) -> str:
    """The line of a traceback that names the exception; some say advice after it."""
    lines = traceback.strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


def tolerance(title: str) -> float:
    """The largest relative error that is rounding."""
    return _TOLERANCES["float32"] if "fp32" in title or "Triton" in title else _TOLERANCES["bfloat16"]


def judge_all_reduce(answer: dict[str, Any] | None, said: str, gpus: int) -> Check:
    """The sum over all ranks was right on every rank, each on a GPU of its own; one GPU has nobody to talk to."""
    name = "NCCL all-reduce"
    if gpus < 2:
        return not_run(Level.KERNEL, name, "one GPU only")
    if answer is None:
        last = said.strip().splitlines()[-1] if said.strip() else "no answer"
        return failed_because(Level.KERNEL, name, last, find_cause(said, "run"))
    ranks = answer["ranks"]
    wrong = {rank["rank"]: rank["wrong"] for rank in ranks if rank["wrong"]}
    if wrong:
        listed = ", ".join(f"rank {rank}: {count} of {answer['elements']} elements" for rank, count in wrong.items())
        fix = "NCCL_DEBUG=INFO shows the transport; NCCL_P2P_DISABLE=1 avoids a broken link; look at dmesg"
        return failed(Level.KERNEL, name, f"wrong on {listed}", "the ranks did not agree on the sum", fix)
    if answer["world"] != gpus or len(ranks) != gpus:
        cause = "not every rank came to its end"
        return failed(Level.KERNEL, name, f"{len(ranks)} of {gpus} ranks", cause, "read allreduce.log")
    devices = {rank["device"] for rank in ranks}
    if len(devices) < gpus:
        cause = "several ranks computed on one GPU"
        return failed(Level.KERNEL, name, f"{len(devices)} of {gpus} GPUs", cause, "check CUDA_VISIBLE_DEVICES and MIG")
    return passed(Level.KERNEL, name, _bandwidth(answer, gpus))


def _bandwidth(answer: dict[str, Any], gpus: int) -> str:
    megabytes, seconds = answer["bytes"] / 1e6, answer["seconds"]
    algorithm = answer["bytes"] / seconds / 1e9
    return (
        f"{gpus} GPUs, {answer['backend'].upper()} {answer['version']}: {megabytes:.0f} MB in {seconds * 1000:.2f} ms, "
        f"algorithm {algorithm:.1f} GB/s, bus {bus_bandwidth(answer['bytes'], seconds, gpus):.1f} GB/s"
    )


def bus_bandwidth(size: int, seconds: float, ranks: int) -> float:
    """GB/s over the slowest link, whatever the number of ranks: 2 (n-1)/n × bytes / time.

    Source: nccl-tests, doc/PERFORMANCE.md, "Bus bandwidth", AllReduce.
    """
    return 2 * (ranks - 1) / ranks * size / seconds / 1e9
