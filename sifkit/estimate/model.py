"""How many parameters a model has, and in which matrices, from its config.json. Pure but for the table it reads.

Exact for the decoder models of sifkit/data/estimate.yaml; of others nothing is said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sifkit import yamlfile
from sifkit.estimate.numbers import is_count
from sifkit.model import Strict

Value = Callable[[str], Any]  # a key's value: the config's, else the image's default, else None

_TABLE = Path(__file__).parent.parent / "data" / "estimate.yaml"
_MOST_LAYERS = 10_000


class _Experts(Strict):
    """Of a mixture of experts: the keys that say how many and how wide."""

    count: str
    size: str
    shared: str | None = None
    bias: bool = False
    matrices: tuple[str, ...]
    router: str


class _Architecture(Strict):
    """How one family of decoders is built."""

    qkv_bias: str = "no"
    o_bias: str = "no"
    mlp_bias: str = "no"
    fused_qkv: bool = False
    fused_gate_up: bool = False
    norms: int = 2
    qk_norm: Literal["no", "head", "full"] = "no"
    sinks: bool = False
    experts: _Experts | None = None
    defaults: dict[str, bool | int]
    source: str


class _Table(Strict):
    architectures: dict[str, _Architecture]
    same: dict[str, str]


@cache
def _table() -> _Table:
    return yamlfile.load_own(_TABLE, _Table)


@dataclass(frozen=True)
class Linear:
    """Matrices of one name and size, `count` in the whole model."""

    name: str
    inputs: int
    outputs: int
    count: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Of all of them, biases aside."""
        return self.inputs * self.outputs * self.count

    @property
    def biases(self) -> int:
        """Of all of them."""
        return self.outputs * self.count if self.bias else 0


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes. Counts are of numbers, not bytes."""

    hidden: int
    layers: int
    queries: int  # width of all query heads
    heads: int
    keys: int  # width of all key heads
    wide: int  # width of what one token passes in a layer's MLP
    vocab: int
    tied: bool
    linears: tuple[Linear, ...]
    experts: int  # in matrices that are no Linear of their own
    small: int  # norms, and biases of experts
    vision: int = 0  # the rest of a multimodal model, which LLaMA-Factory leaves frozen

    @property
    def embedding(self) -> int:
        """Of the input; the output's are the same numbers in a tied model."""
        return self.vocab * self.hidden

    @property
    def embeddings(self) -> int:
        """Of both ends."""
        return self.embedding * (1 if self.tied else 2)

    @property
    def matrices(self) -> int:
        """Weights of every Linear but the last, and of experts."""
        return sum(each.weights for each in self.linears) + self.experts

    @property
    def text(self) -> int:
        """Parameters of the language model."""
        return self.matrices + sum(each.biases for each in self.linears) + self.small + self.embeddings

    @property
    def total(self) -> int:
        """All parameters."""
        return self.text + self.vision

    @property
    def layer(self) -> int:
        """Parameters of one layer, on average."""
        return (self.text - self.embeddings - self.hidden) // self.layers


