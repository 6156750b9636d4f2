"""Fit a stack's parameters to measured runs: priors, factors of families, devices and sources, robustly.

The model. A run gives up to three kinds of numbers, as far as they were measured: seconds per step; seconds that the
host takes to launch a step's work; and bytes, of the fullest device, of one of the first stage, or of all devices
together. One that ran out of memory would have needed no less than there is, and one that ran, no more. With parameters
theta in logarithms, and factors u on device seconds for each model family, accelerator and source of runs:

    log t = log step(theta, u_family + u_accelerator + u_source) + e    theta_j ~ N(log median_j, log_sd_j^2)
    log w = log launch(theta) + e                                       u ~ N(0, s^2), s of its block
    log M = log memory(theta) + e

with e Student's t, of a spread for each kind, beside which a run's own standard error is known: see `student_t`. The
spreads that a stack file states are those of predictions that never saw the run.
"""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate import student_t
from estimator.calibrate.asking import Asking, translated
from estimator.calibrate.residual_fit import learn, recorded
from estimator.calibrate.run_model import BYTES, KIND_OF, LAUNCHING, SECONDS, RunModel, has_families, labels_of
from estimator.predict.residual import Learned
from estimator.stack.fit import Family, Fit

PRIOR_SPREADS = np.array([0.05, 0.05, 0.05])
"""Of each kind.  # assumed: equal plans on equal machines spread by 1 to 6 %"""

FACTOR_LOG_SD = {"family": 0.10, "accelerator": 0.10, "source": 0.10}
"""Spread of the factors before runs were measured.

assumed: families differ by their kernels; accelerators reach the catalog's best rates to differing degrees; sources
differ in versions and in care.
"""

FEWEST_TO_LEARN = 20
"""Runs from which on what the model leaves unexplained is learned."""


UNSEEN_DEVICE_LOG_SD = 0.15
"""Further spread of device seconds on a device that the stack never ran on.

assumed: trainers reach 410 to 614 TFLOP/s on MI300X and MI325X for the same model, 0.20 in log, with software that
differs too (facts of published runs, 2024-2025).
"""


class RunsFit(NamedTuple):
    """What a fit to runs found."""

    solution: student_t.Solution
    found: dict[str, float]
    """Its values, by their names."""
    seconds: Learned | None
    """What the model leaves unexplained of seconds; None of too few runs."""
    bytes: Learned | None


