"""A stack from measured runs: the fit, and spreads of predictions that never saw the run."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np

from estimator.arrays import Array, Num
from estimator.calibrate.asking import Asking, answered, together
from estimator.calibrate.fit_runs import FitProblem
from estimator.calibrate.host import host_paces, startup_of
from estimator.calibrate.reach import COVERAGE, left_out, reach_of
from estimator.calibrate.run_model import BYTES, KIND_OF, LAUNCHING, PEAK, SECONDS, RunModel
from estimator.calibrate.student_t import PRIOR_MEASUREMENTS
from estimator.calibrate.unseen import Errors, Unseen, predict_unseen
from estimator.runs.measured import Run
from estimator.stack.fit import Fit, interval_ratio
from estimator.stack.habits import Habits
from estimator.stack.measured import MeasuredKind
from estimator.stack.stack import MeasuredTable, Premises, Stack, Window
from hardware.models import MatmulPrecision

NUM_FOLDS = 5

FEWEST_HELD_OUT = 20
"""Held-out errors from which on a spread is read off them; with fewer, they are pooled with what is assumed."""

ASSUMED_SPREADS = {"step_log_sd": 0.1, "launch_log_sd": 0.05, "memory_log_sd": 0.1}
"""Spreads of predictions of runs that were not seen, what parameters are unsure of apart, worth four runs.

measured: of stacks with many runs, held out by halves, 90 % are off by less than 5 to 27 % in seconds, and by less than
8 to 25 % in bytes. assumed: a mean of the host's seconds is known as well as one of steps.
"""

LEAST_WIDENING = 0.7
"""Of spreads that turn out too wide.  # assumed: by more than this only where errors are few, and small by accident"""


def folds(count: int, num_folds: int, seed: int = 0) -> Array:
    """Return for each of so many runs the part that it is in: random, of sizes that differ by one at most."""
    return np.random.default_rng(seed).permutation(np.arange(count) % num_folds)


class HeldOut(NamedTuple):
    """Runs predicted by fits that did not see them, and which of them fit."""

    step: Errors
    launch: Errors
    memory: Errors
    called: Errors
    """Of the runs that ran or ran out of memory, its values the logarithms of predicted over all bytes of a device."""
    fits: Array


