"""Seconds of an op on one device: roofline with a shape-dependent efficiency."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.counts import MATERIALIZED_ATTENTION, MatMul, attention_backward_flop, attention_flop
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
from estimator.stack.efficiencies import Efficiencies
from hardware.models import Accelerator, MatmulPrecision

FUSED_ATTENTION_RATE = {"forward": 0.48, "backward": 0.70}
"""Matrix rate of a fused attention kernel over that of large matrix products in the same training run.

measured: CK flash attention 262 forward and 386 backward TFLOP/s beside products of 490-610 (mean 550) on MI300X,
sequence 8192, head size 128 (AMD-AGI/TraceLens, Hyperloom llama70b_analysis).
"""

TILES = ((256, 128, 1.0), (128, 128, 0.92), (128, 64, 0.75), (64, 64, 0.55))
"""Output tiles (rows, columns) of matrix kernels and their rate relative to the largest.

assumed: the tile sizes that hipBLASLt and cuBLAS ship; the relative rate falls with the operands read per product,
1/rows + 1/columns. Kept: of 3,768 other sets of tiles, depths and exponents, those fitted to half of 129 published
products, by shape, device or source, predict the other half no better: mean error 12.4 instead of 12.1 %, better in
36 to 46 % of the halves. What is missed is a kernel's choice (k far beyond m n, or the reverse), not these.
"""

PIPELINE_DEPTH = 192
"""Products of the inner dimension that fill a kernel's pipeline before it runs at its rate.

measured: with `WAVE_EXPONENT`, the round value nearest to 72 published bf16 and fp16 matrix products on MI300X, H100
and A100 (AMD-AGI/TraceLens traces, Azure AI-benchmarking-guide): median error 9 % given each device's best rate.
Of 129, given the rate of each device and source, it is 3.8 %, and 37 % at the 90th percentile.
"""

WAVE_EXPONENT = 0.5
"""How much of a last, partly filled wave is lost: 1 all of it, 0 nothing.  # measured: as above"""


def shape_efficiency(rows: Num, columns: Num, inner: Num, num_compute_units: Num) -> Array:
    """Fraction of a device's best matrix rate that a product of this shape can reach.

    max over tiles of: tile rate * useful part of the tiles * filled part of the waves, times k / (k + depth). A tile
    that hangs over the edge computes padding; a last wave that does not fill the compute units leaves some idle
    (NVIDIA, "Matrix Multiplication Background User's Guide", tile and wave quantization), unless kernels split it.

    >>> round(float(shape_efficiency(8192, 13312, 10**9, 104)), 6)  # whole tiles, whole waves
    1.0
    >>> round(float(shape_efficiency(256, 128, 10**9, 104)), 3)  # 8 small tiles on 104 compute units
    0.042
    """
    best = np.zeros(())
    for tile_rows, tile_columns, rate in TILES:
        tiles = np.ceil(np.asarray(rows) / tile_rows) * np.ceil(np.asarray(columns) / tile_columns)
        useful = np.asarray(rows) * columns / (tiles * tile_rows * tile_columns)
        filled = tiles / (np.ceil(tiles / num_compute_units) * num_compute_units)
        filled = np.where(tiles < num_compute_units, filled, filled**WAVE_EXPONENT)
        best = np.maximum(best, rate * useful * filled)
    return np.asarray(best * (inner / (np.asarray(inner, dtype=np.float64) + PIPELINE_DEPTH)))


def roofline_seconds(flop: Num, flop_per_s: Num, moved_bytes: Num, bytes_per_s: Num) -> Array:
    """Seconds of an op that computes and moves memory at once: the longer of the two.

    t = max(flop / F, bytes / B) (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785).

    >>> float(roofline_seconds(2e12, 1e12, 1e9, 1e9))
    2.0
    """
    return np.maximum(np.asarray(flop) / flop_per_s, np.asarray(moved_bytes) / bytes_per_s)


def matmul_seconds(
    rows: Num, columns: Num, inner: Num, *, flop_per_s: Num, bytes_per_s: Num, num_compute_units: Num
) -> Array:
    """Seconds of one 16-bit matrix product (rows x inner) (inner x columns) at a device's sustained rates.

    flop = 2 m n k; bytes = 2 (m k + k n + m n).
    """
    flop = 2.0 * rows * columns * inner
    moved = 2.0 * (rows * inner + inner * columns + rows * columns)
    rate = flop_per_s * shape_efficiency(rows, columns, inner, num_compute_units)
    return roofline_seconds(flop, rate, moved, bytes_per_s)


