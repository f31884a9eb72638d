"""CFG: keys and values of the training YAML, against the facts of real images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sifkit.check.edits import edited
from sifkit.check.facts import Facts, ImageFacts, JobFacts, Parsed
from sifkit.check.rule import Finding, Severity, all_rules, apply
from sifkit.gather.config import config_of
from tests.check import good
from tests.check.real import real_facts

CONFIG = """\
model_name_or_path: /models/llama-1b
stage: sft
do_train: true
finetuning_type: lora
dataset: alpaca_en_demo
template: llama3
output_dir: saves/llama/lora
logging_steps: 10
learning_rate: 1.0e-4
bf16: true
report_to: none
"""
RULES = tuple(rule for rule in all_rules().values() if rule.family == "CFG")
OLD = replace(real_facts("0.9.4"), llamafactory="0.9.3")


def facts(text: str, *overrides: str, image: ImageFacts | None = None, job: JobFacts = good.JOB) -> Facts:
    image = image or real_facts("0.9.5")
    return good.facts(config=config_of(Path("train.yaml"), text, overrides, image), image=image, checkout=None, job=job)


def found(text: str, *overrides: str, image: ImageFacts | None = None, job: JobFacts = good.JOB) -> list[Finding]:
    return list(apply(RULES, facts(text, *overrides, image=image, job=job))[0])


def one(text: str, *overrides: str, image: ImageFacts | None = None, job: JobFacts = good.JOB) -> Finding:
    (finding,) = found(text, *overrides, image=image, job=job)
    return finding


def mended(text: str, finding: Finding, image: ImageFacts | None = None) -> list[Finding]:
    """What is found after the finding's own edit."""
    assert finding.edit is not None
    return found(edited(text, [finding.edit]), image=image)


def changed(key: str, line: str) -> str:
    """The good config with one key's line replaced, or added at its end."""
    kept = [each for each in CONFIG.splitlines() if not each.startswith(f"{key}:")]
    return "\n".join([*kept, line]) + "\n" if line else "\n".join(kept) + "\n"


@pytest.mark.parametrize("version", ["0.9.4", "0.9.5"])
def test_nothing_is_found_in_a_good_config(version: str) -> None:
    assert found(CONFIG, image=real_facts(version)) == []


@pytest.mark.parametrize(
    ("line", "code", "fix", "becomes"),
    [
        ("lora_ranks: 8", "CFG002", "write lora_rank", "lora_rank: 8"),
        ("Lora-Rank: 8", "CFG002", "write lora_rank", "lora_rank: 8"),
        (
            "evaluation_strategy: 'no'",
            "CFG011",
            "write eval_strategy instead of evaluation_strategy",
            "eval_strategy: 'no'",
        ),
        ("no_cuda: false", "CFG011", "write use_cpu instead of no_cuda", "use_cpu: false"),
        ("adafactor: true", "CFG011", "write optim: adafactor", "optim: adafactor"),
        ('plot_loss: "true"', "CFG004", "write true", "plot_loss: true"),
        ('plot_loss: "False"', "CFG004", "write false", "plot_loss: false"),
        ('cutoff_len: "2048"', "CFG004", "write 2048", "cutoff_len: 2048"),
        ("pref_loss: sigmoidd", "CFG005", "write sigmoid", "pref_loss: sigmoid"),
        ("eval_strategy: no", "CFG005", 'write it in quotes: eval_strategy: "no"', 'eval_strategy: "no"'),
        ("lora_dropout: .5e1", "CFG006", "write .5e+1", "lora_dropout: .5e+1"),
    ],
)
def test_a_slip_is_found_with_its_line_and_mended(line: str, code: str, fix: str, becomes: str) -> None:
    text = CONFIG + line + "\n"
    finding = one(text)
    assert (finding.code, finding.severity, finding.line, finding.fix) == (code, Severity.ERROR, 12, fix)
    assert mended(text, finding) == []
    assert finding.edit is not None
    assert edited(text, [finding.edit]) == CONFIG + becomes + "\n"


def test_a_key_that_is_like_no_other_is_to_be_removed() -> None:
    finding = one(CONFIG + "zzz: 1\n")
    assert (finding.code, finding.fix, finding.edit) == ("CFG002", "remove zzz", None)


