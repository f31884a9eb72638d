from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from sifkit.check.facts import Facts, JobFacts
from sifkit.check.rule import Severity, all_rules, apply
from sifkit.check.script import parse_script
from sifkit.errors import UsageError
from sifkit.gather.jobscript import read_script
from sifkit.slurm.jobfile import render
from sifkit.slurm.request import Resources, Resume
from tests.check import good
from tests.check.checkout_tree import Tree, changed, make_tree, one
from tests.unit.jobs import make_job

GIB = 1024**3

SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=train --output=logs/%x-%j.out
#SBATCH --nodes=2 --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=a100:4   # four
#SBATCH --mem=200G -t 1-00:00:00
#SBATCH --requeue --open-mode=append

export NNODES=$SLURM_JOB_NUM_NODES MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n1)
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK FORCE_TORCHRUN=1
srun bash -c 'export APPTAINERENV_NODE_RANK=$SLURM_NODEID NODE_RANK=$SLURM_NODEID
    exec apptainer exec --nv --cleanenv --bind "$HOME/LLaMA-Factory:/mnt" --pwd /mnt llama.sif \\
        llamafactory-cli train examples/train_lora/qwen3_lora_sft.yaml'
"""


def job(folder: Path, text: str) -> JobFacts:
    path = folder / "train.sbatch"
    path.write_text(text)
    return read_script(path, folder)


def facts(folder: Path, *changes: tuple[str, str]) -> Facts:
    """Good facts, with this job file, in which some texts are replaced."""
    text = SCRIPT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    (folder / "logs").mkdir(exist_ok=True)
    return good.facts(job=job(folder, text))


# ---------------------------------------------------------------------------------------------- reading


def test_a_job_file_says_what_it_asks_for(tmp_path: Path) -> None:
    found = job(tmp_path, SCRIPT)
    assert (found.device, found.nodes, found.gpus, found.cpus) == ("gpu", 2, 4, 16)
    assert (found.memory, found.time, found.requeue) == (200 * GIB, timedelta(days=1), True)
    assert (found.torchrun, found.ours, found.logs, found.logs_fault) == (
        True,
        False,
        tmp_path / "logs",
        "is not there",
    )


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ("--gres=gpu:2", 2),
        ("--gres=gpu:h100:8,tmp:10G", 8),
        ("--gres gpu", 1),
        ("--nodes=2 --gpus=8", 4),
        ("-N2 -G 8", 4),
        ("--ntasks-per-node=4 --gpus-per-task=1", 4),
        ("--gpus-per-node=4 --gpus-per-node=2", 2),
        ("--mem=1G", 0),
    ],
)
def test_gpus_are_read_however_they_are_asked(options: str, gpus: int) -> None:
    assert parse_script(f"#!/bin/bash\n#SBATCH {options}\ntrue\n").gpus == gpus


def test_lines_after_the_first_command_do_not_count() -> None:
    script = parse_script("#!/bin/bash\n#SBATCH --nodes=2\ncd /x\n#SBATCH --nodes=4\n")
    assert (script.nodes, script.options["nodes"].line) == (2, 2)


def test_quotes_continued_lines_and_here_documents_are_one_command() -> None:
    script = parse_script("a='x\nNODE_RANK=1\n'\nb \\\n  c\ncat <<EOF\nNODE_RANK=2\nEOF\nd # it's\nNODE_RANK=3\n")
    assert [line.number for line in script.lines] == [1, 4, 6, 9, 10]
    assert script.assigned()["NODE_RANK"] == ("3", 10)


@pytest.mark.parametrize("content", [b"", b"echo\n", b"\xff\xfe\0", b"#!/bin/bash\n" + b"#" * (2 << 20)])
def test_what_is_no_job_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="x "):
        read_script(path, tmp_path)


def test_a_directory_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no file that can be read"):
        read_script(tmp_path, tmp_path)


# ---------------------------------------------------------------------------------------------- rules


def test_a_good_job_file_has_no_finding(tmp_path: Path) -> None:
    rules = [rule for rule in all_rules().values() if rule.family == "SLM"]
    assert apply(rules, facts(tmp_path))[0] == ()
    assert apply(rules, good.facts())[0] == ()


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("gpus", [1, 4])
@pytest.mark.parametrize("resume", [None, Resume(timedelta(minutes=5), saves_on_signal=True)])
def test_the_job_files_that_sifkit_writes_have_no_finding(
    tmp_path: Path, nodes: int, gpus: int, resume: Resume | None
) -> None:
    asked = Resources(nodes=nodes, gpus=gpus, cpus=16, memory="200G")
    written = job(tmp_path, render(make_job(resources=asked, resume=resume)))
    rules = [rule for rule in all_rules().values() if rule.family == "SLM" and rule.code != "SLM001"]
    assert apply(rules, good.facts(job=written))[0] == ()
    assert (written.nodes, written.gpus, written.cpus, written.memory) == (nodes, gpus, 16, 200 * GIB)


def test_a_missing_log_directory_is_found(tmp_path: Path) -> None:
    given = facts(tmp_path)
    (tmp_path / "logs").rmdir()
    assert one(replace(given, job=job(tmp_path, SCRIPT)), "SLM001").fix == f"mkdir -p {tmp_path}/logs"
    (tmp_path / "logs").write_text("")
    assert "is a file" in one(replace(given, job=job(tmp_path, SCRIPT)), "SLM001").message


def test_sifkit_makes_the_log_directory_itself_and_cannot_replace_a_file() -> None:
    assert good.found(good.facts(job=replace(good.JOB, logs_fault="is not there")), "SLM001") == ()
    assert len(good.found(good.facts(job=replace(good.JOB, logs_fault="is a file")), "SLM001")) == 1


def test_several_tasks_that_start_torchrun_are_found(tmp_path: Path) -> None:
    given = facts(tmp_path, ("--ntasks-per-node=1", "--ntasks-per-node=4"))
    found = one(given, "SLM002")
    assert (found.line, found.file, found.severity) == (12, tmp_path / "train.sbatch", Severity.ERROR)
    assert found.message == "srun starts 4 torchruns on each node: one for each task"
    mended = facts(
        tmp_path, ("--ntasks-per-node=1", "--ntasks-per-node=4"), ("srun bash", "srun --ntasks-per-node=1 bash")
    )
    assert good.found(mended, "SLM002") == ()


def test_gpus_that_hide_from_other_tasks_are_found(tmp_path: Path) -> None:
    tasks = ("--ntasks-per-node=1", "--ntasks-per-node=4")
    found = one(facts(tmp_path, tasks, ("--gpus-per-node=a100:4", "--gpus-per-task=1")), "SLM003")
    assert (found.line, found.fix) == (5, "--ntasks-per-node=1 and --gpus-per-node=4")
    assert good.found(facts(tmp_path, ("--gpus-per-node=a100:4", "--gpus-per-task=4")), "SLM003") == ()


@pytest.mark.parametrize(
    ("bind", "codes"),
    [("none", ["SLM002"]), ("closest", ["SLM002"]), ("single:1", ["SLM003"]), ("verbose,per_task:1", ["SLM003"])],
)
def test_several_tasks_are_told_of_once(tmp_path: Path, bind: str, codes: list[str]) -> None:
    tasks = ("--ntasks-per-node=1", "--ntasks-per-node=4")
    given = facts(tmp_path, tasks, ("--gpus-per-node=a100:4", f"--gpus-per-task=1 --gpu-bind={bind}"))
    assert [each.code for each in good.found(given, "SLM002", "SLM003")] == codes


def test_an_srun_that_forgets_the_cpus_is_found(tmp_path: Path) -> None:
    lost = ("SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK ", "")
    found = one(facts(tmp_path, lost), "SLM004")
    assert (found.line, found.severity) == (12, Severity.WARNING)
    assert good.found(facts(tmp_path, lost, ("srun bash", "srun -c $SLURM_CPUS_PER_TASK bash")), "SLM004") == ()
    assert good.found(facts(tmp_path, lost, ("--cpus-per-task=16", "--cpus-per-task=1")), "SLM004") == ()


def test_too_little_memory_is_found_and_the_fix_is_enough() -> None:
    small = replace(good.JOB, gpus=4, memory=4 * GIB)
    found = one(good.facts(job=small), "SLM005")
    needed = "needs more than 4.12: 4 processes 4, 8 workers 0.125"
    assert found.message == f"the job asks for 4 GiB on a node, and {needed}"
    assert found.fix == "--mem=6G"
    assert good.found(good.facts(job=replace(small, memory=6 * GIB)), "SLM005") == ()


def test_an_optimizer_on_the_cpu_needs_memory(tmp_path: Path) -> None:
    tree: Tree = make_tree(tmp_path)
    tree.write("ds.json", {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}})
    given = tree.look(deepspeed="ds.json", finetuning_type="full")
    assert given.checkout is not None
    paths = tuple(replace(path, size=16 * GIB) if path.is_dir else path for path in given.checkout.paths)
    given = replace(given, checkout=replace(given.checkout, paths=paths))
    assert "DeepSpeed's optimizer 128" in one(given, "SLM005").message


@pytest.mark.parametrize(
    ("gpus", "changes", "fix"),
    [
        (1, {"preprocessing_num_workers": 17}, "preprocessing_num_workers: 16"),
        (4, {"dataloader_num_workers": 8}, "dataloader_num_workers: 4"),
    ],
)
def test_more_workers_than_cpus_are_found_and_mended(gpus: int, changes: dict[str, int], fix: str) -> None:
    given = good.facts(config=good.config(None, **changes), job=replace(good.JOB, gpus=gpus))
    found = one(given, "SLM006")
    assert (found.fix, found.line) == (fix, given.config.line(next(iter(changes))))
    assert good.found(changed(given, found), "SLM006") == () or "'" in repr(found)
    mended = {key: int(str(found.edit.value)) for key in changes if found.edit}
    assert good.found(replace(given, config=good.config(None, **mended)), "SLM006") == ()


def test_workers_are_not_judged_without_the_jobs_cpus() -> None:
    _, skipped = apply([all_rules()["SLM006"]], good.facts(job=replace(good.JOB, cpus=None)))
    assert skipped[0].reason == "how many CPUs the job gets is not known"


@pytest.mark.parametrize("port", ["MASTER_PORT=29500", 'MASTER_PORT="29500"'])
def test_a_port_that_every_job_has_is_found(tmp_path: Path, port: str) -> None:
    given = facts(tmp_path, ("MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))", port))
    found = one(given, "SLM007")
    assert (found.line, found.fix) == (9, "MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))")


def test_nodes_that_do_not_find_each_other_are_found(tmp_path: Path) -> None:
    found = one(facts(tmp_path, ("MASTER_ADDR=", "ADDRESS=")), "SLM008")
    assert (found.line, found.message.split(":")[0]) == (12, "MASTER_ADDR not set")


def test_a_rank_that_is_set_before_srun_is_found(tmp_path: Path) -> None:
    given = facts(
        tmp_path,
        ("'export APPTAINERENV_NODE_RANK=$SLURM_NODEID NODE_RANK=$SLURM_NODEID\n", "'\n"),
        ("FORCE_TORCHRUN=1", "FORCE_TORCHRUN=1 NODE_RANK=$SLURM_NODEID"),
    )
    found = one(given, "SLM008")
    assert (found.line, found.message) == (
        11,
        "NODE_RANK=$SLURM_NODEID is set before srun, so that it is the same on all nodes",
    )


def test_several_nodes_without_srun_are_found(tmp_path: Path) -> None:
    assert "everything runs on the first one" in one(facts(tmp_path, ("srun bash", "bash")), "SLM008").message
    assert good.found(facts(tmp_path, ("srun bash", "bash"), ("--nodes=2", "--nodes=1")), "SLM008") == ()


def test_a_container_without_the_gpus_is_found(tmp_path: Path) -> None:
    assert one(facts(tmp_path, ("--nv ", "")), "SLM009").fix == "add --nv after exec"
    unasked = ("--gpus-per-node=a100:4", "--exclude=n1")
    assert good.found(facts(tmp_path, ("--nv ", ""), unasked), "SLM009") == ()
    always = replace(good.HOST, apptainer_config={"always use nv": "yes"})
    assert good.found(replace(facts(tmp_path, ("--nv ", "")), host=always), "SLM009") == ()
    assert good.found(facts(tmp_path, ("--nv ", '"${options[@]}" ')), "SLM009") == ()


def test_a_container_with_gpus_that_nobody_asked_for_is_found(tmp_path: Path) -> None:
    found = one(facts(tmp_path, ("--gpus-per-node=a100:4", "--exclude=n1")), "SLM010")
    assert (found.line, found.fix) == (12, "#SBATCH --gres=gpu:1")


def test_a_container_with_the_hosts_environment_is_found(tmp_path: Path) -> None:
    plain = ('--cleanenv --bind "$HOME/LLaMA-Factory:/mnt"', "--bind x:/mnt")
    assert one(facts(tmp_path, plain), "SLM011").severity is Severity.WARNING


def test_a_start_from_anywhere_is_found(tmp_path: Path) -> None:
    text = "#!/bin/bash\n#SBATCH --gres=gpu:1\napptainer exec --nv -e x.sif llamafactory-cli train a.yaml\n"
    assert one(good.facts(job=job(tmp_path, text)), "SLM012").line == 3
    gone = text.replace("apptainer", "cd ~/LLaMA-Factory\napptainer")
    assert good.found(good.facts(job=job(tmp_path, gone)), "SLM012") == ()
    assert good.found(facts(tmp_path), "SLM012") == ()


def test_a_requeue_that_empties_its_log_is_found(tmp_path: Path) -> None:
    assert one(facts(tmp_path, (" --open-mode=append", "")), "SLM013").line == 7


def test_results_in_tmp_are_found() -> None:
    given = good.facts(config=good.config(output_dir="/tmp/x"))
    assert one(given, "SLM015").line == given.config.line("output_dir")
    assert good.found(replace(given, site=replace(good.SITE, slurm=False)), "SLM015") == ()


def test_sifkits_own_job_files_are_not_read_as_scripts() -> None:
    codes = [f"SLM{number:03}" for number in (2, 3, 4, 7, 8, 9, 10, 11, 12, 13)]
    ours = replace(good.JOB, script="#!/bin/bash\n#SBATCH -N 2 --requeue\nllamafactory-cli train\n", nodes=2)
    assert good.found(good.facts(job=ours), *codes) == ()
