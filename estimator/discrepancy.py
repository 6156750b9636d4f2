"""What the model of a step leaves unexplained, learned from the runs that a stack was fitted to.

The logarithm of measured over predicted is taken as a smooth function of the plan, a Gaussian process of mean 0
(Kennedy and O'Hagan 2001, doi:10.1111/1467-9868.00294: the model inadequacy): runs like a measured one inherit its
error, and far from all of them, more than a few doublings in any count, the model stands as it is. Outliers are
weighted down as in `robust`.

    d(x) = sum_j w_j k(x, x_j),  k(x, y) = SCALE^2 exp(-|x - y|^2 / (2 LENGTH^2)),  w = (K + N)^-1 residuals
"""

import numpy as np

from estimator.counts import Array
from estimator.layout import Layout
from estimator.machine import Machine
from estimator.memory import Memory
from estimator.robust import DEGREES_OF_FREEDOM
from estimator.shape import Shape
from estimator.stack import Discrepancy, Fit
from estimator.step import Step

LENGTH = 2.5
"""Distance over which errors stay alike, in `features`.

measured: of 1.5, 2.5 and 4 the one with the least errors of nanotron's runs, half predicted from the other half
"""

SCALE = 0.1
"""How large unexplained errors are, in logarithms.  # measured: of 0.05, 0.1 and 0.2, as above"""

ROUNDS = 5
"""Of weighting outliers down; the weights hardly move after."""

CHUNK = 4096
"""Runs whose distances are held at once: with a thousand measured ones, 32 MiB."""


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


def likeness(places: Array, others: Array) -> Array:
    """Return k of each pair, shape (places, others)."""
    squares = (places**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2.0 * places @ others.T
    return np.asarray(SCALE**2 * np.exp(-np.maximum(squares, 0.0) / (2.0 * LENGTH**2)))


def learn(places: Array, residuals: Array, spread: float) -> Discrepancy:
    """Return what residuals, measured less predicted in logarithms, of some spread, show at their places."""
    covariance, precision = likeness(places, places), np.ones(len(residuals))
    for _ in range(ROUNDS):
        weights = np.linalg.solve(covariance + np.diag(spread**2 / precision), residuals)
        left = residuals - covariance @ weights
        precision = (DEGREES_OF_FREEDOM + 1) / (DEGREES_OF_FREEDOM + (left / spread) ** 2)
    rounded = tuple(tuple(row) for row in places.round(4).tolist())
    return Discrepancy(places=rounded, weights=tuple(weights.round(5).tolist()))


def correction(found: Discrepancy, places: Array) -> Array:
    """Return the logarithm by which predictions at places of shape (..., features) are to be moved, shape (...)."""
    known, weights = np.array(found.places), np.array(found.weights)
    flat = places.reshape(-1, places.shape[-1])
    parts = [likeness(flat[i : i + CHUNK], known) @ weights for i in range(0, len(flat), CHUNK)]
    return np.concatenate(parts).reshape(places.shape[:-1])


def corrected(step: Step, memory: Memory, fit: Fit, places: Array) -> tuple[Step, Memory]:
    """Return a step and its memory with what a stack's fit learned; of the step as a purpose of its own."""
    if fit.step_discrepancy:
        more = np.expm1(correction(fit.step_discrepancy, places)) * step.seconds
        step = step._replace(breakdown={**step.breakdown, "unexplained": more})
    if fit.memory_discrepancy:
        factor = np.exp(correction(fit.memory_discrepancy, places))
        memory = memory._replace(ratio=factor * memory.ratio, base_bytes=factor * memory.base_bytes)
    return step, memory
