from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sifkit.check.facts import ImageFacts
from sifkit.check.rule import Severity, all_rules, apply
from tests.check import good
from tests.check.checkout_tree import ALPACA, Tree, changed, make_tree, one, register_rows, safetensors


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def test_a_model_that_is_not_there_is_found(tree: Tree) -> None:
    facts = tree.look(model_name_or_path="/models/none")
    found = one(facts, "DAT006")
    assert (found.message, found.line) == ("model_name_or_path: /models/none is not there", 1)
    assert one(tree.look(model_name_or_path="saves/qwen3/full/sft"), "DAT006").key == "model_name_or_path"


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_a_model_that_lacks_a_file_is_found(tree: Tree, lost: str, said: str) -> None:
    (tree.models / "llama-1b" / lost).unlink()
    assert said in one(tree.look(), "DAT006").message
    tree.model()
    assert good.found(tree.look(), "DAT006") == ()


def test_pointers_of_git_lfs_are_found(tree: Tree) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tree.models / "llama-1b/model.safetensors").write_text(pointer)
    assert one(tree.look(), "DAT006").fix.startswith("in that directory: git lfs pull")


def test_weights_that_are_cut_off_are_found(tree: Tree) -> None:
    (tree.models / "llama-1b/model.safetensors").write_bytes(safetensors()[:-1])
    assert "model.safetensors is cut off" in one(tree.look(), "DAT006").message


def test_an_adapter_without_its_config_is_found(tree: Tree) -> None:
    (tree.root / "saves/x/lora").mkdir(parents=True)
    assert "has no adapter_config.json" in one(tree.look(adapter_name_or_path="saves/x/lora"), "DAT006").message


def test_a_model_of_the_hub_is_a_warning_and_offline_an_error(tree: Tree) -> None:
    facts = tree.look(model_name_or_path="org/small")
    found = one(facts, "DAT007")
    assert (found.severity, found.line) == (Severity.WARNING, 1)
    home = tree.root.parent / "home/.cache/huggingface"
    assert found.fix == f"fetch it beforehand: HF_HOME={home} hf download org/small"
    offline = tree.look(model_name_or_path="org/small", environ={"HOME": "/h", "HF_HUB_OFFLINE": "1"})
    assert one(offline, "DAT007").severity is Severity.ERROR
    here = replace(facts, site=replace(good.SITE, slurm=False))
    assert one(here, "DAT007").severity is Severity.INFO


def test_a_gated_model_asks_for_a_token(tree: Tree) -> None:
    name = "meta-llama/Llama-3.2-1B"
    assert "it is gated, and there is no token" in one(tree.look(model_name_or_path=name), "DAT007").message
    with_token = tree.look(model_name_or_path=name, environ={"HOME": "/h", "HF_TOKEN": "hf_x"})
    assert "gated" not in one(with_token, "DAT007").message


def test_a_model_that_is_whole_in_the_cache_has_no_finding(tree: Tree, tmp_path: Path) -> None:
    snapshot = tmp_path / "hf/hub/models--org--small/snapshots/main"
    tree.model().rename(tmp_path / "moved")
    snapshot.parent.mkdir(parents=True)
    (tmp_path / "moved").rename(snapshot)
    facts = tree.look(model_name_or_path="org/small", environ={"HF_HOME": str(tmp_path / "hf")})
    assert good.found(facts, "DAT006", "DAT007") == ()


def image(**changes: Any) -> ImageFacts:
    return replace(good.IMAGE, **changes)


def test_an_architecture_that_transformers_does_not_know_is_found(tree: Tree) -> None:
    tree.model(model_type="llama9")
    knows = image(model_types=frozenset({"llama"}))
    found = one(replace(tree.look(), image=knows), "DAT011")
    assert "is a llama9, which transformers 5.6.0 lacks" in found.message
    tree.model()
    assert good.found(replace(tree.look(), image=knows), "DAT011") == ()


