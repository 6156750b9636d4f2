"""Fit a stack to the runs of published tables: parameters with priors, factors of devices and sources, robustly.

The model. Each run gives its seconds per step and the bytes it reserved, as far as they were measured; one that ran out
of memory, that it would have reserved no less than there is, and one that ran, no more. With parameters theta in
logarithms, and factors u on device seconds for each accelerator and each source of runs:

    log t = log step(theta, u_accelerator + u_source) + s_step e      theta_j ~ N(log median_j, log_sd_j^2)
    log M = log memory(theta) + s_memory e                            u ~ N(0, s_accelerator^2), N(0, s_source^2)

with e Student's t: see `student_t`. The spreads that a stack file states are those of predictions that never saw the
run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.batches import batched
from estimator.calibrate.residual_fit import learn
from estimator.calibrate.student_t import DEGREES_OF_FREEDOM, Belief, Measured, Solution, fit_robust
from estimator.predict.interval import moved_variance
from estimator.predict.residual import correction, residual_log_sd
from estimator.runs.measured import Run
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.fit import Family, Fit, ResidualModel, covariance_root
from estimator.stack.stack import Habits, Prior

PRIOR_SPREADS = np.array([0.05, 0.05])
"""Of seconds and of bytes.  # assumed: equal plans on equal machines spread by 1 to 6 %"""

FACTOR_LOG_SD = {"accelerator": 0.10, "source": 0.10}
"""Spread of the factors before runs were measured.

assumed: accelerators reach the catalog's best rates to differing degrees; sources differ in versions and in care.
"""

FEWEST_TO_LEARN = 20
"""Runs from which on what the model leaves unexplained is learned."""

UNSEEN_DEVICE_LOG_SD = 0.15
"""Further spread of device seconds on a device that the stack never ran on.  # assumed: as in `fit_logs`"""


class Targets(NamedTuple):
    """Which numbers of the runs a fit takes: places among the runs, and the numbers' logarithms."""

    step_rows: Array
    log_steps: Array
    memory_rows: Array
    log_bytes: Array
    bound: Array
    """Of the memory: 1 of a run that ran out of it, -1 of one that ran and was not read, 0 where it was read."""


def targets(runs: Sequence[Run], usable_fraction: float) -> Targets:
    """Return what a fit takes of runs: seconds of the healthy, reserved bytes of all, and what ran out of memory."""
    steps = [i for i, run in enumerate(runs) if run.tells_speed]
    held = [i for i, run in enumerate(runs) if run.reserved_bytes is not None]
    failed = [i for i, run in enumerate(runs) if run.fits is False]
    ran = [i for i, run in enumerate(runs) if run.fits and run.reserved_bytes is None]
    usable = [usable_fraction * runs[i].machine.accelerator.hbm_bytes for i in failed + ran]
    memory = [runs[i].reserved_bytes or 0.0 for i in held] + usable
    return Targets(
        np.array(steps, dtype=np.int64),
        np.log(np.array([runs[i].step_s for i in steps], dtype=np.float64)),
        np.array(held + failed + ran, dtype=np.int64),
        np.log(np.array(memory, dtype=np.float64)),
        np.repeat([0, 1, -1], [len(held), len(failed), len(ran)]),
    )


@dataclass(frozen=True, slots=True)
class RunsFit:
    """What a fit to runs found."""

    fit: Fit
    solution: Solution
    names: tuple[str, ...]
    prior_log_sd: tuple[float, ...]


