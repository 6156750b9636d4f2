"""Measured runs held against predictions: what a calibration's report, its tables and its JSON are drawn from.

`assess` gives an `Assessment`: `rows`, one `Assessed` for each run that a stack can predict, in the order of the table,
and `skipped`, each other row with the reason. An `Assessed` holds the `run` (what ran, and what was measured), the
stack, whether that stack was fitted to this very run (`in_sample`), predicted seconds per step and reserved bytes with
their 90 % intervals, the probability that it fits, and where the seconds go. `summarize` boils rows down to a
`Summary` for each group: of sources, devices, models or plans, in and out of sample apart.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from estimator.calibrate.batches import Batch, batched
from estimator.predict.interval import Range
from estimator.predict.prediction import predict
from estimator.runs.measured import Run
from estimator.runs.read import Skipped
from estimator.stack.stack import ANY_TRAINER, Stack


@dataclass(frozen=True, slots=True)
class Assessed:
    """A run beside its prediction."""

    run: Run
    stack: str
    in_sample: bool
    """The stack was fitted to this run: its error says nothing of accuracy."""
    step_s: Range
    reserved_bytes: Range
    fits_probability: float
    step_breakdown: dict[str, float] = field(repr=False)
    """Seconds of a step, by purpose."""

    @property
    def tokens_per_s(self) -> Range:
        """Predicted tokens per second of all devices."""
        return self.step_s.inverse(float(self.run.workload.tokens_per_step))

    @property
    def step_error(self) -> float | None:
        """Predicted over measured seconds per step, less 1; None where they were not measured."""
        return None if self.run.step_s is None else self.step_s.value / self.run.step_s - 1

    @property
    def memory_error(self) -> float | None:
        """Predicted over measured reserved bytes, less 1; None where they were not measured."""
        measured = self.run.reserved_bytes
        return None if measured is None else self.reserved_bytes.value / measured - 1


@dataclass(frozen=True, slots=True)
class Assessment:
    """A table of runs beside predictions."""

    rows: tuple[Assessed, ...]
    skipped: tuple[Skipped, ...]


def assess(runs: Sequence[Run], stacks: Sequence[Stack]) -> Assessment:
    """Predict each run by the stack of its trainer, else by that of any, or by the one stack that is given."""
    of_trainer = {stack.trainer: stack for stack in stacks}
    groups: defaultdict[str, list[int]] = defaultdict(list)
    skipped: list[Skipped] = []
    for i, run in enumerate(runs):
        own = run.trainer if run.trainer in of_trainer else ANY_TRAINER
        if len(stacks) > 1 and own not in of_trainer:
            skipped.append(Skipped(run.name, f"trainer: no stack was fitted to {run.trainer!r}; name one with --stack"))
        else:
            groups[stacks[0].trainer if len(stacks) == 1 else own].append(i)
    found: dict[int, Assessed] = {}
    for trainer, places in groups.items():
        stack = of_trainer[trainer]
        known = {digest for table in stack.tables for digest in table.digests.split()}
        chosen = [runs[i] for i in places]
        for batch in batched(chosen, stack.habits):
            try:
                predicted = list(_assessed(batch, chosen, stack, known))
            except ValueError as error:
                skipped += [Skipped(chosen[i].name, str(error)) for i in batch.rows]
            else:
                found.update(zip((places[i] for i in batch.rows), predicted, strict=True))
    return Assessment(tuple(found[i] for i in sorted(found)), tuple(skipped))


def _assessed(batch: Batch, runs: Sequence[Run], stack: Stack, known: set[str]) -> Iterator[Assessed]:
    """Yield the runs of a batch beside their predictions."""
    found = predict(batch.inputs, stack, batch.run.source)
    step_s, held, fits = found.step.seconds, batch.read_bytes(found.memory), found.fits_probability
    for k, row in enumerate(batch.rows):
        run = runs[row]
        yield Assessed(
            run=run,
            stack=stack.name,
            in_sample=run.digest in known,
            step_s=Range.of(float(step_s[k]), found.step_log_sd[k], found.degrees_of_freedom),
            reserved_bytes=Range.of(float(held[k]), found.memory_log_sd[k], found.degrees_of_freedom),
            fits_probability=float(fits[k]),
            step_breakdown={name: float(part[k]) for name, part in found.step.breakdown.items()},
        )


class ErrorSummary(NamedTuple):
    """How far predictions are from measurements, over a group of runs."""

    num_runs: int
    median: float
    """Of the absolute error, predicted over measured less 1."""
    p90: float
    """90 % of the absolute errors are smaller."""
    mean: float
    bias: float
    """Median error."""
    coverage: float
    """Part of the measurements inside their 90 % interval."""


def summary(predicted: Sequence[Range], measured: Sequence[float]) -> ErrorSummary:
    """Return how far predictions are from measurements, of which there is at least one.

    >>> summary([Range(1.1, 1.0, 1.2), Range(0.5, 0.4, 0.6)], [1.0, 1.0]).median
    0.3
    """
    value, low, high = np.array(predicted).T
    truth = np.array(measured)
    error = value / truth - 1
    size = np.abs(error)
    inside = (low <= truth) & (truth <= high)
    numbers = (np.median(size), np.quantile(size, 0.9), size.mean(), np.median(error), inside.mean())
    return ErrorSummary(len(truth), *(round(float(number), 12) for number in numbers))


def plan_kind(run: Run) -> str:
    """Return the degrees of a run's plan, in a word."""
    plan = run.plan
    ways = {"dp": run.dp, "tp": plan.tp, "pp": plan.num_stages, "cp": plan.cp, "ep": plan.ep}
    return " ".join(f"{name}{way}" for name, way in ways.items() if way > 1) or "one device"


