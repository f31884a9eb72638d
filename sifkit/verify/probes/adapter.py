"""Load what a run wrote, look at its tensors, and generate. Runs inside the container.

python3 adapter.py ANSWER.json MODEL_DIR OUTPUT_DIR lora|full cpu|cuda
"""

import json
import sys
from pathlib import Path


def main(answer_path, model_dir, output_dir, kind, device):
    """Ask, and write the answer."""
    answer = {"tensors": _tensors(output_dir, kind)}
    answer.update(_generation(model_dir, output_dir, kind, device))
    Path(answer_path).write_text(json.dumps(answer), encoding="utf-8")


def _tensors(output_dir, kind):
    """Over all files: how many tensors, which are not finite, how many lora_B are zero, the largest value."""
    import torch
    from safetensors import safe_open

    pattern = "adapter_model.safetensors" if kind == "lora" else "model*.safetensors"
    counts = {"all": 0, "not_finite": [], "lora_b": 0, "lora_b_zero": 0, "largest": 0.0}
    for path in sorted(Path(output_dir).glob(pattern)):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_tensor(name)
                counts["all"] += 1
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    counts["not_finite"].append(name)
                elif tensor.is_floating_point() and tensor.numel():
                    counts["largest"] = max(counts["largest"], float(tensor.abs().max()))
                if "lora_B" in name:
                    counts["lora_b"] += 1
                    counts["lora_b_zero"] += int(not tensor.any())
    return counts


def _generation(model_dir, output_dir, kind, device):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(output_dir)
    model = AutoModelForCausalLM.from_pretrained(output_dir if kind == "full" else model_dir).to(device).eval()
    prompt = tokenizer("Hello, who are you?", return_tensors="pt", add_special_tokens=False)
    prompt = {name: prompt[name].to(device) for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        before = model(**prompt).logits
        if kind == "lora":
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, output_dir).eval()
        after = model(**prompt).logits
        made = model.generate(**prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    return {
        "finite": bool(torch.isfinite(after).all()),
        "changed": float((after - before).abs().max()),
        "new_tokens": int(made.shape[1] - prompt["input_ids"].shape[1]),
        "device": str(after.device),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
