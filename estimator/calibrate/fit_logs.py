"""Fit a stack to measured runs, and say how wrong it is on a run that it never saw.

The model. Each run r gives up to three numbers: mean seconds per step t_r, mean launch seconds w_r (the timed window
of a log that times only the launch of work), memory M_r. With parameters theta (those of the stack, in logarithms) and
a factor u_f on device seconds for each model family f:

    log t_r = log step(theta, u_f) + e,   e ~ N(0, s_step^2 + se_r^2)      theta_j ~ N(log median_j, log_sd_j^2)
    log w_r = log launch(theta) + e,       e ~ N(0, s_launch^2)              u_f ~ N(0, s_family^2)
    log M_r = log memory(theta) + e,      e ~ N(0, s_memory^2)             log s ~ N(log median, SPREAD_LOG_SD^2)

theta and u are fitted together (maximum a posteriori), so that families are pooled partially: a family with few or
noisy runs stays near the population. The four spreads s maximise the evidence of the model linearised there. The
covariance of (theta, u) is the inverse of the Gauss-Newton Hessian.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.assess import Assessed
from estimator.formulas.inputs import step_inputs
from estimator.formulas.machine import Machine
from estimator.formulas.memory import total_bytes
from estimator.formulas.step import plan_step
from estimator.runs.logged import STATED_MINUTES_SD
from estimator.runs.logs.read import Log
from estimator.runs.measured import Run
from estimator.runs.pace import mean_and_log_se, pooled
from estimator.runs.record import RunRecord
from estimator.search.planner import search
from estimator.stack.efficiencies import Efficiencies
from estimator.stack.fit import Family, Fit, interval_ratio
from estimator.stack.stack import Habits, MeasuredRun, Premises, Prior, Stack, Startup, Window
from estimator.work.plan import Plans
from estimator.work.rules import reasons
from estimator.work.workload import Workload
from hardware.catalog import Catalog
from hardware.units import MIB


class Spread(NamedTuple):
    """Standard deviations, in logarithms, of what the model does not explain."""

    family: float
    step: float
    launch: float
    memory: float


PRIOR_SPREAD = Spread(family=0.10, step=0.04, launch=0.05, memory=0.04)
"""Medians of the spreads before a run was measured.

assumed: 4 % is what repeated runs of one plan on one machine spread (H100 LoRA submissions: 6 %; steady steps: 1-2 %);
families differ by their kernels, by more.
"""

MAX_ROUNDS = 20
"""Rounds of fitting values and spreads in turn; a handful suffices."""

SPREAD_LOG_SD = 0.5
"""How sure these medians are.  # assumed: within a factor of e for 95 %"""

UNSEEN_DEVICE_LOG_SD = 0.15
"""Further spread of device seconds on a device the stack never ran on.

assumed: trainers reach 410 to 614 TFLOP/s on MI300X and MI325X for the same model, 0.20 in log, with software that
differs too (facts of published runs, 2024-2025).
"""


@dataclass(frozen=True, slots=True)
class MoaiRun:
    """A run of the MoAI platform as this fit takes it: of its log every line but the first counts, warm-up or not."""

    run: Run
    log: Log
    record: RunRecord

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return the run of a log.

        Raises:
            ValueError: it has no log, or its record does not say how many steps and candidates it had.
        """
        if run.log is None or run.log.record is None:
            raise ValueError(f"fit: {run.name} has no log, which this stack is fitted to")
        record = run.log.record
        for key in ("num_steps", "num_candidates"):
            if getattr(record, key) is None:
                raise ValueError(f"fit: {run.name}: its run record has no {key}; add it")
        return cls(run, run.log, record)

    @property
    def log_name(self) -> str:
        """Name of the log's file."""
        return self.log.path.name

    @property
    def workload(self) -> Workload:
        """All of its steps."""
        return replace(self.run.workload, num_steps=self.record.num_steps or 1)

    @property
    def memory_mib(self) -> float | None:
        """Read of all devices together."""
        return None if self.run.total_bytes is None else self.run.total_bytes / MIB

    def windows(self) -> Array:
        """Return the seconds of launching the work, without the first line's."""
        return np.array([line.launch_s for line in self.log.records[1:] if line.launch_s is not None])

    def mean_step_s(self) -> tuple[float, float]:
        """Return the mean seconds per step between lines, and the standard error of its logarithm."""
        number = np.diff([line.step for line in self.log.records])
        return mean_and_log_se(np.diff([line.clock_s or 0.0 for line in self.log.records]) / number, number)

    def sustained_step_s(self) -> tuple[float, float]:
        """Return the same, with the stated minutes, over all steps, as a second measurement."""
        minutes, estimates = self.record.stated_minutes, [self.mean_step_s()]
        if minutes is not None:
            estimates.append((minutes * 60 / self.workload.num_steps, STATED_MINUTES_SD / minutes))
        return pooled(estimates)


