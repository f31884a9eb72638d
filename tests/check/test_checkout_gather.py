from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sifkit.check.facts import DatasetFacts
from sifkit.gather import looking
from sifkit.gather.checkout import gather_checkpoints
from sifkit.gather.looking import links_outside
from sifkit.gather.model_files import hub_of
from sifkit.gather.parquet import NotParquet, read_shape
from sifkit.gather.rows import WHOLE, read_sample, tokens
from tests.check.checkout_tree import ALPACA, Tree, make_tree, safetensors

PARQUET = Path(__file__).with_name("data") / "three-rows.parquet"  # written by datasets 4.0.0 and pyarrow 26.0.1


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return make_tree(tmp_path)


def dataset(tree: Tree, name: str = "mine", **values: object) -> DatasetFacts:
    return tree.gather({"dataset": name, **values}).datasets[0]


def data(tree: Tree, content: str, ending: str = "json") -> DatasetFacts:
    tree.register(mine={"file_name": f"mine.{ending}"})
    tree.write(f"data/mine.{ending}", content)
    return dataset(tree)


# ---------------------------------------------------------------------------------------------- the checkout


def test_a_whole_checkout_has_no_problems_and_says_its_version(tree: Tree) -> None:
    found = tree.gather({"dataset": "alpaca_en_demo"})
    assert (found.version, found.problems, found.info_problem) == ("0.9.5", (), None)
    assert found.dataset_info_path == tree.root / "data/dataset_info.json"


def test_what_is_no_checkout_is_a_problem_and_no_error(tmp_path: Path) -> None:
    found = Tree(tmp_path, tmp_path).gather({"dataset": "x"})
    assert found.version is None
    assert "is no checkout of LLaMA-Factory" in found.problems[0].message


def test_dataset_info_that_does_not_parse_says_where(tree: Tree) -> None:
    tree.write("data/dataset_info.json", '{\n  "a": {},\n  x\n}')
    found = tree.gather({"dataset": "a"})
    assert (found.dataset_info, found.datasets) == (None, ())
    assert found.info_problem is not None
    assert (found.info_problem.message[:13], found.info_problem.line) == ("it is no JSON", 3)


@pytest.mark.parametrize("where", ["ONLINE", "REMOTE:org/data"])
def test_datasets_registered_online_are_not_looked_for(tree: Tree, where: str) -> None:
    found = tree.gather({"dataset": "org/data", "dataset_dir": where})
    assert (found.dataset_info, found.dataset_info_path, found.datasets) == (None, None, ())


def test_a_mapping_in_dataset_dir_is_dataset_info_itself(tree: Tree) -> None:
    tree.write("rows.json", ALPACA)
    found = tree.gather({"dataset": "mine", "dataset_dir": {"mine": {"file_name": "rows.json"}}})
    assert found.datasets[0].rows == 2


# ---------------------------------------------------------------------------------------------- rows


def test_rows_columns_and_length_of_a_small_file_are_exact(tree: Tree) -> None:
    found = dataset(tree, "alpaca_en_demo")
    assert (found.rows, found.exact, found.columns) == (2, True, frozenset({"instruction", "input", "output"}))
    assert found.first == ALPACA[0]
    assert found.mean_tokens == pytest.approx((13 + 5) / 3.6 / 2)


@pytest.mark.parametrize(
    "content",
    [
        '{"a": "x"}\n{"a": "y"}\n',  # a row a line
        '{"a": "x"}\n\n{"a": "y"}',
        '{"a": "x"}{"a": "y"}',  # what pyarrow takes, too
        '{\n "a": "x"\n}\n{\n "a": "y"\n}',
        '\ufeff{"a": "x"}\n{"a": "y"}\n',
        '[{"a": "x"}, {"a": "y"}]',
    ],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_every_form_of_json_that_datasets_takes_is_read(tree: Tree, content: str, ending: str) -> None:
    found = data(tree, content, ending)
    assert (found.rows, found.problem, found.columns) == (2, None, frozenset({"a"}))


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        ("", None, "it holds no rows"),
        ("[]", None, "it holds no rows"),
        ('[{"a": "x"},\n{"a": \n]', 3, "it is no JSON: Expecting value"),
        ('\ufeff[{"a": "x"}]', 1, "it is no JSON: Unexpected UTF-8 BOM"),
        ('{"a": "x"}\n{"a": tru}\n', 2, "it is no JSON: Expecting value"),
        ('{"a": "x"}\n{"a": {"b": 1}}\n', None, "column a is a text in earlier rows and an object in row 2"),
        ('[{"a": "x"}, 3]', None, "row 2 is no object of columns"),
        ("[" * 100_000, None, "it is nested too deeply"),
    ],
)
def test_what_datasets_refuses_is_a_problem_with_its_line(
    tree: Tree, content: str, line: int | None, said: str
) -> None:
    found = data(tree, content)
    assert found.problem is not None
    assert said in found.problem
    assert found.line == line


