"""Make a tiny random-weight model that fits a template. Runs inside the container.

    python3 smoke_model.py ANSWER.json TEMPLATE CORPUS.json MODEL_DIR

With an empty TEMPLATE no model is made.

Two layers of width 64, and a BPE tokenizer trained on the corpus whose special tokens are the template's.
The answer also lists the arguments that this LLaMA-Factory knows, and the packages of the image.
"""

import dataclasses
import importlib.metadata
import json
import re
import sys
from pathlib import Path

# Template prefix → (config class, model class) of transformers; the first that fits and exists is taken.
ARCHITECTURES = (
    ("qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
    ("qwen", "Qwen2Config", "Qwen2ForCausalLM"),
    ("gemma", "Gemma2Config", "Gemma2ForCausalLM"),
    ("mistral", "MistralConfig", "MistralForCausalLM"),
    ("ministral", "MistralConfig", "MistralForCausalLM"),
    ("", "LlamaConfig", "LlamaForCausalLM"),
)
SPECIAL = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{2,30}\]")
BOS, EOS = "<s>", "<|endoftext|>"


def main(answer_path, template_name, corpus, model_dir):
    """Ask, and write the answer."""
    answer = {"arguments": _known_arguments(), "packages": _packages()}
    from llamafactory.data.template import TEMPLATES

    if not template_name:
        answer["model"] = "given"
    elif template_name not in TEMPLATES:
        answer["error"] = f"Template {template_name} does not exist."
        answer["templates"] = sorted(TEMPLATES)
    else:
        tokens = _special_tokens(TEMPLATES[template_name])
        tokenizer = _make_tokenizer(corpus, tokens)
        tokenizer.save_pretrained(model_dir)
        model = _make_model(template_name, tokenizer)
        model.save_pretrained(model_dir)
        answer.update(
            architecture=type(model).__name__,
            vocabulary=len(tokenizer),
            special_tokens=tokens,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def _known_arguments():
    from llamafactory.hparams import parser

    return sorted({field.name for kind in parser._TRAIN_ARGS for field in dataclasses.fields(kind)})


def _packages():
    """Installed distributions, by their normalised names (PEP 503)."""
    names = {distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions()}
    return sorted({re.sub(r"[-_.]+", "-", name).lower() for name in names})


def _special_tokens(template):
    """What looks like a token in the template's slots, its stop words, and what its slots name as tokens."""
    texts, named = list(template.stop_words), []
    for field in dataclasses.fields(template):
        for slot in getattr(getattr(template, field.name), "slots", ()):
            if isinstance(slot, str):
                texts.append(slot)
            elif isinstance(slot, dict):
                named.append(slot["token"])
    found = [token for text in texts for token in SPECIAL.findall(text)]
    return list(dict.fromkeys([*named, *template.stop_words, *found]))


def _make_tokenizer(corpus, tokens):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rows = json.loads(Path(corpus).read_text(encoding="utf-8"))
    texts = [str(value) for row in rows for value in row.values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = list(dict.fromkeys([BOS, EOS, *tokens]))
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=4096
    )


def _make_model(template_name, tokenizer):
    import torch
    import transformers

    config_name, model_name = next(
        (config, model)
        for prefix, config, model in ARCHITECTURES
        if template_name.startswith(prefix) and hasattr(transformers, model)
    )
    config = getattr(transformers, config_name)(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    return getattr(transformers, model_name)(config)


if __name__ == "__main__":
    main(*sys.argv[1:])