@dataclass(frozen=True, slots=True)
class Observation:
    """A run as the fit sees it: what to predict with, and the logarithms of what was measured (nan where nothing)."""

    run: MoaiRun
    machine: Machine
    log_step: float
    log_step_se: float
    log_launch: float
    log_memory: float


def observe(run: MoaiRun) -> Observation:
    """Return what the fit sees of a run.

    Raises:
        ValueError: its plan cannot have run there.
    """
    machine = run.run.machine
    (why_not,) = reasons(Plans.of([run.run.plan]), run.workload, machine.num_devices)
    if why_not:
        raise ValueError(f"{run.log_name}: plan: {why_not}")
    step, log_se = run.sustained_step_s()
    windows = run.windows()
    return Observation(
        run=run,
        machine=machine,
        log_step=float(np.log(step)),
        log_step_se=log_se,
        log_launch=float(np.log(windows.mean())) if len(windows) else np.nan,
        log_memory=float(np.log(run.memory_mib * MIB)) if run.memory_mib else np.nan,
    )


def predict_logs(observation: Observation, habits: Habits, efficiencies: Efficiencies) -> Array:
    """Return the logarithms of a run's seconds per step, launch seconds and bytes, shape (3,)."""
    run = observation.run.run
    inputs = step_inputs(run.plan, run.workload, observation.machine, habits)
    step = plan_step(inputs, efficiencies, run.steps_per_read)
    held = total_bytes(inputs, efficiencies)
    return np.log([float(step.seconds.item()), float(step.launch_s.item()), float(held.item())])


def fit_stack(observations: Sequence[Observation], habits: Habits, priors: dict[str, Prior], accelerator: str) -> Fit:
    """Fit a stack's parameters, family factors and spreads to one or more measured runs.

    Values for given spreads, and spreads for given values, in turn, until the spreads stay.
    """
    from scipy.optimize import minimize  # noqa: PLC0415 - slow to import, and only a fit needs it

    problem = _Problem(observations, habits, priors)
    spread, solution = PRIOR_SPREAD, problem.solve(PRIOR_SPREAD)
    for _ in range(MAX_ROUNDS):
        found = minimize(
            lambda log_spread, at=solution: -problem.log_evidence(Spread(*np.exp(log_spread)), at),
            np.log(spread),
            method="Nelder-Mead",
            options={"xatol": 1e-5, "fatol": 1e-8, "maxiter": 4000},
        )
        converged = np.allclose(found.x, np.log(spread), atol=1e-3)
        spread = Spread(*np.exp(found.x).tolist())
        solution = problem.solve(spread)
        if converged:
            break
    families = {
        name: Family(
            log_factor=float(solution.values[i]),
            log_sd=float(solution.covariance[i, i] ** 0.5),
            runs=sum(o.run.workload.shape.family == name for o in observations),
        )
        for i, name in enumerate(problem.families, start=len(priors))
    }
    return Fit(
        accelerators=(accelerator,),
        names=(*priors, *families),
        log_values=tuple(solution.values.tolist()),
        covariance=tuple(tuple(row) for row in solution.covariance.tolist()),
        families=families,
        family_log_sd=spread.family,
        step_log_sd=spread.step,
        launch_log_sd=spread.launch,
        memory_log_sd=spread.memory,
        device_log_sd=UNSEEN_DEVICE_LOG_SD,
        degrees_of_freedom=max(len(observations) - 1, 1),
    )


class _Solution(NamedTuple):
    """Fitted values, their covariance, and the model there: measured less predicted, and its slopes."""

    values: Array
    covariance: Array
    errors: Array
    slopes: Array


