"""An operation timed alone: what its launch adds, at the clock of a device that was idle before; and the fits of both.

In a training step a device works for seconds at the power that it may draw. An operation that is timed a few times
between others runs faster while it is short, at the clock of an idle device, and one that is shorter than its launch is
timed as long as that. What a step is predicted from knows neither; a table of operations timed alone needs both.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.formulas.attention import CUDNN, TORCH_FLASH, AttentionPass, kernel_seconds
from estimator.formulas.compute import SHAPE_LOSS, Rates, ShapeLoss, roofline_seconds, shape_efficiency
from hardware.models import Accelerator

SHARPNESS = 6
"""Of the larger of two times that limit each other: (a^6 + b^6)^(1/6).  # assumed: sharp, and smooth to fit"""

CLOCK_SHARPNESS = 3
"""Exponent with which the rate falls to the one sustained, over the time of an operation.  # measured: `ALONE`"""

DEPENDABLE = 0.03
"""Error in logarithms up to which a fit minds its square, and beyond which its size.  # assumed: as products repeat"""


class Alone(NamedTuple):
    """What timing an operation alone on a device tells beside its shape; rates over the device's peak."""

    launch_s: float = 39e-6
    """Of a product, from event to event, that does nothing."""
    start_s: float = 4e-6
    """Of a kernel on the device, beside its work."""
    burst: float = 0.91
    """Rate of large products at the clock of an idle device."""
    sustained: float = 0.72
    """Rate of large products at the power that the device may draw."""
    burst_s: float = 490e-6
    """Seconds of a product whose rate is half-way from one to the other."""


ALONE = {"h200-sxm-141gb": Alone()}
"""measured: with `SHAPE_LOSS`, products timed 5 to 20 times on an H200 in a virtual machine (reports/measured/h200)"""

ATTENTION_LAUNCH_S = {"forward": 67e-6, "backward": 210e-6}
"""Of attention's passes on the same machine, the backward pass through autograd.  # measured: reports/measured/h200"""

KERNELS = {"cudnn": CUDNN, "flash": TORCH_FLASH}


def larger(a: Num, b: Num) -> Array:
    """Return the larger of two times that limit each other, smoothly."""
    return np.asarray((np.asarray(a) ** SHARPNESS + np.asarray(b) ** SHARPNESS) ** (1 / SHARPNESS))


def product_seconds(m: Num, n: Num, k: Num, device: Accelerator, alone: Alone, loss: ShapeLoss = SHAPE_LOSS) -> Array:
    """Seconds of a 16-bit product alone on a device, without its launch.

    At the rate of the burst and its shape, but no faster than the power allows: R(t) = s + (b - s) / (1 + (t / T)^3),
    t the seconds at the burst's rate.
    """
    m, n, k = (np.asarray(size, dtype=np.float64) for size in (m, n, k))
    flop, peak = 2.0 * m * n * k, device.usual_flop_per_s
    burst_s = flop / (peak * alone.burst * shape_efficiency(m, n, k, device.num_compute_units, loss))
    power = alone.sustained + (alone.burst - alone.sustained) / (1 + (burst_s / alone.burst_s) ** CLOCK_SHARPNESS)
    computing = larger(burst_s, flop / (power * peak))
    bytes_per_s = device.hbm_bytes_per_s * device.hbm_efficiency.value
    return roofline_seconds(computing, 1.0, 2.0 * (m * k + k * n + m * n), bytes_per_s) + alone.start_s


def attention_seconds(
    sequences: Num, seq_len: Num, head_dim: int, kernel: AttentionPass, flop_per_score: Num, device: Accelerator
) -> Array:
    """Seconds of a pass of causal attention alone on a device, of all heads' sequences, without its launch."""
    peak, moved = device.usual_flop_per_s, device.hbm_bytes_per_s * device.hbm_efficiency.value
    rates = Rates(peak, moved, device.num_compute_units, peak, peak, peak, peak)
    length = np.asarray(seq_len, dtype=np.float64)
    queries = np.asarray(sequences) * length
    return kernel_seconds(queries, (length + 1) / 2, length, head_dim, kernel, flop_per_score, rates) + 8e-6


def fit_products(m: Array, n: Array, k: Array, seconds: Array, device: Accelerator) -> tuple[ShapeLoss, Alone]:
    """Return what shapes cost, and what timing alone adds, that products timed alone on a device lead to.

    Least robust squares of the logarithms, in the logarithms of the parameters, from those of the package; products
    shorter than their launch tell the launch.
    """
    shape, alone = len(ShapeLoss._fields), len(Alone._fields)

    def split(logs: Array) -> tuple[ShapeLoss, Alone]:
        values = np.exp(logs).tolist()
        return ShapeLoss(*values[:shape]), Alone(*values[shape : shape + alone])

    def errors(logs: Array) -> Array:
        loss, found = split(logs)
        timed = larger(product_seconds(m, n, k, device, found, loss), found.launch_s)
        return np.asarray(np.log(timed / seconds))

    return split(_least(errors, np.log([*SHAPE_LOSS, *Alone()])))


def fit_attention(
    sequences: Array,
    seq_len: Array,
    head_dim: Array,
    seconds: Array,
    start: AttentionPass,
    launch_s: float,
    flop_per_score: Num,
    device: Accelerator,
) -> AttentionPass:
    """Return what passes of one kernel, timed alone on a device, lead to.

    What they do not tell stays: the seconds of a score where all heads are of one size, and the rate of wide heads.
    """
    wide = max(head_dim) > 128
    names = ("peak_fraction", "imbalance", "moved_bytes") + ("score_s", "wide_head_rate") * bool(wide)

    def found(logs: Array) -> AttentionPass:
        return start._replace(**dict(zip(names, np.exp(logs).tolist(), strict=True)))

    def errors(logs: Array) -> Array:
        timed = np.empty_like(seconds)
        for size in np.unique(head_dim):
            own = head_dim == size
            kernel_s = attention_seconds(sequences[own], seq_len[own], int(size), found(logs), flop_per_score, device)
            timed[own] = larger(kernel_s, launch_s)
        return np.asarray(np.log(timed / seconds))

    return found(_least(errors, np.log([getattr(start, name) for name in names])))


def _least(errors: Callable[[Array], Array], start: Array) -> Array:
    from scipy.optimize import least_squares  # noqa: PLC0415 - slow to import

    found = least_squares(errors, start, loss="soft_l1", f_scale=DEPENDABLE, bounds=(start - 2.0, start + 2.0))
    return np.asarray(found.x)