def held_out(problem: FitProblem, part: Array) -> Asking[HeldOut]:
    """Return the problem's runs, each part of them as predicted by a fit to the others."""
    model, rows = problem.model, problem.rows
    outs = [rows[part == one] for one in np.unique(part)] if len(rows) > 1 else []
    found = yield from together([predict_unseen(problem, np.setdiff1d(rows, out), out) for out in outs])
    unseen = Unseen(*sum(map(np.stack, found), np.zeros((3, len(KIND_OF), len(model.runs)))))
    predicted = np.concatenate([*outs, np.zeros(0, dtype=np.int64)])
    known = np.array([i for i in np.sort(predicted) if model.runs[i].fits is not None], dtype=np.int64)
    capacity = np.log(np.array([model.runs[i].machine.accelerator.hbm_bytes for i in known]))
    step, launch, memory = (unseen.measured(model, kind, predicted)[0] for kind in (SECONDS, LAUNCHING, BYTES))
    return HeldOut(
        step,
        launch,
        memory,
        unseen.errors(np.full(len(known), PEAK), known, capacity, np.zeros(len(known))),
        np.array([model.runs[i].fits for i in known], dtype=bool),
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


def held_out_log_sd(errors: Errors, assumed: float, degrees_of_freedom: int) -> float:
    """Return the spread of predictions of runs that were not seen, from errors of such, however few.

    Less the part of their squares that is the measurements' own. Of few, it is the mean of what the parameters do not
    explain of their squares either, and of what is assumed.

    >>> held_out_log_sd(Errors(*np.zeros((4, 0))), 0.1, 4)
    0.1
    """
    if len(errors.values) >= FEWEST_HELD_OUT:
        sizes = np.sqrt(np.maximum(errors.values**2 - errors.measured**2, 0.0))
        return conformal_log_sd(sizes, degrees_of_freedom)
    left = np.maximum(errors.values**2 - errors.known**2, 0.0).sum()
    return float(np.sqrt((left + PRIOR_MEASUREMENTS * assumed**2) / (len(errors.values) + PRIOR_MEASUREMENTS)))


def widening(errors: Errors, degrees_of_freedom: int) -> float:
    """Return the ratio by which the spreads left are to be widened so that 90 % intervals hold 90 % of such errors.

    Each error needs the ratio c with |e| = t hypot(c residual, known), t the quantile: as `conformal_log_sd`.

    >>> one = np.ones(1999)
    >>> round(widening(Errors(np.linspace(0, 2, 1999), one, 0 * one, 0 * one), 10**6), 2)  # 1.8 / 1.645
    1.09
    """
    quantile = np.log(interval_ratio(1.0, degrees_of_freedom))
    needed = np.maximum((errors.values / quantile) ** 2 - errors.known**2, 0.0)
    return max(conformal_log_sd(np.sqrt(needed) / errors.residual * quantile, degrees_of_freedom), LEAST_WIDENING)


def fit_stack_to_runs(
    premises: Premises, runs: Sequence[Run], origin: Mapping[str, tuple[str, Sequence[str]]], num_folds: int = NUM_FOLDS
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
    (stack,) = fit_stacks(premises, own, [np.arange(len(own))], num_folds)
    known = {run.digest for run in own}
    tables = tuple(
        MeasuredTable(name=name, sha256=sha256, rows=len(taken), digests=" ".join(taken))
        for name, (sha256, digests) in origin.items()
        if (taken := [digest for digest in digests if digest in known])
    )
    return stack.model_copy(update={"tables": tables})


def fit_stacks(premises: Premises, runs: Sequence[Run], parts: Sequence[Array], num_folds: int) -> list[Stack]:
    """Return the stack that each part of a trainer's runs leads to, as if the others had not been measured."""
    model = RunModel(runs, premises.habits, premises.priors)
    problems = [FitProblem(model, part) for part in parts]
    found = answered(together([_calibrated(problem, num_folds) for problem in problems]), model.predict)
    return [
        _stack(premises, fit, [runs[i] for i in problem.rows], model.places[problem.rows])
        for problem, fit in zip(problems, found, strict=True)
    ]


def _calibrated(problem: FitProblem, num_folds: int) -> Asking[Fit]:
    """Return a fit with spreads of predictions that never saw the run."""
    part = folds(len(problem.rows), min(num_folds, len(problem.rows)))
    both: list[Asking[Any]] = [problem.fit(problem.rows), held_out(problem, part)]
    found, unseen = yield from together(both)
    fit = problem.stated(found)
    fit = fit.model_copy(update=_spreads(fit, unseen))
    learned = {SECONDS: fit.step_residual, BYTES: fit.memory_residual}
    widened_by = {kind: one.widened_by if one else 1.0 for kind, one in learned.items()}
    groups = yield from left_out(problem, found)
    reach = reach_of(problem, found, groups, widened_by, fit.degrees_of_freedom)
    return fit.model_copy(update={"reach": reach})


def _stack(premises: Premises, fit: Fit, runs: Sequence[Run], places: Array) -> Stack:
    """Return a stack that was fitted to runs, which lie at `places`."""
    log, (fraction, ratio) = premises.log, host_paces(runs)
    timed = np.array([run.tells_speed for run in runs])
    found = {
        "startup": startup_of(runs, log.load_s),
        "window": Window(
            times=log.times, slow_fraction=fraction, slow_ratio=ratio, evidence=log.evidence["times"].text
        ),
        "fit": fit,
        "measured": measured_kinds(runs, premises.habits),
        "places": None if fit.step_residual or not timed.any() else np.unique(places[timed], axis=0).tolist(),
        "tables": (),
        "versions": {name: version(name) for name in ("foretrain", "numpy", "scipy")},
    }
    return Stack.model_validate(premises.model_dump(by_alias=True) | found)


def measured_kinds(runs: Sequence[Run], habits: Habits) -> tuple[MeasuredKind, ...]:
    """Return what ran on which devices, as software of these habits does; those of most timed runs first."""
    groups: dict[tuple[str, bool, MatmulPrecision, bool], list[Run]] = {}
    for run in runs:
        if run.tells_speed:
            precision, shape = run.recipe.habits(habits, run.shape).matmul_precision, run.shape
            kind = (run.machine.accelerator.id, shape.num_experts > 0, precision, run.recipe.lora_rank > 0)
            groups.setdefault(kind, []).append(run)
    found = [
        MeasuredKind(
            accelerator=accelerator,
            experts=experts,
            precision=precision,
            adapters=adapters,
            families=tuple(sorted({run.shape.family for run in members})),
            runs=len(members),
            num_devices=_ends([run.machine.num_devices for run in members]),
            hidden_size=_ends([run.shape.hidden_size for run in members]),
        )
        for (accelerator, experts, precision, adapters), members in groups.items()
    ]
    return tuple(sorted(found, key=lambda kind: -kind.runs))


def _ends(counts: Sequence[int]) -> tuple[int, int]:
    return min(counts), max(counts)


def _spreads(fit: Fit, unseen: HeldOut) -> dict[str, Any]:
    """Return the fields of a fit that speak of predictions of runs which were not seen."""
    dof = fit.degrees_of_freedom
    errors_of = {"step_log_sd": unseen.step, "launch_log_sd": unseen.launch, "memory_log_sd": unseen.memory}
    log_sds = {name: held_out_log_sd(errors, ASSUMED_SPREADS[name], dof) for name, errors in errors_of.items()}
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
