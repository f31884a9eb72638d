"""Job files: what they say, that they are sound shell, and that no value is ever executed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sifkit.errors import SifkitError, UsageError
from sifkit.model import Site
from sifkit.rundir.checkpoints import Status
from sifkit.rundir.read import read_run
from sifkit.slurm.jobfile import render
from sifkit.slurm.request import Job, Resources, Resume, for_array, job_name, parse_time, show_time, with_signal
from tests.unit.jobs import make_job, make_launch, make_training

SHELLCHECK = Path(sys.executable).with_name("shellcheck")
RESUME = Resume(timedelta(seconds=300), saves_on_signal=True)

SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {},
    "one GPU": {"resources": Resources(gpus=1, cpus=8, memory="64G", partition="gpu", mail_user="me@example.org")},
    "several GPUs, resumed": {"resources": Resources(gpus=4), "resume": RESUME},
    "several nodes, resumed": {"resources": Resources(gpus=4, nodes=2), "resume": RESUME, "copy_image": True},
    "saved by steps alone": {"resume": Resume(timedelta(seconds=60), saves_on_signal=False)},
    "modules and a cache": {"modules": ("apptainer/1.4",), "hf_home": "/scratch/hf cache"},
}


def directives(text: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("tasks", [1, 3])
def test_the_file_passes_bash_and_shellcheck(shape: dict[str, Any], tasks: int, tmp_path: Path) -> None:
    launches = [make_launch(make_training(output_dir=f"/scratch/out {task}"), nv=True) for task in range(tasks)]
    file = tmp_path / "job.sbatch"
    file.write_text(render(make_job(*launches, **shape)))
    subprocess.run(["bash", "-n", str(file)], check=True)
    checked = subprocess.run([SHELLCHECK, str(file)], capture_output=True, text=True, check=False)
    assert (checked.stdout, checked.returncode) == ("", 0)


def test_the_directives_say_what_was_asked() -> None:
    job = make_job(
        name="lora",
        resources=Resources("gpu", "lab", "long", "a100", 2, 4, "gpu:a100:{n}", 32, "256G", timedelta(days=1, hours=2)),
        resume=RESUME,
    )
    assert directives(render(job)) == {
        "job-name": "lora",
        "output": "logs/%x-%j.out",
        "error": "logs/%x-%j.err",
        "partition": "gpu",
        "account": "lab",
        "qos": "long",
        "constraint": "a100",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "32",
        "gres": "gpu:a100:4",
        "mem": "256G",
        "time": "1-02:00:00",
        "requeue": "",
        "open-mode": "append",
        "signal": "B:USR1@300",
    }


def test_directives_come_before_the_first_command() -> None:
    """sbatch(1) stops reading them there."""
    lines = render(make_job(resume=RESUME)).splitlines()
    first = next(index for index, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(index for index, line in enumerate(lines) if line.startswith("#SBATCH")) < first


@pytest.mark.parametrize(
    "values",
    [
        *({"partition": "a b"}, {"account": "x\n#SBATCH --uid=0"}, {"qos": "$(id)"}, {"constraint": '"'}),
        *({"memory": "64 G"}, {"mail_user": "me@x # y"}, {"mail_type": "SOMETIMES"}),
        *({"partition": "--uid"}, {"gres": "gpu:`id`"}),
    ],
)
def test_what_a_directive_cannot_hold_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Resources(**values)


@pytest.mark.parametrize("values", [{"name": "a b"}, {"name": "a/b"}, {"name": "%u"}, {"logs": "my logs"}])
def test_names_that_slurm_reads_otherwise_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        make_job(**values)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("0-00:01:30", 90)]
)
def test_time_limits_are_read_as_sbatch_does(text: str, seconds: int) -> None:
    assert parse_time(text) == timedelta(seconds=seconds)
    assert parse_time(show_time(parse_time(text))) == parse_time(text)


@pytest.mark.parametrize("text", ["2h", "", "0", "1:2:3:4", "-1", "٣"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_time(text)


@given(st.text())
def test_a_job_name_of_any_text_is_one_that_slurm_takes(text: str) -> None:
    assert make_job(name=job_name(text)).name


@pytest.mark.parametrize(
    ("values", "fix"),
    [
        ({"overwrite_output_dir": True}, "overwrite_output_dir: false"),
        ({"save_only_model": True}, "save_only_model: false"),
        ({"resume_from_checkpoint": "/x/checkpoint-5"}, "resume_from_checkpoint: null"),
        ({"stage": "ppo"}, "--requeue"),
    ],
)
def test_a_config_that_would_start_again_is_refused_with_the_fix(values: dict[str, object], fix: str) -> None:
    job = make_job(make_launch(make_training(Path("/home/me/train.yaml"), **values)), resume=RESUME)
    with pytest.raises(UsageError) as caught:
        render(job)
    assert fix in str(caught.value.fix)
    render(
        make_job(make_launch(make_training(Path("/home/me/train.yaml"), **values)))
    )  # a job that does not go on may say it


def test_saving_by_steps_needs_steps() -> None:
    launch = make_launch(make_training(save_strategy="no"))
    render(make_job(launch, resume=RESUME))  # saves when it is told
    with pytest.raises(UsageError, match="save_strategy"):
        render(make_job(launch, resume=Resume(RESUME.lead, saves_on_signal=False)))


def test_a_warning_that_would_come_at_the_start_is_refused() -> None:
    with pytest.raises(UsageError, match="300 s"):
        render(make_job(resources=Resources(gpus=0, time=timedelta(minutes=9)), resume=RESUME))


def test_two_tasks_never_share_an_output_directory() -> None:
    with pytest.raises(UsageError, match="/scratch/out"):
        for_array((make_launch(), make_launch()))


def test_blanks_in_overrides_are_refused_where_torchrun_would_split_them() -> None:
    training = make_training(Path("/home/me/train.yaml"), "run_name=a b")
    make_launch(training)
    with pytest.raises(UsageError, match="blanks"):
        make_launch(training, torchrun=True)


# ------------------------------------------------------------------------------- the file, run

FAKE_PROGRAM = """\
#!/bin/sh
{python} -c 'import json, os, sys
with open(os.environ["RECORD"], "a") as file: print(json.dumps([sys.argv[1:], dict(os.environ)]), file=file)' \
{name} "$@"
"""


def fake_programs(directory: Path) -> None:
    directory.mkdir()
    for name in ("apptainer", "scontrol"):
        program = directory / name
        program.write_text(FAKE_PROGRAM.format(python=sys.executable, name=name))
        program.chmod(0o755)
    # as srun does: the program, once on each node
    srun = directory / "srun"
    srun.write_text(
        "#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"
        'for n in 0 1; do SLURM_NODEID=$n SLURM_PROCID=$n "$@" || exit; done\n'
    )
    srun.chmod(0o755)


def run_file(text: str, tmp_path: Path, **environ: str) -> list[tuple[list[str], dict[str, str]]]:
    """Run a job file as Slurm would, with programs that only write down how they were called."""
    place = tmp_path / "run"
    shutil.rmtree(place, ignore_errors=True)
    (place / "cwd").mkdir(parents=True)
    fake_programs(place / "bin")
    file, record = place / "job.sbatch", place / "record"
    file.write_text(text)
    env = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "RECORD": str(record),
        "TMPDIR": str(place),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURMD_NODENAME": "n1",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "HOME": str(place),
        **environ,
    }
    done = subprocess.run(
        ["bash", str(file)], cwd=place / "cwd", env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((place / "cwd").iterdir()) == []  # nothing was executed that writes, and no redirection happened
    calls = [json.loads(line) for line in record.read_text().splitlines()]
    return [(argv[1:], seen) for argv, seen in calls if argv[0] == "apptainer"]


# What shells, sbatch and Apptainer read as more than a character; control characters are refused, tested below.
HOSTILE = st.text(st.sampled_from("a $(){}`'\"\\;&|<>*?~#!=%[]-ü\u2028"), min_size=1, max_size=24)


def is_name(text: str) -> bool:
    return text not in (".", "..") and len(text.encode()) < 200


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(name="$(touch owned)", value="`touch owned`", nodes=2)
@example(name="a'; touch owned; '", value='"; touch owned; "', nodes=1)
@given(name=HOSTILE.filter(is_name), value=HOSTILE, nodes=st.sampled_from([1, 2]))
def test_no_value_is_ever_executed(tmp_path: Path, name: str, value: str, nodes: int) -> None:
    out = tmp_path / "out" / name
    training = make_training(tmp_path / name / "train.yaml", "run_name=" + "_".join(value.split()), output_dir=str(out))
    image, checkout = tmp_path / f"{name}.sif", tmp_path / "checkout" / name
    launch = make_launch(training, image=image, checkout=checkout, torchrun=nodes > 1)
    text = render(make_job(launch, resources=Resources(gpus=0, nodes=nodes), resume=RESUME))
    calls = run_file(text, tmp_path)
    assert len(calls) == nodes
    for argv, _ in calls:
        at = argv.index(str(image))
        assert argv[at:] == [str(image), *with_signal(launch, RESUME).command]
        binds = [argv[index + 1] for index, word in enumerate(argv[:at]) if word == "--bind"]
        expected = [f"{checkout}:/mnt", *(bind.option() for bind in launch.binds)]
        assert binds[: len(expected)] == expected
    assert out.is_dir()


@given(st.text(st.characters(max_codepoint=31), min_size=1))
def test_control_characters_in_paths_are_refused(text: str) -> None:
    with pytest.raises(SifkitError):
        make_launch(make_training(Path(f"/home/{text}/train.yaml")))
    with pytest.raises(SifkitError):
        make_launch(checkout=Path(f"/home/{text}"))
    with pytest.raises(SifkitError):
        make_launch(make_training(output_dir=f"/scratch/{text}"))


@pytest.mark.parametrize("letter", [":", ","])
def test_what_apptainer_cannot_bind_is_said_before_the_queue(letter: str) -> None:
    with pytest.raises(SifkitError, match="cannot bind"):
        make_launch(checkout=Path(f"/home/a{letter}b"))


def test_each_node_gets_its_rank_and_all_the_same_meeting_place(tmp_path: Path) -> None:
    job = make_job(make_launch(make_training(output_dir=str(tmp_path / "out"))), resources=Resources(gpus=4, nodes=2))
    seen = [env for _, env in run_file(render(job), tmp_path)]
    wanted = ("NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_PORT", "FORCE_TORCHRUN")
    assert [[env[f"APPTAINERENV_{name}"] for name in wanted] for env in seen] == [
        ["2", "0", "4", "14711", "1"],
        ["2", "1", "4", "14711", "1"],
    ]
    assert {env["SRUN_CPUS_PER_TASK"] for env in seen} == {"8"}


def test_the_container_sees_the_allowed_variables_alone(tmp_path: Path) -> None:
    job = make_job(make_launch(make_training(output_dir=str(tmp_path / "out"))))
    allowed = {"HF_TOKEN": "a b", "CUDA_VISIBLE_DEVICES": "0,1", "NCCL_DEBUG": "$(id)"}
    hidden = {"PYTHONPATH": "/x", "LD_LIBRARY_PATH": "/x", "CONDA_PREFIX": "/x", "APPTAINER_BIND": "/x"}
    left_over = {"APPTAINERENV_PYTHONPATH": "/x", "SINGULARITYENV_LD_PRELOAD": "/x", "MASTER_ADDR": "other"}
    ((argv, env),) = run_file(render(job), tmp_path, **allowed, **hidden, **left_over)
    assert "--cleanenv" in argv
    passed = {name.removeprefix("APPTAINERENV_"): value for name, value in env.items() if "ENV_" in name}
    assert allowed.items() <= passed.items()
    assert not passed.keys() & {*hidden, "SINGULARITYENV_LD_PRELOAD", "MASTER_ADDR"}
    assert "APPTAINER_BIND" not in env


def test_a_missing_tmpdir_is_made_good_and_the_scratch_directory_goes(tmp_path: Path) -> None:
    job = make_job(make_launch(make_training(output_dir=str(tmp_path / "out"))))
    ((argv, _),) = run_file(render(job), tmp_path, TMPDIR="/nowhere/4711")
    scratch = next(word for word in argv if word.endswith(":/sifkit/cache")).partition(":")[0]
    assert scratch.startswith("/tmp/sifkit-4711-")
    assert not Path(scratch).exists()


def test_each_task_of_an_array_has_its_own_config(tmp_path: Path) -> None:
    launches = [
        make_launch(make_training(Path(f"/home/me/{name}.yaml"), output_dir=str(tmp_path / name))) for name in "ab"
    ]
    text = render(make_job(*launches))
    assert directives(text)["array"] == "0-1"
    for task, name in enumerate("ab"):
        ((argv, _),) = run_file(text, tmp_path, SLURM_ARRAY_TASK_ID=str(task))
        assert f"/home/me/{name}.yaml:/sifkit/config/train.yaml:ro" in argv


def test_the_sites_binds_and_cache_are_in_the_file(tmp_path: Path) -> None:
    site = Site(binds=(f"{tmp_path}:/data:ro",))
    launch = make_launch(make_training(output_dir=str(tmp_path / "out")), site=site)
    ((argv, env),) = run_file(render(make_job(launch, hf_home=str(tmp_path / "hf home"))), tmp_path)
    assert {f"{tmp_path}:/data:ro", f"{tmp_path}/hf home:{tmp_path}/hf home"} <= set(argv)
    assert env["APPTAINERENV_HF_HOME"] == f"{tmp_path}/hf home"


# ------------------------------------------------------------------------------- checkpoints

WHOLE = {
    "adapter_model.safetensors": "weights",
    "adapter_config.json": "{}",
    "optimizer.pt": "optimizer",
    "scheduler.pt": "scheduler",
    "trainer_state.json": '{\n  "global_step": 1\n}\n',
}
SHARDED = {
    **{name: text for name, text in WHOLE.items() if not name.startswith("adapter")},
    "config.json": "{}",
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ),
    "model-00001-of-00002.safetensors": "one",
}
INCOMPLETE = {
    "no state": {name: text for name, text in WHOLE.items() if name != "trainer_state.json"},
    "state cut off": {**WHOLE, "trainer_state.json": '{\n  "global_step"'},
    "no optimizer": {name: text for name, text in WHOLE.items() if name != "optimizer.pt"},
    "no scheduler": {name: text for name, text in WHOLE.items() if name != "scheduler.pt"},
    "empty weights": {**WHOLE, "adapter_model.safetensors": ""},
    "being written": {**WHOLE, "checkpoint-is-incomplete.txt": "Checkpoint started"},
    "a shard missing": SHARDED,
    "nothing": {},
}


def plant(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)


@pytest.mark.parametrize("files", INCOMPLETE.values(), ids=INCOMPLETE)
def test_an_incomplete_checkpoint_is_set_aside_and_kept(files: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    plant(out / "checkpoint-9", WHOLE)
    plant(out / "checkpoint-10", files)
    job = make_job(make_launch(make_training(output_dir=str(out))), resume=RESUME)
    run_file(render(job), tmp_path)
    assert (out / "checkpoint-9").is_dir()
    assert not (out / "checkpoint-10").exists()
    (aside,) = out.glob("incomplete-checkpoint-10-*")
    assert {path.name: path.read_text() for path in aside.iterdir()} == files


@pytest.mark.parametrize(
    "files", [WHOLE, {**SHARDED, "model-00002-of-00002.safetensors": "two"}], ids=["adapter", "shards"]
)
def test_a_complete_checkpoint_stays(files: dict[str, str], tmp_path: Path) -> None:
    plant(tmp_path / "out" / "checkpoint-10", files)
    job = make_job(make_launch(make_training(output_dir=str(tmp_path / "out"))), resume=RESUME)
    run_file(render(job), tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"checkpoint-10"}


def test_older_checkpoints_stay_whatever_they_lack(tmp_path: Path) -> None:
    """`sifkit prune --optimizer-only` leaves such: they mislead nobody, since the newest is whole."""
    out = tmp_path / "out"
    plant(out / "checkpoint-9", INCOMPLETE["no optimizer"])
    plant(out / "checkpoint-10", WHOLE)
    run_file(render(make_job(make_launch(make_training(output_dir=str(out))), resume=RESUME)), tmp_path)
    assert {path.name for path in out.iterdir()} == {"checkpoint-9", "checkpoint-10"}


@pytest.mark.parametrize("files", [*INCOMPLETE.values()], ids=INCOMPLETE)
def test_sifkit_outputs_judges_them_alike(files: dict[str, str], tmp_path: Path) -> None:
    """The shell in the job file and `sifkit outputs` must not disagree on where a run goes on."""
    plant(tmp_path / "out" / "checkpoint-10", files)
    (checkpoint,) = read_run(tmp_path / "out").checkpoints
    assert checkpoint.status is not Status.COMPLETE


# Trains until it is told to stop; then, as transformers does, writes a checkpoint and ends well.
FAKE_TRAINER = """\
#!/bin/bash
trap 'mkdir -p "$OUT/checkpoint-20"; cp "$OUT"/checkpoint-10/* "$OUT/checkpoint-20"; exit 0' TERM
touch "$OUT/started"
while :; do sleep 0.1; done
"""


# As torchrun: two ranks, of which one has a process that loads data; each writes down the signal that it gets. The
# other ends later, so that the job tells both again, and finds the loader without its rank.
FAKE_TORCHRUN = """\
#!/bin/bash
rank() {
    trap 'echo "$1" >> "$OUT/told"; mkdir -p "$OUT/checkpoint-20"
          cp "$OUT"/checkpoint-10/* "$OUT/checkpoint-20"; sleep "$2"; exit 0' TERM
    touch "$OUT/$1"
    while :; do sleep 0.1; done
}
loader() {
    trap 'echo loader >> "$OUT/told"' TERM
    until [ -e "$OUT/rank0" ] && [ -e "$OUT/rank1" ]; do sleep 0.1; done
    touch "$OUT/started"
    for _ in {1..50}; do sleep 0.1; done
}
export -f rank loader
trap 'echo torchrun >> "$OUT/told"' TERM
LOCAL_RANK=0 bash -c 'bash -c loader & rank rank0 0' &
LOCAL_RANK=1 bash -c 'rank rank1 3' &
wait -n
wait -n
"""


def start_warned(
    tmp_path: Path, trainer: str, environ: dict[str, str] | None = None, **changes: Any
) -> subprocess.Popen[str]:
    """A job that goes on from checkpoint-10, its trainer at work."""
    out, place = tmp_path / "out", tmp_path / "run"
    plant(out / "checkpoint-10", WHOLE)
    place.mkdir()
    fake_programs(place / "bin")
    (place / "bin" / "apptainer").write_text(trainer)
    (place / "bin" / "scontrol").write_text(f'#!/bin/sh\necho "$*" >> {place}/scontrol\n')
    job = make_job(make_launch(make_training(output_dir=str(out))), resume=RESUME, **changes)
    (place / "job.sbatch").write_text(render(job))
    env = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "OUT": str(out),
        "SLURM_JOB_ID": "4711",
        "SLURMD_NODENAME": "n1",
        "SLURM_JOB_NUM_NODES": "1",
        "TMPDIR": str(place),
        **(environ or {}),
    }
    process = subprocess.Popen(["bash", place / "job.sbatch"], env=env, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 30
    while not (out / "started").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return process


def test_a_warned_job_saves_and_is_requeued(tmp_path: Path) -> None:
    process = start_warned(tmp_path, FAKE_TRAINER)
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, (tmp_path / "run" / "scontrol").read_text()) == (0, "requeue 4711\n")
    assert "requeued, to go on from step 20" in said
    assert not list((tmp_path / "run").glob("sifkit-*"))


def test_a_warned_task_requeues_itself_and_not_its_array(tmp_path: Path) -> None:
    """The number of one task of an array is the array's, and `scontrol requeue` of that starts all tasks again."""
    process = start_warned(tmp_path, FAKE_TRAINER, {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "2"})
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert (tmp_path / "run" / "scontrol").read_text() == "requeue 4711_2\n"


def test_below_torchrun_the_ranks_alone_are_told(tmp_path: Path) -> None:
    process = start_warned(tmp_path, FAKE_TORCHRUN, resources=Resources(gpus=2))
    other = subprocess.Popen(["sleep", "30"], env={**os.environ, "SLURM_JOB_ID": "1", "LOCAL_RANK": "0"})
    try:
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=60)
        assert other.poll() is None  # a rank of another job
    finally:
        other.kill()
        other.wait()
    assert sorted(set((tmp_path / "out" / "told").read_text().split())) == ["rank0", "rank1"]
    assert "requeued, to go on from step 20" in said
    assert "denied" not in said


def test_a_warned_job_without_a_new_checkpoint_fails(tmp_path: Path) -> None:
    process = start_warned(tmp_path, FAKE_TRAINER.replace("mkdir -p", "exit 0; :"))
    process.send_signal(signal.SIGUSR1)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no checkpoint after step 10" in said
    assert not (tmp_path / "run" / "scontrol").exists()


def test_a_cancelled_job_tells_its_trainer_and_is_not_requeued(tmp_path: Path) -> None:
    process = start_warned(tmp_path, FAKE_TRAINER)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (tmp_path / "out" / "checkpoint-20").is_dir()
    assert not (tmp_path / "run" / "scontrol").exists()


def test_a_trainer_that_ends_by_itself_gives_the_jobs_exit_code(tmp_path: Path) -> None:
    process = start_warned(tmp_path, '#!/bin/sh\ntouch "$OUT/started"\nexit 7\n')
    process.communicate(timeout=60)
    assert process.returncode == 7


def test_jobs_without_resuming_leave_checkpoints_alone(tmp_path: Path) -> None:
    plant(tmp_path / "out" / "checkpoint-10", {})
    job: Job = make_job(make_launch(make_training(output_dir=str(tmp_path / "out"))))
    run_file(render(job), tmp_path)
    assert (tmp_path / "out" / "checkpoint-10").is_dir()
