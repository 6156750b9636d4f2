from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.batches import batched
from estimator.cases import read_cases
from estimator.discrepancy import SCALE, correction, learn, likeness
from estimator.stack import Discrepancy, load_stack
from hardware.catalog import load_catalog

TABLES = Path(__file__).parents[2] / "reports" / "measured" / "tables"
HABITS = load_stack("megatron-deepspeed").habits


@given(seed=st.integers(0, 10**6))
def test_likeness_is_a_covariance(seed: int) -> None:
    """It is symmetric, positive semidefinite, largest with itself, and falls with distance."""
    places = np.random.default_rng(seed).normal(scale=3, size=(12, 4))
    found = likeness(places, places)
    assert found == pytest.approx(found.T)
    assert np.linalg.eigvalsh(found)[0] > -1e-12
    assert (found <= SCALE**2 * (1 + 1e-9)).all()
    assert np.diag(found) == pytest.approx(SCALE**2)
    near, far = likeness(places[:1], places[:1] + 1.0), likeness(places[:1], places[:1] + 2.0)
    assert near.item() > far.item()


def test_no_error_is_nothing_to_learn() -> None:
    """Where nothing is unexplained, nothing is corrected."""
    places = np.random.default_rng(0).normal(size=(30, 4))
    assert correction(learn(places, np.zeros(30), 0.05), places) == pytest.approx(0.0)


def test_runs_inherit_what_is_near_and_nothing_from_afar() -> None:
    """Near runs that are all 20 % slower the correction approaches that; far from all it is none."""
    places = np.random.default_rng(0).normal(scale=0.3, size=(40, 4))
    found = learn(places, np.full(40, np.log(1.2)), 0.05)
    assert correction(found, np.zeros((1, 4))) == pytest.approx(np.log(1.2), rel=0.1)
    assert correction(found, np.full((1, 4), 30.0)) == pytest.approx(0.0, abs=1e-9)


def test_an_outlier_is_not_learned() -> None:
    """One run ten times slower than forty like it hardly moves what those say."""
    places = np.zeros((41, 4))
    residuals = np.concatenate([np.zeros(40), [np.log(10)]])
    assert abs(correction(learn(places, residuals, 0.05), places[:1]).item()) < 0.01


def test_places_of_a_batch_are_those_of_each_run() -> None:
    """Row i of a batch's places is the place of run i alone, so that many plans are one call."""
    cases = read_cases(TABLES / "vtrain_a100_single_node.csv", load_catalog()).cases[:40]
    for batch in batched(cases, HABITS):
        for row, place in zip(batch.rows, batch.places(), strict=True):
            (alone,) = batched([cases[row]], HABITS)
            assert alone.places()[0] == pytest.approx(place)


def test_sizes_must_agree() -> None:
    """A file whose places and weights differ in number is refused."""
    with pytest.raises(ValueError, match="places must be equally long, and as many as weights"):
        Discrepancy(places=((1.0, 2.0),), weights=(0.1, 0.2))
