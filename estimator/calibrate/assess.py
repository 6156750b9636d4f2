"""Measured runs held against predictions: what a calibration's report, its tables and its JSON are drawn from.

`assess` gives an `Assessment`: `rows`, one `Assessed` for each run that a stack can predict, in the order of the table,
and `skipped`, each other row with the reason. An `Assessed` holds the `run` (what ran, and what was measured), the
stack, whether that stack was fitted to this very run (`in_sample`), predicted seconds per step and reserved bytes with
their 90 % intervals, the probability that it fits, and where the seconds go. `to_frame` gives them as a pandas frame,
and `summarize` how far off they are in each group of it: of sources, devices, models or plans.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from estimator.arrays import Array
from estimator.calibrate.batches import Batch, batched
from estimator.predict.interval import Range
from estimator.predict.prediction import predict
from estimator.runs.measured import Run
from estimator.runs.read import Skipped
from estimator.stack.stack import ANY_TRAINER, Stack
from estimator.work.plan import PLAN_NAMES

if TYPE_CHECKING:
    import pandas as pd


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
    launch_s: Range | None = None
    """Host seconds to launch the work of a step, where a log times just that."""
    total_bytes: Range | None = None
    """Bytes that all devices hold together, where that was read."""
    other_bytes: Range | None = None
    """Bytes per device as they were read, where that was not as reserved."""

    @property
    def tokens_per_s(self) -> Range:
        """Predicted tokens per second of all devices."""
        return self.step_s.inverse(float(self.run.workload.tokens_per_step))

    @property
    def compared(self) -> dict[str, tuple[float | None, Range | None]]:
        """What was measured, and what was predicted of it, by its name with the unit; None where it is not known."""
        run = self.run
        launch_s = float(np.mean(run.launch_windows_s)) if run.launch_windows_s else None
        return {
            "step_s": (run.step_s, self.step_s),
            "launch_s": (launch_s, self.launch_s),
            "reserved_bytes": (run.reserved_bytes, self.reserved_bytes),
            "total_bytes": (run.total_bytes, self.total_bytes),
            "other_bytes": (run.other_bytes if run.reserved_bytes is None else None, self.other_bytes),
        }

    def error(self, measure: str) -> float | None:
        """Return predicted over measured of one of `MEASURES`, less 1; None where one of the two is not known."""
        measured, predicted = self.compared[MEASURES[measure]]
        return None if measured is None or predicted is None else predicted.value / measured - 1


@dataclass(frozen=True, slots=True)
class Assessment:
    """A table of runs beside predictions."""

    rows: tuple[Assessed, ...]
    skipped: tuple[Skipped, ...]

    def to_frame(self) -> "pd.DataFrame":
        """Return the rows as a pandas frame: see `to_frame`."""
        return to_frame(self.rows)


def assess(runs: Sequence[Run], stacks: Sequence[Stack]) -> Assessment:
    """Predict each run by the stack of its trainer, else by that of any, or by the one stack that is given.

    A run whose source leaves open what it was is predicted as each of what it may have been: the value lies in the
    middle of these, and the interval reaches from the lowest end to the highest.
    """
    flat = [one for run in runs for one in parts_of(run)]
    found = _assess(flat, stacks)
    whole: list[Assessed] = []
    skipped: list[Skipped] = []
    at = 0
    for run in runs:
        parts = found[at : at + len(parts_of(run))]
        at += len(parts)
        told = [part for part in parts if isinstance(part, Assessed)]
        if told:
            whole.append(told[0] if len(parts) == 1 else joined(run, told))
        else:
            skipped.append(next(part for part in parts if isinstance(part, Skipped)))
    return Assessment(tuple(whole), tuple(skipped))


def parts_of(run: Run) -> tuple[Run, ...]:
    """Return what a run may have been, and each with its longest rows alone where rows differ."""
    return tuple(
        part
        for one in run.all_it_may_be
        for part in ((one,) if one.longest_row is None else (one, replace(one, seq_len=one.longest_row)))
    )


def joined(run: Run, parts: Sequence[Assessed]) -> Assessed:
    """Return the prediction of a run that may have been several, from those of `parts_of`.

    Seconds are per token of the run; where rows differ, seconds are of rows of the mean, bytes of the longest.
    """
    tokens, mean = run.workload.tokens_per_step, {one.seq_len for one in run.all_it_may_be}
    timed_ = [p for p in parts if run.longest_row is None or p.run.seq_len in mean] or parts
    longest = [p for p in parts if p.run.longest_row in (None, p.run.seq_len)] or parts

    def bytes_of(name: str) -> Range | None:
        told: list[Range | None] = [getattr(p, name) for p in longest]
        least: list[Range | None] = [getattr(p, name) for p in parts]
        known = [one for one in told if one]
        return Range.around(known, min(one.low for one in least if one)) if known else None

    held = bytes_of("reserved_bytes")
    assert held
    return replace(
        parts[0],
        run=run,
        step_s=Range.around([p.step_s.times(tokens / p.run.workload.tokens_per_step) for p in timed_]),
        reserved_bytes=held,
        total_bytes=bytes_of("total_bytes"),
        other_bytes=bytes_of("other_bytes"),
        fits_probability=float(np.mean([p.fits_probability for p in longest])),
    )


def _assess(runs: Sequence[Run], stacks: Sequence[Stack]) -> list[Assessed | Skipped]:
    """Return each run beside its prediction, or why it has none."""
    of_trainer = {stack.trainer: stack for stack in stacks}
    groups: defaultdict[str, list[int]] = defaultdict(list)
    found: dict[int, Assessed | Skipped] = {}
    for i, run in enumerate(runs):
        own = run.trainer if run.trainer in of_trainer else ANY_TRAINER
        if len(stacks) > 1 and own not in of_trainer:
            found[i] = Skipped(run.name, f"trainer: no stack was fitted to {run.trainer!r}; name one with --stack")
        else:
            groups[stacks[0].trainer if len(stacks) == 1 else own].append(i)
    for trainer, places in groups.items():
        stack = of_trainer[trainer]
        known = {digest for table in stack.tables for digest in table.digests.split()}
        chosen = [runs[i] for i in places]
        for batch in batched(chosen, stack.habits):
            try:
                predicted = list(_assessed(batch, chosen, stack, known))
            except ValueError as error:
                found.update((places[i], Skipped(chosen[i].name, str(error))) for i in batch.rows)
            else:
                found.update(zip((places[i] for i in batch.rows), predicted, strict=True))
    return [found[i] for i in range(len(runs))]


def _assessed(batch: Batch, runs: Sequence[Run], stack: Stack, known: set[str]) -> Iterator[Assessed]:
    """Yield the runs of a batch beside their predictions."""
    found = predict(batch.inputs, stack, batch.run.source, batch.run.steps_per_read)
    step_s, held, fits = found.step.seconds, batch.read_bytes(found.memory), found.fits_probability
    least = np.broadcast_to(batch.certain_bytes(found.memory), held.shape)
    counted = np.broadcast_to(batch.read_bytes(found.memory.as_counted()), held.shape)
    beside = batch.inputs.machine.accelerator.hbm_bytes * (1 - stack.usable_memory_fraction)

    def ranged(values: Array, log_sds: Array, k: int) -> Range:
        return Range.of(float(values[k]), log_sds[k], found.degrees_of_freedom)

    for k, row in enumerate(batch.rows):
        run, reserved = runs[row], ranged(held, found.memory_log_sd, k).no_less_than(least[k])
        allocated = ranged(counted, found.memory_log_sd, k).no_less_than(least[k])
        yield Assessed(
            run=run,
            stack=stack.name,
            in_sample=run.digest in known,
            step_s=ranged(step_s, found.step_log_sd, k),
            reserved_bytes=reserved,
            other_bytes=_read_otherwise(run, reserved, allocated, beside),
            fits_probability=float(fits[k]),
            step_breakdown={name: float(part[k]) for name, part in found.step.breakdown.items()},
            launch_s=ranged(found.step.launch_s, found.launch_log_sd, k) if run.launch_windows_s else None,
            total_bytes=ranged(found.total_bytes, found.memory_log_sd, k).no_less_than(found.certain_total_bytes[k])
            if run.total_bytes
            else None,
        )


def _read_otherwise(run: Run, reserved: Range, allocated: Range, beside: float) -> Range | None:
    """Return the bytes as a run's were read, None where they were read as reserved, or not at all.

    Args:
        run: what was read.
        reserved: predicted of the allocator.
        allocated: predicted of tensors: what is counted.
        beside: bytes of a device that contexts and libraries may hold beside the allocator.
    """
    if run.allocated_bytes:
        return allocated
    if run.held_bytes:
        return Range.around([allocated, reserved])
    if run.used_bytes:
        return Range.around([reserved, Range(*(end + beside for end in reserved))])
    return None


MEASURES = {
    "step": "step_s",
    "launch": "launch_s",
    "memory": "reserved_bytes",
    "total_memory": "total_bytes",
    "other_memory": "other_bytes",
}
"""What predictions are held against, and the column of what was measured of it."""

OF_SPEED = ("step", "launch")
"""Measures of which an unhealthy run tells nothing."""

GROUPINGS = ("all", "source", "device", "model", "plan")
"""By what errors are summarized: all runs together, accelerators ("device"), and columns."""

COLUMNS = (
    "run", "stack", "in_sample", "source", "software", "accelerator", "num_devices", "num_nodes", "model",
    "hidden_size", "num_layers", "vocab_size", "seq_len", "global_batch", "recipe", "plan", "data_parallel",
    *PLAN_NAMES, "unhealthy", "fits", "fits_probability",
    *(f"{start}{name}{end}" for name in MEASURES.values()
      for start, end in (("", ""), ("predicted_", ""), ("predicted_", "_low"), ("predicted_", "_high"))),
)  # fmt: skip
"""Of `to_frame`, before those of errors and of the parts of a step."""

PART = "part_"
"""Begins the columns of the parts of a predicted step."""


def plan_kind(run: Run) -> str:
    """Return the degrees of a run's plan, in a word."""
    plan = run.plan
    ways = {"dp": run.dp, "tp": plan.tp, "pp": plan.num_stages, "cp": plan.cp, "ep": plan.ep}
    return " ".join(f"{name}{way}" for name, way in ways.items() if way > 1) or "one device"