def test_a_model_with_code_of_its_own_must_be_trusted(tree: Tree) -> None:
    tree.model(model_type="own", auto_map={"AutoModelForCausalLM": "m.M"})
    knows = image(model_types=frozenset({"llama"}))
    assert "trust_remote_code: true" in one(replace(tree.look(), image=knows), "DAT011").fix
    assert good.found(replace(tree.look(trust_remote_code=True), image=knows), "DAT011") == ()


def test_architectures_are_not_checked_where_the_image_does_not_say_them(tree: Tree) -> None:
    _, skipped = apply([all_rules()["DAT011"]], tree.look())
    assert skipped[0].reason == "the image's facts do not say which architectures its transformers knows"


@pytest.mark.parametrize("name", ["meta-llama/Meta-Llama-3-8B-Instruct", "/models/Meta-Llama-3-8B-Instruct"])
def test_a_template_of_another_model_is_found(name: str) -> None:
    facts = good.facts(config=good.config(model_name_or_path=name, template="qwen3"))
    found = one(facts, "DAT012")
    assert (found.severity, found.fix, found.line) == (Severity.WARNING, "template: llama3", 6)
    assert good.found(good.facts(config=good.config(model_name_or_path=name)), "DAT012") == ()


def test_a_template_without_thinking_is_no_other_template() -> None:
    knows = image(models={"org/q": "qwen3_nothink"}, templates=frozenset({"qwen3", "qwen3_nothink"}))
    facts = good.facts(config=good.config(model_name_or_path="org/q", template="qwen3"), image=knows)
    assert good.found(facts, "DAT012") == ()


def test_a_conv3d_with_torch_2_9_is_found(tree: Tree) -> None:
    tree.model(model_type="qwen2_5_vl")
    assert one(tree.look(), "DAT021").fix == "use an image with torch 2.8, or 2.10 and newer"
    older = image(packages={**good.IMAGE.packages, "torch": "2.8.0"})
    assert good.found(replace(tree.look(), image=older), "DAT021") == ()
    assert good.found(replace(tree.look(), image=image(llamafactory="0.9.4")), "DAT021") == ()


def test_a_conv3d_is_not_judged_where_megatron_loads_the_model(tree: Tree) -> None:
    tree.model(model_type="qwen2_5_vl")
    findings, skipped = apply([all_rules()["DAT021"]], tree.look(tensor_model_parallel_size=4))
    assert (findings, [each.code for each in skipped]) == ((), ["DAT021"])


def test_a_conv3d_is_known_of_a_model_that_is_not_here_yet(tree: Tree) -> None:
    knows = image(models={"Qwen/Qwen3-VL-4B-Instruct": "qwen3_vl_nothink"})
    facts = replace(tree.look(model_name_or_path="Qwen/Qwen3-VL-4B-Instruct"), image=knows)
    assert one(facts, "DAT021").severity is Severity.ERROR


PICTURED = {"prompt": "instruction", "response": "output", "images": "images"}


@pytest.mark.parametrize(("images", "severity"), [(["a.jpg"], Severity.ERROR), ([], Severity.WARNING)])
def test_media_with_a_template_that_takes_none_are_found(tree: Tree, images: list[str], severity: Severity) -> None:
    register_rows(tree, [{**ALPACA[0], "images": images}], columns=PICTURED)
    found = one(tree.look(dataset="mine"), "DAT015")
    assert (found.message, found.severity) == (
        "dataset: mine has images, which template llama3 does not take",
        severity,
    )
    assert good.found(tree.look(dataset="mine", stage="pt"), "DAT015") == ()
    unknown = replace(tree.look(dataset="mine"), image=image(llamafactory="0.9.9"))
    assert "has no processor for them" in one(unknown, "DAT015").message


