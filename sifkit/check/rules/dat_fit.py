"""Models and adapters: fit for what the config asks of them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from pathlib import Path

from sifkit.check.architectures import config_of, known, layers, media_templates, model_of, modules_of, text_config
from sifkit.check.dataset import attributes
from sifkit.check.facts import Facts, Kind
from sifkit.check.places import texts_of
from sifkit.check.rule import Edit, Found, Severity, rule
from sifkit.check.rules.dat import checkout_of, used
from sifkit.check.rules.dat_models import at_least


@rule(
    "DAT015",
    "media-for-a-text-model",
    needs=(Kind.CHECKOUT, Kind.IMAGE),
    prevents="ValueError: This model does not support image input. Please check whether the correct `template` is "
    "used.",
    why="rows with images, videos or audios need a template that takes them, and a model with a processor",
    fix="name a model that reads them and its template, or a dataset without",
    source="llamafactory/data/mm_plugin.py, _validate_input; 0.9.4 and 0.9.5",
)
def media_for_a_text_model(facts: Facts) -> Iterator[Found]:
    """A dataset with images, videos or audios, and a template or a model that takes none."""
    template, image = facts.config.values.get("template"), facts.image
    if facts.value("stage") == "pt" or image is None:  # which reads texts alone
        return
    known = image.llamafactory in media_templates().releases and str(template) in image.templates
    model = model_of(facts)
    blind = model is not None and not {"preprocessor_config.json", "processor_config.json"} & {*model.names}
    for each in used(facts):
        kinds = attributes(each.entry or {}).media
        refused = [kind for kind in kinds if known and template not in media_templates().of(kind)]
        severity = None if each.media & {*refused} else Severity.WARNING
        if refused:
            message = f"{each.key}: {each.name} has {', '.join(refused)}, which template {template} does not take"
            yield Found(message, "a model and template that read them, or another dataset", each.key, severity=severity)
        elif kinds and blind and model is not None:
            message = f"{each.key}: {each.name} has {', '.join(kinds)}, and {model.text} has no processor for them"
            cause = "ValueError: Processor was not found, please check and update your model file."
            fix = "a model that reads them, or another dataset"
            yield Found(message, fix, each.key, cause=cause, severity=Severity.WARNING)


@rule(
    "DAT017",
    "cutoff-beyond-the-model",
    Severity.WARNING,
    needs=(Kind.CHECKOUT,),
    prevents="nothing: the model is trained at positions that it was never made for",
    why="max_position_embeddings of config.json is the longest sequence that a model knows; longer ones want "
    "rope_scaling",
    fix="cutoff_len at most that number, or rope_scaling: yarn",
    source="llamafactory/model/model_utils/rope.py, configure_rope; 0.9.4 and 0.9.5",
)
def cutoff_beyond_the_model(facts: Facts) -> Iterator[Found]:
    """cutoff_len is longer than the model's longest sequence, without rope_scaling."""
    longest, cutoff = text_config(config_of(facts)).get("max_position_embeddings"), facts.value("cutoff_len")
    if not isinstance(longest, int) or not isinstance(cutoff, int) or facts.value("rope_scaling") is not None:
        return
    if cutoff > longest:
        message = f"cutoff_len: {cutoff:,} is longer than the {longest:,} tokens that the model was made for"
        yield Found(message, f"cutoff_len: {longest}, or set rope_scaling: yarn", "cutoff_len")


@rule(
    "DAT018",
    "adapter-of-another-model",
    Severity.WARNING,
    needs=(Kind.CHECKOUT,),
    prevents="RuntimeError: Error(s) in loading state_dict for PeftModelForCausalLM:\n"
    "size mismatch for base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight: copying a param with "
    "shape torch.Size([8, 128]) from checkpoint, the shape in current model is torch.Size([8, 64]).",
    why="an adapter fits the model that it was trained on, which its adapter_config.json names; in another one of the "
    "same size it loads, and makes the answers worse",
    fix="name that model in model_name_or_path, or another adapter",
    source="peft 0.17.1 and 0.18.1, peft_model.py, load_adapter; tried",
)
def adapter_of_another_model(facts: Facts) -> Iterator[Found]:
    """The adapter was trained on another model than the one it is loaded into."""
    name = facts.config.values.get("model_name_or_path")
    for path in checkout_of(facts).at("adapter_name_or_path"):
        base = (path.json or {}).get("base_model_name_or_path")
        if isinstance(base, str) and isinstance(name, str) and base and _last(base) != _last(name):
            message = f"adapter_name_or_path: {path.text} was trained on {base}, not on {name}"
            yield Found(message, f"model_name_or_path: {base}, or name another adapter", "adapter_name_or_path")


def _last(name: str) -> str:
    """The model's own name, of a path, of a name on a hub, or of a snapshot in the hub's cache."""
    parts = Path(name).parts
    of_cache = [part.split("--")[-1] for part in parts if part.startswith("models--")]
    return of_cache[-1] if of_cache else parts[-1] if parts else ""