class Rates(NamedTuple):
    """What one device sustains under a stack."""

    flop_per_s: Num
    """In 16 bits; in 32 where products are."""
    bytes_per_s: Num
    num_compute_units: int
    weights_flop_per_s: Num
    """Of products with the weights of a layer, in their precision."""
    experts_flop_per_s: Num
    """Of products with the weights of a layer's experts."""
    attention_flop_per_s: Num
    """Of fused attention, before `FUSED_ATTENTION_RATE`."""


def sustained_rates(accelerator: Accelerator, efficiencies: Efficiencies, precision: MatmulPrecision = "bf16") -> Rates:
    """Return a device's sustained rates: peak, times the best measured share of it, times the stack's part of that.

    The share is that of products in 16 bits; in 8 bits, times what the stack reaches of that.

    Raises:
        ValueError: the device lacks the precision.
    """
    peak = accelerator.matmul_flop_per_s(precision)
    share = accelerator.matmul_efficiency.value * np.asarray(efficiencies.matmul_efficiency)
    usual = (accelerator.usual_flop_per_s if precision == "fp8" else peak) * share
    of_weights = peak * share * (efficiencies.fp8_efficiency if precision == "fp8" else 1.0)
    return Rates(
        usual,
        accelerator.hbm_bytes_per_s * accelerator.hbm_efficiency.value * efficiencies.memory_efficiency,
        accelerator.num_compute_units,
        of_weights,
        of_weights * efficiencies.expert_efficiency,
        usual * efficiencies.attention_efficiency,
    )


class Passes(NamedTuple):
    """Seconds of a weight matrix: forward, the gradient of its input, and that of its weights."""

    forward: Array
    input_gradient: Array
    weight_gradient: Array

    def frozen(self) -> "Passes":
        """Return the passes of a matrix that is not trained."""
        return self._replace(weight_gradient=np.zeros(()))


def matmul_passes(tokens: Num, matmul: MatMul, plan: Layout, rates: Rates) -> Passes:
    """Seconds of a weight matrix's passes on one tensor-parallel rank.

    Of a mixture, on one expert-parallel rank, which holds 1/ep of the experts and gets their tokens from ep ranks.
    """
    inner = matmul.in_size / (1 if matmul.splits_output else plan.tp)
    columns = matmul.out_size / (plan.tp if matmul.splits_output else 1)
    shared_by = plan.ep if matmul.num_copies > 1 else 1
    rows = np.asarray(tokens) * matmul.num_active / (matmul.num_copies / shared_by)
    flop_per_s = rates.experts_flop_per_s if matmul.num_copies > 1 else rates.weights_flop_per_s

    def seconds(m: Num, n: Num, k: Num) -> Array:
        rate = {"flop_per_s": flop_per_s, "bytes_per_s": rates.bytes_per_s}
        one = matmul_seconds(m, n, k, num_compute_units=rates.num_compute_units, **rate)
        return np.asarray(matmul.num_copies / shared_by * one)

    return Passes(seconds(rows, columns, inner), seconds(rows, inner, columns), seconds(inner, columns, rows))


def attention_passes(inputs: StepInputs, rates: Rates) -> tuple[Array, Array]:
    """Seconds of one layer's attention, forward and backward, on one tensor-parallel rank.

    Fused, at the rate of fused kernels. Materialized, forward Q K^T and P V, backward dP, dV, dQ, dK as batched
    products of their shapes, and the passes over the scores between them.
    """
    shape, seq_len, tp, fused = inputs.shape, inputs.seq_len, inputs.plan.tp, inputs.fuses_attention
    forward_flop = attention_flop(inputs.tokens, seq_len, shape, causal=fused) / tp
    if fused:
        backward_flop = attention_backward_flop(forward_flop, keeps_scores=False)
        rate = {name: share * np.asarray(rates.attention_flop_per_s) for name, share in FUSED_ATTENTION_RATE.items()}
        return forward_flop / rate["forward"], backward_flop / rate["backward"]
    queries = inputs.tokens * shape.num_heads / tp
    onto_scores = shape_efficiency(queries, seq_len, shape.head_dim, rates.num_compute_units)
    from_scores = shape_efficiency(queries, shape.head_dim, seq_len, rates.num_compute_units)
    product_s = forward_flop / 2 / rates.flop_per_s  # each of the two forward products, at the rate of large ones
    attention_efficiency = rates.attention_flop_per_s / np.asarray(rates.flop_per_s)
    score_s = queries * seq_len / rates.bytes_per_s / attention_efficiency  # one byte of every score through memory
    forward = product_s * (1 / onto_scores + 1 / from_scores) + score_s * MATERIALIZED_ATTENTION.forward
    backward = product_s * (1 / onto_scores + 3 / from_scores) + score_s * MATERIALIZED_ATTENTION.backward
    return forward, backward
