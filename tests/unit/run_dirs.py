"""Output directories as runs leave them, made without a run; tests/image/test_run_dirs_real.py has real ones."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TOKENIZER = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")
OLD = 1_700_000_000.0  # seconds since the epoch: long ago


def png() -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b"")


def safetensors(values: bytes = bytes(8)) -> bytes:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    return len(header).to_bytes(8, "little") + header + values


def write(path: Path, content: bytes | str | None = None) -> Path:
    """A file of its kind with the least that is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if content is None and path.suffix in (".bin", ".pt", ".pth"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("data.pkl", b"")
        return path
    content = {".png": png(), ".safetensors": safetensors()}.get(path.suffix, b"{}\n") if content is None else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def state(step: int, most: int = 6, **more: Any) -> str:
    history = [{"step": each, "loss": 7.0 - each / 100, "grad_norm": 0.4} for each in range(1, step + 1)]
    values = {"global_step": step, "max_steps": most, "log_history": history, "best_model_checkpoint": None, **more}
    return json.dumps(values, indent=2, sort_keys=True)


def rows(steps: Iterable[int], most: int = 6, **more: Any) -> str:
    lines = [
        {
            "current_steps": step,
            "total_steps": most,
            "loss": 7.0 - step / 100,
            "elapsed_time": f"0:00:{step:02d}",
            **more,
        }
        for step in steps
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def weights(lora: bool) -> tuple[str, ...]:
    return (
        ("adapter_config.json", "adapter_model.safetensors")
        if lora
        else ("config.json", "generation_config.json", "model.safetensors")
    )


def write_checkpoint(directory: Path, step: int, *, lora: bool = True, **more: Any) -> Path:
    path = directory / f"checkpoint-{step}"
    for name in (*weights(lora), *TOKENIZER, "optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        write(path / name)
    if lora:
        write(path / "adapter_config.json", '{"peft_type": "LORA"}')
        write(path / "README.md", "---\ntags:\n- lora\n---\n")
    write(path / "trainer_state.json", state(step, **more))
    return path


def write_finished(directory: Path, *, lora: bool = True, **more: Any) -> Path:
    """A run of six steps that evaluated at 3 and 6, to its end."""
    write_unfinished(directory, lora=lora, **more)
    names = ("train_results.json", "training_args.bin", "training_loss.png", "training_eval_loss.png")
    for name in (*weights(lora), *TOKENIZER, *names):
        write(directory / name)
    if lora:
        write(directory / "adapter_config.json", '{"peft_type": "LORA"}')
    write(directory / "README.md", f"---\ntags:\n- llama-factory\n- {'lora' if lora else 'full'}\n---\n")
    write(
        directory / "train_results.json", '{"train_loss": 6.9, "train_runtime": 61.0, "train_samples_per_second": 3.5}'
    )
    write(directory / "eval_results.json", '{"eval_loss": 6.8}')
    write(directory / "all_results.json", '{"train_loss": 6.9, "train_runtime": 61.0, "eval_loss": 6.8}')
    write(directory / "trainer_state.json", state(6, **more))
    return directory


def write_unfinished(directory: Path, *, lora: bool = True, steps: int = 6, **more: Any) -> Path:
    """A run that was stopped after its checkpoint at 6."""
    for step in (3, 6):
        write_checkpoint(directory, step, lora=lora, **more)
    write(directory / "trainer_log.jsonl", rows(range(1, steps + 1)))
    return directory


def age(directory: Path, modified: float = OLD) -> Path:
    """Every file as if written long ago."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            os.utime(path, (modified, modified))
    return directory


def tree(directory: Path) -> set[str]:
    """Every name below it."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}
