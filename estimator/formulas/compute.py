"""Seconds of an op on one device: roofline with a shape-dependent efficiency."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.counts import Adapted, MatMul
from estimator.formulas.layout import Layout
from estimator.stack.efficiencies import Efficiencies
from hardware.models import Accelerator, MatmulPrecision

TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64))
"""Output tiles (rows, columns) of matrix kernels: those of cuBLAS in a profile of a training step, and smaller ones."""

ALIGNED = 8
"""Elements of 16 bits that a vector load of 16 bytes brings."""


class ShapeLoss(NamedTuple):
    """What the shape of a product costs."""

    tile_loads: float = 12.0
    """Products that a tile could do while it loads an operand: its rate is 1 / (1 + loads / rows + loads / columns)."""
    depth: float = 260.0
    """Products of the inner dimension that fill a kernel's pipeline before it runs at its rate."""
    wave_exponent: float = 0.8
    """How much of a last, partly filled wave is lost: 1 all of it, 0 nothing."""
    odd: float = 0.12
    """Further seconds of a product with a size that is no multiple of `ALIGNED`."""


SHAPE_LOSS = ShapeLoss()
"""measured: 765 products of 30 GFLOP and more on an H200, forward and of both gradients, of 1B to 70B models
(`calibrate.alone.fit_products` on reports/measured/h200/gemm.csv, rounded). Half of them, fitted, predicts the other
half by 4.5 % at the median and 13.8 % at the 95th percentile, as near as they repeat: of 132 timed twice there, the two
differ by 4.7 % and 22 %. 106 products on MI300X, MI350X, H100 and A100, given the rate of each device and source, are
11.0 % off in the mean, and were 12.2 % with constants fitted to them alone.
"""


def shape_efficiency(
    rows: Num, columns: Num, inner: Num, num_compute_units: Num, loss: ShapeLoss = SHAPE_LOSS
) -> Array:
    """Fraction of a device's best matrix rate that a product of this shape can reach.

    max over tiles of: tile rate * useful part of the tiles * filled part of the waves, times k / (k + depth). A tile
    that hangs over the edge computes padding; a last wave that does not fill the compute units leaves some idle
    (NVIDIA, "Matrix Multiplication Background User's Guide", tile and wave quantization), unless kernels split it.

    >>> round(float(shape_efficiency(8192, 13312, 10**9, 104)), 6)  # whole tiles, whole waves
    1.0
    >>> round(float(shape_efficiency(256, 128, 10**9, 104)), 3)  # 8 small tiles on 104 compute units
    0.064
    """
    m, n, k = (np.asarray(size, dtype=np.float64) for size in (rows, columns, inner))
    best = np.zeros(())
    for tile_rows, tile_columns in TILES:
        tiles = np.ceil(m / tile_rows) * np.ceil(n / tile_columns)
        useful = m * n / (tiles * tile_rows * tile_columns)
        filled = tiles / (np.ceil(tiles / num_compute_units) * num_compute_units)
        filled = np.where(tiles < num_compute_units, filled, filled**loss.wave_exponent)
        best = np.maximum(best, _tile_rate(tile_rows, tile_columns, loss.tile_loads) * useful * filled)
    is_odd = (m % ALIGNED > 0) | (n % ALIGNED > 0) | (k % ALIGNED > 0)
    return np.asarray(best * (k / (k + loss.depth)) / (1.0 + loss.odd * is_odd))


def _tile_rate(rows: int, columns: int, loads: float) -> float:
    """Return the rate of a tile over that of 256 x 128, the largest."""
    return (1 + loads / 256 + loads / 128) / (1 + loads / rows + loads / columns)


