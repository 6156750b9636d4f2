"""What may be worth its price: points that no other beats in both minutes and USD, and their knee."""

import numpy as np
import numpy.typing as npt

from estimator.arrays import Array
from hardware.errors import shown

Values = npt.ArrayLike


def pareto(minutes: Values, usd: Values) -> npt.NDArray[np.bool_]:
    """Whether each point is on the frontier: no other is at most as slow and as dear, and one of them less.

    Equal points are on it together. Sorting takes O(n log n).

    Raises:
        ValueError: a value is not finite, or the two differ in number.

    >>> pareto([10, 20, 20, 30, 30], [9, 5, 6, 5, 4])
    array([ True,  True, False, False,  True])
    """
    slow, dear = _points(minutes, usd)
    order = np.lexsort((dear, slow))
    slow, dear = slow[order], dear[order]
    first = np.searchsorted(slow, slow)  # of those as slow: the cheapest
    faster = np.minimum.accumulate(np.append(np.inf, dear))[first]  # the cheapest of those less slow
    found = np.zeros(len(order), dtype=np.bool_)
    found[order] = (dear == dear[first]) & (dear < faster)
    return found


def knee(minutes: Values, usd: Values) -> int:
    """Index of the frontier's knee: beyond it a minute saved costs far more, or a dollar saved takes far longer.

    The point of the frontier farthest below the chord from its fastest to its cheapest point, in logarithms scaled so
    that both ranges are 1 (Satopaa et al. 2011, doi:10.1109/ICDCSW.2011.20, on doubly logarithmic axes: a unit, or a
    factor on all prices, changes nothing). Points above the chord are poor compromises and never the knee: where none
    lies below it, as with one or two points, the cheapest is. Of equal points it is the first.

    Raises:
        ValueError: there is no point, or a value has no logarithm.

    >>> knee([10, 12, 40], [90, 30, 20])
    1
    """
    slow, dear = _points(minutes, usd, least=1)
    for name, values in (("minutes", slow), ("usd", dear)):
        if not (values > 0).all():
            least = shown(float(values.min()))
            raise ValueError(f"frontier: {name} of {least} has no logarithm; leave such points out of the knee")
    on = np.flatnonzero(pareto(slow, dear))
    on = on[np.argsort(dear[on], kind="stable")]
    below = 1 - _scaled(np.log(slow[on])) - _scaled(np.log(dear[on]))
    return int(on[np.argmax(below)])


def _scaled(values: Array) -> Array:
    """Return values moved and scaled to [0, 1]; equal ones to 0."""
    low, width = values.min(), np.ptp(values)
    return np.asarray((values - low) / width) if width > 0 else np.zeros(len(values))


def _points(minutes: Values, usd: Values, least: int = 0) -> tuple[Array, Array]:
    """Return both as arrays of numbers, refusing what is no list of points."""
    slow, dear = np.asarray(minutes, dtype=float), np.asarray(usd, dtype=float)
    if slow.ndim != 1 or slow.shape != dear.shape:
        raise ValueError(f"frontier: {slow.size} minutes and {dear.size} usd are no points; give one of each per point")
    for name, values in (("minutes", slow), ("usd", dear)):
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            raise ValueError(f"frontier: {name}[{wrong[0]}] = {values[wrong[0]]} is not finite; leave such points out")
    if len(slow) < least:
        raise ValueError("frontier: there is no point; give at least one")
    return slow, dear