def read_shape(config: Mapping[str, Any], *, fused_experts: bool = True) -> Shape | None:
    """The sizes that a config.json says; None for an architecture that the table does not have, or senseless sizes.

    `fused_experts`: experts are one tensor, as from transformers 5 on; then LoRA does not find them.
    """
    table = _table()
    text = config.get("text_config")
    own = text if isinstance(text, Mapping) else config
    kind = str(own.get("model_type") or config.get("model_type") or "")
    architecture = table.architectures.get(table.same.get(kind, kind))
    if architecture is None:
        return None
    values = {"tie_word_embeddings": config.get("tie_word_embeddings", False), **architecture.defaults}
    values |= {key: value for key, value in own.items() if value is not None}
    try:
        return _shape(architecture, values, fused_experts)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _shape(of: _Architecture, values: Mapping[str, Any], fused_experts: bool) -> Shape:
    hidden, layers, heads = (_size(values, key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    head = _size(values, "head_dim") if values.get("head_dim") else hidden // heads
    groups = _size(values, "num_key_value_heads") if values.get("num_key_value_heads") else heads
    sparse = _sparse_layers(of, values, layers)
    narrow = _size(values, "intermediate_size") if sparse < layers else 0
    linears = [*_attention(of, values, hidden, heads * head, groups * head, layers)]
    linears += _mlp(of, values, hidden, narrow, layers - sparse)
    experts, small, wide = 0, layers * of.norms * hidden + hidden, narrow
    if of.experts and sparse:
        found, experts, biases, wide = _mixture(of.experts, values, hidden, sparse, fused_experts)
        linears += found
        small += biases
    small += layers * _qk_norms(of, head, heads * head, groups * head) + (layers * heads if of.sinks else 0)
    return Shape(
        hidden=hidden,
        layers=layers,
        queries=heads * head,
        heads=heads,
        keys=groups * head,
        wide=max(wide, narrow),
        vocab=_size(values, "vocab_size"),
        tied=values["tie_word_embeddings"] is True,
        linears=tuple(linears),
        experts=experts,
        small=small,
    )


def _size(values: Mapping[str, Any], key: str) -> int:
    """Raises `ValueError` for what is no size."""
    value = values[key]
    if not is_count(value):
        raise ValueError(key)
    return value


def _flag(word: str, values: Mapping[str, Any]) -> bool:
    return word == "yes" or (word != "no" and values.get(word) is True)


def _attention(
    of: _Architecture, values: Mapping[str, Any], hidden: int, queries: int, keys: int, layers: int
) -> Iterable[Linear]:
    bias = _flag(of.qkv_bias, values)
    if of.fused_qkv:
        yield Linear("qkv_proj", hidden, queries + 2 * keys, layers, bias)
    else:
        yield Linear("q_proj", hidden, queries, layers, bias)
        yield Linear("k_proj", hidden, keys, layers, bias)
        yield Linear("v_proj", hidden, keys, layers, bias)
    yield Linear("o_proj", queries, hidden, layers, _flag(of.o_bias, values))


def _mlp(of: _Architecture, values: Mapping[str, Any], hidden: int, wide: int, layers: int) -> Iterable[Linear]:
    if not layers:
        return
    bias = _flag(of.mlp_bias, values)
    if of.fused_gate_up:
        yield Linear("gate_up_proj", hidden, 2 * wide, layers, bias)
    else:
        yield Linear("gate_proj", hidden, wide, layers, bias)
        yield Linear("up_proj", hidden, wide, layers, bias)
    yield Linear("down_proj", wide, hidden, layers, bias)


def _sparse_layers(of: _Architecture, values: Mapping[str, Any], layers: int) -> int:
    """Layers with experts (transformers models/qwen3_moe/modeling_qwen3_moe.py, Qwen3MoeDecoderLayer)."""
    if of.experts is None:
        return 0
    if layers > _MOST_LAYERS:
        raise ValueError("num_hidden_layers")
    dense = values.get("mlp_only_layers") or ()
    step = values.get("decoder_sparse_step") or 1
    return sum(1 for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)


def _mixture(
    of: _Experts, values: Mapping[str, Any], hidden: int, layers: int, fused: bool
) -> tuple[list[Linear], int, int, int]:
    """Linears, weights that are in none, biases, and the width that one token passes."""
    count, size = _size(values, of.count), _size(values, of.size)
    wide = size * _size(values, "num_experts_per_tok")
    linears, loose = [], 0
    if of.shared:
        shared = _size(values, of.shared)
        wide += shared
        linears = [Linear("gate_proj", hidden, shared, layers), Linear("up_proj", hidden, shared, layers)]
        linears += [Linear("down_proj", shared, hidden, layers), Linear("shared_expert_gate", hidden, 1, layers)]
    if fused or not of.matrices:
        loose = layers * (count * 3 * hidden * size + count * hidden)
    else:
        gate, up, down = of.matrices
        linears += [Linear(name, hidden, size, layers * count) for name in (gate, up)]
        linears += [Linear(down, size, hidden, layers * count), Linear(of.router, hidden, count, layers)]
    biases = layers * (count * (2 * size + hidden) + count) if of.bias else 0
    return linears, loose, biases, wide


def _qk_norms(of: _Architecture, head: int, queries: int, keys: int) -> int:
    return {"no": 0, "head": 2 * head, "full": queries + keys}[of.qk_norm]


# ---------------------------------------------------------------------------------------------- what is trained


def words(value: object) -> tuple[str, ...]:
    """Names that LLaMA-Factory takes as a list or as one text with commas."""
    parts = value if isinstance(value, list | tuple) else str(value or "").split(",")
    return tuple(str(part).strip() for part in parts if str(part).strip())


def targets(shape: Shape, value: object) -> tuple[Linear, ...] | None:
    """The matrices that an adapter goes to; None for words that name none of them.

    Source: LLaMA-Factory model/adapter.py, model/model_utils/misc.py find_all_linear_modules: every Linear but lm_head.
    """
    wanted = words(value or "all")
    if wanted == ("all",):
        return shape.linears
    if any(not re.fullmatch(r"\w+", word) for word in wanted):
        return None
    found = tuple(each for each in shape.linears if each.name in wanted)
    return found if {each.name for each in found} == set(wanted) else None


def lora(shape: Shape, value: Value) -> int | None:
    """Parameters that LoRA trains: rank × (inputs + outputs) of each matrix, DoRA's magnitudes, and whole modules of
    additional_target. None where that is not known."""
    found = targets(shape, value("lora_target"))
    rank, whole = value("lora_rank") or 8, _whole_modules(shape, value("additional_target"))
    if found is None or whole is None or not is_count(rank):
        return None
    magnitudes = sum(each.outputs * each.count for each in found) if value("use_dora") is True else 0
    return sum(rank * (each.inputs + each.outputs) * each.count for each in found) + magnitudes + whole


def oft(shape: Shape, value: Value) -> int | None:
    """Parameters that OFT trains: of each matrix, blocks of its inputs, each with b(b-1)/2 numbers.

    None where that is not known. Source: peft 0.18.1 tuners/oft/layer.py, update_layer.
    """
    found, block = targets(shape, value("oft_target")), value("oft_block_size")
    block = 32 if block is None else block
    whole = _whole_modules(shape, value("additional_target"))
    if found is None or whole is None or not is_count(block) or block < 2 or value("oft_rank"):
        return None
    if any(each.inputs % block for each in found):
        return None  # peft takes another size then
    return sum(each.inputs // block * (block * (block - 1) // 2) * each.count for each in found) + whole


def _whole_modules(shape: Shape, value: object) -> int | None:
    """Parameters of additional_target, which are trained whole."""
    known = {"embed_tokens": shape.embedding, "lm_head": shape.embedding}
    known |= {each.name: each.weights + each.biases for each in shape.linears}
    wanted = words(value)
    return sum(known[word] for word in wanted) if all(word in known for word in wanted) else None


def freeze(shape: Shape, value: Value) -> tuple[int, int] | None:
    """Parameters that freeze tuning trains, and in how many layers; None where that is not known."""
    asked = value("freeze_trainable_layers")
    asked = 2 if asked is None else asked
    if not isinstance(asked, int) or words(value("freeze_trainable_modules") or "all") != ("all",):
        return None
    layers = min(abs(asked), shape.layers)
    return None if words(value("freeze_extra_modules")) else (layers * shape.layer, layers)
