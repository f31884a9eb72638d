"""What a run's directory means for whoever looks at it: how far the run came, and what to do. Pure."""

from __future__ import annotations

import shlex

from sifkit.rundir.checkpoints import Checkpoint, Status, newest
from sifkit.rundir.read import End, Run

# Set aside, a checkpoint must be called otherwise from the first letter on: transformers counts every checkpoint-* for
# save_total_limit (transformers/trainer_utils.py, sort_checkpoints).
ASIDE = "incomplete-"


def how_far(run: Run) -> str:
    """One line: finished or not, and at which step."""
    match run.end:
        case End.NO_TRAINING:
            return "evaluation or prediction alone, finished"
        case End.FINISHED:
            return _finished(run)
        case End.UNFINISHED:
            return _unfinished(run)


def _finished(run: Run) -> str:
    step, most = (run.state.global_step, run.state.max_steps) if run.state else (None, None)
    early = " (stopped early by itself, or told to end)" if run.ended_early else ""
    return f"finished at step {step:,}" + (f" of {most:,}{early}" if most else "")


def _unfinished(run: Run) -> str:
    step, most = run.log.current_steps, run.log.total_steps
    if step is None:
        return "not finished, and no step was logged"
    percent = f" of {most:,} ({step / most:.0%})" if most else ""
    return f"not finished: still running, or stopped after step {step:,}{percent}"


def advice(run: Run) -> tuple[str, ...]:
    """What to know or to do, the most urgent first; empty for a run that is finished and whole."""
    said = []
    if run.log.loss.not_finite:
        many = f"{run.log.loss.not_finite} of {run.log.loss.count}"
        said.append(f"{many} logged losses are not finite: lower learning_rate, or take bf16 in place of fp16")
    if run.missing:
        said.append(f"the final model cannot be loaded: {', '.join(run.missing)} missing")
    if run.end is End.UNFINISHED:
        said += _to_resume(run)
    return tuple(said)


def _to_resume(run: Run) -> list[str]:
    """What llamafactory/hparams/parser.py, get_train_args, will do when the same command is given again."""
    if run.stage in ("rm", "ppo") and run.method not in ("lora", "oft"):
        return [f"LLaMA-Factory does not resume stage {run.stage} of {run.method}: the run starts again at step 0"]
    last = max(run.checkpoints, key=lambda each: each.step, default=None)
    if last is None:
        return _without_checkpoint(run)
    good = newest(run.checkpoints, Status.COMPLETE, Status.MODEL_ONLY)
    later = [
        each for each in run.checkpoints if each.status is Status.INCOMPLETE and (not good or each.step > good.step)
    ]
    aside = [f"LLaMA-Factory would take {each.name}, which is not whole; first: {_mv(run, each)}" for each in later]
    return [*aside, _from(run, good) if good else "no checkpoint is whole: the run starts again at step 0"]


def _without_checkpoint(run: Run) -> list[str]:
    weights = {"adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin"}
    if any(file.name in weights for file in run.files):
        return ["there are weights and no checkpoint: LLaMA-Factory refuses this output_dir; name a new one"]
    return ["there is no checkpoint: the run starts again at step 0"]


def _mv(run: Run, checkpoint: Checkpoint) -> str:
    source, target = run.directory / checkpoint.name, run.directory / f"{ASIDE}{checkpoint.name}"
    return f"mv -- {shlex.quote(str(source))} {shlex.quote(str(target))}"


def _from(run: Run, good: Checkpoint) -> str:
    if run.stage in ("rm", "ppo"):
        return f"to go on from {good.name}, give the same command with adapter_name_or_path={run.directory / good.name}"
    if good.status is Status.MODEL_ONLY:
        return (
            f"{good.name} holds no optimizer (save_only_model, or pruned): the same command goes on with its weights, "
            "but with a new optimizer and learning rate schedule"
        )
    return f"the same command goes on from {good.name}, unless overwrite_output_dir is true"