class FitProblem:
    """Runs to be fitted, whole or in part, as if those of the model that are not among them had not been measured."""

    def __init__(self, model: RunModel, rows: Array) -> None:
        """Name what is to be found of the runs at these places of the model's."""
        self.model, self.rows = model, rows
        self.labels = labels_of([model.runs[i] for i in rows], model.habits)
        self.names = (*model.priors, *(label for labels in self.labels.values() for label in labels))
        taken = model.targets.of(np.isin(model.targets.rows, rows))
        self._num_read = np.bincount(KIND_OF[taken.quantity[taken.bound == 0]], minlength=len(PRIOR_SPREADS))
        self._places = np.array([model.names.index(name) for name in self.names])

    def belief(self) -> student_t.Belief:
        """Return the priors."""
        priors, kinds = self.model.priors.values(), list(self.labels)
        of_factors = [kind for kind, labels in self.labels.items() for _ in labels]
        sd = [prior.log_sd for prior in priors] + [FACTOR_LOG_SD[kind] for kind in of_factors]
        mean = [np.log(prior.median) for prior in priors] + [0.0] * len(of_factors)
        spread_of = [-1] * len(priors) + [kinds.index(kind) for kind in of_factors]
        return student_t.Belief(np.array(mean), np.array(sd), np.array(spread_of))

    def full(self, values: Array) -> Array:
        """Return values of shape (samples, names) in the model's names.

        Labels of other runs have the factors that `Stack.efficiencies` gives them: families none, accelerators and
        sources the mean of those of the runs.
        """
        found = np.zeros((len(values), len(self.model.names)))
        found[:, self._places] = values
        for kind in ("accelerator", "source"):
            own = [self.model.names.index(label) for label in self.labels[kind]]
            others = [self.model.names.index(label) for label in self.model.labels[kind] if label not in self.names]
            if own and others:
                found[:, others] = found[:, own].mean(axis=1, keepdims=True)
        return found

    def fit(self, rows: Array, like: RunsFit | None = None) -> Asking[RunsFit]:
        """Fit to the runs at some of the places; what the model leaves unexplained is learned where all tell enough.

        `like` another fit to some of the model's runs, the search begins where that ended, and errors are alike as it
        found them to be.
        """
        taken = self.model.targets.of(np.isin(self.model.targets.rows, rows))
        kind, read = KIND_OF[taken.quantity], taken.bound == 0
        measured = student_t.Measured(taken.logs, kind, taken.bound, taken.log_se)

        def told(logs: Array) -> Array:
            return np.asarray(logs[taken.quantity, :, taken.rows].T)

        start = None if like is None else np.array([like.found.get(name, 0.0) for name in self.names])
        asking = student_t.fitting(measured, self.belief(), PRIOR_SPREADS, start)
        solution = yield from translated(asking, self.full, told)

        def learned(of: int) -> Learned | None:
            own = (kind == of) & read
            if self._num_read[of] < FEWEST_TO_LEARN or not own.any():
                return None
            before = like and (like.seconds if of == SECONDS else like.bytes)
            places, errors = self.model.places[taken.rows[own]], solution.errors[own]
            return learn(places, errors, float(solution.spreads[of]), before.alike if before else None)

        values = dict(zip(self.names, solution.values.tolist(), strict=True))
        return RunsFit(solution, values, learned(SECONDS), learned(BYTES))

    def spreads_between(self, solution: student_t.Solution) -> dict[str, float]:
        """Return the spread between the factors of each kind of label, as assumed where none was found."""
        widths = dict(zip(self.names, solution.prior_sd.tolist(), strict=True))
        return {kind: widths[labels[0]] if labels else FACTOR_LOG_SD[kind] for kind, labels in self.labels.items()}

    def stated(self, found: RunsFit) -> Fit:
        """Return a fit to all of the runs as a stack states it; its spreads are those of the runs fitted."""
        runs, solution, count = [self.model.runs[i] for i in self.rows], found.solution, len(self.model.priors)
        sds = np.sqrt(np.diag(solution.covariance))
        own = [{run.shape.family, run.machine.accelerator.id, run.source} for run in runs]
        factors = {
            label: Family(
                log_factor=float(solution.values[i]),
                log_sd=float(sds[i]),
                runs=max(sum(label in labels for labels in own), 1),
            )
            for i, label in enumerate(self.names[count:], start=count)
        }
        spread = self.spreads_between(solution)
        families = self.labels["family"]
        return Fit(
            accelerators=tuple(sorted({run.machine.accelerator.id for run in runs})),
            names=self.names,
            log_values=tuple(solution.values.tolist()),
            covariance=tuple(tuple(row) for row in solution.covariance.tolist()),
            families={label: factors.pop(label) for label in families},
            family_log_sd=spread["family"] if has_families(self.model.habits) else 0.0,
            factors=factors,
            sources=tuple(sorted({run.source for run in runs})),
            step_log_sd=float(solution.spreads[SECONDS]),
            launch_log_sd=float(solution.spreads[LAUNCHING]),
            memory_log_sd=float(solution.spreads[BYTES]),
            device_log_sd=spread["accelerator"] if self.labels["accelerator"] else UNSEEN_DEVICE_LOG_SD,
            degrees_of_freedom=student_t.DEGREES_OF_FREEDOM,
            step_residual=recorded(found.seconds) if found.seconds else None,
            memory_residual=recorded(found.bytes) if found.bytes else None,
        )
