"""What is read from a checkout, without fetching anything."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from sifkit import checkout
from sifkit.checkout import Sources, extract_plain, problems, unpack, version_of
from sifkit.errors import ProblemFound, UsageError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A whole checkout, as small as one can be."""
    root = tmp_path / "LLaMA-Factory"
    for name, text in {
        "src/llamafactory/extras/env.py": "import platform\n\nVERSION = '0.9.5'\n\ndef print_env() -> None: ...\n",
        "data/dataset_info.json": json.dumps({"identity": {"file_name": "identity.json"}}),
        "data/identity.json": "[]",
        "examples/train_lora/qwen3_lora_sft.yaml": "stage: sft\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def messages(tree: Path, version: str | None = "0.9.5") -> list[str]:
    return [problem.message.replace(str(tree), "TREE") for problem in problems(tree, version)]


def test_whole_checkout_has_no_problems(tree: Path) -> None:
    assert problems(tree, "0.9.5") == ()
    assert problems(tree, None) == ()
    assert version_of(tree) == "0.9.5"


def test_version_is_read_without_running_the_file(tree: Path) -> None:
    (tree / checkout.VERSION_FILE).write_text("raise SystemExit\nVERSION = '0.9.4'\n")
    assert version_of(tree) == "0.9.4"


@pytest.mark.parametrize("text", ["", "VERSION = 1\n", "VERSION = (\n", "def f():\n    VERSION = '1'\n"])
def test_directory_without_a_version_is_no_checkout(tree: Path, text: str) -> None:
    (tree / checkout.VERSION_FILE).write_text(text)
    with pytest.raises(UsageError, match="is no checkout of LLaMA-Factory") as caught:
        version_of(tree)
    assert "sifkit checkout" in (caught.value.fix or "")
    assert len(problems(tree, None)) == 1


def test_other_version_is_named_with_the_command_that_mends_it(tree: Path) -> None:
    (problem,) = problems(tree, "0.9.4")
    assert "is LLaMA-Factory 0.9.5, not 0.9.4" in problem.message
    assert "sifkit checkout 0.9.4 DIR" in problem.fix


def test_missing_dataset_files_are_listed(tree: Path) -> None:
    info = {"a": {"file_name": "a.json"}, "b": {"file_name": "b"}, "identity": {"file_name": "identity.json"}}
    (tree / "data/dataset_info.json").write_text(json.dumps(info))
    assert messages(tree) == ["data/dataset_info.json of TREE names files that are not in data/: a.json, b"]


@pytest.mark.parametrize("key", ["hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"])
def test_dataset_that_is_not_a_local_file_is_not_looked_for(tree: Path, key: str) -> None:
    info = {"far": {"file_name": "far.json", key: "x"}, "own": {"file_name": "/scratch/own.json"}}
    (tree / "data/dataset_info.json").write_text(json.dumps(info))
    assert messages(tree) == []


def test_dataset_info_that_was_lost_is_explained_by_the_releases_that_lost_it(tree: Path) -> None:
    (tree / "data/dataset_info.json").unlink()
    (problem,) = problems(tree, None)
    assert "has no data/dataset_info.json" in problem.message
    assert "0.9.1 to 0.9.3" in problem.fix


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_unreadable_dataset_info_is_a_problem(tree: Path, text: str) -> None:
    (tree / "data/dataset_info.json").write_text(text, encoding="latin-1")
    (message,) = messages(tree)
    assert message.startswith("TREE/data/dataset_info.json cannot be read")


def test_missing_examples_are_a_problem(tree: Path) -> None:
    (tree / "examples/train_lora/qwen3_lora_sft.yaml").unlink()
    assert messages(tree) == ["TREE has no examples/train_lora/*_lora_sft.yaml"]


def test_sources_take_uvs_index_and_the_hosts_certificates_for_pip() -> None:
    environ = {"UV_DEFAULT_INDEX": "https://mirror/simple", "SSL_CERT_FILE": "/ca.pem", "PIP_RETRIES": "1", "HOME": "/"}
    wanted = {"PIP_INDEX_URL": "https://mirror/simple", "PIP_CERT": "/ca.pem", "PIP_RETRIES": "1"}
    assert Sources.from_environ(environ) == Sources(pip_env=wanted)


def test_pips_own_settings_come_before_what_is_derived() -> None:
    environ = {"UV_INDEX_URL": "https://a", "PIP_INDEX_URL": "https://b", "SSL_CERT_FILE": "/a", "PIP_CERT": "/b"}
    assert Sources.from_environ(environ).pip_env == {"PIP_INDEX_URL": "https://b", "PIP_CERT": "/b"}


def test_the_sites_index_comes_before_all_others() -> None:
    sources = Sources.from_environ({"PIP_INDEX_URL": "https://b"}, index_url="https://site")
    assert sources.pip_env == {"PIP_INDEX_URL": "https://site"}


def archive_of(path: Path, *members: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member in members:
            member.size = 1 if member.isreg() else 0
            tar.addfile(member, io.BytesIO(b"x"))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    return info


@pytest.fixture(params=["with filters", "without filters"])
def python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both kinds of Python: with tarfile's extraction filters, and from before they existed."""
    if request.param == "without filters":
        monkeypatch.setattr(checkout, "_extract", extract_plain)


@pytest.mark.usefixtures("python")
def test_archive_is_unpacked_to_its_top_directory(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", member("top/dir/file"), member("top/run.sh", mode=0o4755))
    top = unpack(archive, tmp_path / "into")
    assert top == tmp_path / "into" / "top"
    assert sorted(path.name for path in top.rglob("*")) == ["dir", "file", "run.sh"]
    assert (top / "run.sh").stat().st_mode & 0o7777 == 0o755


@pytest.mark.usefixtures("python")
@pytest.mark.parametrize(
    "bad",
    [
        [member("top/../../evil")],
        [member("top/link", tarfile.SYMTYPE, "/tmp"), member("top/link/../../../evil")],
    ],
)
def test_archive_that_leaves_its_directory_writes_nothing_outside(tmp_path: Path, bad: list[tarfile.TarInfo]) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", member("top/file"), *bad)
    with pytest.raises(ProblemFound, match="is damaged"):
        unpack(archive, tmp_path / "into")
    assert not (tmp_path / "evil").exists()


def test_plain_extraction_leaves_links_and_devices_out(tmp_path: Path) -> None:
    members = [
        member("top/file"),
        member("top/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("top/dev", tarfile.CHRTYPE),
    ]
    with tarfile.open(archive_of(tmp_path / "a.tar.gz", *members)) as tar:
        extract_plain(tar, tmp_path / "into")
    assert [path.name for path in (tmp_path / "into" / "top").iterdir()] == ["file"]


@pytest.mark.parametrize("cut", [10, 60])
def test_damaged_archive_is_said_to_be_damaged(tmp_path: Path, cut: int) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", member("top/file"))
    archive.write_bytes(archive.read_bytes()[:cut])
    with pytest.raises(ProblemFound, match=r"a\.tar\.gz is damaged"):
        unpack(archive, tmp_path / "into")


def test_archive_of_two_trees_is_no_source_archive(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.gz", member("one/file"), member("two/file"))
    with pytest.raises(ProblemFound, match="no source archive"):
        unpack(archive, tmp_path / "into")
