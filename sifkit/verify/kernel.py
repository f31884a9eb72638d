"""Level kernel: does the GPU compute what it should, through each way that training uses? Needs a GPU."""

from __future__ import annotations

import re
from typing import Any

from sifkit.causes import find_cause
from sifkit.verify.checks import Check, Level, failed, failed_because, not_run, passed, timed

# Largest relative error (Frobenius norm) of a 1024×1024 product against float64. bfloat16 keeps 8 bits of
# mantissa (2⁻⁹ ≈ 0.002 for each rounding), TF32 10, float32 23; an error in the hardware or a wrong kernel is ≫.
_TOLERANCES = {"bfloat16": 0.02, "float32": 0.002}

_TITLES = {
    "matmul_bfloat16": "bf16 matmul",
    "matmul_float32": "fp32 matmul",
    "triton": "Triton kernel",
    "compile": "torch.compile",
    "backward": "attention, forward and backward",
}


def judge_kernels(answer: dict[str, Any]) -> tuple[Check, ...]:
    """One check for each thing that probes/kernel.py tried; what it did not reach has failed."""
    return tuple(_judge_one(title, answer.get(key)) for key, title in _TITLES.items())


def _judge_one(title: str, tried: dict[str, Any] | None) -> Check:
    if tried is None:
        return failed(Level.KERNEL, title, "no answer", "the probe died before it", "read kernel.log")
    if tried.get("skipped"):
        return not_run(Level.KERNEL, title, tried["skipped"])
    if tried["error"]:
        check = failed_because(Level.KERNEL, title, headline(tried["error"]), find_cause(tried["error"], "run"))
    elif not tried["relative_error"] <= tolerance(title):
        cause = "the GPU computes wrongly: defective hardware, or a kernel of another architecture"
        check = failed(
            Level.KERNEL, title, f"relative error {tried['relative_error']:.2g}", cause, "look at dmesg for Xid errors"
        )
    else:
        check = passed(Level.KERNEL, title, f"relative error {tried['relative_error']:.2g}")
    return timed(check, tried["seconds"])


def headline(traceback: str) -> str:
    """The line of a traceback that names the exception; some say advice after it."""
    lines = traceback.strip().splitlines()
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    return (named or lines)[-1]


def tolerance(title: str) -> float:
    """The largest relative error that is rounding."""
    return _TOLERANCES["float32"] if "fp32" in title or "Triton" in title else _TOLERANCES["bfloat16"]


def judge_all_reduce(answer: dict[str, Any] | None, said: str, gpus: int) -> Check:
    """The sum over all ranks was right on every rank; one GPU has nobody to talk to."""
    name = "NCCL all-reduce"
    if gpus < 2:
        return not_run(Level.KERNEL, name, "one GPU only")
    if answer is None:
        return failed_because(
            Level.KERNEL, name, said.strip().splitlines()[-1] if said.strip() else "no answer", find_cause(said, "run")
        )
    if answer["world"] != gpus or not answer["right"]:
        cause = "the ranks did not agree on the sum"
        return failed(
            Level.KERNEL, name, f"{answer['world']} of {gpus} ranks", cause, "NCCL_DEBUG=INFO shows the transport"
        )
    return passed(Level.KERNEL, name, f"{gpus} GPUs, NCCL {answer['nccl']}, {answer['gigabytes_per_second']:.0f} GB/s")
