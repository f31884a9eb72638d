"""Make a Llama of random weights, with a tokenizer as the smoke model's. Runs inside the container.

python3 big_model.py ANSWER.json TEMPLATE CORPUS.json MODEL_DIR SIZE     # SIZE: billion, or small for trying this out
"""

import json
import sys
from pathlib import Path

import smoke_model

SIZES = {
    # As Llama 3.2 1B, but for its vocabulary.
    "billion": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "small": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


def main(answer_path, template, corpus, model_dir, size):
    """Make it on the GPU where there is one, in the type in which it is trained."""
    import torch
    from llamafactory.data.template import TEMPLATES
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = smoke_model._make_tokenizer(corpus, smoke_model._special_tokens(TEMPLATES[template]))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES[size],
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    Path(answer_path).write_text(json.dumps({"parameters": parameters}), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
