"""A small checkout in a temporary directory, with a model, looked at by the real gatherers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sifkit.check.facts import CheckoutFacts, Facts
from sifkit.check.rule import Finding
from sifkit.gather.checkout import gather_checkout
from tests.check import good

ALPACA = [
    {"instruction": "Add 1 and 1.", "input": "", "output": "2"},
    {"instruction": "Hi", "input": "", "output": "Hi!"},
]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "max_position_embeddings": 4096,
}


def safetensors() -> bytes:
    header = b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
    return len(header).to_bytes(8, "little") + header + b"\1\2\3\4"


@dataclass(frozen=True)
class Tree:
    """Its root is a checkout; models lie beside it."""

    root: Path
    models: Path

    def write(self, name: str, content: object) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    def register(self, **entries: Mapping[str, Any]) -> None:
        self.write("data/dataset_info.json", {"alpaca_en_demo": {"file_name": "alpaca_en_demo.json"}, **entries})

    def model(self, name: str = "llama-1b", **changes: Any) -> Path:
        path = self.models / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").write_text(json.dumps({**CONFIG, **changes}))
        (path / "model.safetensors").write_bytes(safetensors())
        (path / "tokenizer.json").write_text("{}")
        return path

    def look(
        self,
        *,
        shared: bool = False,
        environ: Mapping[str, str] | None = None,
        **changes: Any,
    ) -> Facts:
        """Good facts of a good config with some keys changed, but of this checkout."""
        values = {"model_name_or_path": str(self.models / "llama-1b"), **changes}
        config = good.config(**values)
        checkout = self.gather(config.values, shared=shared, environ=environ)
        return good.facts(config=config, checkout=checkout)

    def gather(
        self, values: Mapping[str, Any], *, shared: bool = False, environ: Mapping[str, str] | None = None
    ) -> CheckoutFacts:
        config = replace(good.config(), values=values)
        seen = environ if environ is not None else {"HOME": str(self.root.parent / "home")}
        return gather_checkout(self.root, config, good.IMAGE, shared=shared, environ=seen)


def make_tree(folder: Path) -> Tree:
    tree = Tree(folder / "LLaMA-Factory", folder / "models")
    tree.write("src/llamafactory/extras/env.py", 'VERSION = "0.9.5"\n')
    tree.write("examples/train_lora/qwen3_lora_sft.yaml", "stage: sft\n")
    tree.write("data/alpaca_en_demo.json", ALPACA)
    tree.register()
    tree.model()
    return tree


def register_rows(tree: Tree, rows: object, **entry: Any) -> None:
    """A dataset called mine of these rows, or of this text."""
    tree.write("data/mine.json", rows)
    tree.register(mine={"file_name": "mine.json", **entry})


def one(facts: Facts, code: str) -> Finding:
    """The only finding of a rule."""
    found = good.found(facts, code)
    assert len(found) == 1, found
    return found[0]


def changed(facts: Facts, finding: Finding) -> Facts:
    """With the finding's edit applied to the config."""
    assert finding.edit is not None
    values = {**facts.config.values, finding.edit.key: finding.edit.value}
    return replace(facts, config=good.config({key: value for key, value in values.items() if value is not None}))
