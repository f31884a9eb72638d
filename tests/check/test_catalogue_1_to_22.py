"""Rows 1 to 22 of the catalogue of failures, planted; tests/check/test_catalogue.py says how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.check import good
from tests.check.good import GIB, HOST, IMAGE, JOB
from tests.check.planting import Ground, do, host, is_well, job, only, refuses
from tests.unit.run_dirs import write_checkpoint


def test_the_ground_on_which_failures_are_planted_has_no_fault(ground: Ground) -> None:
    ground.write()
    code, said = ground.run("--strict", "--select", "CFG,DAT,IMG,SLM,DST,CKP,GPU")
    assert (code, [line for line in said.splitlines() if "error" in line or "warning" in line]) == (
        0,
        [said.splitlines()[-1]],
    )
    job(ground)
    assert [each for each in ("SLM", "DST", "GPU") if ground.run("--strict", "--select", each)[0]] == []


# ---------------------------------------------------------------------------------------------- 1 to 11


def test_row_1_a_package_outside_llamafactorys_range(ground: Ground) -> None:
    assert refuses("llamafactory-range", spec={"packages": ("transformers==5.7.0",)})
    assert not refuses("llamafactory-range", spec={"packages": ("transformers==5.6.0",)})
    ground.facts["packages"]["transformers"] = "5.7.0"
    found = ground.one("IMG001")
    assert found["severity"] == "error"
    assert "transformers>=4.55.0,<=5.6.0" in found["message"]
    assert "sifkit lock" in found["fix"]
    ground.facts["packages"]["transformers"] = "5.6.0"
    assert ground.is_mended("IMG001")


def test_row_2_a_checkout_of_another_version(ground: Ground) -> None:
    version = ground.tree.root / "src/llamafactory/extras/env.py"
    version.write_text('VERSION = "0.9.4"\n')
    assert "sifkit checkout 0.9.5" in ground.one("IMG002")["fix"]
    version.write_text('VERSION = "0.9.5"\n')
    assert ground.is_mended("IMG002")


@pytest.mark.parametrize(
    ("code", "key", "fix"),
    [("CFG002", "lora_ranks", "write lora_rank"), ("CFG011", "evaluation_strategy", "write eval_strategy")],
)
def test_row_3_keys_that_llamafactory_does_not_use(ground: Ground, code: str, key: str, fix: str) -> None:
    ground.config[key] = "8" if key == "lora_ranks" else "steps"
    found = ground.one(code)
    assert (found["severity"], found["line"]) == ("error", 11)
    assert found["fix"].startswith(fix)
    assert ground.mends_itself(code)


def test_row_3_a_key_that_is_derived_from_others(ground: Ground) -> None:
    ground.config["compute_dtype"] = "bfloat16"
    assert ground.one("CFG003")["fix"].startswith("remove compute_dtype")
    del ground.config["compute_dtype"]
    assert ground.is_mended("CFG003")


def test_row_4_no_dataset_info(ground: Ground) -> None:
    info = ground.tree.root / "data/dataset_info.json"
    text = info.read_text()
    info.unlink()
    assert "dataset_info.json" in ground.one("DAT001")["message"]
    info.write_text(text)
    assert ground.is_mended("DAT001")


def test_row_4_a_dataset_that_is_not_registered(ground: Ground) -> None:
    ground.config["dataset"] = "alpaca_en_dem"
    assert "alpaca_en_demo" in ground.one("DAT002")["fix"]
    assert ground.mends_itself("DAT002")


def test_row_4_a_file_that_is_not_there(ground: Ground) -> None:
    data = ground.tree.root / "data/alpaca_en_demo.json"
    text = data.read_text()
    data.unlink()
    found = ground.one("DAT003")
    assert found["severity"] == "error"
    assert f"alpaca_en_demo.json by {ground.tree.root}/data/dataset_info.json" in found["message"]
    assert found["fix"].startswith("put it there")
    data.write_text(text)
    assert ground.is_mended("DAT003")


def test_row_4_a_container_that_starts_beside_the_checkout(ground: Ground) -> None:
    job(ground, ("--pwd /mnt ", ""))
    assert "--pwd /mnt" in ground.one("SLM012")["fix"]
    job(ground)
    assert ground.is_mended("SLM012")


def test_row_5_a_driver_that_is_too_old(ground: Ground) -> None:
    assert refuses("driver-too-old", site={"driver": "470.57.02"})
    assert not refuses("driver-too-old", site={"driver": "570.26"})
    ground.words[3] = "470.57.02"
    assert ground.one("GPU001")["severity"] == "error"
    ground.words[3] = "570.26"
    assert ground.is_mended("GPU001")


def test_row_6_no_gpu_in_the_container(ground: Ground) -> None:
    job(ground, ("exec --nv ", "exec "))
    found = ground.one("SLM009")
    assert (found["severity"], found["fix"]) == ("error", "add --nv after exec")
    job(ground)
    assert ground.is_mended("SLM009")


def test_row_6_no_gpu_asked_for(ground: Ground) -> None:
    job(ground, ("#SBATCH --gpus-per-node=4\n", ""))
    fix = ground.one("SLM010")["fix"]
    job(ground, ("#SBATCH --gpus-per-node=4\n", fix + "\n"))
    assert ground.is_mended("SLM010")


def test_row_6_half_precision_on_the_cpu(ground: Ground) -> None:
    ground.words += ["--gpus", "0"]
    assert "bf16" in ground.one("GPU004")["message"]
    ground.config |= {"bf16": "false", "use_cpu": "true"}
    assert ground.is_mended("GPU004")


def test_row_6_a_host_without_a_driver_on_which_the_run_starts() -> None:
    here = replace(JOB, here=True)
    found = only("ENV013", job=here, host=host(nv_libraries=()))
    assert "sifkit submit" in found.fix
    assert is_well("ENV013", job=here, host=host(driver="570.86", nv_libraries=("libcuda.so.1",)))


def test_row_7_a_torch_without_code_for_the_gpu(ground: Ground) -> None:
    old = {"torch": {"version": "2.6.0", "cuda": "12.4"}}
    assert refuses("gpu-without-kernels", spec=old, site={"models": ("B200",)})
    assert not refuses("gpu-without-kernels", site={"models": ("B200",)})
    architectures = ground.facts["torch_architectures"]
    ground.words[1] = "B200"
    ground.facts["torch_architectures"] = ["sm_80", "sm_90"]
    assert ground.one("GPU002")["severity"] == "error"
    ground.facts["torch_architectures"] = architectures
    assert ground.is_mended("GPU002")


def test_row_8_packages_of_the_home_directory() -> None:
    of = {"host": host(user_packages=("3.13",)), "image": replace(IMAGE, environment={})}
    assert "PYTHONNOUSERSITE" in only("IMG005", **of).fix
    assert is_well("IMG005", **{**of, "image": replace(IMAGE, environment={"PYTHONNOUSERSITE": "1"})})


@pytest.mark.parametrize("name", ["PYTHONPATH", "CONDA_PREFIX", "APPTAINERENV_LD_LIBRARY_PATH", "APPTAINER_BIND"])
def test_row_9_variables_of_the_shell(ground: Ground, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    job(ground, ("--cleanenv ", ""))
    assert "--cleanenv" in ground.one("SLM011")["fix"]
    monkeypatch.setenv(name, "/x")
    found = ground.one("ENV004")
    assert (found["severity"], f"unset {name}" in found["fix"]) == ("warning", True)
    monkeypatch.delenv(name)
    job(ground)
    assert ground.is_mended("ENV004")
    assert ground.is_mended("SLM011")


def test_row_10_a_wheel_for_another_torch(ground: Ground) -> None:
    wheel = "flash-attn @ https://example.org/flash_attn-2.8.3+cu12torch{}cxx11abiTRUE-cp313-cp313-linux_x86_64.whl"
    assert refuses("flash-attn-abi", spec={"packages": (wheel.format("2.8"),)})
    assert not refuses("flash-attn-abi", spec={"packages": (wheel.format("2.9"),)})
    ground.config["flash_attn"] = "fa2"
    said = "ImportError: /opt/venv/flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda9SetDeviceEi"
    ground.facts["imports"]["flash_attn"] = said
    found = ground.one("IMG003")
    assert (found["severity"], found["key"]) == ("error", "flash_attn")
    assert "undefined symbol" in found["message"]
    ground.facts["imports"]["flash_attn"] = ""
    assert ground.is_mended("IMG003")


def test_row_11_torchaudio_of_another_torch(ground: Ground) -> None:
    old = {"torch": "2.6.0", "torchvision": "0.21.0"}
    spec = {"torch": {"version": "2.6.0", "cuda": "12.4"}, "llamafactory": {"version": "0.9.4"}}
    assert refuses("torch-set", spec=spec, lock={**old, "torchaudio": "2.11.0"})
    assert not refuses("torch-set", spec=spec, lock={**old, "torchaudio": "2.6.0"})
    said = "OSError: libcudart.so.13: cannot open shared object file: No such file or directory"
    ground.facts["imports"]["torchaudio"] = said
    ground.facts["unresolved"] = ["torchaudio/lib/_torchaudio.so needs libcudart.so.13"]
    assert "libcudart.so.13" in ground.one("IMG003")["message"]
    assert "libcudart.so.13" in ground.one("IMG004")["message"]
    ground.facts["imports"]["torchaudio"], ground.facts["unresolved"] = "", []
    assert ground.is_mended("IMG003")
    assert ground.is_mended("IMG004")


# ---------------------------------------------------------------------------------------------- 12 to 22


def test_row_12_a_model_that_is_not_in_the_cache(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = ground.folder / "hf"
    monkeypatch.setenv("HF_HOME", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ground.config["model_name_or_path"] = "org/model"
    found = ground.one("DAT007")
    assert found["severity"] == "error"
    assert "org/model" in found["fix"]
    repository = hub / "hub/models--org--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    ground.tree.model().rename(repository / "model")
    (repository / "snapshots").mkdir()
    (repository / "model").rename(repository / "snapshots/abc")
    assert ground.is_mended("DAT007")


def test_row_13_a_cache_that_cannot_be_written(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/proc/sifkit")
    found = ground.one("ENV005")
    assert (found["severity"], "export HF_HOME=" in found["fix"]) == ("error", True)
    monkeypatch.setenv("HF_HOME", str(ground.folder / "hf"))
    assert ground.is_mended("ENV005")


def test_row_14_no_directory_for_the_log(ground: Ground) -> None:
    job(ground)
    (ground.folder / "logs").rmdir()
    found = ground.one("SLM001")
    assert (found["severity"], found["fix"]) == ("error", f"mkdir -p {ground.folder}/logs")
    do(found["fix"])
    assert ground.is_mended("SLM001")


def test_row_15_a_job_that_starts_again_at_step_0(ground: Ground) -> None:
    ground.config["overwrite_output_dir"] = "true"
    assert ground.is_mended("CKP001")  # nothing stops it
    ground.words += ["--requeue", "--time", "24:00:00"]
    found = ground.one("CKP001")
    assert (found["severity"], found["fix"]) == ("error", "overwrite_output_dir: false")
    assert ground.mends_itself("CKP001")


def test_row_16_a_checkpoint_that_is_not_whole(ground: Ground) -> None:
    saves = ground.folder / "saves"
    for step in (20, 40):
        write_checkpoint(saves, step)
    (saves / "checkpoint-40/trainer_state.json").unlink()
    found = ground.one("CKP002")
    assert found["severity"] == "error"
    assert "checkpoint-40" in found["message"]
    do(found["fix"].removeprefix("set it aside: "))
    assert ground.is_mended("CKP002")
    assert sorted(each.name for each in saves.iterdir()) == ["checkpoint-20", "incomplete-checkpoint-40"]


def test_row_17_a_torch_with_which_nothing_is_resumed(ground: Ground) -> None:
    old = {
        "base": "debian-bookworm",
        "python": "3.11",
        "torch": {"version": "2.5.1", "cuda": "12.4"},
        "llamafactory": {"version": "0.9.4"},
    }
    locked = {"torch": "2.5.1", "torchvision": "0.20.1", "torchaudio": "2.5.1"}
    assert refuses("known-pair", spec=old, lock={**locked, "transformers": "4.57.1"})
    assert not refuses("known-pair", spec=old, lock={**locked, "transformers": "4.51.3"})
    ground.facts["packages"]["torch"] = "2.5.1"
    ground.words.append("--requeue")
    found = ground.one("IMG006")
    assert (found["severity"], "torch 2.6" in found["fix"]) == ("error", True)
    ground.facts["packages"]["torch"] = "2.6.0"
    assert ground.is_mended("IMG006")


def test_row_18_checkpoints_that_fill_the_disk() -> None:
    full: dict[str, Any] = {"finetuning_type": "full", "save_steps": 100, "max_steps": 3000, "save_total_limit": None}
    small = replace(HOST, places=tuple(replace(each, free=80 * GIB) for each in HOST.places))
    found = only("CKP003", config=good.config(**full), host=small)
    assert found.fix == "save_total_limit: 2"
    assert is_well("CKP003", config=good.config(**{**full, "save_total_limit": 2}), host=small)


def test_row_18_all_checkpoints_stay(ground: Ground) -> None:
    del ground.config["save_total_limit"]
    ground.config |= {"save_steps": "1", "max_steps": "100"}
    assert ground.one("CKP008")["fix"] == "save_total_limit: 2"
    ground.config["save_total_limit"] = "2"
    assert ground.is_mended("CKP008")


def test_row_19_deepspeed_without_nvcc(ground: Ground) -> None:
    assert refuses("nvcc-missing", spec={"packages": ("deepspeed==0.18.0",)})
    cuda_13 = {"torch": {"version": "2.11.0", "cuda": "13.0"}, "extras": ("deepspeed",)}
    assert not refuses("nvcc-missing", spec=cuda_13)
    ground.tree.write("ds.json", {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    ground.config["deepspeed"] = "ds.json"
    ground.facts["packages"]["deepspeed"] = "0.18.4"
    said = (
        "deepspeed.ops.op_builder.builder.MissingCUDAException: CUDA_HOME does not exist, unable to compile CUDA op(s)"
    )
    ground.facts["imports"]["deepspeed"] = said
    assert "CUDA_HOME does not exist" in ground.one("IMG003")["message"]
    assert "extras: [deepspeed]" in ground.one("IMG008")["fix"]
    ground.facts["imports"]["deepspeed"] = ""
    ground.facts["programs"] |= {name: f"/usr/bin/{name}" for name in ("nvcc", "ninja", "g++")}
    assert ground.is_mended("IMG003")
    assert ground.is_mended("IMG008")


def test_row_20_too_little_memory_for_the_job(ground: Ground) -> None:
    ground.words += ["--mem", "1G"]
    fix = ground.one("SLM005")["fix"]
    ground.words[-2:] = [fix]
    assert ground.is_mended("SLM005")


def test_row_21_tokenizing_longer_than_others_wait(ground: Ground) -> None:
    ground.config["ddp_timeout"] = "1"
    ground.words += ["--gpus", "8"]
    row = {"instruction": "word " * 200, "input": "", "output": "word " * 200}
    ground.tree.write("data/alpaca_en_demo.json", [row] * 2000)
    assert ground.one("DST001")["fix"].startswith("ddp_timeout: 180000000")
    assert ground.mends_itself("DST001")


@pytest.mark.parametrize("key", ["preprocessing_num_workers", "dataloader_num_workers"])
def test_row_22_more_workers_than_cpus(ground: Ground, key: str) -> None:
    ground.config[key] = "64"
    ground.words += ["--cpus", "4"]
    assert ground.one("SLM006")["fix"] == f"{key}: 4"
    assert ground.mends_itself("SLM006")