GROUPINGS: dict[str, Callable[[Run], str]] = {
    "all": lambda run: "all",  # noqa: ARG005 - one group
    "source": lambda run: run.source,
    "device": lambda run: run.machine.accelerator.id,
    "model": lambda run: run.model,
    "plan": plan_kind,
}
"""How runs are grouped."""


def summarize(rows: Sequence[Assessed], by: str) -> dict[str, dict[str, ErrorSummary]]:
    """Return the summaries of seconds ("step") and reserved bytes ("memory") of each group of healthy runs."""
    groups: defaultdict[str, list[Assessed]] = defaultdict(list)
    for row in rows:
        groups[GROUPINGS[by](row.run)].append(row)
    found = {group: _measures(members) for group, members in sorted(groups.items())}
    return {group: measures for group, measures in found.items() if measures}


def _measures(rows: Sequence[Assessed]) -> dict[str, ErrorSummary]:
    steps = [(row.step_s, row.run.step_s) for row in rows if row.run.step_s and not row.run.why_unhealthy]
    held = [(row.reserved_bytes, row.run.reserved_bytes) for row in rows if row.run.reserved_bytes]
    measures = {"step": steps, "memory": held}
    return {name: summary(*zip(*pairs, strict=True)) for name, pairs in measures.items() if pairs}


class FitCalls(NamedTuple):
    """Runs that ran, or ran out of memory, against what was called: it fits where that is likelier than not."""

    num_runs: int
    right: float
    """Part of the calls that were right."""
    false_fits: int
    """Called to fit, and ran out of memory."""
    expected_false_fits: float
    """How many of those called to fit should run out of memory, by the probabilities stated."""


def fit_calls(rows: Sequence[Assessed]) -> FitCalls:
    """Return how the calls of what fits fared."""
    known = [(row.fits_probability, row.run.fits) for row in rows if row.run.fits is not None]
    if not known:
        return FitCalls(0, 1.0, 0, 0.0)
    probability, fits = np.array([p for p, _ in known]), np.array([fit for _, fit in known])
    called = probability > 0.5
    expected = float((1 - probability)[called].sum())
    return FitCalls(len(known), float((called == fits).mean()), int((called & ~fits).sum()), expected)
