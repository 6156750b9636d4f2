"""Numbers and arrays: what every formula takes and gives."""

from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]
Num = float | Array
"""A quantity for one plan, or for many at once."""
