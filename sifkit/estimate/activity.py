"""What a batch adds to a GPU's memory while it passes the model. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from sifkit.estimate.training import FLOAT, Run


@dataclass(frozen=True)
class Activity:
    """Bytes that a batch adds."""

    kept: int  # of all layers, from the forward pass on
    layer: int  # of the layer that is being differentiated, beyond what was kept of it
    last: int  # of the norm and the matrix behind the layers, until the loss has its gradient
    forward: int  # logits, when the loss is known
    backward: int  # logits and their gradients
    evaluation: int


def activations(run: Run) -> Activity:
    """Of one forward and backward pass with rows of cutoff_len."""
    settings, shape, tokens = run.settings, run.shape, run.settings.tokens
    saved, working = tokens * _saved(run), tokens * _working(run)
    if settings.checkpointing:
        kept = 0 if settings.checkpoints_on_host else run.trained.layers * tokens * shape.hidden * run.stream
        layer = saved + working
    else:
        kept, layer = run.trained.layers * saved, working
    if settings.stage == "rm":  # asks for the hidden states of all layers
        kept += shape.layers * tokens * shape.hidden * run.stream
    last = tokens * _last(run)
    forward, backward = _logits(run)
    each = (settings.eval_batch or 0) * settings.cutoff * (settings.sequences // settings.batch)
    return Activity(kept, layer, last, forward, backward, each * (_evaluated(run) + shape.hidden * run.number))


def _saved(run: Run) -> int:
    """Bytes of one token that a layer keeps for its gradients, with PyTorch's own attention.

    Two norms: their input in fp32, and what is multiplied by a weight that is trained. Of each matrix that is trained
    or has an adapter: its input. Attention: queries, keys, values, result. MLP: gate, its activation, and up.
    Source: transformers 5.6.0 models/llama/modeling_llama.py, peft 0.18.1 tuners/lora/layer.py.
    """
    shape, number = run.shape, run.number
    norms = 2 * shape.hidden * (FLOAT + (run.stream if run.trained.adapted is None else 0))
    linears = run.shape.linears if run.trained.adapted is None else run.trained.adapted
    inputs = sum(each.inputs * min(each.count, shape.layers) for each in linears) // shape.layers
    if not any(each.name == "down_proj" for each in linears) and run.trained.adapted is None:
        inputs += shape.hidden + shape.wide  # experts
    attention = 2 * shape.queries + 2 * shape.keys
    scores = shape.heads * run.settings.cutoff * (FLOAT + 2 * number) if run.settings.eager else 0
    return norms + number * (inputs + attention + 3 * shape.wide) + scores


def _working(run: Run) -> int:
    """Bytes of one token that a layer's backward pass uses and drops: gradients of its widest parts."""
    shape, number = run.shape, run.number
    casts = FLOAT * shape.wide if run.trained.adapted is not None else 0  # an adapter's input, in fp32
    return 2 * number * shape.wide + casts + 2 * run.stream * shape.hidden


def _last(run: Run) -> int:
    """Bytes of one token: the last norm's input in fp32; where lm_head is trained, its input and the norm's product."""
    trained = run.stream + run.number if run.trained.embeddings else 0
    return run.shape.hidden * (FLOAT + trained)


def _logits(run: Run) -> tuple[int, int]:
    """Forward and backward.

    Loss: logits in half precision, again in fp32, log_softmax; then its gradient, that of its input, and
    log_softmax. DPO holds logits and log_softmax while the reference's are made.
    Source: transformers 5.6.0 loss/loss_utils.py; LLaMA-Factory 0.9.5 train/dpo/trainer.py, train/trainer_utils.py.
    """
    settings, number = run.settings, run.number
    size = settings.tokens * run.shape.vocab
    if settings.fused_loss:
        size = settings.tokens * run.shape.hidden
        return size * FLOAT, size * 2 * FLOAT
    if settings.stage == "rm":
        return size * (number + FLOAT), 0
    once = size * (2 * FLOAT + (number if number < FLOAT else 0))
    held = size * 2 * FLOAT if settings.reference else 0
    return held + once, size * 3 * FLOAT


def _evaluated(run: Run) -> int:
    """Bytes of one token: logits and log_softmax, with no gradients."""
    number = run.number
    return run.shape.vocab * (2 * FLOAT + (number if number < FLOAT else 0))
