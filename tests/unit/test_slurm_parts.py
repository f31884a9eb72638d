"""What Slurm answers, read; whether a job fits the cluster."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from sifkit.errors import CommandFailed, UsageError
from sifkit.slurm.cluster import NodeGroup, Partition, count_gpus, fit, parse_sinfo
from sifkit.slurm.jobs import Ended, ended, parse_show_job, parse_squeue
from sifkit.slurm.request import Resources
from sifkit.slurm.submit import Dependency, parse_job_id

SINFO = """\
cpu*|up|1-00:00:00|100|64|256000|(null)
gpu|up|infinite|8|128+|1024000+|gpu:a100:8(S:0-7)
gpu|up|infinite|2|64|512000|gpu:4,nvme:1
old|down|2:00|1|4|8000|gpu
"""
CLUSTER = parse_sinfo(SINFO)


def test_sinfo_is_read_with_its_odd_words() -> None:
    assert (
        Partition("cpu", True, True, timedelta(days=1), (NodeGroup(100, 64, 256000, 0),)),
        Partition("gpu", False, True, None, (NodeGroup(8, 128, 1024000, 8, ("a100",)), NodeGroup(2, 64, 512000, 4))),
        Partition("old", False, False, timedelta(minutes=2), (NodeGroup(1, 4, 8000, 1),)),
    ) == CLUSTER
    assert parse_sinfo("") == ()
    with pytest.raises(CommandFailed):
        parse_sinfo("slurm_load_partitions: Unable to contact\n")


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("", 0),
        ("gpu:2", 2),
        ("gpu:a100:4(S:0-1),nvme:1", 4),
        ("gpu:a:2,gpu:b:3", 5),
        ("gpu:0", 0),
        ("gpu:nvidia_h100_80gb_hbm3:8(IDX:0-7)", 8),
        ("shard:8,gpu:1", 1),
    ],
)
def test_gpus_of_a_gres_list(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


def test_gpus_choose_the_partition_that_has_them_and_their_share_of_a_node() -> None:
    """Not more than the smallest node that fits gives to its GPUs."""
    chosen = fit(Resources(gpus=4), CLUSTER)
    assert (chosen.partition, chosen.cpus, chosen.memory) == ("gpu", 64, "512000M")
    chosen = fit(Resources(gpus=8), CLUSTER)
    assert (chosen.partition, chosen.cpus, chosen.memory) == ("gpu", 128, "1024000M")


def test_what_the_user_says_stays() -> None:
    asked = Resources(gpus=2, partition="gpu", cpus=3, memory="5G", time=timedelta(days=9))
    assert fit(asked, CLUSTER) == asked
    assert fit(replace(asked, partition="gpu,old"), CLUSTER).partition == "gpu,old"


def test_a_job_on_the_cpu_takes_the_default_partition() -> None:
    chosen = fit(Resources(gpus=0), CLUSTER)
    assert (chosen.partition, chosen.cpus, chosen.memory) == (None, 4, None)


def test_without_slurm_nothing_is_added() -> None:
    assert fit(Resources(gpus=4), None) == Resources(gpus=4)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Resources(gpus=9), "the most is 8"),
        (Resources(gpus=8, nodes=9, partition="gpu"), "no 9 nodes"),
        (Resources(gpus=1, partition="cpu"), "no 1 nodes with 1 GPUs"),
        (Resources(partition="gpus"), "no partition gpus"),
        (Resources(gpus=0, time=timedelta(days=2)), "1-00:00:00"),
        (Resources(gpus=0, cpus=65), "no such node has 65 cores"),
    ],
)
def test_what_can_never_run_is_refused(asked: Resources, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        fit(asked, CLUSTER)


def test_several_partitions_with_gpus_are_left_to_the_user() -> None:
    two = (*CLUSTER, Partition("gpu2", False, True, None, (NodeGroup(1, 8, 100, 8),)))
    with pytest.raises(UsageError) as caught:
        fit(Resources(gpus=1), two)
    assert caught.value.fix == "name one: --partition, of gpu, gpu2"


@pytest.mark.parametrize(
    ("text", "job"), [("4711\n", "4711"), ("4711;cluster\n", "4711"), ("sbatch: a site's greeting\n12\n", "12")]
)
def test_sbatch_answers_a_job_id(text: str, job: str) -> None:
    assert parse_job_id(text) == job


@pytest.mark.parametrize("text", ["", "Submitted batch job 12\n", "12 13", "\n"])
def test_other_answers_are_no_job_id(text: str) -> None:
    with pytest.raises(CommandFailed):
        parse_job_id(text)


@pytest.mark.parametrize("text", ["", "abc", "1,2", "1:2", "$(id)", "1 --uid=0"])
def test_what_is_no_job_cannot_be_waited_for(text: str) -> None:
    with pytest.raises(UsageError):
        Dependency(text)


def test_a_job_that_comes_after_another_does_not_wait_for_ever() -> None:
    assert Dependency("12_3").options == ("--dependency=afterok:12_3", "--kill-on-invalid-dep=yes")


def test_squeue_shows_the_jobs_of_sifkit_alone() -> None:
    text = (
        "12|12|RUNNING|None|gpu|1:02|2:00:00|n1|lora|sifkit:00ff\n"
        "13_[0-2]|13|PENDING|(Priority)|gpu|0:00|2:00:00||three|sifkit:aa|bb \n"
        "14|14|RUNNING|None|gpu|1:02|2:00:00|n1|other|(null)\n"
    )
    assert [(job.id, job.state, job.name, job.token) for job in parse_squeue(text)] == [
        ("12", "RUNNING", "lora", "00ff"),
        ("13_[0-2]", "PENDING", "three", "aa|bb"),
    ]
    with pytest.raises(CommandFailed):
        parse_squeue("slurm_load_jobs error: Unable to contact slurm controller\n")


SHOWN = """\
JobId=12 JobName=lora UserId=me(1) JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15 Command=/x/a b.sbatch WorkDir=/x
JobId=13 ArrayJobId=13 JobState=PENDING Reason=Resources ExitCode=0:0 Comment=sifkit:00 a=b StdErr=/x/y
"""


def test_show_job_is_read_with_values_that_hold_blanks() -> None:
    first, second = parse_show_job(SHOWN)
    assert (first["Command"], first["WorkDir"], first["JobState"]) == ("/x/a b.sbatch", "/x", "TIMEOUT")
    assert (second["JobId"], second["StdErr"]) == ("13", "/x/y")
    assert parse_show_job("slurm_load_jobs error: Invalid job id specified\n") == ()


@pytest.mark.parametrize(
    ("state", "code", "exit_code"),
    [
        ("COMPLETED", "0:0", 0),
        ("FAILED", "3:0", 3),
        ("TIMEOUT", "0:15", 143),
        ("CANCELLED", "0:0", 1),
        ("OUT_OF_MEMORY", "0:125", 253),
        ("NODE_FAIL", "0:0", 1),
    ],
)
def test_the_end_of_a_job_is_one_number(state: str, code: str, exit_code: int) -> None:
    end = ended({"JobState": state, "ExitCode": code})
    assert end is not None
    assert end.exit == exit_code


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", ""])
def test_a_job_that_comes_back_has_not_ended(state: str) -> None:
    assert ended({"JobState": state, "ExitCode": "0:0"}) is None
    assert Ended("COMPLETED", 0, 0).exit == 0
