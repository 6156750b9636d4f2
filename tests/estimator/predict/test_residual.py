import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.arrays import Array
from estimator.calibrate.batches import batched
from estimator.calibrate.residual_fit import Search, learn, likeliest
from estimator.predict.residual import FEATURES, Alike, correction, residual_log_sd
from estimator.runs.read import read_runs
from estimator.stack.fit import NUM_FEATURES, ResidualModel
from estimator.stack.stack import load_stack
from hardware.catalog import load_catalog
from tests.support.paths import TABLES

HABITS = load_stack("megatron-deepspeed").habits


NUM_VARYING = 5
"""Features in which places here differ; those of `DEVICES` are among them."""


def scattered(random: np.random.Generator, low: float, high: float, count: int) -> Array:
    """Return places, uniform between bounds in the features that vary, 0 in the others."""
    places = np.zeros((count, NUM_FEATURES))
    places[:, :NUM_VARYING] = random.uniform(low, high, size=(count, NUM_VARYING))
    return places


def alike(**changes: float) -> Alike:
    """Return errors alike over one doubling in each feature, of 20 % and noise of 3 %."""
    return Alike(np.ones(NUM_FEATURES), 0.2, 0.03, 0.0)._replace(**changes)


def drawn(one: Alike, places: Array, seed: int) -> Array:
    """Return residuals at places, drawn as `one` says."""
    random = np.random.default_rng(seed)
    covariance = one.of(places, places) + np.diag(one.noise_at(places) ** 2)
    return random.multivariate_normal(np.zeros(len(places)), covariance)


@given(seed=st.integers(0, 10**6))
def test_likeness_is_a_covariance(seed: int) -> None:
    """It is symmetric, positive semidefinite, largest with itself, and falls with distance."""
    places = scattered(np.random.default_rng(seed), -5, 5, 12)
    one = alike()
    found = one.of(places, places)
    assert found == pytest.approx(found.T)
    assert np.linalg.eigvalsh(found)[0] > -1e-9
    assert np.diag(found) == pytest.approx(one.scale**2)
    assert (found <= one.scale**2 * (1 + 1e-9)).all()
    near, far = one.of(places[:1], places[:1] + 1.0), one.of(places[:1], places[:1] + 2.0)
    assert near.item() > far.item()


def test_what_makes_errors_alike_is_found() -> None:
    """Of errors that follow one feature alone, its length is the shortest; scale and noise come near the truth."""
    places = scattered(np.random.default_rng(0), -3, 3, 250)
    lengths = np.full(NUM_FEATURES, 30.0)
    lengths[2] = 1.0
    truth = alike(lengths=lengths)
    found = likeliest(places, drawn(truth, places, 1), np.ones(250), alike(), 0.1)
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
        found = likeliest(places, noise * random.normal(size=300), np.ones(300), alike(), 0.03)
        assert found.growth == pytest.approx(truth, abs=0.1)


def test_spreads_are_those_of_the_process() -> None:
    """At a measured run the spread is little more than the noise; far from all, as wide as errors are large."""
    places = scattered(np.random.default_rng(0), -2, 2, 200)
    found = learn(places, drawn(alike(), places, 3), 0.05)
    near, far = residual_log_sd(found, 0.0, np.vstack([places[:1], np.full((1, NUM_FEATURES), 80.0)]))
    assert near < far
    assert near < 3 * found.noise_of_one
    noise = Alike(np.array(found.lengths), found.scale, found.noise_of_one, found.growth).noise_at(
        np.full((1, NUM_FEATURES), 80.0)
    )
    assert far == pytest.approx(np.hypot(found.scale, noise.item()), rel=1e-6)
    widened = found.model_copy(update={"widened_by": 2.0})
    assert residual_log_sd(widened, 0.0, places[:1]) == pytest.approx(2 * near)
    assert residual_log_sd(None, 0.07, places) == pytest.approx(np.full(200, 0.07))


