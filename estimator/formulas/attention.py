"""Seconds of attention on one device: fused, by kernel, or written out as products and passes over the scores."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.compute import Rates, shape_efficiency
from estimator.formulas.counts import MATERIALIZED_ATTENTION, attention_backward_flop, attention_flop, mean_context
from estimator.formulas.inputs import StepInputs

FUSED_ATTENTION_RATE = {"forward": 0.48, "backward": 0.70}
"""Matrix rate of a fused attention kernel over that of large matrix products in the same training run.

measured: CK flash attention 262 forward and 386 backward TFLOP/s beside products of 490-610 (mean 550) on MI300X,
sequence 8192, head size 128 (AMD-AGI/TraceLens, Hyperloom llama70b_analysis).
"""

TILE = 128
"""Queries, and keys, of a kernel's tile: on the diagonal, causal attention computes half a tile too much."""

WIDE_HEAD = 128
"""Head size beyond which a kernel's tiles of queries and keys no longer fit beside each other."""


class AttentionPass(NamedTuple):
    """What a fused kernel takes for its forward or its backward pass."""

    peak_fraction: float
    """Matrix rate over the device's peak."""
    score_s: float
    """Seconds of a compute unit for what is no product of a score: its exponential, its maximum, its sum."""
    imbalance: float
    """Part of the longest tile's work for which the others wait at the end."""
    moved_bytes: float
    """Bytes through memory per query and unit of the head size, in passes beside the kernel's loop too."""
    wide_head_rate: float
    """Matrix rate for heads wider than `WIDE_HEAD` over that for others."""


class AttentionKernel(NamedTuple):
    """A fused kernel, as measured on one device; on others of its kind by their peaks and compute units."""

    forward: AttentionPass
    backward: AttentionPass


CUDNN = AttentionKernel(
    AttentionPass(0.867, 60e-12, 0.56, 2.8, 0.92),
    AttentionPass(0.687, 140e-12, 0.36, 24.0, 0.68),
)
"""cuDNN's, which torch chooses on devices of compute capability 9 and 10.

measured: 83 shapes on an H200, 1 to 4 sequences of 512 to 32,768 tokens, 4 to 64 heads of 64 to 256
(reports/measured/h200/attention.csv); half of them, with torch's own kernel's 24, predicts the other half by 2.2 % at
the median and 12.0 to 14.2 % at the 95th percentile, where the kernel takes longer than its launch.
"""

TORCH_FLASH = AttentionKernel(
    AttentionPass(0.382, 53e-12, 0.98, 3.3, 1.0),
    AttentionPass(0.350, 132e-12, 0.55, 57.0, 1.0),
)
"""Torch's own flash attention on the same device: written for the one before it, half as fast.

measured: 24 shapes, heads of 128 alone, so that the seconds of a score are assumed to be cuDNN's (as above)
"""

TORCH_CHOOSES = {"Hopper": CUDNN, "Blackwell": CUDNN}
"""Architectures whose choice was measured, or is documented as the same (torch, sdp_utils.cpp); else as published."""


def kernel_of(inputs: StepInputs) -> AttentionKernel | None:
    """Return the fused kernel of a stack on a device, None where only `FUSED_ATTENTION_RATE` tells of it."""
    if inputs.habits.attention_kernel == "published":
        return None
    return TORCH_CHOOSES.get(inputs.machine.accelerator.architecture.split()[0])


def kernel_seconds(
    queries: Array,
    keys: Array,
    longest: Array,
    head_dim: int,
    kernel: AttentionPass,
    flop_per_score: Num,
    rates: Rates,
) -> Array:
    """Seconds of a pass of a fused kernel.

    c (q (k + T/2) / units + g T l) + b q d / B, c = hypot(f d units / F, e): exponentials hide behind products, or the
    other way round, but for a part (Shah et al. 2024, arXiv:2407.08608, section 3.2), and the units wait for a part g
    of the longest tile of T queries.

    Args:
        queries: of all heads and sequences.
        keys: that the mean query meets.
        longest: keys that the last query meets.
        head_dim: size of a head.
        kernel: which pass of which kernel.
        flop_per_score: per unit of the head size.
        rates: of the device under the stack.
    """
    unit_flop_per_s = kernel.peak_fraction * np.asarray(rates.attention_peak_flop_per_s) / rates.num_compute_units
    unit_flop_per_s = unit_flop_per_s * (kernel.wide_head_rate if head_dim > WIDE_HEAD else 1.0)
    score_s = np.hypot(flop_per_score * head_dim / unit_flop_per_s, kernel.score_s)
    each_unit = queries * (keys + TILE / 2) / rates.num_compute_units + kernel.imbalance * TILE * longest
    return np.asarray(score_s * each_unit + kernel.moved_bytes * queries * head_dim / rates.bytes_per_s)


def attention_passes(inputs: StepInputs, rates: Rates) -> tuple[Array, Array]:
    """Seconds of one layer's attention, or of its recurrent state, forward and backward, on one tensor-parallel rank.

    Fused, at the speed of its kernel. Materialized, forward Q K^T and P V, backward dP, dV, dQ, dK as batched products
    of their shapes, and the passes over the scores between them.
    """
    kernel, shape = kernel_of(inputs), inputs.shape
    if shape.num_heads and not inputs.fuses_attention:
        return _materialized(inputs, rates)
    if kernel is None or not shape.num_heads:
        forward_flop = attention_flop(inputs.tokens, inputs.seq_len, shape, causal=True) / inputs.plan.tp
        backward_flop = attention_backward_flop(forward_flop, keeps_scores=False)
        rate = {name: share * np.asarray(rates.attention_flop_per_s) for name, share in FUSED_ATTENTION_RATE.items()}
        return forward_flop / rate["forward"], backward_flop / rate["backward"]
    queries = inputs.tokens * shape.num_heads / inputs.plan.tp
    keys = np.asarray(mean_context(inputs.seq_len, shape.sliding_window, causal=True))
    longest = np.asarray(np.minimum(inputs.seq_len, shape.sliding_window or np.inf))
    forward, backward = (
        kernel_seconds(queries, keys, longest, shape.head_dim, one, flop, rates)
        for one, flop in ((kernel.forward, 4.0), (kernel.backward, attention_backward_flop(4.0, keeps_scores=False)))
    )
    return forward, backward


def _materialized(inputs: StepInputs, rates: Rates) -> tuple[Array, Array]:
    shape, seq_len, tp = inputs.shape, inputs.seq_len, inputs.plan.tp
    forward_flop = attention_flop(inputs.tokens, seq_len, shape, causal=False) / tp
    queries = inputs.tokens * shape.num_heads / tp
    onto_scores = shape_efficiency(queries, seq_len, shape.head_dim, rates.num_compute_units)
    from_scores = shape_efficiency(queries, shape.head_dim, seq_len, rates.num_compute_units)
    product_s = forward_flop / 2 / rates.flop_per_s  # each of the two forward products, at the rate of large ones
    attention_efficiency = rates.attention_flop_per_s / np.asarray(rates.flop_per_s)
    score_s = queries * seq_len / rates.bytes_per_s / attention_efficiency  # one byte of every score through memory
    forward = product_s * (1 / onto_scores + 1 / from_scores) + score_s * MATERIALIZED_ATTENTION.forward
    backward = product_s * (1 / onto_scores + 3 / from_scores) + score_s * MATERIALIZED_ATTENTION.backward
    return forward, backward