def test_bytes_that_are_no_utf8_are_a_problem(tree: Tree) -> None:
    tree.register(mine={"file_name": "mine.json"})
    (tree.root / "data/mine.json").write_bytes('[{"a":\n"é"}]'.encode("latin-1"))
    assert (dataset(tree).problem, dataset(tree).line) == ("data/mine.json: it is not UTF-8: byte 0xe9", 2)


@pytest.mark.parametrize("array", [True, False])
def test_a_large_file_is_estimated_from_its_first_rows(tree: Tree, array: bool) -> None:
    row = json.dumps({"instruction": "x" * 980, "input": "", "output": "y"})
    text = f"[{','.join([row] * 6000)}]" if array else "\n".join([row] * 6000)
    found = data(tree, text)
    assert not found.exact
    assert found.rows == pytest.approx(6000, rel=0.01)


def test_a_large_array_that_is_cut_off_is_a_problem(tree: Tree) -> None:
    found = data(tree, "[" + ",".join(['{"a": "' + "x" * 1000 + '"}'] * 6000))
    assert found.problem == "data/mine.json: it is cut off: its array has no end"


def test_a_first_row_of_megabytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(f'[{{"a": "{"x" * 1_000_000}"}}, {{"a": "{"y" * 5_000_000}"}}]')
    assert path.stat().st_size > WHOLE
    assert read_sample(path, "json", path.stat().st_size).named() == frozenset({"a"})


def test_gigabytes_take_no_time(tree: Tree) -> None:
    tree.register(mine={"file_name": "mine.jsonl"})
    path = tree.write("data/mine.jsonl", '{"a": "x"}\n' * 30_000)
    os.truncate(path, 40 << 30)
    start = time.monotonic()
    assert dataset(tree).rows is not None
    assert time.monotonic() - start < 1


def test_csv_and_text_are_read_too(tree: Tree) -> None:
    assert data(tree, 'a,b\n1,"x\ny"\n2,z\n', "csv").rows == 2
    found = data(tree, "one\ntwo\n", "txt")
    assert (found.rows, found.columns) == (2, frozenset({"text"}))


def test_the_end_of_a_parquet_file_says_rows_and_columns(tree: Tree) -> None:
    tree.register(mine={"file_name": "mine.parquet"})
    path = tree.root / "data/mine.parquet"
    path.write_bytes(PARQUET.read_bytes())
    found = dataset(tree)
    assert (found.rows, found.columns, found.exact) == (3, frozenset({"instruction", "conversations", "images"}), True)
    path.write_bytes(PARQUET.read_bytes()[:-20])
    assert dataset(tree).problem == "data/mine.parquet: it is cut off"
    path.write_bytes(b"PAR1" + PARQUET.read_bytes()[4:300])
    assert dataset(tree).problem == "data/mine.parquet: it is cut off"


def test_no_damage_to_a_parquet_file_raises_anything_else(tmp_path: Path) -> None:
    content = PARQUET.read_bytes()
    path = tmp_path / "a.parquet"
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        with contextlib.suppress(NotParquet):
            read_shape(path, len(content))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.json", "b.csv"], "its directory holds files of several types: a.json, b.csv"),
        (["a.json", ".DS_Store"], ".DS_Store has no ending of a data file"),
        ([], "its directory is empty"),
    ],
)
def test_a_directory_holds_one_type_of_data(tree: Tree, names: list[str], said: str) -> None:
    tree.register(mine={"file_name": "mine"})
    (tree.root / "data/mine").mkdir()
    for name in names:
        tree.write(f"data/mine/{name}", ALPACA)
    assert said in (dataset(tree).problem or "")


def test_the_files_of_a_directory_count_together(tree: Tree) -> None:
    tree.register(mine={"file_name": "mine"})
    for name in ("a.json", "b.jsonl"):
        tree.write(f"data/mine/{name}", ALPACA)
    assert (dataset(tree).rows, dataset(tree).exact) == (4, True)


def test_a_pipe_in_the_place_of_data_is_not_opened(tree: Tree) -> None:
    tree.register(mine={"file_name": "mine.json"})
    os.mkfifo(tree.root / "data/mine.json")
    assert dataset(tree).rows is None


