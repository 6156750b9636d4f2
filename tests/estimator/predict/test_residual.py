import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.calibrate.batches import batched
from estimator.calibrate.residual_fit import learn, recorded
from estimator.predict.residual import FEATURES
from estimator.stack.fit import NUM_FEATURES, ResidualModel
from estimator.stack.stack import load_stack
from tests.support.likeness import alike, scattered
from tests.support.measured import table_runs

HABITS = load_stack("megatron-deepspeed").habits


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


def test_places_of_a_batch_are_those_of_each_run() -> None:
    """Row i of a batch's places is the place of run i alone, so that many plans are one call."""
    runs = table_runs("vtrain_a100_single_node")[:40]
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
    found = recorded(learn(np.zeros((3, NUM_FEATURES)), np.zeros(3), 0.05)).model_dump()
    with pytest.raises(ValueError, match=message):
        ResidualModel.model_validate(found | wrong)


def test_noise_grows_no_further_than_it_was_measured() -> None:
    """On more devices than any run had, the noise is that of the most."""
    one = alike(growth=0.3, most_doublings=5.0)
    few, most, more = np.zeros((3, NUM_FEATURES))
    few[0], most[0], more[0] = 1.0, 5.0, 12.0
    spreads = one.noise_at(np.stack([few, most, more]))
    assert spreads[0] < spreads[1] == spreads[2]
