"""What the model of a step leaves unexplained, learned from the runs that a stack was fitted to.

The logarithm of measured over predicted is taken as a smooth function of the plan, a Gaussian process of mean 0
(Kennedy and O'Hagan 2001, doi:10.1111/1467-9868.00294: the model inadequacy): runs like a measured one inherit its
error and are known the better for it; far from all of them the model stands as it is, with a wider interval.

    r(x) = d(x) + e,  k(x, y) = s^2 (1 + q + q^2 / 3) exp(-q),  q^2 = 5 sum_i ((x_i - y_i) / l_i)^2
    mean k(x, X) w,  variance s^2 - k(x, X) (K + N)^-1 k(X, x) + n(x)^2,  w = (K + N)^-1 r

k is Matern's of 5/2 (Rasmussen and Williams 2006, eq. 4.17; predictions eq. 2.25 and 2.26). How far errors stay alike
along each feature, l, how large they are, s, and what no feature explains, n, which grows with the devices that a step
waits for, are those that make the residuals most probable (eq. 5.8, 5.9), with priors. Outliers are weighted down as in
`student_t`.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.formulas.inputs import StepInputs
from estimator.formulas.memory import Memory
from estimator.formulas.step import StepTime
from estimator.stack.fit import Fit, ResidualModel

CHUNK = 4096
"""Runs whose distances are held at once: with a thousand measured ones, 32 MiB."""

FEATURES = (
    ("tensor-parallel degree", 1.0),
    ("pipeline stages", 1.0),
    ("chunks per stage", 1.0),
    ("replicas", 1.0),
    ("expert-parallel degree", 1.0),
    ("rows of a micro-batch", 1.0),
    ("micro-batches", 1.0),
    ("sequence length", 1.0),
    ("hidden size", 2.0),
    ("peak rate of the device", 2.0),
    ("sharded, or not", 1.5),
    ("full recomputation, or not", 1.5),
    ("stalling collectives, or not", 1.5),
    ("in 8 bits, or not", 1.5),
    ("tensor parallel over nodes, or not", 2.0),
    ("a pipeline, or none", 2.0),
)
"""What `features` are, and how far apart a doubling, or one kind from the other, is.

assumed: what changes an algorithm (a pipeline, shards, groups over several nodes) weighs as a doubling or two; the
width of the model and the rate of the device weigh double, since few of them are measured
"""

DEVICES = (0, 1, 3)
"""Features whose sum is the doublings of devices: tensor parallel, stages, replicas."""


def features(inputs: StepInputs) -> Array:
    """Return where runs lie, shape (..., features): see `FEATURES`."""
    shape, seq_len, plan, machine, habits = inputs
    columns = [
        np.log2(plan.tp),
        np.log2(plan.num_stages),
        np.log2(plan.virtual_stages),
        np.log2(plan.replicas),
        np.log2(plan.ep),
        np.log2(plan.batch_per_device),
        np.log2(plan.num_micro_batches),
        np.log2(seq_len),
        np.log2(shape.hidden_size),
        np.log2(machine.accelerator.usual_flop_per_s / 1e12),
        plan.zero_stage > 0,
        plan.recomputes("full"),
        plan.stalls,
        habits.matmul_precision == "fp8",
        plan.tp > plan.devices_per_node,
        plan.num_stages > 1,
    ]
    counted = [np.asarray(column, dtype=np.float64) for column in np.broadcast_arrays(*columns)]
    return np.asarray(np.stack(counted, axis=-1) * np.array([unit for _, unit in FEATURES]))


class Alike(NamedTuple):
    """How errors are alike: `lengths` of shape (features,), and spreads, in logarithms."""

    lengths: Array
    scale: float
    noise: float
    """What no feature explains, on one device."""
    growth: float
    """Of that, per doubling of devices."""
    most_doublings: float = np.inf
    """Of devices, beyond which it grows no more: none were measured."""

    def noise_at(self, places: Array) -> Array:
        """Return what no feature explains, shape (places,)."""
        doublings = np.minimum(places[:, DEVICES].sum(axis=1), self.most_doublings)
        return np.asarray(self.noise * np.exp(self.growth * doublings))

    def of(self, places: Array, others: Array) -> Array:
        """Return k of each pair, shape (places, others)."""
        q = distances(places / self.lengths, others / self.lengths)
        return np.asarray(self.scale**2 * (1 + q + q**2 / 3) * np.exp(-q))

    def rounded(self) -> "Alike":
        """Return them as a stack file holds them."""
        return Alike(self.lengths.round(4), round(self.scale, 6), round(self.noise, 6), round(self.growth, 6))


def distances(places: Array, others: Array) -> Array:
    """Return q of each pair of places, given in lengths."""
    squares = (places**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2.0 * places @ others.T
    return np.asarray(np.sqrt(5.0 * np.maximum(squares, 0.0)))


class _Known(NamedTuple):
    """What was learned, as arrays."""

    places: Array
    weights: Array
    noise: Array
    alike: Alike


@lru_cache(maxsize=8)
def _known(found: ResidualModel) -> _Known:
    most = float(np.array(found.places)[:, DEVICES].sum(axis=1).max())
    alike = Alike(np.array(found.lengths), found.scale, found.noise_of_one, found.growth, most)
    return _Known(np.array(found.places), np.array(found.weights), np.array(found.noise), alike)


@lru_cache(maxsize=8)
def _inverse(found: ResidualModel) -> Array:
    """Return (K + N)^-1."""
    known = _known(found)
    return np.linalg.inv(known.alike.of(known.places, known.places) + np.diag(known.noise**2))


def correction(found: ResidualModel, places: Array) -> Array:
    """Return the logarithm by which predictions at places of shape (..., features) are to be moved, shape (...)."""
    known, flat = _known(found), places.reshape(-1, places.shape[-1])
    parts = [known.alike.of(flat[i : i + CHUNK], known.places) @ known.weights for i in range(0, len(flat), CHUNK)]
    return np.concatenate(parts).reshape(places.shape[:-1])


def residual_log_sd(found: ResidualModel | None, spread: float, places: Array) -> Array:
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


def corrected(step: StepTime, memory: Memory, fit: Fit, places: Array) -> tuple[StepTime, Memory]:
    """Return a step and its memory with what a stack's fit learned; of the step as a purpose of its own."""
    if fit.step_residual:
        more = np.expm1(correction(fit.step_residual, places)) * step.seconds
        step = step._replace(breakdown={**step.breakdown, "unexplained": more})
    if fit.memory_residual:
        factor = np.exp(correction(fit.memory_residual, places))
        memory = memory._replace(ratio=factor * memory.ratio, base_bytes=factor * memory.base_bytes)
    return step, memory
