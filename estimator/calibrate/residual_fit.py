"""How what the model leaves unexplained is learned: lengths, scale and noise of the Gaussian process of `residual`.

They are those that make the residuals most probable (Rasmussen and Williams 2006, eq. 5.8, 5.9), with priors. Outliers
are weighted down as in `student_t`, in turn with that, until neither changes any more.
"""

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.student_t import DEGREES_OF_FREEDOM
from estimator.predict.residual import DEVICES, Alike, Learned, distances, most_doublings, polynomial
from estimator.stack.fit import ResidualModel

LENGTH, LENGTH_LOG_SD = 2.5, 1.0
"""Prior of the distance over which errors stay alike, in `features`.  # assumed: one to seven doublings"""

SCALE, SCALE_LOG_SD = 0.1, 0.5
"""Prior of how large unexplained errors are, in logarithms.  # assumed: 5 to 20 %"""

NOISE_LOG_SD = 0.5
"""Of the spread of what no feature explains, around that of the residuals from which it is learned.  # assumed"""

GROWTH_SD = 0.2
"""Of the growth of that spread per doubling of devices, in logarithms, which is 0 or more.

assumed: independent stragglers would make it 0, a share of the devices' own spread up to log 2 / 2
"""

BOUNDS = {"length": (0.3, 40.0), "scale": (0.01, 0.7), "noise": (0.003, 0.7), "growth": (0.0, np.log(2) / 2)}
"""Within which they are sought.

assumed: from closer than any two runs lie to farther than all of them; no stack repeats a step within 0.3 %
"""

MOST_ROUNDS = 30
"""Of weighting outliers down."""

SETTLED = 0.05
"""Change of the logarithm of every weight below which they have come to rest."""

MOST_SEARCHES = 8
"""Searches of lengths and spreads, each with the outliers as the one before weights them."""

MOST_STEPS = 8
"""Of a search."""

MOST_SEARCHED = 500
"""Runs from which lengths and spreads are sought, evenly chosen where there are more.

assumed: enough for 19 numbers; the cost grows as the cube of the runs
"""


def learn(places: Array, residuals: Array, spread: float, known: Alike | None = None) -> Learned:
    """Return what residuals, measured less predicted in logarithms, of about some spread, show at their places.

    Args:
        places: `residual.features` of the runs.
        residuals: of each.
        spread: what is believed of the noise.
        known: how errors are alike, where that is not to be sought.
    """
    some = np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_SEARCHED)).astype(np.int64))
    search = Search(places[some], residuals[some], spread)
    alike, precision = known or Alike(np.full(places.shape[1], LENGTH), SCALE, spread, 0.0), np.ones(len(some))
    for _ in range(0 if known else MOST_SEARCHES):
        alike = search.likeliest(alike, precision)
        before, precision = precision, _precision(places[some], residuals[some], alike, precision)
        if np.abs(np.log(precision / before)).max() < SETTLED:
            break
    alike, at = alike.rounded()._replace(most_doublings=most_doublings(places)), places.round(4)
    noise = (alike.noise_at(at) / np.sqrt(_precision(at, residuals, alike, np.ones(len(at))))).round(6)
    half = inverse_root(alike.of(at, at) + np.diag(noise**2))
    return Learned(at, (half.T @ (half @ residuals)).round(5), noise, alike, half)


def recorded(found: Learned) -> ResidualModel:
    """Return what was learned as a stack file holds it."""
    return ResidualModel(
        places=tuple(tuple(row) for row in found.places.tolist()),
        weights=tuple(found.weights.tolist()),
        noise=tuple(found.noise.tolist()),
        lengths=tuple(found.alike.lengths.tolist()),
        scale=found.alike.scale,
        noise_of_one=found.alike.noise,
        growth=found.alike.growth,
    )


def inverse_root(covariance: Array) -> Array:
    """Return the inverse of the lower Cholesky factor of a covariance, in its place."""
    from scipy.linalg import lapack  # noqa: PLC0415 - slow to import, and only a fit needs it

    # LAPACK's matrices lie column by column: the transpose of what is meant, of which it reads the upper triangle
    root, failed = lapack.dpotrf(covariance.T, lower=0, clean=1, overwrite_a=1)
    assert not failed, "likeness and noise are positive definite"
    return np.asarray(lapack.dtrtri(root, lower=0, overwrite_c=1)[0].T)


def _precision(places: Array, residuals: Array, alike: Alike, start: Array) -> Array:
    """Return the precision of each residual over that of its kind: as in `student_t`, until it is at rest.

    What is left of a residual is N (K + N)^-1 r, and how unsure the process is of it N - N (K + N)^-1 N.
    """
    kernel, variance, precision = alike.of(places, places), alike.noise_at(places) ** 2, start
    room, diagonal = np.empty_like(kernel), np.diag(kernel).copy()
    for _ in range(MOST_ROUNDS):
        own = variance / precision
        np.copyto(room, kernel)
        np.fill_diagonal(room, diagonal + own)
        half = inverse_root(room)
        left = half.T @ (half @ residuals) * own
        unsure = own - own**2 * np.einsum("ij,ij->j", half, half)
        squares = left**2 + np.maximum(unsure, 0.0)
        before, precision = precision, (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + squares / variance)
        if np.abs(np.log(precision / before)).max() < SETTLED:
            break
    return np.asarray(precision)


