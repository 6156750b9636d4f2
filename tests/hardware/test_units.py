import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware.units import BANDWIDTH, COMPUTE, GIB, MIB, POWER, SIZE, TIME, Dimension

DIMENSIONS = st.sampled_from([SIZE, BANDWIDTH, COMPUTE, TIME, POWER])
FRACTIONS = st.floats(0, 1)
ANYTHING = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.lists(st.integers())


def between(dimension: Dimension, fraction: float) -> float:
    """Return the number that lies a fraction of the way, in logarithms, from the least to the most."""
    number = dimension.least ** (1 - fraction) * dimension.most**fraction
    return min(max(number, dimension.least), dimension.most)


@given(dimension=DIMENSIONS, fraction=FRACTIONS, data=st.data())
def test_round_trip(dimension: Dimension, fraction: float, data: st.DataObject) -> None:
    """A number written with any unit of the dimension parses to that many units."""
    number = between(dimension, 0.001 + 0.998 * fraction)
    unit = data.draw(st.sampled_from(sorted(dimension.units)))
    text = f"{number / float(dimension.units[unit])!r} {unit}"
    assert dimension.parse(text) == pytest.approx(number, rel=1e-12)


@given(dimension=DIMENSIONS, fraction=FRACTIONS)
def test_bare_number_is_in_base_units(dimension: Dimension, fraction: float) -> None:
    """A plausible number without a unit is taken as it is, the least and the most included."""
    for number in (between(dimension, fraction), dimension.least, dimension.most):
        assert dimension.parse(number) == number


@given(dimension=DIMENSIONS, factor=st.floats(1.001, 1e300))
def test_what_no_machine_has_is_refused(dimension: Dimension, factor: float) -> None:
    """Numbers beyond the range of a dimension are refused, finite as they are."""
    for number in (dimension.least / factor, dimension.most * factor):
        with pytest.raises(ValueError, match="is not between"):
            dimension.parse(number)


@given(dimension=DIMENSIONS, value=ANYTHING)
def test_anything_parses_or_is_refused_in_one_line(dimension: Dimension, value: object) -> None:
    """Whatever is given, the result is plausible, or a ValueError of one short line of ASCII."""
    try:
        parsed = dimension.parse(value)
    except ValueError as error:
        message = str(error)
        assert message.isascii()
        assert message.isprintable()
        assert len(message) < 250
        assert message.endswith(f"write {dimension.name}, for example {dimension.example!r}")
    else:
        assert dimension.least <= parsed <= dimension.most


@given(dimension=DIMENSIONS)
def test_the_example_of_an_error_parses(dimension: Dimension) -> None:
    """What the error proposes is accepted."""
    assert dimension.parse(dimension.example) > 0


@pytest.mark.parametrize(
    ("dimension", "text", "value"),
    [
        (SIZE, "80 GB", 80e9),
        (SIZE, "65520 MiB", 65520 * MIB),
        (SIZE, "256GiB", 256 * GIB),
        (BANDWIDTH, "3.35 TB/s", 3.35e12),
        (BANDWIDTH, "50 GB/s", 50e9),
        (BANDWIDTH, "200 Gb/s", 25e9),
        (COMPUTE, "989.4 TFLOP/s", 989.4e12),
        (TIME, "5 us", 5e-6),
        (POWER, "560 W", 560.0),
    ],
)
def test_as_sources_print_them(dimension: Dimension, text: str, value: float) -> None:
    """A quantity in the form of a data sheet is exactly its value in base units."""
    assert dimension.parse(text) == value


@pytest.mark.parametrize(
    ("dimension", "value", "message"),
    [
        (SIZE, "80 Gb", r"^'80 Gb' is gigabits; write bytes, for example '80 GB'$"),
        (SIZE, "80 kbit", r"^'80 kbit' is kilobits; "),
        (
            COMPUTE,
            "312 TFLOPS",
            r"^'312 TFLOPS' may be work or a rate; write FLOP per second, for example '989.4 TFLOP/s'",
        ),
        (TIME, "5 W", r"^'5 W' has a unit that is none of s, ms, us, ns; write seconds"),
        (SIZE, "much", r"^'much' is not a number and a unit; write bytes"),
        (SIZE, "80", r"^'80' is not a number and a unit; "),
        (POWER, "0 W", r"^'0 W' is not between 0\.001 and 1e\+09; write watts, for"),
        (POWER, -1, r"^-1 is not between "),
        (POWER, math.nan, r"^nan is not between "),
        (SIZE, "1e999 GB", r"^'1e999 GB' is not between "),
        (BANDWIDTH, "1e300 B/s", r"^'1e300 B/s' is not between 1000 and 1e\+18; write bytes per second, for"),
        (SIZE, "1 kB", r"^'1 kB' is not between 1e\+06 and 1e\+18; "),
        pytest.param(SIZE, 10**9999, r"^<int too long to show> is not between ", id="huge"),
        (SIZE, True, r"^True is not a quantity; "),
        (SIZE, None, r"^None is not a quantity; "),
    ],
)
def test_refusals(dimension: Dimension, value: Any, message: str) -> None:
    """Each refusal says what was given, the rule and the mend."""
    with pytest.raises(ValueError, match=message):
        dimension.parse(value)


@given(dimension=DIMENSIONS, low=st.floats(0.1, 0.4), high=st.floats(0.5, 0.9), given=FRACTIONS)
def test_narrower_bounds(dimension: Dimension, low: float, high: float, given: float) -> None:
    """Between two quantities a dimension takes what lies between them, and refuses the rest, the bounds as told."""
    unit = next(unit for unit, size in dimension.units.items() if size == 1)
    least, most, number = (between(dimension, fraction) for fraction in (low, high, given))
    narrow = dimension.between(f"{least!r} {unit}", f"{most!r} {unit}")
    if least <= number <= most:
        assert narrow.parse(number) == number
    else:
        message = rf"is not between {re.escape(f'{least!r} {unit} and {most!r} {unit}')}; write {dimension.name}, "
        with pytest.raises(ValueError, match=message):
            narrow.parse(number)
