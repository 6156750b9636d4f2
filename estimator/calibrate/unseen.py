"""Runs as predicted by a fit that did not see them: how far off, and the spreads that it stated."""

from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.asking import Asking
from estimator.calibrate.fit_runs import FitProblem, RunsFit
from estimator.calibrate.run_model import BYTES, KIND_OF, SECONDS, RunModel
from estimator.stack.fit import covariance_root


class Errors(NamedTuple):
    """Predictions less measurements of runs that the fit did not see, in logarithms, and the spreads it stated."""

    values: Array
    residual: Array
    """Of what the model leaves unexplained: `residual.residual_log_sd`."""
    unsure: Array
    """Of the model's parameters."""
    measured: Array
    """Standard errors of the measurements themselves."""

    @property
    def known(self) -> Array:
        """Spreads that are told apart from what the model leaves unexplained."""
        return np.hypot(self.unsure, self.measured)


NO_ERRORS = Errors(*np.zeros((4, 0)))


class Unseen(NamedTuple):
    """Predictions of a model's runs, arrays of shape (quantities, runs); 0 of runs that were not predicted."""

    logs: Array
    residual: Array
    unsure: Array

    def errors(self, quantity: Array, rows: Array, truth: Array, log_se: Array) -> Errors:
        """Return the errors of some quantities of some runs, of which the truth is known so well."""
        away = self.logs[quantity, rows] - truth
        return Errors(away, self.residual[quantity, rows], self.unsure[quantity, rows], log_se)

    def measured(self, model: RunModel, kind: int, rows: Array) -> tuple[Errors, Array]:
        """Return the errors of all measurements of a kind that were made of some runs, and the run of each."""
        taken = model.targets
        own = taken.of((kind == KIND_OF[taken.quantity]) & (taken.bound == 0) & np.isin(taken.rows, rows))
        return self.errors(own.quantity, own.rows, own.logs, own.log_se), own.rows


def predict_unseen(problem: FitProblem, rows: Array, out: Array, like: RunsFit | None = None) -> Asking[Unseen]:
    """Return predictions of the runs `out` by a fit to `rows`, and the spreads of what is left, and of parameters.

    `like` another fit, the search begins where that ended, and errors are alike as it found them to be.
    """
    found = yield from problem.fit(rows, like)
    center, moves = found.solution.values, covariance_root(found.solution.covariance)
    asked = yield problem.full(np.concatenate([center[None, :], center + moves, center - moves]))
    logs, forward, backward = np.split(asked[:, :, out], [1, 1 + len(moves)], axis=1)
    predicted, unsure = logs[:, 0].copy(), np.sqrt((((forward - backward) / 2) ** 2).sum(axis=1))
    residual = np.broadcast_to(found.solution.spreads[KIND_OF][:, None], predicted.shape).copy()
    for kind, learned in ((SECONDS, found.seconds), (BYTES, found.bytes)):
        if learned:
            places = problem.model.places[out]
            predicted[kind == KIND_OF] += learned.correction(places)
            residual[kind == KIND_OF] = learned.log_sd(places)
    whole = Unseen(*np.zeros((3, len(KIND_OF), len(problem.model.runs))))
    for all_of, one in zip(whole, (predicted, residual, unsure), strict=True):
        all_of[:, out] = one
    return whole
