"""`outputs`, `prune` and `explain` on what the real LLaMA-Factory of the default image leaves and knows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from sifkit import checkout
from sifkit.apptainer import Apptainer, Bind
from sifkit.cli import main
from sifkit.errors import Exit
from sifkit.progress import PlainProgress
from sifkit.run import Command, Runner
from sifkit.rundir.checkpoints import Status
from sifkit.rundir.files import Kind
from sifkit.rundir.read import End, read_run
from sifkit.site import user_cache
from sifkit.verify.container import IN_CHECKOUT, IN_WORK, Container

pytestmark = pytest.mark.image

SHORT = f"""model_name_or_path={IN_WORK}/model template=qwen3_nothink max_samples=16 cutoff_len=128
    logging_steps=1 save_steps=3 plot_loss=true preprocessing_num_workers=1 dataloader_num_workers=0 report_to=none
    gradient_accumulation_steps=1 overwrite_output_dir=false save_only_model=false use_cpu=true bf16=false"""
EVALUATED = "val_size=0.25 eval_strategy=steps eval_steps=3 per_device_eval_batch_size=1"

Train = Callable[[str, str, str], Path]


@pytest.fixture(scope="session")
def llamafactory() -> Path:
    """A whole checkout of the default image's version; fetched once, kept in the cache."""
    runner, progress = Runner(os.environ), PlainProgress(Console(stderr=True))
    return checkout.cached("0.9.5", user_cache(os.environ), runner, progress)


