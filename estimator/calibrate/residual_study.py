"""A study of a calibration: a stack's predictions before and after its fit, and of runs that its fit never saw.

What a report shows beyond single runs is found here: how errors trend, which part of a step would have to take how long
to explain a miss, how often intervals hold, and which further measurement would narrow them most.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.assess import Assessed, assess, plan_kind
from estimator.calibrate.batches import batched
from estimator.calibrate.hold_out import hold_out, splits_of
from estimator.predict.interval import Range, moved
from estimator.runs.measured import Run
from estimator.stack.fit import Fit, interval_ratio
from estimator.stack.stack import Stack
from hardware.errors import shown

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of intervals, whose coverage is shown."""

FEWEST = 12
"""Runs from which a trend is told."""

STRONGEST_T = 3.0
"""A trend is told where its slope is as many standard errors."""

NUM_WORST = 8
FAR_OFF = 0.03
"""Of the logarithm of predicted over measured, from which on a run is a miss."""

MICROBENCHMARK_LOG_SD = 0.02
"""How well a measurement of one parameter alone would know it.  # assumed: benchmarks repeat within 2 %"""


@dataclass(frozen=True, slots=True)
class Study:
    """Predictions of a stack's runs: by the priors alone, by the fit to all, and by fits that never saw the run."""

    stack: Stack
    before: tuple[Assessed, ...]
    after: tuple[Assessed, ...]
    held_out: Mapping[str, tuple[Assessed, ...]]
    """By how runs were held out (`hold_out.SPLITS`)."""
    gains: tuple["Gain", ...]
    """Measurements that would narrow the intervals most, best first."""


def study(stack: Stack, runs: Sequence[Run], known: Mapping[str, Any] | None = None) -> Study:
    """Return the study of a stack that was fitted to these runs.

    Args:
        stack: the stack.
        runs: the runs, those of other trainers among them.
        known: what `calibrate --hold-out --json` printed of the stack before, by its ways of holding out; without it,
            the fits to parts of the runs are made here.

    Raises:
        ValueError: none of the runs is of the stack's trainer, or the known hold-outs are of other runs.
    """
    own = [run for run in runs if stack.is_of(run.trainer)]
    if not own:
        raise ValueError(f"report: no run of trainer {stack.trainer!r}; give the tables or logs that it was fitted to")
    after = assess(own, [stack]).rows
    if known is None:
        splits = {name: hold_out(stack, own, name) for name in splits_of(stack)}
    else:
        splits = {name: _held_out_before(split["rows"], after) for name, split in known.items()}
    return Study(
        stack=stack,
        before=assess(own, [stack.model_copy(update={"fit": prior_fit(stack)})]).rows,
        after=after,
        held_out={name: tuple(rows) for name, rows in splits.items() if rows},
        gains=tuple(gains(stack, own)),
    )


def _held_out_before(document: Sequence[Mapping[str, Any]], rows: Sequence[Assessed]) -> list[Assessed]:
    """Return runs as a document of hold-outs has them predicted; the parts of a step in proportion to the fit's."""
    own: defaultdict[tuple[object, ...], list[Assessed]] = defaultdict(list)
    for row in rows:
        own[row.run.name, row.run.source, row.run.step_s, row.run.reserved_bytes].append(row)
    found = []
    for known in document:
        same = own[known["name"], known["source"], known["step_s"], known["reserved_bytes"]]
        if not same:
            raise ValueError(
                f"report: the hold-outs have a run {shown(known['name'])} that is not given; make them anew"
            )
        row = same.pop(0)
        step_s, held = Range(*known["predicted_step_s"]), Range(*known["predicted_reserved_bytes"])
        parts = {name: part * step_s.value / row.step_s.value for name, part in row.step_breakdown.items()}
        fits = known["fits_probability"]
        found.append(replace(row, step_s=step_s, reserved_bytes=held, fits_probability=fits, step_breakdown=parts))
    return found


def prior_fit(stack: Stack) -> Fit:
    """Return the fit to no run: every parameter at its prior, as uncertain as that."""
    priors = stack.priors.values()
    return Fit(
        accelerators=stack.fit.accelerators,
        names=tuple(stack.priors),
        log_values=tuple(float(np.log(prior.median)) for prior in priors),
        covariance=tuple(tuple(row) for row in np.diag([prior.log_sd**2 for prior in priors]).tolist()),
        family_log_sd=stack.fit.family_log_sd,
        step_log_sd=stack.fit.step_log_sd,
        launch_log_sd=stack.fit.launch_log_sd,
        memory_log_sd=stack.fit.memory_log_sd,
        device_log_sd=stack.fit.device_log_sd,
        degrees_of_freedom=stack.fit.degrees_of_freedom,
    )


