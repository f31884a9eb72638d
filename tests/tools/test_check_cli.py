"""`sifkit check` and `sifkit rule` as people call them, with real files; and the commands that ask the rules first."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sifkit.cli import main
from sifkit.errors import Exit
from tests.check.planting import Ground
from tests.conftest import FakeTool

MISTAKES = """\
# My run.
stage: sft   # the stage
do_train: true
lora_ranks: 8  # how many

model_name_or_path: {model}
template: lama3
dataset: alpaca_en_demo
output_dir: saves/mine
report_to: none
"""
MENDED = MISTAKES.replace("lora_ranks", "lora_rank").replace("lama3", "llama3")


@pytest.fixture
def mistakes(ground: Ground) -> Path:
    """A YAML with two slips that --fix mends."""
    path = ground.folder / "mine.yaml"
    path.write_text(text(ground, MISTAKES))
    return path


def text(ground: Ground, pattern: str) -> str:
    return pattern.format(model=ground.tree.models / "llama-1b")


def codes(one: dict[str, Any], *families: str) -> list[str]:
    """Of errors and warnings of these families."""
    found = [each for each in one["findings"] if each["severity"] != "info"]
    return [each["code"] for each in found if each["code"].startswith(families or ("CFG", "DAT"))]


def call(ground: Ground, *words: str | Path) -> int:
    """With image and checkout."""
    where = ["--image", str(ground.image), "--checkout", str(ground.tree.root), *ground.words]
    return main(["check", *where, *map(str, words)])


# ---------------------------------------------------------------------------------------------- which files


def test_of_a_directory_the_yamls_that_train_are_checked(ground: Ground, mistakes: Path) -> None:
    recipes = ground.folder / "recipes"
    (recipes / "deep").mkdir(parents=True)
    mistakes.rename(recipes / "deep/b.yml")
    (recipes / "a.yaml").write_text("do_train: true\n")
    (recipes / "accelerate.yaml").write_text("num_processes: 8\n")
    (recipes / "notes.txt").write_text("stage: sft\n")
    names = [one["file"] for one in ground.check("recipes", "recipes/a.yaml")]
    assert names == ["recipes/a.yaml", "recipes/deep/b.yml"]


def test_a_directory_without_any_is_a_usage_error(ground: Ground, capsys: pytest.CaptureFixture[str]) -> None:
    (ground.folder / "empty").mkdir()
    assert call(ground, "empty") == Exit.USAGE
    assert "empty: there is no training YAML in it" in capsys.readouterr().err


def test_a_recipe_is_found_below_the_checkout(ground: Ground) -> None:
    (one,) = ground.check("examples/train_lora/qwen3_lora_sft.yaml")
    assert one["file"].endswith("examples/train_lora/qwen3_lora_sft.yaml")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no config is named"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["lora_rank=8"], "no config is named"),
        (["train.yaml", "--checkout", "nowhere"], "--checkout nowhere: there is no such directory"),
        (["train.yaml", "--image", "nowhere.sif"], "nowhere.sif: no such file"),
        (["train.yaml", "--image", "llamafactory"], "there is no project here"),
        (["train.yaml", "--job", "nowhere.sbatch"], "nowhere.sbatch"),
        (["train.yaml", "--select", "CFG002x"], "did you mean CFG002?"),
        (["train.yaml", "--ignore", "unknown-keys"], "did you mean unknown-key?"),
        (["train.yaml", "--format", "xml"], "xml"),
        (["train.yaml", "--time", "soon"], "soon"),
        (["train.yaml", "--mem", "1.5T"], "--mem '1.5T' is no amount of memory"),
    ],
)
def test_a_wrong_command_line_is_named(
    ground: Ground, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", *words]) == Exit.USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("memory", "codes"), [("0", []), ("64GB", []), ("64g", []), ("1G", ["SLM005"])])
def test_memory_is_read_as_sbatch_reads_it(ground: Ground, memory: str, codes: list[str]) -> None:
    (one,) = ground.check("train.yaml", "--mem", memory, "--select", "SLM005")
    assert [each["code"] for each in one["findings"]] == codes


def test_overrides_are_judged_and_a_long_one_is_one_too(ground: Ground) -> None:
    (one,) = ground.check("train.yaml", "lora_ranks=8", f"default_system={'word ' * 1000}", code=Exit.PROBLEM)
    (finding,) = [each for each in one["findings"] if each["code"] == "CFG002"]
    assert (finding["key"], finding["line"], finding["fixable"]) == ("lora_ranks", None, False)


def test_an_override_mends_what_the_yaml_says(ground: Ground, mistakes: Path) -> None:
    assert codes(ground.check(mistakes)[0]) == ["CFG002", "CFG008"]
    assert codes(ground.check(mistakes, "template=llama3")[0]) == ["CFG002"]


# ---------------------------------------------------------------------------------------------- which rules


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--select", "CFG002"], ["CFG002"]),
        (["--select", "unknown-template,CFG002"], ["CFG002", "CFG008"]),
        (["--select", "cfg", "--ignore", "CFG002"], ["CFG008"]),
        (["--ignore", "CFG", "--select", "CFG008"], ["CFG008"]),
        (["--ignore", "CFG,unknown-template"], []),
        (["--select", "DAT"], []),
    ],
)
def test_rules_are_chosen_by_code_prefix_and_name(
    ground: Ground, mistakes: Path, words: list[str], found: list[str]
) -> None:
    assert codes(ground.check(mistakes, *words)[0]) == found


def test_the_nearest_settings_above_the_yaml_count(ground: Ground, mistakes: Path) -> None:
    inner = ground.folder / "team/me"
    inner.mkdir(parents=True)
    mistakes = mistakes.rename(inner / "debug_a.yaml")
    (ground.folder / "sifkit.yaml").write_text("check: {ignore: [CFG]}\n")
    assert codes(ground.check(mistakes)[0]) == []
    (ground.folder / "team/sifkit.yaml").write_text(
        "check:\n  select: [CFG]\n  per_file_ignores: {'debug_*.yaml': [unknown-key]}\n"
    )
    assert codes(ground.check(mistakes)[0]) == ["CFG008"]
    assert codes(ground.check(mistakes, "--select", "CFG002,DAT")[0]) == []
    assert codes(ground.check(mistakes.rename(inner / "a.yaml"))[0]) == ["CFG002", "CFG008"]


def test_comments_take_findings_out_and_are_counted(
    ground: Ground, mistakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = mistakes.read_text().replace("# how many", "# sifkit: ignore[CFG002]")
    mistakes.write_text(f"# sifkit: ignore[unknown-template]\n{lines}")
    (one,) = ground.check(mistakes, code=Exit.OK)
    assert (codes(one), [each["code"] for each in one["ignored"]]) == ([], ["CFG002", "CFG008"])
    assert call(ground, mistakes) == Exit.OK
    assert "2 ignored by comments" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------- --fix and --diff


def test_fix_changes_what_is_wrong_and_nothing_else(
    ground: Ground, mistakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes.chmod(0o640)
    assert call(ground, "--fix", mistakes) == Exit.OK
    assert mistakes.read_text() == text(ground, MENDED)
    assert mistakes.stat().st_mode & 0o777 == 0o640
    assert "mine.yaml: mended" in capsys.readouterr().err
    before = mistakes.stat().st_mtime_ns
    assert call(ground, "--fix", mistakes) == Exit.OK  # a second time there is nothing to do
    assert mistakes.stat().st_mtime_ns == before
    assert "mended" not in capsys.readouterr().err


def test_diff_shows_what_fix_would_do_and_does_nothing(
    ground: Ground, mistakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(ground, "--diff", mistakes) == Exit.PROBLEM
    changed = [line for line in capsys.readouterr().out.splitlines()[2:] if line[0] in "+-"]
    assert changed == [
        "-lora_ranks: 8  # how many",
        "+lora_rank: 8  # how many",
        "-template: lama3",
        "+template: llama3",
    ]
    assert mistakes.read_text() == text(ground, MISTAKES)
    mistakes.write_text(text(ground, MENDED))
    assert call(ground, "--diff", mistakes) == Exit.OK
    assert capsys.readouterr().out == ""


def test_fix_leaves_alone_what_is_ignored_or_not_selected(ground: Ground, mistakes: Path) -> None:
    call(ground, "--fix", "--ignore", "CFG002", mistakes)
    assert mistakes.read_text() == text(ground, MISTAKES.replace("lama3", "llama3"))


def test_fix_leaves_alone_what_cannot_be_read(ground: Ground, mistakes: Path) -> None:
    mistakes.write_bytes(b"lora_ranks: 8\n\tx: 1\n")
    assert call(ground, "--fix", mistakes, ground.yaml) == Exit.PROBLEM
    assert mistakes.read_bytes() == b"lora_ranks: 8\n\tx: 1\n"


def test_a_link_stays_a_link(ground: Ground, mistakes: Path) -> None:
    link = ground.folder / "link.yaml"
    link.symlink_to("mine.yaml")
    assert call(ground, "--fix", link) == Exit.OK
    assert (link.is_symlink(), mistakes.read_text()) == (True, text(ground, MENDED))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_file_that_may_not_be_written_is_said_and_not_lost(
    ground: Ground, mistakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mistakes.chmod(0o444)
    assert call(ground, "--fix", mistakes) == Exit.HOST
    assert "mine.yaml: Permission denied" in capsys.readouterr().err
    assert mistakes.read_text() == text(ground, MISTAKES)
    assert [path.name for path in ground.folder.glob(".mine*")] == []


# ---------------------------------------------------------------------------------------------- what is said


def test_text_says_what_was_looked_at_where_it_is_wrong_and_what_was_not_checked(
    ground: Ground, mistakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(ground, mistakes) == Exit.PROBLEM
    shown = capsys.readouterr()
    assert shown.err.startswith("checked against: image image (LLaMA-Factory 0.9.5), checkout ")
    assert f"{mistakes}:4: error CFG002 lora_ranks: LLaMA-Factory 0.9.5 knows no such key" in shown.out
    assert "\n  fix: write lora_rank\n" in shown.out
    assert shown.out.splitlines()[-1].startswith("2 errors, ")  # a full disk of this host would be a warning
    assert "why:" not in shown.out
    call(ground, "--why", mistakes)
    assert "\n  why: LLaMA-Factory stops at a key for which it has no argument" in capsys.readouterr().out


def test_without_image_and_checkout_their_rules_are_named_as_not_checked(
    ground: Ground, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = ground.folder / "outside"
    outside.mkdir()
    (outside / "a.yaml").write_text(ground.yaml.read_text())
    assert main(["check", "outside/a.yaml", "--not-checked"]) == Exit.OK
    shown = capsys.readouterr()
    assert "checked against: no image, no checkout" in shown.err
    (line,) = [line for line in shown.out.splitlines() if line.endswith("no facts of the image")]
    assert {"CFG002", "CFG008", "IMG001"} <= {word.strip(",:") for word in line.split()}
    main(["check", "outside/a.yaml"])
    assert " more: no facts of the image" in capsys.readouterr().out


def test_each_machine_format_has_every_finding(
    ground: Ground, mistakes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: dict[str, str] = {}
    for format_ in ("json", "github", "sarif", "junit"):
        capsys.readouterr()
        assert call(ground, "--format", format_, mistakes) == Exit.PROBLEM
        shown[format_] = capsys.readouterr().out
    assert codes(json.loads(shown["json"])[0]) == ["CFG002", "CFG008"]
    assert f"::error title=CFG002 unknown-key,file={mistakes},line=4::" in shown["github"]
    results = json.loads(shown["sarif"])["runs"][0]["results"]
    assert [each["ruleId"] for each in results if each["level"] == "error"] == ["CFG002", "CFG008"]
    failed = [
        case.get("name", "")
        for case in ElementTree.fromstring(shown["junit"]).iter("testcase")
        if case.find("failure") is not None
    ]
    assert failed == ["CFG002 unknown-key", "CFG008 unknown-template"]


def test_warnings_fail_where_that_is_asked_for(ground: Ground) -> None:
    del ground.config["save_total_limit"]
    ground.config |= {"save_steps": "1", "max_steps": "100"}
    ground.write()
    assert call(ground, "--select", "CKP008", ground.yaml) == Exit.OK
    assert call(ground, "--select", "CKP008", "--strict", ground.yaml) == Exit.PROBLEM


def test_a_project_around_has_images_by_name(
    ground: Ground, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["check", str(ground.yaml), "--image", "exampl"]) == Exit.USAGE
    assert "did you mean example?" in capsys.readouterr().err
    assert main(["check", str(ground.yaml), "--image", "example"]) == Exit.USAGE
    assert "python build.py example" in capsys.readouterr().err
    (project / "images").mkdir()
    (project / "images/example.sif").write_bytes(ground.image.read_bytes())
    assert main(["check", str(ground.yaml), "--image", "example"]) == Exit.OK
    assert "image example (LLaMA-Factory 0.9.5)" in capsys.readouterr().err


def test_a_job_file_of_ones_own_is_checked_with_the_yaml(ground: Ground) -> None:
    job = ground.folder / "mine.sbatch"
    job.write_text("#!/bin/bash\n#SBATCH --gpus-per-node=2\napptainer exec x.sif llamafactory-cli train train.yaml\n")
    (one,) = ground.check("train.yaml", "--job", job, code=Exit.PROBLEM)
    (finding,) = [each for each in one["findings"] if each["code"] == "SLM009"]
    assert (finding["file"], finding["line"]) == (str(job), 3)


# ---------------------------------------------------------------------------------------------- sifkit rule


@pytest.mark.parametrize("word", ["CFG002", "cfg002", "unknown-key"])
def test_a_rules_page_says_all_of_it(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule", word]) == Exit.OK
    page = capsys.readouterr().out
    assert page.startswith("# CFG002 unknown-key\n\nA key that the image's LLaMA-Factory does not know.\n")
    assert "Some keys are not used by the HfArgumentParser" in page


def test_a_family_and_all_rules_are_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule", "SLM"]) == Exit.OK
    family = capsys.readouterr().out
    assert main(["rule", "--all"]) == Exit.OK
    every = capsys.readouterr().out
    assert ("SLM001" in family, "CFG002" in family) == (True, False)
    assert ("SLM001" in every, "CFG002" in every) == (True, True)


def test_rules_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule", "CFG002", "SLM001", "--json"]) == Exit.OK
    assert [(each["code"], each["failures"]) for each in json.loads(capsys.readouterr().out)] == [
        ("CFG002", [3]),
        ("SLM001", [14]),
    ]


@pytest.mark.parametrize(("words", "said"), [(["CFG999"], "there is no rule CFG999"), ([], "sifkit rule --all")])
def test_a_rule_that_is_none_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rule", *words]) == Exit.USAGE
    assert said in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------- who asks first


@pytest.fixture
def wrong(ground: Ground, project: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words that name an image with labels, a checkout and a YAML with an unknown key; every container is noted."""
    labels = {"org.sifkit.llamafactory": "0.9.5", "org.sifkit.transformers": "5.6.0"}
    answer = json.dumps({"data": {"attributes": {"labels": labels}}, "type": "container"})
    script = f"""\
case $1 in
    --version) echo apptainer version 1.4.5 ;;
    inspect) echo '{answer}' ;;
    exec) echo "$@" >> {ground.folder}/started; exit 7 ;;
esac"""
    fake_tool("apptainer", script)
    ground.config["lora_ranks"] = "8"
    ground.write()
    monkeypatch.chdir(project)
    return ["--image", str(ground.image), "--checkout", str(ground.tree.root), str(ground.yaml)]


