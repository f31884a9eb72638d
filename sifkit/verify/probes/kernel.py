"""Compute on the GPU in each way that training does, and compare with float64. Runs inside the container.

python3 kernel.py ANSWER.json
"""

import json
import sys
import time
import traceback
from pathlib import Path


def main(answer_path):
    """Ask, and write the answer."""
    answer = {}
    tries = {
        "matmul_bfloat16": lambda: _matmul("bfloat16"),
        "matmul_float32": lambda: _matmul("float32"),
        "triton": _triton_add,
        "compile": _compiled_block,
        "backward": _attention,
    }
    for name, attempt in tries.items():
        answer[name] = _tried(attempt)
        partial = Path(answer_path + ".partial")
        partial.write_text(json.dumps(answer), encoding="utf-8")
        partial.replace(answer_path)


def _tried(attempt):
    started, error, relative, skipped = time.monotonic(), None, None, None
    try:
        relative = attempt()
    except NotHereError as reason:
        skipped = str(reason)
    except Exception:
        error = traceback.format_exc()
    return {"relative_error": relative, "error": error, "skipped": skipped, "seconds": time.monotonic() - started}


class NotHereError(Exception):
    """This GPU or image does not have what is to be tried."""


def _relative_error(found, reference):
    return float((found.double() - reference).norm() / reference.norm())


def _matmul(dtype_name):
    import torch

    if dtype_name == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        raise NotHereError("this GPU has no bfloat16 (compute capability below 8.0): use fp16: true")
    torch.manual_seed(0)
    a, b = (torch.randn(1024, 1024, dtype=torch.float64) for _ in range(2))
    dtype = getattr(torch, dtype_name)
    found = a.to("cuda", dtype) @ b.to("cuda", dtype)
    return _relative_error(found.cpu(), a.to(dtype).double() @ b.to(dtype).double())


def _triton_add():
    import torch
    from triton_add_kernel import add

    a, b = (torch.randn(100_003, device="cuda") for _ in range(2))
    return _relative_error(add(a, b).cpu(), a.cpu().double() + b.cpu().double())


def _compiled_block():
    import torch

    block = torch.nn.Sequential(
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64)
    )
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    reference = block.double()(x.double()).detach()
    block = block.float().cuda()
    return _relative_error(torch.compile(block)(x.cuda()).detach().cpu(), reference)


def _attention():
    """Forward and gradient of scaled dot-product attention, in the dtype that this GPU trains in."""
    import torch
    import torch.nn.functional as functional

    dtype = torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 4, 128, 64, dtype=dtype) for _ in range(3))

    def gradient(device, kind):
        inputs = [tensor.to(device, kind).detach().requires_grad_() for tensor in (q, k, v)]
        functional.scaled_dot_product_attention(*inputs, is_causal=True).square().sum().backward()
        return torch.cat([tensor.grad.flatten().double().cpu() for tensor in inputs])

    return _relative_error(gradient("cuda", dtype), gradient("cpu", torch.float64))


if __name__ == "__main__":
    main(sys.argv[1])
