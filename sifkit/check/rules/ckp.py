"""CKP: checkpoints, resuming from them, and the disk that they take."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.version import InvalidVersion, Version

from sifkit.check.facts import CheckoutFacts, CheckpointFacts, Facts, Kind
from sifkit.check.rule import Edit, Found, NotChecked, Severity, rule
from sifkit.resuming import resume_obstacles

# llamafactory/extras/constants.py, CHECKPOINT_NAMES: weights that it takes for an earlier run's
WEIGHTS = frozenset(
    {
        *("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "model.safetensors.index.json"),
        *("pytorch_model.bin", "pytorch_model.bin.index.json"),
    }
)
_NO_RESUME = ("rm", "ppo")
_SAVES_ON_SIGNAL = Version("5.1")  # transformers with enable_jit_checkpoint (trainer_jit_checkpoint.py, #41723)
_PARSER = "LLaMA-Factory 0.9.4 and 0.9.5 hparams/parser.py, get_train_args"


def checkout_of(facts: Facts) -> CheckoutFacts:
    """The checkout, where a rule needs it."""
    assert facts.checkout is not None
    return facts.checkout


def trains(facts: Facts) -> bool:
    """Whether the run trains, and so writes checkpoints."""
    return facts.value("do_train") is True


def overwrites(facts: Facts) -> bool:
    """Whether what lies in output_dir is passed over."""
    return facts.value("overwrite_output_dir") is True


def _resumes(facts: Facts) -> bool:
    """Whether LLaMA-Factory goes on from the newest checkpoint of output_dir by itself."""
    whole = facts.value("finetuning_type") in ("full", "freeze")
    can = not (facts.value("stage") in _NO_RESUME and whole)
    return trains(facts) and can and not overwrites(facts) and not facts.value("resume_from_checkpoint")


@rule(
    "CKP001",
    "overwrites-what-it-would-resume",
    needs=(Kind.JOB,),
    prevents="killed mid-run, the rerun starts at step 0",
    why="with overwrite_output_dir LLaMA-Factory looks for no checkpoint in output_dir, as its examples have it",
    fix="overwrite_output_dir: false",
    source=f"{_PARSER}; 0.9.5 declares the argument itself, since transformers 5 has it no more",
    rows=(15,),
)
def overwrites_what_it_would_resume(facts: Facts) -> Iterator[Found | NotChecked]:
    """overwrite_output_dir: true in a job that is to go on after its time limit; in one that is not, that is told."""
    job = facts.job
    if job is None or not trains(facts) or not overwrites(facts) or not (job.requeue or job.time):
        return
    key = "overwrite_output_dir"
    if job.requeue:
        message = f"{key}: true, so that a job that goes on would start at step 0"
        yield Found(message, f"{key}: false", key, edit=Edit(key, value="false"))
    else:
        message = f"{key}: true: a later job with this output_dir starts at step 0, not from its last checkpoint"
        yield Found(message, f"{key}: false, if it is to go on", key, severity=Severity.INFO)


@rule(
    "CKP002",
    "incomplete-checkpoint",
    needs=(Kind.CHECKOUT,),
    prevents="FileNotFoundError: [Errno 2] No such file or directory: '…/trainer_state.json'",
    why="a run that is killed while it saves leaves a checkpoint without its last files; the one with the highest "
    "number is taken, whole or not",
    fix="set it aside: the one before it is taken",
    source=f"{_PARSER}; transformers 5.6.0 trainer_utils.py get_last_checkpoint, trainer.py",
    rows=(16,),
)
def incomplete_checkpoint(facts: Facts) -> Iterator[Found | NotChecked]:
    """The newest checkpoint in output_dir, from which the run would go on, lacks files."""
    newest = _newest(checkout_of(facts))
    sets_aside = facts.job is not None and facts.job.ours and facts.job.requeue  # the job file does (slurm/jobfile)
    if newest is None or not newest.missing or not _resumes(facts) or sets_aside:
        return
    path, missing = newest.path, ", ".join(newest.missing)
    if newest.missing == ("the optimizer",):
        message = f"{path} holds the model alone: the run goes on from its step with a new optimizer"
        fix = "a new output_dir, with the checkpoint as model_name_or_path or adapter_name_or_path"
        yield Found(message, fix, "output_dir", severity=Severity.WARNING)
        return
    message = f"the run would go on from {path}, which lacks {missing}"
    yield Found(message, f"set it aside: mv {path} {path.parent / f'incomplete-{path.name}'}", "output_dir")


def _newest(checkout: CheckoutFacts) -> CheckpointFacts | None:
    return max(checkout.checkpoints, key=lambda each: each.step, default=None)


@rule(
    "CKP004",
    "weights-without-checkpoint",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Output directory already exists and is not empty. Please set `overwrite_output_dir`.",
    why="weights without a checkpoint beside them look like a run that ended, which is not written over",
    fix="a new output_dir; or overwrite_output_dir: true, if that run is no longer needed",
    source=f"{_PARSER}; extras/constants.py, CHECKPOINT_NAMES",
    rows=(48,),
)
def weights_without_checkpoint(facts: Facts) -> Iterator[Found | NotChecked]:
    """output_dir holds an earlier run's weights and no checkpoint to go on from."""
    checkout = checkout_of(facts)
    output = checkout.output
    if output is None or not _resumes(facts) or checkout.checkpoints:
        return
    there = sorted(WEIGHTS.intersection(output.names))
    if there:
        message = f"output_dir: {output.text} holds {there[0]} and no checkpoint: LLaMA-Factory stops at once"
        yield Found(message, "a new output_dir; or overwrite_output_dir: true, which writes over it", "output_dir")


