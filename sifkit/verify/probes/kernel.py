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
        "start": _start,
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
    """What an attempt answers (a dict), or why it did not; and the time it took."""
    started, error, found, skipped = time.monotonic(), None, {}, None
    try:
        found = attempt()
    except NotHereError as reason:
        skipped = str(reason)
    except Exception:
        error = traceback.format_exc()
    seconds = time.monotonic() - started
    return {"relative_error": None, "error": error, "skipped": skipped, "seconds": seconds, **found}


class NotHereError(Exception):
    """This GPU or image does not have what is to be tried."""


def _start():
    """Import torch, and start CUDA: the first memory on the GPU makes its context."""
    started = time.monotonic()
    import torch

    imported = time.monotonic()
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    return {"import_seconds": imported - started, "cuda_seconds": time.monotonic() - imported}


def _compared(found, reference):
    """Relative error in the Frobenius norm."""
    return {"relative_error": float((found.double() - reference).norm() / reference.norm())}


SIZES = ((4096, 4096, 4096), (1000, 333, 777))  # one that fills the GPU, one that no tile divides
LARGE = 8192


def _matmul(dtype_name):
    import torch

    if dtype_name == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        raise NotHereError("this GPU has no bfloat16 (compute capability below 8.0): use fp16: true")
    torch.manual_seed(0)
    dtype = getattr(torch, dtype_name)
    errors = [product_error(rows, inner, columns, dtype, "cuda") for rows, inner, columns in SIZES]
    fastest = _teraflops(dtype) if dtype_name == "bfloat16" else None
    # max() lets NaN through only where it stands first; all of them must be seen
    worst = next((error for error in errors if error != error), max(errors))
    return {"relative_error": worst, "size": SIZES[0][0], "teraflops": fastest, "teraflops_size": LARGE}


def product_error(rows, inner, columns, dtype, device):
    """The relative error of `device`'s product of two random matrices."""
    import torch

    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    return error_of(a, b, (a.to(device) @ b.to(device)).cpu())


def error_of(a, b, product):
    """The relative error of `product` against A B in float64 on the CPU, without computing A B.

    Both are multiplied by 8 random vectors (Freivalds' check): C v against A (B v). Every element of C takes
    part, and for normal v the mean of |E v|² is the error's Frobenius norm squared.
    """
    import torch

    vectors = torch.randn(b.shape[1], 8, dtype=torch.float64)
    return _compared(product.double() @ vectors, a.double() @ (b.double() @ vectors))["relative_error"]


def _teraflops(dtype):
    """2 n³ operations a product; the fastest of 3 timings of 5 products each, after one to warm up."""
    import torch

    a, b = (torch.randn(LARGE, LARGE, device="cuda").to(dtype) for _ in range(2))
    out = a @ b
    times = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(5):
            torch.mm(a, b, out=out)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1000 / 5)
    return 2 * LARGE**3 / min(times) / 1e12


def _triton_add():
    import torch
    from triton_add_kernel import add

    a, b = (torch.randn(100_003, device="cuda") for _ in range(2))
    return _compared(add(a, b).cpu(), a.cpu().double() + b.cpu().double())


def _compiled_block():
    import torch

    block = torch.nn.Sequential(
        torch.nn.LayerNorm(64), torch.nn.Linear(64, 128), torch.nn.SiLU(), torch.nn.Linear(128, 64)
    )
    torch.manual_seed(0)
    x = torch.randn(32, 64)
    reference = block.double()(x.double()).detach()
    block = block.float().cuda()
    return _compared(torch.compile(block)(x.cuda()).detach().cpu(), reference)


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

    return _compared(gradient("cuda", dtype), gradient("cpu", torch.float64))


if __name__ == "__main__":
    main(sys.argv[1])