def test_who_speaks_and_which_media_are_missing_is_read(tree: Tree) -> None:
    tree.register(mine={"file_name": "m.json", "formatting": "sharegpt", "columns": {"messages": "m", "images": "i"}})
    tree.write("data/m.json", [{"m": [{"from": "human", "value": "<image>"}], "i": ["here.jpg", "gone.jpg"]}])
    tree.write("data/here.jpg", "x")
    found = dataset(tree)
    assert (found.roles, found.message_keys) == (frozenset({"human"}), frozenset({"from", "value"}))
    assert found.absent_media == ("gone.jpg",)


@pytest.mark.parametrize(("text", "least", "most"), [("word " * 100, 100, 160), ("汉字" * 100, 100, 200), ("", 0, 0)])
def test_tokens_are_estimated_by_alphabet(text: str, least: int, most: int) -> None:
    assert least <= tokens(text) <= most


# ---------------------------------------------------------------------------------------------- links


def test_a_link_within_the_checkout_stays_there(tree: Tree) -> None:
    (tree.root / "data/link.json").symlink_to("alpaca_en_demo.json")
    assert links_outside(tree.root / "data/link.json", tree.root) == ()


def test_an_absolute_link_is_followed_as_the_container_does(tree: Tree, tmp_path: Path) -> None:
    (tree.root / "data/link.json").symlink_to(tmp_path / "far/link2.json")
    (tmp_path / "far").mkdir()
    (tmp_path / "far/link2.json").symlink_to("real.json")
    found = links_outside(tree.root / "data/link.json", tree.root)
    assert found == (tmp_path / "far/link2.json", tmp_path / "far/real.json")


def test_a_linked_directory_takes_what_is_below_it_along(tree: Tree, tmp_path: Path) -> None:
    (tree.root / "more").symlink_to(tmp_path / "far")
    assert links_outside(tree.root / "more/a.json", tree.root) == (tmp_path / "far/a.json",)


def test_a_link_that_climbs_out_lands_beside_mnt(tree: Tree) -> None:
    (tree.root / "up").symlink_to("../shared")
    assert links_outside(tree.root / "up/a.json", tree.root) == (Path("/shared/a.json"),)


def test_a_link_to_itself_ends(tree: Tree) -> None:
    (tree.root / "loop").symlink_to("loop")
    assert links_outside(tree.root / "loop", tree.root) == ()


# ---------------------------------------------------------------------------------------------- models


def test_a_models_directory_says_config_size_and_what_is_missing(tree: Tree) -> None:
    model = tree.model("sharded")
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (found,) = tree.gather({"model_name_or_path": str(model)}).paths
    assert found.json is not None
    assert (found.json["model_type"], found.size) == ("llama", len(safetensors()))
    assert found.missing == ("model-00002-of-00002.safetensors",)


