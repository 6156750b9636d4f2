"""Seconds of an op on one device: roofline with a shape-dependent efficiency."""

import numpy as np

from estimator.counts import Array, Num

TILES = ((256, 128, 1.0), (128, 128, 0.92), (128, 64, 0.75), (64, 64, 0.55))
"""Output tiles (rows, columns) of matrix kernels and their rate relative to the largest.

assumed: the tile sizes that hipBLASLt and cuBLAS ship; the relative rate falls with the operands read per product,
1/rows + 1/columns. To be replaced by a fit to measured matrix products.
"""

PIPELINE_DEPTH = 192
"""Products of the inner dimension that fill a kernel's pipeline before it runs at its rate.

measured: with `WAVE_EXPONENT`, the round value nearest to 72 published bf16 and fp16 matrix products on MI300X, H100
and A100 (AMD-AGI/TraceLens traces, Azure AI-benchmarking-guide): median error 9 % given each device's best rate.
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
