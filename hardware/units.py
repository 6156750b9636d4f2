"""Quantities as sources print them ("80 GB", "3.35 TB/s", "200 Gb/s"), parsed into SI base units.

A bare number is already in the base unit. Decimal and binary prefixes differ ("80 GB" is not "80 GiB"), bits are only
for rates, and work is not a rate. A quantity that no machine has is refused: it is a mistake, and would overflow later.
What is less than a whole cluster has bounds of its own, `Dimension.between`.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Self

from hardware.errors import shown

MIB = 2**20
"""Bytes of a mebibyte."""

GIB = 2**30
"""Bytes of a gibibyte."""

_PREFIXES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_PREFIX_NAMES = {"": "", "k": "kilo", "M": "mega", "G": "giga", "T": "tera", "P": "peta"}
_BYTES = {f"{prefix}B": Fraction(size) for prefix, size in _PREFIXES.items()} | {
    f"{prefix}iB": Fraction(1024**power) for power, prefix in enumerate("KMGTP", start=1)
}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z/]+)\s*", re.ASCII)
_BITS = re.compile(r"([kMGTP]?)b(?:it|ps)?")
_WORK = re.compile(r"[kMGTP]?(?:FLOPS?|FLOPs|flops?)")


@dataclass(frozen=True, slots=True)
class Dimension:
    """What a quantity measures, and the units that it may be written in."""

    name: str
    """The base unit, in words."""

    example: str
    """A quantity that parses."""

    least: float
    """No machine has less [base units]."""

    most: float
    """No machine has more [base units]."""

    units: Mapping[str, Fraction]
    """Base units per unit."""

    bounds: str = ""
    """Both bounds as they are told; "" where they are told in base units."""

    def between(self, least: str, most: str) -> Self:
        """Return this dimension with narrower bounds, told as they are written here.

        >>> COMPUTE.between("1 GFLOP/s", "30 PFLOP/s").parse("165 PFLOP/s")
        Traceback (most recent call last):
        ValueError: '165 PFLOP/s' is not between 1 GFLOP/s and 30 PFLOP/s; write FLOP per second, for example \
'989.4 TFLOP/s'
        """
        return replace(self, least=self.parse(least), most=self.parse(most), bounds=f"{least} and {most}")

    def parse(self, value: object) -> float:
        """Return a quantity in base units.

        Raises:
            ValueError: not a number, bare or with a unit of this dimension, from `least` to `most`.

        >>> BANDWIDTH.parse("200 Gb/s")
        25000000000.0
        """
        mend = f"write {self.name}, for example {self.example!r}"
        try:
            number = self._number(value)
        except ValueError as error:
            raise ValueError(f"{error}; {mend}") from None
        if not self.least <= number <= self.most:
            bounds = self.bounds or f"{self.least:g} and {self.most:g}"
            raise ValueError(f"{shown(value)} is not between {bounds}; {mend}")
        return number

    def _number(self, value: object) -> float:
        if isinstance(value, str):
            return self._number_of_text(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return _as_float(value)
        raise ValueError(f"{shown(value)} is not a quantity")

    def _number_of_text(self, text: str) -> float:
        found = _QUANTITY.fullmatch(text)
        if not found:
            raise ValueError(f"{shown(text)} is not a number and a unit")
        number, unit = found.groups()
        if unit in self.units:
            size = self.units[unit]
            return float(number) * size.numerator / size.denominator
        if bits := _BITS.fullmatch(unit):
            raise ValueError(f"{shown(text)} is {_PREFIX_NAMES[bits[1]]}bits")
        if _WORK.fullmatch(unit):
            raise ValueError(f"{shown(text)} may be work or a rate")
        raise ValueError(f"{shown(text)} has a unit that is none of {', '.join(self.units)}")


def _as_float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer beyond the largest float
        return math.inf


SIZE = Dimension("bytes", "80 GB", 1e6, 1e18, _BYTES)  # assumed: from a first-level cache to all of a large cluster
BANDWIDTH = Dimension(
    "bytes per second",
    "3.35 TB/s",
    1e3,  # assumed: a modem
    1e18,  # assumed: 100,000 times the memory of a device of 2026
    {f"{unit}/s": size for unit, size in _BYTES.items()}
    | {f"{prefix}b/s": Fraction(size, 8) for prefix, size in _PREFIXES.items()},  # as networks are sold
)
COMPUTE = Dimension(
    "FLOP per second",
    "989.4 TFLOP/s",
    1e6,  # assumed: a computer of the 1960s
    1e21,  # assumed: all of a large cluster
    {f"{prefix}FLOP/s": Fraction(size) for prefix, size in _PREFIXES.items()},
)
TIME = Dimension(
    "seconds",
    "5 us",
    1e-9,  # assumed: a few cycles of a clock
    1e3,  # assumed: no hop takes a quarter of an hour
    {unit: Fraction(1, 1000**power) for power, unit in enumerate(("s", "ms", "us", "ns"))},
)
POWER = Dimension(
    "watts",
    "560 W",
    1e-3,  # assumed: a sensor
    1e9,  # assumed: a power station
    {"W": Fraction(1), "kW": Fraction(1000)},
)
