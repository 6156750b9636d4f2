import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate import residual_fit
from estimator.calibrate.residual_fit import Search, inverse_root, learn, recorded
from estimator.predict.residual import Alike, correction, residual_log_sd
from estimator.stack.fit import NUM_FEATURES
from tests.support.likeness import alike, drawn, scattered


def test_what_makes_errors_alike_is_found() -> None:
    """Of errors that follow one feature alone, its length is the shortest; scale and noise come near the truth."""
    places = scattered(np.random.default_rng(0), -3, 3, 250)
    lengths = np.full(NUM_FEATURES, 30.0)
    lengths[2] = 1.0
    truth = alike(lengths=lengths)
    found = learn(places, drawn(truth, places, 1), 0.1).alike
    assert found.lengths.argmin() == 2
    assert found.lengths[2] == pytest.approx(1.0, rel=0.5)
    assert found.lengths[[0, 1, 3, 4]].min() > 5.0
    assert found.noise == pytest.approx(truth.noise, rel=0.2)
    assert found.scale == pytest.approx(truth.scale, rel=0.6)


def test_noise_that_grows_with_the_devices_is_found() -> None:
    """Where each doubling of devices widens the noise by a third, so it is found; where none does, hardly."""
    random = np.random.default_rng(2)
    places = scattered(random, 0, 2, 300)
    for truth in (0.25, 0.0):
        noise = alike(noise=0.02, growth=truth).noise_at(places)
        found = learn(places, noise * random.normal(size=300), 0.03).alike
        assert found.growth == pytest.approx(truth, abs=0.1)


def test_spreads_are_those_of_the_process() -> None:
    """At a measured run the spread is little more than the noise; far from all, as wide as errors are large."""
    places = scattered(np.random.default_rng(0), -2, 2, 200)
    learned = learn(places, drawn(alike(), places, 3), 0.05)
    found, far_off = recorded(learned), np.full((1, NUM_FEATURES), 80.0)
    near, far = residual_log_sd(found, 0.0, np.vstack([places[:1], far_off]))
    assert near < far
    assert near < 3 * found.noise_of_one
    noise = Alike(np.array(found.lengths), found.scale, found.noise_of_one, found.growth).noise_at(far_off)
    assert far == pytest.approx(np.hypot(found.scale, noise.item()), rel=1e-6)
    widened = found.model_copy(update={"widened_by": 2.0})
    assert residual_log_sd(widened, 0.0, places[:1]) == pytest.approx(2 * near)
    assert residual_log_sd(None, 0.07, places) == pytest.approx(np.full(200, 0.07))


def test_a_record_predicts_as_what_was_learned() -> None:
    """What a stack file holds has the corrections and the spreads of what the fit itself went by."""
    places = scattered(np.random.default_rng(5), -2, 2, 60)
    learned = learn(places, drawn(alike(), places, 4), 0.05)
    others = scattered(np.random.default_rng(6), -3, 3, 40)
    assert correction(recorded(learned), others) == pytest.approx(learned.correction(others), abs=1e-6)
    assert residual_log_sd(recorded(learned), 0.0, others) == pytest.approx(learned.log_sd(others), rel=1e-6)


def test_unseen_runs_lie_within_their_spreads() -> None:
    """Of runs held out from those that were learned, most lie within two spreads, and not all within one."""
    away = []
    for seed in range(6):
        places = scattered(np.random.default_rng(seed), -2, 2, 240)
        residuals = drawn(alike(), places, seed)
        found = learn(places[:160], residuals[:160], 0.1)
        away.append(np.abs(residuals[160:] - found.correction(places[160:])) / found.log_sd(places[160:]))
    assert 0.88 < (np.concatenate(away) < 2).mean() < 0.99


def test_no_error_is_nothing_to_learn() -> None:
    """Where nothing is unexplained, nothing is corrected."""
    places = scattered(np.random.default_rng(0), -1, 1, 30)
    assert learn(places, np.zeros(30), 0.05).correction(places) == pytest.approx(0.0)


