"""Bytes through memory, and kernels, of what runs between a layer's products, by how the layer is executed."""

from estimator.formulas.counts import Traffic, layer_traffic, routing_traffic
from estimator.stack.habits import Habits
from estimator.work.shape import Shape

KERNELS = {"kernels": Traffic(0, 0), "eager": Traffic(36, 74), "compiled": Traffic(14, 28)}
"""Kernels of a layer, forward and backward, products and attention among them, that the device starts one by one.

measured: calls of a layer in profiles of one step of a 7B model on an H200, eager and compiled. Of kernels written by
hand none is counted: what a stack reaches of its rates was measured with them.
"""

KERNEL_S = 3.2e-6
"""Seconds of a kernel's start and end on the device, beside its bytes.

measured: what fits elementwise ops of eager steps on an H200 at once, 1B at 4 and 16 rows and 7B at 1 row, with one
part of the bandwidth that copies reach, 0.8 (reports/measured/h200)
"""

STRIDED = 2.0
"""Time of passes over heads that do not lie in a row of memory, over that of others.  # measured: as above, rotary"""


def _norm(act: int) -> Traffic:
    """Bytes per element of a norm in 32 bits, operator by operator.

    Forward: cast, square, mean, product with the root, cast back, product with the scale. Backward: gradient of the
    scale's product (2 tensors, and a sum), of the casts, of the root (product, sum, spread), of the square (3 passes),
    and their sum.
    """
    cast = 4 + act if act < 4 else 0
    return Traffic(2 * cast + 8 + 4 + 8 + 2 * act, 6 * act + 2 * cast + 8 + 16 + 4 + 24 + 12)


def eager_traffic(shape: Shape, act: int) -> tuple[Traffic, Traffic]:
    """Bytes per token of a layer's ops beside its products, each an operator of transformers: whole, and inside.

    Whole: two norms; two residuals; gradients added where the input goes to query, key and value, to gate and up, and
    past the block. Inside: rotary of q and k (two products, a half negated, joined, a sum; backward the same and the
    halves' zeros and sums), keys and values repeated for all heads, and the activation with its gate.

    >>> from estimator.work.shape import load_shape
    >>> whole, inside = eager_traffic(load_shape("mistralai/Mistral-7B-v0.1"), 2)
    >>> (sum(whole) + sum(inside)) / 4096  # per token and unit of the hidden size
    483.0
    """
    norm, hidden, ffn = _norm(act), shape.hidden_size, shape.ffn_size * max(shape.num_experts_per_token, 1)
    ffn += shape.shared_ffn_size
    routing = routing_traffic(shape, act)
    whole = Traffic(
        hidden * (2 * norm.forward + 2 * 3 * act) + routing.forward,
        hidden * (2 * norm.backward + 5 * 3 * act) + routing.backward,
    )
    heads = 0 if shape.num_positions else shape.q_size + shape.kv_size
    repeated = 2 * act * (shape.q_size + shape.kv_size) if shape.kv_size < shape.q_size else 0
    inside = Traffic(
        heads * STRIDED * 10 * act + repeated + ffn * act * (5 if shape.gated_ffn else 2),
        heads * 14 * act + repeated + ffn * act * (9 if shape.gated_ffn else 3),
    )
    return whole, inside


def executed_traffic(shape: Shape, habits: Habits) -> tuple[Traffic, Traffic]:
    """Bytes per token through memory of a layer's ops beside its products, as it is executed: whole, and inside."""
    if habits.execution == "eager":
        return eager_traffic(shape, habits.activation_bytes)
    return layer_traffic(shape, habits.activation_bytes, in_8_bits=habits.matmul_precision == "fp8")


def loss_traffic_bytes(habits: Habits) -> float:
    """Bytes per logit through memory of the loss, forward and backward.

    Fused: read and written in 32 bits forward, read and the gradient written backward. Else, in 32 bits whatever the
    logits are: their copy, log-softmax (read twice, written), the gradient's zeros, its log-softmax (two read, one of
    them twice, one written), and its copy back.

    measured: 54 bytes at the rate of copies, 46 at the 0.85 of it that large passes reach, of 16-bit logits on an H200
    (reports/measured/h200/other_ops.jsonl, float_ce)
    """
    act = habits.activation_bytes
    if habits.execution == "kernels":
        return 2.0 * (act + 4.0)
    return 12.0 + 4.0 + 16.0 + (2.0 * (act + 4.0) if act < 4 else 0.0)


def chunked_loss_traffic_bytes(habits: Habits) -> float:
    """Bytes per logit through memory of a loss in chunks, whose gradient takes the logits' place (trainer's `loss.py`).

    Compiled: read for their sum, read and written for their softmax. Else a log-softmax that reads them three times and
    writes 32 bits, its exponential in place, and the copy back.  # assumed: passes counted, none timed
    """
    act = habits.activation_bytes
    if habits.execution == "compiled":
        return 3.0 * act
    return 3.0 * act + 4.0 + 8.0 + 4.0 + act