def test_pointers_and_cut_off_weights_are_told(tree: Tree) -> None:
    model = tree.model("cut")
    (model / "model.safetensors").write_bytes(safetensors()[:-2])
    (model / "model-2.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (found,) = tree.gather({"model_name_or_path": str(model)}).paths
    assert (found.damaged, found.pointers) == (("model.safetensors is cut off",), ("model-2.safetensors",))


def test_adapters_are_split_at_commas_and_each_is_looked_at(tree: Tree) -> None:
    found = tree.gather({"adapter_name_or_path": "saves/x/a, saves/x/b"}).at("adapter_name_or_path")
    assert [(path.text, path.host, path.exists) for path in found] == [
        ("saves/x/a", tree.root / "saves/x/a", False),
        ("saves/x/b", tree.root / "saves/x/b", False),
    ]


def test_a_path_below_mnt_is_looked_for_in_the_checkout(tree: Tree) -> None:
    (found,) = tree.gather({"deepspeed": "/mnt/data/dataset_info.json"}).paths
    assert (found.host, found.exists) == (tree.root / "data/dataset_info.json", True)


def test_deepspeed_as_a_mapping_is_no_path(tree: Tree) -> None:
    assert tree.gather({"deepspeed": {"zero_optimization": {"stage": 2}}}).paths == ()


def hub(folder: Path, *, whole: bool = True) -> Path:
    cache = folder / "hf/hub/models--org--small"
    snapshot = cache / "snapshots/abc"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs/main").write_text("abc")
    snapshot.mkdir(parents=True)
    for name, content in (("config.json", b'{"model_type": "llama"}'), ("model.safetensors", safetensors())):
        if whole or name == "config.json":
            (cache / "blobs" / name).write_bytes(content)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    return folder / "hf"


def test_a_snapshot_in_the_hubs_cache_is_the_model(tree: Tree, tmp_path: Path) -> None:
    found = tree.gather({"model_name_or_path": "org/small"}, environ={"HF_HOME": str(hub(tmp_path))})
    (model,) = found.hub
    assert (model.snapshot, model.missing) == (tmp_path / "hf/hub/models--org--small/snapshots/abc", ())
    (path,) = found.paths
    assert (path.text, path.json, path.size) == ("org/small", {"model_type": "llama"}, len(safetensors()))


def test_a_snapshot_with_a_broken_link_is_not_whole(tree: Tree, tmp_path: Path) -> None:
    home = hub(tmp_path, whole=False)
    (home / "hub/models--org--small/blobs/x.incomplete").write_text("")
    (model,) = tree.gather({"model_name_or_path": "org/small"}, environ={"HF_HOME": str(home)}).hub
    assert (model.missing, model.partial) == (("model.safetensors",), 1)


@pytest.mark.parametrize(
    ("environ", "below"),
    [
        ({"HOME": "/h"}, "/h/.cache/huggingface/hub"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "/f"}, "/f/hub"),
        ({"HF_HOME": "/f", "HF_HUB_CACHE": "/c"}, "/c"),
        ({"HF_HOME": "/f", "HUGGINGFACE_HUB_CACHE": "/c"}, "/c"),
        ({"HOME": "/h", "USE_MODELSCOPE_HUB": "1"}, "/h/.cache/modelscope/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_client_looks(environ: dict[str, str], below: str) -> None:
    assert hub_of({}, environ, None).cache == Path(below)
    assert hub_of({"cache_dir": "/own"}, environ, "/site").cache == Path("/own")


@pytest.mark.parametrize(
    ("environ", "offline", "token"),
    [
        ({}, False, False),
        ({"HF_HUB_OFFLINE": "1"}, True, False),
        ({"TRANSFORMERS_OFFLINE": "yes", "HF_TOKEN": "hf_x"}, True, True),
    ],
)
def test_offline_and_token_are_seen(environ: dict[str, str], offline: bool, token: bool) -> None:
    found = hub_of({}, environ, None)
    assert (found.offline, found.token) == (offline, token)


def test_what_a_launch_does_not_hand_over_does_not_count(tree: Tree) -> None:
    environ = {"HOME": "/h", "XDG_CACHE_HOME": "/x", "TRANSFORMERS_OFFLINE": "1"}
    (model,) = tree.gather({"model_name_or_path": "org/small"}, environ=environ).hub
    assert (model.cache, model.offline) == (Path("/h/.cache/huggingface/hub"), False)


# ---------------------------------------------------------------------------------------------- checkpoints


def checkpoint(output: Path, step: int, *without: str) -> None:
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    files = ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")
    for name in files:
        if name not in without:
            (folder / name).write_text(json.dumps({"global_step": step, "log_history": []}))


def test_checkpoints_are_judged_by_what_resuming_needs(tmp_path: Path) -> None:
    checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 200, "trainer_state.json")
    checkpoint(tmp_path, 50, "optimizer.pt", "scheduler.pt")
    (tmp_path / "checkpoint-tmp").mkdir()
    assert [(each.step, each.missing) for each in gather_checkpoints(tmp_path)] == [
        (50, ("the optimizer",)),
        (100, ()),
        (200, ("trainer_state.json",)),
    ]


def test_a_mount_that_does_not_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()
    monkeypatch.setattr(looking, "ANSWERS_WITHIN", 0.05)
    assert looking.answer(answered.wait) is None
    answered.set()


def test_what_looking_raises_is_not_swallowed() -> None:
    assert looking.answer(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        looking.answer(lambda: 1 // 0)


def test_a_directory_of_thousands_of_files_is_looked_at_quickly(tree: Tree) -> None:
    tree.register(mine={"file_name": "mine"})
    for number in range(3000):
        tree.write(f"data/mine/{number}.jsonl", ALPACA)
    start = time.monotonic()
    assert dataset(tree).exact is False
    assert time.monotonic() - start < 1


def test_odd_values_of_a_config_raise_nothing(tree: Tree) -> None:
    odd = ["\0", "x" * 5000, "", 7, None, ["a", 3], {"a": 1}, "~/x", "data/\udcff", True, "/mnt", "//", "{}", "a,b,"]
    for value in odd:
        for key in ("dataset", "dataset_dir", "model_name_or_path", "deepspeed", "output_dir", "adapter_name_or_path"):
            tree.gather({"dataset": "alpaca_en_demo", key: value})


def test_odd_entries_of_dataset_info_raise_nothing(tree: Tree) -> None:
    for entry in ({}, {"file_name": 3}, {"file_name": "\0"}, {"columns": 3, "file_name": "alpaca_en_demo.json"}):
        tree.register(mine=entry)
        assert replace(dataset(tree), files=()).name == "mine"