@pytest.fixture(scope="session")
def container(
    default_sif: Path, apptainer: Apptainer, llamafactory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Container:
    """The image with the checkout and a smoke model in its work directory."""
    work = tmp_path_factory.mktemp("runs")
    made = Container(apptainer, default_sif, work, nv=False, binds=(Bind(llamafactory, IN_CHECKOUT),))
    words = ("qwen3_nothink", f"{IN_CHECKOUT}/data/alpaca_en_demo.json", f"{IN_WORK}/model")
    answer = made.ask("smoke_model", *words, log=work / "model.log")
    assert answer.facts is not None, answer.said
    return made


@pytest.fixture(scope="session")
def train(container: Container) -> Train:
    """`train(name, config, overrides)`: the output directory of a run of six steps; each is made once."""
    done: dict[str, Path] = {}

    def run(name: str, config: str, overrides: str) -> Path:
        if name not in done:
            words = (*SHORT.split(), "max_steps=6", *overrides.split(), f"output_dir={IN_WORK}/{name}")
            argv = ("llamafactory-cli", "train", f"examples/train_lora/{config}.yaml", *words)
            result = container.run(argv, log=container.work / f"{name}.log", cwd=IN_CHECKOUT)
            assert result.returncode == 0, "\n".join(result.tail)
            done[name] = container.work / name
        return done[name]

    return run


def test_every_file_of_a_lora_run_has_a_purpose_and_is_whole(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    directory = train("sft", "qwen3_lora_sft", f"{EVALUATED} load_best_model_at_end=true")
    assert main(["outputs", "--json", str(directory)]) == Exit.OK
    said = json.loads(capsys.readouterr().out)
    assert (said["whole"], said["finished"], said["method"]) == (True, True, "lora")
    assert said["steps"] == {"current": 6, "total": 6, "restarts": 0}
    assert [file["name"] for file in said["files"] if not file["purpose"] or file["fault"]] == []
    assert {"README.md", "adapter_model.safetensors", "training_loss.png", "training_eval_loss.png"} <= {
        file["name"] for file in said["files"]
    }
    assert [each["status"] for each in said["checkpoints"]] == ["complete", "complete"]
    assert said["best_checkpoint"] in ("checkpoint-3", "checkpoint-6")
    assert said["loss"]["count"] == 6


def test_a_reward_model_of_all_weights_is_known(train: Train) -> None:
    run = read_run(train("rm", "qwen3_lora_reward", f"{EVALUATED} finetuning_type=full"))
    assert (run.end, run.whole, run.method, run.stage) == (End.FINISHED, True, "full", "rm")
    assert [file.name for file in run.files if file.purpose is None] == []
    assert "value_head.safetensors" in {file.name for file in run.files}


def test_preferences_are_known(train: Train) -> None:
    run = read_run(train("dpo", "qwen3_lora_dpo", ""))
    assert (run.end, run.whole, run.method, run.stage) == (End.FINISHED, True, "lora", "dpo")
    assert [file.name for file in run.files if file.purpose is None] == []


def test_a_checkpoint_pruned_of_its_optimizer_still_trains_on(train: Train, container: Container) -> None:
    """The weights are whole: LLaMA-Factory goes on from them, with a new optimizer."""
    directory = train("dpo", "qwen3_lora_dpo", "")
    assert main(["prune", "--optimizer-only", "--yes", str(directory)]) == Exit.OK
    run = read_run(directory)
    assert [each.status for each in run.checkpoints] == [Status.MODEL_ONLY] * 2
    assert run.whole
    words = (*SHORT.split(), "max_steps=7", f"output_dir={IN_WORK}/dpo")
    argv = ("llamafactory-cli", "train", "examples/train_lora/qwen3_lora_dpo.yaml", *words)
    result = container.run(argv, log=container.work / "again.log", cwd=IN_CHECKOUT)
    assert result.returncode == 0, "\n".join(result.tail)
    after = read_run(directory)
    assert (after.log.current_steps, after.log.restarts, after.end) == (7, 0, End.FINISHED)


def test_the_best_checkpoint_survives_a_prune(train: Train) -> None:
    directory = train("sft", "qwen3_lora_sft", f"{EVALUATED} load_best_model_at_end=true")
    best = read_run(directory).best
    assert main(["prune", "--yes", str(directory)]) == Exit.OK
    run = read_run(directory)
    assert [each.name for each in run.checkpoints] == [best]
    assert run.whole


def test_a_running_job_is_refused_and_a_killed_one_pruned(container: Container, apptainer: Apptainer) -> None:
    """The trainer runs in a container that calls the directory otherwise; it is seen by device and inode."""
    directory = container.work / "killed"
    process = start(container, apptainer, "killed")
    try:
        wait_for(directory / "checkpoint-6" / "trainer_state.json", process)
        assert main(["prune", "--stopped", "--yes", str(directory)]) == Exit.PROBLEM
        assert (directory / "checkpoint-3").is_dir()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    run = read_run(directory)
    assert (run.end, run.resumable is not None) == (End.UNFINISHED, True)
    assert main(["prune", "--yes", str(directory)]) == Exit.PROBLEM  # it may run on another node
    assert main(["prune", "--stopped", "--yes", str(directory)]) == Exit.OK
    left = [file.name for file in read_run(directory).files if file.kind is Kind.DIRECTORY]
    assert run.resumable is not None
    assert left == [run.resumable.name]


def start(container: Container, apptainer: Apptainer, name: str) -> subprocess.Popen[bytes]:
    """A long run in a process group of its own."""
    words = (*SHORT.split(), "max_steps=100000", "save_total_limit=null", f"output_dir={IN_WORK}/{name}")
    binds = [f"{container.work}:{IN_WORK}", f"{container.binds[0].source}:{IN_CHECKOUT}:ro"]
    argv = [apptainer.program, "exec", "--cleanenv", "--no-home", "--pwd", IN_CHECKOUT]
    argv += [word for bind in binds for word in ("--bind", bind)]
    argv += ["--env", f"HF_HOME={IN_WORK}/hf,TMPDIR={IN_WORK}/tmp,MPLCONFIGDIR={IN_WORK}/mpl", str(container.image)]
    argv += ["llamafactory-cli", "train", "examples/train_lora/qwen3_lora_sft.yaml", *words]
    env = {**os.environ, **Command((), env=apptainer.privileges.run_env).env}
    with (container.work / f"{name}.log").open("wb") as log:
        return subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[bytes], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, "the run ended"
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.1)


def test_every_key_of_the_examples_is_known_and_fits(
    llamafactory: Path, default_sif: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipes that LLaMA-Factory ships for this trainer; those for others have keys of their own."""
    configs = sorted(llamafactory.glob("examples/train_[lf]*/*.yaml"))
    assert len(configs) > 8
    for config in configs:
        if "ray" not in config.name:
            assert main(["explain", str(config), "--image", str(default_sif)]) == Exit.OK, capsys.readouterr().err


def test_what_explain_calls_wrong_llamafactory_refuses(
    container: Container, default_sif: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = container.work / "wrong.yaml"
    config.write_text("model_name_or_path: x\noutput_dir: y\ndo_train: true\nlearnig_rate: 1.0e-4\n")
    assert main(["explain", str(config), "--image", str(default_sif)]) == Exit.PROBLEM
    assert "did you mean learning_rate?" in capsys.readouterr().err
    argv = ("llamafactory-cli", "train", f"{IN_WORK}/wrong.yaml")
    result = container.run(argv, log=container.work / "wrong.log", cwd=IN_CHECKOUT)
    assert result.returncode != 0
    assert any("learnig_rate" in line for line in result.tail)
