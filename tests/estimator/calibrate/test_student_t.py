import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.arrays import Array
from estimator.calibrate.student_t import Belief, Measured, fit_robust

NUM_RUNS = 60
WIDE = Belief(np.zeros(2), np.full(2, 10.0), np.array([-1, -1]))
SPREADS = np.array([0.05])


def design(seed: int) -> Array:
    """Return slopes of a linear model, shape (runs, 2)."""
    return np.random.default_rng(seed).normal(size=(NUM_RUNS, 2))


def measured(slopes: Array, truth: Array, noise: Array) -> Measured:
    """Return measurements of one kind."""
    return Measured(slopes @ truth + noise, np.zeros(NUM_RUNS, dtype=int), np.zeros(NUM_RUNS, dtype=int))


@given(seed=st.integers(0, 10**6), truth=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_the_truth_comes_back_within_standard_errors(seed: int, truth: tuple[float, float]) -> None:
    """Of data with noise, a tenth of them far off, the parameters come back within four standard errors."""
    random, slopes = np.random.default_rng(seed + 1), design(seed)
    noise = 0.05 * random.normal(size=NUM_RUNS)
    noise[: NUM_RUNS // 10] += 2.0
    found = fit_robust(lambda values: values @ slopes.T, measured(slopes, np.array(truth), noise), WIDE, SPREADS)
    errors = np.abs(found.values - truth)
    assert (errors < 4 * np.sqrt(np.diag(found.covariance)) + 1e-9).all()
    assert errors.max() < 0.1


@given(seed=st.integers(0, 10**6))
def test_order_changes_nothing(seed: int) -> None:
    """Permuted measurements lead to the same parameters and spreads."""
    random, slopes = np.random.default_rng(seed), design(seed)
    data = measured(slopes, np.array([1.0, -0.5]), 0.1 * random.standard_t(3, size=NUM_RUNS))
    order = random.permutation(NUM_RUNS)
    mixed = Measured(*(column[order] for column in data))
    first = fit_robust(lambda values: values @ slopes.T, data, WIDE, SPREADS)
    second = fit_robust(lambda values: values @ slopes[order].T, mixed, WIDE, SPREADS)
    assert second.values == pytest.approx(first.values, abs=1e-6)
    assert second.spreads == pytest.approx(first.spreads, rel=1e-6)


def test_what_data_do_not_constrain_stays_at_its_prior() -> None:
    """A parameter that no measurement depends on keeps its prior's median and width."""
    slopes = design(1) * [1.0, 0.0]
    belief = Belief(np.array([0.0, 0.7]), np.array([10.0, 0.3]), np.array([-1, -1]))
    data = measured(slopes, np.array([1.0, 5.0]), np.zeros(NUM_RUNS))
    found = fit_robust(lambda values: values @ slopes.T, data, belief, SPREADS)
    assert found.values[1] == pytest.approx(0.7)
    assert found.covariance[1, 1] ** 0.5 == pytest.approx(0.3)


def test_bounds_pull_only_where_they_are_broken() -> None:
    """A bound that the prediction keeps changes nothing; one that it breaks moves it, no farther than the bound."""
    belief = Belief(np.array([1.0]), np.array([0.5]), np.array([-1]))

    def fitted(value: float, bound: int) -> float:
        data = Measured(np.array([value]), np.zeros(1, dtype=int), np.array([bound]))
        return float(fit_robust(lambda values: values, data, belief, SPREADS).values[0])

    assert fitted(0.5, 1) == pytest.approx(1.0)
    assert fitted(1.5, -1) == pytest.approx(1.0)
    assert 1.3 < fitted(1.5, 1) <= 1.5
    assert 0.5 <= fitted(0.5, -1) < 0.7


def test_a_block_shrinks_where_its_members_agree() -> None:
    """Factors that are all near 0 are believed to be so: their spread falls below the prior's."""
    slopes = np.repeat(np.eye(6), 10, axis=0)
    belief = Belief(np.zeros(6), np.full(6, 0.5), np.zeros(6, dtype=int))
    data = Measured(0.01 * np.tile([1.0, -1.0], 30), np.zeros(60, dtype=int), np.zeros(60, dtype=int))
    found = fit_robust(lambda values: values @ slopes.T, data, belief, SPREADS)
    assert (found.prior_sd < 0.4).all()
