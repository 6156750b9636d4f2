"""What the formulas say of measured runs: the quantities that were measured of them, for any parameters at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.batches import Batch, batched
from estimator.runs.measured import Run
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.habits import Habits
from estimator.stack.stack import Prior

STEP, LAUNCH, READ, TOTAL, PEAK = range(5)
"""Quantities that are predicted of a run: seconds of a step, and of launching it; bytes as they were read of a device,
those of all devices together, and those of the fullest device.
"""

SECONDS, LAUNCHING, BYTES = range(3)
KIND_OF = np.array([SECONDS, LAUNCHING, BYTES, BYTES, BYTES])
"""Of each quantity the kind of measurement, each of which has a spread of its own."""

MEMORY_PARAMETERS = (
    "memory_ratio", "workspace_bytes", "gathered_bytes", "flight_bytes", "base_bytes", "processor_memory_ratio",
    "processor_bytes",
)  # fmt: skip
"""On which no seconds depend, as no bytes do on the others."""


class Targets(NamedTuple):
    """The numbers of runs that a fit takes, one an entry."""

    rows: Array
    """Place of its run among the runs."""
    quantity: Array
    logs: Array
    log_se: Array
    """Its own standard error."""
    bound: Array
    """1 of a run that ran out of memory, -1 of one that ran and was not read, 0 of what was measured."""

    def of(self, chosen: Array) -> "Targets":
        """Return some of them."""
        return Targets(*(column[chosen] for column in self))


def targets(runs: Sequence[Run], usable_fraction: float) -> Targets:
    """Return what a fit takes of runs: seconds of the healthy, bytes of all, and what ran out of memory or did not."""
    found: list[tuple[int, int, float, float, int]] = []
    for i, run in enumerate(runs):
        if run.tells_speed and run.step_s is not None:
            found.append((i, STEP, run.step_s, run.step_log_se, 0))
        if run.launch_windows_s and not run.why_unhealthy:
            found.append((i, LAUNCH, float(np.mean(run.launch_windows_s)), 0.0, 0))
        if run.reserved_bytes is not None:
            found.append((i, READ, run.reserved_bytes, 0.0, 0))
        elif run.total_bytes is not None:
            found.append((i, TOTAL, run.total_bytes, 0.0, 0))
        usable = usable_fraction * run.machine.accelerator.hbm_bytes
        if run.fits is False:
            found.append((i, PEAK, usable, 0.0, 1))
        elif run.fits and run.reserved_bytes is None and run.total_bytes is None:
            found.append((i, PEAK, usable, 0.0, -1))
    rows, quantity, values, log_se, bound = np.array(found, dtype=np.float64).reshape(-1, 5).T
    return Targets(rows.astype(np.int64), quantity.astype(np.int64), np.log(values), log_se, bound.astype(np.int64))


def has_families(habits: Habits) -> bool:
    """Whether model families have factors: where kernels differ by family, as the habits tell of attention."""
    return habits.fused_attention not in ("always", ())


def labels_of(runs: Sequence[Run], habits: Habits) -> dict[str, tuple[str, ...]]:
    """Return the labels that have factors, by their kind: those of which several were measured.

    Of one alone, its factor and the stack's own efficiencies are the same.
    """
    found = {
        "family": {run.shape.family for run in runs} if has_families(habits) else set(),
        "accelerator": {run.machine.accelerator.id for run in runs},
        "source": {run.source for run in runs},
    }
    return {kind: tuple(sorted(labels)) if len(labels) > 1 else () for kind, labels in found.items()}


class RunModel:
    """What the formulas say of one trainer's runs, by parameters and factors; nothing of it is counted up twice."""

    def __init__(self, runs: Sequence[Run], habits: Habits, priors: dict[str, Prior]) -> None:
        """Group the runs into batches, and name what they depend on."""
        self.runs, self.habits, self.priors = runs, habits, priors
        self.batches = batched(runs, habits)
        self.targets = targets(runs, habits.usable_memory_fraction)
        places = {i: place for batch in self.batches for i, place in zip(batch.rows, batch.places(), strict=True)}
        self.places = np.array([places[i] for i in range(len(runs))])
        self.labels = labels_of(runs, habits)
        self.names = (*priors, *(label for labels in self.labels.values() for label in labels))
        self._of_seconds = tuple(name for name in priors if name not in MEMORY_PARAMETERS)
        self._asked = np.zeros((len(KIND_OF), len(runs)), dtype=bool)
        self._asked[self.targets.quantity, self.targets.rows] = True
        self._asked[PEAK] |= [run.fits is not None for run in runs]

    def efficiencies(self, values: Array, labels: Sequence[str]) -> Efficiencies:
        """Return parameters of shape (samples, 1) from values of shape (samples, names), with the labels' factors."""
        columns = dict(zip(self.names, np.asarray(values).T[:, :, None], strict=True))
        factor = np.exp(sum((columns[label] for label in labels if label in columns), np.zeros((len(values), 1))))
        return Efficiencies(**{name: np.exp(columns[name]) for name in self.priors}, family_factor=factor)

    def predict(self, values: Array) -> Array:
        """Return the logarithms of the quantities, shape (quantities, samples, runs), of values (samples, names).

        0 where no run of a batch needs it.
        """
        logs, places = np.zeros((len(KIND_OF), len(values), len(self.runs))), {n: i for i, n in enumerate(self.names)}
        known: dict[tuple[str, ...], tuple[Array, Array]] = {}

        def distinct(names: tuple[str, ...]) -> tuple[Array, Array]:
            """Return the samples that differ in some names, and of each sample which of those it is like."""
            if names not in known:
                columns = [places[name] for name in names if name in places]
                _, first, like = np.unique(values[:, columns], axis=0, return_index=True, return_inverse=True)
                known[names] = values[first], like.ravel()
            return known[names]

        for batch in self.batches:
            asked = np.flatnonzero(self._asked[:, batch.rows].any(axis=1))
            for quantities, names, predicted in (
                ((STEP, LAUNCH), (*self._of_seconds, *batch.labels), _seconds),
                ((READ, TOTAL, PEAK), MEMORY_PARAMETERS, _bytes),
            ):
                wanted = [quantity for quantity in quantities if quantity in asked]
                if wanted:
                    samples, like = distinct(names)
                    found = predicted(batch, self.efficiencies(samples, batch.labels), wanted)
                    for quantity, one in found.items():
                        each = np.log(np.broadcast_to(one, (len(samples), len(batch.rows))))
                        logs[quantity][:, batch.rows] = each[like]
        return logs


def _seconds(batch: Batch, efficiencies: Efficiencies, wanted: Sequence[int]) -> dict[int, Array]:
    step = batch.step(efficiencies)
    return {quantity: step.seconds if quantity == STEP else step.launch_s for quantity in wanted}


def _bytes(batch: Batch, efficiencies: Efficiencies, wanted: Sequence[int]) -> dict[int, Array]:
    memory = batch.memory(efficiencies)
    found = {READ: batch.read_bytes(memory), PEAK: memory.peak_bytes}
    if TOTAL in wanted:
        found[TOTAL] = batch.total_bytes(efficiencies)
    return {quantity: found[quantity] for quantity in wanted}
