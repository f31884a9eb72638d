"""Models and adapters: there, whole, and known to the image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from packaging.version import InvalidVersion, Version

from sifkit.check.architectures import config_of, known, model_of
from sifkit.check.facts import Facts, HubModel, Kind, PathFacts
from sifkit.check.rule import Found, NotChecked, Severity, rule
from sifkit.check.rules.dat import checkout_of, is_hidden, leaves_checkout

_MODELS = ("model_name_or_path", "reward_model", "ref_model")
_ADAPTERS = ("adapter_name_or_path", "reward_model_adapters", "ref_model_adapters")
_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
_WITHOUT_VOCABULARY = ("byt5", "canine", "perceiver")  # they read bytes
_FOLDERS = ("models", "saves", "output", "outputs", "checkpoints", "data")  # that a name so begun may have meant
_GATED = ("meta-llama/", "google/gemma-", "google/paligemma")  # their pages on the hub ask for consent to a licence
_LOADING = "transformers 4.57.1 and 5.6.0, utils/hub.py and modeling_utils.py; tried"


@rule(
    "DAT006",
    "model-not-found",
    needs=(Kind.CHECKOUT,),
    prevents="OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/models/none'. Use "
    "`repo_type` argument if needed.\nOSError: Failed to load tokenizer.",
    why="a path that is no directory is taken for a name on the hub; a directory must hold config.json, all weights "
    "that its index names, and a tokenizer",
    fix="name the directory that holds config.json, the weights and the tokenizer; fetch what is missing",
    source=_LOADING,
)
def model_not_found(facts: Facts) -> Iterator[Found | NotChecked]:
    """A model or an adapter is not there, lacks files, or holds pointers of git-lfs in the place of weights."""
    for path in checkout_of(facts).paths:
        if path.key not in (*_MODELS, *_ADAPTERS) or is_hidden(path) or _is_hub(path, facts):
            continue
        if path.fault == "does not answer":
            yield NotChecked(f"{path.host} does not answer")
        elif not path.exists and leaves_checkout(path.text):
            continue  # DAT013
        elif not path.exists and not path.links:
            fix = "correct the path; relative ones count from the checkout"
            yield Found(f"{path.key}: {path.host} is not there", fix, path.key)
        elif path.exists and not path.is_dir:
            message = f"{path.key}: {path.text} is a file, and no directory of a model"
            yield Found(message, f"name its directory: {Path(path.text).parent}", path.key)
        elif path.exists and not path.readable:
            yield Found(f"{path.key}: {path.host} may not be read by this user", "ask its owner", path.key)
        elif path.exists:
            yield from _incomplete(path, facts)


def _is_hub(path: PathFacts, facts: Facts) -> bool:
    return any(model.name == path.text for model in checkout_of(facts).hub)


def _incomplete(path: PathFacts, facts: Facts) -> Iterator[Found]:
    adapter = path.key in _ADAPTERS or (path.key == "reward_model" and facts.value("reward_model_type") != "full")
    config = "adapter_config.json" if adapter else "config.json"
    if config not in path.names:
        cause = f"ValueError: Unrecognized model in {path.text}. Should have a `model_type` key in its config.json."
        cause = f"ValueError: Can't find 'adapter_config.json' at '{path.text}'" if adapter else cause
        fix = f"name the directory that holds {config}"
        yield Found(f"{path.key}: {path.text} has no {config}", fix, path.key, cause=cause)
        return
    if facts.value("train_from_scratch") is not True:
        yield from _weights(path)
    vocabulary = any(name in path.names for name in _TOKENIZERS) or any(
        name.endswith(".tiktoken") for name in path.names
    )
    reads_bytes = (path.json or {}).get("model_type") in _WITHOUT_VOCABULARY
    if path.key == "model_name_or_path" and not vocabulary and not reads_bytes:
        cause = "ValueError: Couldn't instantiate the backend tokenizer from one of: …"
        fix = "copy tokenizer.json and tokenizer_config.json into it, from the model that it was made of"
        yield Found(f"{path.key}: {path.text} has no tokenizer", fix, path.key, cause=cause)


def _weights(path: PathFacts) -> Iterator[Found]:
    again = "fetch it again: hf download NAME --local-dir DIR"
    if path.pointers:
        message = f"{path.key}: {path.text} has pointers of git-lfs where weights belong: {_some(path.pointers)}"
        cause = "a clone without git-lfs: SafetensorError: Error while deserializing header: header too large"
        yield Found(message, f"in that directory: git lfs pull; or {again}", path.key, cause=cause)
    elif path.missing:
        cause = f"FileNotFoundError: No such file or directory: {path.text}/{path.missing[0]}"
        yield Found(f"{path.key}: {path.text} lacks {_some(path.missing)}", again, path.key, cause=cause)
    elif path.damaged:
        yield Found(f"{path.key}: in {path.text}, {_some(path.damaged)}", again, path.key)
    elif not path.size:
        cause = f"OSError: Error no file named model.safetensors, or pytorch_model.bin, found in directory {path.text}."
        yield Found(f"{path.key}: {path.text} has no weights", again, path.key, cause=cause)


def _some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


@rule(
    "DAT007",
    "hub-model-not-cached",
    Severity.WARNING,
    needs=(Kind.CHECKOUT,),
    prevents="OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in "
    "the cached files.\nOSError: Failed to load tokenizer.",
    why="a name that is no directory is fetched from the hub when the job runs; compute nodes often reach no network, "
    "and gated models need a token",
    fix="fetch it beforehand, where there is a network, into the HF_HOME that the job has; or name a directory",
    source=f"{_LOADING}; huggingface_hub 0.36.2 and 1.33.0, constants.py",
    rows=(12,),
)
def hub_model_not_cached(facts: Facts) -> Iterator[Found]:
    """A model of the hub is not whole in the cache that the job will use."""
    queued = facts.site is None or facts.site.slurm
    for model in checkout_of(facts).hub:
        if model.snapshot is not None and not model.missing:
            continue
        severity = Severity.ERROR if model.offline else None if queued or _is_gated(model) else Severity.INFO
        yield Found(_hub_message(model), _hub_fix(model), model.key, severity=severity, cause=_hub_cause(model))


def _is_gated(model: HubModel) -> bool:
    return model.hub == "huggingface" and not model.token and model.name.startswith(_GATED)


def _hub_message(model: HubModel) -> str:
    gated = "; it is gated, and there is no token" if _is_gated(model) else ""
    if model.snapshot is not None:
        return f"{model.key}: {model.name} in {model.cache} lacks {_some(model.missing)}{gated}"
    partial = f" ({model.partial} downloads were broken off)" if model.partial else ""
    kind = "neither a directory of the checkout nor" if model.name.split("/")[0] in _FOLDERS else "not"
    return f"{model.key}: {model.name} is {kind} in {model.cache}{partial}{gated}"


def _hub_fix(model: HubModel) -> str:
    if model.hub == "modelscope":
        return f"fetch it beforehand: modelscope download --model {model.name}"
    token = "accept its licence on the hub, set HF_TOKEN, and " if _is_gated(model) else ""
    return f"{token}fetch it beforehand: HF_HOME={model.cache.parent} hf download {model.name}"


def _hub_cause(model: HubModel) -> str | None:
    if model.offline:
        return "HF_HUB_OFFLINE is set: nothing is fetched, and the run stops when it looks for the model"
    if _is_gated(model):
        return f"OSError: You are trying to access a gated repo. Make sure to have access to it at {model.name}"
    return None


# ---------------------------------------------------------------------------------------------- the image's side


@rule(
    "DAT011",
    "architecture-unknown",
    needs=(Kind.CHECKOUT, Kind.IMAGE),
    prevents="ValueError: The checkpoint you are trying to load has model type `X` but Transformers does not recognize "
    "this architecture.",
    why="transformers knows architectures by the model_type of config.json; a newer one needs a newer transformers, or "
    "code that the model brings along and that is run only when it is trusted",
    fix="use an image with a newer transformers; for a model with its own code: trust_remote_code: true",
    source="transformers 4.57.1 and 5.6.0, models/auto/configuration_auto.py, AutoConfig.from_pretrained",
)
def architecture_unknown(facts: Facts) -> Iterator[Found | NotChecked]:
    """The model's architecture is none of those that the image's transformers knows."""
    image, model = facts.image, model_of(facts)
    assert image is not None
    model_type = config_of(facts).get("model_type")
    if model is None or not isinstance(model_type, str):
        return
    if not image.model_types:
        yield NotChecked("the image's facts do not say which architectures its transformers knows")
    elif model_type not in image.model_types and "auto_map" not in config_of(facts):
        message = f"model_name_or_path: {model.text} is a {model_type}, which transformers {image.transformers} lacks"
        yield Found(message, "use an image with a newer transformers", "model_name_or_path")
    elif model_type not in image.model_types and facts.value("trust_remote_code") is not True:
        message = f"model_name_or_path: {model.text} ({model_type}) needs code that it brings along"
        cause = "transformers runs it only when it is trusted, and asks on the terminal otherwise"
        fix = "read that code, then set trust_remote_code: true"
        yield Found(message, fix, "model_name_or_path", cause=cause)


@rule(
    "DAT012",
    "template-for-another-model",
    Severity.WARNING,
    needs=(Kind.IMAGE,),
    prevents="nothing: the model learns turns and ends of answers that its own chat template does not have",
    why="LLaMA-Factory names a template for each model that it knows",
    fix="use the template that LLaMA-Factory names for this model",
    source="llamafactory/extras/constants.py, DEFAULT_TEMPLATE; 0.9.4 and 0.9.5",
    rows=(44,),
)
def template_for_another_model(facts: Facts) -> Iterator[Found]:
    """The template is another than LLaMA-Factory's own for this model."""
    image, template = facts.image, facts.config.values.get("template")
    assert image is not None
    name = facts.config.values.get("model_name_or_path")
    if not isinstance(name, str) or template not in image.templates or facts.value("stage") == "pt":
        return
    own = {image.models[each] for each in image.models if each == name or each.split("/")[-1] == Path(name).name}
    if own and "" not in own and template not in own and not _is_sibling(str(template), own):
        best = " or ".join(sorted(own))
        message = f"template: {template}, where LLaMA-Factory {image.llamafactory} names {best} for {name}"
        yield Found(message, f"template: {best}", "template")