def test_runs_inherit_what_is_near_and_nothing_from_afar() -> None:
    """Near runs that are all 20 % slower the correction approaches that; far from all it is none."""
    places = scattered(np.random.default_rng(0), -0.4, 0.4, 40)
    found = learn(places, np.full(40, np.log(1.2)), 0.05)
    assert found.correction(np.zeros((1, NUM_FEATURES))) == pytest.approx(np.log(1.2), rel=0.1)
    assert found.correction(np.full((1, NUM_FEATURES), 200.0)) == pytest.approx(0.0, abs=1e-9)


def test_an_outlier_is_not_learned() -> None:
    """One run ten times slower than forty like it hardly moves what those say."""
    places = np.zeros((41, NUM_FEATURES))
    residuals = np.concatenate([np.zeros(40), [np.log(10)]])
    assert abs(learn(places, residuals, 0.05).correction(places[:1]).item()) < 0.01


@given(seed=st.integers(0, 10**6))
def test_slopes_are_those_of_the_cost(seed: int) -> None:
    """The search's slopes are its finite differences, for every length and spread."""
    random = np.random.default_rng(seed)
    places = scattered(random, -2, 2, 30)
    search, precision = Search(places, drawn(alike(), places, seed), 0.05), random.uniform(0.2, 1.2, size=30)
    values = search.values(alike(growth=0.1)) + random.normal(scale=0.2, size=NUM_FEATURES + 3)
    slopes, step = search.cost(values, precision)[1], 1e-5
    for i, move in enumerate(step * np.eye(len(values))):
        higher, lower = (search.cost(values + sign * move, precision)[0] for sign in (1, -1))
        assert slopes[i] == pytest.approx((higher - lower) / (2 * step), rel=1e-4, abs=1e-4)


@given(seed=st.integers(0, 10**6))
def test_the_cost_is_minus_the_log_probability(seed: int) -> None:
    """It is that of the residuals as one normal vector, and of the priors, but for a constant."""
    random = np.random.default_rng(seed)
    places = scattered(random, -2, 2, 20)
    residuals, precision = drawn(alike(), places, seed), random.uniform(0.2, 1.2, size=20)
    search = Search(places, residuals, 0.05)
    told, expected = [], []
    for one in (alike(growth=0.1), alike(scale=0.1, noise=0.05)):
        values = search.values(one)
        covariance = one.of(places, places) + np.diag(one.noise_at(places) ** 2 / precision)
        fits = residuals @ np.linalg.solve(covariance, residuals) + np.linalg.slogdet(covariance)[1]
        expected.append(0.5 * fits + 0.5 * (((values - search.mean) / search.sd) ** 2).sum())
        told.append(search.cost(values, precision)[0])
    assert told[0] - told[1] == pytest.approx(expected[0] - expected[1], rel=1e-6, abs=1e-6)


@given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
def test_an_inverse_root_is_one(seed: int, count: int) -> None:
    """Of a covariance S it is lower triangular, and its square, transposed first, is the inverse of S."""
    factor = np.random.default_rng(seed).normal(size=(count, count))
    covariance = factor @ factor.T + np.eye(count)
    half = inverse_root(covariance.copy())
    assert (np.triu(half, 1) == 0).all()
    assert half.T @ half @ covariance == pytest.approx(np.eye(count), abs=1e-8)


def test_searches_end_where_more_would(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as many searches and steps move corrections by a twentieth of their spreads at most."""
    places = scattered(np.random.default_rng(0), -2, 2, 150)
    residuals = drawn(alike(), places, 7) + 0.03 * np.random.default_rng(1).standard_t(3, size=150)
    others = scattered(np.random.default_rng(2), -2, 2, 50)
    usual = learn(places, residuals, 0.05)
    monkeypatch.setattr(residual_fit, "MOST_SEARCHES", 2 * residual_fit.MOST_SEARCHES)
    monkeypatch.setattr(residual_fit, "MOST_STEPS", 2 * residual_fit.MOST_STEPS)
    longer = learn(places, residuals, 0.05)
    moved = np.abs(longer.correction(others) - usual.correction(others)) / usual.log_sd(others)
    assert moved.max() < 0.05
