"""Values with their 90 % intervals: how parameters move a prediction, and what is added that they leave."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np

from estimator.arrays import Array, Num
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.fit import Novelty, interval_ratio


class Range(NamedTuple):
    """A value with its 90 % interval.

    >>> Range(21.04, 17.2, 25.7)
    21.0 (17.2 to 25.7)
    """

    value: float
    low: float
    high: float

    def __repr__(self) -> str:
        """Return the value and its interval in three significant digits or more."""
        value, low, high = map(_digits, self)
        return f"{value} ({low} to {high})"

    @classmethod
    def of(cls, median: float, log_sd: float, degrees_of_freedom: int) -> Self:
        """Return the range of a quantity whose logarithm is Student's t around that of its median."""
        ratio = float(interval_ratio(log_sd, degrees_of_freedom))
        return cls(median, median / ratio, median * ratio)

    @classmethod
    def around(cls, ranges: Sequence["Range"], least: float = float("inf")) -> Self:
        """Return the range of a quantity that one of several is of: the middle of them, from the lowest to the highest.

        Args:
            ranges: what it may be.
            least: a lower end that it may have too.

        >>> Range.around([Range(1.0, 0.5, 2.0), Range(4.0, 3.0, 5.0)])
        2.00 (0.500 to 5.00)
        """
        values = [one.value for one in ranges]
        return cls(
            (min(values) * max(values)) ** 0.5,
            min(least, *(one.low for one in ranges)),
            max(one.high for one in ranges),
        )

    def no_less_than(self, least: float) -> "Range":
        """Return the range of a quantity that is known to be no less."""
        return Range(*(max(end, least) for end in self))

    def times(self, factor: float) -> "Range":
        """Return the range of a quantity in proportion to this one."""
        return Range(self.value * factor, self.low * factor, self.high * factor)

    def inverse(self, numerator: float) -> "Range":
        """Return the range of `numerator` over this quantity."""
        return Range(numerator / self.value, numerator / self.high, numerator / self.low)


def _digits(value: float) -> str:
    """Return a number in three significant digits, or as a whole one where it has more.

    >>> [_digits(value) for value in (0.01234, 7.5, 21.04, 52416.3, 4.56e10)]
    ['0.0123', '7.50', '21.0', '52,416', '4.56e+10']
    """
    return f"{value:,.0f}" if 100 <= abs(value) < 1e7 else f"{value:#.3g}"


def moved(efficiencies: Efficiencies, names: Sequence[str], directions: Array) -> Efficiencies:
    """Return the named parameters after each 1-sigma move forward, then after each backward, as arrays (moves, 1)."""
    both = np.exp(np.concatenate([directions, -directions]))[:, :, None]
    return efficiencies._replace(**{name: getattr(efficiencies, name) * both[:, i] for i, name in enumerate(names)})


def moved_variance(logs: Array) -> Array:
    """Return the variance of a quantity from its logarithms after each move forward, then after each backward."""
    forward, backward = np.split(logs, 2)
    return np.asarray((((forward - backward) / 2) ** 2).sum(axis=0))


def log_sd(moved_values: Array, residual: Num) -> Array:
    """Return the log standard deviation of each plan's quantity, from its values after the moves and a residual."""
    return np.asarray(np.sqrt(moved_variance(np.log(moved_values)) + np.asarray(residual) ** 2))


def further_log_sd(log_sds: Mapping[Novelty, float], beyond: Mapping[Novelty, float]) -> float:
    """Return the further spread of what lies beyond the runs measured: sqrt(sum s_k^2 d_k), d_k how far.

    >>> further_log_sd({"nodes": 0.1, "size": 0.2}, {"nodes": 4.0, "size": 0.0, "source": 1.0})
    0.2
    """
    return float(np.sqrt(sum(log_sds.get(kind, 0.0) ** 2 * far for kind, far in beyond.items())))