def test_a_key_of_megatron_is_told_from_a_slip() -> None:
    finding = one(CONFIG + "sequence_parallel: true\n")
    assert (finding.code, finding.edit) == ("CFG002", None)
    assert finding.fix == "remove sequence_parallel, which is for USE_MCA=1 in an image with mcore_adapter"


def test_a_key_on_the_command_line_is_judged_too_but_not_edited() -> None:
    finding = one(CONFIG, "lora_ranks=8")
    assert (finding.code, finding.line, finding.edit) == ("CFG002", None, None)


def test_a_near_name_that_is_set_already_is_not_proposed() -> None:
    finding = one(CONFIG + "lora_rank: 8\nlora_ranks: 8\n")
    assert (finding.code, finding.fix, finding.edit) == ("CFG002", "remove lora_ranks", None)


def test_a_derived_key_is_found_with_what_it_follows_from() -> None:
    finding = one(CONFIG + "model_max_length: 2048\n")
    assert (finding.code, finding.line) == ("CFG003", 12)
    assert finding.fix == "remove model_max_length; what it should be follows from cutoff_len"


def test_an_argument_that_is_gone_is_told_from_a_slip() -> None:
    finding = one(CONFIG + "save_safetensors: true\n")
    assert (finding.code, finding.fix) == ("CFG011", "remove it: safetensors are all that is written")
    assert found(CONFIG + "save_safetensors: true\n", image=real_facts("0.9.4")) == []


def test_an_old_name_that_the_image_still_knows_is_no_finding() -> None:
    assert found(CONFIG + "no_cuda: false\n", image=real_facts("0.9.4")) == []


def test_a_false_old_flag_is_not_turned_into_the_new_choice() -> None:
    finding = one(CONFIG + "adafactor: false\n")
    assert (finding.code, finding.edit) == ("CFG011", None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cutoff_len: long", "cutoff_len: long is not a whole number"),
        ("cutoff_len: 20.5", "cutoff_len: 20.5 is no whole number"),
        ("cutoff_len: [1]", "cutoff_len: list is not a whole number"),
        ("plot_loss: sometimes", 'plot_loss: "sometimes" is text, and counts as true'),
    ],
)
def test_a_value_of_another_type_is_found(line: str, message: str) -> None:
    finding = one(CONFIG + line + "\n")
    assert (finding.code, finding.message, finding.edit) == ("CFG004", message, None)


def test_a_flag_for_a_number_counts_as_one() -> None:
    finding = one(CONFIG + "max_steps: true\n")
    assert (finding.code, finding.severity) == ("CFG004", Severity.WARNING)
    assert finding.message == "max_steps: true is not a whole number"


def test_an_empty_value_replaces_its_default() -> None:
    finding = one(CONFIG + "lora_dropout:\n")
    assert (finding.code, finding.severity) == ("CFG004", Severity.WARNING)
    assert finding.fix == "give it a number, or remove it: the default is 0.0"


@pytest.mark.parametrize(
    "line", ["quantization_bit:", "plot_loss: 1", "dataset: [a, b]", "max_steps: 100.0", "seed: 1"]
)
def test_values_that_work_are_no_findings(line: str) -> None:
    assert found(changed(line.partition(":")[0], line)) == []


def test_a_choice_like_no_other_names_them_all() -> None:
    finding = one(CONFIG + "mix_strategy: zzz\n")
    choices = "concat, interleave_under, interleave_over, interleave_once"
    assert (finding.code, finding.fix, finding.edit) == ("CFG005", f"write one of {choices}", None)


def test_a_list_is_no_choice_either() -> None:
    finding = one(changed("stage", "stage: [sft]"))
    assert (finding.code, finding.edit) == ("CFG005", None)


def test_a_tracker_that_does_not_exist_is_no_choice() -> None:
    finding = one(changed("report_to", "report_to: [tensorboards]"), image=_with_package("tensorboard"))
    assert (finding.code, finding.fix, finding.edit) == ("CFG005", "write tensorboard", None)


def test_an_exponent_is_text_up_to_0_9_3_and_a_number_after() -> None:
    text = changed("learning_rate", "learning_rate: 1e-4")
    finding = one(text, image=OLD)
    assert (finding.code, finding.line, finding.fix) == ("CFG006", 11, "write 1.0e-4")
    assert mended(text, finding, OLD) == []
    assert found(text) == []


