"""Sum a tensor over all ranks, and time it. Runs inside the container, one process for each GPU.

torchrun --standalone --nproc-per-node N allreduce.py ANSWER.json [nccl|gloo] [ELEMENTS]

gloo computes on the CPU: the same sum without a GPU.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

ELEMENTS = 64 * 1024 * 1024  # 256 MB of float32
WARM_UPS, REPETITIONS = 3, 10
PATTERN = 251  # a prime: an element that went to another place has another value


def main(answer_path, backend="nccl", elements=ELEMENTS):
    """Each rank judges its own sum and says so in a file of its own; rank 0 puts them together."""
    device = _device(backend)
    dist.init_process_group(backend, timeout=timedelta(minutes=2))
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {"rank": rank, "device": _identity(device, rank), "wrong": _wrong_elements(rank, world, elements, device)}
    mine["seconds"] = _seconds_each(elements, device)
    _said(answer_path, rank).write_text(json.dumps(mine), encoding="utf-8")
    dist.barrier()
    if rank == 0:
        ranks = [json.loads(_said(answer_path, r).read_text()) for r in range(world) if _said(answer_path, r).is_file()]
        answer = {
            "world": world,
            "backend": backend,
            "version": _version(backend),
            "elements": elements,
            "bytes": elements * 4,
            "seconds": max(one["seconds"] for one in ranks),  # a collective ends when its last rank does
            "repetitions": REPETITIONS,
            "ranks": ranks,
        }
        Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")
    dist.destroy_process_group()


def _said(answer_path, rank):
    return Path(f"{answer_path}.rank-{rank}")


def _device(backend):
    if backend == "gloo":
        return torch.device("cpu")
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _identity(device, rank):
    """What tells this rank's device from the others'."""
    if device.type == "cpu":
        return f"process {rank}"
    properties = torch.cuda.get_device_properties(device)
    return str(getattr(properties, "uuid", f"cuda:{device.index}"))  # the UUID since torch 2.4


def _version(backend):
    return ".".join(str(part) for part in torch.cuda.nccl.version()) if backend == "nccl" else torch.__version__


def _wrong_elements(rank, world, elements, device):
    """How many elements of the sum are not exactly what they should be; small whole numbers have no rounding."""
    pattern = torch.arange(elements, device=device, dtype=torch.int32).remainder_(PATTERN).float()
    tensor = pattern * (rank + 1)
    dist.all_reduce(tensor)
    return int((tensor != pattern * (world * (world + 1) // 2)).sum())


def _seconds_each(elements, device):
    tensor = torch.zeros(elements, device=device)
    for _ in range(WARM_UPS):
        dist.all_reduce(tensor)
    _wait(device)
    dist.barrier()
    _wait(device)
    started = time.monotonic()
    for _ in range(REPETITIONS):
        dist.all_reduce(tensor)
    _wait(device)
    return (time.monotonic() - started) / REPETITIONS


def _wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main(*sys.argv[1:3], *(int(word) for word in sys.argv[3:4]))
