import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.compute import matmul_seconds, roofline_seconds, shape_efficiency

sizes = st.integers(1, 50_000)
units = st.integers(1, 400)
amounts = st.floats(0, 1e18)
rates = st.floats(1e6, 1e18)
RATES = {"flop_per_s": 1e14, "bytes_per_s": 1e12}


@given(sizes, sizes, sizes, units)
def test_efficiency_is_a_fraction(rows: int, columns: int, inner: int, num_units: int) -> None:
    """A product of any shape reaches some of a device's best rate, and no more than all of it."""
    assert 0 < shape_efficiency(rows, columns, inner, num_units) <= 1


@given(st.integers(1, 30), st.integers(1, 30), units)
def test_whole_tiles_and_waves_reach_the_best_rate(waves: int, columns: int, num_units: int) -> None:
    """A deep product that fills its tiles and its waves is as fast as any."""
    efficiency = shape_efficiency(256 * waves * num_units, 128 * columns, 1e15, num_units)
    assert efficiency == pytest.approx(1)


@given(sizes, sizes, sizes, sizes, units)
def test_a_deeper_product_is_more_efficient(rows: int, columns: int, inner: int, deeper: int, num_units: int) -> None:
    """The longer the inner dimension, the nearer to the best rate."""
    shallow = shape_efficiency(rows, columns, inner, num_units)
    assert shape_efficiency(rows, columns, inner + deeper, num_units) >= shallow


@given(amounts, rates, amounts, rates)
def test_roofline_is_free_of_units(flop: float, flop_per_s: float, moved: float, bytes_per_s: float) -> None:
    """Twice the work at twice the rates takes the same seconds."""
    seconds = roofline_seconds(flop, flop_per_s, moved, bytes_per_s)
    assert roofline_seconds(2 * flop, 2 * flop_per_s, 2 * moved, 2 * bytes_per_s) == seconds


@given(amounts, amounts, rates, amounts, amounts, rates)
def test_roofline_grows_with_work(
    flop: float, more_flop: float, flop_per_s: float, moved: float, more_moved: float, bytes_per_s: float
) -> None:
    """More work never takes less time, and either part alone takes no more than both."""
    seconds = roofline_seconds(flop, flop_per_s, moved, bytes_per_s)
    assert roofline_seconds(flop + more_flop, flop_per_s, moved + more_moved, bytes_per_s) >= seconds
    assert seconds == max(roofline_seconds(flop, flop_per_s, 0, 1), roofline_seconds(0, 1, moved, bytes_per_s))


@given(sizes, sizes, sizes, sizes, units, st.integers(0, 2))
def test_a_larger_product_never_takes_less(
    rows: int, columns: int, inner: int, added: int, num_units: int, grown: int
) -> None:
    """A product that grows in any of its sizes never takes less time, tiles and waves included."""
    small = [rows, columns, inner]
    large = [size + added * (i == grown) for i, size in enumerate(small)]
    seconds = float(matmul_seconds(*small, num_compute_units=num_units, **RATES))
    assert matmul_seconds(*large, num_compute_units=num_units, **RATES) >= seconds * (1 - 1e-12)


@given(sizes, sizes, sizes, units)
def test_a_product_keeps_below_both_peaks(rows: int, columns: int, inner: int, num_units: int) -> None:
    """A product runs no faster than the matrix rate, nor than memory brings its operands."""
    seconds = matmul_seconds(rows, columns, inner, num_compute_units=num_units, **RATES)
    assert seconds >= 2 * rows * columns * inner / RATES["flop_per_s"] * (1 - 1e-12)
    assert seconds >= 2 * (rows * inner + inner * columns + rows * columns) / RATES["bytes_per_s"] * (1 - 1e-12)


@given(st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=5), units)
def test_arrays_are_their_elements(products: list[tuple[int, int, int]], num_units: int) -> None:
    """Seconds of an array of products are those of each alone."""
    columns = [np.array(column) for column in zip(*products, strict=True)]
    together = matmul_seconds(*columns, num_compute_units=num_units, **RATES)
    alone = [matmul_seconds(*product, num_compute_units=num_units, **RATES) for product in products]
    np.testing.assert_array_equal(together, alone)
