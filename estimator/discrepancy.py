"""What the model of a step leaves unexplained, learned from the runs that a stack was fitted to.

The logarithm of measured over predicted is taken as a smooth function of the plan, a Gaussian process of mean 0
(Kennedy and O'Hagan 2001, doi:10.1111/1467-9868.00294: the model inadequacy): runs like a measured one inherit its
error and are known the better for it; far from all of them the model stands as it is, with a wider interval.

    r(x) = d(x) + e,  k(x, y) = s^2 (1 + q + q^2 / 3) exp(-q),  q^2 = 5 sum_i ((x_i - y_i) / l_i)^2
    mean k(x, X) w,  variance s^2 - k(x, X) (K + N)^-1 k(X, x) + n(x)^2,  w = (K + N)^-1 r

k is Matern's of 5/2 (Rasmussen and Williams 2006, eq. 4.17; predictions eq. 2.25 and 2.26). How far errors stay alike
along each feature, l, how large they are, s, and what no feature explains, n, which grows with the devices that a step
waits for, are those that make the residuals most probable (eq. 5.8, 5.9), with priors. Outliers are weighted down as in
`robust`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from estimator.counts import Array
from estimator.fit import Discrepancy, Fit
from estimator.layout import Layout
from estimator.machine import Machine
from estimator.memory import Memory
from estimator.robust import DEGREES_OF_FREEDOM
from estimator.shape import Shape
from estimator.step import Step

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

BOUNDS = {"length": (0.3, 40.0), "scale": (0.01, 0.7), "noise": (0.003, 0.7), "growth": (0.0, 0.7)}
"""Within which they are sought, so that the runs' covariance can be inverted."""

ROUNDS = 3
"""Of weighting outliers down; the weights hardly move after."""

MOST_TRIALS = 15
"""Steps of the search in each round."""

MOST_SEARCHED = 500
"""Runs from which lengths and spreads are found, evenly chosen where there are more; the cost grows as their cube."""

CHUNK = 4096
"""Runs whose distances are held at once: with a thousand measured ones, 32 MiB."""

FEATURES = (
    "tensor-parallel degree",
    "pipeline stages",
    "chunks per stage",
    "replicas",
    "expert-parallel degree",
    "rows of a micro-batch",
    "micro-batches",
    "sequence length",
    "hidden size, twice",
    "peak of the device, twice",
    "sharded, or not",
    "full recomputation, or not",
    "stalling collectives, or not",
    "in 8 bits, or not",
    "tensor parallel over nodes, or not",
    "a pipeline, or none",
)
"""What `features` are, in words."""

DEVICES = (0, 1, 3)
"""Features whose sum is the doublings of devices: tensor parallel, stages, replicas."""


def features(shape: Shape, seq_len: float, plan: Layout, machine: Machine, *, in_8_bits: bool) -> Array:
    """Return where runs lie, shape (..., features): in doublings, kinds apart by as much as makes them differ.

    The factors are assumed: what changes an algorithm (a pipeline, shards, groups over several nodes) weighs as a
    doubling or two; the width of the model and the rate of the device weigh double, since few of them are measured.
    """
    columns = [
        np.log2(plan.tp),
        np.log2(plan.stages),
        np.log2(plan.virtual_stages),
        np.log2(plan.replicas),
        np.log2(plan.ep),
        np.log2(plan.rows),
        np.log2(plan.micro_batches),
        np.log2(seq_len),
        2.0 * np.log2(shape.hidden_size),
        2.0 * np.log2(machine.accelerator.bf16_flop_per_s / 1e12),
        1.5 * (np.asarray(plan.zero_stage) > 0),
        1.5 * plan.recomputes("full"),
        1.5 * np.asarray(plan.stalls),
        1.5 * in_8_bits,
        2.0 * (np.asarray(plan.tp) > plan.devices_per_node),
        2.0 * (np.asarray(plan.stages) > 1),
    ]
    return np.stack([np.asarray(column, dtype=np.float64) for column in np.broadcast_arrays(*columns)], axis=-1)


