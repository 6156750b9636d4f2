import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.formulas.attention import attention_passes
from estimator.formulas.compute import (
    ALIGNED,
    Rates,
    matmul_passes,
    matmul_seconds,
    roofline_seconds,
    shape_efficiency,
    sustained_rates,
)
from estimator.formulas.counts import attention_backward_flop, attention_flop, layer_matmuls, matmul_flop
from estimator.formulas.inputs import StepInputs
from estimator.formulas.layout import Layout
from estimator.work.plan import Plan
from estimator.work.shape import Shape, load_shape
from hardware.catalog import load_catalog
from hardware.models import Accelerator, MatmulPrecision
from tests.support.strategies import EFFICIENCIES, one_layout, shapes, step_inputs_of

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
    shallow = shape_efficiency(rows, columns, ALIGNED * inner, num_units)
    assert shape_efficiency(rows, columns, ALIGNED * (inner + deeper), num_units) >= shallow


def test_odd_sizes_take_longer() -> None:
    """1,999 rows take longer than 2,048, as measured: vector loads bring 8 elements that lie in a row."""
    odd, even = (matmul_seconds(rows, 14336, 4096, num_compute_units=132, **RATES) for rows in (1999, 2048))
    assert 1.05 < odd / even < 1.2


def test_operands_move_in_their_precision() -> None:
    """A product bound by memory takes twice as long in 32 bits as in 16, and 8 bits halve what its operands take."""
    thin = {"rows": 8, "columns": 2**14, "inner": 2**14, "num_compute_units": 100}
    rate = {"flop_per_s": 1e20, "bytes_per_s": 1e12}
    fp32, bf16, fp8 = (float(matmul_seconds(**thin, **rate, precision=one)) for one in ("fp32", "bf16", "fp8"))
    assert fp32 == pytest.approx(2 * bf16)
    assert fp8 == pytest.approx(bf16 / 2, rel=0.01)


@given(amounts, rates, amounts, rates)
def test_roofline_is_free_of_units(flop: float, flop_per_s: float, moved: float, bytes_per_s: float) -> None:
    """Twice the work at twice the rates takes the same seconds."""
    seconds = roofline_seconds(flop, flop_per_s, moved, bytes_per_s)
    assert roofline_seconds(2 * flop, 2 * flop_per_s, 2 * moved, 2 * bytes_per_s) == seconds


@given(amounts, amounts, rates, amounts, amounts, rates)
def test_roofline_grows_with_work(
    flop: float, more_flop: float, flop_per_s: float, moved: float, more_moved: float, bytes_per_s: float
) -> None:
    """More work never takes less time, and both parts take no less than the longer, and no more than one by one."""
    seconds = roofline_seconds(flop, flop_per_s, moved, bytes_per_s)
    assert roofline_seconds(flop + more_flop, flop_per_s, moved + more_moved, bytes_per_s) >= seconds
    parts = roofline_seconds(flop, flop_per_s, 0, 1), roofline_seconds(0, 1, moved, bytes_per_s)
    assert max(parts) <= seconds * (1 + 1e-12)
    assert seconds <= sum(parts) * (1 + 1e-12)


@given(sizes, sizes, sizes, sizes, units, st.integers(0, 2))
def test_a_larger_product_never_takes_less(
    rows: int, columns: int, inner: int, added: int, num_units: int, grown: int
) -> None:
    """A product that grows by multiples of 8 in any size never takes less time, tiles and waves included."""
    small = [ALIGNED * size for size in (rows, columns, inner)]
    added *= ALIGNED
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
    np.testing.assert_array_max_ulp(together, np.array(alone), maxulp=4)  # a power of one number rounds otherwise


accelerators = st.sampled_from(load_catalog().accelerators)
tokens = st.integers(1, 10**6)
degrees = st.sampled_from([1, 2, 3, 4, 8])


def device_of(accelerator: Accelerator) -> Rates:
    """Return what a device sustains under a stack, in the precision that it is used in."""
    return sustained_rates(accelerator, EFFICIENCIES, accelerator.usual_precision)


def ranks(tp: int, ep: int) -> Layout:
    """Return the numbers of a plan of so many tensor- and expert-parallel ranks."""
    return one_layout(Plan(tp=tp, ep=ep), tp * ep)


