"""Make Llamas of given sizes with random weights, and a tokenizer as the smoke model's. Runs inside the container.

python3 sized_models.py ANSWER.json TEMPLATE CORPUS.json DIRECTORY SIZES.json     # SIZES: LlamaConfig's words by name
"""

import json
import sys
from pathlib import Path

import smoke_model


def main(answer_path, template, corpus, directory, sizes):
    """Each into DIRECTORY/NAME, made on the GPU where there is one."""
    import torch
    from llamafactory.data.template import TEMPLATES
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = smoke_model._make_tokenizer(corpus, smoke_model._special_tokens(TEMPLATES[template]))
    answer = {}
    for name, words in json.loads(Path(sizes).read_text(encoding="utf-8")).items():
        config = LlamaConfig(
            max_position_embeddings=16384,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **words,
        )
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
        model.save_pretrained(f"{directory}/{name}")
        tokenizer.save_pretrained(f"{directory}/{name}")
        answer[name] = sum(parameter.numel() for parameter in model.parameters())
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
