"""Runs inside an image, in a checkout: load each dataset as a training would, and say how that ends.

python3 load_datasets.py CASES.json ANSWER.json
"""

# mypy: ignore-errors
import contextlib
import io
import json
import logging
import sys
from pathlib import Path

import datasets
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments, ModelArguments
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Seq2SeqTrainingArguments


def tokenizer():
    """One of single bytes, with the special tokens of the template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["a"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=special[0], eos_token=special[-1], pad_token=special[-1]
    )


def outcome(case, tokens):
    """None where it loads."""
    try:
        data = DataArguments(
            template="llama3", dataset=case["dataset"], dataset_dir=case["dataset_dir"], overwrite_cache=True
        )
        template = get_template_and_fix_tokenizer(tokens, data)
        model = ModelArguments(model_name_or_path="none", cache_dir="/out/cache")
        training = Seq2SeqTrainingArguments(output_dir="/out/none", use_cpu=True, report_to="none")
        with contextlib.redirect_stdout(io.StringIO()):
            stage = "rm" if case["stage"] == "dpo" else case["stage"]  # train/dpo/workflow.py
            get_dataset(template, model, data, training, stage=stage, tokenizer=tokens, processor=None)
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def main(cases, answer):
    """Every case, one after the other."""
    logging.disable(logging.CRITICAL)
    datasets.disable_progress_bars()
    tokens = tokenizer()
    said = [outcome(case, tokens) for case in json.loads(Path(cases).read_text(encoding="utf-8"))]
    Path(answer).write_text(json.dumps(said), encoding="utf-8")


main(*sys.argv[1:])
