"""Fit parameters to measurements with outliers: Student's t errors, normal priors, spreads found along the way.

The model: y_i = f_i(theta) + s_g(i) e_i, e Student's t of nu degrees of freedom, g the kind of a measurement (seconds,
bytes); theta_j ~ N(m_j, d_j^2). A Student's t is a normal of random precision, w ~ Gamma(nu / 2, nu / 2): expectation
maximization alternates w_i = (nu + 1) / (nu + r_i^2 / s^2), a Gauss-Newton step of the weighted least squares, and
s^2 = sum w r^2 / n (Lange, Little, Taylor 1989, doi:10.1080/01621459.1989.10478852, section 3).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array

DEGREES_OF_FREEDOM = 4
"""Of the errors.  # paper: Lange, Little, Taylor 1989, section 5: 4 has worked well where nu is not estimated"""

PRIOR_MEASUREMENTS = 4.0
"""How many measurements the prior of a spread is worth.  # assumed: few, so that ten measurements outvote it"""

MAX_ROUNDS = 30
TOLERANCE = 5e-2
"""Moves of all parameters, in standard deviations of theirs, below which the fit has come to rest.

measured: from 1e-2 to 1e-1, parameters of megatron and mlperf-nvidia differ by 0.06 standard deviations at most
"""
MOST_DAMPINGS = 12
"""Steps tried in a round, each a tenth of the last, before it stays where it is."""

STEP = 1e-4
"""Move of a logarithm for a slope."""


class Belief(NamedTuple):
    """A normal prior of each parameter, and the blocks of them that share a spread to be found."""

    mean: Array
    sd: Array
    spread_of: Array
    """For each parameter the block whose spread is its sd, -1 where its own sd stays."""


class Measured(NamedTuple):
    """What was measured."""

    values: Array
    kind: Array
    """Which spread each measurement has."""
    bound: Array
    """1 where it is only known to be no less than the value, -1 where no more, 0 where the value was measured."""


class Solution(NamedTuple):
    """What a fit found."""

    values: Array
    covariance: Array
    spreads: Array
    """Of each kind of measurement."""
    prior_sd: Array
    """Of each parameter, with the spreads found of the blocks."""


def fit_robust(
    predict: Callable[[Array], Array],
    measured: Measured,
    belief: Belief,
    prior_spreads: Array,
    start: Array | None = None,
) -> Solution:
    """Return the most probable parameters, their covariance, and the spreads.

    Args:
        predict: the model, from values of shape (samples, parameters) to shape (samples, measurements).
        measured: what it is held against.
        belief: what is believed of the parameters before.
        prior_spreads: what is believed of the spreads, one for each kind.
        start: where to begin; None: at the priors.
    """
    values = (belief.mean if start is None else start).copy()
    spreads, prior_sd = prior_spreads.copy(), belief.sd.copy()
    slopes, errors = _linearized(predict, values, measured)
    damping = 1e-3
    for _ in range(MAX_ROUNDS):
        weights, spreads = _weights(errors, measured, spreads, prior_spreads)
        information = (slopes * weights[:, None]).T @ slopes + np.diag(prior_sd**-2.0)
        pull = slopes.T @ (weights * errors) - (values - belief.mean) / prior_sd**2
        cost = _cost(errors, values, weights, belief, prior_sd)
        for _ in range(MOST_DAMPINGS):
            move = np.linalg.solve(information + damping * np.diag(np.diag(information)), pull)
            tried_slopes, tried_errors = _linearized(predict, values + move, measured)
            if _cost(tried_errors, values + move, weights, belief, prior_sd) <= cost:
                values, slopes, errors, damping = values + move, tried_slopes, tried_errors, damping / 5
                break
            damping *= 10
        widths, prior_sd = prior_sd, _block_spreads(values, np.linalg.inv(information), belief)
        moved = np.abs(move * np.sqrt(np.diag(information))).max()
        if max(moved, np.abs(np.log(prior_sd / widths)).max()) < TOLERANCE:
            break
    weights, spreads = _weights(errors, measured, spreads, prior_spreads)
    covariance = np.linalg.inv((slopes * weights[:, None]).T @ slopes + np.diag(prior_sd**-2.0))
    return Solution(values, covariance, spreads, prior_sd)


def _linearized(predict: Callable[[Array], Array], values: Array, measured: Measured) -> tuple[Array, Array]:
    """Return the model's slopes and measured less predicted; a bound that the prediction keeps has neither."""
    moved = np.vstack([values, values + STEP * np.eye(len(values))])
    predicted = predict(moved)
    errors = measured.values - predicted[0]
    counts = (measured.bound == 0) | (measured.bound * errors > 0)
    return ((predicted[1:] - predicted[0]) / STEP).T * counts[:, None], errors * counts


def _weights(errors: Array, measured: Measured, spreads: Array, prior: Array) -> tuple[Array, Array]:
    """Return the precision of each measurement, and the spreads, which they imply."""
    found = spreads.copy()
    latent = (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + (errors / spreads[measured.kind]) ** 2)
    for kind in range(len(spreads)):
        of_kind = (measured.kind == kind) & (measured.bound == 0)
        total = (latent * errors**2)[of_kind].sum() + PRIOR_MEASUREMENTS * prior[kind] ** 2
        found[kind] = np.sqrt(total / (of_kind.sum() + PRIOR_MEASUREMENTS))
    return latent / found[measured.kind] ** 2, found


def _cost(errors: Array, values: Array, weights: Array, belief: Belief, prior_sd: Array) -> float:
    return float((weights * errors**2).sum() + (((values - belief.mean) / prior_sd) ** 2).sum())


def _block_spreads(values: Array, covariance: Array, belief: Belief) -> Array:
    """Return the prior sd of the parameters, those of a block with the spread that its values show."""
    found = belief.sd.copy()
    for block in set(belief.spread_of[belief.spread_of >= 0].tolist()):
        members = belief.spread_of == block
        own = (values - belief.mean)[members]
        # around their own mean: were a shift of all of them to widen the spread, it would soon cost nothing
        square = ((own - own.mean()) ** 2 + np.diag(covariance)[members]).sum()
        prior = PRIOR_MEASUREMENTS * belief.sd[members][0] ** 2
        found[members] = np.sqrt((square + prior) / (members.sum() + PRIOR_MEASUREMENTS))
    return found
