from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.runs.pace import MODE_FRACTION, mean_and_log_se, pace_of

SECONDS = st.lists(st.floats(0.01, 100), min_size=2, max_size=60)


@given(seconds=SECONDS, factor=st.floats(1e-3, 1e3), order=st.randoms(use_true_random=False))
def test_unit_and_order_do_not_matter(seconds: list[float], factor: float, order: Random) -> None:
    """In another unit the mean is in that unit and all else is the same; the order of the steps changes nothing."""
    ones = np.ones(len(seconds), dtype=int)
    shuffled = list(seconds)
    order.shuffle(shuffled)
    plain, moved = pace_of(np.array(seconds), ones), pace_of(np.array(shuffled), ones)
    assert plain == moved
    scaled = pace_of(np.array(seconds) * factor, ones)
    if scaled.num_outliers == plain.num_outliers and (scaled.modes is None) == (plain.modes is None):
        assert scaled.step_s == pytest.approx(plain.step_s * factor)
        assert scaled.log_se == pytest.approx(plain.log_se, abs=1e-9)


@given(seconds=SECONDS)
def test_at_most_a_tenth_is_left_out(seconds: list[float]) -> None:
    """The mean is over nine tenths of the steps or more, and lies between the least and the greatest of them."""
    pace = pace_of(np.array(seconds), np.ones(len(seconds), dtype=int))
    assert pace.num_outliers <= MODE_FRACTION * len(seconds)
    assert pace.num_steps + pace.num_outliers == len(seconds)
    assert min(seconds) * 0.999 <= pace.step_s <= max(seconds) * 1.001


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(1e-3, 0.03), pauses=st.integers(0, 4))
def test_a_known_pace_is_found(seed: int, spread: float, pauses: int) -> None:
    """Of steps of 2 s with noise and a few pauses, the mean is found within 5 standard errors, the pauses left out."""
    draw = np.random.default_rng(seed)
    seconds = 2.0 * np.exp(spread * draw.standard_normal(100))
    seconds[:pauses] += 5.0
    pace = pace_of(seconds, np.ones(100, dtype=int))
    assert pace.num_outliers == pauses
    assert pace.outlier_s == pytest.approx(5.0 * pauses, abs=0.5)
    assert pace.modes is None
    assert pace.log_se is not None
    assert abs(np.log(pace.step_s / 2.0)) < 5 * pace.log_se + spread**2


@given(seed=st.integers(0, 2**32 - 1), ratio=st.floats(1.1, 1.8), slow=st.integers(20, 80))
def test_two_paces_are_told_apart(seed: int, ratio: float, slow: int) -> None:
    """Of a host that is now fast, now slow, the part and the ratio of the slow steps are found, and all count."""
    draw = np.random.default_rng(seed)
    seconds = np.where(np.arange(100) < slow, ratio, 1.0) * np.exp(0.005 * draw.standard_normal(100))
    pace = pace_of(seconds, np.ones(100, dtype=int))
    assert pace.modes is not None
    assert pace.modes.slow_fraction == pytest.approx(slow / 100)
    assert pace.modes.slow_ratio == pytest.approx(ratio, rel=0.01)
    assert pace.step_s == pytest.approx(seconds.mean())


def test_intervals_weigh_by_their_steps() -> None:
    """An interval of many steps weighs as many."""
    mean, _ = mean_and_log_se(np.array([1.0, 2.0]), np.array([3, 1]))
    assert mean == pytest.approx(1.25)
    assert pace_of(np.array([1.0, 1.1]), np.array([3, 1])).step_s == pytest.approx(1.025)


def test_a_heavy_tail_is_the_pace() -> None:
    """Where more than a tenth of the steps are out of the way, none is left out."""
    seconds = np.array([1.0] * 16 + [3.0, 5.0, 9.0, 17.0])
    pace = pace_of(seconds, np.ones(20, dtype=int))
    assert pace.num_outliers == 0
    assert pace.step_s == pytest.approx(seconds.mean())


def test_a_pause_in_an_interval_of_several_steps_is_one_exception() -> None:
    """Where lines are missing, a pause counts as one interval out of the way, however many steps lie in it."""
    seconds, number = np.array([1.0] * 25 + [2.0]), np.array([1] * 25 + [3])
    pace = pace_of(seconds, number)
    assert (pace.step_s, pace.num_outliers, pace.outlier_s) == (1.0, 3, 3.0)
