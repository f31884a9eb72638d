"""What this LLaMA-Factory's own parser says of training YAMLs. Runs inside the container.

    python3 parse.py ANSWER.json CASES.jsonl [DIRECTORY]

Relative paths in them count from DIRECTORY. A line of CASES: {"text": the YAML, "overrides": ["KEY=VALUE"],
"device": {"gpu": true, "tf32": true, "gpus": 1, "distributed": false}}. The answer holds a verdict a line, in order:
{"accepts", "raised", "text"}; "died" as raised: it ended without one.

Each is parsed as `llamafactory-cli train FILE.yaml KEY=VALUE` does, in a child of its own, since the parser leaves
state behind: accelerate's PartialState, the DeepSpeed config, the environment. A GPU is pretended in torch itself, by
the functions through which transformers, accelerate and LLaMA-Factory ask for one (`pretend_gpu`), and nowhere else.
"""

import json
import os
import signal
import sys
import tempfile
import types

CHILDREN = len(os.sched_getaffinity(0))
LONGEST = 2000  # characters of an exception's text
SECONDS = 120  # after which a child that hangs is ended: torch's threads do not survive a fork


def main(answer_path, cases_path, directory="."):
    """Judge every case, and write the verdicts."""
    with open(cases_path, encoding="utf-8") as file:
        cases = [json.loads(line) for line in file]
    os.chdir(directory)
    from llamafactory.hparams import parser  # once, in the parent: it takes seconds

    verdicts = [None] * len(cases)
    running = {}
    for index, case in enumerate(cases):
        while len(running) >= CHILDREN:
            collect(running, verdicts)
        start(index, case, parser, running)
    while running:
        collect(running, verdicts)
    with open(answer_path, "w", encoding="utf-8") as file:
        json.dump({"verdicts": verdicts}, file)


def start(index, case, parser, running):
    """A child for one case."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        running[pid] = (index, reading)
        return
    os.close(reading)
    signal.alarm(SECONDS)
    try:
        quiet()
        answer = judge(case, parser)
        os.write(writing, json.dumps(answer).encode())
    finally:
        os._exit(0)


def collect(running, verdicts):
    """The verdict of a child that has ended."""
    pid, status = os.wait()
    index, reading = running.pop(pid)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    died = {"accepts": False, "raised": "died", "text": f"status {status}"}
    verdicts[index] = json.loads(answer) if answer else died


def quiet():
    """What the parser logs is of no interest."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def judge(case, parser):
    """One verdict. Nothing that the parser raises, SystemExit among it, gets out."""
    pretend(case["device"])
    handle, path = tempfile.mkstemp(suffix=".yaml")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(case["text"].encode("utf-8", "surrogatepass"))
        sys.argv = ["llamafactory-cli", path, *case["overrides"]]
        parser.get_train_args(parser.read_args())
    except BaseException as error:
        return {"accepts": False, "raised": type(error).__name__, "text": str(error)[:LONGEST]}
    finally:
        os.unlink(path)
    return {"accepts": True, "raised": None, "text": ""}


def pretend(device):
    """The device that the case is to be judged for."""
    if device["gpu"]:
        pretend_gpu(device.get("gpus", 1), device.get("tf32", True))
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if device.get("distributed"):
        pretend_torchrun()
    forget_answers()


def pretend_gpu(count, tf32):
    """torch.cuda, as far as parsers ask it. bf16 is supported by every GPU that torch knows: it counts emulation."""
    from torch import cuda

    properties = types.SimpleNamespace(major=8 if tf32 else 7, minor=0, name="GPU", total_memory=80 * 2**30)
    for name, answer in {
        "is_available": True,
        "is_bf16_supported": True,
        "device_count": count,
        "current_device": 0,
        "set_device": None,
        "get_device_name": "GPU",
        "get_device_capability": (properties.major, 0),
        "get_device_properties": properties,
    }.items():
        setattr(cuda, name, lambda *_, _answer=answer, **__: _answer)


def pretend_torchrun():
    """The environment of torchrun's only process; NCCL needs a GPU, gloo does not."""
    import torch.distributed as dist

    fixed = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    os.environ.update(fixed, MASTER_PORT="0")
    real = dist.init_process_group

    def instead(backend=None, **words):
        store = dist.HashStore()
        return real(
            "gloo" if str(backend).lower() == "nccl" else backend,
            **{**words, "store": store, "rank": 0, "world_size": 1},
        )

    dist.init_process_group = instead


def forget_answers():
    """transformers 5 remembers what it asked of torch when it was imported."""
    from transformers.utils import import_utils

    for name in ("is_torch_cuda_available", "is_torch_bf16_gpu_available", "is_torch_tf32_available"):
        getattr(getattr(import_utils, name), "cache_clear", lambda: None)()


if __name__ == "__main__":
    main(*sys.argv[1:])