class _Problem:
    """Parameters and family factors as one vector, to be fitted for given spreads."""

    def __init__(self, observations: Sequence[Observation], habits: Habits, priors: dict[str, Prior]) -> None:
        self.observations = observations
        self.habits = habits
        self.families = tuple(sorted({o.run.workload.shape.family for o in observations}))
        self.prior_mean = np.array([np.log(prior.median) for prior in priors.values()] + [0.0] * len(self.families))
        self.prior_sd = np.array([prior.log_sd for prior in priors.values()])
        self.names = tuple(priors)
        self.measured = np.array([[o.log_step, o.log_launch, o.log_memory] for o in observations])
        self.step_se = np.array([o.log_step_se for o in observations])
        self.values = self.prior_mean

    def predicted(self, values: Array) -> Array:
        """Return the logarithms of what the model predicts, shape (runs, 3)."""
        parameters = dict(zip(self.names, np.exp(values[: len(self.names)]), strict=True))
        factors = dict(zip(self.families, np.exp(values[len(self.names) :]), strict=True))
        return np.array([
            predict_logs(o, self.habits, Efficiencies(**parameters, family_factor=factors[o.run.workload.shape.family]))
            for o in self.observations
        ])  # fmt: skip

    def standard_deviations(self, spread: Spread) -> tuple[Array, Array]:
        """Return those of the measurements, shape (runs, 3), and of the prior on the values."""
        ones = np.ones(len(self.step_se))
        measured = np.stack([np.hypot(spread.step, self.step_se), spread.launch * ones, spread.memory * ones], axis=1)
        return measured, np.concatenate([self.prior_sd, np.full(len(self.families), spread.family)])

    def solve(self, spread: Spread) -> _Solution:
        """Return the values that are most probable for these spreads (Levenberg-Marquardt)."""
        from scipy.optimize import least_squares  # noqa: PLC0415 - as above

        measured_sd, prior_sd = self.standard_deviations(spread)
        known = np.isfinite(self.measured)
        sd = measured_sd[known]

        def residuals(values: Array) -> Array:
            errors = (self.predicted(values) - self.measured)[known] / sd
            return np.concatenate([errors, (values - self.prior_mean) / prior_sd])

        found = least_squares(residuals, self.values, method="lm", xtol=1e-9, ftol=1e-9)
        self.values = found.x
        return _Solution(
            values=found.x,
            covariance=np.linalg.inv(found.jac.T @ found.jac),
            errors=-found.fun[: len(sd)] * sd,
            slopes=found.jac[: len(sd)] * sd[:, None],
        )

    def log_evidence(self, spread: Spread, at: _Solution) -> float:
        """Return the log probability of the measurements for these spreads, the model taken linear around `at`.

        Then the measurements are jointly normal: errors + slopes (values - prior mean) ~ N(0, V), with
        V = diag(sd^2) + slopes diag(prior_sd^2) slopes'.
        """
        measured_sd, prior_sd = self.standard_deviations(spread)
        sd = measured_sd[np.isfinite(self.measured)]
        off = at.errors + at.slopes @ (at.values - self.prior_mean)
        covariance = np.diag(sd**2) + (at.slopes * prior_sd**2) @ at.slopes.T
        log_prior = -0.5 * float(((np.log(spread) - np.log(PRIOR_SPREAD)) ** 2).sum()) / SPREAD_LOG_SD**2
        return log_prior - 0.5 * float(off @ np.linalg.solve(covariance, off) + np.linalg.slogdet(covariance)[1])


def host_paces(runs: Sequence[MoaiRun]) -> tuple[float, float]:
    """Return the fraction of steps at the host's slow pace, and the slow pace's launch time over the fast one's.

    In each log, the timed windows are split at their widest gap, if the means on its two sides differ by more than
    10 %; a log without such a gap shows one pace and says nothing of the other. The fraction is pooled over windows,
    the ratio is the geometric mean over logs.
    """
    slow, total, ratios = 0, 0, []
    for run in runs:
        windows = np.sort(run.windows())
        if len(windows) < 3:
            continue
        split = int(np.argmax(np.diff(windows))) + 1
        ratio = windows[split:].mean() / windows[:split].mean()
        if ratio > 1.1:
            slow, total = slow + len(windows) - split, total + len(windows)
            ratios.append(np.log(ratio))
    if not ratios:
        return 0.0, 1.0
    return slow / total, float(np.exp(np.mean(ratios)))