def roofline_seconds(flop: Num, flop_per_s: Num, moved_bytes: Num, bytes_per_s: Num) -> Array:
    """Seconds of an op that computes and moves memory at once: little more than the longer of the two.

    t = hypot(flop / F, bytes / B). The roofline (Williams, Waterman, Patterson 2009, doi:10.1145/1498765.1498785) has
    their maximum, as if loads hid behind arithmetic to the last; where both take as long, products take 1.4 times that
    (`SHAPE_LOSS`, the same measurements).

    >>> float(roofline_seconds(4e12, 1e12, 3e9, 1e9))
    5.0
    """
    return np.hypot(np.asarray(flop) / flop_per_s, np.asarray(moved_bytes) / bytes_per_s)


class ElementBytes(NamedTuple):
    """Bytes per element of a product's operands and of its result."""

    operand: float
    result: float


ELEMENT_BYTES: dict[MatmulPrecision, ElementBytes] = {
    "bf16": ElementBytes(2, 2),
    "fp16": ElementBytes(2, 2),
    "fp32": ElementBytes(4, 4),
    "fp8": ElementBytes(1, 2),
}


def matmul_seconds(
    rows: Num,
    columns: Num,
    inner: Num,
    *,
    flop_per_s: Num,
    bytes_per_s: Num,
    num_compute_units: Num,
    precision: MatmulPrecision = "bf16",
) -> Array:
    """Seconds of one matrix product (rows x inner) (inner x columns) at a device's sustained rates.

    flop = 2 m n k; bytes = o (m k + k n) + r m n, o and r those of an element of the operands and of the result.
    """
    flop, each = 2.0 * rows * columns * inner, ELEMENT_BYTES[precision]
    moved = each.operand * (rows * inner + inner * columns) + each.result * (rows * columns)
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
    """Of fused attention, before what `attention` says of kernels whose speed was published as a part of products'."""
    attention_peak_flop_per_s: Num
    """Of kernels whose speed is told as a part of the device's peak."""
    precision: MatmulPrecision = "bf16"
    """Of products with the weights of a layer."""
    usual_precision: MatmulPrecision = "bf16"
    """Of other products."""


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
        accelerator.usual_flop_per_s * np.asarray(efficiencies.attention_efficiency),
        precision,
        accelerator.usual_precision if precision == "fp8" else precision,
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
        one = matmul_seconds(
            m,
            n,
            k,
            flop_per_s=flop_per_s,
            bytes_per_s=rates.bytes_per_s,
            num_compute_units=rates.num_compute_units,
            precision=rates.precision,
        )
        return np.asarray(matmul.num_copies / shared_by * one)

    return Passes(seconds(rows, columns, inner), seconds(rows, inner, columns), seconds(inner, columns, rows))


def merge_passes(module: Adapted, plan: Layout, rates: Rates) -> Passes:
    """Seconds of adding an adapter's product to the weights of a rank, whatever the tokens, and of its gradients.

    W + B A in one pass over the weights, and from the gradient of that sum those of A and of B (peft/tuners/lora/
    layer.py, `_LoraFactorsProxy`). Of experts forward twice: torch runs a parametrization once when it is registered,
    which peft does in every pass.
    """
    into, out = module.adapter
    rows = into.in_size / (1 if into.splits_output else plan.tp)
    columns = out.out_size / (plan.tp if out.splits_output else 1)
    copies = into.num_copies / (plan.ep if into.num_copies > 1 else 1)

    def seconds(m: Num, n: Num, k: Num) -> Array:
        each = ELEMENT_BYTES[rates.usual_precision]
        flop, bytes_each = 2.0 * m * n * k, each.operand * (m * k + k * n) + each.result * m * n
        rate = rates.flop_per_s * shape_efficiency(m, n, k, rates.num_compute_units)
        return np.asarray(copies * roofline_seconds(flop, rate, bytes_each, rates.bytes_per_s))

    read = copies * ELEMENT_BYTES[rates.usual_precision].operand * rows * columns / rates.bytes_per_s
    gradients = seconds(rows, module.rank, columns) + seconds(module.rank, columns, rows)
    forward = seconds(rows, columns, module.rank) + read
    return Passes(np.asarray((2.0 if into.num_copies > 1 else 1.0) * forward), np.zeros(()), gradients)
