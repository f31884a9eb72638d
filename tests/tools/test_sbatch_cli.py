"""`sifkit sbatch`, `submit` and `train --print` with a fake Apptainer: what is wrong is said before the queue."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sifkit.cli import main
from sifkit.commands.submit import split_words
from sifkit.errors import Exit, UsageError
from sifkit.sif import OBJECT_NAME
from tests.check.real import DATA
from tests.check.test_image_facts import sif_bytes
from tests.conftest import FakeTool

LABELS = {"org.sifkit.llamafactory": "0.9.5", "org.sifkit.transformers": "5.6.0"}

CONFIG = """\
model_name_or_path: org/model
do_train: true
dataset: identity
template: llama3
report_to: none
"""


@pytest.fixture
def place(project: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with an image, a checkout and a config `train.yaml` in it; no Slurm."""
    answer = json.dumps({"data": {"attributes": {"labels": LABELS}}, "type": "container"})
    fake_tool("apptainer", f"case $1 in --version) echo apptainer version 1.4.5 ;; inspect) echo '{answer}' ;; esac")
    monkeypatch.setattr("sifkit.run.Runner.which", without_slurm)
    (project / "images").mkdir()
    (project / "images" / "example.sif").write_bytes(
        sif_bytes(**{OBJECT_NAME: (DATA / "facts-0.9.5.json").read_bytes()})
    )
    checkout = project / "LF"
    for name, text in {
        "src/llamafactory/extras/env.py": 'VERSION = "0.9.5"\n',
        "data/dataset_info.json": '{"identity": {"hf_hub_url": "a/b"}}',
        "examples/train_lora/a_lora_sft.yaml": CONFIG + "output_dir: saves/a\n",
    }.items():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(text)
    (project / "train.yaml").write_text(f"{CONFIG}output_dir: {project}/out\n")
    monkeypatch.chdir(project)
    monkeypatch.setenv("SIFKIT_CACHE", str(project / "cache"))
    return project


def without_slurm(self: object, program: str) -> str | None:
    import shutil

    return None if program in ("sinfo", "sbatch", "squeue") else shutil.which(program)


def sifkit(command: str, *words: str, checkout: str = "LF") -> int:
    return main([command, "--image", "example", "--checkout", checkout, *words])


