"""Rows 23 to 48 of the catalogue of failures, planted; tests/check/test_catalogue.py says how."""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sifkit.check.rule import Severity
from sifkit.compat.check import check
from sifkit.compat.findings import Target
from sifkit.errors import UsageError
from sifkit.hashes import sha256_of
from sifkit.lock import parse_lock
from sifkit.plan import Recipe
from sifkit.store import Manifest, Store
from sifkit.verify.kernel import judge_kernels
from tests.check import good
from tests.check.good import GIB, HOST, IMAGE, JOB
from tests.check.planting import Ground, do, host, is_well, job, only, place, refuses
from tests.conftest import TABLES, lock_text, make_spec

# ---------------------------------------------------------------------------------------------- 23 to 34


def test_row_23_a_tmpdir_that_is_not_there(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(ground.folder / "gone"))
    (finding,) = [each for each in ground.found("ENV008") if "TMPDIR" in each["message"]]
    do(finding["fix"].split(", or ")[0])
    assert not any("TMPDIR" in each["message"] for each in ground.found("ENV008"))


def test_row_23_no_room_to_build() -> None:
    small = tuple(replace(each, free=GIB) for each in HOST.places)
    assert "export TMPDIR=" in only("ENV008", host=replace(HOST, places=small)).fix
    assert is_well("ENV008", host=replace(HOST, places=(*small, place("APPTAINER_TMPDIR", "/scratch"))))


