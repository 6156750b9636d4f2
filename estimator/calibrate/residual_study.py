"""A study of a calibration: a stack's predictions before and after its fit, and of runs that its fit never saw.

What a report shows beyond single runs is found here: how errors trend, which part of a step would have to take how long
to explain a miss, how often intervals hold, and which further measurement would narrow them most.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.assess import MEASURES, PART, assess, plan_kind, timed, to_frame, with_errors
from estimator.calibrate.batches import batched
from estimator.calibrate.hold_out import hold_out, splits_of
from estimator.predict.interval import moved
from estimator.runs.measured import Run
from estimator.stack.fit import Fit, interval_ratio
from estimator.stack.stack import Stack
from hardware.errors import shown

if TYPE_CHECKING:
    import pandas as pd

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
    """A stack's runs beside predictions, frames of `to_frame`: by the priors alone, by the fit to all, and held out."""

    stack: Stack
    before: "pd.DataFrame"
    after: "pd.DataFrame"
    held_out: Mapping[str, "pd.DataFrame"]
    """By fits that never saw the run, by how runs were held out (`hold_out.SPLITS`)."""
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
    after = to_frame(assess(own, [stack]).rows)
    if known is None:
        splits = {name: to_frame(hold_out(stack, own, name)) for name in splits_of(stack)}
    else:
        splits = {name: held_out_before(split["rows"], after) for name, split in known.items()}
    return Study(
        stack=stack,
        before=to_frame(assess(own, [stack.model_copy(update={"fit": prior_fit(stack)})]).rows),
        after=after,
        held_out={name: rows for name, rows in splits.items() if len(rows)},
        gains=tuple(gains(stack, own)),
    )


