import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from estimator.stack.efficiencies import PARAMETERS
from estimator.stack.fit import Fit, covariance_root, interval_ratio
from estimator.stack.stack import load_stack

STACK = load_stack("moai-24.2")


@given(st.floats(0, 1), st.integers(1, 10**6))
def test_interval_widens_with_spread_and_with_fewer_runs(log_sd: float, runs: int) -> None:
    """An interval is never narrower for more spread or fewer degrees of freedom, and is 1 without spread."""
    assert interval_ratio(log_sd, runs) >= interval_ratio(log_sd, runs + 1) >= 1
    assert interval_ratio(log_sd + 0.1, runs) > interval_ratio(log_sd, runs)
    assert interval_ratio(0.0, runs) == 1


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 30, 10**6])
def test_student_quantiles(degrees: int) -> None:
    """The 95 % quantile of Student's t is scipy's: within 0.5 %, and of 1 and 2 degrees to six digits."""
    rel = 1e-6 if degrees < 3 else 5e-3
    assert math.log(interval_ratio(1.0, degrees)) == pytest.approx(student.ppf(0.95, degrees), rel=rel)


def test_a_covariance_may_be_rounded() -> None:
    """Two quantities known as one, their covariance rounded to six digits, are a fit; other ties are none."""
    fit = STACK.fit.model_dump()
    n = len(fit["names"])

    def tied(up: float, down: float, variance: float = 0.01) -> Fit:
        rows = [[variance if i == j else 0.0 for j in range(n)] for i in range(n)]
        rows[0][1], rows[1][0] = up, down
        return Fit.model_validate(fit | {"covariance": rows})

    assert tied(0.01000005, 0.01).names[: len(PARAMETERS)] == PARAMETERS
    for up, down, variance in ((0.01001, 0.01001, 0.01), (0.005, 0.006, 0.01), (0.006, 0.005, 0.01), (0, 0, -0.01)):
        with pytest.raises(ValueError, match="covariance is not symmetric and positive semidefinite; write it as"):
            tied(up, down, variance)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), rank=st.integers(1, 6))
def test_independent_moves_are_a_square_root(seed: int, size: int, rank: int) -> None:
    """The moves of a covariance, even of one that ties quantities, have it as the sum of their outer products."""
    factor = np.random.default_rng(seed).normal(size=(size, rank))
    covariance = factor @ factor.T
    moves = covariance_root(covariance)
    assert moves.T @ moves == pytest.approx(covariance, abs=1e-9)
