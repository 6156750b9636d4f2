"""Residuals that are alike as one says, at places of few features."""

import numpy as np

from estimator.arrays import Array
from estimator.predict.residual import Alike
from estimator.stack.fit import NUM_FEATURES

NUM_VARYING = 5
"""Features in which places here differ; those of `DEVICES` are among them."""


def scattered(random: np.random.Generator, low: float, high: float, count: int) -> Array:
    """Return places, uniform between bounds in the features that vary, 0 in the others."""
    places = np.zeros((count, NUM_FEATURES))
    places[:, :NUM_VARYING] = random.uniform(low, high, size=(count, NUM_VARYING))
    return places


def alike(**changes: float | Array) -> Alike:
    """Return errors alike over one doubling in each feature, of 20 % and noise of 3 %."""
    return Alike(np.ones(NUM_FEATURES), 0.2, 0.03, 0.0)._replace(**changes)


def drawn(one: Alike, places: Array, seed: int) -> Array:
    """Return residuals at places, drawn as `one` says."""
    random = np.random.default_rng(seed)
    covariance = one.of(places, places) + np.diag(one.noise_at(places) ** 2)
    return random.multivariate_normal(np.zeros(len(places)), covariance)
