"""Which rank computed where: read from LLaMA-Factory's log, held against what NVML saw."""

from __future__ import annotations

import re

from sifkit.verify.checks import Check, Level, failed, passed
from sifkit.verify.nvml import GpuUse
from sifkit.verify.outputs import RunOutputs
from sifkit.verify.smoke import WORST_STEPS

_RANK = re.compile(r"[Pp]rocess rank: (\d+),.*?\bdevice: ([\w:]+)")


def devices_in_log(text: str) -> dict[int, str]:
    """Where LLaMA-Factory says that each rank computes. Source: hparams/parser.py, get_train_args, 0.9.1 to 0.9.5."""
    return {int(rank): device for rank, device in _RANK.findall(text)}


def judge_devices(devices: dict[int, str], gpus: tuple[int, ...], use: GpuUse) -> Check:
    """The work was done where it was asked for: each rank on a GPU of its own, whose memory grew.

    `gpus`: indices on the host, one for each rank; none when the CPU was asked for.
    """
    name = (
        "trained on the CPU" if not gpus else "trained on the GPU" if len(gpus) == 1 else f"trained on {len(gpus)} GPUs"
    )
    if 0 not in devices:
        cause = "this LLaMA-Factory logs otherwise"
        return failed(Level.TRAIN, name, "the log names no device", cause, "read train.log")
    listed = ", ".join(
        f"rank {rank}: {device}" if len(devices) > 1 else device for rank, device in sorted(devices.items())
    )
    kind = "cuda" if gpus else "cpu"
    if not all(device.startswith(kind) for device in devices.values()):
        cause = "the GPU did not reach the container: --nv or the allocation is missing"
        return failed(Level.TRAIN, name, listed, cause, "check the job's --gres and CUDA_VISIBLE_DEVICES")
    if not gpus:
        return passed(Level.TRAIN, name, listed)
    if len(set(devices.values())) != len(gpus):
        cause = f"{len(gpus)} ranks were to train, each on a GPU of its own"
        return failed(Level.TRAIN, name, listed, cause, "read train.log; check NPROC_PER_NODE and CUDA_VISIBLE_DEVICES")
    return _judge_growth(name, listed, use)


def _judge_growth(name: str, listed: str, use: GpuUse) -> Check:
    """CUDA itself takes some hundred MB of each GPU that is used."""
    grown = use.grown_gb()
    amounts = ", ".join(f"{amount:.1f}" for amount in grown.values())
    said = f"{listed}; {amounts} GB more memory used, utilisation up to {use.peak_utilisation} %"
    if not grown or min(grown.values()) < 0.1:
        cause = "a GPU's memory did not grow while the log speaks of cuda: another GPU was used"
        return failed(Level.TRAIN, name, said, cause, "check CUDA_VISIBLE_DEVICES and MIG")
    return passed(Level.TRAIN, name, said)


def judge_zero(found: RunOutputs, log: str, ranks: int) -> Check:
    """ZeRO-3 did its steps, on every rank."""
    name = "zero"
    if found.global_step != WORST_STEPS or found.train_loss is None:
        said = f"ended at step {found.global_step}, not {WORST_STEPS}"
        return failed(Level.TRAIN, name, said, "training stopped early", "read zero.log")
    devices = devices_in_log(log)
    if len(set(devices.values())) != ranks:
        said = f"{len(devices)} ranks of {ranks}"
        return failed(Level.TRAIN, name, said, "not every rank has a GPU of its own", "read zero.log")
    return passed(Level.TRAIN, name, f"{ranks} ranks, loss {found.train_loss:.3f}")
