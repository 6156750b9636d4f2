"""A stack from the runs of tables: the fit, and spreads of predictions that never saw the run."""

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.calibrate.fit_runs import FitProblem
from estimator.calibrate.student_t import PRIOR_MEASUREMENTS
from estimator.runs.measured import Run
from estimator.stack.fit import Fit, interval_ratio
from estimator.stack.stack import MeasuredTable, Premises, Stack, Startup, Window

NUM_FOLDS = 5

FEWEST_HELD_OUT = 20
"""Held-out errors from which on a spread is read off them; with fewer, they are pooled with what is assumed."""

ASSUMED_SPREADS = {"step_log_sd": 0.1, "memory_log_sd": 0.2}
"""Spreads of predictions of runs that were not seen, worth four runs.

assumed: trainers with many runs spread by 0.05 to 0.1 in seconds; of bytes reserved, counts alone are off by 30 to 40 %
"""

COVERAGE = 0.9

LEAST_WIDENING = 0.7
"""Of spreads that turn out too wide.  # assumed: by more than this only where errors are few, and small by accident"""


def folds(count: int, num_folds: int, seed: int = 0) -> Array:
    """Return for each of so many runs the part that it is in: random, of sizes that differ by one at most."""
    return np.random.default_rng(seed).permutation(np.arange(count) % num_folds)


class Errors(NamedTuple):
    """Predictions less measurements of runs that the fit did not see, in logarithms, and the spreads it stated."""

    values: Array
    residual: Array
    """Of what the model leaves unexplained: `residual.residual_log_sd`."""
    unsure: Array
    """Of the model's parameters."""


class HeldOut(NamedTuple):
    """Runs predicted by fits that did not see them, and which of them fit."""

    step: Errors
    memory: Errors
    called: Errors
    """Of the runs that ran or ran out of memory, its values the logarithms of predicted over all bytes of a device."""
    fits: Array


_NO_ERRORS = Errors(np.zeros(0), np.zeros(0), np.zeros(0))
NONE_HELD_OUT = HeldOut(_NO_ERRORS, _NO_ERRORS, _NO_ERRORS, np.zeros(0, dtype=bool))


def held_out(problem: FitProblem, part: Array, like: Fit | None = None) -> HeldOut:
    """Return each part of the runs as predicted by a fit to the others, each like the one given."""
    count = len(problem.runs)
    values, residual, unsure = np.zeros((3, 2, count))
    for one in np.unique(part):
        out = np.flatnonzero(part == one)
        fit = problem.fit(np.flatnonzero(part != one), like).fit
        values[:, out] = np.array(problem.predict_whole(fit, out))[:, out]
        residual[:, out] = np.array(problem.residual_log_sds(fit))[:, out]
        unsure[:, out] = np.array(problem.unsure_log_sds(fit, out))[:, out]
    wanted, known = problem.targets, [i for i, run in enumerate(problem.runs) if run.fits is not None]
    read, was_read = wanted.memory_rows, wanted.bound == 0
    capacity = np.log(np.array([problem.runs[i].machine.accelerator.hbm_bytes for i in known]))

    def errors(kind: int, rows: Array, truth: Array) -> Errors:
        return Errors(values[kind][rows] - truth, residual[kind][rows], unsure[kind][rows])

    return HeldOut(
        errors(0, wanted.step_rows, wanted.log_steps),
        errors(1, read[was_read], wanted.log_bytes[was_read]),
        errors(1, np.array(known, dtype=np.int64), capacity),
        np.array([problem.runs[i].fits for i in known], dtype=bool),
    )


def usable_fraction(runs: HeldOut, widened_by: Num, degrees_of_freedom: int) -> float | None:
    """Return the part of the memory from which on runs are likelier than not to run out of it, None of too few.

    Of a grid the one that makes the labels most probable, each run's memory Student's t around its prediction.
    """
    from scipy.special import stdtr  # noqa: PLC0415 - slow to import

    if min(runs.fits.sum(), (~runs.fits).sum()) < FEWEST_HELD_OUT:
        return None
    grid = np.arange(0.7, 1.0, 0.005)
    log_sd = np.hypot(widened_by * runs.called.residual, runs.called.unsure)
    margin = (np.log(grid)[:, None] - runs.called.values) / log_sd
    right = stdtr(degrees_of_freedom, np.where(runs.fits, margin, -margin))
    return float(grid[np.log(np.maximum(right, 1e-12)).sum(axis=1).argmax()].round(3))