@given(accelerators)
def test_a_device_sustains_less_than_its_peaks(accelerator: Accelerator) -> None:
    """What a device sustains is the stack's part of the best measured part of each peak."""
    rates = device_of(accelerator)
    best_flop_per_s = accelerator.usual_flop_per_s * accelerator.matmul_efficiency.value
    best_bytes_per_s = accelerator.hbm_bytes_per_s * accelerator.hbm_efficiency.value
    assert rates.flop_per_s == pytest.approx(EFFICIENCIES.matmul_efficiency * best_flop_per_s)
    assert rates.bytes_per_s == pytest.approx(EFFICIENCIES.memory_efficiency * best_bytes_per_s)
    assert rates.num_compute_units == accelerator.num_compute_units


@given(accelerators, st.sampled_from(["bf16", "fp16", "fp32", "fp8"]))
def test_a_precision_without_units_is_refused(accelerator: Accelerator, precision: MatmulPrecision) -> None:
    """No rate is made up: products run at the peak of their precision, or are refused."""
    if peak := accelerator.peaks[precision]:
        rates = sustained_rates(accelerator, EFFICIENCIES, precision)
        assert float(np.asarray(rates.weights_flop_per_s)) <= peak
        return
    with pytest.raises(
        ValueError, match=rf"^precision: {precision} needs matrix units that {accelerator.id} lacks; use"
    ):
        sustained_rates(accelerator, EFFICIENCIES, precision)


@given(shapes(), tokens, degrees, degrees, accelerators)
def test_ranks_together_do_every_product(
    shape: Shape, num_tokens: int, tp: int, ep: int, accelerator: Accelerator
) -> None:
    """No pass of a matrix is faster than its FLOP, shared by the ranks of tensor parallelism, at the device's rate."""
    rates = device_of(accelerator)
    for matmul in layer_matmuls(shape):
        shared = matmul_passes(num_tokens, matmul, ranks(tp, ep), rates)
        least = matmul_flop(num_tokens, matmul) / tp / rates.flop_per_s
        assert all(seconds >= least * (1 - 1e-9) for seconds in shared)


@given(shapes("mixtral"), tokens, degrees, accelerators)
def test_expert_ranks_gather_tokens(shape: Shape, num_tokens: int, ep: int, accelerator: Accelerator) -> None:
    """Fewer experts with more tokens each take no longer than all with few; what is no expert's is not concerned."""
    rates = device_of(accelerator)
    for matmul in layer_matmuls(shape):
        split, whole = (matmul_passes(num_tokens, matmul, ranks(1, ways), rates) for ways in (ep, 1))
        if matmul.num_copies == 1:
            assert split == whole
        assert sum(split) <= sum(whole) * (1 + 1e-9)


@given(shapes("mixtral"), tokens, accelerators)
def test_experts_have_a_rate_of_their_own(shape: Shape, num_tokens: int, accelerator: Accelerator) -> None:
    """At half the rate of other products those of experts take longer, up to twice as long, and no other does."""
    precision, at = accelerator.usual_precision, (EFFICIENCIES._replace(expert_efficiency=e) for e in (1.0, 0.5))
    usual, slow = (sustained_rates(accelerator, efficiencies, precision) for efficiencies in at)
    for matmul in layer_matmuls(shape):
        fast, slower = (sum(matmul_passes(num_tokens, matmul, ranks(1, 1), rates)) for rates in (usual, slow))
        if matmul.num_copies == 1:
            assert slower == fast
        else:
            assert fast <= slower <= 2 * fast * (1 + 1e-9)


def test_a_large_expert_takes_twice_as_long_at_half_the_rate() -> None:
    """Products of an expert that are bound by their FLOP take as much longer as their rate is lower."""
    (down,) = (m for m in layer_matmuls(load_shape("mistralai/Mixtral-8x7B-v0.1")) if m.name == "down")
    device = load_catalog().accelerator("h100-sxm-80gb")
    usual, slow = (
        sum(
            matmul_passes(2**20, down, ranks(1, 1), sustained_rates(device, EFFICIENCIES._replace(expert_efficiency=e)))
        )
        for e in (1.0, 0.5)
    )
    assert slow == pytest.approx(2 * usual, rel=0.01)  # but for the bytes of operands


@given(step_inputs_of(48))
def test_attention_keeps_below_the_matrix_rate(inputs: StepInputs) -> None:
    """Attention takes its FLOP at the device's rate at least, forward and backward, on each of its ranks."""
    rates, fused = device_of(inputs.machine.accelerator), inputs.fuses_attention
    flop = attention_flop(inputs.tokens, inputs.seq_len, inputs.shape, causal=fused) / inputs.plan.tp
    forward, backward = attention_passes(inputs, rates)
    assert forward >= flop / rates.flop_per_s * (1 - 1e-9)
    assert backward >= attention_backward_flop(flop, keeps_scores=not fused) / rates.flop_per_s * (1 - 1e-9)