def timed(rows: Sequence[Assessed]) -> list[Assessed]:
    """Return the healthy runs whose steps were timed."""
    return [row for row in rows if row.run.tells_speed]


def log_error(row: Assessed) -> float:
    """Logarithm of predicted over measured seconds."""
    return float(np.log(row.step_s.value / (row.run.step_s or np.nan)))


def coverages(rows: Sequence[Assessed], degrees_of_freedom: int) -> list[float]:
    """Return the part of the measured seconds inside intervals of each of `LEVELS`, from those of 90 %."""
    own = timed(rows)
    if not own:
        return []
    from scipy.special import stdtrit  # noqa: PLC0415 - slow to import

    unit = float(np.log(interval_ratio(1.0, degrees_of_freedom)))
    widths = np.array([np.log(row.step_s.high / row.step_s.value) / unit for row in own])
    sizes = np.abs([log_error(row) for row in own]) / widths
    return [float((sizes <= stdtrit(degrees_of_freedom, (1 + level) / 2)).mean()) for level in LEVELS]


# Trends


TREND_FEATURES: dict[str, tuple[Callable[[Run], float], str]] = {
    "tensor-parallel degree": (lambda c: c.plan.tp, "collectives inside a layer, and the host's time to launch them"),
    "pipeline stages": (lambda c: c.plan.num_stages, "the bubble, transfers between stages, and their host"),
    "data-parallel degree": (lambda c: c.dp, "how much of the gradients' reduction computation hides"),
    "nodes": (lambda c: c.machine.num_nodes, "the network between nodes, and waiting for the slowest of them"),
    "rows of a micro-batch": (
        lambda c: c.plan.batch_per_device, "rates of small matrix products, and launches that the devices wait for",
    ),
    "micro-batches": (lambda c: c.plan.num_micro_batches, "seconds per micro-batch that do not depend on its size"),
    "tokens of a row": (lambda c: c.seq_len, "attention, whose work grows with the square of the row"),
    "hidden size": (lambda c: c.shape.hidden_size, "rates of matrix products by their shape"),
    "layers": (lambda c: c.shape.num_layers, "seconds per layer that do not depend on its size"),
    "vocabulary": (lambda c: c.shape.vocab_size, "the vocabulary projection and the loss"),
}  # fmt: skip
"""What errors may trend with, each per doubling, and the physics that it points to."""


class Trend(NamedTuple):
    """How errors change with a feature of the runs, all features fitted together."""

    feature: str
    slope: float
    """Change of the logarithm of predicted over measured, per doubling."""
    t: float
    """Slope over its standard error."""
    physics: str


def trends(rows: Sequence[Assessed]) -> list[Trend]:
    """Return what the errors trend with, strongest first: least squares over all features that vary.

    Of two features that vary together in every run the data do not say which it is; a ridge of one run's weight keeps
    both finite.
    """
    own = timed(rows)
    if len(own) < FEWEST:
        return []
    columns = {name: np.log2([feature(row.run) for row in own]) for name, (feature, _) in TREND_FEATURES.items()}
    varying = {name: column - column.mean() for name, column in columns.items() if np.ptp(column) > 0}
    if not varying:
        return []
    x, error = np.stack(list(varying.values()), axis=1), np.array([log_error(row) for row in own])
    inverse = np.linalg.inv(x.T @ x + np.eye(x.shape[1]))
    slopes = inverse @ x.T @ (error - error.mean())
    left = error - error.mean() - x @ slopes
    variance = float(left @ left) / max(len(own) - x.shape[1] - 1, 1)
    t = slopes / np.sqrt(variance * np.diag(inverse) + 1e-30)
    found = [Trend(n, float(s), float(v), TREND_FEATURES[n][1]) for n, s, v in zip(varying, slopes, t, strict=True)]
    return sorted((trend for trend in found if abs(trend.t) >= STRONGEST_T), key=lambda trend: -abs(trend.t))


# Single misses


class Miss(NamedTuple):
    """A run whose prediction is far off, and what would explain it."""

    row: Assessed
    error: float
    inside: bool
    """The 90 % interval holds the measurement all the same."""
    explained_by: str


def worst(rows: Sequence[Assessed]) -> list[Miss]:
    """Return the runs whose seconds are furthest off, worst first; none that is off by less than 3 %."""
    far = [row for row in timed(rows) if abs(log_error(row)) >= FAR_OFF]
    own = sorted(far, key=lambda row: -abs(log_error(row)))[:NUM_WORST]
    return [_miss(row, rows) for row in own]


