"""How what the model leaves unexplained is learned: lengths, scale and noise of the Gaussian process of `residual`.

They are those that make the residuals most probable (Rasmussen and Williams 2006, eq. 5.8, 5.9), with priors. Outliers
are weighted down as in `student_t`.
"""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.student_t import DEGREES_OF_FREEDOM
from estimator.predict.residual import DEVICES, Alike, distances
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

SEARCHES = 4
"""Searches of lengths and spreads, each with the outliers as the one before weights them.

measured: two more move corrections by 0.3 % (nanotron, root mean square) and 0.02 % (megatron-deepspeed)
"""

MOST_STEPS = 15
"""Of a search.  # measured: twice as many move corrections by 0.07 % and less, as above"""

MOST_SEARCHED = 500
"""Runs from which lengths and spreads are sought, evenly chosen where there are more.

assumed: enough for 19 numbers; the cost grows as the cube of the runs
"""


def learn(places: Array, residuals: Array, spread: float) -> ResidualModel:
    """Return what residuals, measured less predicted in logarithms, of about some spread, show at their places."""
    searched = np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_SEARCHED)).astype(np.int64))
    alike, precision = Alike(np.full(places.shape[1], LENGTH), SCALE, spread, 0.0), np.ones(len(searched))
    for _ in range(SEARCHES):
        alike = likeliest(places[searched], residuals[searched], precision, alike, spread)
        precision = _precision(places[searched], residuals[searched], alike)
    alike, known = alike.rounded(), places.round(4)
    noise = (alike.noise_at(known) / np.sqrt(_precision(known, residuals, alike))).round(6)
    weights = np.linalg.solve(alike.of(known, known) + np.diag(noise**2), residuals)
    return ResidualModel(
        places=tuple(tuple(row) for row in known.tolist()),
        weights=tuple(weights.round(5).tolist()),
        noise=tuple(noise.tolist()),
        lengths=tuple(alike.lengths.tolist()),
        scale=alike.scale,
        noise_of_one=alike.noise,
        growth=alike.growth,
    )


def _precision(places: Array, residuals: Array, alike: Alike) -> Array:
    """Return the precision of each residual over that of its kind: as in `student_t`, until it is at rest."""
    kernel, variance, precision = alike.of(places, places), alike.noise_at(places) ** 2, np.ones(len(places))
    for _ in range(MOST_ROUNDS):
        inverse = np.linalg.inv(kernel + np.diag(variance / precision))
        left = inverse @ residuals * variance / precision
        unsure = np.diag(kernel) - np.einsum("ij,ij->i", kernel @ inverse, kernel)
        squares = left**2 + np.maximum(unsure, 0.0)
        before, precision = precision, (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + squares / variance)
        if np.abs(np.log(precision / before)).max() < SETTLED:
            break
    return np.asarray(precision)


class Search(NamedTuple):
    """A search of how residuals of some precisions are alike, with normal priors of the logarithms."""

    places: Array
    residuals: Array
    precision: Array
    spread: float

    @property
    def doublings(self) -> Array:
        """Of devices, shape (places,)."""
        return np.asarray(self.places[:, DEVICES].sum(axis=1))

    def values(self, one: Alike) -> Array:
        """Return what is sought: the logarithms of lengths, scale, and noise in the middle of the runs; and growth."""
        noise = np.log(one.noise) + one.growth * self.doublings.mean()  # of one device it would depend on the growth
        return np.array([*np.log(one.lengths), np.log(one.scale), noise, one.growth])

    def alike(self, values: Array) -> Alike:
        """Return how errors are alike by such values."""
        *lengths, scale, noise, growth = values
        of_one = np.exp(noise - growth * self.doublings.mean())
        return Alike(np.exp(lengths), float(np.exp(scale)), float(of_one), float(growth))

    def cost(self, values: Array) -> tuple[float, Array]:
        """Return minus the log probability, and its slopes (Rasmussen and Williams 2006, eq. 5.8, 5.9)."""
        one, count = self.alike(values), self.places.shape[1]
        scaled = self.places / one.lengths
        q = distances(scaled, scaled)
        falls = one.scale**2 * np.exp(-q)
        kernel, noise = falls * (1 + q + q**2 / 3), one.noise_at(self.places) ** 2 / self.precision
        root = np.linalg.cholesky(kernel + np.diag(noise))
        half = np.linalg.inv(root)
        inverse = half.T @ half
        weights = inverse @ self.residuals
        gap = inverse - np.outer(weights, weights)
        moved = gap * falls * (5.0 / 3.0) * (1 + q)
        along = moved.sum(axis=1) @ scaled**2 - np.einsum("ij,ij->j", scaled, moved @ scaled)
        of_noise = np.diag(gap) * noise
        slopes = [*along, (gap * kernel).sum(), of_noise.sum(), of_noise @ (self.doublings - self.doublings.mean())]
        mean = np.array([*np.log([LENGTH] * count + [SCALE, self.spread]), 0.0])
        sd = np.array([LENGTH_LOG_SD] * count + [SCALE_LOG_SD, NOISE_LOG_SD, GROWTH_SD])
        away = (values - mean) / sd
        total = 0.5 * self.residuals @ weights + np.log(np.diag(root)).sum() + 0.5 * away @ away
        return float(total), np.array(slopes) + away / sd


def likeliest(places: Array, residuals: Array, precision: Array, start: Alike, spread: float) -> Alike:
    """Return lengths and spreads towards the most probable, from `start` on, of residuals of such precisions."""
    from scipy.optimize import minimize  # noqa: PLC0415 - slow to import

    search = Search(places, residuals, precision, spread)
    kinds = ["length"] * places.shape[1] + ["scale", "noise", "growth"]
    bounds = np.array([BOUNDS[kind] if kind == "growth" else np.log(BOUNDS[kind]) for kind in kinds])
    begin = np.clip(search.values(start), *bounds.T)
    options = {"maxiter": MOST_STEPS}
    return search.alike(minimize(search.cost, begin, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x)