def conformal_log_sd(errors: Array, degrees_of_freedom: int) -> float:
    """Return the spread whose 90 % interval holds 90 % of such errors.

    Of n errors, the smallest size that ceil(0.9 (n + 1)) of them do not exceed, over the t quantile (split conformal
    prediction: Vovk, Gammerman, Shafer 2005; Lei et al. 2018, arXiv:1604.04173, section 2).

    >>> errors = np.linspace(-1, 1, 2001)
    >>> round(conformal_log_sd(errors, 10**6), 2)  # 0.9 / 1.645
    0.55
    """
    sizes = np.sort(np.abs(errors))
    place = min(int(np.ceil(COVERAGE * (len(sizes) + 1))), len(sizes)) - 1
    return float(sizes[place] / np.log(interval_ratio(1.0, degrees_of_freedom)))


def held_out_log_sd(errors: Array, assumed: float, degrees_of_freedom: int) -> float:
    """Return the spread of predictions of runs that were not seen, from errors of such, however few.

    >>> held_out_log_sd(np.zeros(0), 0.1, 4)
    0.1
    """
    if len(errors) >= FEWEST_HELD_OUT:
        return conformal_log_sd(errors, degrees_of_freedom)
    return float(np.sqrt(((errors**2).sum() + PRIOR_MEASUREMENTS * assumed**2) / (len(errors) + PRIOR_MEASUREMENTS)))


def widening(errors: Errors, degrees_of_freedom: int) -> float:
    """Return the ratio by which the spreads left are to be widened so that 90 % intervals hold 90 % of such errors.

    Each error needs the ratio c with |e| = t hypot(c residual, unsure), t the quantile: as `conformal_log_sd`.

    >>> one = np.ones(1999)
    >>> round(widening(Errors(np.linspace(0, 2, 1999), one, 0 * one), 10**6), 2)  # 1.8 / 1.645
    1.09
    """
    quantile = np.log(interval_ratio(1.0, degrees_of_freedom))
    needed = np.maximum((errors.values / quantile) ** 2 - errors.unsure**2, 0.0)
    return max(conformal_log_sd(np.sqrt(needed) / errors.residual * quantile, degrees_of_freedom), LEAST_WIDENING)


def fit_stack_to_runs(
    premises: Premises, runs: Sequence[Run], origin: dict[str, tuple[str, Sequence[str]]], num_folds: int = NUM_FOLDS
) -> Stack:
    """Return the stack that runs of its trainer, and the premises, lead to.

    Args:
        premises: habits and priors.
        runs: runs, of which those of other trainers are not looked at.
        origin: of each table its name, its digest, and the digests of its runs.
        num_folds: parts of the runs, each predicted by a fit to the others, from which the spreads are found.

    Raises:
        ValueError: there is no run of the trainer that was timed.
    """
    own = [run for run in runs if premises.is_of(run.trainer)]
    if not any(run.tells_speed for run in own):
        raise ValueError(f"fit: no healthy timed run of trainer {premises.trainer!r}; give a table that has some")
    problem = FitProblem(own, premises.habits, premises.priors)
    fit = problem.fit(np.arange(len(own))).fit
    part = folds(len(own), min(num_folds, len(own)))
    unseen = held_out(problem, part, fit) if len(own) > 1 else NONE_HELD_OUT
    known = Counter(run.digest for run in own)
    log = premises.log
    return Stack.model_validate(
        premises.model_dump(by_alias=True)
        | {
            "startup": Startup(
                load_s=log.load_s, request_s=0.0, search_s_per_candidate=0.0, first_step_s=0.0,
                evidence="assumed: tables of runs say nothing of it",
            ),
            "window": Window(times=log.times, slow_fraction=0.0, slow_ratio=1.0, evidence=log.evidence["times"].text),
            "fit": fit.model_copy(update=_spreads(fit, unseen)),
            "tables": tuple(
                MeasuredTable(name=name, sha256=sha256, rows=len(taken), digests=" ".join(taken))
                for name, (sha256, digests) in origin.items()
                if (taken := [digest for digest in digests if digest in known])
            ),
            "versions": {name: version(name) for name in ("foretrain", "numpy", "scipy")},
        }
    )  # fmt: skip


def _spreads(fit: Fit, unseen: HeldOut) -> dict[str, Any]:
    """Return the fields of a fit that speak of predictions of runs which were not seen."""
    dof = fit.degrees_of_freedom
    log_sds = {
        name: held_out_log_sd(errors.values, ASSUMED_SPREADS[name], dof)
        for name, errors in (("step_log_sd", unseen.step), ("memory_log_sd", unseen.memory))
    }
    learned = {
        name: found.model_copy(update={"widened_by": widening(errors, dof)})
        for name, found, errors in (
            ("step_residual", fit.step_residual, unseen.step),
            ("memory_residual", fit.memory_residual, unseen.memory),
        )
        if found
    }
    memory = learned.get("memory_residual")
    ratio = memory.widened_by if memory else log_sds["memory_log_sd"] / unseen.called.residual
    return {**log_sds, **learned, "usable_memory_fraction": usable_fraction(unseen, ratio, dof)}