def _is_sibling(template: str, own: set[str]) -> bool:
    """qwen3 and qwen3_nothink are one template, with and without thinking."""
    return any(template.removesuffix("_nothink") == each.removesuffix("_nothink") for each in own)


@rule(
    "DAT021",
    "conv3d-with-this-torch",
    needs=(Kind.CHECKOUT, Kind.IMAGE),
    prevents="ValueError: Unsupported torch version detected: torch 2.9.x with Conv3D. This combination is known to "
    "cause severe performance regression. Please downgrade torch to <2.9 or remove Conv3D.",
    why="LLaMA-Factory 0.9.5 refuses models with a Conv3d, as most that read images or videos have, with torch 2.9; "
    "with USE_MCA=1 (Megatron) it does not look",
    fix="use an image with torch 2.8, or 2.10 and newer",
    source="llamafactory/model/loader.py, load_model; 0.9.5 (0.9.4 has no such check)",
)
def conv3d_with_this_torch(facts: Facts) -> Iterator[Found | NotChecked]:
    """A model with a Conv3d (Qwen-VL, GLM-V) in an image with LLaMA-Factory 0.9.5 and torch 2.9."""
    image = facts.image
    assert image is not None
    if not image.packages.get("torch", "").startswith("2.9.") or not at_least(image.llamafactory, "0.9.5"):
        return
    if not facts.config.values.keys().isdisjoint(known().megatron_keys):
        yield NotChecked("the YAML is for USE_MCA=1, where models are loaded by mcore_adapter")
        return
    name, model_type = facts.config.values.get("model_name_or_path"), config_of(facts).get("model_type")
    of_template = model_of(facts) is None and image.models.get(str(name)) in known().conv3d_templates
    if model_type in known().conv3d or of_template:
        message = f"model_name_or_path: {name} has a Conv3d, which LLaMA-Factory refuses with this image's torch"
        message += f" {image.packages['torch']}"
        yield Found(message, "use an image with torch 2.8, or 2.10 and newer", "model_name_or_path")


def at_least(version: str, least: str) -> bool:
    """Whether a version is at least another; False for what is none."""
    try:
        return Version(version) >= Version(least)
    except InvalidVersion:
        return False
