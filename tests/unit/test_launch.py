"""What a run needs: its config, where it is in the container, and what is bound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sifkit.errors import SifkitError, UsageError
from sifkit.launch import ENVIRONMENT_PASSED, Launch, exec_argv, find_config, passed_names, plan_launch, read_training
from sifkit.model import Site
from tests.unit.jobs import make_launch, make_training

DOCS = Path(__file__).parents[2] / "docs" / "slurm.md"


def config(tmp_path: Path, **values: Any) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump({"dataset": "identity", "template": "llama3", "output_dir": "saves/x", **values}))
    return path


def options(launch: Launch) -> set[str]:
    return {bind.option() for bind in launch.binds}


def test_overrides_win_over_the_config(tmp_path: Path) -> None:
    training = read_training(config(tmp_path, max_steps=5), ["output_dir=/scratch/a b", "max_steps=7"])
    assert (training.output_dir, training.values["max_steps"]) == ("/scratch/a b", 7)
    assert training.overrides == ("output_dir=/scratch/a b", "max_steps=7")


@pytest.mark.parametrize("word", ["max_steps", "=1", "1x=2", "a b=1", "run_name=a\nb"])
def test_what_is_no_override_is_refused(word: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_training(config(tmp_path), [word])


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b"a: [",
        b"dataset: identity\n",
        b"dataset: a\noutput_dir: 5\n",
        b"a: 1\n" * 300000,
        b"dataset: a\noutput_dir: x\ncutoff_len: many\n",
        b"output_dir: x\n",
        b'dataset: a\noutput_dir: "a\\nb"\n',
    ],
    ids=range(10),
)
def test_what_is_no_training_config_is_named_without_a_traceback(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_bytes(text)
    with pytest.raises(UsageError):
        read_training(path)


def test_a_config_is_found_here_or_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "examples").mkdir(parents=True)
    (checkout / "examples" / "a.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert find_config(Path("examples/a.yaml"), checkout) == checkout / "examples" / "a.yaml"
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "a.yaml").touch()
    assert find_config(Path("examples/a.yaml"), checkout) == tmp_path / "examples" / "a.yaml"
    with pytest.raises(UsageError, match=r"b\.yaml"):
        find_config(Path("b.yaml"), checkout)


def test_a_config_of_the_checkout_is_named_as_its_examples_are() -> None:
    launch = make_launch(make_training(Path("/home/me/LLaMA-Factory/examples/a.yaml")))
    assert launch.command == ("llamafactory-cli", "train", "examples/a.yaml")
    assert options(launch) == {"/scratch/out:/scratch/out"}


@pytest.mark.parametrize("name", ["/home/me/LLaMA-Factory/my recipe.yaml", "/elsewhere/$(id).yaml", "/x/a.json"])
def test_any_other_config_gets_a_name_that_torchrun_does_not_split(name: str) -> None:
    launch = make_launch(make_training(Path(name)))
    inside = f"/sifkit/config/train{Path(name).suffix}"
    assert launch.command[2] == inside
    assert f"{name}:{inside}:ro" in options(launch)


def test_absolute_paths_of_the_config_are_bound_at_their_place(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / "0123"
    for path in (tmp_path / "model", tmp_path / "adapters" / "a", tmp_path / "adapters" / "b", snapshot):
        path.mkdir(parents=True)
    training = make_training(
        output_dir=f"{tmp_path}/out",
        model_name_or_path=f"{tmp_path}/model",
        adapter_name_or_path=f"{tmp_path}/adapters/a, {tmp_path}/adapters/b",
        ref_model=str(snapshot),
        tokenized_path=f"{tmp_path}/tokens",
        media_dir="/not/there",
        default_system="/" + "a long prompt " * 500,
    )
    assert options(make_launch(training)) == {
        "/home/me/train.yaml:/sifkit/config/train.yaml:ro",
        f"{tmp_path}/out:{tmp_path}/out",
        f"{tmp_path}/model:{tmp_path}/model:ro",
        f"{tmp_path}/adapters/a:{tmp_path}/adapters/a:ro",
        f"{tmp_path}/adapters/b:{tmp_path}/adapters/b:ro",
        f"{tmp_path}/hub/models--a--b:{tmp_path}/hub/models--a--b:ro",  # its files are links into ../../blobs
        f"{tmp_path}/tokens:{tmp_path}/tokens",
    }


def test_a_relative_output_dir_lies_in_the_checkout() -> None:
    assert make_launch(make_training(output_dir="saves/a")).output_dir == Path("/home/me/LLaMA-Factory/saves/a")
    assert make_launch(make_training(output_dir="/mnt/saves/a")).output_dir == Path("/home/me/LLaMA-Factory/saves/a")


def test_a_run_does_not_write_into_the_cached_checkout() -> None:
    training = make_training(output_dir="saves/a")
    with pytest.raises(UsageError, match="cached checkout"):
        plan_launch(
            Path("/i.sif"),
            Path("/cache/0.9.5"),
            training,
            site=Site(),
            nv=False,
            torchrun=False,
            hf_home=None,
            shared_checkout=True,
        )


def test_a_directory_below_one_that_is_bound_is_not_bound_again(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    training = make_training(output_dir=f"{tmp_path}/out", model_name_or_path=f"{tmp_path}/model")
    launch = make_launch(training, site=Site(binds=(str(tmp_path),)))
    assert options(launch) == {f"{tmp_path}:{tmp_path}", "/home/me/train.yaml:/sifkit/config/train.yaml:ro"}
    read_only = make_launch(training, site=Site(binds=(f"{tmp_path}:{tmp_path}:ro",)))
    assert f"{tmp_path}/out:{tmp_path}/out" in options(read_only)  # it must be writable


def test_the_command_line_is_the_plain_one() -> None:
    launch = make_launch(make_training(Path("/home/me/LLaMA-Factory/examples/a.yaml"), "max_steps=3"), nv=True)
    assert exec_argv(launch, cache=Path("/c"), env={"A": "1"}) == [
        *("apptainer", "exec", "--cleanenv", "--nv", "--pwd", "/mnt"),
        *("--bind", "/home/me/LLaMA-Factory:/mnt", "--bind", "/scratch/out:/scratch/out", "--bind", "/c:/sifkit/cache"),
        *("--env", "A=1", "/images/one.sif", "llamafactory-cli", "train", "examples/a.yaml", "max_steps=3"),
    ]


@pytest.mark.parametrize("key", ["deepspeed", "fsdp"])
def test_deepspeed_and_fsdp_want_torchrun_on_one_gpu(key: str) -> None:
    assert make_launch(make_training(**{key: "full_shard"})).torchrun  # type: ignore[arg-type]
    assert not make_launch(make_training()).torchrun


def test_a_path_that_apptainer_cannot_bind_is_said_now() -> None:
    with pytest.raises(SifkitError, match="cannot bind"):
        make_launch(make_training(output_dir="/scratch/a:b"))


def test_the_environment_that_is_passed_is_in_the_docs() -> None:
    assert passed_names({"HF_TOKEN": "x", "PYTHONPATH": "/x", "hf_token": "", "SLURM_JOB_ID": "1"}) == [
        "HF_TOKEN",
        "SLURM_JOB_ID",
    ]
    page = DOCS.read_text()
    assert [name for name in ENVIRONMENT_PASSED if f"`{name}`" not in page] == []