@rule(
    "CKP005",
    "cannot-resume",
    needs=(Kind.JOB,),
    prevents="the requeued job starts again at step 0, or from the same checkpoint each time",
    why="going on needs checkpoints with an optimizer, a stage that LLaMA-Factory resumes, and no fixed place to start "
    "from",
    fix="change the key that the finding names, or leave out --requeue",
    source=f"{_PARSER}; train/ppo/trainer.py: resume_from_checkpoint will be supported in the future version",
    rows=(15,),
)
def cannot_resume(facts: Facts) -> Iterator[Found | NotChecked]:
    """A job that is to go on after its time limit, whose config does not let it."""
    if facts.job is None or not facts.job.requeue or not trains(facts):
        return
    stage = str(facts.value("stage") or "sft")
    found = resume_obstacles(
        facts.config.values, stage, resumes=stage not in _NO_RESUME, saves_on_signal=saves_on_signal(facts)
    )
    for obstacle in found:
        if obstacle.key != "overwrite_output_dir":  # CKP001
            yield Found(obstacle.message, obstacle.fix, obstacle.key or "stage")


def saves_on_signal(facts: Facts) -> bool:
    """Whether the image's trainer can save when it is warned."""
    try:
        return facts.image is not None and Version(facts.image.transformers) >= _SAVES_ON_SIGNAL
    except InvalidVersion:
        return False


@rule(
    "CKP007",
    "resume-target-missing",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: Can't find a valid checkpoint at",
    why="resume_from_checkpoint names a directory checkpoint-N with trainer_state.json, weights and optimizer",
    fix="name a checkpoint that is there, or leave the key out: the newest of output_dir is then taken",
    source="transformers 5.6.0 trainer.py, _load_from_checkpoint",
    rows=(16,),
)
def resume_target_missing(facts: Facts) -> Iterator[Found | NotChecked]:
    """resume_from_checkpoint names nothing, or what is no checkpoint."""
    fix = "name a checkpoint that is there, or remove the key: the newest of output_dir is then taken"
    for path in checkout_of(facts).at("resume_from_checkpoint"):
        if path.fault is not None:
            yield NotChecked(f"{path.host}: {path.fault}")
        elif not path.exists:
            yield Found(f"resume_from_checkpoint: {path.host} is not there", fix, path.key)
        elif "trainer_state.json" not in path.names:
            message = f"resume_from_checkpoint: {path.text} has no trainer_state.json"
            yield Found(message, fix, path.key, cause="FileNotFoundError: … trainer_state.json")


@rule(
    "CKP010",
    "ppo-finds-a-checkpoint",
    needs=(Kind.CHECKOUT,),
    prevents="ValueError: `resume_from_checkpoint` will be supported in the future version.",
    why="the parser takes the newest checkpoint of output_dir for every stage that trains an adapter, and the PPO "
    "trainer refuses it",
    fix="a new output_dir, or overwrite_output_dir: true",
    source=f"{_PARSER}; train/ppo/trainer.py, ppo_train",
)
def ppo_finds_a_checkpoint(facts: Facts) -> Iterator[Found | NotChecked]:
    """PPO with an adapter, and checkpoints in its output_dir."""
    found = _newest(checkout_of(facts))
    if facts.value("stage") == "ppo" and found is not None and _resumes(facts):
        message = f"PPO does not resume, and would be given {found.path}"
        yield Found(message, "a new output_dir; or overwrite_output_dir: true", "output_dir")