def startup_of(runs: Sequence[MoaiRun], load_s: float) -> Startup:
    """Return the one-off seconds of a run: medians over the logs.

    Raises:
        ValueError: no log holds the events of a startup.
    """
    told = [run.run.startup for run in runs if run.run.startup]
    request = [one.request_s for one in told if one.request_s is not None]
    per_candidate = [one.search_s_per_candidate for one in told if one.search_s_per_candidate is not None]
    first_step = [one.first_step_s for one in told if one.first_step_s is not None]
    if not request:
        raise ValueError("fit: no log holds the events of a startup; give at least one log from its first line on")
    return Startup(
        load_s=load_s,
        request_s=float(np.median(request)),
        search_s_per_candidate=float(np.median(per_candidate)),
        first_step_s=float(np.median(first_step)),
        evidence=f"medians over {len(request)} logs; the load as premised",
    )


def stack_from_runs(premises: Premises, runs: Sequence[MoaiRun]) -> Stack:
    """Return the stack that a set of measured runs, and the premises, lead to; it lists no runs."""
    if not runs:
        raise ValueError("fit: no measured runs; give a table with at least one")
    observations = [observe(run) for run in runs]
    accelerators = {o.machine.accelerator.id for o in observations}
    if len(accelerators) > 1:
        raise ValueError(f"fit: runs on {', '.join(sorted(accelerators))}; one fit takes runs on one accelerator")
    fit = fit_stack(observations, premises.habits, premises.priors, *accelerators)
    log, (fraction, ratio) = premises.log, host_paces(runs)
    window = Window(times=log.times, slow_fraction=fraction, slow_ratio=ratio, evidence=log.evidence["times"].text)
    found = {"startup": startup_of(runs, log.load_s), "window": window, "fit": fit, "runs": ()}
    return Stack.model_validate(premises.model_dump(by_alias=True) | found)


def try_run(run: MoaiRun, stack: Stack, catalog: Catalog, *, in_sample: bool = False) -> Assessed:
    """Predict a measured run, with its own plan, as it ran."""
    from scipy.special import stdtr  # noqa: PLC0415 - as above

    machine = run.run.machine
    flavor = catalog.flavor_of(machine.accelerator.id, machine.num_devices)
    own = search(run.workload, flavor, stack, catalog, plan=run.run.plan).plans[0]
    observed = observe(run)
    log_step, log_launch, _ = predict_logs(observed, stack.habits, stack.efficiencies(run.workload.shape.family))
    step_s, launch_s = np.exp([log_step, log_launch]).tolist()
    held, logged, dof = own.memory.per_device_bytes, own.logged_tokens_per_s, stack.fit.degrees_of_freedom
    log_sd = np.log(held.high / held.value) / np.log(interval_ratio(1.0, dof))
    usable = machine.accelerator.hbm_bytes * stack.usable_memory_fraction
    return Assessed(
        run=replace(run.run, step_s=float(np.exp(observed.log_step)), launch_windows_s=tuple(run.windows().tolist())),
        stack=stack.name,
        in_sample=in_sample,
        step_s=own.step_s.times(step_s / own.step_s.value),  # its loop may read the loss less often
        reserved_bytes=held,
        fits_probability=float(stdtr(dof, np.log(usable / held.value) / log_sd)),
        step_breakdown=own.step_breakdown,
        launch_s=logged.inverse(launch_s * logged.value),
        total_bytes=own.memory.total_bytes,
    )


def leave_one_out(premises: Premises, runs: Sequence[MoaiRun], catalog: Catalog) -> list[Assessed]:
    """Predict each run with a stack that was fitted to all the others.

    Raises:
        ValueError: there is only one run.
    """
    if len(runs) < 2:
        raise ValueError("fit: 1 measured run; give a table with at least two, so that each can be left out")
    return [try_run(run, stack_from_runs(premises, [r for r in runs if r is not run]), catalog) for run in runs]


def with_runs(stack: Stack, measured: Sequence[MoaiRun], left_out: Sequence[Assessed]) -> Stack:
    """Return a stack that lists the runs it was fitted to, and how far off it is on each when that run is left out."""
    runs = tuple(
        MeasuredRun(
            log=run.log_name,
            sha256=run.log.sha256,
            model=run.workload.shape.name,
            step_s=round(row.run.step_s or np.nan, 3),
            left_out_step_error=round(row.error("step") or 0.0, 4),
        )
        for run, row in zip(measured, left_out, strict=True)
    )
    return stack.model_copy(update={"runs": runs})