def test_a_job_file_is_written_and_never_lost(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sifkit("sbatch", "train.yaml") == Exit.OK
    assert capsys.readouterr().out == "train.sbatch\n"
    file = place / "train.sbatch"
    assert sifkit("sbatch", "train.yaml") == Exit.OK  # the same again
    file.write_text(file.read_text() + "# mine\n")
    assert sifkit("sbatch", "train.yaml") == Exit.USAGE
    assert file.read_text().endswith("# mine\n")
    assert sifkit("sbatch", "train.yaml", "--force") == Exit.OK
    assert "# mine" not in file.read_text()


def test_a_job_file_can_be_written_where_slurm_does_not_answer(
    place: Path, fake_tool: FakeTool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    fake_tool("sinfo", "echo 'sinfo: fatal: Could not establish a configuration source' >&2; exit 1")
    monkeypatch.setattr("sifkit.run.Runner.which", lambda _, program: shutil.which(program))
    assert sifkit("sbatch", "train.yaml") == Exit.OK
    assert "Could not establish a configuration source" in capsys.readouterr().err
    assert (place / "train.sbatch").is_file()


def test_a_recipe_of_the_checkout_is_found_by_its_own_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sifkit("sbatch", "examples/train_lora/a_lora_sft.yaml", "-o", "-") == Exit.OK
    text = capsys.readouterr().out
    assert f"output_dir={place}/LF/saves/a\n" in text
    assert "arguments=(train examples/train_lora/a_lora_sft.yaml)" in text


def test_the_sites_words_are_defaults(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "site.yaml").write_text(
        'slurm: {partition: gpu, account: lab, gres: "gpu:h100:{n}", time: "24:00:00", requeue: true,\n'
        "  modules: [apptainer]}\n"
    )
    assert sifkit("sbatch", "train.yaml", "-o", "-", "--gpus", "4", "--account", "mine") == Exit.OK
    text = capsys.readouterr().out
    lines = set(text.splitlines())
    wanted = "partition=gpu account=mine gres=gpu:h100:4 time=1-00:00:00 signal=B:USR1@300"
    assert {f"#SBATCH --{word}" for word in wanted.split()} | {"#SBATCH --requeue", "module load apptainer"} <= lines
    assert "enable_jit_checkpoint=true" in text


def test_a_trainer_told_not_to_save_on_a_signal_is_not_told_to(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sifkit("sbatch", "train.yaml", "-o", "-", "--requeue", "enable_jit_checkpoint=false") == Exit.OK
    assert "the next checkpoint is waited for" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["missing.yaml"], Exit.USAGE, "missing.yaml"),
        (["train.yaml", "dataset=identiti"], Exit.PROBLEM, "identity"),
        (["train.yaml", "model_name_or_path=/not/there"], Exit.PROBLEM, "/not/there"),
        (["train.yaml", "deepspeed=examples/ds.json"], Exit.PROBLEM, "examples/ds.json"),
        (["train.yaml", "overwrite_output_dir=true", "--requeue"], Exit.PROBLEM, "overwrite_output_dir: false"),
        (["train.yaml", "--time", "soon"], Exit.USAGE, "soon"),
        (["train.yaml", "--signal", "60"], Exit.USAGE, "--requeue"),
        (["train.yaml", "--name", "a b"], Exit.USAGE, "a b"),
        (["train.yaml", "--name", ".."], Exit.USAGE, "begins with a dot"),
        (["train.yaml", "--name", "n" * 300], Exit.USAGE, "more than 100 letters"),
        (["train.yaml", "--name", ""], Exit.USAGE, "empty word"),
        (["train.yaml", "--name="], Exit.USAGE, "--name= has an empty value"),
        (["train.yaml", "output_dir=/opt"], Exit.USAGE, "would hide"),
        (["train.yaml", "output_dir=/"], Exit.USAGE, "would hide"),
        (["train.yaml", "cache_dir=/usr/share/x"], Exit.USAGE, "would hide"),
        (["train.yaml", "output_dir=../saves"], Exit.USAGE, "leaves the checkout"),
        (["train.yaml", "model_name_or_path=saves/../../m"], Exit.USAGE, "leaves the checkout"),
        (["train.yaml", "bf16=true", "--gpus", "0"], Exit.PROBLEM, "use_cpu: true"),
        (["train.yaml", "output_dir=/tmp/a:b:x"], Exit.USAGE, "/tmp/a:b:x"),
        (["train.yaml", "-o", "nowhere/x"], Exit.USAGE, "nowhere"),
        (["train.yaml", "run_name=a b", "--gpus", "2"], Exit.USAGE, "blanks"),
    ],
)
def test_what_is_wrong_is_said_with_the_fix(
    place: Path, words: list[str], code: Exit, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sifkit("sbatch", *words) == code
    assert said in capsys.readouterr().err
    assert not (place / "train.sbatch").exists()


@pytest.mark.parametrize("words", [["--image", "x"], ["--nodes", "2"], ["--after", "7"], ["--array"], ["--requeue"]])
def test_a_verification_takes_no_option_of_a_training(
    place: Path, words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sifkit.run.Runner.which", lambda *_: "/bin/true")
    assert main(["submit", "--verify", "--gpus", "0", *words]) == Exit.USAGE
    assert "leave out what belongs to a training" in capsys.readouterr().err


def test_a_checkout_of_another_version_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "LF" / "src" / "llamafactory" / "extras" / "env.py").write_text('VERSION = "0.9.4"\n')
    assert sifkit("sbatch", "train.yaml") == Exit.PROBLEM
    assert "sifkit checkout 0.9.5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("image", "said"),
    [("exmaple", "did you mean example?"), ("x.sif", "no such file"), ("zzz", "images here: example")],
)
def test_an_image_that_is_not_there_is_named(
    place: Path, image: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sbatch", "--image", image, "--checkout", "LF", "train.yaml"]) == Exit.USAGE
    assert said in capsys.readouterr().err


def test_an_image_that_is_not_built_is_named_with_the_command(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "images" / "example.sif").unlink()
    assert sifkit("train", "train.yaml") == Exit.USAGE
    assert "python build.py example" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["submit", "train.yaml"], ["jobs"]])
def test_without_slurm_submitting_says_so(place: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command) == Exit.HOST
    assert "login node" in capsys.readouterr().err


def test_the_plain_line_hides_the_values_of_variables(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/x")
    assert sifkit("train", "train.yaml", "--print", "--nv") == Exit.OK
    out = capsys.readouterr().out
    assert 'APPTAINERENV_HF_TOKEN="$HF_TOKEN"' in out
    assert "secret" not in out
    assert "PYTHONPATH" not in out
    assert " exec --cleanenv --nv --pwd /mnt " in out


def test_configs_and_overrides_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b.yaml").touch()
    assert split_words(["a=b.yaml", "x=1"], array=False) == ((Path("a=b.yaml"),), ("x=1",))
    assert split_words(["a.yaml", "b.yaml"], array=True) == ((Path("a.yaml"), Path("b.yaml")), ())
    with pytest.raises(UsageError, match="2 configs"):
        split_words(["a.yaml", "b.yaml"], array=False)
    with pytest.raises(UsageError, match="no config"):
        split_words(["x=1"], array=False)