@pytest.mark.parametrize(
    ("lines", "key", "message", "fix", "mend"),
    [
        (
            "val_size: 0.1\neval_dataset: a\n",
            "val_size",
            "Cannot specify `val_size` if `eval_dataset` is not None.",
            "remove one of val_size and eval_dataset",
            "val_size: 0.1\n",
        ),
        (
            "fp16: true\n",
            "fp16",
            "At most one of fp16 and bf16 can be True, but not both",
            "set one of fp16 and bf16 to false",
            "",
        ),
        (
            "eval_strategy: steps\n",
            "eval_strategy",
            "Please make sure eval_dataset be provided or val_size >1e-6",
            "add eval_dataset, or val_size: 0.1",
            "eval_strategy: steps\nval_size: 0.1\n",
        ),
        (
            "ddp_backend: nccl\n",
            "ddp_backend",
            "Default process group has not been initialized, please make sure to call init_process_group.",
            "remove ddp_backend, or start with torchrun",
            "",
        ),
    ],
)
def test_what_does_not_go_together_is_said_in_the_parsers_words(
    lines: str, key: str, message: str, fix: str, mend: str
) -> None:
    finding = one(CONFIG + lines)
    assert (finding.code, finding.key, finding.fix) == ("CFG007", key, fix)
    assert finding.message == f"LLaMA-Factory refuses this: ValueError: {message}"
    assert found(CONFIG + mend) == []


def test_half_precision_without_a_gpu_is_left_to_the_rule_that_is_of_it() -> None:
    assert found(CONFIG, job=replace(good.JOB, device="cpu", gpus=0)) == []  # GPU004


def test_a_refusal_that_another_rule_explains_is_said_once() -> None:
    assert [each.code for each in found(CONFIG + "logging_steps: often\n".replace("logging", "save"))] == ["CFG004"]


def test_an_image_of_other_versions_is_not_judged_but_may_be_asked() -> None:
    _, skipped = apply(RULES, facts(CONFIG, image=replace(real_facts("0.9.5"), transformers="4.55.0")))
    assert {each.code for each in skipped} == {"CFG007", "CFG012"}
    assert all("--parse asks the image's own" in each.reason for each in skipped)


def test_what_the_image_itself_says_counts_most() -> None:
    other = replace(real_facts("0.9.5"), transformers="4.55.0")
    refused = replace(facts(CONFIG, image=other), parsed=Parsed(False, "ValueError", "no."))
    (finding,) = apply(RULES, refused)[0]
    assert (finding.code, finding.message) == ("CFG007", "the image's own parser refuses this: ValueError: no.")
    known = facts(CONFIG + "fp16: true\n")
    assert [each.code for each in apply(RULES, replace(known, parsed=Parsed(False, "ValueError", "no.")))[0]] == [
        "CFG007"
    ]
    assert apply(RULES, replace(known, parsed=Parsed(True, None, "")))[0] == ()
    dead = replace(facts(CONFIG, image=other), parsed=Parsed(False, "died", "status 9"))
    assert "CFG007" in {each.code for each in apply(RULES, dead)[1]}


def test_a_template_is_looked_up_in_the_image() -> None:
    text = changed("template", "template: llama-3")
    finding = one(text)
    assert (finding.code, finding.line) == ("CFG008", 11)
    assert finding.message == "template: LLaMA-Factory 0.9.5 has no template llama-3"
    assert mended(text, finding) == []


def _with_package(*names: str, version: str = "0.9.5") -> ImageFacts:
    image = real_facts(version)
    return replace(image, packages={**image.packages, **dict.fromkeys(names, "99")})


def test_a_tracker_with_an_account_is_found_where_report_to_is_not_set() -> None:
    text = changed("report_to", "")
    assert found(text, image=_with_package("wandb")) == []  # transformers 5 reports to none
    assert found(text, image=real_facts("0.9.4")) == []  # nothing is installed that wants an account
    finding = one(text, image=_with_package("wandb", version="0.9.4"))
    assert (finding.code, finding.severity, finding.fix) == ("CFG009", Severity.WARNING, "add report_to: none")
    assert found(text + "report_to: none\n", image=_with_package("wandb", version="0.9.4")) == []