@rule(
    "DAT022",
    "no-such-module",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Target modules {'c_attn'} not found in the base model. Please check the target modules and "
    "try again.",
    why="lora_target, freeze_trainable_modules and freeze_extra_modules name modules of the model's own architecture; "
    "each has its own names",
    fix="lora_target: all, which takes every linear layer",
    source="peft 0.17.1 and 0.18.1, tuners/tuners_utils.py; llamafactory/model/adapter.py, 0.9.4 and 0.9.5",
)
def no_such_module(facts: Facts) -> Iterator[Found]:
    """lora_target matches no module of this architecture, or freeze tuning names one that is not there."""
    model_type = config_of(facts).get("model_type")
    values, tuning = facts.config.values, facts.value("finetuning_type")
    if tuning == "freeze" and (names := modules_of(model_type)):
        yield from _frozen(facts, "freeze_trainable_modules", names.layer, "the model's layers")
        yield from _frozen(facts, "freeze_extra_modules", names.outside, "the model outside its layers")
    if tuning not in ("lora", "oft") or "lora_target" not in values or (names := modules_of(model_type)) is None:
        return
    targets = list(texts_of(values, "lora_target"))
    plain = [target for target in targets if re.fullmatch(r"\w+", target)]
    if targets and targets == plain and "all" not in plain and not {*plain} & {*names.modules}:
        message = f"lora_target: {', '.join(targets)} is no module of a {model_type}"
        yield Found(message, "lora_target: all", "lora_target", edit=Edit("lora_target", "all"))


def _frozen(facts: Facts, key: str, names: tuple[str, ...], where: str) -> Iterator[Found]:
    choice = (*names, "all") if key == "freeze_trainable_modules" else names
    for name in texts_of(facts.config.values, key):
        if name not in choice:
            near = difflib.get_close_matches(name, names, n=1)
            fix = f"did you mean {near[0]}?" if near else "write all" if "all" in choice else f"{key}: {names[0]}"
            cause = f"ValueError: Module {name} is not found, please choose from {', '.join(names)}"
            yield Found(f"{key}: {name} is no part of {where}: {', '.join(names)}", fix, key, cause=cause)


@rule(
    "DAT023",
    "layers-do-not-divide",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: `num_layers` 32 should be divisible by `num_layer_trainable` 5.",
    why="LLaMA Pro spreads the trained layers evenly over the model",
    fix="freeze_trainable_layers: a divisor of the model's layers",
    source="llamafactory/model/adapter.py and model/model_utils/misc.py, find_expanded_modules; 0.9.4 and 0.9.5",
)
def layers_do_not_divide(facts: Facts) -> Iterator[Found]:
    """use_llama_pro with a freeze_trainable_layers that does not divide the model's layers."""
    count, trained = layers(config_of(facts)), facts.value("freeze_trainable_layers")
    if facts.value("use_llama_pro") is not True or count is None or not isinstance(trained, int) or trained == 0:
        return
    if count % trained != 0:
        divisors = ", ".join(str(each) for each in range(1, count + 1) if count % each == 0)
        message = f"freeze_trainable_layers: {trained} does not divide the model's {count} layers"
        yield Found(message, f"one of {divisors}", "freeze_trainable_layers")


@rule(
    "DAT024",
    "method-not-for-this-model",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Current model is not supported by mixture-of-depth.",
    why="some methods replace code of some architectures alone",
    fix="leave the method out, or use a model of such an architecture",
    source="llamafactory/model/model_utils/mod.py, longlora.py; model/patcher.py, patch_config; 0.9.4 and 0.9.5",
)
def method_not_for_this_model(facts: Facts) -> Iterator[Found]:
    """mixture_of_depths or shift_attn where they do not work; models in another format than transformers' own."""
    config = config_of(facts)
    model_type, named = config.get("model_type"), config.get("architectures")
    architectures = named if isinstance(named, list) else []
    if facts.value("mixture_of_depths") == "convert" and config and model_type not in known().mixture_of_depths:
        fix = f"leave it out, or use one of {', '.join(known().mixture_of_depths)}"
        yield Found(f"mixture_of_depths: convert does not know a {model_type}", fix, "mixture_of_depths")
    transformers = facts.image.transformers if facts.image else "0"
    if facts.value("shift_attn") is True and model_type == "llama" and at_least(transformers, "4.48.0"):
        cause = "ImportError: transformers>=4.45.0,<4.48.0 is required for a normal functioning of this module"
        message = f"shift_attn: true needs transformers below 4.48; the image has {transformers}"
        yield Found(message, "remove shift_attn", "shift_attn", cause=cause, edit=Edit("shift_attn"))
    for name, where in (("InternVLChatModel", "OpenGVLab/InternVL3-8B-hf"), ("LlavaLlamaForCausalLM", "llava-hf")):
        if name in architectures:
            message = f"model_name_or_path: this {name} is not in transformers' own format"
            cause = "ValueError: Please download the … models in a Hugging Face–compatible format"
            yield Found(message, f"fetch it in that format: {where}", "model_name_or_path", cause=cause)
