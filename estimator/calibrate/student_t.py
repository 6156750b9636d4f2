"""Fit parameters to measurements with outliers: Student's t errors, normal priors, spreads found along the way.

The model: y_i = f_i(theta) + v_i e_i, v_i^2 = s_g(i)^2 + se_i^2, e Student's t of nu degrees of freedom, g the kind of
a measurement (seconds, bytes), se_i what is known of its own error; theta_j ~ N(m_j, d_j^2). A Student's t is a normal
of random precision, w ~ Gamma(nu / 2, nu / 2): with r_i measured less predicted, expectation maximization alternates

    w_i = (nu + 1) / (nu + r_i^2 / v_i^2)
    theta: a Gauss-Newton step of the least squares weighted by w_i / v_i^2
    s^2 = mean of (s^2 / v_i^2)^2 w_i r_i^2 + s^2 se_i^2 / v_i^2, which is w_i r_i^2 where no se_i is known

(Lange, Little, Taylor 1989, doi:10.1080/01621459.1989.10478852, section 3).
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.asking import Asking, answered

DEGREES_OF_FREEDOM = 4
"""Of the errors.  # paper: Lange, Little, Taylor 1989, section 5: 4 has worked well where nu is not estimated"""

PRIOR_MEASUREMENTS = 4.0
"""How many measurements the prior of a spread is worth.  # assumed: few, so that ten measurements outvote it"""

MOST_ROUNDS = 60
"""Of weighting and moving; a handful to a score suffices."""

LEAST_DAMPING = 1e-3
"""Of a move, over the information on each parameter: Marquardt's, changed by what a move gains over what it promised.

paper: Nielsen 1999, "Damping parameter in Marquardt's method", IMM-REP-1999-05, eq. 2.5: by a third at most where it
gains, twice, then four times, then eight times as much where it does not
"""

TOLERANCE = 1e-2
"""Largest move of a parameter, in its standard deviations, or of a spread's logarithm, that counts as none."""

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
    se: Array
    """Standard error of its own, beside the spread of its kind."""


class Solution(NamedTuple):
    """What a fit found."""

    values: Array
    covariance: Array
    spreads: Array
    """Of each kind of measurement."""
    prior_sd: Array
    """Of each parameter, with the spreads found of the blocks."""
    errors: Array
    """Measured less predicted; 0 where a prediction keeps a bound."""


class _Weighted(NamedTuple):
    """Measurements as one round weights them, and what they then tell of the parameters."""

    weights: Array
    spreads: Array
    information: Array
    covariance: Array


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
    return answered(fitting(measured, belief, prior_spreads, start), predict)


def fitting(measured: Measured, belief: Belief, prior_spreads: Array, start: Array | None = None) -> Asking[Solution]:
    """Find what `fit_robust` returns, asking for the model's predictions."""
    values = (belief.mean if start is None else start).copy()
    prior_sd, damping, growth = belief.sd.copy(), LEAST_DAMPING, 2.0
    slopes, errors = yield from _linearized(values, measured)
    last = _weighted(slopes, errors, measured, prior_spreads, prior_spreads, prior_sd)
    for _ in range(MOST_ROUNDS):
        now = _weighted(slopes, errors, measured, last.spreads, prior_spreads, prior_sd)
        widths, prior_sd = prior_sd, _block_spreads(values, now.covariance, belief)
        pull = slopes.T @ (now.weights * errors) - (values - belief.mean) / widths**2
        damped = damping * np.diag(now.information)
        move = np.linalg.solve(now.information + np.diag(damped), pull)
        moved = np.abs(move / np.sqrt(np.diag(now.covariance))).max(initial=0.0)
        changed = np.abs(np.log(np.concatenate([now.spreads / last.spreads, prior_sd / widths]))).max()
        last = now
        if max(moved, changed) < TOLERANCE:
            break
        tried_slopes, tried_errors = yield from _linearized(values + move, measured)
        less = (now.weights * (errors**2 - tried_errors**2)).sum()
        less += _surprise(values, belief, widths) - _surprise(values + move, belief, widths)
        if less >= 0:
            promised = float(move @ (damped * move + pull))
            gain = less / promised if promised > 0 else 1.0  # where it already rests, only spreads still change
            damping, growth = max(damping * max(1 / 3, 1 - (2 * gain - 1) ** 3), LEAST_DAMPING), 2.0
            values, slopes, errors = values + move, tried_slopes, tried_errors
        else:
            damping, growth = damping * growth, 2 * growth
    return Solution(values, last.covariance, last.spreads, prior_sd, errors)


def _linearized(values: Array, measured: Measured) -> Generator[Array, Array, tuple[Array, Array]]:
    """Return the model's slopes and measured less predicted; a bound that the prediction keeps has neither."""
    predicted = yield np.vstack([values, values + STEP * np.eye(len(values))])
    errors = measured.values - predicted[0]
    counts = (measured.bound == 0) | (measured.bound * errors > 0)
    return ((predicted[1:] - predicted[0]) / STEP).T * counts[:, None], errors * counts


def _weighted(
    slopes: Array, errors: Array, measured: Measured, spreads: Array, prior: Array, prior_sd: Array
) -> _Weighted:
    """Return the precision of each measurement, the spreads that they imply, and what is known of the parameters."""
    of_kind = spreads[measured.kind] ** 2
    squares, variance = errors**2, of_kind + measured.se**2
    latent = (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + squares / variance)
    own = (of_kind / variance) ** 2 * latent * squares + of_kind * measured.se**2 / variance
    found, read = spreads.copy(), measured.bound == 0
    for kind in range(len(spreads)):
        members = read & (measured.kind == kind)
        total = own[members].sum() + PRIOR_MEASUREMENTS * prior[kind] ** 2
        found[kind] = np.sqrt(total / (members.sum() + PRIOR_MEASUREMENTS))
    weights = latent / (found[measured.kind] ** 2 + measured.se**2)
    information = (slopes * weights[:, None]).T @ slopes + np.diag(prior_sd**-2.0)
    return _Weighted(weights, found, information, np.linalg.inv(information))


def _surprise(values: Array, belief: Belief, prior_sd: Array) -> float:
    return float((((values - belief.mean) / prior_sd) ** 2).sum())


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