def _miss(row: Assessed, rows: Sequence[Assessed]) -> Miss:
    measured = row.run.step_s or 0.0
    inside = row.step_s.low <= measured <= row.step_s.high
    return Miss(row, row.step_s.value / measured - 1, inside, f"{_part_to_blame(row)}; {_like_it(row, rows)}")


def _part_to_blame(row: Assessed) -> str:
    """Return which part of the step, changed by the least factor, would make up the difference."""
    missing = (row.run.step_s or 0.0) - row.step_s.value
    parts = {name: seconds for name, seconds in row.step_breakdown.items() if seconds > 0 and seconds + missing > 0}
    if not parts:
        return "no single part of the step could make up the difference"
    name = max(parts, key=lambda part: parts[part])
    factor = (parts[name] + missing) / parts[name]
    share = parts[name] / row.step_s.value
    return f"{name.replace('_', ' ')}, {share:.0%} of the step, would have to be {factor:.2f} times as predicted"


def _like_it(row: Assessed, rows: Sequence[Assessed]) -> str:
    """Return the nearest other run on the same device, what of it differs, and how it fares."""
    others = [r for r in timed(rows) if r is not row and r.run.machine.accelerator == row.run.machine.accelerator]
    if not others:
        return "no other run on this device"
    own = _features(row.run)
    near = min(others, key=lambda other: (float(np.abs(_features(other.run) - own).sum()), other.run.name))
    differs = [
        f"{name} {feature(near.run):g} for {feature(row.run):g}"
        for name, (feature, _) in TREND_FEATURES.items()
        if feature(near.run) != feature(row.run)
    ]
    what = f"with {', '.join(differs)}" if differs else "of the same features"
    return f"the nearest run, {near.run.name} {what}, is off by {near.step_error:+.1%}"


def _features(run: Run) -> Array:
    return np.log2([feature(run) for feature, _ in TREND_FEATURES.values()])


# What to measure next


class Gain(NamedTuple):
    """A measurement that was not made, and how it would narrow the intervals of all runs."""

    what: str
    before: float
    """Mean half-width of the 90 % intervals that the parameters alone give, as a ratio less 1."""
    after: float


def gains(stack: Stack, runs: Sequence[Run], count: int = 6) -> list[Gain]:
    """Return the measurements that would narrow the intervals most, best first.

    With parameters as independent 1-sigma moves, g_i the change of log seconds of run i by each, a measurement of run k
    with noise s turns the variance g_i g_i into g_i g_i - (g_i g_k)^2 / (g_k g_k + s^2); of a parameter alone, g_k is
    its change by each move.
    """
    slopes = np.zeros((len(runs), 0))
    for batch in batched(runs, stack.habits):
        directions = stack.directions(*batch.labels)
        after = moved(stack.efficiencies(*batch.labels), (*stack.priors, "family_factor"), directions)
        forward, backward = np.split(np.log(batch.step(after).seconds), 2)
        change = ((forward - backward) / 2).T
        if slopes.shape[1] == 0:
            slopes, parameters = np.zeros((len(runs), change.shape[1])), directions
        slopes[batch.rows] = np.broadcast_to(change, (len(batch.rows), change.shape[1]))
    variance = (slopes**2).sum(axis=1)
    ratio = float(np.log(interval_ratio(1.0, stack.fit.degrees_of_freedom)))

    def width(left: Array) -> float:
        return float(np.expm1(ratio * np.sqrt(np.maximum(left, 0))).mean())

    def remaining(of: Array, noise: float) -> float:
        return width(variance - (slopes @ of) ** 2 / (of @ of + noise**2))

    now = width(variance)
    found = [
        Gain(
            f"a benchmark of {name.replace('_', ' ')} alone, to 2 %",
            now,
            remaining(parameters[:, i], MICROBENCHMARK_LOG_SD),
        )
        for i, name in enumerate(stack.priors)
    ]
    kinds: defaultdict[str, list[int]] = defaultdict(list)
    for i, run in enumerate(runs):
        kinds[f"{run.model}, {plan_kind(run)}, on {run.machine.num_devices} {run.machine.accelerator.id}"].append(i)
    for what, places in kinds.items():
        best = min(remaining(slopes[i], stack.fit.step_log_sd) for i in places)
        found.append(Gain(f"a further run of {what}", now, best))
    return sorted(found, key=lambda gain: gain.after)[:count]