class Search:
    """A search of how residuals at places are alike, with normal priors of the logarithms of what is sought."""

    def __init__(self, places: Array, residuals: Array, spread: float) -> None:
        """Take the residuals, of about some spread, and room for three matrices of their pairs."""
        self.places, self.residuals = places, residuals
        self.doublings = places[:, DEVICES].sum(axis=1)
        kinds = ["length"] * places.shape[1] + ["scale", "noise", "growth"]
        self.bounds = np.array([BOUNDS[kind] if kind == "growth" else np.log(BOUNDS[kind]) for kind in kinds])
        self.mean = np.array([*np.log([LENGTH] * places.shape[1] + [SCALE, spread]), 0.0])
        self.sd = np.array([LENGTH_LOG_SD] * places.shape[1] + [SCALE_LOG_SD, NOISE_LOG_SD, GROWTH_SD])
        self._room = np.empty((3, len(places), len(places)))

    def values(self, one: Alike) -> Array:
        """Return what is sought: the logarithms of lengths, scale, and noise in the middle of the runs; and growth."""
        noise = np.log(one.noise) + one.growth * self.doublings.mean()  # of one device it would depend on the growth
        return np.array([*np.log(one.lengths), np.log(one.scale), noise, one.growth])

    def alike(self, values: Array) -> Alike:
        """Return how errors are alike by such values."""
        *lengths, scale, noise, growth = values
        of_one = np.exp(noise - growth * self.doublings.mean())
        return Alike(np.exp(lengths), float(np.exp(scale)), float(of_one), float(growth))

    def cost(self, values: Array, precision: Array) -> tuple[float, Array]:
        """Return minus the log probability of residuals of some precisions, and its slopes.

        (Rasmussen and Williams 2006, eq. 5.8, 5.9.) With S = K + N, w = S^-1 r, and G = S^-1 - w w' the slope by an
        element of S, twice over: of the scale's logarithm it is sum G K = n - w r - sum_i G_ii N_ii, of a length's
        sum_ij G_ij M_ij (x_i - x_j)^2 / 2, M = 5/3 s^2 (1 + q) exp(-q), the two parts of G apart, the first of them
        as a triangle, each pair of which counts twice.
        """
        from scipy.linalg import lapack  # noqa: PLC0415 - slow to import, and only a fit needs it

        one, (q, falls, covariance) = self.alike(values), self._room
        x, noise = self.places / one.lengths, one.noise_at(self.places) ** 2 / precision
        distances(x, x, out=q)
        np.exp(np.negative(q, out=falls), out=falls)
        falls *= one.scale**2
        polynomial(q, out=covariance)
        covariance *= falls
        np.fill_diagonal(covariance, one.scale**2 + noise)
        root, failed = lapack.dpotrf(covariance.T, lower=0, clean=1, overwrite_a=1)  # as in `inverse_root`
        assert not failed, "likeness and noise are positive definite"
        log_root = float(np.log(np.diag(root)).sum())
        lower = lapack.dpotri(root, lower=0, overwrite_c=1)[0].T  # the triangle of S^-1, zeros beside it
        diagonal = np.diag(lower).copy()
        w = lower @ self.residuals + self.residuals @ lower - diagonal * self.residuals
        q += 1.0
        q *= falls
        pairs = np.multiply(lower, q, out=falls)
        wx = w[:, None] * x
        along = (pairs.sum(axis=0) + pairs.sum(axis=1) - w * (q @ w)) @ x**2
        along += np.einsum("ij,ij->j", wx, q @ wx) - 2.0 * np.einsum("ij,ij->j", x, pairs @ x)
        of_noise, fits = (diagonal - w**2) * noise, float(self.residuals @ w)
        slopes = [*(5.0 / 3.0 * along), len(w) - fits - of_noise.sum(), of_noise.sum()]
        away = (values - self.mean) / self.sd
        total = 0.5 * fits + log_root + 0.5 * float(away @ away)
        return total, np.array([*slopes, of_noise @ (self.doublings - self.doublings.mean())]) + away / self.sd

    def likeliest(self, start: Alike, precision: Array) -> Alike:
        """Return lengths and spreads towards the most probable, from `start` on, of residuals of such precisions."""
        from scipy.optimize import minimize  # noqa: PLC0415 - as above

        begin, options = np.clip(self.values(start), *self.bounds.T), {"maxiter": MOST_STEPS}
        ask = {"jac": True, "method": "L-BFGS-B", "bounds": self.bounds, "options": options}
        return self.alike(minimize(self.cost, begin, args=(precision,), **ask).x)
