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
    none = np.zeros(NUM_RUNS, dtype=int)
    return Measured(slopes @ truth + noise, none, none, np.zeros(NUM_RUNS))


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
        data = Measured(np.array([value]), np.zeros(1, dtype=int), np.array([bound]), np.zeros(1))
        return float(fit_robust(lambda values: values, data, belief, SPREADS).values[0])

    assert fitted(0.5, 1) == pytest.approx(1.0)
    assert fitted(1.5, -1) == pytest.approx(1.0)
    assert 1.3 < fitted(1.5, 1) <= 1.5
    assert 0.5 <= fitted(0.5, -1) < 0.7


def test_a_block_shrinks_where_its_members_agree() -> None:
    """Factors that are all near 0 are believed to be so: their spread falls below the prior's."""
    slopes = np.repeat(np.eye(6), 10, axis=0)
    belief = Belief(np.zeros(6), np.full(6, 0.5), np.zeros(6, dtype=int))
    none = np.zeros(60, dtype=int)
    data = Measured(0.01 * np.tile([1.0, -1.0], 30), none, none, np.zeros(60))
    found = fit_robust(lambda values: values @ slopes.T, data, belief, SPREADS)
    assert (found.prior_sd < 0.4).all()


@given(seed=st.integers(0, 10**6), start=st.tuples(st.floats(-3, 3), st.floats(-3, 3)))
def test_the_start_is_no_information(seed: int, start: tuple[float, float]) -> None:
    """Begun anywhere, a fit comes to rest within a twentieth of a standard error of where it does from the priors."""
    slopes = design(seed)
    data = measured(slopes, np.array([1.2, 0.7]), 0.1 * np.random.default_rng(seed).standard_t(3, size=NUM_RUNS))

    def model(values: Array) -> Array:
        return np.exp(0.3 * values) @ slopes.T

    first = fit_robust(model, data, WIDE, SPREADS)
    second = fit_robust(model, data, WIDE, SPREADS, np.array(start))
    assert (np.abs(second.values - first.values) < 0.05 * np.sqrt(np.diag(first.covariance)) + 1e-9).all()


def test_a_known_error_counts_beside_the_spread() -> None:
    """Measurements that are known to be unsure move the fit less, and widen no spread."""
    slopes, random = np.ones((NUM_RUNS, 1)), np.random.default_rng(0)
    belief = Belief(np.zeros(1), np.full(1, 10.0), np.array([-1]))
    se = np.repeat([0.0, 0.5], NUM_RUNS // 2)
    noise = np.hypot(0.05, se) * random.normal(size=NUM_RUNS) + (se > 0)
    none = np.zeros(NUM_RUNS, dtype=int)
    found = fit_robust(lambda values: values @ slopes.T, Measured(noise, none, none, se), belief, SPREADS)
    assert abs(found.values[0]) < 0.05
    assert found.spreads[0] == pytest.approx(0.05, rel=0.5)
    blind = fit_robust(lambda values: values @ slopes.T, Measured(noise, none, none, 0 * se), belief, SPREADS)
    assert blind.values[0] > 0.2
    assert blind.spreads[0] > 0.3