def held_out_before(document: Sequence[Mapping[str, Any]], rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return runs as a document of hold-outs has them predicted; the parts of a step in proportion to the fit's."""
    import pandas as pd  # noqa: PLC0415 - slow to import

    keys = ["run", "source", "step_s", "reserved_bytes"]
    known = pd.DataFrame(list(document)).rename(columns={"name": "run"}).astype(rows.dtypes[keys].to_dict())
    new = [f"predicted_{name}{end}" for name in MEASURES.values() for end in ("", "_low", "_high")]
    values = [
        [number for name in MEASURES.values() for number in row.get(f"predicted_{name}", (np.nan,) * 3)]
        for row in document
    ]
    known = known[[*keys, "fits_probability"]].join(pd.DataFrame(values, columns=new))
    own = rows.drop(columns=[*new, "fits_probability"]).assign(fitted_s=rows["predicted_step_s"])
    known, own = (of.assign(copy=of.groupby(keys, dropna=False).cumcount()) for of in (known, own))
    found = known.merge(own, on=[*keys, "copy"], how="left", indicator=True)
    if (missing := found[found["_merge"] != "both"]["run"]).size:
        raise ValueError(f"report: the hold-outs have a run {shown(missing.iloc[0])} that is not given; make them anew")
    parts = found.columns[found.columns.str.startswith(PART)]
    found[parts] = found[parts].mul(found["predicted_step_s"] / found["fitted_s"], axis=0)
    return with_errors(found[list(rows.columns)])


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


def log_error(rows: "pd.DataFrame") -> Array:
    """Logarithm of predicted over measured seconds, shape (runs,)."""
    return np.asarray(np.log(rows["predicted_step_s"] / rows["step_s"]))


def coverages(rows: "pd.DataFrame", degrees_of_freedom: int) -> list[float]:
    """Return the part of the measured seconds inside intervals of each of `LEVELS`, from those of 90 %."""
    own = timed(rows)
    if own.empty:
        return []
    from scipy.special import stdtrit  # noqa: PLC0415 - slow to import

    unit = float(np.log(interval_ratio(1.0, degrees_of_freedom)))
    widths = np.log(own["predicted_step_s_high"] / own["predicted_step_s"]) / unit
    sizes = np.abs(log_error(own)) / widths
    return [float((sizes <= stdtrit(degrees_of_freedom, (1 + level) / 2)).mean()) for level in LEVELS]


# Trends


TREND_FEATURES = {
    "tensor-parallel degree": ("tp", "collectives inside a layer, and the host's time to launch them"),
    "pipeline stages": ("num_stages", "the bubble, transfers between stages, and their host"),
    "data-parallel degree": ("data_parallel", "how much of the gradients' reduction computation hides"),
    "nodes": ("num_nodes", "the network between nodes, and waiting for the slowest of them"),
    "rows of a micro-batch": (
        "batch_per_device", "rates of small matrix products, and launches that the devices wait for",
    ),
    "micro-batches": ("num_micro_batches", "seconds per micro-batch that do not depend on its size"),
    "tokens of a row": ("seq_len", "attention, whose work grows with the square of the row"),
    "hidden size": ("hidden_size", "rates of matrix products by their shape"),
    "layers": ("num_layers", "seconds per layer that do not depend on its size"),
    "vocabulary": ("vocab_size", "the vocabulary projection and the loss"),
}  # fmt: skip
"""What errors may trend with, each per doubling: its column, and the physics that it points to."""


class Trend(NamedTuple):
    """How errors change with a feature of the runs, all features fitted together."""

    feature: str
    slope: float
    """Change of the logarithm of predicted over measured, per doubling."""
    t: float
    """Slope over its standard error."""
    physics: str


def _features(rows: "pd.DataFrame") -> Array:
    """Return the logarithms of `TREND_FEATURES`, shape (runs, features)."""
    return np.asarray(np.log2(rows[[column for column, _ in TREND_FEATURES.values()]].to_numpy(dtype=np.float64)))


def trends(rows: "pd.DataFrame") -> list[Trend]:
    """Return what the errors trend with, strongest first: least squares over all features that vary.

    Of two features that vary together in every run the data do not say which it is; a ridge of one run's weight keeps
    both finite.
    """
    own = timed(rows)
    if len(own) < FEWEST:
        return []
    x, error = _features(own), log_error(own)
    varies = np.ptp(x, axis=0) > 0
    if not varies.any():
        return []
    x, error = x[:, varies] - x[:, varies].mean(axis=0), error - error.mean()
    inverse = np.linalg.inv(x.T @ x + np.eye(x.shape[1]))
    slopes = inverse @ x.T @ error
    left = error - x @ slopes
    variance = float(left @ left) / max(len(own) - x.shape[1] - 1, 1)
    t = slopes / np.sqrt(variance * np.diag(inverse) + 1e-30)
    names = np.array(list(TREND_FEATURES))[varies].tolist()
    found = [Trend(n, float(s), float(v), TREND_FEATURES[n][1]) for n, s, v in zip(names, slopes, t, strict=True)]
    return sorted((trend for trend in found if abs(trend.t) >= STRONGEST_T), key=lambda trend: -abs(trend.t))


# Single misses


def worst(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Return the runs whose seconds are furthest off, worst first, with what would explain each in `explained_by`.

    None that is off by less than 3 %.
    """
    own = timed(rows)
    size = np.abs(log_error(own))
    order = [i for i in np.argsort(-size, kind="stable")[:NUM_WORST] if size[i] >= FAR_OFF]
    why = [f"{_part_to_blame(own.iloc[i])}; {_like_it(own, i)}" for i in order]
    return own.iloc[order].assign(explained_by=why)


def _part_to_blame(row: "pd.Series[Any]") -> str:
    """Return which part of the step, changed by the least factor, would make up the difference."""
    missing = row["step_s"] - row["predicted_step_s"]
    parts = row[row.index.str.startswith(PART)].astype(float)
    parts = parts[(parts > 0) & (parts + missing > 0)]
    if parts.empty:
        return "no single part of the step could make up the difference"
    most = parts.max()
    name = str(parts.idxmax()).removeprefix(PART).removesuffix("_s").replace("_", " ")
    share = most / row["predicted_step_s"]
    return f"{name}, {share:.0%} of the step, would have to be {(most + missing) / most:.2f} times as predicted"


def _like_it(own: "pd.DataFrame", i: int) -> str:
    """Return the nearest other run on the same device, what of it differs, and how it fares."""
    row, logs = own.iloc[i], _features(own)
    others = own.assign(away=np.abs(logs - logs[i]).sum(axis=1)).drop(own.index[i])
    others = others[others["accelerator"] == row["accelerator"]]
    if others.empty:
        return "no other run on this device"
    near = others.sort_values(["away", "run"], kind="stable").iloc[0]
    columns = {name: column for name, (column, _) in TREND_FEATURES.items()}
    differs = [f"{name} {near[c]:g} for {row[c]:g}" for name, c in columns.items() if near[c] != row[c]]
    what = f"with {', '.join(differs)}" if differs else "of the same features"
    return f"the nearest run, {near['run']} {what}, is off by {near['step_error']:+.1%}"


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