def test_a_tracker_that_is_named_needs_its_key() -> None:
    text = changed("report_to", "report_to: wandb")
    image = _with_package("wandb")
    assert one(text, image=image).message == "report_to names wandb, and WANDB_API_KEY is not set here"
    for environment in ({"WANDB_API_KEY": "x"}, {"WANDB_MODE": "offline"}):
        host = replace(good.HOST, environment=environment)
        with_key = replace(facts(text, image=image), host=host)
        assert apply(RULES, with_key)[0] == ()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model_name_or_path", "model_name_or_path is not set: there is nothing to train, and LLaMA-Factory stops"),
        ("dataset", "dataset is not set: there is nothing to train on, and LLaMA-Factory stops"),
        ("do_train", "do_train is not set: LLaMA-Factory loads the model and ends without training it"),
        ("output_dir", "output_dir is not set: everything is written to ./trainer_output"),
    ],
)
def test_a_key_without_which_nothing_comes_of_it_is_missed(key: str, message: str) -> None:
    finding = one(changed(key, ""))
    assert (finding.code, finding.message) == ("CFG010", message)
    assert finding.severity is (Severity.WARNING if key == "output_dir" else Severity.ERROR)


@pytest.mark.parametrize(
    ("line", "package", "fix"),
    [
        (
            "enable_liger_kernel: true",
            "liger-kernel",
            "set enable_liger_kernel to false, or build the image with the extra liger-kernel",
        ),
        (
            "use_adam_mini: true",
            "adam-mini",
            "set use_adam_mini to false, or build the image with adam-mini (packages: in its spec)",
        ),
        (
            "quantization_bit: 4",
            "bitsandbytes",
            "remove quantization_bit, or build the image with the extra bitsandbytes",
        ),
        (
            "optim: paged_adamw_8bit",
            "bitsandbytes",
            "set optim to adamw_torch, or build the image with the extra bitsandbytes",
        ),
        (
            "report_to: mlflow",
            "mlflow",
            "write report_to: none, or build the image with mlflow (packages: in its spec)",
        ),
    ],
)
def test_a_package_that_an_argument_needs_is_missed(line: str, package: str, fix: str) -> None:
    text = changed(line.partition(":")[0], line)
    finding = one(text)
    assert (finding.code, finding.fix) == ("CFG012", fix)
    assert package in finding.message
    assert found(text, image=_with_package(package)) == []


def test_several_packages_of_one_argument_are_one_finding() -> None:
    finding = one(CONFIG + "use_kt: true\n")
    assert finding.code == "CFG012"
    assert "kt-kernel" in finding.message
    assert "Nor is there transformers-kt, accelerate-kt." in finding.message


@pytest.mark.parametrize("value", ["${oc.env:HOME}/saves", "???"])
def test_what_nobody_fills_in_is_found(value: str) -> None:
    finding = one(changed("output_dir", f"output_dir: '{value}'"))
    assert (finding.code, finding.line, finding.key) == ("CFG013", 11, "output_dir")
    assert found(changed("output_dir", f"output_dir: '{value}'"), "output_dir=saves") == []


def test_a_hole_is_not_also_of_the_wrong_type() -> None:
    codes = [each.code for each in found(CONFIG + "plot_loss: ${plot}\nlora_alpha: ???\n")]
    assert codes == ["CFG013", "CFG013"]


def test_several_backends_are_a_choice_of_torchs_own() -> None:
    torchrun = replace(good.JOB, torchrun=True)
    assert found(CONFIG + "ddp_backend: cpu:gloo,cuda:nccl\n", job=torchrun) == []


def test_a_dollar_in_a_prompt_is_meant() -> None:
    assert found(CONFIG + "default_system: 'write ${name}'\n") == []


def test_a_run_shorter_than_logging_steps_logs_nothing() -> None:
    text = CONFIG + "max_steps: 5\n"
    finding = one(text)
    assert (finding.code, finding.severity, finding.line) == ("CFG014", Severity.WARNING, 8)
    assert mended(text, finding) == []
    assert found(CONFIG + "max_steps: 10\n") == []


def test_blanks_in_an_override_break_under_torchrun() -> None:
    torchrun = replace(good.JOB, torchrun=True)
    finding = one(CONFIG, "run_name=my run", job=torchrun)
    assert (finding.code, finding.fix) == ("CFG015", "put it into the YAML: run_name: my run")
    assert found(CONFIG, "run_name=my run") == []
    assert found(CONFIG + "run_name: my run\n", job=torchrun) == []
