"""A loss fused with the vocabulary projection: a few rows of logits at a time, and their gradients right away.

As Liger's kernel has it (liger-kernel 0.8, ops/fused_linear_cross_entropy.py, `fused_linear_cross_entropy_forward`).
"""

import numpy as np

from estimator.arrays import Array
from estimator.formulas.counts import head_matmul
from estimator.formulas.inputs import StepInputs


def chunk_rows(inputs: StepInputs) -> Array:
    """Return the tokens of a chunk: as many as have about as many logits as all tokens have hidden values.

    The next power of two of T / ceil(V / H), and no more than T.

    >>> from estimator.formulas.layout import layout
    >>> from estimator.work.plan import Plan
    >>> from estimator.work.shape import load_shape
    >>> one = StepInputs(load_shape("mistral-7b-v0.1"), 4096, layout(Plan(batch_per_device=4), 1, 1), None, None)
    >>> chunk_rows(one)  # the kernel's own example
    array([2048.])
    """
    shape, tokens = inputs.shape, inputs.tokens
    chunks = -(-shape.vocab_size // shape.hidden_size)
    rows = np.exp2(np.ceil(np.log2(np.ceil(tokens / chunks))))
    return np.asarray(np.minimum(rows, tokens))


def fused_loss_bytes(inputs: StepInputs) -> Array:
    """Bytes of the loss of a micro-batch: a chunk's logits, and gradients of the projection and of what it takes.

    The projection has a gradient only where it is trained.
    """
    shape, habits, size = inputs.shape, inputs.habits, head_matmul(inputs.shape).out_size
    act, hidden = habits.activation_bytes, shape.hidden_size
    weight = 0.0 if shape.lora_rank else habits.weight_bytes * size * hidden
    around = inputs.tokens * hidden * (2.0 * act + habits.norm_copy_bytes)  # its input, and that one's gradient
    return np.asarray(act * chunk_rows(inputs) * size + weight + around)


def fused_loss_traffic_bytes(act: int) -> float:
    """Bytes per logit through memory: read for their sum; read for their softmax, whose gradient takes their place."""
    return 3.0 * act