def test_media_for_a_model_without_a_processor_are_found(tree: Tree) -> None:
    register_rows(tree, [{**ALPACA[0], "images": []}], columns=PICTURED)
    sees = image(templates=frozenset({"qwen2_vl"}))
    facts = replace(tree.look(dataset="mine", template="qwen2_vl"), image=sees)
    assert "has images, and" in one(facts, "DAT015").message
    (tree.models / "llama-1b/preprocessor_config.json").write_text("{}")
    assert good.found(replace(tree.look(dataset="mine", template="qwen2_vl"), image=sees), "DAT015") == ()


def test_a_cutoff_beyond_the_model_is_found(tree: Tree) -> None:
    found = one(tree.look(cutoff_len=8192), "DAT017")
    assert found.fix == "cutoff_len: 4096, or set rope_scaling: yarn"
    assert good.found(tree.look(cutoff_len=4096), "DAT017") == ()
    assert good.found(tree.look(cutoff_len=8192, rope_scaling="yarn"), "DAT017") == ()


@pytest.mark.parametrize(
    ("base", "fits"),
    [
        ("/elsewhere/llama-1b", True),
        ("org/llama-1b", True),
        ("/hf/models--org--llama-1b/snapshots/1", True),
        ("x", False),
    ],
)
def test_an_adapter_of_another_model_is_found(tree: Tree, base: str, fits: bool) -> None:
    tree.write("saves/x/lora/adapter_config.json", {"base_model_name_or_path": base})
    found = good.found(tree.look(adapter_name_or_path="saves/x/lora"), "DAT018")
    assert bool(found) is not fits


def test_a_lora_target_that_matches_nothing_is_found_and_mended(tree: Tree) -> None:
    facts = tree.look(lora_target="c_attn")
    found = one(facts, "DAT022")
    assert (found.message, found.line) == (
        "lora_target: c_attn is no module of a llama",
        facts.config.line("lora_target"),
    )
    assert good.found(changed(facts, found), "DAT022") == ()


@pytest.mark.parametrize("target", ["all", "q_proj,v_proj", "q_proj,c_attn", "model.layers.0.self_attn.q_proj"])
def test_lora_targets_that_match_something_pass(tree: Tree, target: str) -> None:
    assert good.found(tree.look(lora_target=target), "DAT022") == ()


def test_a_part_that_no_layer_has_is_found(tree: Tree) -> None:
    changes: dict[str, Any] = {"finetuning_type": "freeze", "freeze_trainable_modules": "mpl"}
    assert one(tree.look(**changes), "DAT022").fix == "did you mean mlp?"
    assert good.found(tree.look(**{**changes, "freeze_trainable_modules": "mlp,self_attn"}), "DAT022") == ()
    outside: dict[str, Any] = {"finetuning_type": "freeze", "freeze_extra_modules": "lm_heads"}
    assert one(tree.look(**outside), "DAT022").fix == "did you mean lm_head?"
    assert good.found(tree.look(**{**outside, "freeze_extra_modules": "lm_head"}), "DAT022") == ()


def test_layers_that_do_not_divide_are_found(tree: Tree) -> None:
    changes: dict[str, Any] = {"use_llama_pro": True, "freeze_trainable_layers": 3}
    assert one(tree.look(**changes), "DAT023").fix == "one of 1, 2, 4"
    assert good.found(tree.look(**{**changes, "freeze_trainable_layers": 2}), "DAT023") == ()


def test_methods_of_other_architectures_are_found(tree: Tree) -> None:
    assert one(tree.look(shift_attn=True), "DAT024").key == "shift_attn"
    assert good.found(changed(tree.look(shift_attn=True), one(tree.look(shift_attn=True), "DAT024")), "DAT024") == ()
    tree.model(model_type="qwen2")
    assert "does not know a qwen2" in one(tree.look(mixture_of_depths="convert"), "DAT024").message
    tree.model(architectures=["InternVLChatModel"])
    assert one(tree.look(), "DAT024").fix == "fetch it in that format: OpenGVLab/InternVL3-8B-hf"