class FitProblem:
    """Runs of one trainer, to be fitted whole or in part without counting them up anew."""

    def __init__(self, runs: Sequence[Run], habits: Habits, priors: dict[str, Prior]) -> None:
        """Group the runs into batches, and name what is to be found."""
        self.runs, self.habits, self.priors = runs, habits, priors
        self.batches = batched(runs, habits)
        self.targets = targets(runs, habits.usable_memory_fraction)
        places = {i: place for batch in self.batches for i, place in zip(batch.rows, batch.places(), strict=True)}
        self.places = np.array([places[i] for i in range(len(runs))])
        accelerators = sorted({run.machine.accelerator.id for run in runs})
        sources = sorted({run.source for run in runs})
        # of one alone, its factor and the stack's own efficiencies are the same
        self.accelerators = tuple(accelerators) if len(accelerators) > 1 else ()
        self.sources = tuple(sources) if len(sources) > 1 else ()

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters, then factors."""
        return (*self.priors, *self.accelerators, *self.sources)

    def belief(self) -> Belief:
        """Return the priors."""
        priors = self.priors.values()
        blocks = [(self.accelerators, "accelerator"), (self.sources, "source")]
        sd = [FACTOR_LOG_SD[kind] for members, kind in blocks for _ in members]
        mean = np.array([np.log(prior.median) for prior in priors] + [0.0] * len(sd))
        spread_of = [-1] * len(self.priors) + [i for i, (members, _) in enumerate(blocks) for _ in members]
        return Belief(mean, np.array([prior.log_sd for prior in priors] + sd), np.array(spread_of))

    def efficiencies(self, values: Array, labels: Sequence[str]) -> Efficiencies:
        """Return parameters of shape (samples, 1) from values of shape (samples, names), with the labels' factors."""
        columns = dict(zip(self.names, np.asarray(values).T[:, :, None], strict=True))
        factor = np.exp(sum((columns[label] for label in labels if label in columns), np.zeros((len(values), 1))))
        return Efficiencies(**{name: np.exp(columns[name]) for name in self.priors}, family_factor=factor)

    def predict_whole(self, found: Fit, rows: Array) -> tuple[Array, Array]:
        """Return the logarithms of seconds and of reserved bytes, shape (all runs,), what is unexplained included."""
        (seconds,), (held,) = self.predict(np.array([found.log_values]), rows)
        if found.step_residual:
            seconds += correction(found.step_residual, self.places)
        if found.memory_residual:
            held += correction(found.memory_residual, self.places)
        return seconds, held

    def residual_log_sds(self, found: Fit) -> tuple[Array, Array]:
        """Return the spreads of measured seconds and bytes around those, shape (all runs,)."""
        return (
            residual_log_sd(found.step_residual, found.step_log_sd, self.places),
            residual_log_sd(found.memory_residual, found.memory_log_sd, self.places),
        )

    def unsure_log_sds(self, found: Fit, rows: Array) -> tuple[Array, Array]:
        """Return the spreads of predicted seconds and bytes from those of the parameters, shape (all runs,)."""
        center, moves = np.array(found.log_values), covariance_root(np.array(found.covariance))
        after = self.predict(np.concatenate([center + moves, center - moves]), rows)
        seconds, held = (np.sqrt(moved_variance(logs)) for logs in after)
        return seconds, held

    def predict(self, values: Array, rows: Array, needs_step: Array | None = None) -> tuple[Array, Array]:
        """Return the logarithms of seconds and of reserved bytes, shape (samples, all runs).

        Only those of rows count; seconds only of those of `needs_step`, if given, which take longest to predict.
        """
        wanted, timed = np.zeros((2, len(self.runs)), dtype=bool)
        wanted[rows] = True
        timed[rows if needs_step is None else needs_step] = True
        seconds, held = np.zeros((2, len(values), len(self.runs)))
        for batch in self.batches:
            # the factors of other labels change nothing here: samples that differ only in them are one
            own = [i for i, name in enumerate(self.names) if name in self.priors or name in batch.labels]
            _, first, sample = np.unique(values[:, own], axis=0, return_index=True, return_inverse=True)
            efficiencies, count = self.efficiencies(values[first], batch.labels), (len(first), len(batch.rows))
            if timed[batch.rows].any():
                found = np.broadcast_to(batch.step(efficiencies).seconds, count)
                seconds[:, batch.rows] = np.log(found)[sample.ravel()]
            if wanted[batch.rows].any():
                memory = batch.memory(efficiencies)
                read = np.array([self.runs[i].reserved_bytes is not None for i in batch.rows])
                found = np.where(read, batch.read_bytes(memory), memory.peak_bytes)
                held[:, batch.rows] = np.log(np.broadcast_to(found, count))[sample.ravel()]
        return seconds, held

    def fit(self, rows: Array, like: Fit | None = None) -> RunsFit:
        """Fit to some of the runs, by their places, as if the others were not, begun at a fit like it, if given.

        What the model leaves unexplained is learned of enough runs, or where that fit learned it.
        """
        chosen = np.zeros(len(self.runs), dtype=bool)
        chosen[rows] = True
        all_of = self.targets
        step, memory = chosen[all_of.step_rows], chosen[all_of.memory_rows]
        step_rows, memory_rows = all_of.step_rows[step], all_of.memory_rows[memory]

        def model(values: Array) -> Array:
            seconds, held = self.predict(values, memory_rows, step_rows)
            return np.concatenate([seconds[:, step_rows], held[:, memory_rows]], axis=1)

        measured = Measured(
            np.concatenate([all_of.log_steps[step], all_of.log_bytes[memory]]),
            np.repeat([0, 1], [len(step_rows), len(memory_rows)]),
            np.concatenate([np.zeros(len(step_rows), dtype=np.int64), all_of.bound[memory]]),
        )
        belief = self.belief()
        solution = fit_robust(model, measured, belief, PRIOR_SPREADS, np.array(like.log_values) if like else None)
        residuals = measured.values - model(solution.values[None, :])[0]
        was_read = measured.bound == 0
        kinds = ((step_rows, slice(len(step_rows))), (memory_rows, slice(len(step_rows), None)))
        wanted = (like.step_residual, like.memory_residual) if like else (None, None)
        learned = [
            self._learn(
                places[was_read[kind]],
                residuals[kind][was_read[kind]],
                solution.spreads[i],
                least=1 if own else FEWEST_TO_LEARN,
            )
            for i, ((places, kind), own) in enumerate(zip(kinds, wanted, strict=True))
        ]
        return self._found(
            solution, [run for run, is_chosen in zip(self.runs, chosen, strict=True) if is_chosen], learned
        )

    def _learn(self, rows: Array, residuals: Array, spread: float, least: int) -> ResidualModel | None:
        return learn(self.places[rows], residuals, spread) if len(rows) >= least else None

    def _found(self, solution: Solution, runs: Sequence[Run], learned: Sequence[ResidualModel | None]) -> RunsFit:
        labels = (*self.accelerators, *self.sources)
        count = len(self.priors)
        factors = {
            label: Family(
                log_factor=float(solution.values[i]),
                log_sd=float(solution.covariance[i, i] ** 0.5),
                runs=max(sum(label in (c.machine.accelerator.id, c.source) for c in runs), 1),
            )
            for i, label in enumerate(labels, start=count)
        }
        spreads = dict(zip(labels, solution.prior_sd[count:].tolist(), strict=True))
        fit = Fit(
            accelerators=tuple(sorted({run.machine.accelerator.id for run in runs})),
            names=self.names,
            log_values=tuple(solution.values.tolist()),
            covariance=tuple(tuple(row) for row in solution.covariance.tolist()),
            families={},
            family_log_sd=0.0,
            factors=factors,
            sources=tuple(sorted({run.source for run in runs})),
            source_log_sd=max((spreads[s] for s in self.sources), default=FACTOR_LOG_SD["source"]),
            step_log_sd=float(solution.spreads[0]),
            launch_log_sd=float(solution.spreads[0]),
            memory_log_sd=float(solution.spreads[1]),
            device_log_sd=max((spreads[a] for a in self.accelerators), default=UNSEEN_DEVICE_LOG_SD),
            degrees_of_freedom=DEGREES_OF_FREEDOM,
            step_residual=learned[0],
            memory_residual=learned[1],
        )
        return RunsFit(fit, solution, self.names, tuple(solution.prior_sd.tolist()))
