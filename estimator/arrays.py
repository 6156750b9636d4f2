"""Numbers and arrays: what every formula takes and gives."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Num = float | Array
"""A quantity for one plan, or for many at once."""


def total(parts: Iterable[Num]) -> Array:
    """Return the sum of parts that broadcast against each other: those of one shape first, then smaller ones first.

    Of a grid of plans each part depends on few of its axes, so that only the last sums are as large as the grid.

    >>> total([np.ones((2, 1)), 1.0, np.ones((1, 3)), np.ones((2, 1))]).tolist()
    [[4.0, 4.0, 4.0], [4.0, 4.0, 4.0]]
    """
    of_shape: dict[tuple[int, ...], Array] = {}
    for part in map(np.asarray, parts):
        of_shape[part.shape] = of_shape[part.shape] + part if part.shape in of_shape else part
    found = np.zeros(())
    for part in sorted(of_shape.values(), key=np.size):
        found = found + part
    return np.asarray(found)