class Alike(NamedTuple):
    """How errors are alike: `lengths` of shape (features,), and spreads, in logarithms."""

    lengths: Array
    scale: float
    noise: float
    """What no feature explains, on one device."""
    growth: float
    """Of that, per doubling of devices."""

    def noise_at(self, places: Array) -> Array:
        """Return what no feature explains, shape (places,)."""
        return np.asarray(self.noise * np.exp(self.growth * places[:, DEVICES].sum(axis=1)))

    def of(self, places: Array, others: Array) -> Array:
        """Return k of each pair, shape (places, others)."""
        q = distances(places / self.lengths, others / self.lengths)
        return np.asarray(self.scale**2 * (1 + q + q**2 / 3) * np.exp(-q))


def distances(places: Array, others: Array) -> Array:
    """Return q of each pair of places, given in lengths."""
    squares = (places**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2.0 * places @ others.T
    return np.asarray(np.sqrt(5.0 * np.maximum(squares, 0.0)))


def learn(places: Array, residuals: Array, spread: float) -> Discrepancy:
    """Return what residuals, measured less predicted in logarithms, of about some spread, show at their places."""
    searched = np.unique(np.linspace(0, len(places) - 1, min(len(places), MOST_SEARCHED)).astype(np.int64))
    some, some_residuals = places[searched], residuals[searched]
    alike = Alike(np.full(places.shape[1], LENGTH), SCALE, spread, 0.0)
    precision = np.ones(len(some))
    for _ in range(ROUNDS):
        alike = likeliest(some, some_residuals, precision, alike, spread)
        precision = _precision(some, some_residuals, precision, alike)
    precision = np.ones(len(places))
    for _ in range(ROUNDS):
        precision = _precision(places, residuals, precision, alike)
    noise = alike.noise_at(places) / np.sqrt(precision)
    rounded = places.round(4)
    weights = np.linalg.solve(alike.of(rounded, rounded) + np.diag(noise**2), residuals)
    return Discrepancy(
        places=tuple(tuple(row) for row in rounded.tolist()),
        weights=tuple(weights.round(5).tolist()),
        noise=tuple(noise.round(6).tolist()),
        lengths=tuple(alike.lengths.round(4).tolist()),
        scale=round(alike.scale, 6),
        noise_of_one=round(alike.noise, 8),
        growth=round(alike.growth, 6),
    )


def _precision(places: Array, residuals: Array, precision: Array, alike: Alike) -> Array:
    """Return the precision of each residual over that of its kind, given those before: as in `robust`."""
    kernel, variance = alike.of(places, places), alike.noise_at(places) ** 2
    inverse = np.linalg.inv(kernel + np.diag(variance / precision))
    left = inverse @ residuals * variance / precision
    unsure = np.diag(kernel) - np.einsum("ij,ij->i", kernel @ inverse, kernel)
    squares = left**2 + np.maximum(unsure, 0.0)
    return np.asarray((DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + squares / variance))


def likeliest(places: Array, residuals: Array, precision: Array, start: Alike, spread: float) -> Alike:
    """Return the most probable lengths and spreads, sought from `start` on, of residuals of such precisions."""
    from scipy.optimize import minimize  # noqa: PLC0415 - slow to import

    count = places.shape[1]
    mean = np.log(np.array([LENGTH] * count + [SCALE, spread]))
    sd = np.array([LENGTH_LOG_SD] * count + [SCALE_LOG_SD, NOISE_LOG_SD, GROWTH_SD])
    doublings = places[:, DEVICES].sum(axis=1)
    center = float(doublings.mean())  # there the spread is sought: at one device it would depend on the growth

    def alike(values: Array) -> Alike:
        growth = float(values[-1])
        noise = float(np.exp(values[-2] - growth * center))
        return Alike(np.exp(values[:count]), float(np.exp(values[count])), noise, growth)

    def cost(values: Array) -> tuple[float, Array]:
        """Minus the log probability, and its slopes (Rasmussen and Williams 2006, eq. 5.8, 5.9)."""
        one = alike(values)
        scaled = places / one.lengths
        q = distances(scaled, scaled)
        falls = one.scale**2 * np.exp(-q)
        kernel, noise = falls * (1 + q + q**2 / 3), one.noise_at(places) ** 2 / precision
        root = np.linalg.cholesky(kernel + np.diag(noise))
        half = np.linalg.inv(root)
        inverse = half.T @ half
        weights = inverse @ residuals
        gap = inverse - np.outer(weights, weights)
        moved = gap * falls * (5.0 / 3.0) * (1 + q)
        along = moved.sum(axis=1) @ scaled**2 - np.einsum("ij,ij->j", scaled, moved @ scaled)
        of_noise = np.diag(gap) * noise
        slopes = [*along, (gap * kernel).sum(), of_noise.sum(), of_noise @ (doublings - center)]
        away = (values - np.append(mean, 0.0)) / sd
        total = 0.5 * residuals @ weights + np.log(np.diag(root)).sum() + 0.5 * away @ away
        return float(total), np.array(slopes) + away / sd

    kinds = ["length"] * count + ["scale", "noise", "growth"]
    bounds = [BOUNDS[kind] if kind == "growth" else tuple(np.log(BOUNDS[kind])) for kind in kinds]
    begin = np.array([*np.log(start.lengths), np.log(start.scale), np.log(start.noise) + start.growth * center])
    low, high = np.array(bounds).T
    found = minimize(
        cost,
        np.clip(np.append(begin, start.growth), low, high),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": MOST_TRIALS},
    )
    return alike(found.x)


class _Known(NamedTuple):
    """What was learned, as arrays."""

    places: Array
    weights: Array
    noise: Array
    alike: Alike


@lru_cache(maxsize=8)
def _known(found: Discrepancy) -> _Known:
    alike = Alike(np.array(found.lengths), found.scale, found.noise_of_one, found.growth)
    return _Known(np.array(found.places), np.array(found.weights), np.array(found.noise), alike)


@lru_cache(maxsize=8)
def _inverse(found: Discrepancy) -> Array:
    """Return (K + N)^-1."""
    known = _known(found)
    return np.linalg.inv(known.alike.of(known.places, known.places) + np.diag(known.noise**2))


def correction(found: Discrepancy, places: Array) -> Array:
    """Return the logarithm by which predictions at places of shape (..., features) are to be moved, shape (...)."""
    known, flat = _known(found), places.reshape(-1, places.shape[-1])
    parts = [known.alike.of(flat[i : i + CHUNK], known.places) @ known.weights for i in range(0, len(flat), CHUNK)]
    return np.concatenate(parts).reshape(places.shape[:-1])


def left_log_sd(found: Discrepancy | None, spread: float, places: Array) -> Array:
    """Return the spread of measurements around corrected predictions at places of shape (..., features), shape (...).

    Where nothing was learned, the same `spread` everywhere.
    """
    if found is None:
        return np.full(places.shape[:-1], spread)
    known, flat = _known(found), places.reshape(-1, places.shape[-1])
    unsure = np.full(len(flat), known.alike.scale**2)
    for i in range(0, len(flat), CHUNK):
        near = known.alike.of(flat[i : i + CHUNK], known.places)
        unsure[i : i + CHUNK] -= np.einsum("ij,ij->i", near @ _inverse(found), near)
    total = np.sqrt(np.maximum(unsure, 0.0) + known.alike.noise_at(flat) ** 2)
    return np.asarray(found.widened_by * total).reshape(places.shape[:-1])


def corrected(step: Step, memory: Memory, fit: Fit, places: Array) -> tuple[Step, Memory]:
    """Return a step and its memory with what a stack's fit learned; of the step as a purpose of its own."""
    if fit.step_discrepancy:
        more = np.expm1(correction(fit.step_discrepancy, places)) * step.seconds
        step = step._replace(breakdown={**step.breakdown, "unexplained": more})
    if fit.memory_discrepancy:
        factor = np.exp(correction(fit.memory_discrepancy, places))
        memory = memory._replace(ratio=factor * memory.ratio, base_bytes=factor * memory.base_bytes)
    return step, memory