@pytest.fixture
def few_files() -> Iterator[None]:
    """At most 256 open files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("few_files")
def test_row_23_few_open_files(ground: Ground) -> None:
    fix = ground.one("ENV014")["fix"]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(fix.removeprefix("ulimit -n ")), hard))
    assert ground.is_mended("ENV014")


def test_row_24_no_range_of_ids() -> None:
    fault = "/etc/subuid: no line for mika"
    found = only("ENV003", host=host(subuid=False, subuid_fault=fault))
    assert fault in found.message
    assert "apptainer config fakeroot --add mika" in found.fix
    assert "without root: build on another machine" in found.fix
    assert is_well("ENV003", host=host())


def test_row_25_a_node_on_which_no_container_starts() -> None:
    refused = {"user_namespaces": False, "user_namespaces_fault": "/proc/sys/user/max_user_namespaces is 0"}
    assert "sysctl -w user.max_user_namespaces=65536" in only("ENV002", host=host(**refused)).fix
    assert is_well("ENV002", host=host())
    assert "modprobe fuse" in only("ENV012", host=host(fuse=False, fuse_fault="/dev/fuse is not there")).fix
    assert is_well("ENV012", host=host())


def test_row_26_an_image_on_a_network_filesystem() -> None:
    shared = replace(HOST, places=(place("image", "/images", filesystem="nfs4"),))
    assert only("ENV009", host=shared).fix.startswith("--copy-image")
    assert is_well("ENV009", host=shared, job=replace(JOB, copy_image=True))


def test_row_27_an_image_that_is_not_the_one_that_was_built(ground: Ground) -> None:
    (ground.folder / "definitions").mkdir()
    (ground.folder / "images").mkdir()
    ground.write()
    built = ground.image.read_bytes()
    ground.image = ground.folder / "images/image.sif"
    build(ground, built)
    assert ground.found_in_files("IMG013") == []
    ground.image.write_bytes(built + b"\0" * 4096)
    (found,) = ground.found_in_files("IMG013")
    assert "python build.py --force image" in found["fix"]
    build(ground, built)
    assert ground.found_in_files("IMG013") == []


def build(ground: Ground, content: bytes) -> None:
    """The image with its manifest, as a build leaves them."""
    store = Store(ground.image.parent)
    store.partial("image").write_bytes(content)
    status = store.partial("image").stat()
    file = (sha256_of(store.partial("image")), status.st_size, status.st_mtime_ns)
    store.publish(
        Manifest("image", *file, "2026-01-01T00:00:00+00:00", Recipe("", "", "", ""), "debian-trixie", {}, seconds={})
    )


def test_row_28_what_is_built_again_is_the_same() -> None:
    locked = lock_text(make_spec(), "torch==2.9.1")
    assert [package.sha256 for package in parse_lock(locked, "x.lock").packages] == ["0" * 64]
    floating = re.sub(r" \\\n    --hash=\S+", "", locked)
    for text in (floating, locked.replace("torch==2.9.1", "torch>=2.9"), locked.replace("torch==2.9.1", "torch")):
        assert text != locked
        with pytest.raises(UsageError, match="not a lock as sifkit wrote it"):
            parse_lock(text, "x.lock")


def test_row_29_driver_libraries_that_are_newer_than_the_images_libc() -> None:
    builds = tuple(build.model_copy(update={"glibc": "2.40"}) for build in TABLES.builds)  # no torch asks for it yet
    tables = replace(TABLES, builds=builds)
    old, new = make_spec(base="debian-bookworm", python="3.11"), make_spec(base="debian-trixie")
    (refused,) = [each for each in check(old, Target(), tables) if each.rule == "glibc-too-old"]
    assert "debian-trixie" in refused.fix
    assert [each for each in check(new, Target(), tables) if each.rule == "glibc-too-old"] == []
    newer = host(nv_glibc="2.38")
    assert "newer base" in only("IMG011", host=newer, image=replace(IMAGE, glibc="2.36")).fix
    assert is_well("IMG011", host=newer, image=replace(IMAGE, glibc="2.41"))


def test_row_30_a_libcuda_of_the_images_own(ground: Ground) -> None:
    ground.facts["cuda_compat"] = ["/usr/local/cuda/compat"]
    ground.facts["environment"]["LD_LIBRARY_PATH"] = "/usr/local/cuda/compat:/usr/lib64:/.singularity.d/libs"
    fix = ground.one("IMG009")["fix"]
    path = fix.split("'")[-2]
    assert path == "/usr/lib64"
    ground.facts["environment"]["LD_LIBRARY_PATH"] = f"{path}:/.singularity.d/libs"
    assert ground.is_mended("IMG009")


def test_row_31_no_c_compiler(ground: Ground) -> None:
    assert refuses("compiler-missing", spec={"apt": ("git",)})
    assert not refuses("compiler-missing", spec={"apt": ("gcc", "libc6-dev", "python3-dev")})
    programs = ground.facts["programs"]
    ground.facts["programs"] = {name: path for name, path in programs.items() if name not in ("gcc", "cc", "clang")}
    assert "gcc, libc6-dev and python3-dev" in ground.one("IMG007")["fix"]
    ground.config["enable_liger_kernel"] = "true"
    assert ground.one("IMG007")["severity"] == "error"
    ground.facts["programs"] = programs
    assert ground.is_mended("IMG007")


def test_row_32_a_triton_that_does_not_find_the_driver() -> None:
    """Only a kernel that is compiled on the node shows it."""
    tried = {"error": None, "skipped": "not reached", "seconds": 1.0}
    said = "Traceback (most recent call last):\nAssertionError: libcuda.so cannot found!\n"
    answer = {**dict.fromkeys(("start", "matmul_bfloat16", "matmul_float32", "compile", "backward"), tried)}
    checks = judge_kernels({**answer, "triton": {"error": said, "seconds": 1.0}})
    (found,) = [check for check in checks if check.name == "Triton kernel"]
    assert (found.outcome.value, "libcuda" in found.message) == ("failed", True)
    assert "TRITON_LIBCUDA_PATH" in (found.fix or "")


def test_row_33_compiled_caches_on_a_network_filesystem() -> None:
    own = replace(JOB, ours=False, script="#!/bin/bash\n", script_path=Path("job.sh"))
    shared = host(place("TRITON_CACHE_DIR", "/home/mika/.triton", filesystem="nfs4"))
    assert "export TRITON_CACHE_DIR=" in only("ENV006", host=shared, job=own).fix
    local = host(place("TRITON_CACHE_DIR", "/tmp/mika/triton"))
    assert is_well("ENV006", host=local, job=own)
    many = replace(own, gpus=8)
    assert "TRITON_CACHE_DIR" in only("DST006", host=shared, job=many).fix
    assert is_well("DST006", host=local, job=many)


def test_row_34_a_filesystem_without_locks() -> None:
    refused = host(place("HF_HOME", filesystem="nfs", locks=False, fault="No locks available"))
    found = only("ENV007", host=refused)
    assert (found.severity, "No locks available" in found.message) == (Severity.WARNING, True)  # another node runs it
    assert "export HF_HOME=" in found.fix
    assert is_well("ENV007", host=host(place("HF_HOME")))


# ---------------------------------------------------------------------------------------------- 35 to 48


@pytest.mark.parametrize("gpu", ["V100", "T4"])
def test_row_35_bf16_without_hardware(ground: Ground, gpu: str) -> None:
    ground.words[1] = gpu
    assert "fp16: true" in ground.one("GPU003")["fix"]
    del ground.config["bf16"]
    ground.config["fp16"] = "true"
    assert ground.is_mended("GPU003")


def test_row_36_a_torchrun_for_each_task(ground: Ground) -> None:
    tasks = "--ntasks-per-node="
    job(ground, (f"{tasks}1", f"{tasks}4"))
    found = ground.one("SLM002")
    assert found["severity"] == "error"
    job(ground, (f"{tasks}1", found["fix"].removeprefix("#SBATCH ")))
    assert ground.is_mended("SLM002")


def test_row_36_a_port_that_every_job_has(ground: Ground) -> None:
    own = "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))"
    job(ground, (own, "MASTER_PORT=29500"))
    assert ground.one("SLM007")["fix"] == own
    job(ground)
    assert ground.is_mended("SLM007")


@pytest.mark.parametrize("name", ["NODE_RANK=$SLURM_NODEID", "NNODES=$SLURM_JOB_NUM_NODES"])
def test_row_37_nodes_that_do_not_find_each_other(ground: Ground, name: str) -> None:
    job(ground, (name, "UNUSED=1"))
    found = ground.one("SLM008")
    assert found["severity"] == "error"
    assert found["message"].startswith(f"{name.split('=')[0]} not set")
    assert found["fix"].startswith("set them")
    job(ground)
    assert ground.is_mended("SLM008")


def test_row_38_gpus_that_hide_from_other_tasks(ground: Ground) -> None:
    job(ground, ("--gpus-per-node=4", "--gpus-per-task=1"), ("--ntasks-per-node=1", "--ntasks-per-node=4"))
    fix = ground.one("SLM003")["fix"]
    assert fix == "--ntasks-per-node=1 and --gpus-per-node=4"
    job(ground)
    assert ground.is_mended("SLM003")


def test_row_39_nodes_without_infiniband(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    ground.words += ["--nodes", "2", "--gpus", "2"]
    ground.facts["libraries"] = []
    assert "libibverbs1 and ibverbs-providers" in ground.one("IMG010")["fix"]
    ground.facts["libraries"] = ["libibverbs.so.1", "libmlx5.so.1"]
    assert ground.is_mended("IMG010")
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    assert "unset" in ground.one("DST004")["fix"]
    monkeypatch.delenv("NCCL_IB_DISABLE")
    assert ground.is_mended("DST004")


def test_row_40_an_srun_that_gives_one_cpu(ground: Ground) -> None:
    word = "SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"
    job(ground, (word, "UNUSED=1"))
    assert word in ground.one("SLM004")["fix"]
    job(ground)
    assert ground.is_mended("SLM004")


def test_row_41_a_tmpdir_that_the_container_does_not_have(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/local/4711")
    job(ground, ("--cleanenv ", ""))
    assert '--bind "$TMPDIR"' in ground.one("ENV010")["fix"]
    job(ground, ("--cleanenv ", '--bind "$TMPDIR" '))
    assert ground.is_mended("ENV010")


def test_row_42_a_tracker_without_a_key(ground: Ground) -> None:
    ground.config["report_to"] = "wandb"
    ground.facts["packages"]["wandb"] = "0.22.0"
    assert "report_to: none" in ground.one("CFG009")["fix"]
    ground.config["report_to"] = "none"
    assert ground.is_mended("CFG009")


def test_row_43_an_exponent_that_is_text(ground: Ground) -> None:
    ground.config["learning_rate"] = "1e-4"
    assert ground.is_mended("CFG006")  # a number for this LLaMA-Factory
    ground.facts["packages"] |= {"llamafactory": "0.9.3", "transformers": "4.52.4"}
    found = ground.one("CFG006")
    assert (found["severity"], found["fix"]) == ("error", "write 1.0e-4")
    assert ground.mends_itself("CFG006")


def test_row_44_a_template_that_is_not_there(ground: Ground) -> None:
    ground.config["template"] = "lama3"
    assert "llama3" in ground.one("CFG008")["fix"]
    assert ground.mends_itself("CFG008")


def test_row_45_a_link_out_of_what_the_container_has(ground: Ground) -> None:
    elsewhere = ground.folder / "elsewhere/rows.json"
    elsewhere.parent.mkdir()
    data = ground.tree.root / "data/alpaca_en_demo.json"
    data.rename(elsewhere)
    data.symlink_to(elsewhere)
    strict = replace(HOST, apptainer_config={"mount tmp": "no"})  # else all of /tmp is there
    looked = replace(ground.tree.look(), host=strict)
    (found,) = good.found(looked, "DAT008")
    assert (found.severity, found.fix) == (
        Severity.ERROR,
        f"bind it: binds: [{elsewhere.parent}] in the site file; or copy it",
    )
    bound = replace(looked, site=replace(good.SITE, binds=(str(elsewhere.parent),)))
    assert good.found(bound, "DAT008") == ()


def test_row_45_a_path_out_of_the_checkout(ground: Ground) -> None:
    ground.config["model_name_or_path"] = "../models/llama-1b"
    assert ground.one("DAT013")["severity"] == "error"
    ground.config["model_name_or_path"] = str(ground.tree.models / "llama-1b")
    assert ground.is_mended("DAT013")


def test_row_46_a_dataset_for_another_stage(ground: Ground) -> None:
    columns = {"prompt": "instruction", "chosen": "input", "rejected": "output"}
    ground.tree.register(pairs={"file_name": "alpaca_en_demo.json", "ranking": True, "columns": columns})
    ground.config["dataset"] = "pairs"
    assert ground.one("DAT004")["severity"] == "error"
    ground.config["stage"] = "dpo"
    assert ground.is_mended("DAT004")


def test_row_47_a_file_that_apptainer_mounts_is_not_there() -> None:
    found = only("ENV011", host=host(files=HOST.files - {"/etc/localtime"}))
    assert "ln -sf /usr/share/zoneinfo/UTC /etc/localtime" in found.fix
    assert is_well("ENV011", host=host())


def test_row_48_weights_of_an_earlier_run(ground: Ground) -> None:
    saves = ground.folder / "saves"
    saves.mkdir()
    (saves / "adapter_model.safetensors").write_bytes(b"x")
    found = ground.one("CKP004")
    assert (found["severity"], found["fix"].startswith("a new output_dir")) == ("error", True)
    ground.config["output_dir"] = str(ground.folder / "saves-2")
    assert ground.is_mended("CKP004")
