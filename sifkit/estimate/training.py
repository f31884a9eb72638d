"""What a run trains, and in which numbers: what memory and disk follow from. Pure but for the table it reads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from typing_extensions import assert_never

from sifkit import yamlfile
from sifkit.estimate.model import Linear, Shape, Value, freeze, lora, oft, targets
from sifkit.estimate.settings import Half, Method, Settings, Unknown
from sifkit.model import Strict

_TABLE = Path(__file__).parent.parent / "data" / "memory.yaml"

FLOAT, SHORT = 4, 2  # bytes of a number


class Optimizer(Strict):
    """What an optimizer keeps for each number that is trained."""

    names: tuple[str, ...]
    states: int
    bytes: Literal["own", "1", "4"]
    embedding_bytes: int | None = None
    step: int = 0  # numbers that a step takes beside them
    paged: bool = False
    source: str


class Measured(Strict):
    """What every process takes, as measured."""

    context: int  # bytes: CUDA, its libraries and kernels
    nccl: int  # bytes more with several processes
    slack: float  # part of what is allocated that the allocator holds beyond it, whatever the run is
    workspace: int  # bytes of tensors that cuBLAS works in
    source: str


class _Table(Strict):
    optimizers: tuple[Optimizer, ...]
    measured: Measured


@cache
def _table() -> _Table:
    return yamlfile.load_own(_TABLE, _Table)


def measured() -> Measured:
    """The constants that come from measuring."""
    return _table().measured


def known_optimizer(name: str) -> Optimizer | None:
    """By LLaMA-Factory's `optim`."""
    return next((row for row in _table().optimizers if name in row.names), None)


@dataclass(frozen=True)
class Trained:
    """What is trained, in numbers."""

    count: int
    embeddings: int  # of them, in embeddings: some optimizers keep more for those
    layers: int  # that gradients pass
    adapted: tuple[Linear, ...] | None  # that have an adapter; None: whole matrices are trained
    frozen: int


def trained(settings: Settings, shape: Shape, value: Value) -> Trained | Unknown:
    """How much is trained. Source: LLaMA-Factory 0.9.5 model/adapter.py."""
    match settings.method:
        case Method.FULL:
            return Trained(shape.text, shape.embeddings, shape.layers, None, shape.vision)
        case Method.FREEZE:
            layers = freeze(shape, value)
            if layers is None:
                return Unknown("freeze_trainable_modules or freeze_extra_modules name single modules")
            return Trained(layers[0], 0, layers[1], None, shape.total - layers[0])
        case Method.LORA | Method.OFT:
            is_lora = settings.method is Method.LORA
            count = (lora if is_lora else oft)(shape, value)
            adapted = targets(shape, value("lora_target" if is_lora else "oft_target"))
            if count is None or adapted is None:
                return Unknown("the modules that get an adapter are not known of this model")
            whole = min(count, shape.embeddings) if value("additional_target") else 0
            return Trained(count, whole, shape.layers, adapted, shape.total)
        case _:
            assert_never(settings.method)


@dataclass(frozen=True)
class Run:
    """All that the sizes follow from."""

    settings: Settings
    shape: Shape
    trained: Trained
    optimizer: Optimizer
    processes: int
    stored: int  # bytes of a number in the model's files

    @property
    def number(self) -> int:
        """Bytes of a number while computing."""
        whole = self.settings.method in (Method.FULL, Method.FREEZE)
        if self.settings.half is Half.NONE:
            return FLOAT if whole else self.stored
        return SHORT

    @property
    def stream(self) -> int:
        """Bytes of a number between layers: autocast leaves it in the embedding's type."""
        fp32 = self.settings.half is Half.MIXED and self.settings.method is Method.FULL and not self._casts_all
        return FLOAT if fp32 else self.number

    @property
    def _casts_all(self) -> bool:
        """DeepSpeed and FSDP cast the model itself, and leave nothing to autocast."""
        return self.settings.sharding.deepspeed or self.settings.sharding.fsdp

    @property
    def own(self) -> int:
        """Bytes of a trained number as the optimizer gets it."""
        return self.stored if self.settings.half is Half.PURE else FLOAT

    @property
    def copies(self) -> int:
        """Bytes of weights that autocast copies into half precision, and keeps until the forward pass ends."""
        if self.settings.half is not Half.MIXED or self._casts_all:
            return 0
        if self.settings.method is Method.FULL:
            return SHORT * (self.shape.matrices + self.shape.embedding)
        return SHORT * self.trained.count

    @property
    def gradient(self) -> int:
        """Bytes of a gradient's number."""
        return SHORT if self._casts_all and self.settings.half is not Half.NONE else self.own