def test_unseen_runs_lie_within_their_spreads() -> None:
    """Of runs held out from those that were learned, most lie within two spreads, and not all within one."""
    away = []
    for seed in range(6):
        places = scattered(np.random.default_rng(seed), -2, 2, 240)
        residuals = drawn(alike(), places, seed)
        found = learn(places[:160], residuals[:160], 0.1)
        left = residuals[160:] - correction(found, places[160:])
        away.append(np.abs(left) / residual_log_sd(found, 0.0, places[160:]))
    assert 0.88 < (np.concatenate(away) < 2).mean() < 0.99


def test_no_error_is_nothing_to_learn() -> None:
    """Where nothing is unexplained, nothing is corrected."""
    places = scattered(np.random.default_rng(0), -1, 1, 30)
    assert correction(learn(places, np.zeros(30), 0.05), places) == pytest.approx(0.0)


def test_runs_inherit_what_is_near_and_nothing_from_afar() -> None:
    """Near runs that are all 20 % slower the correction approaches that; far from all it is none."""
    places = scattered(np.random.default_rng(0), -0.4, 0.4, 40)
    found = learn(places, np.full(40, np.log(1.2)), 0.05)
    assert correction(found, np.zeros((1, NUM_FEATURES))) == pytest.approx(np.log(1.2), rel=0.1)
    assert correction(found, np.full((1, NUM_FEATURES), 200.0)) == pytest.approx(0.0, abs=1e-9)


def test_an_outlier_is_not_learned() -> None:
    """One run ten times slower than forty like it hardly moves what those say."""
    places = np.zeros((41, NUM_FEATURES))
    residuals = np.concatenate([np.zeros(40), [np.log(10)]])
    assert abs(correction(learn(places, residuals, 0.05), places[:1]).item()) < 0.01


def test_places_of_a_batch_are_those_of_each_run() -> None:
    """Row i of a batch's places is the place of run i alone, so that many plans are one call."""
    runs = read_runs([TABLES / "vtrain_a100_single_node.csv"], load_catalog()).runs[:40]
    for batch in batched(runs, HABITS):
        for row, place in zip(batch.rows, batch.places(), strict=True):
            (alone,) = batched([runs[row]], HABITS)
            assert alone.places()[0] == pytest.approx(place)
            assert len(place) == len(FEATURES)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weights": (0.1,)}, "places and lengths must have 16 numbers, and weights and noise one for each place"),
        ({"lengths": (1.0,)}, "places and lengths must have 16 numbers"),
        ({"noise": (0.1, 0.1)}, "weights and noise one for each place"),
        ({"places": ((0.0,) * 15,) * 3}, "places and lengths must have 16 numbers"),
        ({"weights": (np.nan, 0.0, 0.0)}, "weights"),
        ({"noise": (1e-12, 0.1, 0.1)}, "noise"),
        ({"widened_by": 100.0}, "widened_by"),
    ],
)
def test_a_file_that_no_fit_wrote_is_refused(wrong: dict[str, object], message: str) -> None:
    """Numbers of a wrong count, no numbers, and spreads that no fit finds are refused."""
    found = learn(np.zeros((3, NUM_FEATURES)), np.zeros(3), 0.05).model_dump()
    with pytest.raises(ValueError, match=message):
        ResidualModel.model_validate(found | wrong)


@given(seed=st.integers(0, 10**6))
def test_slopes_are_those_of_the_cost(seed: int) -> None:
    """The search's slopes are its finite differences, for every length and spread."""
    random = np.random.default_rng(seed)
    places = scattered(random, -2, 2, 30)
    search = Search(places, drawn(alike(), places, seed), random.uniform(0.2, 1.2, size=30), 0.05)
    values = search.values(alike(growth=0.1)) + random.normal(scale=0.2, size=NUM_FEATURES + 3)
    slopes, step = search.cost(values)[1], 1e-5
    for i, move in enumerate(step * np.eye(len(values))):
        expected = (search.cost(values + move)[0] - search.cost(values - move)[0]) / (2 * step)
        assert slopes[i] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_noise_grows_no_further_than_it_was_measured() -> None:
    """On more devices than any run had, the noise is that of the most."""
    one = alike(growth=0.3, most_doublings=5.0)
    few, most, more = np.zeros((3, NUM_FEATURES))
    few[0], most[0], more[0] = 1.0, 5.0, 12.0
    spreads = one.noise_at(np.stack([few, most, more]))
    assert spreads[0] < spreads[1] == spreads[2]
