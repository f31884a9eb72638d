"""Is a file whole? Judged by its content, without running anything in it and without holding it in memory."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

PNG = b"\x89PNG\r\n\x1a\n"
MAX_JSON = 16 << 20  # bytes parsed as one JSON text; a trainer_state.json grows with every logged step
MAX_LINE = 64 << 20  # bytes of one line of a .jsonl
MAX_HEADER = 100_000_000  # bytes: safetensors' own limit (safetensors/src/tensor.rs, MAX_HEADER_SIZE)
_CHUNK = 1 << 20


def fault_of(path: Path) -> str | None:
    """What is wrong with a file, as far as its kind can be checked without running anything in it."""
    if path.stat().st_size == 0:
        return "is empty"
    match path.suffix:
        case ".json":
            return _json_file_fault(path)
        case ".jsonl":
            return _jsonl_fault(path)
        case ".png":
            with path.open("rb") as file:
                return None if _is_png(file) else "is no whole PNG image"
        case ".bin" | ".pt" | ".pth":
            return None if zipfile.is_zipfile(path) else "is no file of torch.save"
        case ".safetensors":
            return _safetensors_fault(path)
        case _:
            return None


def json_fault(text: str | bytes) -> str | None:
    """Why a text is not JSON; None when it is. NaN and Infinity, which Python writes, are taken."""
    try:
        json.loads(text)
    except UnicodeDecodeError:
        return "is not JSON: it is no UTF-8"
    except ValueError as error:
        return f"is not JSON: {error}"
    except RecursionError:
        return "is not JSON: it is nested too deeply"
    return None


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when it is missing, malformed or no object, which `fault_of` tells."""
    try:
        if path.stat().st_size > MAX_JSON:
            return {}
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json_file_fault(path: Path) -> str | None:
    if path.stat().st_size <= MAX_JSON:
        return json_fault(path.read_bytes())
    return _large_json_fault(path)


def _large_json_fault(path: Path) -> str | None:
    """Of a text too large to be parsed here: cut off, it lacks its last bracket; after a crash it has holes."""
    end = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            if b"\0" in chunk:
                return "is not JSON: it holds zero bytes"
            end = (end + chunk)[-64:]
    return None if end.rstrip()[-1:] in (b"}", b"]") else "is not JSON: it is cut off"


def _jsonl_fault(path: Path) -> str | None:
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=1):
            if len(line) >= MAX_LINE:
                return f"is not JSON: line {number} has more than {MAX_LINE >> 20} MiB"
            if fault := json_fault(line):
                return f"{fault} (file line {number})"
    return None


def _is_png(file: IO[bytes]) -> bool:
    """A PNG whose chunks are whole to the end, each with the right checksum (PNG specification, section 5)."""
    if file.read(len(PNG)) != PNG:
        return False
    while len(head := file.read(8)) == 8:
        (length,) = struct.unpack(">I", head[:4])
        checksum, left = zlib.crc32(head[4:]), length
        while left and (part := file.read(min(left, _CHUNK))):
            checksum, left = zlib.crc32(part, checksum), left - len(part)
        if left or file.read(4) != struct.pack(">I", checksum):
            return False
        if head[4:] == b"IEND":
            return True
    return False


def _safetensors_fault(path: Path) -> str | None:
    """The header is whole and the file has the bytes that it announces (safetensors, "Format")."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else -1
        if not 2 <= length <= size - 8:
            return "is cut off"
        header = file.read(length) if length <= MAX_HEADER else b""
    try:
        tensors = {name: value for name, value in json.loads(header).items() if name != "__metadata__"}
        end = max((value["data_offsets"][1] for value in tensors.values()), default=0)
        return None if size == 8 + length + end else "is cut off"
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return "has no safetensors header"
