"""How long a step of a run takes: mean and standard error of many timed steps, their modes, and steps out of the way.

The mean is over all steps but the outliers: a host that is now fast, now slow is part of a run's pace, a pause is not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array

MODE_FRACTION = 0.1
"""Of the steps, the least that make a mode; of the intervals, the most that may be left out as outliers."""

MODE_RATIO = 1.05
"""Of the modes' means, the least that tells two of them apart."""

MODE_SEPARATION = 4.0
"""Of the distance between the modes' means and the deviation within them, the least that makes two."""

OUTLIER_DEVIATIONS, OUTLIER_RATIO = 6.0, 1.25
"""A step is out of the way that is as many deviations, and by as much, from the mean of its mode."""

NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""

CORE_LOG_WIDTH = float(np.log(2.0))
"""Modes are sought among the steps within a factor of two of the median."""


class Modes(NamedTuple):
    """Two paces between which the steps of a run change."""

    slow_fraction: float
    """Of the steps, those at the slow pace."""
    slow_ratio: float
    """Seconds of a step at the slow pace over those at the fast."""


class Pace(NamedTuple):
    """Seconds per step of a run."""

    step_s: float
    """Mean over the steps that count."""
    log_se: float | None
    """Standard error of its logarithm; None where the steps were timed all together."""
    num_steps: int
    """Steps that count."""
    modes: Modes | None
    """None where the steps have one pace."""
    num_outliers: int
    """Steps left out of the mean."""
    outlier_s: float
    """Seconds of these beyond the mean's, pauses such as checkpoints."""


def mean_and_log_se(seconds: Array, number: Array) -> tuple[float, float]:
    """Return the mean seconds per step of intervals, and the standard error of its logarithm.

    Intervals weigh by their steps; the variance of one step is sum n (x - mean)^2 / (k - 1) over k intervals.

    >>> mean_and_log_se(np.array([1.0, 2.0]), np.array([1, 1]))[0]
    1.5
    """
    mean = float(np.average(seconds, weights=number))
    variance = float((number * (seconds - mean) ** 2).sum() / max(len(number) - 1, 1))
    return mean, float((variance / number.sum()) ** 0.5 / mean)


LEAST_LOG_SE = 1e-3
"""Of a mean that is pooled with others.  # assumed: no clock and no run is steadier"""


def pooled(estimates: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of estimates of one positive quantity, and the standard error of its logarithm.

    Each is a value and the standard error of its logarithm; in logarithms they weigh by their inverse variances.

    >>> value, log_se = pooled([(1.0, 0.1), (4.0, 0.1)])
    >>> round(value, 9), round(log_se, 4)
    (2.0, 0.0707)
    """
    logs = np.log([value for value, _ in estimates])
    weights = np.array([max(log_se, LEAST_LOG_SE) ** -2 for _, log_se in estimates])
    return float(np.exp(np.average(logs, weights=weights))), float(weights.sum() ** -0.5)


def split_modes(logs: Array, number: Array) -> float | None:
    """Return the logarithm that parts two modes of the steps, None where there is one mode.

    The threshold of Otsu 1979, doi:10.1109/TSMC.1979.4310076, eq. 12-14: the split with the greatest variance between
    its sides. It stands where each side has enough steps and the sides are apart enough.
    """
    order = np.argsort(logs, kind="stable")
    x, n = logs[order], number[order].astype(np.float64)
    below, total = np.cumsum(n)[:-1], n.sum()
    if not len(below):
        return None
    sums = np.cumsum(n * x)
    low, high = sums[:-1] / below, (sums[-1] - sums[:-1]) / (total - below)
    fraction = below / total
    at = int(np.argmax(fraction * (1 - fraction) * (high - low) ** 2))
    within = np.concatenate([x[: at + 1] - low[at], x[at + 1 :] - high[at]])
    deviation = float(np.sqrt((n * within**2).sum() / total))
    apart = float(high[at] - low[at])
    enough = MODE_FRACTION <= fraction[at] <= 1 - MODE_FRACTION and min(at + 1, len(x) - at - 1) >= 2
    if not enough or apart < max(np.log(MODE_RATIO), MODE_SEPARATION * deviation):
        return None
    return float((x[at] + x[at + 1]) / 2)


def _outliers(logs: Array, parting: float | None) -> Array:
    """Return which intervals are out of the way of their mode; none, where they are too many to be exceptions."""
    sides = [np.ones(len(logs), dtype=bool)] if parting is None else [logs <= parting, logs > parting]
    far = np.zeros(len(logs), dtype=bool)
    for side in sides:
        center = np.median(logs[side])
        distance = np.abs(logs - center)
        deviation = NORMAL_MAD * float(np.median(distance[side]))
        far |= side & (distance > max(OUTLIER_DEVIATIONS * deviation, float(np.log(OUTLIER_RATIO))))
    return far if far.mean() <= MODE_FRACTION else np.zeros_like(far)


def pace_of(seconds: Array, number: Array) -> Pace:
    """Return the pace of intervals of so many seconds per step over so many steps, in any order.

    >>> pace = pace_of(np.array([2.0] * 18 + [20.0]), np.ones(19, dtype=int))
    >>> pace.step_s, pace.num_outliers, pace.outlier_s
    (2.0, 1, 18.0)
    """
    order = np.lexsort((number, seconds))  # so that rounding, too, does not depend on the order
    seconds, number = seconds[order], number[order]
    logs = np.log(seconds)
    core = np.abs(logs - np.median(logs)) < CORE_LOG_WIDTH
    parting = split_modes(logs[core], number[core])
    out = _outliers(logs, parting)
    kept, count = seconds[~out], number[~out]
    mean, log_se = mean_and_log_se(kept, count)
    modes = None
    if parting is not None:
        slow = np.log(kept) > parting
        ratio = np.average(kept[slow], weights=count[slow]) / np.average(kept[~slow], weights=count[~slow])
        modes = Modes(float(count[slow].sum() / count.sum()), float(ratio))
    excess = float((number[out] * (seconds[out] - mean)).sum())
    return Pace(mean, log_se, int(count.sum()), modes, int(number[out].sum()), excess)
