"""Sum a tensor over all GPUs with NCCL. Runs inside the container, one process for each GPU.

torchrun --standalone --nproc-per-node N allreduce.py ANSWER.json
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


def main(answer_path):
    """Ask, and write the answer."""
    local = int(os.environ["LOCAL_RANK"])
    torch.cuda.set_device(local)
    dist.init_process_group("nccl", timeout=timedelta(minutes=2))
    rank, world = dist.get_rank(), dist.get_world_size()
    tensor = torch.full((ELEMENTS,), float(rank + 1), device="cuda")
    dist.all_reduce(tensor)
    wrong = torch.tensor(float((tensor != world * (world + 1) / 2).sum()), device="cuda")
    dist.all_reduce(wrong)
    torch.cuda.synchronize()
    started = time.monotonic()
    dist.all_reduce(tensor)
    torch.cuda.synchronize()
    seconds = time.monotonic() - started
    if rank == 0:
        answer = {
            "world": world,
            "right": wrong.item() == 0,
            "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
            "gigabytes_per_second": tensor.numel() * 4 / 1e9 / seconds,
        }
        Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