def to_frame(rows: Sequence[Assessed]) -> "pd.DataFrame":
    """Return assessed runs as a pandas frame: a row a run, units in the names of the columns.

    `COLUMNS`: what ran, `plan` its degrees in a word, then of seconds per step, of launch, of reserved bytes and of the
    bytes of all devices what was measured, and what was predicted with the ends of its 90 % interval; nan where nothing
    is known. Then `step_error` and the like, predicted over measured less 1, and `part_matmul_s` and the like, the
    parts of the predicted step.
    """
    import pandas as pd  # noqa: PLC0415 - slow to import

    frame = pd.DataFrame([_columns(row) for row in rows]) if rows else pd.DataFrame(columns=COLUMNS, dtype=float)
    parts = frame.columns[frame.columns.str.startswith(PART)]
    return with_errors(frame.astype({"fits": "boolean"}).fillna(dict.fromkeys(parts, 0.0)))


def with_errors(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return a frame of assessed runs with the errors that its columns come to."""
    return frame.assign(
        **{f"{measure}_error": frame[f"predicted_{name}"] / frame[name] - 1 for measure, name in MEASURES.items()}
    )


def _columns(row: Assessed) -> dict[str, Any]:
    run, machine, shape = row.run, row.run.machine, row.run.shape
    numbers: dict[str, float] = {}
    for name, (measured, predicted) in row.compared.items():
        value, low, high = predicted or (np.nan,) * 3
        numbers |= {name: np.nan if measured is None else measured, f"predicted_{name}": value}
        numbers |= {f"predicted_{name}_low": low, f"predicted_{name}_high": high}
    return {
        "run": run.name, "stack": row.stack, "in_sample": row.in_sample, "source": run.source, "software": run.trainer,
        "accelerator": machine.accelerator.id, "num_devices": machine.num_devices, "num_nodes": machine.num_nodes,
        "model": run.model, "hidden_size": shape.hidden_size, "num_layers": shape.num_layers,
        "vocab_size": shape.vocab_size, "seq_len": run.seq_len, "global_batch": run.workload.global_batch,
        "recipe": str(run.recipe), "plan": plan_kind(run), "data_parallel": run.dp,
        **{name: getattr(run.plan, name) for name in PLAN_NAMES},
        "unhealthy": run.why_unhealthy, "fits": run.fits, "fits_probability": row.fits_probability, **numbers,
        **{f"{PART}{name}_s": seconds for name, seconds in row.step_breakdown.items()},
    }  # fmt: skip


def timed(frame: "pd.DataFrame") -> "pd.DataFrame":
    """Return the healthy runs of a frame whose steps were timed."""
    return frame[frame["step_s"].notna() & (frame["unhealthy"] == "")]


def summarize(frame: "pd.DataFrame", by: str = "all") -> "pd.DataFrame":
    """Return how far predictions are off in each group of runs: a row a group and measure (`MEASURES`).

    Args:
        frame: of `to_frame`.
        by: one of `GROUPINGS`, or another column.

    Returns:
        Indexed by `group` and `measure`: `num_runs`; `median`, `p90` (90 % are smaller) and `mean` of the absolute
        errors, predicted over measured less 1; `bias`, the median error; `coverage`, the part of the measurements
        inside their 90 % intervals.
    """
    import pandas as pd  # noqa: PLC0415 - slow to import

    frame = frame.assign(all="all", device=frame["accelerator"])
    parts = []
    for measure, name in MEASURES.items():
        own = frame[frame["unhealthy"] == ""] if measure in OF_SPEED else frame
        own = own[own[f"{measure}_error"].notna()]
        parts.append(pd.DataFrame({
            "group": own[by],
            "measure": measure,
            "error": own[f"{measure}_error"],
            "size": own[f"{measure}_error"].abs(),
            "inside": own[name].between(own[f"predicted_{name}_low"], own[f"predicted_{name}_high"]),
        }))  # fmt: skip
    groups = pd.concat(parts).sort_values("group", kind="stable").groupby(["group", "measure"], sort=False)
    size = groups["size"]
    return pd.DataFrame({
        "num_runs": size.size(), "median": size.median(), "p90": size.quantile(0.9), "mean": size.mean(),
        "bias": groups["error"].median(), "coverage": groups["inside"].mean(),
    }).round(12)  # fmt: skip


class FitCalls(NamedTuple):
    """Runs that ran, or ran out of memory, against what was called: it fits where that is likelier than not."""

    num_runs: int
    right: float
    """Part of the calls that were right."""
    false_fits: int
    """Called to fit, and ran out of memory."""
    expected_false_fits: float
    """How many of those called to fit should run out of memory, by the probabilities stated."""


def fit_calls(frame: "pd.DataFrame") -> FitCalls:
    """Return how the calls of what fits fared, of runs in a frame of `to_frame`."""
    known = frame[frame["fits"].notna()]
    if known.empty:
        return FitCalls(0, 1.0, 0, 0.0)
    fits, probability = known["fits"].astype(bool), known["fits_probability"]
    called = probability > 0.5
    expected = float((1 - probability[called]).sum())
    return FitCalls(len(known), float((called == fits).mean()), int((called & ~fits).sum()), expected)