def started(ground: Ground) -> bool:
    return (ground.folder / "started").exists()


@pytest.mark.parametrize("command", ["train", "sbatch"])
def test_a_run_with_an_error_is_not_started(
    ground: Ground, wrong: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, *wrong]) == Exit.PROBLEM
    said = capsys.readouterr().err
    assert "train.yaml:11: error CFG002" in said or "CFG002" in said
    assert "write lora_rank" in said
    assert "--no-check" in said
    assert not started(ground)
    assert list(Path.cwd().glob("*.sbatch")) == []


def test_no_check_goes_on_all_the_same(ground: Ground, wrong: list[str]) -> None:
    assert main(["sbatch", "--no-check", *wrong]) == Exit.OK
    assert [path.name for path in Path.cwd().glob("*.sbatch")] == ["train.sbatch"]
    assert main(["train", "--no-check", "--print", *wrong]) == Exit.OK


def test_a_verification_of_ones_own_config_stops_at_its_errors(
    ground: Ground, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--device", "cpu", "--checkout", str(ground.tree.root), "--config", str(ground.yaml)]
    words = ["build", "--verify", *where, str(ground.image)]
    assert main(words) == Exit.PROBLEM
    assert "CFG002" in capsys.readouterr().err
    assert not started(ground)
    main([*words, "--no-check"])
    assert started(ground)
